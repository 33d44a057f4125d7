//! Reads trees.

use std::io::{self, BufReader, Cursor, ErrorKind, Read};
use std::sync::{Mutex, PoisonError};
use std::thread;

use crossbeam_channel::{Receiver, bounded};
use sha2::{Digest, Sha256};

use super::fixed_form;
use super::json::TreeJson;
use super::node::Tree;
use crate::repo::{BlobKind, BlobLocation, Error, Flaw, Id, Index, Repository, Result, reader};

/// The size from which on another thread decompresses ahead.
const READ_AHEAD_FROM: u64 = 4 << 20;
/// The size of the blocks that this thread passes on.
const BLOCK_BYTES: usize = 256 << 10;
/// The maximum number of blocks that are read ahead.
const BLOCKS: usize = 4;

/// Reads the tree of a folder. Hash, JSON and names are verified before anything is returned.
pub fn read_tree(repo: &Repository, index: &Index, id: &Id) -> Result<Tree> {
    reader::from_any_location((repo, index), BlobKind::Tree, id, None, |location| {
        let opened = reader::fetch(repo, BlobKind::Tree, id, location)?;
        parse_tree(opened.bytes(), id, location)
    })
}

/// Parses a tree that was read and unsealed, possibly still compressed.
pub(super) fn parse_tree(packed: &[u8], id: &Id, location: &BlobLocation) -> Result<Tree> {
    let damaged = |flaw| reader::damaged(BlobKind::Tree, id, location, flaw);
    let wanted_bytes = u64::from(location.raw_length);
    let plain = || -> io::Result<Box<dyn Read + Send + '_>> {
        Ok(match location.compressed {
            true => Box::new(zstd::Decoder::with_buffer(packed)?),
            false => Box::new(packed),
        })
    };
    let undecompressable = |_| damaged(Flaw::NotDecompressable);
    // Read up to one byte more than expected, to detect a tree that is too long.
    let mut source = plain().map_err(undecompressable)?.take(wanted_bytes + 1);
    let read = match wanted_bytes >= READ_AHEAD_FROM {
        true => read_ahead(source, parse_and_hash),
        false => parse_and_hash(&mut source),
    }
    .map_err(undecompressable)?;
    if read.length_bytes != wanted_bytes {
        return Err(damaged(Flaw::WrongLength { wanted_bytes, actual_bytes: read.length_bytes }));
    }
    if read.hash != *id {
        return Err(damaged(Flaw::NotItsName));
    }
    let tree = match read.tree {
        Some(tree) => Ok(tree),
        // The tree has another form. These are the same bytes that were hashed.
        None => TreeJson::read(BufReader::with_capacity(1 << 16, plain().map_err(undecompressable)?)),
    };
    tree.map_err(|e| e.to_string())
        .and_then(|tree| tree.check().map_err(str::to_owned))
        .map_err(|reason| Error::TreeMalformed { id: *id, reason })
}

/// The result of reading a source.
struct ReadTree {
    /// The tree, if it has the fixed form.
    tree: Option<TreeJson>,
    length_bytes: u64,
    hash: Id,
}

/// Reads to the end.
fn parse_and_hash(source: &mut dyn Read) -> io::Result<ReadTree> {
    let mut source = HashingReader { inner: source, hasher: Sha256::new(), count: 0, failed: false };
    let tree = fixed_form::parse(&mut source);
    io::copy(&mut source, &mut io::sink())?;
    if source.failed {
        return Err(ErrorKind::InvalidData.into());
    }
    Ok(ReadTree { tree, length_bytes: source.count, hash: Id::from_bytes(source.hasher.finalize().into()) })
}

/// Returns whether this is the JSON of a valid tree. Panics if the parsers disagree about a tree in the fixed form.
#[cfg(any(test, feature = "testing"))]
pub(in crate::repo) fn is_readable(json: &[u8]) -> bool {
    let general = TreeJson::read(json).ok().map(TreeJson::check);
    if let Some(fixed) = fixed_form::parse(json) {
        assert_eq!(Some(fixed.check()), general, "the parsers disagree");
    }
    general.is_some_and(|tree| tree.is_ok())
}

struct HashingReader<R> {
    inner: R,
    hasher: Sha256,
    count: u64,
    /// Whether a read failed, which the parser may have mistaken for another form.
    failed: bool,
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer).inspect_err(|_| self.failed = true)?;
        self.hasher.update(&buffer[..count]);
        self.count += count as u64;
        Ok(count)
    }
}

/// Runs `work` on a source that another thread reads ahead.
fn read_ahead<T>(source: impl Read + Send, work: impl FnOnce(&mut dyn Read) -> T) -> T {
    let (ready, blocks) = bounded::<io::Result<Vec<u8>>>(BLOCKS);
    let source = &Mutex::new(source);
    // The closure owns the sender: after the last block, the receiver sees that the channel is closed.
    let read = move || {
        let mut source = source.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let mut block = Vec::with_capacity(BLOCK_BYTES);
            let block = (&mut *source).take(BLOCK_BYTES as u64).read_to_end(&mut block).map(|_| block);
            let is_last = block.as_ref().map_or(true, Vec::is_empty);
            if ready.send(block).is_err() || is_last {
                return;
            }
        }
    };
    thread::scope(|scope| match thread::Builder::new().spawn_scoped(scope, read) {
        Ok(_) => work(&mut BlocksAhead { blocks, current: Cursor::default() }),
        // The system cannot start another thread.
        Err(_) => work(&mut *source.lock().unwrap_or_else(PoisonError::into_inner)),
    })
}

/// The receiving end of the blocks that are read ahead.
struct BlocksAhead {
    blocks: Receiver<io::Result<Vec<u8>>>,
    current: Cursor<Vec<u8>>,
}

impl Read for BlocksAhead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.current.position() == self.current.get_ref().len() as u64 {
            // The reading thread sends an empty block at the end.
            self.current = Cursor::new(self.blocks.recv().unwrap_or_else(|_| Ok(Vec::new()))?);
        }
        self.current.read(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_ahead_returns_all_bytes_and_stays_at_the_end() {
        let tree = vec![7; 3 * BLOCK_BYTES + 1];
        let read = read_ahead(&tree[..], |ahead| {
            let mut read = Vec::new();
            ahead.read_to_end(&mut read).unwrap();
            assert_eq!(ahead.read(&mut [0; 8]).unwrap(), 0);
            read
        });
        assert!(read == tree);
    }
}
