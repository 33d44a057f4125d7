//! `point.json`: the description of a point, with everything that kvmb needs to continue and to restore it.
//!
//! The version is 1, or 2 if a disk has chunks that are stored in pieces. Readers refuse unknown versions and ignore
//! unknown fields, so fields were added without a new version: `earlier_hosts`, `left_out`, `autostart`, `snapshots`,
//! `outside_files`, and a disk's `owner` and `session`. The oldest points lack them.

use crate::capture::disk_session::DiskSession;
use crate::capture::images::{ImageIdentity, ImageOwner};
use crate::record::{LeftOut, PointDisk, PointFile, Source, Time};
use serde::{Deserialize, Serialize};

/// The newest version that this program reads and writes.
const VERSION: u32 = 2;

/// The first version, for points that programs without support for version 2 can read.
const FIRST_VERSION: u32 = 1;

/// Returns the version of a manifest with these disks.
pub(crate) fn version_of(disks: &[ManifestDisk]) -> u32 {
    let has_split = disks.iter().any(|disk| !disk.split_chunks.is_empty());
    if has_split { VERSION } else { FIRST_VERSION }
}

/// The manifest's name in the point's folder.
pub(crate) const MANIFEST: &str = "point.json";

/// The definition's name in the point's folder.
pub(crate) const DEFINITION: &str = "domain.xml";

/// The name of the running machine's definition in the point's folder. It exists only if [`DEFINITION`] lacks a disk of
/// the point.
pub(crate) const LIVE_DEFINITION: &str = "domain-live.xml";

/// The content of `point.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// The version of the format: see [`version_of`].
    pub(crate) version: u32,
    /// The program that wrote it, such as `kvmb 0.1.0`.
    pub(crate) program: String,
    pub(crate) machine: String,
    /// The machine's UUID, which identifies its chain of points.
    pub(crate) uuid: String,
    pub(crate) host: String,
    /// Other hosts that the machine was on earlier, as its chain shows: a point taken here continued one taken there,
    /// by bitmaps in the images ([`crate::ops::points::lineage`]). Points of kvmb 0.1.0 lack this field.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) earlier_hosts: Vec<EarlierHost>,
    /// The libvirt connection URI.
    pub(crate) connect: String,
    /// The moment of the capture.
    pub(crate) captured_at: Time,
    /// `filesystem`, `crash` or `offline`.
    pub(crate) consistency: String,
    /// The libvirt checkpoint made at the same instant, which the next point can continue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) checkpoint: Option<String>,
    /// The point that this one continues.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) parent: Option<String>,
    /// The time from the capture until this manifest was written.
    pub(crate) duration_seconds: f64,
    /// The disks, in the definition's order.
    pub(crate) disks: Vec<ManifestDisk>,
    /// The other files of the point's folder.
    pub(crate) files: Vec<ManifestFile>,
    /// Files that the definition references (loader, option ROMs, `fw_cfg` files) as they were.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) outside_files: Vec<ManifestOutsideFile>,
    /// Parts of the machine that are not in the point, with the reasons. Points of kvmb 0.1.0 lack this field.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) left_out: Vec<LeftOut>,
    /// Whether the machine starts with the host. Points of kvmb 0.1.0 lack this field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) autostart: Option<bool>,
    /// The names of the machine's libvirt snapshots. The snapshots themselves are not in the point.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) snapshots: Vec<String>,
}

/// A host that a machine was on before it moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EarlierHost {
    pub(crate) host: String,
    /// The moment of the first point on another host that continued a point of this one.
    pub(crate) left_at: Time,
}

/// One disk of a point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ManifestDisk {
    pub(crate) disk: String,
    /// The size of the virtual disk.
    pub(crate) capacity_bytes: u64,
    pub(crate) chunk_bytes: u32,
    /// The indices of the chunks that are stored in pieces of 64 KiB: `3,17-20`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) split_chunks: String,
    /// The image format.
    pub(crate) format: String,
    /// Where the content was stored on the host.
    pub(crate) source: Source,
    /// The image and its backing layers as they were. If they differ later, the target refers to another image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) layers: Vec<serde_json::Value>,
    /// The owner of the image, if libvirt does not manage it (`relabel='no'`). A restore that recreates the image needs
    /// it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) owner: Option<ImageOwner>,
    /// The QEMU process that had a disk with an external data file open. The bitmap is valid only while it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) session: Option<DiskSession>,
    /// Whether the point's checkpoint tracks the changes of this disk.
    #[serde(default)]
    pub(crate) in_checkpoint: bool,
    /// The checkpoint whose bitmap of this disk was found to be wrong. Nothing may continue it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) distrusts: Option<String>,
    /// When the whole disk was last read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) read_in_full_at: Option<Time>,
    /// `changed` or `full`.
    pub(crate) read_mode: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) read_mode_reason: Option<String>,
    /// The number of bytes read.
    pub(crate) read_bytes: u64,
    /// The number of those bytes that were new to the repository.
    pub(crate) new_bytes: u64,
    /// The size of the new data in the repository.
    pub(crate) stored_bytes: u64,
    /// SHA-256 of the whole disk, if `hash` was part of the pipe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sha256: Option<String>,
}

