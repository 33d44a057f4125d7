//! Headers that lock an object.
//!
//! The mode is `COMPLIANCE`: no key of the account can shorten the lock, not even that of an attacker who is root on
//! this host. (With `GOVERNANCE` it would depend on which keys may bypass it.)

use chrono::{DateTime, TimeDelta, Utc};
use std::time::Duration;

/// The mode that nobody can shorten.
pub(super) const MODE: &str = "COMPLIANCE";

/// The header that says when an object's lock ends.
pub(super) const UNTIL: &str = "x-amz-object-lock-retain-until-date";

/// Returns the headers of an object that is locked for this period from now.
pub(super) fn headers(period: Duration) -> [(&'static str, String); 2] {
    [("x-amz-object-lock-mode", MODE.to_owned()), (UNTIL, end_of(period))]
}

/// Returns when a lock ends that begins now.
pub(super) fn end_of(period: Duration) -> String {
    let period = TimeDelta::from_std(period).unwrap_or(TimeDelta::MAX);
    let end = Utc::now().checked_add_signed(period).unwrap_or(DateTime::<Utc>::MAX_UTC);
    end.format("%Y-%m-%dT%H:%M:%SZ").to_string()
}
