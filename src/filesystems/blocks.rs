//! The bytes of a disk or of a part of it.

use super::{FsError, Result, damaged};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::rc::Rc;

/// A source of bytes.
pub(crate) trait BlockSource {
    fn size_bytes(&self) -> u64;

    /// Fills `buffer` from `offset`. Reading beyond the end is an error.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()>;
}

/// A shared source. `Rc` is enough because a parsing process has a single thread.
pub(crate) type Blocks = Rc<dyn BlockSource>;

/// A part of a source.
pub(crate) struct BlocksSlice {
    inner: Blocks,
    start: u64,
    size_bytes: u64,
}

impl BlocksSlice {
    /// Returns `size_bytes` bytes from `start`, or fewer if the source is shorter.
    pub(crate) fn of(inner: &Blocks, start: u64, size_bytes: u64) -> Blocks {
        let available = inner.size_bytes().saturating_sub(start);
        Rc::new(BlocksSlice { inner: Rc::clone(inner), start, size_bytes: size_bytes.min(available) })
    }
}

fn check_bounds(size_bytes: u64, offset: u64, length: usize) -> Result<()> {
    match offset.checked_add(length as u64) {
        Some(end) if end <= size_bytes => Ok(()),
        _ => Err(damaged(format!("it refers to byte {offset}, beyond its end"))),
    }
}

impl BlockSource for BlocksSlice {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        check_bounds(self.size_bytes, offset, buffer.len())?;
        self.inner.read_at(self.start + offset, buffer)
    }
}

const PAGE_BYTES: u64 = 64 << 10;

/// The number of cached pages: 32 MiB.
const PAGES: usize = 512;

/// A cache of recent reads, so that repeated small reads cause only one request.
pub(crate) struct Cached<S> {
    inner: S,
    pages: RefCell<Pages>,
}

#[derive(Default)]
struct Pages {
    by_number: HashMap<u64, (u64, Rc<Vec<u8>>)>,
    by_use: BTreeMap<u64, u64>,
    uses: u64,
}

impl<S: BlockSource> Cached<S> {
    pub(crate) fn new(inner: S) -> Cached<S> {
        Cached { inner, pages: RefCell::default() }
    }

    fn page(&self, number: u64) -> Result<Rc<Vec<u8>>> {
        let mut pages = self.pages.borrow_mut();
        pages.uses += 1;
        let now = pages.uses;
        if let Some((last, page)) = pages.by_number.get_mut(&number) {
            let (before, page) = (std::mem::replace(last, now), Rc::clone(page));
            pages.by_use.remove(&before);
            pages.by_use.insert(now, number);
            return Ok(page);
        }
        let offset = number * PAGE_BYTES;
        let length = PAGE_BYTES.min(self.inner.size_bytes().saturating_sub(offset));
        let mut bytes = vec![0; length as usize];
        self.inner.read_at(offset, &mut bytes)?;
        if pages.by_number.len() >= PAGES
            && let Some((_, oldest)) = pages.by_use.pop_first()
        {
            pages.by_number.remove(&oldest);
        }
        let page = Rc::new(bytes);
        pages.by_number.insert(number, (now, Rc::clone(&page)));
        pages.by_use.insert(now, number);
        Ok(page)
    }
}

impl<S: BlockSource> BlockSource for Cached<S> {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        check_bounds(self.inner.size_bytes(), offset, buffer.len())?;
        // Long reads are data of files and would evict everything else.
        if buffer.len() as u64 >= 2 * PAGE_BYTES {
            return self.inner.read_at(offset, buffer);
        }
        let (mut at, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            let page = self.page(at / PAGE_BYTES)?;
            let begin = (at % PAGE_BYTES) as usize;
            let length = rest.len().min(page.len() - begin);
            let (now, later) = rest.split_at_mut(length);
            now.copy_from_slice(&page[begin..begin + length]);
            at += length as u64;
            rest = later;
        }
        Ok(())
    }
}

/// How many bytes a crate may still read for one operation. This stops structures that loop.
pub(crate) type Allowance = Rc<Cell<u64>>;

/// A source as a file, for crates that need one.
pub(crate) struct Cursor {
    blocks: Blocks,
    position: u64,
    allowance: Allowance,
}

impl Cursor {
    pub(crate) fn new(blocks: &Blocks, allowance: &Allowance) -> Cursor {
        Cursor { blocks: Rc::clone(blocks), position: 0, allowance: Rc::clone(allowance) }
    }
}

