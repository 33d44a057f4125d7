//! Removal of many files by one request. Whether the server supports it is determined by the first attempt.

use super::{Bucket, BucketRequest, xml};
use crate::storage::http::Upload;
use crate::storage::{FileAction, FileKind, Result};
use std::fmt::Write;

/// The maximum number of keys in a request.
const MOST_KEYS: usize = 1000;

/// The maximum length of a response: an error for a key takes less than a kilobyte.
const LONGEST_ANSWER_BYTES: u64 = 4 << 20;

/// Returns the best number of files to remove at once.
pub(super) fn size(bucket: &Bucket) -> usize {
    if bucket.removes_many.get() == Some(&false) { 1 } else { MOST_KEYS }
}

/// Removes files, ignoring missing ones. Returns `false` if the server does not support this and nothing was removed.
pub(super) fn remove(bucket: &Bucket, kind: FileKind, names: &[String]) -> Result<bool> {
    for names in names.chunks(MOST_KEYS) {
        if bucket.removes_many.get() == Some(&false) || !remove_batch(bucket, kind, names)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn remove_batch(bucket: &Bucket, kind: FileKind, names: &[String]) -> Result<bool> {
    let mut body = String::from("<Delete xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Quiet>true</Quiet>");
    for name in names {
        let _ = write!(body, "<Object><Key>{}</Key></Object>", xml::escaped(&bucket.key(kind, name)));
    }
    body += "</Delete>";
    let query = [("delete", String::new())];
    let headers = [("content-type", "application/xml".to_owned())];
    let request = BucketRequest {
        method: "POST",
        key: "",
        query: &query,
        headers: &headers,
        longest_bytes: LONGEST_ANSWER_BYTES,
    };
    let mut answer = bucket.call(request, Some(Upload { contents: body.as_bytes(), gate: &|_| true }))?;
    let complaints = match answer.status {
        200..300 => xml::refused_keys(&answer.body),
        400 | 404 | 405 | 411 | 501 => None,
        _ => return Err(bucket.refusal(FileAction::Remove, kind, "", &answer)),
    };
    let Some(complaints) = complaints else {
        tracing::debug!("{} does not remove several files at once", bucket.client.server());
        bucket.removes_many.get_or_init(|| false);
        return Ok(false);
    };
    bucket.removes_many.get_or_init(|| true);
    let Some((key, complaint)) = complaints.into_iter().find(|(_, complaint)| complaint.code != "NoSuchKey") else {
        return Ok(true);
    };
    let name = key.rsplit('/').next().unwrap_or_default();
    // Use the status that a request for this file alone would get.
    answer.status = match complaint.code.as_str() {
        "AccessDenied" => 403,
        "SlowDown" | "InternalError" | "ServiceUnavailable" => 503,
        _ => 409,
    };
    answer.body = xml::complaint_text(&complaint).into_bytes();
    Err(bucket.refusal(FileAction::Remove, kind, name, &answer))
}
