//! A repository in a bucket, with restic's layout. An object is durable and complete when its upload was acknowledged.
//!
//! A file that is to be created exclusively is written with `If-None-Match: *`. Whether the server honours this is
//! tested once. If not, the file is written and, after a moment, read back; if it has other contents, another process
//! has created it.

use super::address::S3Address;
use super::s3_options::S3Options;
use super::{Bucket, BucketRequest, batch, multipart, xml};
use crate::storage::http::{self, HttpContext, HttpFiles, HttpResponse, Upload, exclusive, files};
use crate::storage::{Error, FileAction, FileInfo, FileKind, Gate, Result, Storage, Transit};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

/// The maximum length of a page of a listing: a thousand entries of at most a few kilobytes.
const LONGEST_PAGE_BYTES: u64 = 16 << 20;

/// The maximum number of empty pages in a row. In a bucket with versions, a server may return one for each thousand
/// removed objects.
const MOST_EMPTY_PAGES: usize = 10_000;

const CHECKSUM: &str = "x-amz-checksum-sha256";
const CONDITION: &str = "if-none-match";

/// A folder in a bucket.
#[derive(Debug)]
pub struct S3Storage {
    bucket: Bucket,
    /// Whether the server honours `If-None-Match: *`, if known.
    honours_conditions: OnceLock<bool>,
    /// `false` once the server has refused the SHA-256 of an upload, as Backblaze B2 does.
    takes_checksums: OnceLock<bool>,
    /// Held while a file is created exclusively.
    creating: Mutex<()>,
}

impl S3Storage {
    /// Opens the repository at `address`, which need not exist yet. Does not connect yet.
    pub fn new(
        address: S3Address,
        options: &S3Options,
        context: &HttpContext,
    ) -> std::result::Result<S3Storage, http::Error> {
        let bucket = Bucket::new(address, options, context)?;
        Ok(S3Storage {
            bucket,
            honours_conditions: OnceLock::new(),
            takes_checksums: OnceLock::new(),
            creating: Mutex::default(),
        })
    }

    /// Uploads a file in one piece.
    fn put(&self, kind: FileKind, name: &str, contents: &[u8], gate: Gate, conditional: bool) -> Result<HttpResponse> {
        let key = self.bucket.key(kind, name);
        let put = |has_checksum: bool| {
            let mut headers = self.bucket.headers_of_upload(kind);
            if has_checksum {
                // Stored with the object, if the server supports that.
                headers.push((CHECKSUM, STANDARD.encode(Sha256::digest(contents))));
            }
            if conditional {
                headers.push((CONDITION, "*".to_owned()));
            }
            let request = BucketRequest { method: "PUT", key: &key, query: &[], headers: &headers, longest_bytes: 0 };
            self.bucket.call(request, Some(Upload { contents, gate }))
        };
        let has_checksum = self.takes_checksums.get() != Some(&false);
        let answer = put(has_checksum)?;
        if has_checksum && xml::refuses_header(answer.status, &answer.body, CHECKSUM) {
            self.takes_checksums.get_or_init(|| false);
            return put(false);
        }
        Ok(answer)
    }
}

