//! Decides which packs stay, which are removed, and which are copied before that.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::time::SystemTime;

use super::PruneLimits;
use crate::repo::index_builder::SourceFile;
use crate::repo::index_file::MAX_BLOBS_PER_FILE;
use crate::repo::index_table::IndexEntry;
use crate::repo::place_set::PlaceSet;
use crate::repo::reader::BlobRequest;
use crate::repo::{BlobKind, Error, Id, Index, Result};
use crate::storage::FileInfo;

/// The result of a prune, actual or expected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PruneSummary {
    /// The size of all packs before the prune.
    pub size_bytes: u64,
    /// How much of it snapshots need.
    pub(crate) used_bytes: u64,
    /// Packs that are not in the index.
    pub unnamed_packs: u64,
    /// Packs without needed blobs, including those that are not in the index.
    pub removed_packs: u64,
    pub(crate) removed_bytes: u64,
    /// Packs that are removed after some of their blobs were copied.
    pub repacked_packs: u64,
    pub(crate) repacked_bytes: u64,
    /// The bytes that are copied out of them.
    pub copied_bytes: u64,
    /// Unneeded bytes that stay.
    pub unused_bytes: u64,
    /// Unneeded packs that stay because the storage locks them, and their size.
    pub(crate) locked_packs: u64,
    pub(crate) locked_bytes: u64,
    /// When the last of their locks ends.
    pub(crate) locked_until: Option<SystemTime>,
    /// Index files that are rewritten or removed.
    pub(crate) old_index_files: u64,
    /// Whether the free space limits how much is copied. After this prune there is more, and another one can continue.
    pub(crate) is_short_of_room: bool,
}

impl PruneSummary {
    /// Returns how much smaller the repository gets.
    pub fn freed_bytes(&self) -> u64 {
        (self.removed_bytes + self.repacked_bytes).saturating_sub(self.copied_bytes)
    }

    /// Counts an unneeded pack that stays.
    pub(super) fn leave(&mut self, bytes: u64, until: SystemTime) {
        self.locked_packs += 1;
        self.locked_bytes += bytes;
        self.locked_until = self.locked_until.max(Some(until));
    }

    /// Uncounts a pack that was counted as removed.
    pub(super) fn leave_removed(&mut self, bytes: u64) {
        self.removed_packs -= 1;
        self.removed_bytes -= bytes;
    }

    /// Combines the results of two consecutive prunes.
    pub(crate) fn followed_by(self, later: PruneSummary) -> PruneSummary {
        PruneSummary {
            size_bytes: self.size_bytes,
            unnamed_packs: self.unnamed_packs + later.unnamed_packs,
            removed_packs: self.removed_packs + later.removed_packs,
            removed_bytes: self.removed_bytes + later.removed_bytes,
            repacked_packs: self.repacked_packs + later.repacked_packs,
            repacked_bytes: self.repacked_bytes + later.repacked_bytes,
            copied_bytes: self.copied_bytes + later.copied_bytes,
            old_index_files: self.old_index_files + later.old_index_files,
            ..later
        }
    }

    /// Returns whether there is nothing to do.
    pub fn is_nothing(&self) -> bool {
        self.removed_packs == 0 && self.repacked_packs == 0 && self.old_index_files == 0
    }
}

/// The decision about a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Stay,
    Copy,
    Go,
}

/// An index file with fewer blobs than this is merged with others.
const SMALL_FILE_BLOBS: usize = MAX_BLOBS_PER_FILE / 2;

/// The packs in the index, ordered by number.
#[derive(Debug)]
pub(super) struct Packs {
    packs: Vec<Pack>,
    /// The locations from which needed blobs are read: one for each blob.
    places: PlaceSet,
}

#[derive(Debug, Clone)]
struct Pack {
    /// The size of the file; `None` if it is missing.
    size_bytes: Option<u64>,
    blob_bytes: u64,
    /// The size of all needed blobs, even if they are also in another pack.
    needed_bytes: u64,
    /// The size of the needed blobs that are read from this pack.
    used_bytes: u64,
    has_trees: bool,
    fate: Fate,
}

impl Pack {
    fn holds(&self, entry: &IndexEntry) -> bool {
        self.size_bytes.is_some_and(|size| size >= u64::from(entry.offset) + u64::from(entry.length))
    }
}

/// Packs that are not in the index, with their sizes.
pub(super) type Unnamed = Vec<(Id, u64)>;

pub(super) const KINDS: [BlobKind; 2] = [BlobKind::Data, BlobKind::Tree];

/// A location in the index: kind and position.
pub(super) type TablePlace = (BlobKind, usize);

/// Sorts locations so that neighbours in a pack are adjacent.
pub(super) fn sort_as_they_lie(index: &Index, places: &mut [TablePlace]) {
    places.sort_unstable_by_key(|(kind, position)| {
        let entry = &index.table(*kind)[*position];
        (entry.pack, entry.offset)
    });
}

