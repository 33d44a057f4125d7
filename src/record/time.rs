//! Times of records: RFC 3339 with offset, in whole milliseconds.

use chrono::{DateTime, FixedOffset, SecondsFormat};
use serde::Serializer;
use serde_json::Value;

/// A point in time, RFC 3339 with offset.
pub type Time = DateTime<FixedOffset>;

/// Formats a time as the value of a record's field.
pub fn time_value(time: Time) -> Value {
    text(time).into()
}

fn text(time: Time) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, false)
}

pub(super) fn serialize<S: Serializer>(time: &Time, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&text(*time))
}

pub(super) fn serialize_option<S: Serializer>(time: &Option<Time>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => serialize(time, serializer),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_truncated_to_milliseconds() {
        let time: Time = "2026-11-20T12:00:00.123999999+01:00".parse().unwrap();
        assert_eq!(time_value(time), "2026-11-20T12:00:00.123+01:00");
        assert_eq!(time_value("2026-11-20T12:00:00Z".parse().unwrap()), "2026-11-20T12:00:00.000+00:00");
    }
}
