//! The map of a disk: which ranges read as zeros, and which are dirty. It is merged from two contexts, then split into
//! chunks.
//!
//! The rules are implemented without I/O ([`Mapper`] decides what to request and interprets the answer, [`ChunkCutter`]
//! splits); [`extents`] and [`chunk_runs`] are iterators on top of them. The [module's](super) documentation shows the
//! possible answers of a server.

use std::collections::VecDeque;

use super::client::{Client, ContextStatus};
use super::wire::{BASE_ALLOCATION, STATE_DIRTY, STATE_ZERO, StatusExtent, Violation};
use super::{Error, Result};

/// The length of one request: 32 bits, rounded to a boundary that suits every server. It is large because a sparse disk
/// of 10 TB is answered with a handful of extents. A server with more extents just stops earlier.
const MAX_QUESTION_BYTES: u32 = u32::MAX - 0xffff;

/// A range of a disk with uniform properties.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The offset in bytes.
    pub offset: u64,
    /// The length in bytes, never 0.
    pub length: u64,
    /// Whether the server reports that it reads as zeros. If `false`, it may still be all zeros.
    pub zero: bool,
    /// Whether it was written to since the bitmap was created; `None` if there is no bitmap.
    pub dirty: Option<bool>,
}

/// Iterates over the map of the whole disk, in order and without gaps, requesting it lazily. `bitmap_context` is used
/// only if it was negotiated ([`Client::has_context`]). Adjacent extents of one answer differ; those at the boundary of
/// two answers may be equal, so that the iterator does not have to look ahead.
pub fn extents<'a>(client: &'a mut Client, bitmap_context: Option<&str>) -> Extents<'a> {
    Extents { mapper: Mapper::new(client, bitmap_context), client, ready: VecDeque::new(), failed: false }
}

/// The iterator returned by [`extents`].
#[derive(Debug)]
pub struct Extents<'a> {
    client: &'a mut Client,
    mapper: Mapper,
    ready: VecDeque<Extent>,
    failed: bool,
}

impl Extents<'_> {
    fn ask(&mut self) -> Result<()> {
        match self.mapper.next_step() {
            MapperStep::Known(extent) => self.ready.push_back(extent),
            MapperStep::Ask { offset, length } => {
                let answer = self.client.block_status(offset, length)?;
                self.ready.extend(self.mapper.accept(&answer)?);
            }
            MapperStep::Complete => {}
        }
        Ok(())
    }
}

impl Iterator for Extents<'_> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ready.is_empty()
            && !self.failed
            && let Err(error) = self.ask()
        {
            self.failed = true;
            return Some(Err(error));
        }
        self.ready.pop_front().map(Ok)
    }
}

/// The next step of a [`Mapper`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MapperStep {
    /// Send an `NBD_CMD_BLOCK_STATUS`, and pass the answer to [`Mapper::accept`].
    Ask { offset: u64, length: u32 },
    /// No request is needed: this is the whole map.
    Known(Extent),
    /// The map is complete.
    Complete,
}

/// Builds the map of a disk, without doing any I/O itself.
#[derive(Debug)]
pub(super) struct Mapper {
    size_bytes: u64,
    position: u64,
    block: u64,
    has_allocation: bool,
    bitmap: Option<String>,
}

impl Mapper {
    pub(super) fn new(client: &Client, bitmap_context: Option<&str>) -> Mapper {
        Mapper {
            size_bytes: client.size_bytes(),
            position: 0,
            block: client.min_block_bytes().into(),
            has_allocation: client.has_context(BASE_ALLOCATION),
            bitmap: bitmap_context.filter(|name| client.has_context(name)).map(str::to_owned),
        }
    }

    pub(super) fn next_step(&mut self) -> MapperStep {
        let left = self.size_bytes - self.position;
        if left == 0 {
            return MapperStep::Complete;
        }
        if !self.has_allocation && self.bitmap.is_none() {
            self.position = self.size_bytes;
            return MapperStep::Known(Extent { offset: 0, length: self.size_bytes, zero: false, dirty: None });
        }
        MapperStep::Ask {
            offset: self.position,
            length: u32::try_from(left).map_or(MAX_QUESTION_BYTES, |left| left.min(MAX_QUESTION_BYTES)),
        }
    }

