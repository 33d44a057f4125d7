//! The possible contents of a partition.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FilesystemFormat {
    Ext2,
    Ext3,
    Ext4,
    Fat,
    Ntfs,
    Xfs,
    Btrfs,
    Swap,
    Lvm,
    Luks,
    Raid,
    Zfs,
    Exfat,
    Bitlocker,
    Iso9660,
    F2fs,
    Unknown,
}

impl FilesystemFormat {
    /// Returns the word for records, as in `blkid`.
    pub(crate) fn word(self) -> &'static str {
        match self {
            FilesystemFormat::Ext2 => "ext2",
            FilesystemFormat::Ext3 => "ext3",
            FilesystemFormat::Ext4 => "ext4",
            FilesystemFormat::Fat => "vfat",
            FilesystemFormat::Ntfs => "ntfs",
            FilesystemFormat::Xfs => "xfs",
            FilesystemFormat::Btrfs => "btrfs",
            FilesystemFormat::Swap => "swap",
            FilesystemFormat::Lvm => "LVM2_member",
            FilesystemFormat::Luks => "crypto_LUKS",
            FilesystemFormat::Raid => "linux_raid_member",
            FilesystemFormat::Zfs => "zfs_member",
            FilesystemFormat::Exfat => "exfat",
            FilesystemFormat::Bitlocker => "BitLocker",
            FilesystemFormat::Iso9660 => "iso9660",
            FilesystemFormat::F2fs => "f2fs",
            FilesystemFormat::Unknown => "unknown",
        }
    }

    /// Whether its files can be read.
    pub(crate) fn is_readable(self) -> bool {
        use FilesystemFormat::{Btrfs, Ext2, Ext3, Ext4, Fat, Ntfs, Xfs};
        matches!(self, Ext2 | Ext3 | Ext4 | Fat | Ntfs | Xfs | Btrfs)
    }
}
