//! Direct I/O (`O_DIRECT`) for large files, if the file system supports it.
//!
//! A backup or a restore transfers more data than fits into memory. In the page cache, that data would evict pages that
//! running machines need, each new page would cost more than compressing or decompressing its bytes, and the disk would
//! start writing only at the end.
//!
//! The kernel requires address, offset and length to be multiples of the device's block size. Chunks are aligned,
//! except the last one of a disk of odd size, and so are all but the last bytes of a pack. The rest goes through the
//! page cache, as does everything if the kernel refuses direct I/O.

use rustix::fs::{FallocateFlags, OFlags, fallocate};
use rustix::io::Errno;
use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

/// A multiple of every device's block size.
const ALIGNMENT: usize = 4096;
/// The size of one read.
const READ_BYTES: usize = 2 << 20;

thread_local! {
    /// Direct I/O needs a buffer that is aligned in memory too.
    static ALIGNED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A file that is written in large aligned pieces, by several threads at once.
#[derive(Debug)]
pub(crate) struct DirectFile {
    file: File,
    /// The same file, opened with `O_DIRECT`.
    direct: Option<File>,
}

impl DirectFile {
    /// Wraps a file that is better written through the page cache.
    pub(crate) fn cached(file: File) -> DirectFile {
        DirectFile { file, direct: None }
    }

    /// Wraps a file that is open for writing.
    pub(crate) fn new(file: File) -> DirectFile {
        let direct = reopened(&file, OpenOptions::new().write(true));
        let direct = direct.inspect_err(|error| tracing::debug!("written through the page cache: {error}")).ok();
        DirectFile { file, direct }
    }

    /// Returns the file itself, for small writes.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Allocates the space of a range that will be written, without changing its content. A disk that is too small is
    /// noticed before anything is written, and many file systems allow concurrent writes only into allocated space.
    pub(crate) fn reserve(&self, at: u64, length: u64) -> io::Result<()> {
        match fallocate(&self.file, FallocateFlags::empty(), at, length) {
            // Not every file system supports this.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(()),
            reserved => Ok(reserved?),
        }
    }

    /// Reads bytes that were written. They do not go through the page cache if the file system supports that.
    pub(crate) fn read(&self, at: u64, length: usize) -> io::Result<Vec<u8>> {
        if let Some(bytes) = self.direct.as_ref().and_then(|_| read_range(&self.file, at, length)) {
            return Ok(bytes);
        }
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }

    pub(crate) fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let direct = self.direct.as_ref().filter(|_| at.is_multiple_of(ALIGNMENT as u64));
        let (blocks, rest) = bytes.split_at(bytes.len() - bytes.len() % ALIGNMENT);
        match direct.map(|direct| write_aligned(direct, blocks, at)) {
            Some(Err(error)) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {}
            Some(Err(error)) => return Err(error),
            Some(Ok(())) => return self.file.write_all_at(rest, at + blocks.len() as u64),
            None => {}
        }
        self.file.write_all_at(bytes, at)
    }
}

