//! Builds a chunk map from runs of chunks that the workers finish in any order.

use super::task::{Base, StoredDisk};
use crate::ops::chunk_map::{ChunkMap, Geometry, MappedChunk};
use crate::ops::pieces::Pieces;
use std::collections::BTreeMap;

/// The content of a run of chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RunKind {
    /// Each chunk has this content.
    Chunk(MappedChunk),
    /// A single chunk, stored in pieces.
    Split(Pieces),
    /// Unchanged since the parent, according to the bitmap.
    Clean {
        /// Whether the chunks read as zeros now.
        zero: bool,
    },
}

/// A run of chunks that was processed.
#[derive(Debug)]
pub(super) struct SlotRun {
    pub(crate) first: u64,
    pub(crate) count: u64,
    pub(crate) what: RunKind,
    pub(crate) read_bytes: u64,
    pub(crate) new_bytes: u64,
    pub(crate) stored_bytes: u64,
}

impl SlotRun {
    /// A run for which nothing was read or stored.
    pub(crate) fn new(first: u64, count: u64, what: RunKind) -> SlotRun {
        SlotRun { first, count, what, read_bytes: 0, new_bytes: 0, stored_bytes: 0 }
    }
}

/// The result of building the map.
#[derive(Debug)]
pub(super) enum Assembled {
    /// Every chunk arrived once.
    Whole {
        stored: StoredDisk,
        /// The runs taken over from the parent that are not zero now, as (first, count).
        clean: Vec<(u64, u64)>,
    },
    /// This chunk had data in the parent and is reported as clean, but is zero now.
    Vanished(u64),
    /// A chunk is missing or is not in the parent.
    Incomplete(String),
}

/// Builds the chunk map of a disk.
#[derive(Debug)]
pub(super) struct ChunkMapBuilder<'a> {
    geometry: Geometry,
    stored: StoredDisk,
    next: u64,
    early: BTreeMap<u64, SlotRun>,
    parent: Option<&'a ChunkMap>,
    clean: Vec<(u64, u64)>,
    vanished: Option<u64>,
    orphan: Option<u64>,
}

