//! An export that accepts writes and discards them at the end. Writes go to a temporary file, at the same offset.
//!
//! ```text
//! base        |AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA|
//! written     |      |BBBB|      |zero|                 |      ranges with byte granularity
//! reads       |AAAAAA|BBBB|AAAAAA|0000|AAAAAAAAAAAAAAAAA|
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, PoisonError, RwLock};

use super::super::StatusExtent;
use super::export::{Export, ExportWrite, Piece, zero_flags};

/// The size of the buffer for reading the file.
const BUFFER_BYTES: usize = 256 * 1024;

/// What was written to a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Written {
    Data,
    Zeros,
}

/// Ranges that were written: start → end and contents. They do not overlap.
#[derive(Debug, Default)]
struct Ranges(BTreeMap<u64, (u64, Written)>);

impl Ranges {
    /// Inserts a range, replacing existing ones.
    fn insert(&mut self, begin: u64, end: u64, written: Written) {
        self.cut(begin);
        self.cut(end);
        let covered: Vec<u64> = self.0.range(begin..end).map(|(at, _)| *at).collect();
        for at in covered {
            self.0.remove(&at);
        }
        let (mut begin, mut end) = (begin, end);
        if let Some((at, (until, before))) = self.0.range(..begin).next_back().map(|(at, range)| (*at, *range))
            && until == begin
            && before == written
        {
            self.0.remove(&at);
            begin = at;
        }
        if let Some((until, after)) = self.0.get(&end).copied()
            && after == written
        {
            self.0.remove(&end);
            end = until;
        }
        self.0.insert(begin, (end, written));
    }

    /// Splits a range that contains this offset.
    fn cut(&mut self, at: u64) {
        let Some((begin, (end, written))) = self.0.range(..at).next_back().map(|(begin, range)| (*begin, *range))
        else {
            return;
        };
        if end > at {
            self.0.insert(begin, (at, written));
            self.0.insert(at, (end, written));
        }
    }

    /// Returns the parts of `begin..end`, in order, each with its end and what was written there, if anything.
    fn parts(&self, begin: u64, end: u64) -> Vec<(u64, Option<Written>)> {
        let (mut parts, mut at) = (Vec::new(), begin);
        let first = self.0.range(..=begin).next_back().filter(|(_, (until, _))| *until > begin);
        let later = self.0.range(begin..end).filter(|(from, _)| **from > begin);
        for (from, (until, written)) in first.into_iter().chain(later) {
            if *from > at {
                parts.push((*from, None));
            }
            at = (*until).min(end);
            parts.push((at, Some(*written)));
        }
        if at < end {
            parts.push((end, None));
        }
        parts
    }
}

/// A base that is never changed, and the writes on top of it.
pub(crate) struct Overlay {
    base: Arc<dyn Export>,
    file: File,
    ranges: RwLock<Ranges>,
}

impl std::fmt::Debug for Overlay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Overlay").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Overlay {
    /// Creates an empty overlay on a base. `file` must be empty and unused otherwise.
    pub(crate) fn new(base: Arc<dyn Export>, file: File) -> Overlay {
        Overlay { base, file, ranges: RwLock::default() }
    }

    fn read_file(&self, mut at: u64, end: u64, deliver: &mut dyn FnMut(Piece<'_>) -> io::Result<()>) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER_BYTES.min((end - at) as usize)];
        while at < end {
            let length = buffer.len().min((end - at) as usize);
            match self.file.read_exact_at(&mut buffer[..length], at) {
                Ok(()) => deliver(Piece::Data(&buffer[..length]))?,
                Err(error) => {
                    let reason = format!("cannot read what was written here: {error}");
                    deliver(Piece::Unreadable { length_bytes: length as u32, reason: &reason })?;
                }
            }
            at += length as u64;
        }
        Ok(())
    }
}

impl Export for Overlay {
    fn size_bytes(&self) -> u64 {
        self.base.size_bytes()
    }

    fn description(&self) -> String {
        format!("{}, writable until the server ends", self.base.description())
    }

