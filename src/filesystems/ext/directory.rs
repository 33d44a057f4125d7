//! The entries of a directory block. Indexed directories use the same format: their index looks like unused entries.

use super::super::blocks::{le16, le32};
use super::super::{FsError, Node, Result, damaged};

/// Maximum number of names read from one directory.
const MOST_NAMES: usize = 16 << 20;

/// Adds the entries of a block, without `.` and `..`.
pub(super) fn parse(block: &[u8], inodes: u32, entries: &mut Vec<(Vec<u8>, Node)>) -> Result<()> {
    let mut at = 0;
    while at + 8 <= block.len() {
        let (inode, name_bytes) = (le32(block, at), usize::from(block[at + 6]));
        let length = match le16(block, at + 4) {
            // The length of a block of 64 KiB does not fit into 16 bits.
            0 | 0xffff => block.len() - at,
            length => usize::from(length),
        };
        if length < 8 || length % 4 != 0 || at + length > block.len() {
            return Err(damaged("a directory entry is invalid"));
        }
        if inode != 0 {
            let name = block.get(at + 8..at + 8 + name_bytes).filter(|_| 8 + name_bytes <= length);
            let name = name.ok_or_else(|| damaged("a name is longer than its directory entry"))?;
            if inode > inodes {
                return Err(damaged(format!("a directory names inode {inode}, which does not exist")));
            }
            if entries.len() >= MOST_NAMES {
                return Err(FsError::Unsupported("the directory has more than 16 million names".into()));
            }
            if name != b"." && name != b".." && !name.is_empty() {
                entries.push((name.to_vec(), Node(inode.into())));
            }
        }
        at += length;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(inode: u32, length: u16, name: &[u8]) -> Vec<u8> {
        let mut bytes = inode.to_le_bytes().to_vec();
        bytes.extend(length.to_le_bytes());
        bytes.extend([name.len() as u8, 1]);
        bytes.extend(name);
        bytes.resize(usize::from(length), 0);
        bytes
    }

    #[test]
    fn directory_entries_are_parsed_and_invalid_ones_are_damage() {
        let block = [entry(2, 12, b"."), entry(2, 12, b".."), entry(11, 16, b"a"), entry(0, 12, b"x")].concat();
        let mut entries = Vec::new();
        parse(&block, 20, &mut entries).unwrap();
        assert_eq!(entries, [(b"a".to_vec(), Node(11))]);
        for wrong in [entry(99, 12, b"a"), entry(3, 8, b"aaaa"), entry(3, 6, b"")] {
            let block = [wrong, vec![0; 8]].concat();
            assert!(parse(&block, 20, &mut Vec::new()).is_err());
        }
    }
}