/// Returns a request to read the blob at this location.
pub(super) fn request(index: &Index, (kind, position): TablePlace) -> BlobRequest {
    let entry = &index.table(kind)[position];
    BlobRequest { id: entry.id, location: index.location(entry) }
}

/// Returns the positions of all locations of the blob at this location.
fn copies(table: &[IndexEntry], position: usize) -> Range<usize> {
    let id = table[position].id;
    let before = table[..position].iter().rev().take_while(|entry| entry.id == id).count();
    let after = table[position..].iter().take_while(|entry| entry.id == id).count();
    position - before..position + after
}

/// Returns for each pack, by number, whether it is listed more than once.
pub(super) fn listed_twice(index: &Index) -> Vec<bool> {
    let mut is_listed = vec![false; index.pack_ids().len()];
    let mut is_twice = is_listed.clone();
    for number in index.sources().iter().flat_map(|file| &file.packs) {
        is_twice[*number as usize] |= std::mem::replace(&mut is_listed[*number as usize], true);
    }
    is_twice
}

impl Packs {
    /// Matches the files with the packs in the index. Files that are not in the index are returned separately.
    pub(super) fn find(index: &Index, files: Vec<FileInfo>, summary: &mut PruneSummary) -> (Packs, Unnamed) {
        let numbers: HashMap<Id, usize> = index.pack_ids().iter().enumerate().map(|(n, id)| (*id, n)).collect();
        let nothing = Pack {
            size_bytes: None,
            blob_bytes: 0,
            needed_bytes: 0,
            used_bytes: 0,
            has_trees: false,
            fate: Fate::Stay,
        };
        let mut packs = vec![nothing; numbers.len()];
        let mut unnamed = Vec::new();
        for file in files {
            // Files whose name is not an id do not belong to the repository.
            let Ok(id) = file.name.parse() else { continue };
            summary.size_bytes += file.size_bytes;
            match numbers.get(&id) {
                Some(number) => packs[*number].size_bytes = Some(file.size_bytes),
                None => {
                    summary.unnamed_packs += 1;
                    summary.removed_packs += 1;
                    summary.removed_bytes += file.size_bytes;
                    unnamed.push((id, file.size_bytes));
                }
            }
        }
        (Packs { packs, places: PlaceSet::new(index) }, unnamed)
    }

    /// Chooses one location for each needed blob, which is marked at the first of its locations. Of two packs that
    /// contain the blob, the one with less waste is chosen, so that after an interrupted prune the copies are
    /// preferred.
    pub(super) fn choose_places(&mut self, index: &Index, kind: BlobKind, marks: &PlaceSet) -> Result<()> {
        let table = index.table(kind);
        let mut is_needed = false;
        for (position, entry) in table.iter().enumerate() {
            let is_first = position == 0 || table[position - 1].id != entry.id;
            is_needed = if is_first { marks.contains(kind, position) } else { is_needed };
            let pack = &mut self.packs[entry.pack as usize];
            pack.blob_bytes += u64::from(entry.length);
            pack.needed_bytes += if is_needed { u64::from(entry.length) } else { 0 };
            pack.has_trees |= kind == BlobKind::Tree;
        }
        for first in marks.positions(kind) {
            let id = table[first].id;
            let places = table[first..].iter().take_while(|entry| entry.id == id).enumerate();
            let whole = places.filter(|(_, entry)| self.packs[entry.pack as usize].holds(entry));
            let best = whole.min_by_key(|(_, entry)| {
                let pack = &self.packs[entry.pack as usize];
                (pack.blob_bytes - pack.needed_bytes, entry.pack)
            });
            let Some((offset, entry)) = best else {
                let pack = index.pack_ids()[table[first].pack as usize];
                return Err(Error::PackLost { id: pack, blob: id, kind });
            };
            self.packs[entry.pack as usize].used_bytes += u64::from(entry.length);
            self.places.insert(kind, first + offset);
        }
        Ok(())
    }

    /// Returns the chosen locations of needed blobs that stay while another existing copy is removed.
    pub(super) fn last_copies(&self, index: &Index) -> Vec<TablePlace> {
        let mut last = Vec::new();
        for kind in KINDS {
            let table = index.table(kind);
            for position in self.places.positions(kind) {
                let goes = |number: usize| {
                    let pack = &self.packs[table[number].pack as usize];
                    number != position && pack.fate != Fate::Stay && pack.holds(&table[number])
                };
                if self.stays(table[position].pack) && copies(table, position).any(goes) {
                    last.push((kind, position));
                }
            }
        }
        last
    }

