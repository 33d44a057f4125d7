//! A repository on an SFTP server, with the layout of a local one.
//!
//! A file is written under a temporary name in the same folder (`…-tmp-…`, never listed), synced (`fsync@openssh.com`),
//! renamed, and its folder synced: a reader sees all of it or nothing. The folders of packs are created with the first
//! pack, the root only by [`Storage::create_layout`], so that nothing is written to the empty mount point of a disk
//! that the server has not mounted.

use super::files::PIECE_BYTES;
use super::look::RemoteEntry;
use super::{Pool, SftpAddress, SftpClient, SftpFault, SftpStatus, SshContext, SshTarget};
use crate::helper_thread;
use crate::storage::{Error, FileAction, FileInfo, FileKind, Gate, Result, Storage, Transit};
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The part of a name that marks a temporary file.
const TEMPORARY_MARK: &str = "-tmp-";

/// A temporary file older than this has no active writer.
const STALE_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// A write that failed with less free space than this beyond its own size failed because the disk is full.
const ROOM_BYTES: u64 = 1 << 20;

/// A folder on a server.
#[derive(Debug)]
pub struct SftpStorage {
    target: SftpAddress,
    pool: Pool,
    connections: usize,
    /// Stale temporary files that listings found. The next write removes them; readers remove nothing.
    stale: Mutex<Vec<String>>,
    /// Whether a write exceeded the user's quota.
    quota_was_met: AtomicBool,
}

impl SftpStorage {
    /// Opens the repository at `target`, which need not exist yet. Reads `ssh_config` but does not connect.
    pub fn new(target: SftpAddress, ssh_context: &SshContext) -> super::Result<SftpStorage> {
        let ssh_target = SshTarget::find(&target, ssh_context)?;
        let pool = Pool::new(ssh_target, ssh_context.clone());
        let connections = ssh_context.connections.max(1);
        Ok(SftpStorage { target, pool, connections, stale: Mutex::default(), quota_was_met: AtomicBool::default() })
    }

    fn folder(&self, kind: FileKind, name: &str) -> String {
        let root = &self.target.path;
        match kind {
            FileKind::Config => root.clone(),
            FileKind::Pack => format!("{root}/{}/{}", kind.folder(), name.get(..2).unwrap_or(name)),
            _ => format!("{root}/{}", kind.folder()),
        }
    }

    fn path(&self, kind: FileKind, name: &str) -> String {
        match kind {
            FileKind::Config => format!("{}/{}", self.target.path, kind.folder()),
            _ => format!("{}/{name}", self.folder(kind, name)),
        }
    }

    /// Returns a path for messages.
    fn shown(&self, path: &str) -> String {
        let below = path.strip_prefix(&self.target.path).unwrap_or(path);
        format!("{}{below}", self.target)
    }

    /// Converts a fault with one file to an error.
    fn error(&self, action: FileAction, kind: FileKind, name: &str, path: &str, fault: SftpFault) -> Error {
        match fault {
            fault if fault.is_not_found() && action != FileAction::Write => {
                Error::NotFound { url: self.url(), kind, name: name.to_owned() }
            }
            fault => self.fault(action, path, fault),
        }
    }

    fn fault(&self, action: FileAction, path: &str, fault: SftpFault) -> Error {
        fault.explain(&self.url(), action, &self.shown(path))
    }

    /// Creates a folder unless it exists.
    fn make_folder(files: &SftpClient, path: &str) -> std::result::Result<(), SftpFault> {
        Self::is_new(files, path, files.make_folder(path)).map(drop)
    }

    /// Like [`SftpStorage::make_folder`], and syncs the parent.
    fn make_folder_synced(files: &SftpClient, path: &str) -> std::result::Result<(), SftpFault> {
        match Self::is_new(files, path, files.make_folder_synced(path, parent(path)))? {
            true => Ok(()),
            // Another process may have created it without having synced it yet.
            false => files.sync_folder(parent(path)),
        }
    }

    /// Returns whether a folder was created, or `false` if it exists already: servers have no status for that.
    fn is_new(
        files: &SftpClient,
        path: &str,
        made: std::result::Result<(), SftpFault>,
    ) -> std::result::Result<bool, SftpFault> {
        match made {
            Err(SftpFault::Refused(refusal)) => match files.stat(path) {
                Ok(stat) if stat.is_folder => Ok(false),
                Err(lost @ SftpFault::Server(_)) => Err(lost),
                _ => Err(SftpFault::Refused(refusal)),
            },
            other => other.map(|()| true),
        }
    }

