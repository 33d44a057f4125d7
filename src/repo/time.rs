//! Times in JSON as Go writes them: RFC 3339, up to nine digits of a second, no trailing zeros, `Z` for UTC.

use chrono::{DateTime, FixedOffset, Local, SecondsFormat};
use serde::{Deserialize, Deserializer, Serializer};

/// Returns the current time with the local offset.
pub(super) fn now() -> DateTime<FixedOffset> {
    Local::now().fixed_offset()
}

/// Formats a time like Go's `time.RFC3339Nano`.
pub(super) fn to_text(time: &DateTime<FixedOffset>) -> String {
    let text = time.to_rfc3339_opts(SecondsFormat::Nanos, true);
    // "2026-11-23T14:55:59.620000000+01:00": remove trailing zeros of the fraction, and the point if no digit is left.
    let Some((date, rest)) = text.split_once('.') else {
        return text;
    };
    let (digits, offset) = rest.split_at(rest.len().min(9));
    match digits.trim_end_matches('0') {
        "" => format!("{date}{offset}"),
        digits => format!("{date}.{digits}{offset}"),
    }
}

pub(super) fn serialize<S: Serializer>(time: &DateTime<FixedOffset>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&to_text(time))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DateTime<FixedOffset>, D::Error> {
    DateTime::deserialize(deserializer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_in_go() {
        for text in [
            "2026-11-23T14:55:59.62812736Z",
            "2026-11-23T14:55:59Z",
            "2026-11-23T14:55:59.1+01:00",
            "2026-11-23T14:55:59.000000001-02:30",
            "0001-01-01T00:00:00Z",
        ] {
            let time = DateTime::parse_from_rfc3339(text).unwrap();
            assert_eq!(to_text(&time), text);
        }
    }
}
