//! Signed requests to one bucket, and the interpretation of refusals.

use super::address::S3Address;
use super::lock_headers;
use super::s3_options::{BucketLookup, S3Options, ServerSideEncryption};
use super::sign::{Unsigned, escaped_path, escaped_query, signature};
use super::xml::{self, Complaint};
use crate::storage::http::{self, Call, HttpClient, HttpContext, HttpResponse, S3Keys, ServerPlace, Upload};
use crate::storage::{Error, FileAction, FileKind, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, TimeDelta, Utc};
use md5::Md5;
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use std::sync::{OnceLock, PoisonError, RwLock};

/// The region if none is configured and none is in the server's name.
const DEFAULT_REGION: &str = "us-east-1";

/// The maximum age of a signature, and how far in the future it may be.
const SIGNATURE_LASTS: TimeDelta = TimeDelta::minutes(15);

/// A bucket on a server.
#[derive(Debug)]
pub(crate) struct Bucket {
    pub(super) address: S3Address,
    pub(super) options: S3Options,
    pub(super) context: HttpContext,
    pub(super) client: HttpClient,
    /// The host name, including the bucket if the lookup requires it.
    host: String,
    /// The prefix of the path of every key.
    root: String,
    region: RwLock<String>,
    keys: OnceLock<S3Keys>,
    /// Whether it can lock objects, if known.
    pub(super) can_lock: OnceLock<bool>,
    /// Whether it can remove several files at once, if known.
    pub(super) removes_many: OnceLock<bool>,
}

/// A request to the bucket.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BucketRequest<'a> {
    pub(super) method: &'static str,
    /// Empty for the bucket itself.
    pub(super) key: &'a str,
    pub(super) query: &'a [(&'a str, String)],
    pub(super) headers: &'a [(&'static str, String)],
    /// The maximum length of the response's body.
    pub(super) longest_bytes: u64,
}

impl Bucket {
    pub(super) fn new(
        address: S3Address,
        options: &S3Options,
        context: &HttpContext,
    ) -> std::result::Result<Bucket, http::Error> {
        let place = ServerPlace::Network { is_encrypted: address.is_encrypted };
        let client = HttpClient::new(&address.server, place, context)?;
        let name = address.server.split(':').next().unwrap_or_default();
        let of_cloud = [".amazonaws.com", ".amazonaws.com.cn", ".aliyuncs.com"];
        let in_host = match options.lookup {
            BucketLookup::Dns => true,
            BucketLookup::Path => false,
            // A name with a dot would not match the server's wildcard certificate.
            BucketLookup::Auto => {
                of_cloud.iter().any(|cloud| name.ends_with(cloud)) && !address.bucket.contains(['.', '_'])
            }
        };
        let (host, root) = match in_host {
            true => (format!("{}.{}", address.bucket, address.server), "/".to_owned()),
            false => (address.server.clone(), format!("/{}/", address.bucket)),
        };
        // A name such as s3.eu-central-1.amazonaws.com.
        let of_name = name.strip_prefix("s3.").and_then(|rest| rest.split_once(".amazonaws.com"));
        let of_name = of_name.map(|(region, _)| region.to_owned()).filter(|region| !region.is_empty());
        let region = options.region.clone().or(of_name).unwrap_or_else(|| DEFAULT_REGION.to_owned());
        Ok(Bucket {
            address,
            options: options.clone(),
            context: context.clone(),
            client,
            host,
            root,
            region: RwLock::new(region),
            keys: OnceLock::new(),
            can_lock: OnceLock::new(),
            removes_many: OnceLock::new(),
        })
    }

    /// Returns the repository's address.
    pub(super) fn url(&self) -> String {
        self.address.to_string()
    }