impl ManifestDisk {
    /// Returns the [`ManifestDisk::layers`], as far as this version understands them.
    pub(crate) fn images(&self) -> Vec<ImageIdentity> {
        self.layers.iter().filter_map(|layer| serde_json::from_value(layer.clone()).ok()).collect()
    }

    /// Converts the disk to its form in point records.
    pub(crate) fn to_record(&self) -> PointDisk {
        PointDisk {
            disk: self.disk.clone(),
            capacity_bytes: self.capacity_bytes,
            read_mode: self.read_mode.clone(),
            read_mode_reason: self.read_mode_reason.clone(),
            read_bytes: self.read_bytes,
            new_bytes: self.new_bytes,
            stored_bytes: self.stored_bytes,
            sha256: self.sha256.clone(),
            extra: Default::default(),
        }
    }
}

/// The purpose of a file of the point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    Nvram,
    /// A kernel that QEMU boots directly.
    Kernel,
    Initrd,
    /// A file of an emulated TPM's state, `tpm/…`.
    Tpm,
}

impl Role {
    /// The word for the role in records.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Role::Nvram => "nvram",
            Role::Kernel => "kernel",
            Role::Initrd => "initrd",
            Role::Tpm => "tpm",
        }
    }
}

/// One of the small files of a point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ManifestFile {
    /// The name in the point's folder.
    pub(crate) name: String,
    pub(crate) role: Role,
    /// The path on the host.
    pub(crate) path: String,
    pub(crate) size_bytes: u64,
}

/// A file of the host that the definition references.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ManifestOutsideFile {
    /// The name in the point's folder, `files/…`.
    pub(crate) name: String,
    /// The kind of file: `loader`, `option_rom`, `acpi_table`, `fw_cfg` …
    pub(crate) part: String,
    /// The path on the host, as in the definition.
    pub(crate) path: String,
    pub(crate) size_bytes: u64,
    pub(crate) mode: u32,
}

/// Why a manifest cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestError {
    /// Invalid JSON.
    #[error("{MANIFEST} is not valid: {0}")]
    Json(#[from] serde_json::Error),
    /// Written by a later kvmb.
    #[error("{MANIFEST} has version {0}; this kvmb knows versions up to {VERSION}")]
    Version(u32),
    /// An invalid machine name.
    #[error("{MANIFEST} has an invalid machine name: {0:?}")]
    Machine(String),
    /// An invalid name of a file of the point.
    #[error("{MANIFEST} has an invalid file name: {0:?}")]
    File(String),
    /// A checkpoint name that libvirt does not allow.
    #[error("{MANIFEST} has an invalid checkpoint name: {0:?}")]
    Checkpoint(String),
    /// An invalid description of a disk.
    #[error("{MANIFEST} has an invalid description of disk {0:?}")]
    Disk(String),
}

/// Whether a name is a valid file name.
fn is_plain_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\0'])
}

