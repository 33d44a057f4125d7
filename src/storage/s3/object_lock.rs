//! Files that nobody can remove or change until their time is over, as S3's Object Lock has it.
//!
//! A bucket that locks objects has versions of them: a removal hides what is locked, and whoever may list versions gets
//! it back.

use super::lock_headers::{MODE, UNTIL, end_of};
use super::{Bucket, BucketRequest, xml};
use crate::storage::http::{self, HttpResponse, Upload};
use crate::storage::{FileAction, FileKind, Result};
use chrono::{DateTime, Utc};
use std::time::SystemTime;

/// What is taken of an answer that says how a bucket is set up.
const LONGEST_ANSWER_BYTES: u64 = 64 << 10;

/// When the lock of what was found ends, if that is still to come.
fn end_in(answer: &HttpResponse) -> Option<SystemTime> {
    let end = DateTime::parse_from_rfc3339(answer.header(UNTIL)?).ok()?;
    (end > Utc::now()).then(|| end.into())
}

impl Bucket {
    /// Whether what is written here can be locked.
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
            // Whoever does not need it need not be allowed to ask.
            403 if self.options.lock_for.is_none() => false,
            403 | 429 | 500 | 502..=504 => {
                return Err(self.refusal(FileAction::Examine, FileKind::Config, "", &answer));
            }
            _ => false,
        };
        Ok(*self.can_lock.get_or_init(|| can))
    }

    /// Fails if what is written shall be locked and cannot be.
    pub(super) fn check_lock(&self) -> Result<()> {
        match self.options.lock_for.is_none() || self.can_lock()? {
            true => Ok(()),
            false => Err(self.server_error(http::Error::NoObjectLock { bucket: self.address.bucket.clone() })),
        }
    }

    /// Until when nobody can remove or change a file.
    pub(super) fn locked_until(&self, kind: FileKind, name: &str) -> Result<Option<SystemTime>> {
        let key = self.key(kind, name);
        let request = BucketRequest { method: "HEAD", key: &key, query: &[], headers: &[], longest_bytes: 0 };
        let answer = self.call(request, None)?;
        match answer.is_done() {
            true => Ok(end_in(&answer)),
            false => Err(self.refusal(FileAction::Read, kind, name, &answer)),
        }
    }

    /// Locks a file as if it were written now, unless its lock lasts for half as long in any case.
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
