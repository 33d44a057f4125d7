//! A part of all chunks, so that several runs verify them all.
//!
//! Chunks lie on a circle by their ids, which are hashes and so spread evenly. A run verifies those of one sector of
//! it, and the next run goes on where that ends: after twenty sectors of 5 % every chunk was read that was there all
//! the time, and damage that is older than that was found. A new chunk that falls into a sector that is past waits for
//! the next round, at most as long as any other. How wide the sectors are may change from run to run.
//!
//! Where the next one begins, [`SampleCursor`] remembers on this host, apart for each selection of points that is
//! verified: other selections would tear holes into each other's rounds.

use super::Monitor;
use crate::record::Time;
use crate::repo::{Id, RepoCacheDir, Repository};
use serde::{Deserialize, Serialize};

/// The file in a repository's [`RepoCacheDir`].
const FILE: &str = "rounds.json";

/// The selections that are remembered; of more, the ones that were verified last.
const MOST_SELECTIONS: usize = 100;

/// How many places there are on the circle: the first eight bytes of an id say which.
const CIRCLE: u128 = 1 << 64;

/// More than a share loses by being rounded, so that twenty times 5 % are never less than all.
const ROUNDING: u128 = 1 << 12;

/// A part of the circle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sector {
    start: u64,
    length: u128,
}

impl Sector {
    /// From `start` on, this share of the circle (0 to 1), or a hair more.
    pub(crate) fn new(start: u64, share: f64) -> Sector {
        let length = (share.clamp(0.0, 1.0) * CIRCLE as f64) as u128;
        Sector { start, length: (length + ROUNDING).min(CIRCLE) }
    }

    /// Whether a chunk is in it.
    pub(crate) fn contains(self, id: &Id) -> bool {
        u128::from(place(id).wrapping_sub(self.start)) < self.length
    }

    /// Where the next one begins.
    pub(crate) fn end(self) -> u64 {
        // All of the circle ends where it began.
        self.start.wrapping_add(self.length as u64)
    }
}

fn place(id: &Id) -> u64 {
    id.as_bytes().iter().take(8).fold(0, |place, byte| place << 8 | u64::from(*byte))
}

/// One run of a round over a selection of points.
#[derive(Debug)]
pub(crate) struct SampleCursor<'a> {
    repo: &'a Repository,
    selection: String,
    sector: Sector,
}

/// What is remembered of one selection.
#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    selection: String,
    /// Where the next sector begins, as an id does.
    next: String,
    /// When the last one was verified.
    at: Time,
}

impl<'a> SampleCursor<'a> {
    /// Goes on where the last run over these points ended; at random if nothing is known of one.
    pub(crate) fn go_on(repo: &'a Repository, selection: &str, share: f64) -> SampleCursor<'a> {
        let known = repo.host_folder().map(remembered).unwrap_or_default();
        let known = known.into_iter().find(|known| known.selection == selection);
        let next = known.and_then(|known| u64::from_str_radix(&known.next, 16).ok());
        let start = next.unwrap_or_else(rand::random);
        SampleCursor { repo, selection: selection.to_owned(), sector: Sector::new(start, share) }
    }

    /// What is to be verified now.
    pub(crate) fn sector(&self) -> Sector {
        self.sector
    }

    /// All of it was read, whatever was found: the next run goes on behind it.
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

/// What is remembered, the last first. A file that cannot be read is as good as none.
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

    /// How many sectors are verified until all of the circle is.
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
    fn twenty_times_five_percent_is_all() {
        for (percent, most) in [(5.0, 20), (20.0, 5), (7.0, 15), (33.4, 3), (50.0, 2), (100.0, 1), (0.1, 1000)] {
            for start in [0, 1, u64::MAX, 0x1234_5678_9abc_def0] {
                // The last place of the circle as it is seen from the start.
                assert!(runs(start, percent / 100.0, start.wrapping_sub(1)) <= most, "{percent} from {start}");
            }
        }
    }

    #[test]
    fn all_is_all_and_ends_where_it_began() {
        let all = Sector::new(77, 1.0);
        assert_eq!(all.end(), 77);
        assert!([0, 76, 77, u64::MAX].iter().all(|place| all.contains(&id_at(*place))));
    }

    proptest! {
        #[test]
        fn any_place_is_verified_in_time(start: u64, percent in 1u32..=100, place: u64) {
            let most = 100usize.div_ceil(percent as usize);
            prop_assert!(runs(start, f64::from(percent) / 100.0, place) <= most);
        }

        #[test]
        fn sectors_of_any_widths_leave_no_gap(start: u64, shares in proptest::collection::vec(0.001f64..1.0, 1..40),
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
        fn a_sector_is_as_wide_as_its_share(start: u64, share in 0.0f64..=1.0, place: u64) {
            let offset = place.wrapping_sub(start) as f64 / CIRCLE as f64;
            let is_in = Sector::new(start, share).contains(&id_at(place));
            prop_assert!((is_in == (offset < share)) || (offset - share).abs() < 1e-12);
        }
    }
}
