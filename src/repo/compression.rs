//! The compression of blobs.
//!
//! | setting | zstd's level | speed relative to level 1 | size relative to level 1 |
//! | --- | --- | --- | --- | --- |
//! | `off` | - | as fast as hashing | 2.70 |
//! | `fastest` | -3 | 1.4 | 1.27 |
//! | `auto` | below 1 ([`Effort::Fast`]) to 9, by measurement | 1.2 to 0.11 | 1.06 to 0.85 |
//! | `better` | 7 | 0.16 | 0.86 |
//! | `max` | 12 | 0.08 | 0.85 |
//!
//! Measured with the files of a Debian system in chunks of 1 MiB. Level 15 takes eight times as long as 12 and
//! saves 0.3 %.

use super::{Error, Result};
use std::io::Cursor;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use zstd::zstd_safe::{CParameter, ParamSwitch};

/// The level for trees. Any level halves their hexadecimal digits, and no level compresses the rest.
pub(super) const TREE_LEVEL: i32 = 1;

/// How much effort zstd makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effort {
    /// Level 1, but as fast as level -1. Level -1 is fast because it stores bytes that do not repeat uncompressed,
    /// which costs most with databases. This one compresses them, but searches for fewer matches.
    Fast,
    /// A zstd level.
    Level(i32),
}

/// The efforts that `auto` chooses from. Below the first, level -1 is no faster and takes 6 % more space; above the
/// last, half the speed saves less than 1 %.
const AUTO_EFFORTS: [Effort; 6] =
    [Effort::Fast, Effort::Level(1), Effort::Level(3), Effort::Level(5), Effort::Level(7), Effort::Level(9)];

/// The zstd parameters of [`Effort::Fast`]: search for matches at fewer positions and within this window.
const FAST_TARGET_LENGTH: u32 = 4;
const FAST_WINDOW_LOG: u32 = 18;

/// From this level on, a sample is compressed first. At lower levels zstd itself skips incompressible data fast enough.
const PROBED_FROM_LEVEL: i32 = 5;

/// The sample: this number of pieces from all over the blob, each the size of a typical file system block.
const SAMPLE_PIECES: usize = 8;
const SAMPLE_PIECE_BYTES: usize = 4096;

/// `auto` reconsiders the level after this number of packs. Waiting times of packs that are stored concurrently are
/// added up, so that one slow pack alone changes nothing.
const WINDOW_PACKS: u32 = 4;

/// Shares of the time that was spent waiting for the storage. Above the first the storage is the bottleneck, below the
/// second it is not, and in between the level stays.
const WAITING_MUCH: f64 = 0.25;
const WAITING_LITTLE: f64 = 0.05;

/// How much new data is compressed, in restic's terms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Compression {
    /// No compression.
    Off,
    /// The fastest sensible level.
    Fastest,
    /// Chosen by the bottleneck: storage or processor.
    #[default]
    Auto,
    /// Better compression, slower.
    Better,
    /// The best sensible compression.
    Max,
}

/// Chooses the level for the next blob.
#[derive(Debug)]
pub(super) struct LevelChooser {
    compression: Compression,
    /// The index into [`AUTO_EFFORTS`].
    step: AtomicUsize,
    window: Mutex<ChoiceWindow>,
}

/// The time spent since the last choice.
#[derive(Debug, Default)]
struct ChoiceWindow {
    packs: u32,
    work: Duration,
    waiting: Duration,
}

impl LevelChooser {
    pub(super) fn new(compression: Compression) -> LevelChooser {
        LevelChooser { compression, step: AtomicUsize::new(0), window: Mutex::default() }
    }

    /// Returns the effort for new data; `None` stores it uncompressed.
    pub(super) fn effort(&self) -> Option<Effort> {
        match self.compression {
            Compression::Off => None,
            Compression::Fastest => Some(Effort::Level(-3)),
            Compression::Auto => AUTO_EFFORTS.get(self.step.load(Ordering::Relaxed)).copied(),
            Compression::Better => Some(Effort::Level(7)),
            Compression::Max => Some(Effort::Level(12)),
        }
    }

    /// Returns the effort for a blob that is copied from another repository; `None` keeps it as it is. Compressed data
    /// is recompressed only at a level that is certain to save space.
    pub(super) fn effort_for_copy(&self, is_compressed: bool) -> Option<Effort> {
        let gains = |effort: &Effort| matches!(effort, Effort::Level(level) if *level > 1);
        self.effort().filter(|effort| !is_compressed || gains(effort))
    }

    /// Counts the time that compressing and sealing a blob took.
    pub(super) fn add_work(&self, time: Duration) {
        if self.compression == Compression::Auto {
            self.window.lock().unwrap_or_else(PoisonError::into_inner).work += time;
        }
    }

