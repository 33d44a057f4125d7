//! Multipart uploads: no server accepts more than 5 GiB at once, and many accept less.

use super::{Bucket, BucketRequest, xml};
use crate::storage::http::Upload;
use crate::storage::{Error, FileAction, FileKind, Gate, Result};

/// The maximum length of a response.
const LONGEST_ANSWER_BYTES: u64 = 1 << 20;

/// Uploads a file in parts. It becomes visible with the last request. If the upload fails, its parts are removed.
pub(super) fn upload(bucket: &Bucket, kind: FileKind, name: &str, contents: &[u8], gate: Gate) -> Result<()> {
    let key = bucket.key(kind, name);
    let refusal = |answer: &_| bucket.refusal(FileAction::Write, kind, name, answer);
    let (headers, query) = (bucket.headers_of_upload(kind), [("uploads", String::new())]);
    let nothing = Upload { contents: &[], gate: &|_| true };
    let begin = BucketRequest {
        method: "POST",
        key: &key,
        query: &query,
        headers: &headers,
        longest_bytes: LONGEST_ANSWER_BYTES,
    };
    let answer = bucket.call(begin, Some(nothing))?;
    if !answer.is_done() {
        return Err(refusal(&answer));
    }
    let id = xml::text_of(&answer.body, "UploadId").ok_or_else(|| bucket.protocol("it does not name an upload"))?;
    let sent = send_parts(bucket, kind, name, &id, contents, gate);
    if sent.is_err() {
        // Parts that remain take space, but are not visible as a file. A lifecycle rule of the bucket can remove them.
        let query = [("uploadId", id)];
        let end = BucketRequest { method: "DELETE", key: &key, query: &query, headers: &[], longest_bytes: 0 };
        let _ = bucket.call(end, None);
    }
    sent
}

fn send_parts(bucket: &Bucket, kind: FileKind, name: &str, id: &str, contents: &[u8], gate: Gate) -> Result<()> {
    let key = bucket.key(kind, name);
    let refusal = |answer: &_| bucket.refusal(FileAction::Write, kind, name, answer);
    let mut list = String::from("<CompleteMultipartUpload>");
    for (part, number) in contents.chunks(bucket.options.part_bytes.max(1)).zip(1..) {
        let query = [("partNumber", number.to_string()), ("uploadId", id.to_owned())];
        let put = BucketRequest { method: "PUT", key: &key, query: &query, headers: &[], longest_bytes: 0 };
        let answer = bucket.call(put, Some(Upload { contents: part, gate }))?;
        let tag = answer.header("etag").filter(|_| answer.is_done()).ok_or_else(|| refusal(&answer))?;
        let tag = xml::escaped(tag);
        list += &format!("<Part><PartNumber>{number}</PartNumber><ETag>{tag}</ETag></Part>");
    }
    list += "</CompleteMultipartUpload>";
    if !gate(0) {
        return Err(Error::Interrupted);
    }
    let query = [("uploadId", id.to_owned())];
    let headers = [("content-type", "application/xml".to_owned())];
    let end = BucketRequest {
        method: "POST",
        key: &key,
        query: &query,
        headers: &headers,
        longest_bytes: LONGEST_ANSWER_BYTES,
    };
    let answer = bucket.call(end, Some(Upload { contents: list.as_bytes(), gate: &|_| true }))?;
    // A server that begins its response before it is done can report an error only in the body.
    match answer.is_done() && xml::complaint(&answer.body).is_none() {
        true => Ok(()),
        false => Err(refusal(&answer)),
    }
}