    fn make_root(&self, files: &SftpClient) -> std::result::Result<(), SftpFault> {
        let root = &self.target.path;
        if files.stat(root).is_ok_and(|stat| stat.is_folder) {
            // An earlier attempt may have created it and been interrupted before the sync.
            return files.sync_folder(parent(root));
        }
        let ends = root.match_indices('/').map(|(at, _)| at).filter(|at| *at > 0).chain([root.len()]);
        for end in ends {
            let folder = &root[..end];
            if !files.stat(folder).is_ok_and(|stat| stat.is_folder) {
                Self::make_folder(files, folder)?;
            }
            files.sync_folder(parent(folder))?;
        }
        Ok(())
    }

    /// Creates a missing folder below the root, but never the root itself: without it, this fails.
    fn make_missing_folder(
        &self,
        files: &SftpClient,
        kind: FileKind,
        folder: &str,
    ) -> std::result::Result<(), SftpFault> {
        let data = format!("{}/{}", self.target.path, kind.folder());
        match Self::make_folder_synced(files, folder) {
            // The parent is missing too; a tool that copied the repository left it out.
            Err(fault) if fault.is_not_found() && folder != data => {
                Self::make_folder_synced(files, &data)?;
                Self::make_folder_synced(files, folder)
            }
            other => other,
        }
    }

    fn write_file(
        &self,
        files: &SftpClient,
        kind: FileKind,
        name: &str,
        contents: &[u8],
        gate: Gate,
    ) -> std::result::Result<(), SftpFault> {
        let (folder, path) = (self.folder(kind, name), self.path(kind, name));
        let temporary = temporary_beside(&path);
        if kind == FileKind::Lock && gate(contents.len()) {
            // Everyone ignores an incomplete lock.
            match files.store_at_once(&folder, &temporary, &path, contents) {
                // Fall through to the slower way, which finds the cause.
                Err(SftpFault::Refused(_)) => {
                    let _ = files.remove(&path);
                    let _ = files.remove(&temporary);
                }
                done => return done,
            }
        }
        let stored = match files.store(&folder, &temporary, &path, contents, gate) {
            Err(fault) if fault.is_not_found() => {
                self.make_missing_folder(files, kind, &folder)?;
                files.store(&folder, &temporary, &path, contents, gate)
            }
            other => other,
        };
        stored.map_err(|fault| {
            let fault = self.explain_write(files, &temporary, contents.len(), fault);
            if let SftpFault::Refused(_) = fault {
                let _ = files.remove(&temporary);
            }
            fault
        })
    }

    /// Finds the cause of a failed write that the server reports only as "Failure". The free space is checked while the
    /// partial file still occupies it. A quota is not visible through SFTP, but when it is exhausted, a second file of
    /// the size of one request cannot be written either.
    fn explain_write(&self, files: &SftpClient, temporary: &str, length: usize, fault: SftpFault) -> SftpFault {
        let SftpFault::Refused(SftpStatus::Other(words)) = fault else {
            return fault;
        };
        let needed = (length as u64).saturating_add(ROOM_BYTES);
        match files.room(&self.target.path) {
            Ok(Some(room)) if room.is_read_only => SftpFault::Refused(SftpStatus::ReadOnly),
            Ok(Some(room)) if room.is_out_of_files || room.free_bytes < needed => {
                SftpFault::Refused(SftpStatus::NoSpace)
            }
            // When several writes fail at once, removing the first partial file frees space that lets the probes of the
            // others succeed.
            Ok(Some(_)) if nothing_fits_beside(files, temporary) || self.quota_was_met.load(Ordering::Relaxed) => {
                self.quota_was_met.store(true, Ordering::Relaxed);
                SftpFault::Refused(SftpStatus::Quota)
            }
            _ => {
                tracing::debug!("{temporary}: {words}");
                SftpFault::Refused(SftpStatus::Other(words))
            }
        }
    }

