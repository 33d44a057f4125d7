//! The state of a live restore: a file in kvmb's private folder that survives a reboot.
//!
//! ```text
//!  placing ── the machine runs ──→ copying ── it runs on its own disks ──→ no file
//!     └─ a failure, a crash: the old definition and files are restored
//! ```

use super::super::planned::PlannedFile;
use super::super::request::ImageFormat;
use crate::atomic_file;
use crate::capture::domain_xml::rewrite::served::DiskSettings;
use crate::capture::images::ImageOwner;
use crate::capture::process::ServerProcess;
use crate::ops::{Error, Result, Stop};
use crate::record::Time;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// How long to wait for another process that starts or ends the server.
const LOCK_LIMIT: Duration = Duration::from_secs(600);

/// The phase of a live restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LivePhase {
    /// Files and definition are being replaced; the machine has not run yet.
    Placing,
    /// The machine has run on its point.
    Copying,
}

/// How the server of the point accesses the repository.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ServerAccess {
    pub(crate) repo: String,
    /// Password files. The passwords themselves are not stored.
    pub(crate) password_file: Option<PathBuf>,
    pub(crate) ssh_password_file: Option<PathBuf>,
    /// Certificate files.
    pub(crate) cacert: Option<PathBuf>,
    pub(crate) tls_client_cert: Option<PathBuf>,
    /// The configuration file that the user specified.
    pub(crate) config: Option<PathBuf>,
}

/// A live restore.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct LiveState {
    /// The id in the point's tag.
    pub(crate) id: String,
    pub(crate) machine: String,
    pub(crate) uuid: String,
    /// The libvirt connection URI.
    pub(crate) connect: String,
    pub(crate) point: String,
    pub(crate) access: ServerAccess,
    pub(crate) began_at: Time,
    pub(crate) phase: LivePhase,
    /// The process that works on the restore, or did last.
    pub(crate) process: ServerProcess,
    /// The boot id of the host at that time.
    pub(crate) boot: String,
    /// Whether a person stopped the copy or the machine. Until the next boot of the host, only a person continues it.
    #[serde(default)]
    pub(crate) held: bool,
    /// The user and group that QEMU runs as, once the machine is defined.
    pub(crate) owner: Option<(u32, u32)>,
    /// Whether the machine is paused, or about to be, to move to its own disks.
    #[serde(default)]
    pub(crate) paused: bool,
    /// The maximum number of bytes copied per second.
    pub(crate) limit_read: Option<u32>,
    pub(crate) disks: Vec<LiveDisk>,
    /// The small files that were replaced.
    pub(crate) files: Vec<ReplacedFile>,
    /// The definition that was replaced.
    pub(crate) previous_definition: Option<String>,
    /// Whether the machine starts with the host; `None` leaves this unchanged.
    pub(crate) autostart: Option<bool>,
    /// What the definition says of each disk, which is restored at the end.
    pub(crate) settings: BTreeMap<String, DiskSettings>,
    /// The socket of the point's server.
    pub(crate) socket: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LiveDisk {
    pub(crate) disk: String,
    pub(crate) path: PathBuf,
    pub(crate) format: ImageFormat,
    pub(crate) capacity_bytes: u64,
    /// The owner of a new image where none existed, if libvirt does not manage it.
    pub(crate) owner: Option<ImageOwner>,
    /// What the machine writes until it moves to its own disk.
    pub(crate) overlay: PathBuf,
    /// The new image until it is complete.
    pub(crate) data: PathBuf,
    /// The inode number of the new image.
    pub(crate) inode: Option<u64>,
    /// Where the replaced image is kept until the end.
    pub(crate) aside: PathBuf,
    /// Whether there was an image.
    pub(crate) had_image: bool,
}

/// A small file that was replaced or created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReplacedFile {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) below: Option<PathBuf>,
    /// The copy of the old file in kvmb's folder, if there was one.
    pub(crate) copy: Option<PathBuf>,
}

impl ReplacedFile {
    /// The file as one to be written.
    pub(super) fn planned(&self) -> PlannedFile {
        PlannedFile {
            name: self.name.clone(),
            path: self.path.clone(),
            below: self.below.clone(),
            network: None,
            is_on_device: false,
            makes_folder: false,
            mode: None,
        }
    }
}

/// The folder with the live restores of this host.
#[derive(Debug, Clone)]
pub(crate) struct LiveFolder(PathBuf);

/// The state file of a live restore, locked by this process.
#[derive(Debug)]
pub(crate) struct LiveFile {
    path: PathBuf,
    _lock: File,
}

impl LiveFolder {
    /// The live restores below kvmb's state folder.
    pub(crate) fn below(state_folder: &Path) -> LiveFolder {
        LiveFolder(state_folder.join("live-restores"))
    }