    /// Interprets the answer to the last [`MapperStep::Ask`]. The next request starts where *all* contexts have been
    /// answered.
    pub(super) fn accept(&mut self, answer: &[ContextStatus]) -> Result<Vec<Extent>> {
        let find =
            |name: &str| answer.iter().find(|status| status.context == name).map(|status| status.extents.as_slice());
        let allocation = find(BASE_ALLOCATION).filter(|_| self.has_allocation);
        let dirty = self.bitmap.as_deref().and_then(find);
        if allocation.is_none() == self.has_allocation || dirty.is_none() == self.bitmap.is_some() {
            return Err(self.broken());
        }
        let mut extents = intersect(self.position, allocation, dirty);
        self.align(&mut extents);
        match extents.last() {
            Some(last) if last.offset + last.length <= self.size_bytes => {
                self.position = last.offset + last.length;
                Ok(extents)
            }
            _ => Err(self.broken()),
        }
    }

    /// Handles an answer that ends inside the server's own block, where the next request cannot start.
    fn align(&self, extents: &mut Vec<Extent>) {
        let Some(end) = extents.last().map(|last| last.offset + last.length) else {
            return;
        };
        let aligned_end = end - end % self.block;
        if end == aligned_end || end >= self.size_bytes {
            return;
        }
        if aligned_end > self.position {
            extents.retain(|extent| extent.offset < aligned_end);
            if let Some(last) = extents.last_mut() {
                last.length = aligned_end - last.offset;
            }
        } else {
            // Less than one block: treat it as dirty data.
            let block_end = (self.position + self.block).min(self.size_bytes);
            *extents = vec![Extent {
                offset: self.position,
                length: block_end - self.position,
                zero: false,
                dirty: self.bitmap.as_ref().map(|_| true),
            }];
        }
    }

    fn broken(&self) -> Error {
        Violation::Extents { offset: self.position }.into()
    }
}

/// Intersects two lists from `offset` to the end of the shorter one, and merges equal neighbours.
fn intersect(offset: u64, allocation: Option<&[StatusExtent]>, bitmap: Option<&[StatusExtent]>) -> Vec<Extent> {
    let mut allocation = allocation.map(ExtentCursor::new);
    let mut bitmap = bitmap.map(ExtentCursor::new);
    let mut merged: Vec<Extent> = Vec::new();
    let mut position = offset;
    loop {
        let left = |cursor: &Option<ExtentCursor<'_>>| cursor.as_ref().map(ExtentCursor::left);
        let length = match (left(&allocation), left(&bitmap)) {
            (Some(one), Some(other)) => one.min(other),
            (Some(only), None) | (None, Some(only)) => only,
            (None, None) => 0,
        };
        if length == 0 {
            return merged;
        }
        let zero = allocation.as_mut().is_some_and(|cursor| cursor.advance(length) & STATE_ZERO != 0);
        let dirty = bitmap.as_mut().map(|cursor| cursor.advance(length) & STATE_DIRTY != 0);
        match merged.last_mut() {
            Some(last) if last.zero == zero && last.dirty == dirty => {
                last.length += u64::from(length);
            }
            _ => merged.push(Extent { offset: position, length: length.into(), zero, dirty }),
        }
        position += u64::from(length);
    }
}

/// A position in a list of extents.
#[derive(Debug)]
struct ExtentCursor<'a> {
    extents: &'a [StatusExtent],
    /// The part of the first extent that was passed.
    used: u32,
}