impl<'a> ChunkMapBuilder<'a> {
    /// Starts with an empty map. Clean runs are taken over from `base`.
    pub(crate) fn new(geometry: Geometry, base: Option<Base<'a>>) -> ChunkMapBuilder<'a> {
        ChunkMapBuilder {
            geometry,
            stored: StoredDisk { is_unchanged: base.is_some(), ..StoredDisk::default() },
            next: 0,
            early: BTreeMap::new(),
            parent: base.map(|base| base.map),
            clean: Vec::new(),
            vanished: None,
            orphan: None,
        }
    }

    /// Adds a run. Runs that arrive early are kept until it is their turn.
    pub(crate) fn add(&mut self, piece: SlotRun) {
        self.stored.read_bytes += piece.read_bytes;
        self.stored.new_bytes += piece.new_bytes;
        self.stored.stored_bytes += piece.stored_bytes;
        self.early.insert(piece.first, piece);
        while let Some(piece) = self.early.remove(&self.next) {
            self.append(&piece);
            self.next += piece.count;
        }
    }

    fn append(&mut self, piece: &SlotRun) {
        let map = &mut self.stored.map;
        let zero = match &piece.what {
            RunKind::Chunk(chunk) => {
                self.stored.is_unchanged = false;
                return map.push(*chunk, piece.count);
            }
            RunKind::Split(pieces) => {
                self.stored.is_unchanged = false;
                return map.push_split(pieces.clone());
            }
            RunKind::Clean { zero } => *zero,
        };
        let range = piece.first..piece.first + piece.count;
        let Some(parent) = self.parent.filter(|parent| map.extend_from(parent, range.clone())) else {
            self.orphan.get_or_insert(piece.first);
            return;
        };
        if zero {
            let mut index = piece.first;
            for (chunk, count) in parent.runs_in(range) {
                if chunk != MappedChunk::Zero {
                    self.vanished.get_or_insert(index);
                }
                index += count;
            }
        }
        match self.clean.last_mut() {
            _ if zero => {}
            Some((first, count)) if *first + *count == piece.first => *count += piece.count,
            _ => self.clean.push((piece.first, piece.count)),
        }
    }

    /// Returns the complete map, or what is wrong with it.
    pub(crate) fn finish(mut self) -> Assembled {
        if let Some(index) = self.orphan {
            return Assembled::Incomplete(format!("chunk {index} is clean, but the parent has no such chunk"));
        }
        if self.next != self.geometry.chunks() || !self.early.is_empty() {
            return Assembled::Incomplete(format!("only {} of {} chunks arrived", self.next, self.geometry.chunks()));
        }
        if let Some(index) = self.vanished {
            return Assembled::Vanished(index);
        }
        self.stored.capacity_bytes = self.geometry.capacity_bytes;
        Assembled::Whole { stored: self.stored, clean: self.clean }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::chunk_map::ChunkMap;
    use crate::repo::Id;

    fn blob(n: u8) -> MappedChunk {
        MappedChunk::Blob(Id::hash(&[n]))
    }

    fn map(runs: &[(MappedChunk, u64)]) -> ChunkMap {
        let mut map = ChunkMap::default();
        runs.iter().for_each(|(chunk, count)| map.push(*chunk, *count));
        map
    }

    fn base(map: &ChunkMap) -> Option<Base<'_>> {
        let capacity_bytes = map.len() << 20;
        Some(Base { bitmap: "", map, lost: &[], capacity_bytes, audit: 0.0, read_all: false })
    }

    fn geometry(chunks: u64) -> Geometry {
        Geometry { capacity_bytes: chunks << 20, chunk_bytes: 1 << 20 }
    }

    #[test]
    fn runs_in_any_order_build_the_same_map() {
        let parent = map(&[(MappedChunk::Zero, 3), (blob(1), 1), (blob(2), 4)]);
        let mut assembler = ChunkMapBuilder::new(geometry(8), base(&parent));
        assembler.add(SlotRun::new(6, 2, RunKind::Clean { zero: false }));
        assembler.add(SlotRun::new(5, 1, RunKind::Chunk(blob(9))));
        assembler.add(SlotRun::new(2, 3, RunKind::Clean { zero: false }));
        assembler.add(SlotRun::new(0, 2, RunKind::Chunk(blob(8))));
        let Assembled::Whole { stored, clean } = assembler.finish() else { panic!("it is whole") };
        let wanted =
            map(&[(blob(8), 2), (MappedChunk::Zero, 1), (blob(1), 1), (blob(2), 1), (blob(9), 1), (blob(2), 2)]);
        assert_eq!(stored.map, wanted);
        assert_eq!(clean, [(2, 3), (6, 2)]);
        assert!(!stored.is_unchanged);
    }

    #[test]
    fn gap_or_short_parent_makes_the_map_incomplete() {
        let mut assembler = ChunkMapBuilder::new(geometry(4), None);
        assembler.add(SlotRun::new(0, 1, RunKind::Chunk(MappedChunk::Zero)));
        assembler.add(SlotRun::new(2, 2, RunKind::Chunk(MappedChunk::Zero)));
        assert!(matches!(assembler.finish(), Assembled::Incomplete(_)));
        let parent = map(&[(MappedChunk::Zero, 3)]);
        let mut assembler = ChunkMapBuilder::new(geometry(4), base(&parent));
        assembler.add(SlotRun::new(0, 4, RunKind::Clean { zero: true }));
        assert!(matches!(assembler.finish(), Assembled::Incomplete(_)));
    }

    #[test]
    fn clean_data_that_became_zero_is_reported() {
        let parent = map(&[(MappedChunk::Zero, 2), (blob(1), 2)]);
        let mut assembler = ChunkMapBuilder::new(geometry(4), base(&parent));
        assembler.add(SlotRun::new(0, 3, RunKind::Clean { zero: true }));
        assembler.add(SlotRun::new(3, 1, RunKind::Clean { zero: false }));
        assert!(matches!(assembler.finish(), Assembled::Vanished(2)));
    }

    #[test]
    fn map_without_dirty_chunks_is_unchanged() {
        let parent = map(&[(MappedChunk::Zero, 2), (blob(1), 2)]);
        let mut assembler = ChunkMapBuilder::new(geometry(4), base(&parent));
        assembler.add(SlotRun::new(0, 2, RunKind::Clean { zero: true }));
        assembler.add(SlotRun::new(2, 2, RunKind::Clean { zero: false }));
        let Assembled::Whole { stored, .. } = assembler.finish() else { panic!("it is whole") };
        assert!(stored.is_unchanged && stored.map == parent);
    }
}
