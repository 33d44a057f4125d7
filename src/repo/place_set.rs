//! A set of locations in the tables of an index, with one bit for each. A hash set of ids would take 40 bytes or more.

use super::{BlobKind, Id, Index};

/// Locations of blobs, by kind and position in the table of an [`Index`] that is not based on a copy.
#[derive(Debug)]
pub(crate) struct PlaceSet {
    data: Vec<u64>,
    trees: Vec<u64>,
}

impl PlaceSet {
    /// Returns an empty set for this index.
    pub(crate) fn new(index: &Index) -> PlaceSet {
        let none = |kind| vec![0; index.table(kind).len().div_ceil(u64::BITS as usize)];
        PlaceSet { data: none(BlobKind::Data), trees: none(BlobKind::Tree) }
    }

    /// Adds a blob, at the first of its locations. Returns whether it was new, or `None` if the blob is not in the
    /// tables.
    pub(crate) fn insert_blob(&mut self, index: &Index, kind: BlobKind, id: &Id) -> Option<bool> {
        index.position(kind, id).map(|position| self.insert(kind, position))
    }

    /// Returns whether a blob was added with [`PlaceSet::insert_blob`].
    pub(crate) fn contains_blob(&self, index: &Index, kind: BlobKind, id: &Id) -> bool {
        index.position(kind, id).is_some_and(|position| self.contains(kind, position))
    }

    /// Adds a location and returns whether it was new.
    pub(super) fn insert(&mut self, kind: BlobKind, position: usize) -> bool {
        let is_new = !self.contains(kind, position);
        let (word, bit) = split(position);
        self.words_mut(kind)[word] |= bit;
        is_new
    }

    pub(super) fn remove(&mut self, kind: BlobKind, position: usize) {
        let (word, bit) = split(position);
        self.words_mut(kind)[word] &= !bit;
    }

    pub(super) fn contains(&self, kind: BlobKind, position: usize) -> bool {
        let (word, bit) = split(position);
        self.words(kind)[word] & bit != 0
    }

    /// Returns the positions of a kind in ascending order.
    pub(super) fn positions(&self, kind: BlobKind) -> impl Iterator<Item = usize> + '_ {
        self.words(kind).iter().enumerate().flat_map(|(number, word)| {
            let mut rest = *word;
            std::iter::from_fn(move || {
                let bit = (rest != 0).then(|| rest.trailing_zeros() as usize)?;
                rest &= rest - 1;
                Some(number * u64::BITS as usize + bit)
            })
        })
    }

    fn words(&self, kind: BlobKind) -> &[u64] {
        match kind {
            BlobKind::Data => &self.data,
            BlobKind::Tree => &self.trees,
        }
    }

    fn words_mut(&mut self, kind: BlobKind) -> &mut [u64] {
        match kind {
            BlobKind::Data => &mut self.data,
            BlobKind::Tree => &mut self.trees,
        }
    }
}

/// Returns the index of the word that contains a position, and the mask of its bit.
fn split(position: usize) -> (usize, u64) {
    let bits = u64::BITS as usize;
    (position / bits, 1 << (position % bits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn place_set_matches_a_plain_set(
            changes in proptest::collection::vec((any::<bool>(), any::<bool>(), 0usize..200), 0..300),
        ) {
            let mut set = PlaceSet { data: vec![0; 4], trees: vec![0; 4] };
            let mut model: BTreeSet<(bool, usize)> = BTreeSet::new();
            let kind = |is_tree| if is_tree { BlobKind::Tree } else { BlobKind::Data };
            for (is_added, is_tree, position) in changes {
                if is_added {
                    prop_assert_eq!(set.insert(kind(is_tree), position), model.insert((is_tree, position)));
                } else {
                    set.remove(kind(is_tree), position);
                    model.remove(&(is_tree, position));
                }
                prop_assert_eq!(set.contains(kind(is_tree), position), is_added);
            }
            for is_tree in [false, true] {
                let wanted = model.iter().filter(|(of_tree, _)| *of_tree == is_tree).map(|(_, position)| *position);
                prop_assert!(set.positions(kind(is_tree)).eq(wanted));
            }
        }
    }
}
