//! Parsing of inodes.

use super::super::blocks::{le16, le32};
use super::super::{InodeKind, InodeMetadata, Result, Timestamp, damaged};

const FLAG_ENCRYPTED: u32 = 0x800;
const FLAG_EXTENTS: u32 = 0x8_0000;
const FLAG_INLINE: u32 = 0x1000_0000;

/// The `i_block` area: block numbers, an extent tree, a short link target or inline data.
const BLOCK_AREA: std::ops::Range<usize> = 40..100;

#[derive(Debug)]
pub(super) struct Inode {
    pub(super) number: u64,
    pub(super) size_bytes: u64,
    pub(super) mode: u32,
    pub(super) bytes: Vec<u8>,
}

impl Inode {
    pub(super) fn parse(number: u64, bytes: Vec<u8>) -> Result<Inode> {
        let mode = u32::from(le16(&bytes, 0));
        let kind = kind_of(mode)?;
        let high = match kind {
            InodeKind::File | InodeKind::Directory => u64::from(le32(&bytes, 108)) << 32,
            _ => 0,
        };
        let size_bytes = u64::from(le32(&bytes, 4)) | high;
        if i64::try_from(size_bytes).is_err() {
            return Err(damaged(format!("inode {number} claims {size_bytes} bytes")));
        }
        Ok(Inode { number, size_bytes, mode, bytes })
    }

    fn flags(&self) -> u32 {
        le32(&self.bytes, 32)
    }

    pub(super) fn is_encrypted(&self) -> bool {
        self.flags() & FLAG_ENCRYPTED != 0
    }

    pub(super) fn is_inline(&self) -> bool {
        self.flags() & FLAG_INLINE != 0
    }

    pub(super) fn has_extents(&self) -> bool {
        self.flags() & FLAG_EXTENTS != 0
    }

    /// Whether a link's target is stored in the `i_block` area.
    pub(super) fn is_fast_link(&self) -> bool {
        !self.has_extents() && self.size_bytes < BLOCK_AREA.len() as u64
    }

    pub(super) fn block_area(&self) -> &[u8] {
        &self.bytes[BLOCK_AREA]
    }

    /// Returns the number of bytes in use beyond the first 128.
    pub(super) fn extra_bytes(&self) -> usize {
        usize::from(le16(&self.bytes, 128))
    }

    /// Returns the block with extended attributes; 0 means none.
    pub(super) fn xattr_block(&self) -> u64 {
        u64::from(le32(&self.bytes, 104)) | u64::from(le16(&self.bytes, 118)) << 32
    }

    /// Reads a time, with its extra bits if the inode has them.
    fn time(&self, at: usize, extra_at: usize) -> Timestamp {
        let has_extra = self.bytes.len() > 128 && 128 + self.extra_bytes() >= extra_at + 4;
        let extra = if has_extra { le32(&self.bytes, extra_at) } else { 0 };
        let seconds = i64::from(le32(&self.bytes, at).cast_signed()) + (i64::from(extra & 3) << 32);
        Timestamp { seconds, nanoseconds: (extra >> 2).min(999_999_999) }
    }

    pub(super) fn metadata(&self) -> Result<InodeMetadata> {
        let kind = kind_of(self.mode)?;
        let wide =
            |low: usize, high: usize| u32::from(le16(&self.bytes, low)) | u32::from(le16(&self.bytes, high)) << 16;
        Ok(InodeMetadata {
            kind,
            size_bytes: self.size_bytes,
            mode: Some(self.mode & 0o7777),
            owner: Some((wide(2, 120), wide(24, 122))),
            links: u32::from(le16(&self.bytes, 26)),
            modified: Some(self.time(16, 136)),
            accessed: Some(self.time(8, 140)),
            device: matches!(kind, InodeKind::CharDevice | InodeKind::BlockDevice).then(|| self.device()),
        })
    }

    /// Reads a device number. The old format has 8 bits for each number; the new one, 12 and 20.
    fn device(&self) -> (u32, u32) {
        let (old, new) = (le32(&self.bytes, 40), le32(&self.bytes, 44));
        match old {
            0 => ((new >> 8) & 0xfff, (new & 0xff) | ((new >> 12) & 0xfff00)),
            old => ((old >> 8) & 0xff, old & 0xff),
        }
    }
}

/// Returns the file type of a mode.
fn kind_of(mode: u32) -> Result<InodeKind> {
    InodeKind::of_mode(mode).ok_or_else(|| damaged(format!("mode {mode:o} is invalid")))
}
