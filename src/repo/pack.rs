//! Pack files: many sealed blobs, and a sealed header that lists them.
//!
//! ```text
//! blob │ blob │ … │ header │ length of the header, 4 bytes
//! ```
//!
//! | header entry | bytes |
//! | --- | --- |
//! | 0 data, 1 tree | type (1), sealed length (4), id (32) |
//! | 2 data, 3 tree, compressed | type (1), sealed length (4), plain length (4), id (32) |
//!
//! Numbers are little-endian. A pack has blobs of one kind only, and is named by its own SHA-256.

use super::crypto::{IV_LENGTH, OVERHEAD, SealKey};
use super::{BlobKind, Error, Flaw, Id, Repository, Result, reread};
use crate::storage::FileKind;

/// The longest header that restic accepts.
const HEADER_LIMIT: u32 = 16 << 20;
/// The header length at the very end.
const LENGTH_BYTES: u64 = 4;
const PLAIN_ENTRY: usize = 1 + 4 + 32;
const COMPRESSED_ENTRY: usize = PLAIN_ENTRY + 4;
/// At most as many blobs as an index file may list, so that a pack never needs two; its header is then at most 2 MiB.
const MAX_BLOBS: usize = 50_000;

/// One blob in a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PackEntry {
    pub(super) id: Id,
    pub(super) offset: u32,
    pub(super) length: u32,
    /// The plaintext's length, if the blob is compressed.
    pub(super) raw_length: Option<u32>,
}

/// A pack that is being filled.
pub(super) struct PackBuilder {
    kind: BlobKind,
    bytes: Vec<u8>,
    entries: Vec<PackEntry>,
}

/// A pack that is ready to be stored.
pub(super) struct FinishedPack {
    pub(super) id: Id,
    pub(super) kind: BlobKind,
    pub(super) bytes: Vec<u8>,
    pub(super) entries: Vec<PackEntry>,
}

impl PackBuilder {
    /// `bytes` is a buffer to reuse; its contents are discarded.
    pub(super) fn new(kind: BlobKind, mut bytes: Vec<u8>) -> Self {
        bytes.clear();
        PackBuilder { kind, bytes, entries: Vec::new() }
    }

    /// Creates a pack from its first blob, without copying it.
    pub(super) fn of_one(kind: BlobKind, id: Id, sealed: Vec<u8>, raw_length: Option<u32>) -> Result<Self> {
        let length =
            u32::try_from(sealed.len()).map_err(|_| Error::BlobTooLarge { kind, size_bytes: sealed.len() as u64 })?;
        Ok(PackBuilder { kind, bytes: sealed, entries: vec![PackEntry { id, offset: 0, length, raw_length }] })
    }

