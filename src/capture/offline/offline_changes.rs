//! Detects changes of a stopped machine while it is read.
//!
//! QEMU's image locks keep a machine from starting while its images are served, but not on network storage, on block
//! devices (for which libvirt gives QEMU its own device node), on file systems without locks, or for programs that
//! disable them. Therefore the attributes that would show a change are recorded when a capture opens, and compared
//! before its point is committed.
//!
//! | disk | evidence of a write |
//! | --- | --- |
//! | a file, its layers, and other files that its server has open | identity, size, modification time in nanoseconds, and the header with its dirty, corrupt and autoclear flags and bitmaps |
//! | a block device | the kernel's count of writes |
//! | network storage, or a disk without this evidence | none: instead, the machine must not have been started, that is, there is no QEMU process of it, no start in libvirt's log, and an unchanged reason for being off |
//!
//! A changed definition counts as well, because the disks would be those of another machine. None of this needs
//! libvirt, so the stages of a pipe that must not open it can check too ([`OfflineFingerprint::check`]). Processes that
//! have libvirt open also query it ([`Machine::check_unchanged`]). A failed start does not count.

use super::offline_fingerprint::{ComparisonDepth, OfflineFingerprint, Stamp, StorageFingerprint};
use super::storage_daemon;
use crate::capture::domain_xml::definition::Definition;
use crate::capture::error::{Error, Result};
use crate::capture::link::embedded_root;
use crate::capture::machine::{Machine, Which};
use crate::capture::process::{ServerProcess, start_ticks};
use crate::capture::runtime::our_uid;
use crate::capture::state::CaptureState;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The maximum size of a log that is searched for starts. A start is assumed if it is larger.
const MOST_LOG_BYTES: u64 = 4 << 20;

impl OfflineFingerprint {
    /// Records the attributes before the disks can be read. `state` has the machine's disks with their layers.
    pub(crate) fn note(machine: &Machine, state: &CaptureState) -> OfflineFingerprint {
        let mut fingerprint = OfflineFingerprint {
            uuid: state.uuid.clone(),
            foreign_processes: processes_of(&state.uuid),
            log: log_path(&state.connect, &state.machine)
                .map(|path| (path.clone(), Stamp::of(&path, ComparisonDepth::Full).ok())),
            off_reason: machine.off_reason().unwrap_or_default(),
            ..OfflineFingerprint::default()
        };
        for disk in &state.disks {
            // Layers on the network only have an address.
            let layers = disk.image.iter().map(|layer| Path::new(&layer.path));
            let noted = layers.filter(|path| path.is_absolute()).filter(|path| fingerprint.add(path)).count();
            fingerprint.has_unobservable_disk |= noted < disk.image.len();
        }
        fingerprint
    }

    /// Records the other files that the servers have open (raw data files and extents, but not logs in the capture's
    /// folder) and the definition, once libvirt has provided it.
    pub(crate) fn note_opened(&mut self, state: &CaptureState, own: &Path) {
        for server in state.offline().iter().flat_map(|reader| &reader.servers) {
            for file in storage_daemon::servers_on(&server.socket).into_iter().flat_map(open_files) {
                if !file.starts_with(own) && self.storage.iter().all(|known| known.path != file) {
                    self.add(&file);
                }
            }
        }
        let said = Definition::parse(&state.definition_xml).ok();
        let path = definition_path(&state.connect, &state.machine);
        self.definition =
            path.filter(|path| said.is_some_and(|said| parts_in(path).is_some_and(|p| p == Parts::of(&said))));
    }

    fn add(&mut self, path: &Path) -> bool {
        match Stamp::of(path, ComparisonDepth::Full) {
            Ok(stamp) => {
                let shows_writes = stamp.shows_writes();
                self.storage.push(StorageFingerprint { path: path.to_owned(), stamp });
                shows_writes
            }
            Err(error) => {
                tracing::debug!("{}: {error}", path.display());
                false
            }
        }
    }

    /// Checks whether anything was changed or started since. `state` is the state of the capture.
    pub(crate) fn check(&self, state: &CaptureState, depth: ComparisonDepth) -> Result<()> {
        let machine = || state.machine.clone();
        let changed = |what: String| Err(Error::ChangedMeanwhile { machine: machine(), what });
        for file in &self.storage {
            if let Some(what) = file.change(depth) {
                return changed(what);
            }
        }
        if self.has_unobservable_disk {
            if processes_of(&self.uuid).iter().any(|process| !self.foreign_processes.contains(process)) {
                return Err(Error::StartedMeanwhile { machine: machine() });
            }
            if self.log.as_ref().is_some_and(|(path, before)| was_started(path, before.as_ref())) {
                return changed("it was started and stopped".to_owned());
            }
        }
        let definition = self.definition.as_ref().filter(|_| depth == ComparisonDepth::Full);
        if let Some(path) = definition
            && let Ok(said) = Definition::parse(&state.definition_xml)
            // The file is gone if the machine was undefined or renamed. Its disks have not changed.
            && parts_in(path).is_some_and(|parts| parts != Parts::of(&said))
        {
            return changed("its definition was changed".to_owned());
        }
        Ok(())
    }
}