    /// Counts the time that a pack waited to be stored, and reconsiders the level when enough packs were counted.
    pub(super) fn add_pack(&self, waiting: Duration) {
        if self.compression != Compression::Auto {
            return;
        }
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        window.packs += 1;
        window.waiting += waiting;
        if window.packs < WINDOW_PACKS {
            return;
        }
        let ChoiceWindow { work, waiting, .. } = std::mem::take(&mut *window);
        let share = waiting.as_secs_f64() / (waiting + work).as_secs_f64().max(f64::MIN_POSITIVE);
        let before = self.step.load(Ordering::Relaxed);
        let step = match share {
            share if share > WAITING_MUCH => (before + 1).min(AUTO_EFFORTS.len() - 1),
            share if share < WAITING_LITTLE => before.saturating_sub(1),
            _ => before,
        };
        if step != before {
            self.step.store(step, Ordering::Relaxed);
            let effort = AUTO_EFFORTS[step];
            tracing::debug!("compression: {effort:?}, {:.0} % of the time was waiting", share * 100.0);
        }
    }
}

/// Compresses one blob after another.
pub(super) struct BlobCompressor {
    zstd: zstd::bulk::Compressor<'static>,
    sample: Vec<u8>,
    probe: Vec<u8>,
}

impl BlobCompressor {
    pub(super) fn new() -> Result<BlobCompressor> {
        let zstd = zstd::bulk::Compressor::new(TREE_LEVEL).map_err(Error::Compress)?;
        Ok(BlobCompressor { zstd, sample: Vec::new(), probe: Vec::new() })
    }

    /// Appends the compressed blob to `target` if it is smaller than `limit` bytes. Otherwise `target` is unchanged.
    pub(super) fn append(
        &mut self,
        plaintext: &[u8],
        effort: Effort,
        target: &mut Vec<u8>,
        limit: usize,
    ) -> Result<bool> {
        let is_probed = matches!(effort, Effort::Level(level) if level >= PROBED_FROM_LEVEL);
        let effort = match is_probed && !self.is_promising(plaintext)? {
            // This level still finds data that repeats across the blob, and passes over the rest quickly.
            true => Effort::Level(1),
            false => effort,
        };
        let start = target.len();
        target.reserve(zstd::zstd_safe::compress_bound(plaintext.len()));
        let length = {
            let mut end = Cursor::new(&mut *target);
            end.set_position(start as u64);
            self.set_effort(effort)?;
            self.zstd.compress_to_buffer(plaintext, &mut end).map_err(Error::Compress)?
        };
        let is_smaller = length < limit;
        if !is_smaller {
            target.truncate(start);
        }
        Ok(is_smaller)
    }

    fn set_effort(&mut self, effort: Effort) -> Result<()> {
        // 0 selects the default of the level.
        let (level, target_length, window_log, literals) = match effort {
            Effort::Fast => (1, FAST_TARGET_LENGTH, FAST_WINDOW_LOG, ParamSwitch::Enable),
            Effort::Level(level) => (level, 0, 0, ParamSwitch::Auto),
        };
        let parameters = [
            CParameter::CompressionLevel(level),
            CParameter::TargetLength(target_length),
            CParameter::WindowLog(window_log),
            CParameter::LiteralCompressionMode(literals),
        ];
        parameters.into_iter().try_for_each(|parameter| self.zstd.set_parameter(parameter)).map_err(Error::Compress)
    }

