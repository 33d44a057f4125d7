//! Locks against removal and changes, with S3's Object Lock.
//!
//! A bucket with Object Lock has versioning: a removal only hides a locked object, and users who may list versions can
//! restore it.

use super::lock_headers::{MODE, UNTIL, end_of};
use super::{Bucket, BucketRequest, xml};
use crate::storage::http::{self, HttpResponse, Upload};
use crate::storage::{FileAction, FileKind, Result};
use chrono::{DateTime, Utc};
use std::time::SystemTime;

/// The maximum length of a response about the configuration of a bucket.
const LONGEST_ANSWER_BYTES: u64 = 64 << 10;

/// Returns when the lock of an object ends, if that is in the future.
fn end_in(answer: &HttpResponse) -> Option<SystemTime> {
    let end = DateTime::parse_from_rfc3339(answer.header(UNTIL)?).ok()?;
    (end > Utc::now()).then(|| end.into())
}

impl Bucket {
    /// Returns whether the bucket can lock objects.
    pub(super) fn can_lock(&self) -> Result<bool> {
        if let Some(can) = self.can_lock.get() {
            return Ok(*can);
        }
        let query = [("object-lock", String::new())];
        let request =
            BucketRequest { method: "GET", key: "", query: &query, headers: &[], longest_bytes: LONGEST_ANSWER_BYTES };
        let answer = self.call(request, None)?;
        let can = match answer.status {
            200..300 => xml::text_of(&answer.body, "ObjectLockEnabled").is_some_and(|state| state == "Enabled"),
            // Users who do not need locks may lack this permission.
            403 if self.options.lock_for.is_none() => false,
            403 | 429 | 500 | 502..=504 => {
                return Err(self.refusal(FileAction::Examine, FileKind::Config, "", &answer));
            }
            _ => false,
        };
        Ok(*self.can_lock.get_or_init(|| can))
    }

    /// Fails if locks are configured but the bucket does not support them.
    pub(super) fn check_lock(&self) -> Result<()> {
        match self.options.lock_for.is_none() || self.can_lock()? {
            true => Ok(()),
            false => Err(self.server_error(http::Error::NoObjectLock { bucket: self.address.bucket.clone() })),
        }
    }

    /// Returns until when a file is locked against removal and changes.
    pub(super) fn locked_until(&self, kind: FileKind, name: &str) -> Result<Option<SystemTime>> {
        let key = self.key(kind, name);
        let request = BucketRequest { method: "HEAD", key: &key, query: &[], headers: &[], longest_bytes: 0 };
        let answer = self.call(request, None)?;
        match answer.is_done() {
            true => Ok(end_in(&answer)),
            false => Err(self.refusal(FileAction::Read, kind, name, &answer)),
        }
    }

    /// Extends a file's lock to the configured period from now, unless at least half of that is left.
    pub(super) fn extend_lock(&self, kind: FileKind, name: &str) -> Result<Option<SystemTime>> {
        let until = self.locked_until(kind, name)?;
        let Some(period) = self.options.lock_for else { return Ok(until) };
        let now = SystemTime::now();
        if until.is_some_and(|until| until.duration_since(now).unwrap_or_default() >= period / 2) {
            return Ok(until);
        }
        self.check_lock()?;
        let body = format!(
            "<Retention xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Mode>{MODE}</Mode>\
             <RetainUntilDate>{}</RetainUntilDate></Retention>",
            end_of(period)
        );
        let (key, query) = (self.key(kind, name), [("retention", String::new())]);
        let request = BucketRequest { method: "PUT", key: &key, query: &query, headers: &[], longest_bytes: 0 };
        let answer = self.call(request, Some(Upload { contents: body.as_bytes(), gate: &|_| true }))?;
        match answer.is_done() {
            true => Ok(now.checked_add(period)),
            false => Err(self.refusal(FileAction::Write, kind, name, &answer)),
        }
    }
}
