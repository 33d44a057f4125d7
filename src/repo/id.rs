//! The name of everything in a repository: a SHA-256 hash.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::ser::{Serialize, Serializer};
use sha2::{Digest, Sha256};

/// 32 bytes, written as 64 lower-case hex digits.
///
/// A blob is named by the hash of its plaintext, a file by the hash of its stored bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id([u8; 32]);

/// Marks bytes that are not hex digits; the values of digits are below 16.
const NO_DIGIT: u8 = 0xff;

/// The value of each byte as a lower-case hex digit. Trees of large disks contain hundreds of millions of digits.
const HEX_VALUES: [u8; 256] = {
    let mut values = [NO_DIGIT; 256];
    let mut value = 0;
    while value < 16 {
        values[b"0123456789abcdef"[value] as usize] = value as u8;
        value += 1;
    }
    values
};

/// A text that is not 64 lower-case hex digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an id: 64 lower-case hex digits are expected")]
pub struct ParseIdError(pub(crate) String);

impl Id {
    /// The number of hex digits in an id.
    pub(super) const HEX_LENGTH: usize = 64;

    /// Returns the hash of these bytes.
    pub fn hash(bytes: &[u8]) -> Id {
        Id(Sha256::digest(bytes).into())
    }

    /// Wraps the bytes of an id, from a pack header or a hasher.
    pub(crate) const fn from_bytes(bytes: [u8; 32]) -> Id {
        Id(bytes)
    }

    /// Returns the 32 bytes.
    pub(crate) const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the first 8 bytes as a number. The order of these numbers is the order of the ids.
    pub(super) fn first_bits(&self) -> u64 {
        self.0.first_chunk().copied().map_or(0, u64::from_be_bytes)
    }

    /// Returns the first 8 hex digits, for display.
    pub fn short(&self) -> String {
        hex::encode(&self.0[..4])
    }

    pub(super) fn to_hex(self) -> [u8; Self::HEX_LENGTH] {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut hex = [0; Self::HEX_LENGTH];
        for (pair, byte) in hex.chunks_exact_mut(2).zip(self.0) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        hex
    }

    /// Parses 64 lower-case hex digits. Returns `None` for anything else.
    pub(super) fn from_hex(hex: &[u8]) -> Option<Id> {
        if hex.len() != Self::HEX_LENGTH {
            return None;
        }
        let (mut bytes, mut seen) = ([0; 32], 0);
        for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
            let (high, low) = (HEX_VALUES[usize::from(pair[0])], HEX_VALUES[usize::from(pair[1])]);
            seen |= high | low;
            *byte = high << 4 | low & 15;
        }
        (seen != NO_DIGIT).then_some(Id(bytes))
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex::encode(self.0))
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Id {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Id, ParseIdError> {
        Id::from_hex(text.as_bytes()).ok_or_else(|| ParseIdError(text.to_owned()))
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Id, D::Error> {
        struct HexVisitor;
        impl Visitor<'_> for HexVisitor {
            type Value = Id;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("64 lower-case hex digits")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Id, E> {
                text.parse().map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_str(HexVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip_through_hex() {
        let id = Id::hash(b"kvmb");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.to_hex(), id.to_string().as_bytes());
        assert_eq!(serde_json::from_str::<Id>(&format!("\"{id}\"")).unwrap(), id);
        assert_eq!(id.short(), id.to_string()[..8]);
        assert_eq!(format!("{id:?}"), id.to_string());
    }

    #[test]
    fn invalid_hex_ids_are_refused() {
        let good = Id::hash(b"").to_string();
        for bad in ["", "00", &good.to_uppercase(), &good[1..], &format!("{good}0")] {
            assert!(bad.parse::<Id>().is_err(), "{bad}");
        }
    }
}
