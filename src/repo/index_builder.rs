//! Collects the entries of index files, one file after the other, so that each file is in memory only until it was
//! added.
//!
//! ```text
//! index files, in any order ─► entries, in order of arrival ─► without those of superseded files ─► sorted in place
//! ```
//!
//! Memory: the entries (48 bytes per blob), and about 80 bytes per pack until all files are added. The result does not
//! depend on the order in which the files were added.

use std::collections::{HashMap, HashSet};
use std::iter::repeat_n;

use super::index_file::IndexFile;
use super::index_table::IndexEntry;
use super::{BlobKind, Id};

/// An index file and its part of the tables.
#[derive(Debug, Clone)]
pub(super) struct SourceFile {
    pub(super) id: Id,
    /// The numbers of its packs.
    pub(super) packs: Vec<u32>,
    pub(super) blobs: usize,
}

/// The index files that were added so far.
#[derive(Default)]
pub(super) struct IndexBuilder {
    /// The packs in order of arrival, and their positions in it, which are the pack numbers in entries and files.
    packs: Vec<Id>,
    positions: HashMap<Id, u32>,
    data: Vec<IndexEntry>,
    trees: Vec<IndexEntry>,
    files: Vec<AddedFile>,
    superseded: HashSet<Id>,
}

struct AddedFile {
    source: SourceFile,
    /// The number of its blobs that are trees.
    trees: usize,
}

/// The contents of the files that no other file supersedes, added to a known index.
pub(super) struct AddedFiles {
    /// All packs, the known ones first.
    pub(super) packs: Vec<Id>,
    /// In no particular order.
    pub(super) data: Vec<IndexEntry>,
    pub(super) trees: Vec<IndexEntry>,
    /// Sorted by id.
    pub(super) files: Vec<SourceFile>,
    /// Superseded files among those that were added, sorted.
    pub(super) superseded: Vec<Id>,
}

impl IndexBuilder {
    /// Adds an index file.
    pub(super) fn add(&mut self, id: Id, file: IndexFile) {
        let (data_before, trees_before) = (self.data.len(), self.trees.len());
        let mut packs = Vec::with_capacity(file.packs.len());
        for pack in file.packs {
            let position = self.position_of(pack.id);
            packs.push(position);
            for blob in pack.blobs {
                let table = match blob.kind() {
                    BlobKind::Data => &mut self.data,
                    BlobKind::Tree => &mut self.trees,
                };
                table.push(blob.entry(position));
            }
        }
        self.superseded.extend(file.supersedes);
        let trees = self.trees.len() - trees_before;
        let blobs = self.data.len() - data_before + trees;
        self.files.push(AddedFile { source: SourceFile { id, packs, blobs }, trees });
    }

    fn position_of(&mut self, pack: Id) -> u32 {
        *self.positions.entry(pack).or_insert_with(|| {
            self.packs.push(pack);
            self.packs.len() as u32 - 1
        })
    }

    /// Returns whether a file supersedes others, whether or not they exist.
    pub(super) fn has_replacements(&self) -> bool {
        !self.superseded.is_empty()
    }

    /// Returns the result. Packs that are not in `known` are numbered after the known ones.
    pub(super) fn finish(mut self, known: &[Id]) -> AddedFiles {
        self.positions = HashMap::new();
        let superseded = self.remove_superseded();
        self.files.sort_unstable_by_key(|file| file.source.id);
        let (packs, numbers) = self.number_packs(known);
        let IndexBuilder { mut data, mut trees, files, .. } = self;
        for entry in data.iter_mut().chain(&mut trees) {
            entry.pack = numbers[entry.pack as usize];
        }
        let mut files: Vec<SourceFile> = files.into_iter().map(|file| file.source).collect();
        for pack in files.iter_mut().flat_map(|file| &mut file.packs) {
            *pack = numbers[*pack as usize];
        }
        AddedFiles { packs, data, trees, files, superseded }
    }

