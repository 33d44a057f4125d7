//! What the user asks of a restore.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// An image format that can be restored to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFormat {
    /// The bytes as the guest sees them.
    Raw,
    /// QEMU's own.
    Qcow2,
}

impl ImageFormat {
    /// QEMU's name for it, which is its extension as well.
    pub fn name(self) -> &'static str {
        match self {
            ImageFormat::Raw => "raw",
            ImageFormat::Qcow2 => "qcow2",
        }
    }
}

/// What the user asked for.
#[derive(Debug, Default, Clone)]
pub struct RestoreRequest {
    /// Another name for the machine, which then gets a new UUID and new MAC addresses.
    pub as_name: Option<String>,
    /// The folder for all images.
    pub into: Option<PathBuf>,
    /// A file or device for one disk.
    pub to: BTreeMap<String, PathBuf>,
    /// Only these disks, and no definition; empty means all.
    pub only_disks: Vec<String>,
    /// The format of new images; none keeps the machine's.
    pub format: Option<ImageFormat>,
    /// Whether libvirt gets the definition.
    pub define: bool,
    /// The URI of the libvirt that gets it, which has a place of its own for a TPM's state.
    pub connect: Option<String>,
    /// Whether the machine is started in the end.
    pub start: bool,
    /// Whether what exists may be replaced.
    pub overwrite: bool,
    /// Whether the saved memory of the machine that is replaced may be removed.
    pub discard_saved_memory: bool,
    /// Whether drives whose medium is not on this host are left empty.
    pub drop_missing_media: bool,
    /// What networks of the definition are called here.
    pub networks: BTreeMap<String, String>,
    /// What bridges and network devices of the definition are called here.
    pub bridges: BTreeMap<String, String>,
}
