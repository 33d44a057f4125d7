//! The state of an open capture, on disk: `<state>/<id>/state.json`, mode 0600, replaced atomically.
//!
//! A reader of a capture holds a shared lock, and the process that closes it an exclusive one. The locks are on a file
//! `lock` next to the state, because the state file is replaced when it changes.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use chrono::{DateTime, FixedOffset, Local};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::atomic_file;
use crate::capture::agent::Consistency;
use crate::capture::disk_session::DiskSession;
use crate::capture::error::{Error, Result};
use crate::capture::images::{ImageIdentity, ImageOwner, OwnChange};
use crate::capture::offline::offline_fingerprint::OfflineFingerprint;
use crate::capture::process::{RunningBackup, ServerProcess};
use crate::capture::runtime::RuntimeDirs;

/// The version of the state file that this program writes and reads.
pub(crate) const STATE_VERSION: u32 = 1;

/// How often the removal of a folder is tried while another process writes a file in it.
const REMOVE_TRIES: u32 = 10;

/// An open capture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureState {
    /// [`STATE_VERSION`].
    pub(crate) version: u32,
    /// `c-` and eight hex digits.
    pub id: String,
    /// The machine's name.
    pub machine: String,
    pub(crate) uuid: String,
    /// The libvirt connection URI that it was made through.
    pub(crate) connect: String,
    /// How its disks are read.
    #[serde(flatten)]
    pub method: CaptureMethod,
    /// The phase of the capture.
    pub(crate) phase: Phase,
    /// When the opening began.
    pub(crate) created_at: DateTime<FixedOffset>,
    /// The captured moment.
    pub(crate) captured_at: DateTime<FixedOffset>,
    /// When other processes may remove it.
    pub(crate) lease_ends_at: DateTime<FixedOffset>,
    /// The consistency of the content.
    pub consistency: Consistency,
    /// The checkpoint made at the same instant.
    pub checkpoint: Option<String>,
    /// The disks that the checkpoint covers.
    pub checkpoint_disks: Vec<String>,
    /// The repository whose chain is continued.
    pub(crate) repository: Option<String>,
    /// The restore point that this capture continues.
    pub(crate) parent_point: Option<String>,
    /// The disks, in the definition's order.
    pub disks: Vec<CapturedDisk>,
    /// The machine's disks that the capture leaves out, with the reasons.
    pub skipped: Vec<SkippedDisk>,
    /// The machine's definition at that moment (inactive, with secrets if permitted).
    pub definition_xml: String,
    /// The running machine's definition at that moment, if the inactive one lacks a captured disk or has another image
    /// for it.
    #[serde(default)]
    pub(crate) live_definition_xml: Option<String>,
    /// Whether the machine starts with the host.
    #[serde(default)]
    pub(crate) autostart: bool,
    /// The names of the machine's libvirt snapshots, which are not part of the capture.
    #[serde(default)]
    pub(crate) snapshots: Vec<String>,
    /// Files copied at that moment, in the capture's folder (see [`CaptureFile::folder`]).
    pub copies: Vec<CopiedFile>,
    /// Files that belong to the machine but could not be copied.
    #[serde(default)]
    pub(crate) missing: Vec<MissingPart>,
    /// Files that the definition references, copied at that moment.
    #[serde(default)]
    pub(crate) outside: Vec<OutsideCopy>,
    /// Files that the definition references but that were not copied.
    #[serde(default)]
    pub(crate) outside_left_out: Vec<OutsideLeftOut>,
    /// The folder of the sockets.
    pub(crate) socket_folder: PathBuf,
    /// The restore point that was stored from the capture. If it is set, the checkpoint is kept.
    pub(crate) committed_point: Option<String>,
    /// The process that owns the capture. `None` if the capture outlives its command until its lease ends.
    #[serde(default)]
    pub(crate) owner: Option<ServerProcess>,
}

/// How a capture's disks are read, with the data specific to that method.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum CaptureMethod {
    /// From a running machine.
    Job(BackupJob),
    /// From a stopped machine.
    #[serde(alias = "qemu_nbd")]
    Offline(OfflineReader),
    /// No disk is read: the machine has none to capture, and only its definition is kept.
    Definition,
}

/// A libvirt backup job of a running machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupJob {
    /// The socket on which QEMU serves the disks.
    #[serde(rename = "job_socket")]
    pub(crate) socket: PathBuf,
    /// The folder of the scratch files.
    pub(crate) scratch_folder: PathBuf,
    /// Why the guest was not frozen.
    pub freeze_note: Option<String>,
    /// Whether the guest did not confirm its thaw.
    pub thaw_due: bool,
    /// Whether an I/O error had paused the machine before the capture.
    pub(crate) io_paused_before: bool,
}