    /// Returns the region that requests are signed for.
    pub(super) fn region(&self) -> String {
        self.region.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn server_error(&self, source: http::Error) -> Error {
        Error::Http { url: self.url(), source: Box::new(source) }
    }

    /// Returns the error for an invalid response.
    pub(super) fn protocol(&self, reason: impl Into<String>) -> Error {
        self.server_error(self.client.protocol(reason))
    }

    fn keys(&self) -> Result<&S3Keys> {
        if let Some(keys) = self.keys.get() {
            return Ok(keys);
        }
        let server = self.client.server().to_owned();
        let found = self.context.credentials.s3_keys();
        let found = found.map_err(|reason| self.server_error(http::Error::Secret(reason)))?;
        let found = found.ok_or_else(|| self.server_error(http::Error::NoKeys { server }))?;
        Ok(self.keys.get_or_init(|| found))
    }

    /// Sends a request and returns any response that does not concern keys or clock. If the response names another
    /// region for the bucket, the request is repeated with that.
    pub(super) fn call(&self, request: BucketRequest, upload: Option<Upload>) -> Result<HttpResponse> {
        let answer = self.call_once(request, upload)?;
        if matches!(answer.status, 301 | 307 | 400 | 403) {
            let stated = answer.header("x-amz-bucket-region").map(str::to_owned);
            let stated = stated.or_else(|| xml::text_of(&answer.body, "Region")).filter(|region| !region.is_empty());
            if let Some(region) = stated.filter(|region| *region != self.region()) {
                *self.region.write().unwrap_or_else(PoisonError::into_inner) = region;
                return self.call_once(request, upload);
            }
        }
        Ok(answer)
    }

    fn call_once(&self, request: BucketRequest, upload: Option<Upload>) -> Result<HttpResponse> {
        let BucketRequest { method, key, query, headers, longest_bytes } = request;
        let payload = hex::encode(Sha256::digest(upload.map_or(&[][..], |upload| upload.contents)));
        let path = match key {
            "" if self.root == "/" => "/".to_owned(),
            "" => escaped_path(self.root.trim_end_matches('/')),
            key => format!("{}{}", escaped_path(&self.root), escaped_path(key)),
        };
        let query = escaped_query(query);
        let mut headers = headers.to_vec();
        let is_removal = request.query.iter().any(|(name, _)| *name == "delete");
        let needs_md5 = !self.address.is_encrypted || self.options.lock_for.is_some() || is_removal;
        if let Some(Upload { contents, .. }) = upload.filter(|_| needs_md5) {
            // Not every server verifies the signed SHA-256, and without TLS nothing else detects a bit error. The
            // header is mandatory for locked objects, and for a list of objects to remove.
            headers.push(("content-md5", STANDARD.encode(Md5::digest(contents))));
        }
        let unsigned =
            Unsigned { method, host: &self.host, path: &path, query: &query, headers: &headers, payload: &payload };
        let signed = signature(&unsigned, self.keys()?, &self.region(), Utc::now());
        let headers: Vec<_> = headers.into_iter().chain(signed).collect();
        let scheme = if self.address.is_encrypted { "https" } else { "http" };
        let question = if query.is_empty() { String::new() } else { format!("?{query}") };
        let url = format!("{scheme}://{}{path}{question}", self.host);
        match self.client.call(&Call { method, url: &url, headers: &headers, longest_bytes }, upload) {
            Ok(Some(answer)) => self.checked(answer),
            Ok(None) => Err(Error::Interrupted),
            Err(_) if self.client.is_stopped() => Err(Error::Interrupted),
            Err(error) => Err(self.server_error(error)),
        }
    }

    /// Returns an error if the response says that the keys or the clock are wrong, or that the request was altered in
    /// transit.
    fn checked(&self, answer: HttpResponse) -> Result<HttpResponse> {
        if answer.is_done() {
            return Ok(answer);
        }
        let server = self.client.server().to_owned();
        let Complaint { code, message } = xml::complaint(&answer.body).unwrap_or_default();
        match code.as_str() {
            "InvalidAccessKeyId"
            | "SignatureDoesNotMatch"
            | "ExpiredToken"
            | "InvalidToken"
            | "TokenRefreshRequired" => {
                Err(self.server_error(http::Error::Keys { server, reason: one_line(&message, &code) }))
            }
            "BadDigest" | "IncompleteBody" | "XAmzContentSHA256Mismatch" => {
                Err(self.server_error(http::Error::Corrupted { server, reason: code }))
            }
            "RequestTimeTooSkewed" => Err(self.server_error(http::Error::Clock { server })),
            // The response to HEAD has no body that could contain the reason.
            _ if answer.status == 403 && answer.body.is_empty() && answer.header("date").is_some_and(is_too_far) => {
                Err(self.server_error(http::Error::Clock { server }))
            }
            _ if answer.status == 401 => {
                Err(self.server_error(http::Error::Keys { server, reason: "status 401".to_owned() }))
            }
            _ => Ok(answer),
        }
    }

    /// Converts a response that is a refusal.
    pub(super) fn refusal(&self, action: FileAction, kind: FileKind, name: &str, answer: &HttpResponse) -> Error {
        let (action, path) = (action.to_string(), self.shown(kind, name));
        let Complaint { code, message } = xml::complaint(&answer.body).unwrap_or_default();
        let status = answer.status;
        let reason = one_line(&message, if code.is_empty() { "" } else { &code });
        let reason = if reason.is_empty() { format!("status {status}") } else { reason };
        match (status, code.as_str()) {
            (404, "NoSuchBucket") if action != "read" => self.server_error(http::Error::Refused {
                action,
                path,
                status,
                reason: format!("no bucket {}", self.address.bucket),
            }),
            (404, _) => Error::NotFound { url: self.url(), kind, name: name.to_owned() },
            _ if answer.is_size_limit_of_proxy() => self.server_error(http::Error::TooLarge { path }),
            (413 | 507, _) | (_, "QuotaExceeded" | "XMinioStorageFull") => Error::NoSpace {
                url: self.url(),
                path: PathBuf::from(path),
                source: std::io::ErrorKind::StorageFull.into(),
            },
            // An archived object, which cannot be read before it is restored.
            (403, "InvalidObjectState") => self.server_error(http::Error::Refused { action, path, status, reason }),
            (403 | 405, _) => self.server_error(http::Error::Denied { action, path, reason }),
            _ => self.server_error(http::Error::Refused { action, path, status, reason }),
        }
    }

    /// Returns the key of a file.
    pub(super) fn key(&self, kind: FileKind, name: &str) -> String {
        let folder = self.folder_key(kind);
        match kind {
            FileKind::Config => folder,
            FileKind::Pack => format!("{folder}{}/{name}", name.get(..2).unwrap_or(name)),
            _ => format!("{folder}{name}"),
        }
    }

    /// Returns the prefix of the keys of files of a kind.
    pub(super) fn folder_key(&self, kind: FileKind) -> String {
        let above = if self.address.folder.is_empty() { String::new() } else { format!("{}/", self.address.folder) };
        let slash = if kind == FileKind::Config { "" } else { "/" };
        format!("{above}{}{slash}", kind.folder())
    }

    /// Returns a file's name for messages.
    fn shown(&self, kind: FileKind, name: &str) -> String {
        match kind {
            FileKind::Config => format!("{}/config", self.address),
            _ => format!("{}/{}/{name}", self.address, kind.folder()),
        }
    }

    /// Returns the headers for an upload.
    pub(super) fn headers_of_upload(&self, kind: FileKind) -> Vec<(&'static str, String)> {
        let mut headers = vec![("content-type", "application/octet-stream".to_owned())];
        if let Some(class) = self.options.storage_class.as_ref().filter(|_| kind == FileKind::Pack) {
            headers.push(("x-amz-storage-class", class.clone()));
        }
        match &self.options.encryption {
            None => {}
            Some(ServerSideEncryption::Aes256) => headers.push(("x-amz-server-side-encryption", "AES256".to_owned())),
            Some(ServerSideEncryption::Kms(key)) => {
                headers.push(("x-amz-server-side-encryption", "aws:kms".to_owned()));
                headers.extend(key.iter().map(|key| ("x-amz-server-side-encryption-aws-kms-key-id", key.clone())));
            }
        }
        // The lock files of repositories are short-lived.
        if let Some(period) = self.options.lock_for.filter(|_| kind != FileKind::Lock) {
            headers.extend(lock_headers::headers(period));
        }
        headers
    }
}

/// Returns whether the date of a response differs so much from our clock that the server accepts no signature made now.
fn is_too_far(date: &str) -> bool {
    DateTime::parse_from_rfc2822(date).is_ok_and(|date| (Utc::now() - date.to_utc()).abs() > SIGNATURE_LASTS)
}

/// Returns the first line of a server's message, shortened, or `otherwise` if it is empty.
fn one_line(message: &str, otherwise: &str) -> String {
    let line: String =
        message.lines().next().unwrap_or_default().chars().filter(|c| !c.is_control()).take(200).collect();
    if line.is_empty() { otherwise.to_owned() } else { line.trim_end_matches('.').to_owned() }
}