impl Machine {
    /// Checks with libvirt whether a stopped machine has stayed so since a capture of it was opened. A machine that no
    /// longer exists is not checked.
    pub(crate) fn check_unchanged(&self, state: &CaptureState) -> Result<()> {
        let Some(fingerprint) = state.fingerprint() else { return Ok(()) };
        match self.compare_fingerprint(state, fingerprint) {
            Err(error) if error.is_not_found() => Ok(()),
            other => other,
        }
    }

    fn compare_fingerprint(&self, state: &CaptureState, fingerprint: &OfflineFingerprint) -> Result<()> {
        let name = || state.machine.clone();
        if self.is_running()? {
            return Err(Error::StartedMeanwhile { machine: name() });
        }
        // After a restart, libvirt does not know the reason.
        let reason = self.off_reason()?;
        if fingerprint.has_unobservable_disk && reason != fingerprint.off_reason && reason != REASON_UNKNOWN {
            return Err(Error::ChangedMeanwhile { machine: name(), what: "it was started and stopped".to_owned() });
        }
        let said = Definition::parse(&state.definition_xml)?;
        if Parts::of(&self.definition(Which::Inactive)?) != Parts::of(&said) {
            return Err(Error::ChangedMeanwhile { machine: name(), what: "its definition was changed".to_owned() });
        }
        Ok(())
    }
}

/// `VIR_DOMAIN_SHUTOFF_UNKNOWN`
const REASON_UNKNOWN: i32 = 0;

/// The parts of a definition that determine the content of a point.
#[derive(Debug, PartialEq, Eq)]
struct Parts(Definition);

impl Parts {
    fn of(definition: &Definition) -> Parts {
        // Other parts, such as description, memory and labels, may change without affecting the disks.
        Parts(Definition {
            domain_type: String::new(),
            title: None,
            memory_bytes: 0,
            vcpus: 0,
            has_agent_channel: false,
            agent_connected: false,
            dac_owner: None,
            dac_label: None,
            seclabel_models: Vec::new(),
            ..definition.clone()
        })
    }
}

fn parts_in(path: &Path) -> Option<Parts> {
    Some(Parts::of(&Definition::parse(&fs::read_to_string(path).ok()?).ok()?))
}

/// Returns the files and block devices that a process has open, if they have a path.
fn open_files(pid: u32) -> Vec<PathBuf> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let paths = descriptors.filter_map(|descriptor| {
        let path = fs::read_link(descriptor.path()).ok()?;
        let (open, named) = (fs::metadata(descriptor.path()).ok()?, fs::metadata(&path).ok()?);
        let is_storage = open.is_file() || open.file_type().is_block_device();
        (is_storage && (open.dev(), open.ino()) == (named.dev(), named.ino())).then_some(path)
    });
    paths.collect()
}

/// Returns the QEMU processes of a machine. libvirt puts the UUID in their command lines.
fn processes_of(uuid: &str) -> Vec<ServerProcess> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_its = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut arguments = line.split(|byte| *byte == 0);
        arguments.any(|argument| argument == b"-uuid")
            && arguments.next().is_some_and(|value| value.eq_ignore_ascii_case(uuid.as_bytes()))
    };
    pids.filter(is_its).filter_map(|pid| Some(ServerProcess { pid, started_ticks: start_ticks(pid)? })).collect()
}

/// Whether libvirt's log of a machine shows a start that did not fail. A log that cannot be compared with its earlier
/// state counts as one.
fn was_started(log: &Path, before: Option<&Stamp>) -> bool {
    let Ok(now) = Stamp::of(log, ComparisonDepth::Glance) else {
        // The log never existed, or was rotated.
        return before.is_some();
    };
    let known_bytes = match before {
        None => 0,
        Some(before) if (now.device, now.inode) != (before.device, before.inode) => return true,
        Some(before) if now.size_bytes < before.size_bytes => return true,
        Some(before) => before.size_bytes,
    };
    if now.size_bytes - known_bytes > MOST_LOG_BYTES {
        return true;
    }
    let mut news = Vec::new();
    let read = File::open(log).and_then(|mut log| {
        log.seek(SeekFrom::Start(known_bytes))?;
        log.take(MOST_LOG_BYTES).read_to_end(&mut news)
    });
    let news = String::from_utf8_lossy(&news);
    read.is_err() || news.matches(": starting up").count() > news.matches(": shutting down, reason=failed").count()
}