/// The `qemu-storage-daemon` processes that read the disks of a stopped machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfflineReader {
    /// The processes, in the order of their start.
    #[serde(default)]
    pub servers: Vec<DiskServer>,
    /// Detects whether the machine changes. `None` for a machine that is being migrated to another host.
    #[serde(default, alias = "stillness")]
    pub(crate) fingerprint: Option<OfflineFingerprint>,
}

/// The phase of a capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// Being opened. If the process is gone, any part of the capture may exist.
    Opening,
    Open,
    /// The disks are closed; only checkpoints may be left to settle.
    Drained,
}

/// How much of a disk is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadMode {
    /// The parts that changed according to the dirty bitmap.
    Changed,
    /// The whole disk.
    Full,
}

/// One captured disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapturedDisk {
    pub(crate) target: String,
    /// The address to read it at: `nbd+unix:///vda?socket=…`.
    pub nbd_uri: String,
    /// The socket in that address.
    pub(crate) socket: PathBuf,
    pub(crate) export: String,
    /// The size of the virtual disk.
    pub capacity_bytes: u64,
    /// The image format.
    pub format: String,
    /// Whether the whole disk or only changes are read.
    pub read_mode: ReadMode,
    /// Why the whole disk is read although changes were requested.
    pub read_mode_reason: Option<String>,
    /// The checkpoint since which changes are exposed.
    pub(crate) parent_checkpoint: Option<String>,
    /// The meta context of the changes.
    pub dirty_context: Option<String>,
    /// Whether the new checkpoint tracks this disk.
    pub has_new_bitmap: bool,
    /// The file in which the job saves data that the guest overwrites.
    pub(crate) scratch: Option<PathBuf>,
    /// The image and every layer below it, as they were.
    pub image: Vec<ImageIdentity>,
    /// Changes that kvmb itself made to the layers since earlier points.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) own_changes: Vec<OwnChange>,
    /// The owner of the image, if libvirt does not manage it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) owner: Option<ImageOwner>,
    /// Whether the image has its data in an external file, which other programs can write to.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) has_data_file: bool,
    /// The QEMU session of a disk with an external data file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) session: Option<DiskSession>,
    /// The checkpoint whose bitmap misses changes of this disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) distrusts: Option<String>,
}

/// A process that serves disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskServer {
    /// The process.
    pub process: ServerProcess,
    /// The server's socket.
    pub socket: PathBuf,
}

/// A disk that a capture leaves out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedDisk {
    /// The disk's target.
    pub target: String,
    /// Why it is left out.
    pub reason: String,
    /// The image or medium, if there is one.
    #[serde(default)]
    pub(crate) path: Option<PathBuf>,
    /// Whether the running machine lacks the disk and only the definition for the next start has it.
    #[serde(default)]
    pub(crate) is_absent: bool,
}

/// A file that the definition references, copied when the capture was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OutsideCopy {
    /// The kind of file, a word of [`OutsideKind`](crate::capture::domain_xml::outside_files::OutsideKind).
    pub(crate) part: String,
    /// The name in the capture's folder and in a point.
    pub(crate) name: String,
    /// The path that it was copied from.
    pub(crate) origin: PathBuf,
    pub(crate) mode: u32,
}

/// A file that the definition references and that the capture lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OutsideLeftOut {
    /// The kind of file, as in [`OutsideCopy::part`].
    pub(crate) part: String,
    pub(crate) origin: PathBuf,
    /// Why it was not copied.
    pub(crate) reason: String,
}

/// A file copied when the capture was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopiedFile {
    /// The role of the file.
    pub role: FileRole,
    /// The name in the capture's folder.
    pub name: String,
    /// The path that it was copied from.
    pub origin: PathBuf,
}

/// A file that the machine needs and that a capture lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MissingPart {
    pub(crate) role: FileRole,
    /// The file, or the folder of a TPM's state.
    pub(crate) origin: PathBuf,
    /// Why it was not copied.
    pub(crate) reason: String,
}

/// The role of a copied file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileRole {
    /// UEFI variables.
    Nvram,
    /// The kernel of a direct boot.
    Kernel,
    /// The initial RAM disk of a direct boot.
    Initrd,
    /// A file of an emulated TPM's state.
    Tpm,
}