impl io::Read for Cursor {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.blocks.size_bytes().saturating_sub(self.position);
        let length = available.min(buffer.len() as u64) as usize;
        let Some(left) = self.allowance.get().checked_sub(length as u64) else {
            return Err(io::Error::other(damaged("its structures do not end")));
        };
        self.allowance.set(left);
        self.blocks.read_at(self.position, &mut buffer[..length]).map_err(io::Error::other)?;
        self.position += length as u64;
        Ok(length)
    }
}

impl io::Seek for Cursor {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        let target = match to {
            io::SeekFrom::Start(offset) => Some(offset),
            io::SeekFrom::End(offset) => self.blocks.size_bytes().checked_add_signed(offset),
            io::SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = target.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

impl io::Write for Cursor {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Converts an I/O error of a crate. Returns our own error if that was the cause.
pub(crate) fn of_io(error: &io::Error) -> FsError {
    let ours = error.get_ref().and_then(|inner| inner.downcast_ref::<FsError>());
    ours.cloned().unwrap_or_else(|| damaged(error.to_string()))
}

/// Reads a little-endian number; bytes beyond the end count as zero.
pub(crate) fn le16(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|part| part.try_into().ok()).map_or(0, u16::from_le_bytes)
}

/// Like [`le16`].
pub(crate) fn le32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|part| part.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// Like [`le16`].
pub(crate) fn le64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|part| part.try_into().ok()).map_or(0, u64::from_le_bytes)
}

pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    le16(bytes, at).swap_bytes()
}

/// Like [`be16`].
pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    le32(bytes, at).swap_bytes()
}

/// Like [`be16`].
pub(crate) fn be64(bytes: &[u8], at: usize) -> u64 {
    le64(bytes, at).swap_bytes()
}

/// Returns text up to the first NUL byte.
pub(crate) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).trim_end().to_owned()
}

/// Formats a UUID as `blkid` does.
pub(crate) fn uuid(bytes: &[u8]) -> Option<String> {
    let bytes: [u8; 16] = bytes.get(..16)?.try_into().ok()?;
    (bytes != [0; 16]).then(|| uuid::Uuid::from_bytes(bytes).to_string())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Bytes in memory.
    pub(crate) struct MemoryBlocks(pub(crate) Vec<u8>);

    impl BlockSource for MemoryBlocks {
        fn size_bytes(&self) -> u64 {
            self.0.len() as u64
        }

        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
            check_bounds(self.size_bytes(), offset, buffer.len())?;
            buffer.copy_from_slice(&self.0[offset as usize..offset as usize + buffer.len()]);
            Ok(())
        }
    }

    #[test]
    fn reads_beyond_the_allowance_are_damage() {
        use io::{Read, Seek};
        let blocks: Blocks = Rc::new(MemoryBlocks(vec![7; 100]));
        let allowance = Allowance::new(Cell::new(150));
        let mut cursor = Cursor::new(&blocks, &allowance);
        assert_eq!(cursor.read_to_end(&mut Vec::new()).unwrap(), 100);
        cursor.rewind().unwrap();
        let error = cursor.read_exact(&mut [0; 51]).unwrap_err();
        assert_eq!(of_io(&error), damaged("its structures do not end"));
        assert!(cursor.read_exact(&mut [0; 50]).is_ok());
    }

    #[test]
    fn cached_reads_match_the_source_up_to_its_end() {
        let bytes: Vec<u8> = (0..200_001_u32).map(|number| (number / 7) as u8).collect();
        let cached = Cached::new(MemoryBlocks(bytes.clone()));
        for (offset, length) in [(0, 1), (65_530, 12), (0, 200_001), (131_000, 69_001), (200_000, 1), (65_536, 65_536)]
        {
            let mut read = vec![0; length];
            cached.read_at(offset, &mut read).unwrap();
            assert!(read == bytes[offset as usize..offset as usize + length], "{length} at {offset}");
        }
        assert!(cached.read_at(200_001, &mut [0]).is_err());
        assert!(cached.read_at(u64::MAX, &mut [0]).is_err());
    }

    #[test]
    fn slice_is_clamped_to_the_disk() {
        let disk: Blocks = Rc::new(MemoryBlocks((0..100).collect()));
        let slice = BlocksSlice::of(&disk, 90, 50);
        assert_eq!(slice.size_bytes(), 10);
        let mut read = [0; 10];
        slice.read_at(0, &mut read).unwrap();
        assert_eq!(read, [90, 91, 92, 93, 94, 95, 96, 97, 98, 99]);
        assert!(slice.read_at(1, &mut read).is_err());
    }
}
