//! The plan of a capture: the requested disks, and those of the definition that match.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::capture::agent::FreezeOptions;
use crate::capture::domain_xml::definition::{DefinedDisk, Definition, DiskSource, Layer};
use crate::capture::images::{self, ImageIdentity};
use crate::capture::state::{CaptureFile, CaptureState, ReadMode, SkippedDisk};

/// What to capture, and how.
#[derive(Debug, Clone)]
pub struct OpenRequest {
    /// The disks to capture. All others are left out.
    pub disks: Vec<DiskRequest>,
    /// Disks that are left out, with reasons that the caller wants to be recorded.
    pub skipped: Vec<SkippedDisk>,
    /// The name of a checkpoint to create at the same instant, covering the captured disks that can keep a bitmap. A
    /// stopped machine does not change, so it gets one only if such a disk has no usable bitmap of the parent.
    pub checkpoint: Option<String>,
    /// Whether to freeze the guest's file systems.
    pub freeze: FreezeOptions,
    /// How long the capture may stay open.
    pub lease: Duration,
    /// Starts the process that ends the capture when its lease expires, or if this process dies while it opens it.
    pub guard: Option<fn(&CaptureFile)>,
    /// Whether the capture belongs to this process. Once the process is gone, any other may remove the capture.
    pub owned: bool,
    /// Whether to read the images as they are, even if the machine may be writing to them. The result is not of a
    /// single moment.
    pub moving: bool,
    /// The repository whose chain is continued; only recorded.
    pub repository: Option<String>,
    /// The restore point that is continued; only recorded.
    pub parent_point: Option<String>,
    /// The folder of scratch files, if not the default one.
    pub scratch_dir: Option<PathBuf>,
    /// Files with the passphrases of encrypted images, by target. For stopped machines, instead of libvirt's secrets.
    pub luks_key_files: BTreeMap<String, PathBuf>,
}

/// A disk to capture.
#[derive(Debug, Clone)]
pub struct DiskRequest {
    pub(crate) target: String,
    /// The checkpoint since which changes are requested. If its bitmap is unusable, the disk is captured in full and
    /// the reason is reported.
    pub(crate) parent: Option<String>,
    /// Why a disk that should have a parent has none. It becomes the reason of the full read.
    pub(crate) full_reason: Option<String>,
    /// The image and its layers when the parent was made; empty if unknown.
    pub(crate) parent_image: Vec<ImageIdentity>,
}

impl Default for OpenRequest {
    fn default() -> OpenRequest {
        OpenRequest {
            disks: Vec::new(),
            skipped: Vec::new(),
            checkpoint: None,
            freeze: FreezeOptions::default(),
            lease: Duration::from_secs(6 * 3600),
            guard: None,
            owned: false,
            moving: false,
            repository: None,
            parent_point: None,
            scratch_dir: None,
            luks_key_files: BTreeMap::new(),
        }
    }
}

impl OpenRequest {
    /// Starts the guard of a capture, unless it has one already.
    pub(super) fn start_guard(&self, file: &CaptureFile) {
        if let Some(start) = self.guard.filter(|_| file.guard().is_none()) {
            start(file);
        }
    }

    /// The time after which a server of a stopped machine exits by itself. It is long if a guard renews the lease,
    /// because the server's own limit cannot be extended.
    pub(super) fn server_lease(&self) -> Duration {
        const GUARDED: Duration = Duration::from_secs(30 * 24 * 3600);
        if self.guard.is_some() { GUARDED } else { self.lease }
    }
}

impl DiskRequest {
    /// A disk to read in full.
    pub fn full(target: impl Into<String>) -> DiskRequest {
        DiskRequest { target: target.into(), parent: None, full_reason: None, parent_image: Vec::new() }
    }

    /// A disk of which the changes since a checkpoint are read.
    pub fn since(target: impl Into<String>, checkpoint: impl Into<String>) -> DiskRequest {
        DiskRequest { parent: Some(checkpoint.into()), ..DiskRequest::full(target) }
    }
}

/// Why a disk whose image ends before its data is read in full.
pub(super) const CUT_OFF: &str = "the image is cut off";

/// Warns of an image that ends before its data.
pub(super) fn warn_of_cut_off(address: &str) {
    tracing::warn!(
        "{address}: the image is cut off: what was beyond its end reads as zeros, and is in older points only"
    );
}

/// The identities of the image and its layers in the live definition, which is what QEMU actually has open.
pub(super) fn live_identity(disk: &DefinedDisk, source: &DiskSource) -> Vec<ImageIdentity> {
    let mut identities = vec![identity_of(source, format_of(disk))];
    let data_file = disk.data_file.iter().map(|data| identity_of(&data.source, "raw"));
    identities.extend(data_file.map(|identity| ImageIdentity { is_data_file: true, ..identity }));
    for layer in &disk.backing {
        identities.push(identity_of(&layer.source, layer.format.as_deref().unwrap_or("raw")));
        identities.extend(data_file_of(layer).map(|data| identity_of(&data.source, "raw")));
    }
    identities
}

fn data_file_of(layer: &Layer) -> Option<&Layer> {
    layer.data_file.as_deref()
}

fn identity_of(source: &DiskSource, format: &str) -> ImageIdentity {
    identity_at(source.path().map(PathBuf::as_path), source.address(), format)
}

/// The identity of a file. If it is not a local file, or is not accessible, only its address is known.
pub(super) fn identity_at(path: Option<&Path>, address: String, format: &str) -> ImageIdentity {
    match path.map(|path| images::identify(path, format)) {
        Some(Ok(identity)) => return identity,
        Some(Err(error)) => tracing::debug!("{error}"),
        None => {}
    }
    ImageIdentity {
        path: address,
        format: format.to_owned(),
        device: 0,
        inode: 0,
        size_bytes: 0,
        modified_ns: 0,
        born_ns: None,
        is_data_file: false,
    }
}

pub(super) fn wanted_disks<'a>(
    definition: &'a Definition,
    request: &'a OpenRequest,
) -> impl Iterator<Item = (&'a DefinedDisk, &'a DiskRequest)> {
    definition.disks.iter().filter_map(|disk| {
        let wanted = request.disks.iter().find(|wanted| wanted.target == disk.target)?;
        Some((disk, wanted))
    })
}

pub(super) fn format_of(disk: &DefinedDisk) -> &str {
    disk.format.as_deref().unwrap_or("raw")
}

pub(super) fn read_mode(parent: Option<&String>) -> ReadMode {
    match parent {
        Some(_) => ReadMode::Changed,
        None => ReadMode::Full,
    }
}

pub(super) fn targets_with_new_bitmap(state: &CaptureState) -> Vec<String> {
    state.disks.iter().filter(|disk| disk.has_new_bitmap).map(|disk| disk.target.clone()).collect()
}