impl<'a> ExtentCursor<'a> {
    fn new(extents: &'a [StatusExtent]) -> ExtentCursor<'a> {
        ExtentCursor { extents, used: 0 }
    }

    /// Returns the remaining length of the current extent; 0 at the end.
    fn left(&self) -> u32 {
        self.extents.first().map_or(0, |extent| extent.length - self.used)
    }

    /// Advances by at most the remaining length, and returns the flags of the part that was passed.
    fn advance(&mut self, length: u32) -> u32 {
        let Some((first, rest)) = self.extents.split_first() else {
            return 0;
        };
        self.used += length;
        if self.used >= first.length {
            self.extents = rest;
            self.used = 0;
        }
        first.flags
    }
}

/// What has to be done with a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChunkState {
    /// No byte of it is dirty.
    Clean {
        /// Whether it currently reads as zeros. If a clean chunk is zero, but not zero in the parent, the bitmap is
        /// wrong.
        zero: bool,
    },
    /// Dirty or unknown, and all of it reads as zeros.
    Zero,
    /// Dirty or unknown: must be read.
    Data,
    /// Partially dirty, and not all zeros. Only if pieces are distinguished.
    Mixed {
        /// The dirty pieces; bit 0 is the first one.
        dirty: u64,
        /// The pieces that are clean, and currently read as zeros.
        clean_zeros: u64,
    },
}

/// Adjacent chunks in the same state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkRun {
    /// The index of the first chunk.
    pub first: u64,
    /// The number of chunks, never 0.
    pub count: u64,
    /// The state of all these chunks.
    pub state: ChunkState,
}

/// Rounds extents to chunks: chunk `i` is `[i * chunk_bytes, min((i + 1) * chunk_bytes, size_bytes))`. Runs have the
/// maximum length. The extents must cover the disk in order and without gaps. Otherwise, and after an error in
/// `extents`, the iteration ends with an error.
pub fn chunk_runs<I>(extents: I, size_bytes: u64, chunk_bytes: u32) -> ChunkRuns<I>
where
    I: Iterator<Item = Result<Extent>>,
{
    ChunkRuns { extents, cutter: ChunkCutter::new(size_bytes, chunk_bytes), ended: false }
}

/// The iterator returned by [`chunk_runs`].
#[derive(Debug)]
pub struct ChunkRuns<I> {
    extents: I,
    cutter: ChunkCutter,
    ended: bool,
}

impl<I> Iterator for ChunkRuns<I>
where
    I: Iterator<Item = Result<Extent>>,
{
    type Item = Result<ChunkRun>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(run) = self.cutter.finished.pop_front() {
                return Some(Ok(run));
            }
            if self.ended {
                return None;
            }
            let step = match self.extents.next() {
                Some(extent) => extent.and_then(|extent| Ok(self.cutter.push(extent)?)),
                None => {
                    self.ended = true;
                    self.cutter.finish().map_err(Error::from)
                }
            };
            if let Err(error) = step {
                self.ended = true;
                self.cutter.finished.clear();
                return Some(Err(error));
            }
        }
    }
}

/// Splits extents into chunks incrementally.
#[derive(Debug)]
pub(super) struct ChunkCutter {
    size_bytes: u64,
    chunk_bytes: u64,
    /// The size of a piece, if partially dirty chunks are distinguished.
    piece_bytes: Option<u64>,
    position: u64,
    /// The state of the chunk that contains `position`, unless `position` is at its start.
    partial: Option<PartialChunk>,
    /// The run that the next chunk may extend.
    current: Option<ChunkRun>,
    finished: VecDeque<ChunkRun>,
}

/// The properties of the first bytes of a chunk.
#[derive(Debug, Clone, Copy)]
struct PartialChunk {
    zero: bool,
    clean: bool,
    /// The pieces that contain a dirty byte.
    dirty: u64,
    /// The pieces that contain a byte that is dirty or possibly not zero.
    touched: u64,
}

impl PartialChunk {
    fn of(extent: &Extent) -> PartialChunk {
        let clean = extent.dirty == Some(false);
        let all_if = |is_so: bool| if is_so { u64::MAX } else { 0 };
        PartialChunk { zero: extent.zero, clean, dirty: all_if(!clean), touched: all_if(!clean || !extent.zero) }
    }

    fn and(self, other: PartialChunk) -> PartialChunk {
        PartialChunk {
            zero: self.zero && other.zero,
            clean: self.clean && other.clean,
            dirty: self.dirty | other.dirty,
            touched: self.touched | other.touched,
        }
    }

    /// Restricts the properties of an extent to these pieces.
    fn within(self, pieces: u64) -> PartialChunk {
        PartialChunk { dirty: self.dirty & pieces, touched: self.touched & pieces, ..self }
    }