    /// Appends a sealed blob. The caller must keep the pack well below 4 GiB.
    pub(super) fn add(&mut self, id: Id, sealed: &[u8], raw_length: Option<u32>) -> Result<()> {
        let too_large = |_| Error::BlobTooLarge { kind: self.kind, size_bytes: sealed.len() as u64 };
        let entry = PackEntry {
            id,
            offset: u32::try_from(self.bytes.len()).map_err(too_large)?,
            length: u32::try_from(sealed.len()).map_err(too_large)?,
            raw_length,
        };
        self.bytes.extend_from_slice(sealed);
        self.entries.push(entry);
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns whether no more blobs may be added.
    pub(super) fn is_full(&self, pack_bytes: usize) -> bool {
        self.bytes.len() >= pack_bytes || self.entries.len() >= MAX_BLOBS
    }

    /// Adds the header and computes the id.
    pub(super) fn finish(mut self, key: &SealKey) -> Result<FinishedPack> {
        let mut header = vec![0; IV_LENGTH];
        encode_header(self.kind, &self.entries, &mut header);
        key.seal_in_place(&mut header)?;
        self.bytes.extend_from_slice(&header);
        self.bytes.extend_from_slice(&(header.len() as u32).to_le_bytes());
        Ok(FinishedPack { id: Id::hash(&self.bytes), kind: self.kind, bytes: self.bytes, entries: self.entries })
    }
}

fn encode_header(kind: BlobKind, entries: &[PackEntry], header: &mut Vec<u8>) {
    for entry in entries {
        let tree = u8::from(kind == BlobKind::Tree);
        let compressed = u8::from(entry.raw_length.is_some());
        header.push(compressed << 1 | tree);
        header.extend_from_slice(&entry.length.to_le_bytes());
        if let Some(raw_length) = entry.raw_length {
            header.extend_from_slice(&raw_length.to_le_bytes());
        }
        header.extend_from_slice(entry.id.as_bytes());
    }
}

/// Decodes an unsealed header. Returns `None` if it is invalid.
pub(super) fn decode_header(mut header: &[u8]) -> Option<Vec<(BlobKind, PackEntry)>> {
    let number = |bytes: &[u8]| Some(u32::from_le_bytes(bytes.try_into().ok()?));
    let mut entries = Vec::with_capacity(header.len() / COMPRESSED_ENTRY);
    let mut offset = 0u32;
    while let Some((&kind_byte, rest)) = header.split_first() {
        let kind = match kind_byte & 1 {
            0 => BlobKind::Data,
            _ => BlobKind::Tree,
        };
        let (length, rest) = rest.split_at_checked(4)?;
        let (raw_length, rest) = match kind_byte {
            0 | 1 => (None, rest),
            2 | 3 => {
                let (raw_length, rest) = rest.split_at_checked(4)?;
                (Some(number(raw_length)?), rest)
            }
            _ => return None,
        };
        let (id, rest) = rest.split_at_checked(32)?;
        let entry = PackEntry { id: Id::from_bytes(id.try_into().ok()?), offset, length: number(length)?, raw_length };
        offset = offset.checked_add(entry.length)?;
        entries.push((kind, entry));
        header = rest;
    }
    Some(entries)
}

/// Returns the size of a pack's header, including its length field.
pub(super) fn header_bytes(blobs: u64, compressed_blobs: u64) -> u64 {
    let extra = (COMPRESSED_ENTRY - PLAIN_ENTRY) as u64;
    blobs * PLAIN_ENTRY as u64 + compressed_blobs * extra + OVERHEAD as u64 + LENGTH_BYTES
}

/// Reads the header of a pack, independently of the index.
pub(super) fn read_header(repo: &Repository, id: &Id) -> Result<Vec<(BlobKind, PackEntry)>> {
    reread::read(&**repo.storage(), || read_header_once(repo, id))
}

fn read_header_once(repo: &Repository, id: &Id) -> Result<Vec<(BlobKind, PackEntry)>> {
    let damaged = |flaw| Error::damaged(FileKind::Pack, id, flaw);
    let (storage, name) = (repo.storage(), id.to_string());
    let size_bytes = storage.size(FileKind::Pack, &name)?;
    let length_at = size_bytes.checked_sub(LENGTH_BYTES).ok_or_else(|| damaged(Flaw::TooShort))?;
    let length = storage.read_range(FileKind::Pack, &name, length_at, LENGTH_BYTES as usize)?;
    let length = <[u8; 4]>::try_from(&length[..]).map(u32::from_le_bytes).map_err(|_| damaged(Flaw::TooShort))?;
    let header_at = length_at
        .checked_sub(u64::from(length))
        .filter(|_| length <= HEADER_LIMIT)
        .ok_or_else(|| damaged(Flaw::BadHeader))?;
    let mut sealed = storage.read_range(FileKind::Pack, &name, header_at, length as usize)?;
    let header = repo.key().open_in_place(&mut sealed).map_err(|e| damaged(e.into()))?;
    let entries = decode_header(header).ok_or_else(|| damaged(Flaw::BadHeader))?;
    let end = entries.last().map_or(0, |(_, last)| u64::from(last.offset) + u64::from(last.length));
    match end == header_at {
        true => Ok(entries),
        false => Err(damaged(Flaw::BadHeader)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pack_header_round_trips(
            blobs in proptest::collection::vec((any::<[u8; 32]>(), 32u32..5_000_000, any::<Option<u32>>()), 0..50),
            tree: bool,
        ) {
            let kind = if tree { BlobKind::Tree } else { BlobKind::Data };
            let mut offset = 0;
            let mut entries = Vec::new();
            for (id, length, raw_length) in blobs {
                entries.push(PackEntry { id: Id::from_bytes(id), offset, length, raw_length });
                offset += length;
            }
            let mut header = Vec::new();
            encode_header(kind, &entries, &mut header);
            let compressed = entries.iter().filter(|e| e.raw_length.is_some()).count() as u64;
            let whole = header_bytes(entries.len() as u64, compressed);
            prop_assert_eq!(whole, (header.len() + OVERHEAD + 4) as u64);
            let decoded = decode_header(&header).unwrap();
            prop_assert!(decoded.iter().all(|(k, _)| *k == kind));
            let decoded: Vec<_> = decoded.into_iter().map(|(_, entry)| entry).collect();
            prop_assert_eq!(decoded, entries);
        }

        #[test]
        fn header_decoding_never_panics(bytes in proptest::collection::vec(0u8..6, 0..400)) {
            let _ = decode_header(&bytes);
        }
    }
}
