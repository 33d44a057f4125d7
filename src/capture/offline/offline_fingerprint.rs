//! Whether a machine that is off stayed as it was while it was read.
//!
//! QEMU's image locks keep a machine from starting while its images are served - where there are locks. On network storage, on
//! a block device (which libvirt shows to QEMU as a node of its own), on a file system without locks, and for programs that ask
//! for none, there are not. So when a capture opens, what would show a change is noted, and before its point is committed it
//! is looked at again.
//!
//! | disk | what shows that it was written |
//! | --- | --- |
//! | a file, each layer of it, and all other files that its server has open | file, length, time of the last write in nanoseconds, and the beginning, which is the header of a format that has one (dirty, corrupt and autoclear flags, bitmaps) |
//! | a block device | the kernel's count of writes |
//! | network storage, or what shows neither | nothing. The machine must not have been started: no QEMU process of it, no start in libvirt's log of it, and the same reason for being off |
//!
//! That the definition was changed counts too: the disks would be those of another machine. None of this needs libvirt, so the
//! stages of a pipe that must not open it can look as well ([`OfflineFingerprint::check`]); who has libvirt open asks it besides
//! ([`Machine::check_still`]). A start that failed is no start.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::storage_daemon;
use crate::capture::connection::embedded_root;
use crate::capture::domain_xml::definition::Definition;
use crate::capture::error::{Error, Result};
use crate::capture::machine::{Machine, Which};
use crate::capture::runtime::our_uid;
use crate::capture::state::{CaptureState, ServerProcess, start_ticks};

/// As much of an image as is compared: qcow2's header with its extensions is in the first cluster, which has 64 KiB.
const HEADER_BYTES: usize = 64 << 10;

/// More of a log than this is not searched for starts: there was one, then.
const MOST_LOG_BYTES: u64 = 4 << 20;

/// What the world was like when a capture of a machine that is off was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfflineFingerprint {
    uuid: String,
    /// The files and devices that hold the disks.
    storage: Vec<StorageFingerprint>,
    /// Whether a disk can be written without any of these showing it.
    has_unobservable_disk: bool,
    /// QEMU processes with the machine's UUID that were there although the machine is off: of another libvirt.
    foreign_processes: Vec<ServerProcess>,
    /// libvirt's log of the machine, and its stamp; none when there was no log.
    log: Option<(PathBuf, Option<Stamp>)>,
    /// Where libvirt keeps the definition, if that file was found to say what libvirt says.
    definition: Option<PathBuf>,
    /// libvirt's reason for the machine being off.
    off_reason: i32,
}

/// A file or device, and how it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct StorageFingerprint {
    path: PathBuf,
    stamp: Stamp,
}

/// What changes when a file or device is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    device: u64,
    inode: u64,
    size_bytes: u64,
    modified_ns: i64,
    /// SHA-256 of the beginning; none where it cannot be read.
    header: Option<String>,
    /// Sectors of a block device that were written, and discarded.
    writes: Option<Vec<u64>>,
}

/// What can be seen at a glance, and what needs the file to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ComparisonDepth {
    /// Without reading: for a look every other moment.
    Glance,
    /// All of it.
    Full,
}

impl OfflineFingerprint {
    /// Notes how things are, before the disks can be read. `state` has the machine's disks with their layers.
    pub(crate) fn note(machine: &Machine, state: &CaptureState) -> OfflineFingerprint {
        let mut still = OfflineFingerprint {
            uuid: state.uuid.clone(),
            foreign_processes: processes_of(&state.uuid),
            log: log_path(&state.connect, &state.machine)
                .map(|path| (path.clone(), Stamp::of(&path, ComparisonDepth::Full).ok())),
            off_reason: machine.off_reason().unwrap_or_default(),
            ..OfflineFingerprint::default()
        };
        for disk in &state.disks {
            // Of what is on the network there is only the address.
            let layers = disk.image.iter().map(|layer| Path::new(&layer.path));
            let noted = layers.filter(|path| path.is_absolute()).filter(|path| still.add(path)).count();
            still.has_unobservable_disk |= noted < disk.image.len();
        }
        still
    }