    /// Returns the state of a chunk with these properties; `all` are its pieces.
    fn state(self, all: Option<u64>) -> ChunkState {
        match self {
            PartialChunk { clean: true, zero, .. } => ChunkState::Clean { zero },
            PartialChunk { zero: true, .. } => ChunkState::Zero,
            PartialChunk { dirty, touched, .. } => match all {
                Some(all) if dirty & all != all => ChunkState::Mixed { dirty, clean_zeros: all & !touched },
                _ => ChunkState::Data,
            },
        }
    }
}

impl ChunkCutter {
    /// A chunk size of 0 is treated as 1.
    pub(super) fn new(size_bytes: u64, chunk_bytes: u32) -> ChunkCutter {
        ChunkCutter {
            size_bytes,
            chunk_bytes: chunk_bytes.max(1).into(),
            piece_bytes: None,
            position: 0,
            partial: None,
            current: None,
            finished: VecDeque::new(),
        }
    }

    /// Distinguishes which pieces of a chunk are dirty. A chunk has at most 64.
    pub(super) fn with_pieces(mut self, piece_bytes: Option<u32>) -> ChunkCutter {
        let piece_bytes = piece_bytes.map(u64::from);
        self.piece_bytes = piece_bytes.filter(|piece| *piece > 0 && self.chunk_bytes.div_ceil(*piece) <= 64);
        self
    }

    /// Returns the bits of the pieces in a range of bytes of a chunk; all bits if pieces are not distinguished.
    fn pieces(&self, begin: u64, end: u64) -> u64 {
        let Some(piece) = self.piece_bytes else { return u64::MAX };
        let below = |count: u64| if count >= 64 { u64::MAX } else { (1 << count) - 1 };
        below(end.div_ceil(piece)) & !below(begin / piece)
    }

    /// Adds the next extent.
    pub(super) fn push(&mut self, extent: Extent) -> Result<(), Violation> {
        let end = extent.offset.checked_add(extent.length);
        if extent.offset != self.position || end.is_none_or(|end| end > self.size_bytes) {
            return Err(Violation::Map { offset: self.position });
        }
        let here = PartialChunk::of(&extent);
        let mut left = extent.length;
        while left > 0 {
            let index = self.position / self.chunk_bytes;
            let whole = left / self.chunk_bytes;
            if self.partial.is_none() && whole > 0 {
                self.extend(index, whole, here.state(None));
                self.position += whole * self.chunk_bytes;
                left -= whole * self.chunk_bytes;
                continue;
            }
            let chunk_end = (index + 1).saturating_mul(self.chunk_bytes).min(self.size_bytes);
            let taken = left.min(chunk_end - self.position);
            let start = index * self.chunk_bytes;
            let here = here.within(self.pieces(self.position - start, self.position - start + taken));
            let known = self.partial.map_or(here, |partial| partial.and(here));
            self.position += taken;
            left -= taken;
            if self.position == chunk_end {
                self.partial = None;
                let all = self.piece_bytes.map(|_| self.pieces(0, chunk_end - start));
                self.extend(index, 1, known.state(all));
            } else {
                self.partial = Some(known);
            }
        }
        Ok(())
    }

    /// Must be called after the last extent.
    pub(super) fn finish(&mut self) -> Result<(), Violation> {
        if self.position != self.size_bytes {
            return Err(Violation::Map { offset: self.position });
        }
        self.finished.extend(self.current.take());
        Ok(())
    }

    /// Returns the runs so far, including the last one, even if the next extent would extend it.
    pub(super) fn take_runs(&mut self) -> impl Iterator<Item = ChunkRun> + '_ {
        self.finished.extend(self.current.take());
        self.finished.drain(..)
    }

    fn extend(&mut self, first: u64, count: u64, state: ChunkState) {
        match &mut self.current {
            Some(run) if run.state == state => run.count += count,
            current => {
                let run = ChunkRun { first, count, state };
                self.finished.extend(current.replace(run));
            }
        }
    }
}

#[cfg(test)]
mod tests;
