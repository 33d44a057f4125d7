//! Detects the content of a partition by its signature.

use super::blocks::{Blocks, BlocksSlice};
use super::format::FilesystemFormat;
use super::{OpenedFilesystem, Result, btrfs, ext, fat, ntfs, raid, xfs};

/// Signatures: offset, bytes, format. The first match wins.
const SIGNATURES: &[(u64, &[u8], FilesystemFormat)] = &[
    (0, b"LUKS\xba\xbe", FilesystemFormat::Luks),
    (3, b"-FVE-FS-", FilesystemFormat::Bitlocker),
    (3, b"NTFS    ", FilesystemFormat::Ntfs),
    (3, b"EXFAT   ", FilesystemFormat::Exfat),
    (0, b"XFSB", FilesystemFormat::Xfs),
    (65_600, b"_BHRfS_M", FilesystemFormat::Btrfs),
    (536, b"LVM2 001", FilesystemFormat::Lvm),
    (4096, b"\xfc\x4e\x2b\xa9", FilesystemFormat::Raid),
    (0, b"\xfc\x4e\x2b\xa9", FilesystemFormat::Raid),
    (4086, b"SWAPSPACE2", FilesystemFormat::Swap),
    (1024, b"\x10\x20\xf5\xf2", FilesystemFormat::F2fs),
    (1080, b"\x53\xef", FilesystemFormat::Ext2),
    (32_769, b"CD001", FilesystemFormat::Iso9660),
    (82, b"FAT32   ", FilesystemFormat::Fat),
    (54, b"FAT16   ", FilesystemFormat::Fat),
    (54, b"FAT12   ", FilesystemFormat::Fat),
    (54, b"FAT     ", FilesystemFormat::Fat),
];

/// Detects the content of a partition by its signature.
pub(crate) fn format_of(blocks: &Blocks) -> Result<FilesystemFormat> {
    // If the end cannot be read, the beginning may be readable.
    if raid::is_striped_member(blocks).unwrap_or(false) {
        return Ok(FilesystemFormat::Raid);
    }
    for (offset, signature, format) in SIGNATURES {
        let mut found = vec![0; signature.len()];
        if offset + signature.len() as u64 > blocks.size_bytes() {
            continue;
        }
        blocks.read_at(*offset, &mut found)?;
        if found == *signature {
            return match format {
                FilesystemFormat::Ext2 => ext::superblock::format_of(blocks),
                format => Ok(*format),
            };
        }
    }
    Ok(FilesystemFormat::Unknown)
}

/// Opens a file system, if [`FilesystemFormat::is_readable`].
pub(crate) fn open(blocks: &Blocks, format: FilesystemFormat) -> Result<OpenedFilesystem> {
    let blocks = BlocksSlice::of(blocks, 0, blocks.size_bytes());
    match format {
        FilesystemFormat::Fat => fat::open(&blocks),
        FilesystemFormat::Ntfs => ntfs::open(&blocks),
        FilesystemFormat::Xfs => xfs::open(&blocks),
        FilesystemFormat::Btrfs => btrfs::open(&blocks),
        _ => ext::open(&blocks),
    }
}