impl Manifest {
    /// Parses a manifest. Invalid values are an error here, so that they cause no panic later.
    pub(crate) fn parse(json: &[u8]) -> Result<Manifest, ManifestError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let Versioned { version } = serde_json::from_slice(json)?;
        if !(FIRST_VERSION..=VERSION).contains(&version) {
            return Err(ManifestError::Version(version));
        }
        let manifest: Manifest = serde_json::from_slice(json)?;
        // The machine's name becomes a file name. It must not let the author of the repository choose a folder.
        if !is_plain_name(&manifest.machine) {
            return Err(ManifestError::Machine(manifest.machine));
        }
        // The checkpoint becomes a name in libvirt and an argument of qemu-img.
        let is_checkpoint = |name: &&String| {
            name.len() <= 128 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        };
        let named = manifest.checkpoint.iter().chain(manifest.disks.iter().flat_map(|disk| &disk.distrusts));
        if let Some(name) = named.into_iter().find(|name| !is_checkpoint(name)) {
            return Err(ManifestError::Checkpoint(name.clone()));
        }
        for file in &manifest.files {
            let name = match file.role {
                Role::Tpm => file.name.strip_prefix(crate::capture::domain_xml::tpm::FOLDER).unwrap_or_default(),
                _ => &file.name,
            };
            if !is_plain_name(name) {
                return Err(ManifestError::File(file.name.clone()));
            }
        }
        for file in &manifest.outside_files {
            let name = file.name.strip_prefix(crate::capture::parts::copies::OUTSIDE_FOLDER).unwrap_or_default();
            if !is_plain_name(name) {
                return Err(ManifestError::File(file.name.clone()));
            }
        }
        for disk in &manifest.disks {
            let zero_blob = super::chunk_map::ZERO_BLOB_BYTES;
            let chunk = u64::from(disk.chunk_bytes);
            let plain_name = is_plain_name(&disk.disk);
            if chunk == 0 || chunk % zero_blob != 0 || chunk > 64 << 20 || disk.capacity_bytes > 1 << 60 || !plain_name
            {
                return Err(ManifestError::Disk(disk.disk.clone()));
            }
        }
        Ok(manifest)
    }

    /// The files of the point other than disks, as a point record shows them.
    pub(crate) fn file_records(&self) -> Vec<PointFile> {
        let file = |part: &str, path: &str, size_bytes| PointFile { part: part.into(), path: path.into(), size_bytes };
        let parts = self.files.iter().map(|known| file(known.role.word(), &known.path, known.size_bytes));
        let outside = self.outside_files.iter().map(|known| file(&known.part, &known.path, known.size_bytes));
        parts.chain(outside).collect()
    }

    /// Serializes the manifest to the bytes of `point.json`.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec_pretty(self).unwrap_or_default();
        json.push(b'\n');
        json
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(machine: &str, disk: &str, chunk_bytes: u32) -> Vec<u8> {
        let disk = serde_json::json!({
            "disk": disk, "capacity_bytes": 1 << 20, "chunk_bytes": chunk_bytes, "format": "raw",
            "source": { "type": "none" }, "read_mode": "full", "read_bytes": 0, "new_bytes": 0, "stored_bytes": 0,
        });
        let manifest = serde_json::json!({
            "version": 1, "program": "kvmb", "machine": machine, "uuid": "", "host": "", "connect": "",
            "captured_at": "2026-11-20T12:00:00+01:00", "consistency": "crash", "duration_seconds": 0.0,
            "disks": [disk], "files": [],
        });
        manifest.to_string().into_bytes()
    }

    #[test]
    fn unsafe_names_and_chunk_sizes_are_refused() {
        assert!(Manifest::parse(&manifest("vm 1", "vda", 1 << 20)).is_ok());
        for name in ["", ".", "..", "../vm1", "a/b", "/etc/passwd", "a\0b"] {
            assert!(Manifest::parse(&manifest(name, "vda", 1 << 20)).is_err(), "{name:?}");
            assert!(Manifest::parse(&manifest("vm1", name, 1 << 20)).is_err(), "{name:?}");
        }
        for chunk_bytes in [0, 1, 4096, 3 << 18, 128 << 20] {
            assert!(Manifest::parse(&manifest("vm1", "vda", chunk_bytes)).is_err(), "{chunk_bytes}");
        }
    }

    #[test]
    fn unknown_manifest_versions_are_refused() {
        let json = String::from_utf8(manifest("vm1", "vda", 1 << 20)).unwrap();
        let with =
            |version: u32| Manifest::parse(json.replace("\"version\":1", &format!("\"version\":{version}")).as_bytes());
        assert!(with(1).is_ok() && with(2).is_ok());
        for version in [0, 3] {
            let error = with(version).unwrap_err().to_string();
            assert_eq!(error, format!("point.json has version {version}; this kvmb knows versions up to 2"));
        }
        let mut disk = with(1).unwrap().disks.remove(0);
        assert_eq!(version_of(std::slice::from_ref(&disk)), 1);
        disk.split_chunks = "0".into();
        assert_eq!(version_of(&[disk]), 2);
    }
}
