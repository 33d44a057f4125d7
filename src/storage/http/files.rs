//! Files that are addressed by name: the common part of REST servers and buckets.

use super::HttpResponse;
use crate::helper_thread;
use crate::storage::{Error, FileAction, FileInfo, FileKind, Result, Storage};
use std::thread;

/// A storage in which each file has a URL.
pub(in crate::storage) trait HttpFiles: Storage {
    /// Sends a request about one file, without a body.
    fn ask(
        &self,
        method: &'static str,
        kind: FileKind,
        name: &str,
        headers: &[(&'static str, String)],
        longest_bytes: u64,
    ) -> Result<HttpResponse>;

    /// Converts a response that is a refusal.
    fn refusal(&self, action: FileAction, kind: FileKind, name: &str, answer: &HttpResponse) -> Error;

    /// Returns the error for an invalid response.
    fn protocol(&self, reason: &str) -> Error;
}

/// Implements [`Storage::list`] for the config, which is at most one file.
pub(in crate::storage) fn list_config(storage: &impl HttpFiles) -> Result<Vec<FileInfo>> {
    match size(storage, FileKind::Config, "") {
        Ok(size_bytes) => Ok(vec![FileInfo { name: String::new(), size_bytes }]),
        Err(error) if error.is_not_found() => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Implements [`Storage::size`].
pub(in crate::storage) fn size(storage: &impl HttpFiles, kind: FileKind, name: &str) -> Result<u64> {
    let answer = storage.ask("HEAD", kind, name, &[], 0)?;
    if !answer.is_done() {
        return Err(storage.refusal(FileAction::Read, kind, name, &answer));
    }
    answer.length().ok_or_else(|| storage.protocol("it sends no length"))
}

/// Implements [`Storage::read`].
pub(in crate::storage) fn read(storage: &impl HttpFiles, kind: FileKind, name: &str) -> Result<Vec<u8>> {
    let answer = storage.ask("GET", kind, name, &[], kind.longest_bytes())?;
    if !answer.is_done() {
        return Err(storage.refusal(FileAction::Read, kind, name, &answer));
    }
    match answer.body.len() as u64 > kind.longest_bytes() {
        true => Err(Error::too_long(storage.url(), kind, name)),
        false => Ok(answer.body),
    }
}

/// Implements [`Storage::read_range`].
pub(in crate::storage) fn read_range(
    storage: &impl HttpFiles,
    kind: FileKind,
    name: &str,
    offset: u64,
    length: usize,
) -> Result<Vec<u8>> {
    let too_short = |wanted_bytes| Error::TooShort { url: storage.url(), kind, name: name.to_owned(), wanted_bytes };
    let end = offset.checked_add(length as u64);
    let Some(end) = end.filter(|end| length > 0 && *end <= kind.longest_bytes()) else {
        // An empty or impossible range cannot be requested; only the size of the file can.
        return match size(storage, kind, name)? >= offset && length == 0 {
            true => Ok(Vec::new()),
            false => Err(too_short(offset.saturating_add(length as u64))),
        };
    };
    let range = [("range", format!("bytes={offset}-{}", end - 1))];
    // A server that does not support ranges sends the whole file, of which only the beginning is read.
    let answer = storage.ask("GET", kind, name, &range, end)?;
    if answer.status == 416 {
        return Err(too_short(end));
    }
    if !answer.is_done() {
        return Err(storage.refusal(FileAction::Read, kind, name, &answer));
    }
    // Some servers send the requested range with a status for the whole file.
    let is_part = answer.status == 206 || answer.header("content-range").is_some();
    let begin = if is_part { 0 } else { usize::try_from(offset).unwrap_or(usize::MAX) };
    match begin.checked_add(length).and_then(|end| answer.body.get(begin..end)) {
        Some(bytes) => Ok(bytes.to_vec()),
        None => Err(too_short(end)),
    }
}

/// Implements [`Storage::remove`].
pub(in crate::storage) fn remove(storage: &impl HttpFiles, kind: FileKind, name: &str) -> Result<()> {
    // Some servers report success for a file that does not exist.
    size(storage, kind, name)?;
    remove_if_there(storage, kind, name)
}

/// Like [`remove`], for a file that may be gone.
pub(in crate::storage) fn remove_if_there(storage: &impl HttpFiles, kind: FileKind, name: &str) -> Result<()> {
    let answer = storage.ask("DELETE", kind, name, &[], 0)?;
    match answer.is_done() {
        true => Ok(()),
        false => Err(storage.refusal(FileAction::Remove, kind, name, &answer)),
    }
}

/// Implements [`Storage::remove_exact`].
pub(in crate::storage) fn remove_exact(
    storage: &impl HttpFiles,
    kind: FileKind,
    name: &str,
    contents: &[u8],
) -> Result<bool> {
    // A file that was created exclusively is not overwritten, so the file that is removed is the one that was compared.
    if read(storage, kind, name)? != contents {
        return Ok(false);
    }
    remove(storage, kind, name).map(|()| true)
}

/// Processes items with this number of parallel requests. Returns the first error.
pub(in crate::storage) fn in_parallel<I: Sync, T: Send>(
    items: &[I],
    requests: usize,
    work: impl Fn(&I) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let share = items.len().div_ceil(requests.max(1)).max(1);
    thread::scope(|scope| {
        let work = &work;
        let workers: Vec<_> = items
            .chunks(share)
            .map(|items| helper_thread::start(scope, move || items.iter().map(work).collect::<Result<Vec<T>>>()))
            .collect();
        let mut done = Vec::with_capacity(items.len());
        for worker in workers {
            match worker.join() {
                Ok(part) => done.extend(part?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(done)
    })
}