    /// Chooses another location for a blob than this one, but none that is known to be damaged. Returns `false` if
    /// there is none.
    pub(super) fn choose_other(
        &mut self,
        index: &Index,
        kind: BlobKind,
        position: usize,
        damaged: &HashSet<TablePlace>,
    ) -> bool {
        let table = index.table(kind);
        let is_candidate = |other: &usize| {
            !damaged.contains(&(kind, *other)) && self.packs[table[*other].pack as usize].holds(&table[*other])
        };
        let Some(other) = copies(table, position).find(is_candidate) else { return false };
        self.packs[table[position].pack as usize].used_bytes -= u64::from(table[position].length);
        self.places.remove(kind, position);
        self.packs[table[other].pack as usize].used_bytes += u64::from(table[other].length);
        self.places.insert(kind, other);
        true
    }

    /// Packs without needed blobs are removed. Of the others, those with the largest share of waste are copied, until
    /// the remaining waste is within the limit, or there is no space for more copies. Waste in packs of trees, which
    /// are small and read often, is always removed.
    pub(super) fn decide(&mut self, PruneLimits { max_unused, room_bytes }: PruneLimits, summary: &mut PruneSummary) {
        summary.used_bytes = self.packs.iter().map(|pack| pack.used_bytes).sum();
        let limit_bytes = max_unused.limit_bytes(summary.used_bytes);
        let mut wasteful = Vec::new();
        for (number, pack) in self.packs.iter_mut().enumerate() {
            let unused_bytes = pack.blob_bytes - pack.used_bytes;
            pack.fate = Fate::Stay;
            if pack.used_bytes == 0 {
                pack.fate = Fate::Go;
                summary.removed_packs += u64::from(pack.size_bytes.is_some());
                summary.removed_bytes += pack.size_bytes.unwrap_or(0);
            } else if unused_bytes > 0 {
                summary.unused_bytes += unused_bytes;
                wasteful.push(number);
            }
        }
        let share = |pack: &Pack| (pack.blob_bytes - pack.used_bytes) as f64 / pack.blob_bytes as f64;
        wasteful.sort_by(|a, b| share(&self.packs[*b]).total_cmp(&share(&self.packs[*a])).then(a.cmp(b)));
        for number in wasteful {
            let pack = &mut self.packs[number];
            let is_due = summary.unused_bytes > limit_bytes || (pack.has_trees && limit_bytes < u64::MAX);
            if is_due && room_bytes.is_some_and(|room| summary.copied_bytes + pack.used_bytes > room) {
                summary.is_short_of_room = true;
            } else if is_due {
                pack.fate = Fate::Copy;
                summary.unused_bytes -= pack.blob_bytes - pack.used_bytes;
                summary.repacked_packs += 1;
                summary.repacked_bytes += pack.size_bytes.unwrap_or(0);
                summary.copied_bytes += pack.used_bytes;
            }
        }
    }

    /// Returns whether a pack stays as it is.
    pub(super) fn stays(&self, number: u32) -> bool {
        self.packs[number as usize].fate == Fate::Stay
    }

    /// Returns the existing packs that will be removed, copied or not, with their sizes.
    pub(super) fn files_that_go(&self, index: &Index) -> Vec<(Id, u64)> {
        let gone = index.pack_ids().iter().zip(&self.packs).filter(|(_, pack)| pack.fate != Fate::Stay);
        gone.filter_map(|(id, pack)| pack.size_bytes.map(|bytes| (*id, bytes))).collect()
    }

    /// Returns the packs that contain no needed blobs.
    pub(super) fn unneeded_files<'i>(&self, index: &'i Index) -> HashSet<&'i Id> {
        let unneeded = index.pack_ids().iter().zip(&self.packs).filter(|(_, pack)| pack.fate == Fate::Go);
        unneeded.map(|(id, _)| id).collect()
    }

    /// Returns the locations of the blobs to copy, one for each blob, sorted by location.
    pub(super) fn to_copy(&self, index: &Index) -> Vec<TablePlace> {
        let mut wanted = Vec::new();
        for kind in KINDS {
            let pack = |position: &usize| &self.packs[index.table(kind)[*position].pack as usize];
            let copied = self.places.positions(kind).filter(|position| pack(position).fate == Fate::Copy);
            wanted.extend(copied.map(|position| (kind, position)));
        }
        sort_as_they_lie(index, &mut wanted);
        wanted
    }

    /// Returns the index files that list a pack which does not stay. If there is one, the small files, and those that
    /// list a pack which is listed elsewhere as well, are included, to be merged.
    pub(super) fn old_index_files<'i>(&self, index: &'i Index) -> Vec<&'i SourceFile> {
        let is_stale = |file: &SourceFile| file.packs.iter().any(|pack| !self.stays(*pack));
        if !index.sources().iter().any(is_stale) {
            return Vec::new();
        }
        let is_twice = listed_twice(index);
        let is_shared = |file: &SourceFile| file.packs.iter().any(|pack| is_twice[*pack as usize]);
        let is_small = |file: &SourceFile| file.blobs < SMALL_FILE_BLOBS;
        index.sources().iter().filter(|file| is_small(file) || is_stale(file) || is_shared(file)).collect()
    }
}
