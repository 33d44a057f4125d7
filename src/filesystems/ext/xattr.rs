//! Extended attributes: in the inode, in a separate block, or large ones in their own inodes.

use super::super::blocks::{le16, le32};
use super::super::{Result, Xattr, damaged};
use super::extents;
use super::inode::Inode;
use super::volume::ExtVolume;

/// The attribute in which inline data continues.
pub(super) const INLINE_DATA: &[u8] = b"system.data";

/// The attribute with the encryption context of an encrypted file.
pub(super) const ENCRYPTION: &[u8] = b"encryption.c";

const MAGIC: u32 = 0xea02_0000;

/// "An attribute value is at most 64 KiB", the limit of the system calls.
const MOST_VALUE_BYTES: usize = 64 << 10;

const PREFIXES: [(u8, &[u8]); 8] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
    (7, b"system."),
    (8, b"system.richacl"),
    (9, b"encryption."),
];

/// Returns all attributes of an inode.
pub(super) fn read(volume: &ExtVolume, inode: &Inode) -> Result<Vec<Xattr>> {
    let mut found = Vec::new();
    let area = 128 + inode.extra_bytes();
    if inode.bytes.len() > area + 4 && le32(&inode.bytes, area) == MAGIC {
        let area = inode.bytes[area + 4..].to_vec();
        parse(volume, &area, &area, &mut found)?;
    }
    let block_number = inode.xattr_block();
    if block_number != 0 {
        let mut block = vec![0; volume.block_bytes() as usize];
        volume.read_block(block_number, &mut block)?;
        if le32(&block, 0) != MAGIC {
            return Err(damaged(format!("block {block_number} has no attributes")));
        }
        parse(volume, &block[32..], &block, &mut found)?;
    }
    Ok(found)
}

/// Parses entries, whose values are at offsets within `values`.
fn parse(volume: &ExtVolume, entries: &[u8], values: &[u8], found: &mut Vec<Xattr>) -> Result<()> {
    let mut at = 0;
    while at + 16 <= entries.len() && le32(entries, at) != 0 {
        let (name_bytes, prefix) = (usize::from(entries[at]), entries[at + 1]);
        let (offset, value_inode) = (usize::from(le16(entries, at + 2)), le32(entries, at + 4));
        let length = le32(entries, at + 8) as usize;
        let suffix = entries.get(at + 16..at + 16 + name_bytes);
        let suffix = suffix.ok_or_else(|| damaged("an attribute's name is truncated"))?;
        let prefix = PREFIXES.iter().find(|(number, _)| *number == prefix).map_or(&b""[..], |(_, prefix)| prefix);
        let name = [prefix, suffix].concat();
        if length > MOST_VALUE_BYTES {
            return Err(damaged(format!("an attribute claims {length} bytes")));
        }
        let value = match value_inode {
            0 => {
                let value = values.get(offset..offset + length);
                value.ok_or_else(|| damaged("an attribute's value is truncated"))?.to_vec()
            }
            number => {
                let mut value = vec![0; length];
                let inode = volume.inode(number.into())?;
                if inode.size_bytes > MOST_VALUE_BYTES as u64 {
                    return Err(damaged(format!("an attribute has {} bytes", inode.size_bytes)));
                }
                let runs = extents::read(volume, &inode)?;
                extents::read_runs(volume, &runs, 0, &mut value)?;
                value
            }
        };
        if name.starts_with(b"system.posix_acl_") {
            found.push((name, acl_for_linux(&value)?));
        } else if !name.is_empty() {
            found.push((name, value));
        }
        at += (16 + name_bytes).div_ceil(4) * 4;
    }
    Ok(())
}

/// Converts an ACL to the format of `setxattr`; ext omits unused ids.
fn acl_for_linux(stored: &[u8]) -> Result<Vec<u8>> {
    const USER: u16 = 0x02;
    const GROUP: u16 = 0x08;
    let nonsense = || damaged("an ACL is invalid");
    if le32(stored, 0) != 1 {
        return Err(nonsense());
    }
    let mut acl = 2_u32.to_le_bytes().to_vec();
    let mut rest = stored.get(4..).unwrap_or_default();
    while !rest.is_empty() {
        let (tag, permissions) = (le16(rest, 0), le16(rest, 2));
        let (length, id) = match tag {
            USER | GROUP => (8, le32(rest, 4)),
            _ => (4, u32::MAX),
        };
        rest = rest.get(length..).ok_or_else(nonsense)?;
        acl.extend(tag.to_le_bytes());
        acl.extend(permissions.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    Ok(acl)
}
