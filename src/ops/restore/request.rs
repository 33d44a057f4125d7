//! The request for a restore.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// An image format that can be restored to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ImageFormat {
    /// The bytes as the guest sees them.
    Raw,
    Qcow2,
}

impl ImageFormat {
    /// QEMU's name for it, which is its extension as well.
    pub(crate) fn name(self) -> &'static str {
        match self {
            ImageFormat::Raw => "raw",
            ImageFormat::Qcow2 => "qcow2",
        }
    }
}

/// What the user asked for.
#[derive(Debug, Default, Clone)]
pub(crate) struct RestoreRequest {
    /// Another name for the machine, which then gets a new UUID and new MAC addresses.
    pub(crate) as_name: Option<String>,
    /// The folder for all images.
    pub(crate) into: Option<PathBuf>,
    /// A file or device for one disk.
    pub(crate) to: BTreeMap<String, PathBuf>,
    /// Only these disks, and no definition; empty means all.
    pub(crate) only_disks: Vec<String>,
    /// The format of new images; none keeps the machine's.
    pub(crate) format: Option<ImageFormat>,
    /// Whether libvirt gets the definition.
    pub(crate) define: bool,
    /// The URI of the libvirt that gets it, which has a place of its own for a TPM's state.
    pub(crate) connect: Option<String>,
    /// Whether the machine is started in the end.
    pub(crate) start: bool,
    /// Whether what exists may be replaced.
    pub(crate) overwrite: bool,
    /// Whether the saved memory of the machine that is replaced may be removed.
    pub(crate) discard_saved_memory: bool,
    /// Whether drives whose medium is not on this host are left empty.
    pub(crate) drop_missing_media: bool,
    /// The folder for the files that the definition mentions; none leaves them where they are.
    pub(crate) with_files: Option<PathBuf>,
    /// The QEMU that runs the machine here; none keeps that of the definition.
    pub(crate) emulator: Option<PathBuf>,
    /// The machine type here; none keeps that of the definition.
    pub(crate) machine_type: Option<String>,
    /// What networks of the definition are called here.
    pub(crate) networks: BTreeMap<String, String>,
    /// What bridges and network devices of the definition are called here.
    pub(crate) bridges: BTreeMap<String, String>,
}