    /// Removes the superseded files with all their entries, and returns their ids.
    fn remove_superseded(&mut self) -> Vec<Id> {
        let IndexBuilder { data, trees, files, superseded, .. } = self;
        let is_gone = |file: &AddedFile| superseded.contains(&file.source.id);
        let mut gone: Vec<Id> = files.iter().filter(|file| is_gone(file)).map(|file| file.source.id).collect();
        if gone.is_empty() {
            return gone;
        }
        gone.sort_unstable();
        // The entries are in the order of their files.
        let mut of_gone = files.iter().flat_map(|file| repeat_n(is_gone(file), file.source.blobs - file.trees));
        data.retain(|_| of_gone.next() != Some(true));
        let mut of_gone = files.iter().flat_map(|file| repeat_n(is_gone(file), file.trees));
        trees.retain(|_| of_gone.next() != Some(true));
        files.retain(|file| !is_gone(file));
        gone
    }

    /// Returns the known packs followed by the new ones, sorted, and the final number for each position.
    fn number_packs(&self, known: &[Id]) -> (Vec<Id>, Vec<u32>) {
        let mut numbers_of: HashMap<Id, u32> = known.iter().copied().zip(0..).collect();
        let named =
            self.files.iter().flat_map(|file| &file.source.packs).map(|position| self.packs[*position as usize]);
        let mut new: Vec<Id> = named.filter(|pack| !numbers_of.contains_key(pack)).collect();
        new.sort_unstable();
        new.dedup();
        let packs = [known, &new].concat();
        numbers_of.extend(new.into_iter().zip(known.len() as u32..));
        // Packs of superseded files only have no number, and no entries.
        let numbers = self.packs.iter().map(|pack| numbers_of.get(pack).copied().unwrap_or(u32::MAX)).collect();
        (packs, numbers)
    }
}

