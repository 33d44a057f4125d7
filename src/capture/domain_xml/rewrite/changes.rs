//! The requested changes to a definition.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// The changes to make.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// A new name.
    pub name: Option<String>,
    /// A new UUID. The generation id, by which a guest detects that it is a copy, is then renewed as well.
    pub uuid: Option<String>,
    /// Whether to generate new MAC addresses for all interfaces (QEMU's prefix 52:54:00 and a random rest).
    pub new_macs: bool,
    /// Whether to remove what a copy must not share with the original, and to give it its own ports, sockets and files.
    pub own_resources: bool,
    /// The new locations of restored disks, by target. Layers and files of the old image are removed: the new one is
    /// flat.
    pub disks: BTreeMap<String, NewDisk>,
    /// The disks among them that keep their location, however the definition specifies it. Their paths are not changed.
    pub unmoved: BTreeSet<String>,
    /// Disks to remove from the definition, by target.
    pub drop_disks: BTreeSet<String>,
    /// Drives whose medium is removed, by target.
    pub eject: BTreeSet<String>,
    /// A new emulator.
    pub emulator: Option<PathBuf>,
    /// A new machine type.
    pub machine_type: Option<String>,
    /// The names on this host of the definition's networks.
    pub networks: BTreeMap<String, String>,
    /// The names on this host of the definition's bridges and network devices.
    pub bridges: BTreeMap<String, String>,
    /// The new path of the UEFI variables.
    pub nvram: Option<PathBuf>,
    /// The new path of the kernel of a direct boot.
    pub kernel: Option<PathBuf>,
    /// The new path of the initial RAM disk of a direct boot.
    pub initrd: Option<PathBuf>,
    /// The new paths of files that the definition references (loader, option ROMs, `fw_cfg` files …), by their old
    /// paths.
    pub files: BTreeMap<PathBuf, PathBuf>,
    /// The new path of the emulated TPM's state. Only used if the definition sets a path; otherwise libvirt derives it
    /// from the UUID.
    pub tpm_state: Option<PathBuf>,
}

/// A restored disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDisk {
    /// The path of the image or device.
    pub path: PathBuf,
    /// Whether it is an image or a device.
    pub kind: NewDiskKind,
    /// The image format: `qcow2` or `raw`.
    pub format: String,
}

/// The kind of a restored disk's target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewDiskKind {
    /// An image file.
    File,
    /// A block device.
    Block,
}