/// Opens the same file again, with `O_DIRECT`. Uses its descriptor because the path may name another file by now.
fn reopened(file: &File, options: &mut OpenOptions) -> io::Result<File> {
    options.custom_flags(OFlags::DIRECT.bits() as i32).open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Reads a range with direct I/O. Returns None if this does not work, or if the file ends earlier.
pub(crate) fn read_range(file: &File, at: u64, length: usize) -> Option<Vec<u8>> {
    let direct = reopened(file, OpenOptions::new().read(true)).ok()?;
    let mut bytes = Vec::with_capacity(length);
    let before = (at % ALIGNMENT as u64) as usize;
    let (mut next, mut skip) = (at - before as u64, before);
    while bytes.len() < length {
        let missing = length - bytes.len();
        let read = with_aligned(READ_BYTES.min((skip + missing).next_multiple_of(ALIGNMENT)), |part| {
            let read = direct.read_at(part, next)?;
            bytes.extend_from_slice(part.get(skip..read.min(skip + missing)).unwrap_or_default());
            io::Result::Ok(read)
        });
        let read = read.inspect_err(|error| tracing::debug!("read through the page cache: {error}")).ok()?;
        if bytes.len() < length && (read == 0 || !read.is_multiple_of(ALIGNMENT)) {
            return None;
        }
        (next, skip) = (next + read as u64, 0);
    }
    Some(bytes)
}

/// Lends a block-aligned buffer of this length.
fn with_aligned<T>(length: usize, use_it: impl FnOnce(&mut [u8]) -> T) -> T {
    ALIGNED.with_borrow_mut(|buffer| {
        if buffer.len() < length + ALIGNMENT {
            *buffer = vec![0; length + ALIGNMENT];
        }
        let start = buffer.as_ptr().align_offset(ALIGNMENT);
        use_it(&mut buffer[start..start + length])
    })
}

fn write_aligned(direct: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    if bytes.as_ptr().align_offset(ALIGNMENT) == 0 {
        return direct.write_all_at(bytes, at);
    }
    with_aligned(bytes.len(), |aligned| {
        aligned.copy_from_slice(bytes);
        direct.write_all_at(aligned, at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::Command;

    /// Returns bytes in which no two blocks are the same.
    fn noise(length: usize) -> Vec<u8> {
        (0..length).map(|n| (n / 7 + n / 4096) as u8).collect()
    }

    #[test]
    fn unaligned_writes_are_written_completely() {
        for folder in ["/var/tmp", "/dev/shm"] {
            let file = tempfile::tempfile_in(folder).unwrap();
            let image = DirectFile::new(file);
            let bytes = noise((1 << 20) + (32 << 10));
            let mut at = 0;
            for length in [4096, 512 << 10, 512, 3584, 8192, 4095, 1, (512 << 10) - 4096, 100] {
                image.write_all_at(&bytes[at..at + length], at as u64).unwrap();
                at += length;
            }
            let mut read = vec![0; at];
            image.file().read_exact_at(&mut read, 0).unwrap();
            assert!(read == bytes[..at], "{folder}");
        }
    }

    #[test]
    fn ranges_of_any_alignment_are_read() {
        let mut file = tempfile::tempfile_in("/var/tmp").unwrap();
        let bytes = noise((5 << 20) + 777);
        file.write_all(&bytes).unwrap();
        let ranges = [(0, 5 << 20), (1, 4096), (4095, 2), (4096, 4096), (100, (5 << 20) + 677), ((5 << 20) + 776, 1)];
        for (at, length) in ranges.into_iter().chain([(3 << 20, 0), (4 << 20, 1 << 20), (4097, (4 << 20) + 1)]) {
            let read = read_range(&file, at as u64, length).expect("/var/tmp is on a file system without O_DIRECT");
            assert!(read == bytes[at..at + length], "{length} bytes at {at}");
        }
        for (at, length) in [(0, bytes.len() + 1), (bytes.len(), 1), (100 << 20, 1), ((5 << 20) + 776, 4096)] {
            assert!(read_range(&file, at as u64, length).is_none(), "{length} bytes at {at}");
        }
    }

    #[test]
    fn direct_writes_leave_only_the_file_end_in_the_page_cache() {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let cached_bytes = |name: &str, direct: bool| {
            let path = folder.path().join(name);
            let file = File::create_new(&path).unwrap();
            let file = if direct { DirectFile::new(file) } else { DirectFile::cached(file) };
            assert!(file.direct.is_some() == direct, "/var/tmp is on a file system without O_DIRECT");
            file.write_all_at(&noise((4 << 20) + 100), 0).unwrap();
            file.file().sync_all().unwrap();
            let output = Command::new("fincore").args(["-b", "-n", "-o", "RES"]).arg(&path).output();
            let output = output.expect("fincore (util-linux): run make test");
            String::from_utf8_lossy(&output.stdout).trim().parse::<u64>().unwrap()
        };
        assert!(cached_bytes("cached", false) > 4 << 20);
        assert!(cached_bytes("direct", true) <= 64 << 10);
    }
}