impl HttpFiles for S3Storage {
    fn ask(
        &self,
        method: &'static str,
        kind: FileKind,
        name: &str,
        headers: &[(&'static str, String)],
        longest_bytes: u64,
    ) -> Result<HttpResponse> {
        let key = self.bucket.key(kind, name);
        self.bucket.call(BucketRequest { method, key: &key, query: &[], headers, longest_bytes }, None)
    }

    fn refusal(&self, action: FileAction, kind: FileKind, name: &str, answer: &HttpResponse) -> Error {
        self.bucket.refusal(action, kind, name, answer)
    }

    fn protocol(&self, reason: &str) -> Error {
        self.bucket.protocol(reason)
    }
}

impl Storage for S3Storage {
    fn url(&self) -> String {
        self.bucket.url()
    }

    fn transit(&self) -> Transit {
        if self.bucket.address.is_encrypted { Transit::Protected } else { Transit::Unprotected }
    }

    fn create_layout(&self) -> Result<()> {
        let look = BucketRequest { method: "HEAD", key: "", query: &[], headers: &[], longest_bytes: 0 };
        let found = self.bucket.call(look, None)?;
        match found.status {
            200..300 => return self.bucket.check_lock(),
            404 => {}
            // Keys that are limited to a folder may not access the bucket itself.
            403 => return self.list(FileKind::Key).and_then(|_| self.bucket.check_lock()),
            _ => return Err(self.bucket.refusal(FileAction::Examine, FileKind::Config, "", &found)),
        }
        let region = self.bucket.region();
        let body = match region.as_str() {
            "us-east-1" => String::new(),
            region => format!(
                "<CreateBucketConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
                 <LocationConstraint>{region}</LocationConstraint></CreateBucketConfiguration>"
            ),
        };
        let locking = [("x-amz-bucket-object-lock-enabled", "true".to_owned())];
        let headers = if self.bucket.options.lock_for.is_some() { &locking[..] } else { &[] };
        let make = BucketRequest { method: "PUT", key: "", query: &[], headers, longest_bytes: 0 };
        let made = self.bucket.call(make, Some(Upload { contents: body.as_bytes(), gate: &|_| true }))?;
        let is_there =
            || xml::complaint(&made.body).is_some_and(|complaint| complaint.code == "BucketAlreadyOwnedByYou");
        match made.is_done() || is_there() {
            true => self.bucket.check_lock(),
            false => Err(self.bucket.refusal(FileAction::Create, FileKind::Config, "", &made)),
        }
    }

    fn list(&self, kind: FileKind) -> Result<Vec<FileInfo>> {
        if kind == FileKind::Config {
            return files::list_config(self);
        }
        let folder = self.bucket.folder_key(kind);
        let (mut found, mut next, mut empty_pages) = (Vec::new(), None::<String>, 0);
        loop {
            let mut query = vec![("list-type", "2".to_owned()), ("prefix", folder.clone())];
            query.extend(next.clone().map(|token| ("continuation-token", token)));
            let request = BucketRequest {
                method: "GET",
                key: "",
                query: &query,
                headers: &[],
                longest_bytes: LONGEST_PAGE_BYTES,
            };
            let answer = self.bucket.call(request, None)?;
            if !answer.is_done() {
                return Err(self.bucket.refusal(FileAction::List, kind, "", &answer));
            }
            let page = xml::page(&answer.body).map_err(|reason| self.bucket.protocol(reason))?;
            empty_pages = if page.files.is_empty() { empty_pages + 1 } else { 0 };
            if page.next.is_some() && (page.next == next || empty_pages > MOST_EMPTY_PAGES) {
                return Err(self.bucket.protocol("its listing does not end"));
            }
            for (key, size_bytes) in page.files {
                let below = key.strip_prefix(&folder).unwrap_or_default();
                // Ignore objects that are not where a repository has its files.
                let name = match kind {
                    FileKind::Pack => {
                        below.split_once('/').filter(|(fan, name)| name.starts_with(fan)).map(|(_, name)| name)
                    }
                    _ => Some(below),
                };
                if let Some(name) = name.filter(|name| !name.is_empty() && !name.contains('/')) {
                    found.push(FileInfo { name: name.to_owned(), size_bytes });
                }
            }
            if page.next.is_none() {
                return Ok(found);
            }
            next = page.next;
        }
    }

    fn size(&self, kind: FileKind, name: &str) -> Result<u64> {
        files::size(self, kind, name)
    }

    fn read(&self, kind: FileKind, name: &str) -> Result<Vec<u8>> {
        files::read(self, kind, name)
    }

    fn read_range(&self, kind: FileKind, name: &str, offset: u64, length: usize) -> Result<Vec<u8>> {
        files::read_range(self, kind, name, offset, length)
    }

    fn write(&self, kind: FileKind, name: &str, contents: &[u8]) -> Result<()> {
        self.write_gated(kind, name, contents, &|_| true)
    }

    fn write_gated(&self, kind: FileKind, name: &str, contents: &[u8], gate: Gate) -> Result<()> {
        self.bucket.check_lock()?;
        if contents.len() > self.bucket.options.part_bytes {
            return multipart::upload(&self.bucket, kind, name, contents, gate);
        }
        let answer = self.put(kind, name, contents, gate, false)?;
        match answer.is_done() {
            true => Ok(()),
            false => Err(self.bucket.refusal(FileAction::Write, kind, name, &answer)),
        }
    }

    fn create(&self, kind: FileKind, name: &str, contents: &[u8]) -> Result<()> {
        self.bucket.check_lock()?;
        let _alone = self.creating.lock().unwrap_or_else(PoisonError::into_inner);
        if self.honours_conditions.get() != Some(&true) {
            exclusive::refuse_existing(self, kind, name)?;
        }
        let mut answer = self.put(kind, name, contents, &|_| true, true)?;
        // A server that does not know the header may refuse it.
        let is_unknown = answer.status == 501 || xml::refuses_header(answer.status, &answer.body, CONDITION);
        if is_unknown {
            answer = self.put(kind, name, contents, &|_| true, false)?;
        }
        // 409: another process is creating it at this moment.
        if matches!(answer.status, 409 | 412) {
            return Err(exclusive::exists(self, kind, name));
        }
        if !answer.is_done() {
            return Err(self.bucket.refusal(FileAction::Write, kind, name, &answer));
        }
        let honours = match self.honours_conditions.get() {
            Some(honours) => *honours,
            // Repeating the upload is harmless, and shows what the server does.
            None => {
                let honours = !is_unknown && self.put(kind, name, contents, &|_| true, true)?.status == 412;
                *self.honours_conditions.get_or_init(|| honours)
            }
        };
        if honours {
            return Ok(());
        }
        exclusive::settle(self, kind, name, contents)
    }

    fn remove_exact(&self, kind: FileKind, name: &str, contents: &[u8]) -> Result<bool> {
        files::remove_exact(self, kind, name, contents)
    }

    fn remove(&self, kind: FileKind, name: &str) -> Result<()> {
        files::remove(self, kind, name)
    }

    fn removal_batch(&self) -> usize {
        batch::size(&self.bucket)
    }

    fn remove_many(&self, kind: FileKind, names: &[String]) -> Result<()> {
        if batch::remove(&self.bucket, kind, names)? {
            return Ok(());
        }
        let remove = |name: &String| match files::remove_if_there(self, kind, name) {
            Err(error) if error.is_not_found() => Ok(()),
            result => result,
        };
        files::in_parallel(names, self.parallel(), remove).map(drop)
    }

    fn sync_folder(&self, _kind: FileKind, _name: &str) -> Result<()> {
        // The server acknowledges an upload when it is durable.
        Ok(())
    }

    fn parallel(&self) -> usize {
        self.bucket.context.connections
    }

    fn lock_period(&self) -> Option<Duration> {
        self.bucket.options.lock_for
    }

    fn can_lock(&self) -> Result<bool> {
        self.bucket.can_lock()
    }

    fn locked_until(&self, kind: FileKind, name: &str) -> Result<Option<SystemTime>> {
        self.bucket.locked_until(kind, name)
    }

    fn extend_lock(&self, kind: FileKind, name: &str) -> Result<Option<SystemTime>> {
        self.bucket.extend_lock(kind, name)
    }

    fn free_bytes(&self) -> Result<Option<u64>> {
        Ok(None)
    }
}
