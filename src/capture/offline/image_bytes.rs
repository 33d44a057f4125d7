//! Reads the bytes of an image and the numbers in its header (pure).

use std::io;

/// A source that can be read at any offset. A read beyond its end returns fewer bytes.
pub(crate) trait ReadAt {
    /// Returns up to `length` bytes from `offset` on.
    fn read_at(&self, offset: u64, length: usize) -> io::Result<Vec<u8>>;
}

/// The error for an image that is invalid for its format.
pub(super) fn broken(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// The start of an image. Numbers are big-endian.
pub(super) struct HeaderBytes(pub(super) Vec<u8>);

impl HeaderBytes {
    pub(super) fn slice(&self, at: usize, length: usize) -> io::Result<&[u8]> {
        let end = at.checked_add(length);
        end.and_then(|end| self.0.get(at..end)).ok_or_else(|| broken("its header is truncated"))
    }

    fn number<const N: usize>(&self, at: usize) -> io::Result<[u8; N]> {
        self.slice(at, N)?.try_into().map_err(|_| broken("its header is truncated"))
    }

    pub(super) fn u16(&self, at: usize) -> io::Result<u16> {
        Ok(u16::from_be_bytes(self.number(at)?))
    }

    pub(super) fn u32(&self, at: usize) -> io::Result<u32> {
        Ok(u32::from_be_bytes(self.number(at)?))
    }

    pub(super) fn u64(&self, at: usize) -> io::Result<u64> {
        Ok(u64::from_be_bytes(self.number(at)?))
    }

    /// The extensions of a qcow2 header, each with its type.
    pub(super) fn extensions(&self, mut at: usize) -> io::Result<Vec<(u32, &[u8])>> {
        let mut extensions = Vec::new();
        while at + 8 <= self.0.len() {
            let (kind, length) = (self.u32(at)?, self.u32(at + 4)? as usize);
            if kind == 0 {
                break;
            }
            extensions.push((kind, self.slice(at + 8, length)?));
            at += 8 + length.next_multiple_of(8);
        }
        Ok(extensions)
    }
}
