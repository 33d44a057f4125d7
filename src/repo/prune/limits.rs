//! Limits on the unused data that may stay in packs, and on the amount of data that is copied to remove it.

use std::fmt;
use std::str::FromStr;

/// How much unused data may stay in packs that also contain needed blobs. Packs without needed blobs are always
/// removed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MaxUnused {
    /// This share of the size of the repository after the prune, such as 0.05.
    Share(f64),
    /// This number of bytes.
    Bytes(u64),
    /// Any amount: nothing is copied.
    Unlimited,
}

impl Default for MaxUnused {
    fn default() -> Self {
        MaxUnused::Share(0.05)
    }
}

impl MaxUnused {
    /// Returns the number of unused bytes that may stay, given the number of used ones.
    pub(super) fn limit_bytes(self, used_bytes: u64) -> u64 {
        match self {
            MaxUnused::Share(share) if share < 1.0 => (used_bytes as f64 * share / (1.0 - share)) as u64,
            MaxUnused::Bytes(bytes) => bytes,
            MaxUnused::Share(_) | MaxUnused::Unlimited => u64::MAX,
        }
    }
}

/// A text that is not a valid limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a limit: expected a share (5%), an amount (500M, 2G) or \"unlimited\"")]
pub struct ParseMaxUnusedError(String);

impl FromStr for MaxUnused {
    type Err = ParseMaxUnusedError;

    fn from_str(text: &str) -> std::result::Result<Self, ParseMaxUnusedError> {
        let bad = || ParseMaxUnusedError(text.to_owned());
        if text == "unlimited" {
            return Ok(MaxUnused::Unlimited);
        }
        if let Some(percent) = text.strip_suffix('%') {
            let percent: f64 = percent.trim().parse().map_err(|_| bad())?;
            return match (0.0..=100.0).contains(&percent) {
                true => Ok(MaxUnused::Share(percent / 100.0)),
                false => Err(bad()),
            };
        }
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let shift = match unit {
            "" => 0,
            "k" | "K" => 10,
            "m" | "M" => 20,
            "g" | "G" => 30,
            "t" | "T" => 40,
            _ => return Err(bad()),
        };
        let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
        bytes.map(MaxUnused::Bytes).ok_or_else(bad)
    }
}

impl fmt::Display for MaxUnused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MaxUnused::Share(share) => write!(f, "{}%", share * 100.0),
            MaxUnused::Bytes(bytes) => write!(f, "{bytes}"),
            MaxUnused::Unlimited => f.write_str("unlimited"),
        }
    }
}

/// The limits of a prune.
#[derive(Debug, Clone, Copy, Default)]
pub struct PruneLimits {
    /// How much unused data may stay.
    pub max_unused: MaxUnused,
    /// How many bytes may be copied at once; `None` if there is enough free space.
    pub room_bytes: Option<u64>,
}