    /// Returns whether a sample of the blob is compressible.
    fn is_promising(&mut self, plaintext: &[u8]) -> Result<bool> {
        if plaintext.len() < 2 * SAMPLE_PIECES * SAMPLE_PIECE_BYTES {
            return Ok(true);
        }
        self.sample.clear();
        let pieces = plaintext.chunks(plaintext.len() / SAMPLE_PIECES).take(SAMPLE_PIECES);
        pieces.for_each(|piece| self.sample.extend_from_slice(&piece[..SAMPLE_PIECE_BYTES]));
        self.probe.clear();
        self.probe.reserve(zstd::zstd_safe::compress_bound(self.sample.len()));
        self.set_effort(Effort::Level(1))?;
        let length = self.zstd.compress_to_buffer(&self.sample, &mut self.probe).map_err(Error::Compress)?;
        Ok(length < self.sample.len() - self.sample.len() / 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngCore, SeedableRng, rngs::StdRng};

    const MS: Duration = Duration::from_millis(1);

    fn window(chooser: &LevelChooser, work: Duration, waiting: Duration) -> Option<Effort> {
        chooser.add_work(work);
        (0..WINDOW_PACKS).for_each(|_| chooser.add_pack(waiting / WINDOW_PACKS));
        chooser.effort()
    }

    #[test]
    fn auto_compression_adapts_to_the_bottleneck() {
        let chooser = LevelChooser::new(Compression::Auto);
        let levels = |levels: [i32; 4]| levels.map(|level| Some(Effort::Level(level)));
        assert_eq!(window(&chooser, 900 * MS, 10 * MS), Some(Effort::Fast));
        let up: Vec<_> = (0..7).map(|_| window(&chooser, 400 * MS, 600 * MS)).collect();
        assert_eq!(up, [&levels([1, 3, 5, 7])[..], &levels([9; 4])[..3]].concat());
        // Neither is the bottleneck.
        assert_eq!(window(&chooser, 900 * MS, 100 * MS), Some(Effort::Level(9)));
        let down: Vec<_> = (0..6).map(|_| window(&chooser, 400 * MS, Duration::ZERO)).collect();
        assert_eq!(down, [&levels([7, 5, 3, 1])[..], &[Some(Effort::Fast); 2][..]].concat());
        assert_eq!(window(&chooser, Duration::ZERO, Duration::ZERO), Some(Effort::Fast));
        for fixed in [Compression::Off, Compression::Fastest, Compression::Better, Compression::Max] {
            let chooser = LevelChooser::new(fixed);
            let effort = chooser.effort();
            assert_eq!(window(&chooser, MS, 1000 * MS), effort);
        }
    }

    #[test]
    fn copied_blobs_are_recompressed_only_when_worthwhile() {
        let levels = |compression| {
            let chooser = LevelChooser::new(compression);
            (chooser.effort_for_copy(false), chooser.effort_for_copy(true))
        };
        assert_eq!(levels(Compression::Off), (None, None));
        assert_eq!(levels(Compression::Fastest), (Some(Effort::Level(-3)), None));
        assert_eq!(levels(Compression::Auto), (Some(Effort::Fast), None));
        assert_eq!(levels(Compression::Max), (Some(Effort::Level(12)), Some(Effort::Level(12))));
        let slow = LevelChooser::new(Compression::Auto);
        window(&slow, MS, 1000 * MS);
        assert_eq!(slow.effort_for_copy(true), None);
        window(&slow, MS, 1000 * MS);
        assert_eq!(slow.effort_for_copy(true), Some(Effort::Level(3)));
    }

    #[test]
    fn noise_is_not_compressed_but_repeated_noise_is() {
        let mut compressor = BlobCompressor::new().expect("zstd");
        let mut noise = vec![0; 1 << 18];
        StdRng::seed_from_u64(1).fill_bytes(&mut noise);
        assert!(!compressor.is_promising(&noise).expect("zstd"));
        let text = b"a line of text, and another one\n".repeat(1 << 13);
        assert!(compressor.is_promising(&text).expect("zstd"));
        let mut target = b"before".to_vec();
        assert!(!compressor.append(&noise, Effort::Level(12), &mut target, noise.len()).expect("zstd"));
        assert_eq!(target, b"before");
        // The sample is of noise only.
        let twice = [&noise[..], &noise[..]].concat();
        assert!(compressor.append(&twice, Effort::Level(12), &mut target, twice.len()).expect("zstd"));
        assert!(target.starts_with(b"before") && target.len() < 6 + twice.len() / 2 + 4096, "{}", target.len());
        assert_eq!(zstd::bulk::decompress(&target[6..], twice.len()).expect("zstd"), twice);
    }

    #[test]
    fn fast_effort_lies_between_levels_and_leaves_no_state() {
        let mut random = StdRng::seed_from_u64(2);
        // Repeats of three lengths among bytes of a small alphabet, which level -1 would store as they are.
        let mut data = Vec::new();
        while data.len() < 1 << 20 {
            let length = 6 + random.next_u32() as usize % 40;
            match random.next_u32() % 2 {
                0 if data.len() > 4096 => data.extend_from_within(data.len() - 4000..data.len() - 4000 + length),
                _ => data.extend((0..length).map(|_| b'a' + (random.next_u32() % 16) as u8)),
            }
        }
        let mut compressor = BlobCompressor::new().expect("zstd");
        let mut length = |effort| {
            let mut target = Vec::new();
            assert!(compressor.append(&data, effort, &mut target, data.len()).expect("zstd"));
            assert_eq!(zstd::bulk::decompress(&target, data.len()).expect("zstd"), data);
            target.len()
        };
        let order = [Effort::Level(1), Effort::Fast, Effort::Level(1), Effort::Level(-1), Effort::Level(3)];
        let [first, fast, again, quick, third] = order.map(&mut length);
        let plainly = |level| zstd::bulk::compress(&data, level).expect("zstd").len();
        assert_eq!([first, again, quick, third], [plainly(1), plainly(1), plainly(-1), plainly(3)]);
        assert!(first < fast && fast < quick, "{first} {fast} {quick}");
    }
}
