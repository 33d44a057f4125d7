//! The requested changes to a definition.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// What to change.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// Another name.
    pub name: Option<String>,
    /// Another UUID; the generation id, which tells a guest that it is a copy, becomes a new one then.
    pub uuid: Option<String>,
    /// New MAC addresses for every interface (QEMU's prefix 52:54:00 and a random rest).
    pub new_macs: bool,
    /// Takes out what a copy must not share with the original, and gives it ports, sockets and files of its own.
    pub own_resources: bool,
    /// Where restored disks are now, by target. What was below or beside the old image is gone: the new one is flat.
    pub disks: BTreeMap<String, NewDisk>,
    /// Those of them that are where they were, whatever the definition calls that place; their paths are not written.
    pub unmoved: BTreeSet<String>,
    /// Disks to leave out of the definition, by target.
    pub drop_disks: BTreeSet<String>,
    /// Drives whose medium is taken out, by target.
    pub eject: BTreeSet<String>,
    /// Another QEMU.
    pub emulator: Option<PathBuf>,
    /// Another machine type.
    pub machine_type: Option<String>,
    /// What a network of the definition is called here.
    pub networks: BTreeMap<String, String>,
    /// What a bridge, or a network device of the host, is called here.
    pub bridges: BTreeMap<String, String>,
    /// Where the UEFI variables are now.
    pub nvram: Option<PathBuf>,
    /// Where the kernel of a direct boot is now.
    pub kernel: Option<PathBuf>,
    /// Where the initial RAM disk of a direct boot is now.
    pub initrd: Option<PathBuf>,
    /// Where files are now that the definition mentions: loader, option ROMs, `fw_cfg` files … By their old paths.
    pub files: BTreeMap<PathBuf, PathBuf>,
    /// Where the state of the emulated TPM is now; only used when the definition names a place (else libvirt derives it
    /// from the UUID).
    pub tpm_state: Option<PathBuf>,
}

/// A restored disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDisk {
    /// The image or device.
    pub path: PathBuf,
    /// Which of the two.
    pub kind: NewDiskKind,
    /// The image's format: `qcow2` or `raw`.
    pub format: String,
}

/// What a restored disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewDiskKind {
    /// An image file.
    File,
    /// A block device.
    Block,
}