/// Returns whether this is the JSON of an index file with valid locations.
#[cfg(any(test, feature = "testing"))]
pub(super) fn is_readable(json: &[u8]) -> bool {
    let id = Id::hash(json);
    let file = serde_json::from_slice::<IndexFile>(json).ok().and_then(|file| file.check(&id).ok());
    file.map(|file| {
        let mut files = IndexBuilder::default();
        files.add(id, file);
        files.finish(&[])
    })
    .is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::Index;
    use proptest::prelude::*;
    use serde_json::json;
    use std::collections::{BTreeMap, BTreeSet};

    /// An index file: its id, the files that it supersedes, and its packs, each with blobs: a number, whether it is a
    /// tree, and the offset.
    type TestFile = (Id, Vec<Id>, Vec<(u8, Vec<TestBlob>)>);
    type TestBlob = (u8, bool, u32);
    /// Blob, pack, offset.
    type FoundPlace = (Id, Id, u32);

    fn id(what: &str, number: u8) -> Id {
        Id::hash(format!("{what} {number}").as_bytes())
    }

    fn load((_, supersedes, packs): &TestFile) -> IndexFile {
        let blob = |(number, is_tree, offset): &TestBlob| {
            let kind = if *is_tree { "tree" } else { "data" };
            json!({"id": id("blob", *number), "type": kind, "offset": offset, "length": 100})
        };
        let pack = |(number, blobs): &(u8, Vec<TestBlob>)| {
            let blobs: Vec<_> = blobs.iter().map(blob).collect();
            json!({"id": id("pack", *number), "blobs": blobs})
        };
        let packs: Vec<_> = packs.iter().map(pack).collect();
        serde_json::from_value(json!({"supersedes": supersedes, "packs": packs})).unwrap()
    }

    fn index_of<'f>(files: impl IntoIterator<Item = &'f TestFile>, known: &Index) -> Index {
        let mut builder = IndexBuilder::default();
        files.into_iter().for_each(|file| builder.add(file.0, load(file)));
        Index::extended(known, builder)
    }

    /// Returns all locations of a kind.
    fn places(index: &Index, is_tree: bool) -> BTreeSet<FoundPlace> {
        let kind = if is_tree { BlobKind::Tree } else { BlobKind::Data };
        index.blobs(kind).map(|(blob, found)| (blob, found.pack, found.offset)).collect()
    }

    /// The complete contents of an index, with packs by name.
    type Answers = ([BTreeSet<FoundPlace>; 2], Vec<Id>, BTreeMap<Id, (Vec<Id>, usize)>, Vec<Id>, bool);

    fn answers(index: &Index) -> Answers {
        let source = |file: &SourceFile| {
            let packs = file.packs.iter().map(|number| index.pack_ids()[*number as usize]);
            (file.id, (packs.collect(), file.blobs))
        };
        let mut superseded = index.superseded().to_vec();
        superseded.sort_unstable();
        (
            [places(index, false), places(index, true)],
            index.pack_ids().to_vec(),
            index.sources().iter().map(source).collect(),
            superseded,
            index.has_replacements(),
        )
    }

    /// Computes the expected answers directly from the files.
    fn model(files: &[TestFile]) -> Answers {
        let superseded: BTreeSet<Id> = files.iter().flat_map(|file| file.1.iter().copied()).collect();
        let (gone, files): (Vec<&TestFile>, Vec<&TestFile>) =
            files.iter().partition(|file| superseded.contains(&file.0));
        let found = |wanted: bool| {
            let packs = files.iter().flat_map(|file| &file.2);
            let blobs = packs.flat_map(|(pack, blobs)| blobs.iter().map(move |blob| (id("pack", *pack), blob)));
            let blobs = blobs.filter(|(_, blob)| blob.1 == wanted);
            blobs.map(|(pack, (number, _, offset))| (id("blob", *number), pack, *offset)).collect()
        };
        let source = |file: &&TestFile| {
            let packs = file.2.iter().map(|(pack, _)| id("pack", *pack)).collect();
            (file.0, (packs, file.2.iter().map(|(_, blobs)| blobs.len()).sum()))
        };
        let packs: BTreeSet<Id> = files.iter().flat_map(|file| &file.2).map(|(pack, _)| id("pack", *pack)).collect();
        let gone: BTreeSet<Id> = gone.iter().map(|file| file.0).collect();
        (
            [found(false), found(true)],
            packs.into_iter().collect(),
            files.iter().map(source).collect(),
            gone.into_iter().collect(),
            !superseded.is_empty(),
        )
    }

    /// Files that share packs and blobs. Some supersede others that may not exist, or come before or after them.
    fn files() -> impl Strategy<Value = Vec<TestFile>> {
        let blobs = proptest::collection::vec((0u8..12, any::<bool>(), 0u32..3), 0..6);
        let packs = proptest::collection::vec((0u8..8, blobs), 0..4);
        let file = (packs, proptest::collection::vec(0u8..30, 0..2));
        proptest::collection::vec(file, 0..8).prop_map(|files| {
            let files = (0u8..).zip(files);
            let supersedes = |numbers: Vec<u8>| numbers.into_iter().map(|number| id("file", number)).collect();
            files.map(|(number, (packs, replaced))| (id("file", number), supersedes(replaced), packs)).collect()
        })
    }

    proptest! {
        #[test]
        fn index_is_independent_of_the_order_of_its_files(files in files()) {
            let index = index_of(&files, &Index::default());
            prop_assert_eq!(answers(&index), model(&files));
            let reversed = index_of(files.iter().rev(), &Index::default());
            prop_assert_eq!(answers(&reversed), model(&files));
            for kind in [BlobKind::Data, BlobKind::Tree] {
                prop_assert_eq!(reversed.table(kind), index.table(kind), "the same numbers of packs");
            }
        }

        #[test]
        fn new_index_files_extend_a_known_index(mut files in files(), known in 0usize..8) {
            files.iter_mut().for_each(|file| file.1.clear());
            let (first, rest) = files.split_at(known.min(files.len()));
            let first = index_of(first, &Index::default());
            let (both, all) = (index_of(rest, &first), model(&files));
            prop_assert_eq!(&both.pack_ids()[..first.pack_ids().len()], first.pack_ids(), "they keep their numbers");
            let mut found = answers(&both);
            found.1.sort_unstable();
            prop_assert_eq!(found, all);
        }
    }
}
