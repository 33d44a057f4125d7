//! A repository on a REST server, with version 2 of restic's protocol. Listings of version 1 are supported, too.
//!
//! A file is durable and complete when its upload was acknowledged. Most servers never overwrite a file, and
//! append-only ones remove only locks. Whether a server overwrites is determined when a file is created exclusively. If
//! it does, the file is written and, after a moment, read back; if it has other contents, another process has created
//! it.

use super::RestAddress;
use crate::storage::http::{self, Call, HttpClient, HttpContext, HttpFiles, HttpResponse, Upload, exclusive, files};
use crate::storage::sftp::Secret;
use crate::storage::{Error, FileAction, FileInfo, FileKind, Gate, Result, Storage, Transit};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};
use zeroize::Zeroizing;

/// The content type of a listing with sizes.
const LISTING_2: &str = "application/vnd.x.restic.rest.v2";

/// The maximum length of a listing: that of a million files takes a tenth of it.
const LONGEST_LISTING_BYTES: u64 = 1 << 30;

/// A folder on a REST server.
#[derive(Debug)]
pub struct RestStorage {
    address: RestAddress,
    client: HttpClient,
    context: HttpContext,
    /// The `Authorization` header, once it was determined.
    login: OnceLock<Option<Secret>>,
    /// Whether the server refuses to overwrite a file, if known.
    refuses_overwriting: OnceLock<bool>,
    /// Held while a file is created exclusively or replaced.
    creating: Mutex<()>,
}

/// A file in a listing.
#[derive(Deserialize)]
struct ListedFile {
    name: String,
    size: u64,
}

impl RestStorage {
    /// Opens the repository at `address`, which need not exist yet. Does not connect yet.
    pub fn new(address: RestAddress, context: &HttpContext) -> std::result::Result<RestStorage, http::Error> {
        let client = HttpClient::new(&address.server, address.place(), context)?;
        Ok(RestStorage {
            address,
            client,
            context: context.clone(),
            login: OnceLock::new(),
            refuses_overwriting: OnceLock::new(),
            creating: Mutex::default(),
        })
    }

    fn file_url(&self, kind: FileKind, name: &str) -> String {
        match kind {
            FileKind::Config => format!("{}config", self.address.base()),
            _ => format!("{}{}/{name}", self.address.base(), kind.folder()),
        }
    }

    fn server_error(&self, source: http::Error) -> Error {
        Error::Http { url: self.url(), source: Box::new(source) }
    }

