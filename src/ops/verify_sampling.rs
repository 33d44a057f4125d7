//! Verifies a part of all chunks at a time, so that several runs verify all of them.
//!
//! Chunk ids are hashes, so they are evenly distributed on a circle. A run verifies the chunks in one sector of the
//! circle, and the next run continues where that sector ends. After twenty sectors of 5 %, every chunk that existed all
//! the time was read, and any damage older than that was found. A new chunk in a sector that was already verified waits
//! for the next round, no longer than any other chunk. The size of the sectors may change from run to run.
//!
//! [`SampleCursor`] stores the start of the next sector on this host, separately for each selection of points: a shared
//! cursor would leave gaps in the rounds of the selections.

use super::Monitor;
use crate::record::Time;
use crate::repo::{Id, RepoCacheDir, Repository};
use serde::{Deserialize, Serialize};

/// The file in a repository's [`RepoCacheDir`].
const FILE: &str = "rounds.json";

/// The maximum number of stored selections; those verified last are kept.
const MOST_SELECTIONS: usize = 100;

/// The number of positions on the circle: the first eight bytes of an id.
const CIRCLE: u128 = 1 << 64;

/// More than the rounding error of a share, so that twenty times 5 % always cover the whole circle.
const ROUNDING: u128 = 1 << 12;

/// A sector of the circle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sector {
    start: u64,
    length: u128,
}

impl Sector {
    /// The sector from `start` with this share of the circle (0 to 1), rounded up slightly.
    pub(crate) fn new(start: u64, share: f64) -> Sector {
        let length = (share.clamp(0.0, 1.0) * CIRCLE as f64) as u128;
        Sector { start, length: (length + ROUNDING).min(CIRCLE) }
    }

    /// Whether a chunk is in the sector.
    pub(crate) fn contains(self, id: &Id) -> bool {
        u128::from(place(id).wrapping_sub(self.start)) < self.length
    }

    /// The start of the next sector.
    pub(crate) fn end(self) -> u64 {
        // The whole circle ends at its start.
        self.start.wrapping_add(self.length as u64)
    }
}

fn place(id: &Id) -> u64 {
    id.as_bytes().iter().take(8).fold(0, |place, byte| place << 8 | u64::from(*byte))
}

/// The progress of one run over a selection of points.
#[derive(Debug)]
pub(crate) struct SampleCursor<'a> {
    repo: &'a Repository,
    selection: String,
    sector: Sector,
}

/// The stored position of one selection.
#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    selection: String,
    /// The start of the next sector, as the first digits of an id.
    next: String,
    /// When the last sector was verified.
    at: Time,
}

impl<'a> SampleCursor<'a> {
    /// Continues where the last run over these points ended, or at a random position if there was none.
    pub(crate) fn go_on(repo: &'a Repository, selection: &str, share: f64) -> SampleCursor<'a> {
        let known = repo.host_folder().map(remembered).unwrap_or_default();
        let known = known.into_iter().find(|known| known.selection == selection);
        let next = known.and_then(|known| u64::from_str_radix(&known.next, 16).ok());
        let start = next.unwrap_or_else(rand::random);
        SampleCursor { repo, selection: selection.to_owned(), sector: Sector::new(start, share) }
    }

    /// The sector to verify now.
    pub(crate) fn sector(&self) -> Sector {
        self.sector
    }

    /// Records that the whole sector was read, whether or not damage was found. The next run continues after it.
    pub(crate) fn done(self, monitor: &dyn Monitor) {
        let Some(host_folder) = self.repo.host_folder() else { return };
        let next = format!("{:016x}", self.sector.end());
        let now = Remembered { selection: self.selection, next, at: chrono::Local::now().fixed_offset() };
        let kept = host_folder.change(FILE, |before| {
            let mut all = parse(host_folder, &before);
            all.retain(|known| known.selection != now.selection);
            all.insert(0, now);
            all.truncate(MOST_SELECTIONS);
            Ok(serde_json::to_vec(&all)?)
        });
        if let Err(error) = kept {
            let folder = host_folder.path().display();
            monitor.warn(&format!(
                "the next sample starts at a random place, because {folder} cannot be written: {error}"
            ));
        }
    }
}

/// The stored positions, the latest first. An unreadable file counts as empty.
fn remembered(host_folder: &RepoCacheDir) -> Vec<Remembered> {
    match host_folder.read(FILE) {
        Ok(json) => parse(host_folder, &json.unwrap_or_default()),
        Err(error) => {
            tracing::warn!(folder = %host_folder.path().display(), %error, "the samples start over");
            Vec::new()
        }
    }
}

fn parse(host_folder: &RepoCacheDir, json: &[u8]) -> Vec<Remembered> {
    if json.is_empty() {
        return Vec::new();
    }
    serde_json::from_slice(json).unwrap_or_else(|error| {
        tracing::warn!(folder = %host_folder.path().display(), %error, "the samples start over");
        Vec::new()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id_at(place: u64) -> Id {
        let mut bytes = [0x5a; 32];
        bytes[..8].copy_from_slice(&place.to_be_bytes());
        Id::from_bytes(bytes)
    }

    /// The number of sectors until the place is verified.
    fn runs(start: u64, share: f64, place: u64) -> usize {
        let mut sector = Sector::new(start, share);
        let mut runs = 1;
        while !sector.contains(&id_at(place)) {
            sector = Sector::new(sector.end(), share);
            runs += 1;
        }
        runs
    }

    #[test]
    fn full_round_of_sectors_covers_every_chunk() {
        for (percent, most) in [(5.0, 20), (20.0, 5), (7.0, 15), (33.4, 3), (50.0, 2), (100.0, 1), (0.1, 1000)] {
            for start in [0, 1, u64::MAX, 0x1234_5678_9abc_def0] {
                // The position furthest from the start.
                assert!(runs(start, percent / 100.0, start.wrapping_sub(1)) <= most, "{percent} from {start}");
            }
        }
    }

    #[test]
    fn full_sample_covers_the_circle_and_ends_at_its_start() {
        let all = Sector::new(77, 1.0);
        assert_eq!(all.end(), 77);
        assert!([0, 76, 77, u64::MAX].iter().all(|place| all.contains(&id_at(*place))));
    }

    proptest! {
        #[test]
        fn any_chunk_is_verified_within_a_round(start: u64, percent in 1u32..=100, place: u64) {
            let most = 100usize.div_ceil(percent as usize);
            prop_assert!(runs(start, f64::from(percent) / 100.0, place) <= most);
        }

        #[test]
        fn sectors_of_varying_width_leave_no_gap(start: u64, shares in proptest::collection::vec(0.001f64..1.0, 1..40),
            place: u64) {
            let mut covered = 0.0;
            let mut next = start;
            let mut is_found = false;
            for share in shares {
                let sector = Sector::new(next, share);
                is_found |= sector.contains(&id_at(place));
                next = sector.end();
                covered += share;
            }
            prop_assert!(is_found || covered < 1.0);
        }

        #[test]
        fn sector_width_matches_its_share(start: u64, share in 0.0f64..=1.0, place: u64) {
            let offset = place.wrapping_sub(start) as f64 / CIRCLE as f64;
            let is_in = Sector::new(start, share).contains(&id_at(place));
            prop_assert!((is_in == (offset < share)) || (offset - share).abs() < 1e-12);
        }
    }
}
