//! The map of a disk: what reads as zeros, what is dirty; merged from two contexts, then cut to chunks.
//!
//! The rules are pure ([`Mapper`] says what to ask and digests the answer, [`ChunkCutter`] cuts); [`extents`] and
//! [`chunk_runs`] are the iterators over them. What a server may answer is drawn in the [module's](super)
//! documentation.

use std::collections::VecDeque;

use super::client::{Client, ContextStatus};
use super::wire::{BASE_ALLOCATION, STATE_DIRTY, STATE_ZERO, StatusExtent, Violation};
use super::{Error, Result};

/// As much of a disk as is asked for at once: 32 bits, on a boundary that suits every server. Large, because a sparse
/// disk of 10 TB is answered with a handful of extents; a server with more to say simply stops earlier.
const MAX_QUESTION_BYTES: u32 = u32::MAX - 0xffff;

/// A range of a disk about which everything is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins.
    pub offset: u64,
    /// Its length, never 0.
    pub length: u64,
    /// The server says that it reads as zeros. `false` means nothing: it may still be zeros.
    pub zero: bool,
    /// Written since the bitmap was made; `None` if there is no bitmap.
    pub dirty: Option<bool>,
}

/// Iterates over the map of the whole disk, in order and without gaps, asking lazily. `bitmap_context` counts only if
/// it was negotiated ([`Client::has_context`]). Neighbours from one answer differ; from one answer to the next they may
/// be equal, so that nothing waits for the end of the disk.
pub fn extents<'a>(client: &'a mut Client, bitmap_context: Option<&str>) -> Extents<'a> {
    Extents { mapper: Mapper::new(client, bitmap_context), client, ready: VecDeque::new(), failed: false }
}

/// The iterator behind [`extents`].
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

/// What a [`Mapper`] wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MapperStep {
    /// An `NBD_CMD_BLOCK_STATUS`, to be answered to [`Mapper::accept`].
    Ask { offset: u64, length: u32 },
    /// There is nothing to ask: this is the whole map.
    Known(Extent),
    /// The map is complete.
    Complete,
}

/// Walks over a disk's map; does no input or output itself.
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

    /// Digests the answer to the last [`MapperStep::Ask`]; the next one goes on where *all* contexts have answered.
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

    /// An answer may end inside the server's own block, where the next question cannot begin.
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
            // Not even one block: we know too little to call it anything but dirty data.
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

/// Lays two lists over each other, from `offset` to where the shorter one ends; equal neighbours become one.
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

/// A place in a list of extents.
#[derive(Debug)]
struct ExtentCursor<'a> {
    extents: &'a [StatusExtent],
    /// How much of the first one is used up.
    used: u32,
}

impl<'a> ExtentCursor<'a> {
    fn new(extents: &'a [StatusExtent]) -> ExtentCursor<'a> {
        ExtentCursor { extents, used: 0 }
    }

    /// What is left of the extent here; 0 at the end.
    fn left(&self) -> u32 {
        self.extents.first().map_or(0, |extent| extent.length - self.used)
    }

    /// Moves on by at most what is left here; the flags of what was passed.
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

/// What has to be done about a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChunkState {
    /// No byte of it is dirty.
    Clean {
        /// It reads as zeros now, says the server. Clean and zero, but not zero in the parent: then the bitmap lies.
        zero: bool,
    },
    /// Dirty or unknown, and all of it reads as zeros.
    Zero,
    /// Dirty or unknown: to be read.
    Data,
    /// Dirty in a part, and not all zeros. Only if such parts were asked for.
    Mixed {
        /// The dirty pieces, the first one in the lowest bit.
        dirty: u64,
        /// The pieces that are clean, and read as zeros now.
        clean_zeros: u64,
    },
}

/// Neighbouring chunks in the same state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkRun {
    /// The first one's index.
    pub first: u64,
    /// How many, never 0.
    pub count: u64,
    /// The state of each of them.
    pub state: ChunkState,
}

/// Widens extents to chunks: chunk `i` is `[i * chunk_bytes, min((i + 1) * chunk_bytes, size_bytes))`. Runs are as long
/// as can be. The extents must cover the disk in order and without gaps; otherwise, and after an error among them, the
/// iteration ends with an error.
pub fn chunk_runs<I>(extents: I, size_bytes: u64, chunk_bytes: u32) -> ChunkRuns<I>
where
    I: Iterator<Item = Result<Extent>>,
{
    ChunkRuns { extents, cutter: ChunkCutter::new(size_bytes, chunk_bytes), ended: false }
}

/// The iterator behind [`chunk_runs`].
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

/// Cuts extents to chunks as they come.
#[derive(Debug)]
pub(super) struct ChunkCutter {
    size_bytes: u64,
    chunk_bytes: u64,
    /// The size of a piece, if chunks that are dirty in a part are told apart.
    piece_bytes: Option<u64>,
    position: u64,
    /// What is known of the chunk that `position` is in, unless it is at its beginning.
    partial: Option<PartialChunk>,
    /// The run that the next chunk may continue.
    current: Option<ChunkRun>,
    finished: VecDeque<ChunkRun>,
}

/// What holds for all of the bytes so far.
#[derive(Debug, Clone, Copy)]
struct PartialChunk {
    zero: bool,
    clean: bool,
    /// The pieces with a dirty byte.
    dirty: u64,
    /// The pieces with a byte that is dirty, or may be something else than zero.
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

    /// The same, of an extent that only these pieces have bytes of.
    fn within(self, pieces: u64) -> PartialChunk {
        PartialChunk { dirty: self.dirty & pieces, touched: self.touched & pieces, ..self }
    }

    /// What is to be done about a chunk of which this holds; `all` are the pieces that it has.
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
    /// A chunk has at least one byte.
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

    /// Tells apart which pieces of a chunk are dirty. A chunk has at most 64.
    pub(super) fn with_pieces(mut self, piece_bytes: Option<u32>) -> ChunkCutter {
        let piece_bytes = piece_bytes.map(u64::from);
        self.piece_bytes = piece_bytes.filter(|piece| *piece > 0 && self.chunk_bytes.div_ceil(*piece) <= 64);
        self
    }

    /// The bits of the pieces from one byte of a chunk to another; all of them where pieces are not told apart.
    fn pieces(&self, begin: u64, end: u64) -> u64 {
        let Some(piece) = self.piece_bytes else { return u64::MAX };
        let below = |count: u64| if count >= 64 { u64::MAX } else { (1 << count) - 1 };
        below(end.div_ceil(piece)) & !below(begin / piece)
    }

    /// Takes the next extent.
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

    /// All extents were given.
    pub(super) fn finish(&mut self) -> Result<(), Violation> {
        if self.position != self.size_bytes {
            return Err(Violation::Map { offset: self.position });
        }
        self.finished.extend(self.current.take());
        Ok(())
    }

    /// The runs so far, without waiting whether the last one goes on.
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
