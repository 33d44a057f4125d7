//! A long list of optional ids, parts of which several lists can share.
//!
//! ```text
//!  parent:  | 256 entries | 256 times A | 256 entries | 90 entries |
//!  child:   |      ↑      |      ↑      | others      |     ↑      |
//! ```
//!
//! Memory: 32 bytes per entry and 40 bytes per block of 256 entries. A block of equal entries, or one shared with
//! another list, only takes the 40 bytes.

use crate::repo::Id;
use std::iter::{from_fn, repeat_n};
use std::ops::Range;
use std::sync::Arc;

/// The number of entries in a block. Changing one entry copies its block; smaller blocks make the list of blocks
/// longer.
const BLOCK: u64 = 256;

/// Represents an empty entry. It is not the SHA-256 of any known data.
const NOTHING: Id = Id::from_bytes([0; 32]);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SharedList {
    /// Blocks of [`BLOCK`] entries; the last one may be shorter.
    blocks: Vec<Block>,
    length: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Block {
    /// Equal entries.
    Same(Id),
    /// At least two different ones.
    Each(Arc<Vec<Id>>),
}

impl SharedList {
    /// Whether a list can contain this id.
    pub(crate) fn can_have(id: &Id) -> bool {
        *id != NOTHING
    }

    pub(crate) fn len(&self) -> u64 {
        self.length
    }

    /// Appends equal entries.
    pub(crate) fn push(&mut self, entry: Option<Id>, mut count: u64) {
        let id = entry.unwrap_or(NOTHING);
        while count > 0 {
            let before = self.length % BLOCK;
            let here = count.min(BLOCK - before);
            match self.blocks.last_mut().filter(|_| before > 0) {
                Some(Block::Same(known)) if *known == id => {}
                Some(last) => {
                    let added = repeat_n(id, here as usize);
                    match last {
                        Block::Each(ids) => Arc::make_mut(ids).extend(added),
                        Block::Same(known) => {
                            let mut ids = Vec::with_capacity(BLOCK as usize);
                            ids.resize(before as usize, *known);
                            ids.extend(added);
                            *last = Block::Each(Arc::new(ids));
                        }
                    }
                }
                None => self.blocks.push(Block::Same(id)),
            }
            self.length += here;
            count -= here;
        }
    }

    /// Appends a part of another list. Whole blocks are shared, not copied.
    pub(crate) fn extend_from(&mut self, other: &SharedList, range: Range<u64>) {
        let (mut next, end) = (range.start, range.end.min(other.length));
        while next < end {
            let here = (BLOCK - next % BLOCK).min(end - next);
            let is_whole = next.is_multiple_of(BLOCK) && here == BLOCK.min(other.length - next);
            if is_whole && self.length.is_multiple_of(BLOCK) {
                self.blocks.push(other.blocks[(next / BLOCK) as usize].clone());
                self.length += here;
            } else {
                other.runs_in(next..next + here).for_each(|(entry, count)| self.push(entry, count));
            }
            next += here;
        }
    }

    /// The entries of a range, each with its number of consecutive repetitions. A run of equal entries may be split.
    pub(crate) fn runs_in(&self, range: Range<u64>) -> impl Iterator<Item = (Option<Id>, u64)> + '_ {
        let (mut next, end) = (range.start, range.end.min(self.length));
        from_fn(move || {
            if next >= end {
                return None;
            }
            let within = next % BLOCK;
            let (id, count) = match &self.blocks[(next / BLOCK) as usize] {
                Block::Same(id) => (*id, (BLOCK - within).min(end - next)),
                Block::Each(ids) => (ids[within as usize], 1),
            };
            next += count;
            Some(((id != NOTHING).then_some(id), count))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(number: u8) -> Option<Id> {
        (number > 0).then(|| Id::hash(&[number]))
    }

    fn all(list: &SharedList, range: Range<u64>) -> Vec<Option<Id>> {
        list.runs_in(range).flat_map(|(entry, count)| repeat_n(entry, count as usize)).collect()
    }

    fn list(runs: &[(u8, u64)]) -> (SharedList, Vec<Option<Id>>) {
        let (mut list, mut model) = (SharedList::default(), Vec::new());
        for (number, count) in runs {
            list.push(entry(*number), *count);
            model.extend(repeat_n(entry(*number), *count as usize));
        }
        (list, model)
    }

    proptest! {
        #[test]
        fn shared_list_matches_a_plain_list(
            runs in proptest::collection::vec((0u8..3, 0u64..400), 0..8),
            changes in proptest::collection::vec((0u64..700, 0u8..4, 0u64..300), 0..5),
        ) {
            let (parent, model) = list(&runs);
            prop_assert_eq!(all(&parent, 0..u64::MAX), model.clone());
            prop_assert_eq!(parent.len(), model.len() as u64);
            let (mut child, mut wanted) = (SharedList::default(), Vec::new());
            for (kept, number, count) in changes {
                let start = (wanted.len()).min(model.len());
                let end = (start + kept as usize).min(model.len());
                child.extend_from(&parent, start as u64..start as u64 + kept);
                wanted.extend_from_slice(&model[start..end]);
                child.push(entry(number), count);
                wanted.extend(repeat_n(entry(number), count as usize));
            }
            prop_assert_eq!(all(&child, 0..u64::MAX), wanted.clone());
            let middle = wanted.len() as u64 / 3;
            prop_assert_eq!(&all(&child, middle..2 * middle)[..], &wanted[middle as usize..2 * middle as usize]);
            // Equal lists have equal representations.
            let mut plain = SharedList::default();
            wanted.iter().for_each(|entry| plain.push(*entry, 1));
            prop_assert_eq!(child, plain);
            prop_assert_eq!(all(&parent, 0..u64::MAX), model, "the parent is as it was");
        }
    }

    #[test]
    fn unchanged_blocks_are_shared_with_the_parent() {
        let mut parent = SharedList::default();
        (0..3000u64).for_each(|number| parent.push(Some(Id::hash(&number.to_le_bytes())), 1));
        let mut child = SharedList::default();
        child.extend_from(&parent, 0..700);
        child.push(None, 1);
        child.extend_from(&parent, 701..3000);
        let is_shared = |(one, other): (&Block, &Block)| match (one, other) {
            (Block::Each(one), Block::Each(other)) => Arc::ptr_eq(one, other),
            _ => false,
        };
        assert_eq!(parent.blocks.iter().zip(&child.blocks).filter(|pair| is_shared(*pair)).count(), 11);
        assert_eq!((parent.blocks.len(), child.blocks.len(), child.len()), (12, 12, 3000));
    }

    #[test]
    fn zeros_take_one_compact_entry_per_block() {
        let mut list = SharedList::default();
        list.push(None, 20 << 20);
        assert_eq!(list.blocks.len(), (20 << 20) / BLOCK as usize);
        assert_eq!(list.runs_in(0..u64::MAX).map(|(_, count)| count).sum::<u64>(), 20 << 20);
        assert!(!SharedList::can_have(&NOTHING) && SharedList::can_have(&Id::hash(b"")));
    }
}
