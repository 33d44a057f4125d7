//! Durations, sizes and percentages as people write them: on the command line, in the configuration, in point names.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A text that is not a valid value; the message is the rule that it breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NotAUnit(&'static str);

/// Formats a number of bytes with binary units, as `qemu-img info` and `lsblk` do.
pub(crate) fn in_units(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut size = bytes as f64 / 1024.0;
    let mut units = UNITS.into_iter();
    let mut unit = units.next().unwrap_or_default();
    // 1023.999 MiB is shown as 1.00 GiB and not as 1024.00 MiB.
    while size >= 1023.995
        && let Some(next) = units.next()
    {
        size /= 1024.0;
        unit = next;
    }
    format!("{size:.2} {unit}")
}

/// A duration: `90s`, `30m`, `2h`, `3d`, `1w`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ShortDuration(pub(crate) Duration);

impl ShortDuration {
    pub(crate) const RULE: &'static str = "a number and a unit: 90s, 30m, 2h, 3d, 1w";

    /// The units and their lengths in seconds, longest first.
    const UNITS: [(&'static str, u64); 5] =
        [("w", 7 * 24 * 60 * 60), ("d", 24 * 60 * 60), ("h", 60 * 60), ("m", 60), ("s", 1)];

    /// Larger numbers are taken for typing errors: a million days are more than two thousand years.
    const LARGEST_NUMBER: u64 = 1_000_000;
}

impl FromStr for ShortDuration {
    type Err = NotAUnit;

    fn from_str(text: &str) -> Result<ShortDuration, NotAUnit> {
        let broken = NotAUnit(ShortDuration::RULE);
        let (unit, seconds) = ShortDuration::UNITS.into_iter().find(|(unit, _)| text.ends_with(unit)).ok_or(broken)?;
        let number = digits(text.strip_suffix(unit).unwrap_or_default()).ok_or(broken)?;
        if number > ShortDuration::LARGEST_NUMBER {
            return Err(broken);
        }
        Ok(ShortDuration(Duration::from_secs(number * seconds)))
    }
}

impl fmt::Display for ShortDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let fits = |(_, unit): &(&str, u64)| seconds != 0 && seconds.is_multiple_of(*unit);
        let (unit, length) = ShortDuration::UNITS.into_iter().find(fits).unwrap_or(("s", 1));
        write!(f, "{}{unit}", seconds / length)
    }
}

/// A number of bytes: `512K`, `10M`, `2G`, `1T`, or without a unit. The units are binary: 1K is 1024 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size(pub(crate) u64);

impl Size {
    pub(crate) const RULE: &'static str = "a number of bytes with an optional unit: 512K, 10M, 2G, 1T";

    /// The units and their powers of two, largest first.
    const UNITS: [(&'static str, u32); 4] = [("T", 40), ("G", 30), ("M", 20), ("K", 10)];
}

impl FromStr for Size {
    type Err = NotAUnit;

    fn from_str(text: &str) -> Result<Size, NotAUnit> {
        let broken = NotAUnit(Size::RULE);
        let (unit, power) = Size::UNITS.into_iter().find(|(unit, _)| text.ends_with(unit)).unwrap_or(("", 0));
        let number = digits(text.strip_suffix(unit).unwrap_or_default()).ok_or(broken)?;
        number.checked_mul(1 << power).map(Size).ok_or(broken)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, power): &(&str, u32)| self.0 != 0 && self.0.is_multiple_of(1 << power);
        let (unit, power) = Size::UNITS.into_iter().find(fits).unwrap_or(("", 0));
        write!(f, "{}{unit}", self.0 >> power)
    }
}

/// The size of a disk's chunks: a multiple of restic's zero blob, and small enough that several chunks fit into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChunkSize(u32);

impl ChunkSize {
    pub(crate) const RULE: &'static str = "512K, 1M, 2M or 4M";

    pub(crate) fn bytes(self) -> u32 {
        self.0
    }

    /// Returns the chunk size of a new disk of this size. The list of chunks, which every point stores, has up to
    /// 65,536 entries for disks up to 64 GiB, and up to 524,288 for disks up to 1 TiB.
    pub(crate) fn for_disk(capacity_bytes: u64) -> ChunkSize {
        const ONE_UP_TO: u64 = 64 << 30;
        const TWO_UP_TO: u64 = 1 << 40;
        match capacity_bytes {
            bytes if bytes <= ONE_UP_TO => ChunkSize(1 << 20),
            bytes if bytes <= TWO_UP_TO => ChunkSize(2 << 20),
            _ => ChunkSize(4 << 20),
        }
    }
}

impl FromStr for ChunkSize {
    type Err = NotAUnit;