/// Whether libvirt's logs show that a machine was ever started. An earlier machine of the same name may have left its
/// log.
pub(crate) fn was_ever_started(uri: &str, machine: &str, uuid: &str) -> bool {
    log_path(uri, machine).is_some_and(|log| was_started(&log, None) && may_contain(&log, uuid) || was_rotated(&log))
}

/// Whether a log contains the UUID of a machine, which is in QEMU's command line, or cannot be searched.
fn may_contain(log: &Path, uuid: &str) -> bool {
    let mut content = Vec::new();
    let read = File::open(log).and_then(|log| log.take(MOST_LOG_BYTES + 1).read_to_end(&mut content));
    read.is_err() || content.len() as u64 > MOST_LOG_BYTES || String::from_utf8_lossy(&content).contains(uuid)
}

/// Whether an older log exists next to this one: `vm1.log.0`, `vm1.log.2.gz`, `vm1.log-20261130`.
fn was_rotated(log: &Path) -> bool {
    let (Some(folder), Some(name)) = (log.parent(), log.file_name().and_then(OsStr::to_str)) else {
        return false;
    };
    let is_older = |found: &str| {
        let number = found.strip_prefix(name).and_then(|rest| rest.strip_prefix(['.', '-']));
        number.is_some_and(|number| number.starts_with(|first: char| first.is_ascii_digit()))
    };
    let mut entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.any(|entry| entry.file_name().to_str().is_some_and(is_older))
}

/// The path of libvirt's log of a machine.
fn log_path(uri: &str, machine: &str) -> Option<PathBuf> {
    let folder = match embedded_root(uri) {
        Some(root) => root.join("log/qemu"),
        None if is_session(uri) => user_folder("XDG_CACHE_HOME", ".cache")?.join("libvirt/qemu/log"),
        None => PathBuf::from("/var/log/libvirt/qemu"),
    };
    file_of(folder, machine, "log")
}

/// The path of a machine's definition in libvirt's configuration.
fn definition_path(uri: &str, machine: &str) -> Option<PathBuf> {
    let folder = match embedded_root(uri) {
        Some(root) => root.join("etc/qemu"),
        None if is_session(uri) => user_folder("XDG_CONFIG_HOME", ".config")?.join("libvirt/qemu"),
        None => PathBuf::from("/etc/libvirt/qemu"),
    };
    file_of(folder, machine, "xml")
}

fn file_of(folder: PathBuf, machine: &str, extension: &str) -> Option<PathBuf> {
    (!machine.contains('/')).then(|| folder.join(format!("{machine}.{extension}")))
}

fn is_session(uri: &str) -> bool {
    let path = uri.split('?').next().unwrap_or(uri);
    path.ends_with("/session") && our_uid() != 0
}

fn user_folder(variable: &str, below_home: &str) -> Option<PathBuf> {
    let named = std::env::var_os(variable).filter(|folder| !folder.is_empty()).map(PathBuf::from);
    named.or_else(|| Some(std::env::home_dir()?.join(below_home)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn failed_start_does_not_count_as_a_start() {
        let mut log = tempfile::NamedTempFile::new().unwrap();
        writeln!(log, "2026-11-20 02:00:00.000+0000: starting up libvirt version: 11.3.0").unwrap();
        let before = Stamp::of(log.path(), ComparisonDepth::Full).unwrap();
        let started = |log: &tempfile::NamedTempFile| was_started(log.path(), Some(&before));
        assert!(!started(&log));
        writeln!(
            log,
            "2026-11-20 02:01:00.000+0000: starting up libvirt version: 11.3.0\nqemu: cannot get \"write\" lock"
        )
        .unwrap();
        writeln!(log, "2026-11-20 02:01:01.000+0000: shutting down, reason=failed").unwrap();
        assert!(!started(&log));
        writeln!(log, "2026-11-20 02:02:00.000+0000: starting up libvirt version: 11.3.0").unwrap();
        assert!(started(&log));
        writeln!(log, "2026-11-20 02:02:09.000+0000: shutting down, reason=destroyed").unwrap();
        assert!(started(&log));
        // The log was rotated or truncated, so a start cannot be excluded.
        log.as_file().set_len(3).unwrap();
        assert!(started(&log));
        let path = log.path().to_owned();
        drop(log);
        assert!(was_started(&path, Some(&before)) && !was_started(&path, None));
    }
}