impl FileRole {
    /// The role's name in captures, points and records.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            FileRole::Nvram => "nvram",
            FileRole::Kernel => "kernel",
            FileRole::Initrd => "initrd",
            FileRole::Tpm => "tpm",
        }
    }

    /// The role in words, for messages.
    pub(crate) fn words(self) -> &'static str {
        match self {
            FileRole::Nvram => "firmware variables",
            FileRole::Kernel => "kernel",
            FileRole::Initrd => "initial RAM disk",
            FileRole::Tpm => "TPM state",
        }
    }
}

impl CaptureState {
    /// The running backup that the capture belongs to, if any.
    pub(crate) fn running_backup(&self) -> Option<RunningBackup> {
        let owner = self.owner.as_ref().filter(|owner| owner.is_alive())?;
        Some(RunningBackup { pid: owner.pid, since: self.created_at })
    }

    /// Whether the lease has expired.
    pub fn is_expired(&self) -> bool {
        self.lease_ends_at <= Local::now()
    }

    /// Whether the process that owned the capture is gone.
    pub(crate) fn is_orphaned(&self) -> bool {
        self.owner.as_ref().is_some_and(|owner| !owner.is_alive())
    }

    /// The backup job, if the disks are read through one.
    pub fn job(&self) -> Option<&BackupJob> {
        match &self.method {
            CaptureMethod::Job(job) => Some(job),
            CaptureMethod::Offline(_) | CaptureMethod::Definition => None,
        }
    }

    pub(super) fn job_mut(&mut self) -> Option<&mut BackupJob> {
        match &mut self.method {
            CaptureMethod::Job(job) => Some(job),
            CaptureMethod::Offline(_) | CaptureMethod::Definition => None,
        }
    }

    /// The offline reader, if the disks are read through one.
    pub fn offline(&self) -> Option<&OfflineReader> {
        match &self.method {
            CaptureMethod::Offline(reader) => Some(reader),
            CaptureMethod::Job(_) | CaptureMethod::Definition => None,
        }
    }

    /// The fingerprint of a stopped machine.
    pub(crate) fn fingerprint(&self) -> Option<&OfflineFingerprint> {
        self.offline().and_then(|reader| reader.fingerprint.as_ref())
    }

    /// The definition that has all captured disks: the inactive one if it does.
    pub(crate) fn definition_of_disks(&self) -> &str {
        self.live_definition_xml.as_ref().unwrap_or(&self.definition_xml)
    }

    /// The disk with this target.
    pub fn disk(&self, target: &str) -> Option<&CapturedDisk> {
        self.disks.iter().find(|disk| disk.target == target)
    }
}

/// How often to try to create a capture's folder that other processes remove.
const MOST_CREATIONS: u32 = 10;

/// A capture's folder, and this process's lock on it.
#[derive(Debug)]
pub struct CaptureFile {
    id: String,
    folder: PathBuf,
    lock: File,
}

