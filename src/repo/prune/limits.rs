//! How much of what nobody needs may stay, and how much is copied to be rid of it.

use std::fmt;
use std::str::FromStr;

/// How much of what nobody needs may stay, in packs that hold needed blobs as well. What shares its pack with nothing
/// needed always goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MaxUnused {
    /// This share of what the repository has after the prune: 0.05.
    Share(f64),
    /// So many bytes.
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
    /// The number of unused bytes that may stay, given the number of used ones.
    pub(super) fn limit_bytes(self, used_bytes: u64) -> u64 {
        match self {
            MaxUnused::Share(share) if share < 1.0 => (used_bytes as f64 * share / (1.0 - share)) as u64,
            MaxUnused::Bytes(bytes) => bytes,
            MaxUnused::Share(_) | MaxUnused::Unlimited => u64::MAX,
        }
    }
}

/// A text that is no limit.
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

/// What a prune keeps to.
#[derive(Debug, Clone, Copy, Default)]
pub struct PruneLimits {
    /// How much waste may stay.
    pub max_unused: MaxUnused,
    /// How much may be copied at once; none if there is room enough.
    pub room_bytes: Option<u64>,
}
