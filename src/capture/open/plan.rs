//! The plan of a capture: the requested disks, and those of the definition that match.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::capture::agent::FreezeOptions;
use crate::capture::domain_xml::definition::{DefinedDisk, Definition, DiskSource, Layer};
use crate::capture::images::{self, ImageIdentity};
use crate::capture::state::{CaptureState, ReadMode, SkippedDisk};

/// What to capture, and how.
#[derive(Debug, Clone)]
pub struct OpenRequest {
    /// The disks to capture. All others are left out.
    pub disks: Vec<DiskRequest>,
    /// Disks that are left out for a reason that the caller wants to be remembered.
    pub skipped: Vec<SkippedDisk>,
    /// The name of a checkpoint to make at the same instant, covering the captured disks that can keep a bitmap. A
    /// machine that is off does not change: it gets one only where a disk that can keep a bitmap has no parent's that
    /// can be used.
    pub checkpoint: Option<String>,
    /// Whether to freeze the guest's file systems.
    pub freeze: FreezeOptions,
    /// How long the capture stays open at most.
    pub lease: Duration,
    /// Whether a guard ends the capture with its lease.
    pub guarded: bool,
    /// Whether the capture belongs to this process: when the process is gone, anybody may clear it away.
    pub owned: bool,
    /// Whether the images are read as they are, although the machine may be writing to them: no moment is captured.
    pub moving: bool,
    /// The repository whose chain is continued; only remembered.
    pub repository: Option<String>,
    /// The restore point that is continued; only remembered.
    pub parent_point: Option<String>,
    /// Where scratch files go, if not where the runtime says.
    pub scratch_dir: Option<PathBuf>,
    /// Files with the passphrases of encrypted images, by target: instead of libvirt's secrets, for a machine that is
    /// off.
    pub luks_key_files: BTreeMap<String, PathBuf>,
}

/// A disk to capture.
#[derive(Debug, Clone)]
pub struct DiskRequest {
    pub(crate) target: String,
    /// The checkpoint since which changes are wanted. When its bitmap cannot be used, the disk is captured in full, and
    /// the reason is reported.
    pub(crate) parent: Option<String>,
    /// Why it has no parent, where one could be expected; becomes the reason of the full read.
    pub(crate) full_reason: Option<String>,
}

impl Default for OpenRequest {
    fn default() -> OpenRequest {
        OpenRequest {
            disks: Vec::new(),
            skipped: Vec::new(),
            checkpoint: None,
            freeze: FreezeOptions::default(),
            lease: Duration::from_secs(6 * 3600),
            guarded: false,
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
    /// When a server of a machine that is off ends by itself: a guard renews the lease, which a server could not.
    pub(super) fn server_lease(&self) -> Duration {
        const GUARDED: Duration = Duration::from_secs(30 * 24 * 3600);
        if self.guarded { GUARDED } else { self.lease }
    }
}

impl DiskRequest {
    /// A disk to read in full.
    pub fn full(target: impl Into<String>) -> DiskRequest {
        DiskRequest { target: target.into(), parent: None, full_reason: None }
    }

    /// A disk to read what changed since a checkpoint.
    pub fn since(target: impl Into<String>, checkpoint: impl Into<String>) -> DiskRequest {
        DiskRequest { target: target.into(), parent: Some(checkpoint.into()), full_reason: None }
    }
}

/// The image and its layers as the live definition names them, which is what QEMU really has open.
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

/// A file's identity; of what is no local file, or cannot be seen, only the address.
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
