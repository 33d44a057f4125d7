//! The request for a restore.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// An image format that can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ImageFormat {
    /// The bytes of the virtual disk.
    Raw,
    Qcow2,
}

impl ImageFormat {
    /// QEMU's name of the format, also used as the file extension.
    pub(crate) fn name(self) -> &'static str {
        match self {
            ImageFormat::Raw => "raw",
            ImageFormat::Qcow2 => "qcow2",
        }
    }
}

/// The user's request.
#[derive(Debug, Default, Clone)]
pub(crate) struct RestoreRequest {
    /// A new name for the machine, which then also gets a new UUID and new MAC addresses.
    pub(crate) as_name: Option<String>,
    /// The folder for all images.
    pub(crate) into: Option<PathBuf>,
    /// The target file or device of individual disks.
    pub(crate) to: BTreeMap<String, PathBuf>,
    /// Only these disks, without the definition; empty means everything.
    pub(crate) only_disks: Vec<String>,
    /// The format of new images; `None` keeps that of the definition.
    pub(crate) format: Option<ImageFormat>,
    /// Whether to define the machine in libvirt.
    pub(crate) define: bool,
    /// The URI of the libvirt that defines the machine. It determines the location of the TPM state.
    pub(crate) connect: Option<String>,
    /// Whether to start the machine at the end.
    pub(crate) start: bool,
    /// Whether existing files may be replaced.
    pub(crate) overwrite: bool,
    /// Whether the managed save image of the replaced machine may be removed.
    pub(crate) discard_saved_memory: bool,
    /// Whether to leave drives empty whose medium is missing on this host.
    pub(crate) drop_missing_media: bool,
    /// The folder for the files that the definition references; `None` leaves them where they are.
    pub(crate) with_files: Option<PathBuf>,
    /// The emulator to use on this host; `None` keeps that of the definition.
    pub(crate) emulator: Option<PathBuf>,
    /// The machine type to use on this host; `None` keeps that of the definition.
    pub(crate) machine_type: Option<String>,
    /// The names on this host of the definition's networks.
    pub(crate) networks: BTreeMap<String, String>,
    /// The names on this host of the definition's bridges and network devices.
    pub(crate) bridges: BTreeMap<String, String>,
}