    fn login(&self) -> Result<Option<&str>> {
        let login = match self.login.get() {
            Some(login) => login,
            None => {
                let found = self.context.credentials.login(self.address.user.as_deref());
                let found = found.map_err(|reason| self.server_error(http::Error::Secret(reason)))?;
                let header = found.map(|(user, password)| {
                    let pair = Zeroizing::new(format!("{user}:{}", password.reveal()));
                    Secret::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())))
                });
                self.login.get_or_init(|| header)
            }
        };
        Ok(login.as_ref().map(Secret::reveal))
    }

    fn call(
        &self,
        method: &'static str,
        url: &str,
        headers: &[(&'static str, String)],
        longest_bytes: u64,
        upload: Option<Upload>,
    ) -> Result<HttpResponse> {
        let mut headers = headers.to_vec();
        if let Some(login) = self.login()? {
            headers.push(("authorization", login.to_owned()));
        }
        let answered = self.client.call(&Call { method, url, headers: &headers, longest_bytes }, upload);
        match answered {
            Ok(Some(answer)) if answer.status == 401 => Err(self.server_error(http::Error::Login {
                server: self.client.server().to_owned(),
                reason: match self.login()?.is_some() {
                    true => "wrong user name or password".to_owned(),
                    false => "it asks for a user name and a password".to_owned(),
                },
            })),
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(Error::Interrupted),
            Err(_) if self.client.is_stopped() => Err(Error::Interrupted),
            Err(error) => Err(self.server_error(error)),
        }
    }

    /// Returns a file's name for messages.
    fn shown(&self, kind: FileKind, name: &str) -> String {
        match kind {
            FileKind::Config => format!("{}config", self.address),
            _ => format!("{}{}/{name}", self.address, kind.folder()),
        }
    }

    /// Uploads a file and returns the response, which may be a refusal to overwrite one.
    fn post(&self, kind: FileKind, name: &str, contents: &[u8], gate: Gate) -> Result<HttpResponse> {
        let headers = [("content-type", "application/octet-stream".to_owned())];
        self.call("POST", &self.file_url(kind, name), &headers, 0, Some(Upload { contents, gate }))
    }

    /// Replaces a file that the server does not overwrite, unless it already has these contents.
    fn replace(&self, kind: FileKind, name: &str, contents: &[u8], gate: Gate, refused: &HttpResponse) -> Result<()> {
        let _alone = self.creating.lock().unwrap_or_else(PoisonError::into_inner);
        match self.read(kind, name) {
            Ok(there) if there == contents => return Ok(()),
            Ok(_) | Err(Error::TooLong { .. }) => {}
            // There is no such file, so the upload was refused for another reason.
            Err(error) if error.is_not_found() => {
                return Err(self.refusal(FileAction::Write, kind, name, refused));
            }
            Err(error) => return Err(error),
        }
        self.remove(kind, name)?;
        let answer = self.post(kind, name, contents, gate)?;
        match answer.is_done() {
            true => Ok(()),
            false => Err(self.refusal(FileAction::Write, kind, name, &answer)),
        }
    }

    /// Requests the size of each file in a listing of version 1.
    fn with_sizes(&self, kind: FileKind, names: &[String]) -> Result<Vec<FileInfo>> {
        let found = files::in_parallel(names, self.context.connections, |name| match self.size(kind, name) {
            Ok(size_bytes) => Ok(Some(FileInfo { name: name.clone(), size_bytes })),
            // Removed meanwhile, by a prune or an unlock.
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        });
        Ok(found?.into_iter().flatten().collect())
    }
}

impl HttpFiles for RestStorage {
    fn ask(
        &self,
        method: &'static str,
        kind: FileKind,
        name: &str,
        headers: &[(&'static str, String)],
        longest_bytes: u64,
    ) -> Result<HttpResponse> {
        self.call(method, &self.file_url(kind, name), headers, longest_bytes, None)
    }

    fn refusal(&self, action: FileAction, kind: FileKind, name: &str, answer: &HttpResponse) -> Error {
        let (action, path) = (action.to_string(), self.shown(kind, name));
        let text = String::from_utf8_lossy(&answer.body);
        let line = text.lines().next().unwrap_or_default().trim();
        let shown: String = line.chars().filter(|c| !c.is_control()).take(200).collect();
        let reason = if shown.is_empty() { format!("status {}", answer.status) } else { shown };
        match answer.status {
            404 => Error::NotFound { url: self.url(), kind, name: name.to_owned() },
            403 | 405 => self.server_error(http::Error::Denied { action, path, reason }),
            _ if answer.is_size_limit_of_proxy() => self.server_error(http::Error::TooLarge { path }),
            413 | 507 => Error::NoSpace {
                url: self.url(),
                path: PathBuf::from(path),
                source: std::io::ErrorKind::StorageFull.into(),
            },
            status => self.server_error(http::Error::Refused { action, path, status, reason }),
        }
    }

    fn protocol(&self, reason: &str) -> Error {
        self.server_error(self.client.protocol(reason))
    }
}

impl Storage for RestStorage {
    fn url(&self) -> String {
        self.address.to_string()
    }

    fn transit(&self) -> Transit {
        if self.address.is_protected() { Transit::Protected } else { Transit::Unprotected }
    }

    fn create_layout(&self) -> Result<()> {
        let url = format!("{}?create=true", self.address.base());
        let answer = self.call("POST", &url, &[], 0, Some(Upload { contents: &[], gate: &|_| true }))?;
        match answer.is_done() {
            true => Ok(()),
            false => Err(self.refusal(FileAction::Create, FileKind::Config, "", &answer)),
        }
    }

    fn list(&self, kind: FileKind) -> Result<Vec<FileInfo>> {
        if kind == FileKind::Config {
            return files::list_config(self);
        }
        let url = format!("{}{}/", self.address.base(), kind.folder());
        let answer = self.call("GET", &url, &[("accept", LISTING_2.to_owned())], LONGEST_LISTING_BYTES, None)?;
        if answer.status == 404 {
            // rclone on top of an object storage has no empty folders. Any other server, or a proxy before it, does not
            // find the repository at the moment: an empty list would mean that nothing is needed.
            let is_rclone = answer.header("server").is_some_and(|server| server.starts_with("rclone/"));
            return match is_rclone || kind == FileKind::Lock {
                true => Ok(Vec::new()),
                false => Err(self.server_error(http::Error::NoFolder { path: self.shown(kind, "") })),
            };
        }
        if !answer.is_done() {
            return Err(self.refusal(FileAction::List, kind, "", &answer));
        }
        let invalid = |error: serde_json::Error| self.server_error(self.client.protocol(error.to_string()));
        match answer.header("content-type").is_some_and(|kind| kind.starts_with(LISTING_2)) {
            true => {
                let listed: Option<Vec<ListedFile>> = serde_json::from_slice(&answer.body).map_err(invalid)?;
                let files = listed.unwrap_or_default().into_iter();
                Ok(files.map(|ListedFile { name, size }| FileInfo { name, size_bytes: size }).collect())
            }
            false => {
                let names: Option<Vec<String>> = serde_json::from_slice(&answer.body).map_err(invalid)?;
                self.with_sizes(kind, &names.unwrap_or_default())
            }
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
        let answer = self.post(kind, name, contents, gate)?;
        match answer.status {
            200..300 => Ok(()),
            403 => self.replace(kind, name, contents, gate, &answer),
            _ => Err(self.refusal(FileAction::Write, kind, name, &answer)),
        }
    }

    fn create(&self, kind: FileKind, name: &str, contents: &[u8]) -> Result<()> {
        let _alone = self.creating.lock().unwrap_or_else(PoisonError::into_inner);
        if self.refuses_overwriting.get() != Some(&true) {
            exclusive::refuse_existing(self, kind, name)?;
        }
        let answer = self.post(kind, name, contents, &|_| true)?;
        if answer.status == 403 {
            exclusive::refuse_existing(self, kind, name)?;
            return Err(self.refusal(FileAction::Write, kind, name, &answer));
        }
        if !answer.is_done() {
            return Err(self.refusal(FileAction::Write, kind, name, &answer));
        }
        let refuses = match self.refuses_overwriting.get() {
            Some(refuses) => *refuses,
            // Repeating the upload is harmless, and shows what the server does.
            None => {
                let refuses = self.post(kind, name, contents, &|_| true)?.status == 403;
                *self.refuses_overwriting.get_or_init(|| refuses)
            }
        };
        if refuses {
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

    fn sync_folder(&self, _kind: FileKind, _name: &str) -> Result<()> {
        // The server acknowledges an upload when it is durable.
        Ok(())
    }

    fn parallel(&self) -> usize {
        self.context.connections
    }

    fn free_bytes(&self) -> Result<Option<u64>> {
        Ok(None)
    }
}