    fn from_str(text: &str) -> Result<ChunkSize, NotAUnit> {
        match text {
            "512K" => Ok(ChunkSize(512 << 10)),
            "1M" => Ok(ChunkSize(1 << 20)),
            "2M" => Ok(ChunkSize(2 << 20)),
            "4M" => Ok(ChunkSize(4 << 20)),
            _ => Err(NotAUnit(ChunkSize::RULE)),
        }
    }
}

/// A share of something, from 0 to 1: `5%`, `0.1%`.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub(crate) struct Share(pub(crate) f64);

impl Share {
    pub(crate) const RULE: &'static str = "a share from 0% to 100%";
}

impl FromStr for Share {
    type Err = NotAUnit;

    fn from_str(text: &str) -> Result<Share, NotAUnit> {
        let number = text.strip_suffix('%').unwrap_or(text);
        let plain = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        let percent = number.parse::<f64>().ok().filter(|percent| plain && (0.0..=100.0).contains(percent));
        percent.map(|percent| Share(percent / 100.0)).ok_or(NotAUnit(Share::RULE))
    }
}

/// Parses a whole number without a sign: `u64::from_str` would accept `+5`.
fn digits(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_formatted_in_binary_units() {
        let sizes = [0, 1023, 1024, 146_432, (1 << 20) - 1, 3 << 29, 20 << 40, u64::MAX].map(in_units);
        assert_eq!(
            sizes,
            ["0 B", "1023 B", "1.00 KiB", "143.00 KiB", "1.00 MiB", "1.50 GiB", "20.00 TiB", "16.00 EiB"]
        );
    }
    use proptest::prelude::*;

    #[test]
    fn durations_sizes_and_percentages_are_parsed() {
        let seconds = |text: &str| text.parse::<ShortDuration>().unwrap().0.as_secs();
        assert_eq!(["90s", "30m", "2h", "3d", "1w"].map(seconds), [90, 1800, 7200, 259_200, 604_800]);
        let bytes = |text: &str| text.parse::<Size>().unwrap().0;
        assert_eq!(["7", "512K", "10M", "2G", "1T"].map(bytes), [7, 524_288, 10_485_760, 2_147_483_648, 1 << 40]);
        let chunk = |text: &str| text.parse::<ChunkSize>().unwrap().bytes();
        assert_eq!(["512K", "1M", "2M", "4M"].map(chunk), [512 << 10, 1 << 20, 2 << 20, 4 << 20]);
        let share = |text: &str| text.parse::<Share>().unwrap().0;
        assert_eq!(["0%", "5%", "12.5", "100%"].map(share), [0.0, 0.05, 0.125, 1.0]);
    }

    #[test]
    fn larger_disks_have_larger_chunks() {
        let cases = [(0, 1), (64 << 30, 1), ((64 << 30) + 1, 2), (1 << 40, 2), ((1 << 40) + 1, 4), (u64::MAX, 4)];
        for (capacity_bytes, mebibytes) in cases {
            assert_eq!(ChunkSize::for_disk(capacity_bytes).bytes(), mebibytes << 20, "{capacity_bytes}");
        }
    }

    #[test]
    fn malformed_values_are_refused() {
        for text in ["", "s", "5", "5 m", "-5m", "+5m", "5M", "1.5h", "5ms", "1000001s", "m5", "５m"] {
            assert!(text.parse::<ShortDuration>().is_err(), "{text}");
        }
        for text in ["", "K", "-1", "1.5G", "1 G", "1g", "1GB", "99999999T", "+1"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
        for text in ["", "0", "1", "256K", "3M", "8M", "4G", "1m", "1024K"] {
            assert!(text.parse::<ChunkSize>().is_err(), "{text}");
        }
        for text in ["", "%", "-1%", "101%", "5 %", "NaN", "inf", "1e1", "5%%"] {
            assert!(text.parse::<Share>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn durations_and_sizes_round_trip(seconds in 0u64..1_000_000, bytes: u64) {
            prop_assert_eq!(ShortDuration(Duration::from_secs(seconds)).to_string().parse(),
                Ok(ShortDuration(Duration::from_secs(seconds))));
            prop_assert_eq!(Size(bytes).to_string().parse(), Ok(Size(bytes)));
        }
    }
}