    /// Removes the stale temporary files that listings found. Failures are harmless.
    fn sweep(&self) {
        let stale = std::mem::take(&mut *self.stale.lock().unwrap_or_else(PoisonError::into_inner));
        for path in stale {
            tracing::debug!(path, "removing a stale temporary file");
            let _ = self.pool.with(|files| files.remove(&path));
        }
    }

    /// Lists the files of one folder.
    fn list_folder(&self, folder: &str) -> Result<Vec<FileInfo>> {
        self.files_in(folder, self.pool.with(|files| files.list(folder)))
    }

    /// Reads a file, if one is given, and lists the files of several kinds, except packs.
    fn look(&self, file: Option<(FileKind, &str)>, kinds: &[FileKind]) -> Result<(Vec<u8>, Vec<Vec<FileInfo>>)> {
        let path = file.map(|(kind, name)| (self.path(kind, name), kind.longest_bytes()));
        let folders: Vec<String> = kinds.iter().map(|kind| self.folder(*kind, "")).collect();
        let looked = self.pool.with(|files| {
            let file = path.as_ref().map(|(path, most_bytes)| (path.as_str(), *most_bytes));
            Ok(files.look(file, &folders)?)
        });
        let look = looked.map_err(|fault| self.fault(FileAction::List, &self.target.path, fault))?;
        let contents = match (file, path, look.contents) {
            (Some((kind, name)), Some((path, _)), Some(read)) => self.contents_of(kind, name, &path, read)?,
            _ => Vec::new(),
        };
        let lists = kinds.iter().zip(&folders).zip(look.lists);
        let lists = lists.map(|((kind, folder), list)| lenient(*kind, self.files_in(folder, list)));
        Ok((contents, lists.collect::<Result<_>>()?))
    }

    fn contents_of(
        &self,
        kind: FileKind,
        name: &str,
        path: &str,
        read: std::result::Result<Option<Vec<u8>>, SftpFault>,
    ) -> Result<Vec<u8>> {
        let read = read.map_err(|fault| self.error(FileAction::Read, kind, name, path, fault))?;
        read.ok_or_else(|| Error::too_long(self.url(), kind, name))
    }

    /// Returns the entries that are files of a repository, and records stale temporary files.
    fn files_in(
        &self,
        folder: &str,
        entries: std::result::Result<Vec<RemoteEntry>, SftpFault>,
    ) -> Result<Vec<FileInfo>> {
        let entries = entries.map_err(|fault| self.fault(FileAction::List, folder, fault))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut found = Vec::with_capacity(entries.len());
        for entry in entries.into_iter().filter(|entry| !entry.stat.is_folder) {
            let is_stale = |written| now.saturating_sub(Duration::from_secs(written)) > STALE_AFTER;
            if !entry.name.contains(TEMPORARY_MARK) {
                found.push(FileInfo { name: entry.name, size_bytes: entry.stat.size_bytes });
            } else if entry.stat.modified.is_some_and(is_stale) {
                let mut stale = self.stale.lock().unwrap_or_else(PoisonError::into_inner);
                stale.push(format!("{folder}/{}", entry.name));
            }
        }
        Ok(found)
    }