impl CaptureFile {
    /// Opens every capture of this host and user, in no particular order. Other files are skipped.
    pub fn open_all(runtime: &RuntimeDirs) -> Result<Vec<CaptureFile>> {
        let mut files = Vec::new();
        let folder = runtime.state_folder();
        for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
            let entry = entry.map_err(Error::io("list", folder))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if is_capture_id(&name) {
                match CaptureFile::open_folder(&name, entry.path()) {
                    Ok(file) => files.push(file),
                    // The capture was removed meanwhile.
                    Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(files)
    }

    /// Opens the capture with this id, or the newest one of the machine with this UUID or name.
    pub fn open(runtime: &RuntimeDirs, id_or_machine: &str) -> Result<CaptureFile> {
        let none = || Error::NoSuchCapture { name: id_or_machine.to_owned() };
        if is_capture_id(id_or_machine) {
            let folder = runtime.state_folder().join(id_or_machine);
            if folder.is_dir() {
                return CaptureFile::open_folder(id_or_machine, folder);
            }
        }
        let mut found: Option<(DateTime<FixedOffset>, CaptureFile)> = None;
        for file in CaptureFile::open_all(runtime)? {
            let Ok(state) = file.load() else { continue };
            let named = state.uuid.eq_ignore_ascii_case(id_or_machine) || state.machine == id_or_machine;
            if named && found.as_ref().is_none_or(|(at, _)| *at < state.created_at) {
                found = Some((state.created_at, file));
            }
        }
        found.map(|(_, file)| file).ok_or_else(none)
    }

    /// Creates the folder of a new capture with an exclusive lock. The folder gets its name only after it is locked, so
    /// a capture without a state and without a lock is abandoned.
    pub(super) fn create(runtime: &RuntimeDirs) -> Result<CaptureFile> {
        let mut attempts = 1..MOST_CREATIONS;
        loop {
            match CaptureFile::try_create(runtime) {
                // On a busy host, another process may take a folder that is not yet locked for an abandoned one.
                Err(Error::NoSuchCapture { .. }) if attempts.next().is_some() => {}
                Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound && attempts.next().is_some() => {}
                Ok(None) => {}
                Ok(Some(file)) => return Ok(file),
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns `None` if the chosen ID is taken.
    fn try_create(runtime: &RuntimeDirs) -> Result<Option<CaptureFile>> {
        let id = format!("c-{:08x}", rand::random::<u32>());
        let (folder, unnamed) = (runtime.state_folder().join(&id), runtime.state_folder().join(format!(".{id}")));
        fs::create_dir(&unnamed).map_err(Error::io("create", &unnamed))?;
        crate::capture::runtime::set_mode(&unnamed, 0o700)?;
        let mut file = CaptureFile::open_folder(&id, unnamed.clone())?;
        // `remove_nameless` of another process holds the lock for a moment to check whether the folder is abandoned.
        file.lock_exclusive(Duration::from_secs(5))?;
        match fs::rename(&unnamed, &folder) {
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => file.remove().map(|()| None),
            other => {
                other.map_err(Error::io("create", &folder))?;
                file.folder = folder;
                Ok(Some(file))
            }
        }
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// The capture's folder, which also contains the copied files.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Locks the capture for reading, so that it cannot be ended meanwhile. Fails with [`Error::Held`] if it is being
    /// ended.
    pub fn lock_shared(&self) -> Result<()> {
        // The guard briefly locks the file now and then to check whether the capture is in use.
        self.lock(FlockOperation::NonBlockingLockShared, Duration::from_secs(1))
    }

    /// Whether another process holds the lock because it reads, opens or ends the capture.
    pub(crate) fn is_in_use(&self) -> bool {
        let is_free = flock(&self.lock, FlockOperation::NonBlockingLockExclusive).is_ok();
        if is_free {
            self.unlock();
        }
        !is_free
    }

    /// Locks the capture for ending it. Waits for readers for this long, then fails with [`Error::Held`].
    pub(crate) fn lock_exclusive(&self, wait: Duration) -> Result<()> {
        self.lock(FlockOperation::NonBlockingLockExclusive, wait)
    }

    /// Releases the lock.
    pub(crate) fn unlock(&self) {
        // This only fails for an invalid descriptor.
        let _ = flock(&self.lock, FlockOperation::Unlock);
    }

    /// Loads the state, with the lease from the guard's record.
    pub fn load(&self) -> Result<CaptureState> {
        let state = self.load_stored()?;
        Ok(match self.guard() {
            Some(guard) => CaptureState { lease_ends_at: guard.lease_ends_at, ..state },
            None => state,
        })
    }

    fn load_stored(&self) -> Result<CaptureState> {
        let path = self.folder.join("state.json");
        let text = atomic_file::read(&path).map_err(Error::io("read", &path))?;
        let bad = |message: String| Error::BadState { capture: self.id.clone(), message };
        let state: CaptureState = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        if state.version != STATE_VERSION {
            return Err(bad(format!("it has version {}, this program knows version {STATE_VERSION}", state.version)));
        }
        Ok(state)
    }

    /// Replaces the state, durably.
    pub fn save(&self, state: &CaptureState) -> Result<()> {
        let text = serde_json::to_vec_pretty(state)
            .map_err(|error| Error::BadState { capture: self.id.clone(), message: error.to_string() })?;
        let path = self.folder.join("state.json");
        atomic_file::write(&path, &text, 0o600).map_err(Error::io("write", &path))
    }

    /// Records that a restore point was stored from this capture. Its checkpoint is then kept when the capture is
    /// closed.
    pub fn commit(&self, point: &str) -> Result<()> {
        self.update(|state| state.committed_point = Some(point.to_owned()))
    }

    /// Changes the state. Concurrent changes of several processes are all kept.
    pub(super) fn update(&self, change: impl FnOnce(&mut CaptureState)) -> Result<()> {
        let path = self.folder.join("state.lock");
        let options = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let lock = options.map_err(Error::io("open", &path))?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|error| Error::io("lock", &path)(error.into()))?;
        let mut state = self.load_stored()?;
        change(&mut state);
        self.save(&state)
    }

    /// Removes the folder with its content.
    ///
    /// The folder is renamed first: the guard of a killed run may be about to write its record, and a file created
    /// while the folder is being emptied would prevent its removal. The next run removes a renamed folder.
    pub(super) fn remove(self) -> Result<()> {
        let nameless = self.folder.with_file_name(format!(".{}", self.id));
        let mut removed = fs::rename(&self.folder, &nameless).and_then(|()| fs::remove_dir_all(&nameless));
        // A guard that has resolved the folder's path before may still write its record there.
        for _ in 1..REMOVE_TRIES {
            if !removed.as_ref().is_err_and(|error| error.kind() == ErrorKind::DirectoryNotEmpty) {
                break;
            }
            removed = fs::remove_dir_all(&nameless);
        }
        match removed {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", &self.folder)(error)),
            _ => Ok(()),
        }
    }

    fn open_folder(id: &str, folder: PathBuf) -> Result<CaptureFile> {
        let path = folder.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        Ok(CaptureFile { id: id.to_owned(), folder, lock })
    }

    fn lock(&self, operation: FlockOperation, wait: Duration) -> Result<()> {
        let deadline = Instant::now() + wait;
        let path = self.folder.join("lock");
        loop {
            match flock(&self.lock, operation) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(50));
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let state = self.load().ok();
                    let by = state.as_ref().and_then(CaptureState::running_backup);
                    let machine = state.map_or_else(|| "the machine".to_owned(), |state| state.machine);
                    return Err(Error::Held { machine, capture: self.id.clone(), until: None, by });
                }
                Err(error) => return Err(Error::io("lock", &path)(error.into())),
            }
        }
        // The previous holder of the lock may have removed the folder.
        let ours = self.lock.metadata().map_err(Error::io("lock", &path))?;
        match fs::metadata(&path) {
            Ok(there) if there.ino() == ours.ino() && there.dev() == ours.dev() => Ok(()),
            _ => Err(Error::NoSuchCapture { name: self.id.clone() }),
        }
    }
}

/// Removes folders of captures whose creators were killed before naming them. A live creator locks its folder
/// immediately.
pub(super) fn remove_nameless(runtime: &RuntimeDirs) {
    for entry in fs::read_dir(runtime.state_folder()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_nameless = name.to_str().and_then(|name| name.strip_prefix('.')).is_some_and(is_capture_id);
        let is_held = || is_locked(&entry.path());
        if !is_nameless || is_held() {
            continue;
        }
        thread::sleep(Duration::from_millis(50));
        if !is_held() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Returns whether a process has locked a capture's folder. Holds the lock for a moment itself.
fn is_locked(folder: &Path) -> bool {
    let lock = File::open(folder.join("lock"));
    lock.is_ok_and(|lock| flock(lock, FlockOperation::NonBlockingLockExclusive).is_err())
}

/// Whether this is `c-` and eight hex digits.
pub(crate) fn is_capture_id(name: &str) -> bool {
    name.strip_prefix("c-")
        .is_some_and(|digits| digits.len() == 8 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn folder_is_removed_despite_concurrent_writers() {
        let root = tempfile::tempdir().expect("folder");
        let runtime = RuntimeDirs::open_at(&root.path().join("state")).expect("runtime");
        for _ in 0..50 {
            let file = CaptureFile::create(&runtime).expect("create");
            let (lock, is_over) = (file.folder().join("lock"), AtomicBool::new(false));
            let removed = thread::scope(|scope| {
                scope.spawn(|| {
                    // The guard of a killed run does this, and so does a process that opens the capture meanwhile.
                    while !is_over.load(Ordering::Relaxed) {
                        let _ = atomic_file::write(&lock.with_file_name("guard.json"), b"{}", 0o600);
                        let _ = OpenOptions::new().create(true).truncate(false).write(true).open(&lock);
                    }
                });
                while !lock.with_file_name("guard.json").exists() {
                    thread::yield_now();
                }
                let removed = file.remove();
                is_over.store(true, Ordering::Relaxed);
                removed
            });
            removed.expect("remove");
        }
        assert_eq!(fs::read_dir(runtime.state_folder()).expect("list").count(), 0);
    }

    #[test]
    fn capture_is_created_while_another_process_looks_for_abandoned_ones() {
        let root = tempfile::tempdir().expect("folder");
        let runtime = RuntimeDirs::open_at(&root.path().join("state")).expect("runtime");
        let is_over = AtomicBool::new(false);
        let created: Vec<_> = thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    for entry in fs::read_dir(runtime.state_folder()).into_iter().flatten().flatten() {
                        is_locked(&entry.path());
                    }
                }
            });
            let created = (0..500).map(|_| CaptureFile::create(&runtime).and_then(CaptureFile::remove)).collect();
            is_over.store(true, Ordering::Relaxed);
            created
        });
        for result in created {
            result.expect("a capture");
        }
    }
}