    fn read(&self, offset: u64, length: u32, deliver: &mut dyn FnMut(Piece<'_>) -> io::Result<()>) -> io::Result<()> {
        let end = offset + u64::from(length);
        let parts = self.ranges.read().unwrap_or_else(PoisonError::into_inner).parts(offset, end);
        let mut at = offset;
        for (until, written) in parts {
            match written {
                None => self.base.read(at, (until - at) as u32, deliver)?,
                Some(Written::Zeros) => deliver(Piece::Zeros((until - at) as u32))?,
                Some(Written::Data) => self.read_file(at, until, deliver)?,
            }
            at = until;
        }
        Ok(())
    }

    fn extents(&self, offset: u64, length: u32, limit: usize) -> Vec<StatusExtent> {
        let end = offset + u64::from(length);
        let parts = self.ranges.read().unwrap_or_else(PoisonError::into_inner).parts(offset, end);
        let (mut extents, mut at) = (Vec::new(), offset);
        for (until, written) in parts {
            let room = limit - extents.len();
            if room == 0 {
                break;
            }
            let length = (until - at) as u32;
            match written {
                Some(written) => {
                    extents.push(StatusExtent { length, flags: zero_flags(written == Written::Zeros) });
                }
                None => {
                    let of_base = self.base.extents(at, length, room);
                    let covered: u64 = of_base.iter().map(|extent| u64::from(extent.length)).sum();
                    extents.extend(of_base);
                    if covered < u64::from(length) {
                        break;
                    }
                }
            }
            at = until;
        }
        extents
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn write(&self, offset: u64, change: ExportWrite<'_>) -> io::Result<()> {
        let end = offset + change.length_bytes();
        // For ranges of zeros, the contents of the file do not matter.
        let written = match change {
            ExportWrite::Data(bytes) => {
                self.file.write_all_at(bytes, offset)?;
                Written::Data
            }
            ExportWrite::Zeros(_) => Written::Zeros,
        };
        self.ranges.write().unwrap_or_else(PoisonError::into_inner).insert(offset, end, written);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: u64 = 64;

    /// A base whose bytes are `!`, except for zeros in its second quarter.
    struct TestBase;

    impl Export for TestBase {
        fn size_bytes(&self) -> u64 {
            SIZE
        }

        fn description(&self) -> String {
            "a base".to_owned()
        }

        fn read(
            &self,
            offset: u64,
            length: u32,
            deliver: &mut dyn FnMut(Piece<'_>) -> io::Result<()>,
        ) -> io::Result<()> {
            for at in offset..offset + u64::from(length) {
                match (16..32).contains(&at) {
                    true => deliver(Piece::Zeros(1))?,
                    false => deliver(Piece::Data(b"!"))?,
                }
            }
            Ok(())
        }

        fn extents(&self, offset: u64, length: u32, limit: usize) -> Vec<StatusExtent> {
            let each = (offset..offset + u64::from(length))
                .map(|at| StatusExtent { length: 1, flags: zero_flags((16..32).contains(&at)) });
            each.take(limit).collect()
        }
    }

    fn overlay() -> Overlay {
        Overlay::new(Arc::new(TestBase), tempfile::tempfile().unwrap())
    }

    fn read_all(export: &dyn Export) -> Vec<u8> {
        let mut bytes = Vec::new();
        let deliver = &mut |piece: Piece<'_>| {
            match piece {
                Piece::Zeros(length) => bytes.resize(bytes.len() + length as usize, 0),
                Piece::Data(data) => bytes.extend_from_slice(data),
                Piece::Unreadable { reason, .. } => panic!("{reason}"),
            }
            Ok(())
        };
        export.read(0, SIZE as u32, deliver).unwrap();
        bytes
    }

    proptest! {
        #[test]
        fn overlay_reads_match_the_model_after_writes(
            writes in proptest::collection::vec((0..SIZE, 1..SIZE, proptest::option::of(1u8..)), 0..20),
        ) {
            let (overlay, mut model) = (overlay(), read_all(&TestBase));
            for (offset, length, byte) in writes {
                let length = length.min(SIZE - offset);
                let bytes = vec![byte.unwrap_or(0); length as usize];
                let change = if byte.is_some() { ExportWrite::Data(&bytes) } else { ExportWrite::Zeros(length) };
                overlay.write(offset, change).unwrap();
                model[offset as usize..(offset + length) as usize].copy_from_slice(&bytes);
                prop_assert_eq!(&read_all(&overlay), &model);
                let mut at = 0;
                for extent in overlay.extents(0, SIZE as u32, usize::MAX) {
                    let covered = &model[at..at + extent.length as usize];
                    prop_assert!(extent.flags == 0 || covered.iter().all(|byte| *byte == 0));
                    at += extent.length as usize;
                }
                prop_assert_eq!(at as u64, SIZE);
                let first = overlay.extents(1, SIZE as u32 - 1, 1);
                prop_assert_eq!(first.len(), 1);
            }
        }
    }
}