    /// Lists the packs from their many folders, on all connections.
    fn list_packs(&self) -> Result<Vec<FileInfo>> {
        let data = format!("{}/{}", self.target.path, FileKind::Pack.folder());
        let fans =
            self.pool.with(|files| files.list(&data)).map_err(|fault| self.fault(FileAction::List, &data, fault))?;
        let fans: Vec<String> = fans
            .into_iter()
            .filter(|entry| entry.stat.is_folder && entry.name.len() == 2)
            .map(|entry| format!("{data}/{}", entry.name))
            .collect();
        let share = fans.len().div_ceil(self.connections).max(1);
        thread::scope(|scope| {
            let workers: Vec<_> = fans
                .chunks(share)
                .map(|fans| {
                    helper_thread::start(scope, move || -> Result<Vec<FileInfo>> {
                        let mut found = Vec::new();
                        for fan in fans {
                            found.extend(self.list_folder(fan)?);
                        }
                        Ok(found)
                    })
                })
                .collect();
            let mut found = Vec::new();
            for worker in workers {
                match worker.join() {
                    Ok(part) => found.extend(part?),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            Ok(found)
        })
    }
}

impl Storage for SftpStorage {
    fn url(&self) -> String {
        self.target.to_string()
    }

    fn transit(&self) -> Transit {
        Transit::Protected
    }

    fn create_layout(&self) -> Result<()> {
        let root = &self.target.path;
        let make = |files: &SftpClient| {
            self.make_root(files)?;
            for kind in FileKind::ALL.into_iter().filter(|kind| *kind != FileKind::Config) {
                Self::make_folder(files, &format!("{root}/{}", kind.folder()))?;
            }
            files.sync_folder(root)
        };
        self.pool.with(make).map_err(|fault| self.fault(FileAction::Create, root, fault))
    }

    fn list(&self, kind: FileKind) -> Result<Vec<FileInfo>> {
        let path = format!("{}/{}", self.target.path, kind.folder());
        match kind {
            FileKind::Config => match self.pool.with(|files| files.stat(&path)) {
                Ok(stat) => Ok(vec![FileInfo { name: String::new(), size_bytes: stat.size_bytes }]),
                Err(fault) if fault.is_not_found() => Ok(Vec::new()),
                Err(fault) => Err(self.fault(FileAction::Read, &path, fault)),
            },
            FileKind::Pack => self.list_packs(),
            _ => lenient(kind, self.list_folder(&path)),
        }
    }

    fn lists_several_at_once(&self) -> bool {
        true
    }

    fn list_several(&self, kinds: &[FileKind]) -> Result<Vec<Vec<FileInfo>>> {
        self.look(None, kinds).map(|(_, lists)| lists)
    }

    fn read_config_and_list(&self, kinds: &[FileKind]) -> Result<(Vec<u8>, Vec<Vec<FileInfo>>)> {
        self.look(Some((FileKind::Config, "")), kinds)
    }

    fn size(&self, kind: FileKind, name: &str) -> Result<u64> {
        let path = self.path(kind, name);
        let stat = self.pool.with(|files| files.stat(&path));
        stat.map(|stat| stat.size_bytes).map_err(|fault| self.error(FileAction::Read, kind, name, &path, fault))
    }

    fn read(&self, kind: FileKind, name: &str) -> Result<Vec<u8>> {
        let path = self.path(kind, name);
        self.contents_of(kind, name, &path, self.pool.with(|files| files.read(&path, kind.longest_bytes())))
    }

    fn read_range(&self, kind: FileKind, name: &str, offset: u64, length: usize) -> Result<Vec<u8>> {
        let path = self.path(kind, name);
        let read = self.pool.with(|files| files.read_range(&path, offset, length));
        match read.map_err(|fault| self.error(FileAction::Read, kind, name, &path, fault))? {
            Some(bytes) => Ok(bytes),
            None => Err(Error::TooShort {
                url: self.url(),
                kind,
                name: name.to_owned(),
                wanted_bytes: offset.saturating_add(length as u64),
            }),
        }
    }

    fn write(&self, kind: FileKind, name: &str, contents: &[u8]) -> Result<()> {
        self.write_gated(kind, name, contents, &|_| true)
    }

    fn write_gated(&self, kind: FileKind, name: &str, contents: &[u8], gate: Gate) -> Result<()> {
        let path = self.path(kind, name);
        let written = self.pool.with(|files| self.write_file(files, kind, name, contents, gate));
        self.sweep();
        written.map_err(|fault| self.error(FileAction::Write, kind, name, &path, fault))
    }

    fn create(&self, kind: FileKind, name: &str, contents: &[u8]) -> Result<()> {
        let (folder, path) = (self.folder(kind, name), self.path(kind, name));
        let create = |files: &SftpClient| {
            let temporary = temporary_beside(&path);
            let created = match files.create(&folder, &temporary, &path, contents) {
                Err(fault) if fault.is_not_found() => {
                    self.make_missing_folder(files, kind, &folder)?;
                    files.create(&folder, &temporary, &path, contents)
                }
                other => other,
            };
            created.map_err(|fault| self.explain_write(files, &temporary, contents.len(), fault))
        };
        match self.pool.with(create).map_err(|fault| self.error(FileAction::Write, kind, name, &path, fault))? {
            true => Ok(()),
            false => Err(Error::Exists { url: self.url(), kind, name: name.to_owned() }),
        }
    }

    fn remove_exact(&self, kind: FileKind, name: &str, contents: &[u8]) -> Result<bool> {
        let (folder, path) = (self.folder(kind, name), self.path(kind, name));
        let remove = |files: &SftpClient| {
            let aside = temporary_beside(&path);
            if !files.rename_free(&path, &aside)? {
                return Ok(false);
            }
            // Compares the current contents, which may have changed since they were read.
            let is_it = files.read(&aside, contents.len() as u64)?.is_some_and(|found| found == contents);
            if is_it || !files.rename_free(&aside, &path)? {
                files.remove(&aside)?;
            }
            files.sync_folder(&folder).map(|()| is_it)
        };
        self.pool.with(remove).map_err(|fault| self.error(FileAction::Remove, kind, name, &path, fault))
    }

    fn remove(&self, kind: FileKind, name: &str) -> Result<()> {
        let path = self.path(kind, name);
        let folder = self.folder(kind, name);
        let removed = self.pool.with(|files| match kind {
            // No sync: a lock that reappears after a power failure soon becomes stale.
            FileKind::Lock => files.remove(&path),
            _ => files.remove_synced(&path, &folder),
        });
        removed.map_err(|fault| self.error(FileAction::Remove, kind, name, &path, fault))
    }

    fn sync_folder(&self, kind: FileKind, name: &str) -> Result<()> {
        let folder = self.folder(kind, name);
        let sync = |files: &SftpClient| {
            files.sync_folder(&folder)?;
            // The folder of a pack may be new itself.
            if kind == FileKind::Pack { files.sync_folder(parent(&folder)) } else { Ok(()) }
        };
        self.pool.with(sync).map_err(|fault| self.fault(FileAction::Sync, &folder, fault))
    }

    fn remove_leftovers(&self) -> Result<()> {
        // Listings record them.
        for kind in FileKind::ALL.into_iter().filter(|kind| *kind != FileKind::Config) {
            self.list(kind)?;
        }
        self.sweep();
        Ok(())
    }

    fn warm_up(&self, files: usize) {
        self.pool.warm_up(files);
    }

    fn parallel(&self) -> usize {
        self.connections
    }

    fn is_taken(&self) -> Result<bool> {
        let root = &self.target.path;
        self.pool.with(|files| is_taken(files, root)).map_err(|fault| self.fault(FileAction::List, root, fault))
    }

    fn free_bytes(&self) -> Result<Option<u64>> {
        let root = &self.target.path;
        self.pool.with(|files| files.free_bytes(root)).map_err(|fault| self.fault(FileAction::Examine, root, fault))
    }
}

/// Tools that copy repositories leave out the folder of locks when it is empty.
fn lenient(kind: FileKind, list: Result<Vec<FileInfo>>) -> Result<Vec<FileInfo>> {
    match list {
        Err(Error::Io { source, .. }) if kind == FileKind::Lock && source.kind() == ErrorKind::NotFound => {
            Ok(Vec::new())
        }
        other => other,
    }
}

/// Returns whether the server refuses a small file beside this one as well, with an unspecific error.
fn nothing_fits_beside(files: &SftpClient, temporary: &str) -> bool {
    let probe = format!("{temporary}-probe");
    let written = files.write_new(&probe, &[1; PIECE_BYTES]);
    let _ = files.remove(&probe);
    matches!(written, Err(SftpFault::Refused(SftpStatus::Other(_))))
}

/// See [`Storage::is_taken`].
pub(crate) fn is_taken(files: &SftpClient, root: &str) -> std::result::Result<bool, SftpFault> {
    let entries = match files.list(root) {
        Err(fault) if fault.is_not_found() => return Ok(false),
        other => other?,
    };
    let is_ours = |name: &str| FileKind::ALL.iter().any(|kind| kind.folder() == name);
    Ok(!entries.is_empty() && !entries.iter().any(|entry| is_ours(&entry.name)))
}

/// Returns a name like `name-tmp-1f9c…` in the same folder.
fn temporary_beside(path: &str) -> String {
    format!("{path}{TEMPORARY_MARK}{:016x}", rand::random::<u64>())
}

/// Returns the parent folder of a path.
fn parent(path: &str) -> &str {
    match path.rsplit_once('/') {
        Some(("", _)) => "/",
        Some((parent, _)) => parent,
        None => ".",
    }
}