    /// Lists all live restores. A file that cannot be parsed is an error, because it may refer to a machine's only
    /// image.
    pub(crate) fn all(&self) -> Result<Vec<LiveState>> {
        let mut found = Vec::new();
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(found),
            Err(error) => return Err(Error::io("list", &self.0)(error)),
        };
        for entry in entries {
            let path = entry.map_err(Error::io("list", &self.0))?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                found.extend(load(&path)?);
            }
        }
        found.sort_by(|a, b| a.machine.cmp(&b.machine));
        Ok(found)
    }

    /// Finds the live restore of a machine by its name or UUID.
    pub(crate) fn find(&self, machine: &str) -> Result<Option<LiveState>> {
        let is_meant = |state: &LiveState| state.machine == machine || state.uuid.eq_ignore_ascii_case(machine);
        Ok(self.all()?.into_iter().find(is_meant))
    }

    /// Loads the state of this machine's live restore.
    pub(super) fn load(&self, uuid: &str) -> Result<Option<LiveState>> {
        load(&self.0.join(format!("{uuid}.json")))
    }

    /// Prevents other processes from starting or ending the server of a machine's point.
    pub(super) fn lock_server(&self, uuid: &str, machine: &str, stop: &Stop) -> Result<File> {
        let (path, deadline) = (self.0.join(format!("{uuid}.server.lock")), Instant::now() + LOCK_LIMIT);
        let lock = open_lock(&path)?;
        while flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            stop.check()?;
            if Instant::now() > deadline {
                return Err(Error::LiveRestoreBusy { machine: machine.to_owned() });
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(lock)
    }

    /// Makes this process the only supervisor of a machine's restore. Returns `None` if there is one already.
    pub(super) fn lock_supervisor(&self, uuid: &str) -> Result<Option<File>> {
        let path = self.supervisor_path(uuid);
        let lock = open_lock(&path)?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(None);
        }
        let json = serde_json::to_vec(&ServerProcess::this()).map_err(std::io::Error::other);
        let written = json.and_then(|json| lock.set_len(0).and_then(|()| lock.write_all_at(&json, 0)));
        written.map_err(Error::io("write", &path))?;
        Ok(Some(lock))
    }

    /// The supervisor of a machine's restore, if it is alive.
    pub(super) fn supervisor(&self, uuid: &str) -> Option<ServerProcess> {
        let process: ServerProcess = serde_json::from_slice(&fs::read(self.supervisor_path(uuid)).ok()?).ok()?;
        process.is_alive().then_some(process)
    }

    fn supervisor_path(&self, uuid: &str) -> PathBuf {
        self.0.join(format!("{uuid}.supervisor.lock"))
    }

    /// Locks the state file of a machine. It is an error if another process holds the lock.
    pub(crate) fn lock(&self, uuid: &str, machine: &str) -> Result<LiveFile> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0).map_err(Error::io("create", &self.0))?;
        let lock_path = self.0.join(format!("{uuid}.lock"));
        let lock = open_lock(&lock_path)?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(Error::LiveRestoreBusy { machine: machine.to_owned() });
        }
        Ok(LiveFile { path: self.0.join(format!("{uuid}.json")), _lock: lock })
    }
}

impl LiveFile {
    pub(super) fn load(&self) -> Result<Option<LiveState>> {
        load(&self.path)
    }

    pub(super) fn save(&self, state: &LiveState) -> Result<()> {
        let json = serde_json::to_vec(state).map_err(std::io::Error::other);
        json.and_then(|json| atomic_file::write(&self.path, &json, 0o600)).map_err(Error::io("write", &self.path))
    }

    /// The path for a copy of a small file.
    pub(super) fn copy_path(&self, number: usize) -> PathBuf {
        self.path.with_extension(format!("{number}.copy"))
    }

    /// Removes the state. The lock file is kept, because removing a file that another process waits for would be a
    /// race.
    pub(super) fn remove(self, state: &LiveState) -> Result<()> {
        let copies = state.files.iter().filter_map(|file| file.copy.as_ref());
        for path in copies.chain([&self.path]) {
            match fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(Error::io("remove", path)(error)),
                _ => {}
            }
        }
        Ok(())
    }
}

fn open_lock(path: &Path) -> Result<File> {
    let options = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path);
    options.map_err(Error::io("open", path))
}

/// The id of the host's current boot.
pub(super) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

fn load(path: &Path) -> Result<Option<LiveState>> {
    match fs::read(path) {
        Ok(json) => {
            let state = serde_json::from_slice(&json).map_err(|error| Error::io("read", path)(error.into()))?;
            Ok(Some(state))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}
