//! A file system of a point.

use super::Extra;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is on a partition, or on a whole disk, of a point; made by `files ls POINT`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Filesystem {
    /// The machine.
    pub machine: String,
    /// The point's id.
    pub point: String,
    /// The disk, or the logical volume.
    pub disk: String,
    /// Its name in paths, as `vda2:/etc`: the disk and the number of the partition.
    pub filesystem: String,
    /// What it is, as `blkid` names it: `ext4`, `xfs`, `btrfs`, `vfat`, `ntfs`, `swap`, `LVM2_member`, `crypto_LUKS` …,
    /// or `unknown`.
    pub format: String,
    /// Where it begins on the disk.
    pub offset_bytes: u64,
    /// The size of the partition.
    pub size_bytes: u64,
    /// Whether its files can be read.
    pub readable: bool,
    /// Why they cannot, if it is a file system that usually can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Its label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Its UUID, or what the format has instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// The operating system that it is the root of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// Where an operating system of the point mounts it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mount_point: Option<String>,
    /// Unknown fields.
    #[serde(flatten)]
    #[schemars(!flatten)]
    pub extra: Extra,
}