    /// Notes the other files that the servers have open - raw data files, extents, but not their logs in the capture's own
    /// folder - and the definition, once libvirt has given it.
    pub(crate) fn note_opened(&mut self, state: &CaptureState, own: &Path) {
        for server in &state.servers {
            for file in storage_daemon::servers_on(&server.socket).into_iter().flat_map(open_files) {
                if !file.starts_with(own) && self.storage.iter().all(|witness| witness.path != file) {
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

    /// Looks whether anything changed or was started since. `state` is the capture's.
    pub fn check(&self, state: &CaptureState, depth: ComparisonDepth) -> Result<()> {
        let machine = || state.machine.clone();
        let changed = |what: String| Err(Error::ChangedMeanwhile { machine: machine(), what });
        for witness in &self.storage {
            if let Some(what) = witness.change(depth) {
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
            // The file of a machine that was undefined or renamed is gone; its disks are as they were.
            && parts_in(path).is_some_and(|parts| parts != Parts::of(&said))
        {
            return changed("its definition was changed".to_owned());
        }
        Ok(())
    }
}

impl Machine {
    /// Looks whether a machine that is off stayed so since a capture of it was opened, with libvirt's help. One that does not
    /// exist any more cannot be asked.
    pub fn check_still(&self, state: &CaptureState) -> Result<()> {
        let Some(still) = &state.stillness else { return Ok(()) };
        match self.compare_still(state, still) {
            Err(error) if error.is_not_found() => Ok(()),
            other => other,
        }
    }

    fn compare_still(&self, state: &CaptureState, still: &OfflineFingerprint) -> Result<()> {
        let name = || state.machine.clone();
        if self.is_running()? {
            return Err(Error::StartedMeanwhile { machine: name() });
        }
        // A libvirt that was restarted does not know any reason.
        let reason = self.off_reason()?;
        if still.has_unobservable_disk && reason != still.off_reason && reason != REASON_UNKNOWN {
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

/// What of a definition decides on what a point holds.
#[derive(Debug, PartialEq, Eq)]
struct Parts(Definition);

impl Parts {
    fn of(definition: &Definition) -> Parts {
        // The rest may change while the disks stay what they are: a description, memory, labels.
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

impl StorageFingerprint {
    /// What happened to it, if anything did.
    fn change(&self, depth: ComparisonDepth) -> Option<String> {
        let path = self.path.display();
        let now = match Stamp::of(&self.path, depth) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Some(format!("{path} is gone")),
            Err(error) => return Some(format!("{path} cannot be looked at: {error}")),
            Ok(now) => now,
        };
        let before = &self.stamp;
        if (now.device, now.inode) != (before.device, before.inode) {
            return Some(format!("{path} is another file"));
        }
        let is_read = now.header.is_some();
        let same = (now.size_bytes, now.modified_ns, &now.writes)
            == (before.size_bytes, before.modified_ns, &before.writes)
            && (!is_read || now.header == before.header);
        (!same).then(|| format!("{path} was written"))
    }
}

impl Stamp {
    fn of(path: &Path, depth: ComparisonDepth) -> io::Result<Stamp> {
        let found = fs::metadata(path)?;
        let kind = found.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(io::Error::other("it is neither a file nor a block device"));
        }
        // Opened, for a network file system asks its server then, and otherwise says what it remembers.
        let opened = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path).ok();
        if kind.is_block_device() {
            // What waits in memory is counted when it is written.
            if let Some(device) = opened.as_ref().filter(|_| depth == ComparisonDepth::Full) {
                device.sync_data()?;
            }
            return Ok(Stamp {
                device: 0,
                inode: found.rdev(),
                size_bytes: 0,
                modified_ns: 0,
                header: None,
                writes: writes_of(found.rdev()),
            });
        }
        let header = opened.as_ref().filter(|_| depth == ComparisonDepth::Full).and_then(|file| header_of(file).ok());
        let found = opened.map_or(Ok(found), |file| file.metadata())?;
        Ok(Stamp {
            device: found.dev(),
            inode: found.ino(),
            size_bytes: found.size(),
            modified_ns: found.mtime().saturating_mul(1_000_000_000).saturating_add(found.mtime_nsec()),
            header,
            writes: None,
        })
    }

    /// Whether a write changes it.
    fn shows_writes(&self) -> bool {
        self.device != 0 || self.writes.is_some()
    }
}

fn header_of(file: &File) -> io::Result<String> {
    let (mut header, mut filled) = (vec![0; HEADER_BYTES], 0);
    while filled < header.len() {
        match file.read_at(&mut header[filled..], filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(hex::encode(Sha256::digest(&header[..filled])))
}

/// Sectors written and discarded, of `/sys/dev/block/…/stat` (`Documentation/block/stat.rst`). The writes are not counted
/// alone: a flush, which our own look is, may be one.
fn writes_of(device: u64) -> Option<Vec<u64>> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let folder = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    // A partition has no queue of its own.
    let counts =
        ["queue/iostats", "../queue/iostats"].iter().find_map(|file| fs::read_to_string(folder.join(file)).ok());
    if counts.is_some_and(|counts| counts.trim() == "0") {
        return None;
    }
    let stat = fs::read_to_string(folder.join("stat")).ok()?;
    let columns: Vec<u64> = stat.split_whitespace().map(|column| column.parse().unwrap_or_default()).collect();
    let written: Vec<u64> = [6, 13].into_iter().filter_map(|column| columns.get(column).copied()).collect();
    (!written.is_empty()).then_some(written)
}

/// The files and block devices that a process has open, as far as they have a path.
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

/// The QEMU processes of a machine with this UUID: libvirt gives it to each.
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

/// Whether libvirt's log of a machine shows a start that did not fail. Where the log cannot be compared with what it was, it
/// counts as one.
fn was_started(log: &Path, before: Option<&Stamp>) -> bool {
    let Ok(now) = Stamp::of(log, ComparisonDepth::Glance) else {
        // Never there, or rotated away.
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

/// Where libvirt logs what becomes of a machine.
fn log_path(uri: &str, machine: &str) -> Option<PathBuf> {
    let folder = match embedded_root(uri) {
        Some(root) => root.join("log/qemu"),
        None if is_session(uri) => user_folder("XDG_CACHE_HOME", ".cache")?.join("libvirt/qemu/log"),
        None => PathBuf::from("/var/log/libvirt/qemu"),
    };
    file_of(folder, machine, "log")
}

/// Where libvirt keeps a machine's definition.
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
    fn a_start_that_failed_is_no_start() {
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
        // Rotated, or cut off: nobody knows.
        log.as_file().set_len(3).unwrap();
        assert!(started(&log));
        let path = log.path().to_owned();
        drop(log);
        assert!(was_started(&path, Some(&before)) && !was_started(&path, None));
    }

    #[test]
    fn every_change_of_a_file_shows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        fs::write(&path, vec![1; 200 << 10]).unwrap();
        let witness =
            StorageFingerprint { path: path.clone(), stamp: Stamp::of(&path, ComparisonDepth::Full).unwrap() };
        let file = File::options().write(true).open(&path).unwrap();
        let as_before = |file: &File| {
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_nanos(witness.stamp.modified_ns as u64);
            file.set_modified(time).unwrap();
        };
        assert_eq!(witness.change(ComparisonDepth::Full), None);
        file.write_all_at(&[2], 150 << 10).unwrap();
        assert!(witness.change(ComparisonDepth::Glance).unwrap().ends_with("was written"));
        // A header that changed although the time of the last write says nothing.
        as_before(&file);
        assert_eq!(witness.change(ComparisonDepth::Full), None);
        file.write_all_at(&[2], 72).unwrap();
        as_before(&file);
        assert_eq!(witness.change(ComparisonDepth::Glance), None);
        assert!(witness.change(ComparisonDepth::Full).unwrap().ends_with("was written"));
        file.write_all_at(&[1], 72).unwrap();
        file.set_len(100 << 10).unwrap();
        as_before(&file);
        assert!(witness.change(ComparisonDepth::Glance).unwrap().ends_with("was written"));
        fs::copy(&path, folder.path().join("other")).unwrap();
        fs::rename(folder.path().join("other"), &path).unwrap();
        assert!(witness.change(ComparisonDepth::Glance).unwrap().ends_with("is another file"));
        fs::remove_file(&path).unwrap();
        assert!(witness.change(ComparisonDepth::Glance).unwrap().ends_with("is gone"));
    }
}
