//! The bytes of a file, with zeros for its holes.

use super::{FileSink, GuestFile, WalkStart};
use crate::filesystems::namespace::Names;
use crate::filesystems::{FsError, InodeKind};
use crate::ops::{Error, Result};

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Receives bytes. An error ends the transfer.
pub(crate) type TakeBytes<'a> = &'a mut dyn FnMut(&[u8]) -> Result<()>;

/// Passes on this number of zeros.
pub(super) fn zeros(take: TakeBytes<'_>, mut length: u64) -> Result<()> {
    while length > 0 {
        let part = length.min(ZEROS.len() as u64);
        take(&ZEROS[..part as usize])?;
        length -= part;
    }
    Ok(())
}

/// Passes on the bytes of one file.
pub(crate) struct FileContent<'a> {
    path: &'a str,
    take: TakeBytes<'a>,
    size_bytes: u64,
    next: u64,
}

impl<'a> FileContent<'a> {
    pub(crate) fn new(path: &'a str, take: TakeBytes<'a>) -> FileContent<'a> {
        FileContent { path, take, size_bytes: 0, next: 0 }
    }

    fn fault(&self, reason: String) -> Error {
        Error::GuestFile { path: self.path.to_owned(), source: FsError::BadPath(reason) }
    }
}

impl FileSink for FileContent<'_> {
    fn start(&mut self, _: &WalkStart) -> Result<()> {
        Ok(())
    }

    fn file(&mut self, file: GuestFile) -> Result<()> {
        if file.metadata.kind != InodeKind::File {
            return Err(self.fault(format!("it is a {}, not a file", file.metadata.kind.word().replace('_', " "))));
        }
        self.size_bytes = file.metadata.size_bytes;
        Ok(())
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        zeros(self.take, offset - self.next)?;
        self.next = offset + bytes.len() as u64;
        (self.take)(bytes)
    }

    fn end_of_file(&mut self) -> Result<()> {
        zeros(self.take, self.size_bytes - self.next)
    }

    fn unreadable(&mut self, _: &Names, source: FsError) -> Result<()> {
        Err(Error::GuestFile { path: self.path.to_owned(), source })
    }
}
