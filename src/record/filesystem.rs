//! A file system of a point.

use super::Extra;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The content of a partition or of a whole disk of a point; printed by `files ls POINT`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Filesystem {
    /// The machine.
    pub machine: String,
    /// The point's id.
    pub point: String,
    /// The disk or the logical volume.
    pub disk: String,
    /// Its name in paths such as `vda2:/etc`: the disk and the number of the partition.
    pub filesystem: String,
    /// Its type, as `blkid` names it: `ext4`, `xfs`, `btrfs`, `vfat`, `ntfs`, `swap`, `LVM2_member`, `crypto_LUKS` …,
    /// or `unknown`.
    pub format: String,
    /// Where it begins on the disk.
    pub offset_bytes: u64,
    /// The size of the partition.
    pub size_bytes: u64,
    /// Whether its files can be read.
    pub readable: bool,
    /// Why they cannot be read, if the file system is usually supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Its label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Its UUID, or the identifier that the format has instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// The operating system whose root file system it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// Where the operating system of the point mounts it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mount_point: Option<String>,
    /// Unknown fields.
    #[serde(flatten)]
    #[schemars(!flatten)]
    pub extra: Extra,
}
