//! The locations of all blobs of one kind, sorted by id, with a directory by the first bits of the ids.
//!
//! ```text
//! first bits of an id:      0    1    2    3   …            one number for about four entries
//! directory                 0    5    7   13   …
//! entries (48 bytes each)   |a a a a a|b b|c c c c c c|…
//! ```
//!
//! Ids are SHA-256 hashes, so their first bits are evenly distributed, and a look-up reads two places in memory instead
//! of twenty.

use super::Id;

/// A location of a blob, 48 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct IndexEntry {
    pub(super) id: Id,
    /// The number of the pack.
    pub(super) pack: u32,
    pub(super) offset: u32,
    pub(super) length: u32,
    /// 0 for an uncompressed blob. restic omits the field then, and never compresses an empty blob.
    pub(super) raw_length: u32,
}

/// A sorted table without duplicates.
#[derive(Debug, Default)]
pub(super) struct IndexTable {
    entries: Vec<IndexEntry>,
    /// The position of the first entry for each value of the first bits, and one more for the end.
    directory: Vec<usize>,
    /// The shift that turns the first 64 bits of an id into an index into the directory.
    shift: u32,
}

impl IndexTable {
    /// Merges the entries of `known` with new ones, which are in no particular order.
    pub(super) fn merged(known: &[IndexEntry], mut new: Vec<IndexEntry>) -> IndexTable {
        new.sort_unstable();
        let mut entries = match known.is_empty() {
            true => new,
            false => {
                let mut entries = Vec::with_capacity(known.len() + new.len());
                let mut rest = known;
                for entry in new {
                    let (before, after) = rest.split_at(rest.partition_point(|known| *known < entry));
                    entries.extend_from_slice(before);
                    entries.push(entry);
                    rest = after;
                }
                entries.extend_from_slice(rest);
                entries
            }
        };
        entries.dedup();
        entries.shrink_to_fit();
        IndexTable::of_sorted(entries)
    }

    fn of_sorted(entries: Vec<IndexEntry>) -> IndexTable {
        let bits = (entries.len() / 4).max(2).ilog2();
        let shift = u64::BITS - bits;
        let mut directory = Vec::with_capacity((1 << bits) + 1);
        for (position, entry) in entries.iter().enumerate() {
            let beginning = (entry.id.first_bits() >> shift) as usize;
            if directory.len() <= beginning {
                directory.resize(beginning + 1, position);
            }
        }
        directory.resize((1 << bits) + 1, entries.len());
        IndexTable { entries, directory, shift }
    }

    pub(super) fn entries(&self) -> &[IndexEntry] {
        &self.entries
    }

    /// Returns the position of a blob's first location.
    pub(super) fn position(&self, id: &Id) -> Option<usize> {
        if self.entries.is_empty() {
            return None;
        }
        let beginning = (id.first_bits() >> self.shift) as usize;
        let (start, end) = (self.directory[beginning], self.directory[beginning + 1]);
        let position = start + self.entries[start..end].partition_point(|entry| entry.id < *id);
        self.entries[position..end].first().filter(|entry| entry.id == *id).map(|_| position)
    }

    /// Returns every location of a blob.
    pub(super) fn places(&self, id: &Id) -> &[IndexEntry] {
        let Some(first) = self.position(id) else { return &[] };
        let count = self.entries[first..].iter().take_while(|entry| entry.id == *id).count();
        &self.entries[first..first + count]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Returns an entry whose id begins with `first`, which selects the place in the directory, and ends with `last`.
    fn entry(first: u8, last: u8, offset: u32) -> IndexEntry {
        let mut id = [7; 32];
        (id[0], id[31]) = (first, last);
        IndexEntry { id: Id::from_bytes(id), pack: 0, offset, length: 100, raw_length: 0 }
    }

    proptest! {
        #[test]
        fn table_finds_exactly_the_merged_entries(
            known in proptest::collection::vec((any::<u8>(), 0u8..3, 0u32..2), 0..200),
            new in proptest::collection::vec((any::<u8>(), 0u8..3, 0u32..2), 0..200),
        ) {
            let entries = |list: &[(u8, u8, u32)]| list.iter().map(|(a, b, c)| entry(*a, *b, *c)).collect::<Vec<_>>();
            let first = IndexTable::merged(&[], entries(&known));
            let table = IndexTable::merged(first.entries(), entries(&new));
            let all = std::collections::BTreeSet::from_iter(entries(&[known, new].concat()));
            prop_assert!(table.entries().iter().eq(all.iter()));
            for (first, last) in (0..=255).flat_map(|first| (0..4).map(move |last| (first, last))) {
                let id = entry(first, last, 0).id;
                let wanted: Vec<IndexEntry> = all.iter().filter(|entry| entry.id == id).copied().collect();
                prop_assert_eq!(table.places(&id), &wanted[..]);
                prop_assert_eq!(table.position(&id).map(|position| table.entries()[position]), wanted.first().copied());
            }
        }
    }

    #[test]
    fn index_entry_takes_48_bytes() {
        assert_eq!(size_of::<IndexEntry>(), 48);
    }

    #[test]
    fn empty_table_has_no_entries() {
        let table = IndexTable::default();
        assert!(table.places(&Id::hash(b"")).is_empty() && table.entries().is_empty());
        assert_eq!(IndexTable::merged(&[], Vec::new()).position(&Id::hash(b"")), None);
    }
}
