//! Writing an image past the page cache (`O_DIRECT`), where the file system can do that.
//!
//! A restore writes more than fits into memory. In the page cache that would push out what running machines need, every
//! new page would cost more than to decompress its bytes, and the disk would begin to work at the end.
//!
//! The kernel wants address, offset and length of such a write to be multiples of the device's blocks. Chunks are, up
//! to the last one of a disk of an odd size, which goes through the cache; so does all where the kernel refuses.

use rustix::fs::{FallocateFlags, OFlags, fallocate};
use rustix::io::Errno;
use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

/// A multiple of the blocks of every device that there is.
const ALIGNMENT: usize = 4096;

thread_local! {
    /// What is written has to begin on a block in memory too.
    static ALIGNED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A file that is written in large aligned pieces, from several threads at once.
#[derive(Debug)]
pub(crate) struct ImageFile {
    file: File,
    /// The same, past the cache.
    direct: Option<File>,
}

impl ImageFile {
    /// Takes a file that is open for writing.
    pub(crate) fn new(file: File) -> ImageFile {
        // By its descriptor, for another file may have its name by now.
        let same = format!("/proc/self/fd/{}", file.as_raw_fd());
        let flags = OFlags::DIRECT.bits() as i32;
        let direct = OpenOptions::new().write(true).custom_flags(flags).open(same);
        let direct = direct.inspect_err(|error| tracing::debug!("written through the page cache: {error}")).ok();
        ImageFile { file, direct }
    }

    /// The file itself, for what is small.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Takes the room for a range that will be written, without changing what it reads as: a disk that is too small is
    /// known before anything is written, and many file systems let only writes into room that is taken go on side by
    /// side.
    pub(crate) fn reserve(&self, at: u64, length: u64) -> io::Result<()> {
        match fallocate(&self.file, FallocateFlags::empty(), at, length) {
            // Not every file system can.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(()),
            reserved => Ok(reserved?),
        }
    }

    /// Writes all of it, or fails.
    pub(crate) fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let is_aligned = bytes.len().is_multiple_of(ALIGNMENT) && at.is_multiple_of(ALIGNMENT as u64);
        match self.direct.as_ref().filter(|_| is_aligned).map(|direct| write_aligned(direct, bytes, at)) {
            Some(Err(error)) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {}
            Some(written) => return written,
            None => {}
        }
        self.file.write_all_at(bytes, at)
    }
}

fn write_aligned(direct: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    if bytes.as_ptr().align_offset(ALIGNMENT) == 0 {
        return direct.write_all_at(bytes, at);
    }
    ALIGNED.with_borrow_mut(|buffer| {
        if buffer.len() < bytes.len() + ALIGNMENT {
            buffer.resize(bytes.len() + ALIGNMENT, 0);
        }
        let start = buffer.as_ptr().align_offset(ALIGNMENT);
        let aligned = &mut buffer[start..start + bytes.len()];
        aligned.copy_from_slice(bytes);
        direct.write_all_at(aligned, at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of which no two blocks are the same.
    fn noise(length: usize) -> Vec<u8> {
        (0..length).map(|n| (n / 7 + n / 4096) as u8).collect()
    }

    #[test]
    fn pieces_of_any_size_at_any_place_are_written() {
        for folder in ["/var/tmp", "/dev/shm"] {
            let file = tempfile::tempfile_in(folder).unwrap();
            let image = ImageFile::new(file);
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
}
