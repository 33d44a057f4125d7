//! Errors of the workflows.

use crate::confined::parent::ConfinedError;
use crate::filesystems::FsError;
use crate::record::{Damage, Time};
use crate::suggest::suggestion;
use crate::units::in_units;
use crate::{capture, nbd, repo, storage};
use std::path::{Path, PathBuf};

/// The result of a workflow.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a workflow ended early. The command line adds the kind of failure and the hint.
#[allow(missing_docs, reason = "the messages say what the fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("interrupted")]
    Interrupted,
    /// libvirt, QEMU or a capture's state.
    #[error(transparent)]
    Capture(capture::Error),
    /// Reading or writing a disk.
    #[error("disk {disk}: {source}")]
    Disk {
        /// The disk's target name.
        disk: String,
        source: nbd::Error,
    },
    /// Where a disk is to be read is no address.
    #[error("disk {disk}: {source}")]
    NbdAddress {
        /// The disk's target name.
        disk: String,
        source: nbd::UriError,
    },
    /// What was read of a disk does not add up.
    #[error("disk {disk}: {reason}")]
    DiskMap {
        /// The disk's target name.
        disk: String,
        reason: String,
    },
    /// The list of a disk's chunks would not fit into the repository's format.
    #[error(
        "disk {disk} is too large for chunks of {} KiB: the list of the chunks of its {} TiB{} would be longer than \
         the 4 GiB that the repository format allows",
        chunk_bytes / 1024,
        capacity_bytes >> 40,
        if *.has_holes { ", a large part of them holes," } else { "" }
    )]
    DiskTooLarge {
        /// The disk's target name.
        disk: String,
        capacity_bytes: u64,
        /// The size of its chunks.
        chunk_bytes: u32,
        /// Whether the holes make it so long: then larger chunks do not help.
        has_holes: bool,
    },
    #[error(transparent)]
    Repo(Box<repo::Error>),
    /// A file of this host.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        source: std::io::Error,
    },
    /// Something is to be written into a folder that is not there.
    #[error("folder {} does not exist", path.display())]
    NoFolder { path: PathBuf },
    /// Something is to be written into a folder that is a file.
    #[error("{} is not a folder", path.display())]
    NotAFolder { path: PathBuf },
    /// The system has no thread left for us.
    #[error("cannot start a thread: {0}")]
    NoThread(#[source] std::io::Error),
    /// A program could not be started.
    #[error("cannot start {program}: {source}")]
    NotStarted { program: &'static str, source: std::io::Error },
    /// The server of a point did not end when it was asked to.
    #[error("server {served} (process {pid}) does not exit")]
    ServerStuck { served: String, pid: u32 },
    /// A program that mounts did not.
    #[error("{program} did not mount {}: {message}", target.display())]
    Mount {
        /// `guestmount` or `nbdfuse`.
        program: &'static str,
        target: PathBuf,
        message: String,
    },
    /// A mount would hide what is in the folder.
    #[error("folder {} is not empty", path.display())]
    NotEmpty { path: PathBuf },
    /// A file of a guest.
    #[error("{}: {source}", path)]
    GuestFile {
        /// The path as it was asked for, or as the guest has it.
        path: String,
        /// Why it cannot be had.
        source: FsError,
    },
    /// Copied files that lack something.
    #[error(
        "{count} file{} copied without {what}: {source}",
        if *.count == 1 { " was" } else { "s were" }
    )]
    IncompleteCopies {
        count: u64,
        /// What the first one lacks.
        what: String,
        /// Why it lacks that.
        source: std::io::Error,
    },
    /// The program that opens LUKS, RAID and logical volumes.
    #[error("guestfish: {message}")]
    Guestfish {
        /// What it said.
        message: String,
    },
    /// A passphrase does not open a LUKS volume.
    #[error("the passphrase does not open {volume}: {message}")]
    WrongPassphrase {
        /// Its name, `vda5`.
        volume: String,
        /// What cryptsetup said.
        message: String,
    },
    /// The virtual machine has less memory than the key of a LUKS volume needs.
    #[error("the virtual machine of guestfish has too little memory to open {volume}: {message}")]
    TooLittleMemory {
        /// Its name, `vda5`.
        volume: String,
        /// What cryptsetup said.
        message: String,
    },
    /// A LUKS volume that does not open, whatever the passphrase.
    #[error("cannot open {volume}: {message}")]
    VolumeNotOpened {
        /// Its name, `vda5`.
        volume: String,
        /// What cryptsetup said.
        message: String,
    },
    /// The process that reads file systems of guests.
    #[error(transparent)]
    Confined(ConfinedError),
    /// A disk record without a capture.
    #[error("disk {disk} of {machine} is not captured")]
    NotCaptured { machine: String, disk: String },
    /// The stream ended before all disks of a capture had come.
    #[error("only {arrived} of {expected} disks of capture {capture} arrived")]
    CaptureIncomplete {
        capture: String,
        /// How many disks came.
        arrived: usize,
        /// How many belong together.
        expected: usize,
    },
    /// The capture's disks can no longer be read.
    #[error("the lease of capture {capture} of {machine} expired at {}", lease_ends_at.to_rfc3339())]
    CaptureExpired {
        capture: String,
        machine: String,
        /// When the lease ended.
        lease_ends_at: Time,
    },
    /// A disk that the user named is not there.
    #[error("{subject} has no disk {disk:?}")]
    NoSuchDisk {
        /// A machine or a point.
        subject: String,
        /// The name asked for.
        disk: String,
    },
    /// No point answers the description.
    #[error("no point {wanted:?} in {repo}{}{}", suggestion(.near), known_times(.known))]
    NoSuchPoint {
        /// What was asked for.
        wanted: String,
        repo: String,
        /// Machines with points and a name like it.
        near: Vec<String>,
        /// Times of the oldest and newest point of the machine, if it has points.
        known: Option<(Time, Time)>,
    },
    /// A snapshot that is no point for want of its tags, which restic can take away.
    #[error("snapshot {snapshot} in {repo} is not a point: it lacks the tag kvmb")]
    NotAPoint {
        snapshot: String,
        repo: String,
        /// Whose point it would be.
        machine: Option<String>,
    },
    /// More than one point does.
    #[error("{wanted:?} matches {count} points")]
    AmbiguousPoint {
        /// What was asked for.
        wanted: String,
        count: usize,
    },
    /// Machines of several hosts have the name, and none of this one.
    #[error("several hosts have a machine named {machine:?}: {}", hosts_text(.newest))]
    AmbiguousMachine {
        machine: String,
        /// The hosts of each, and its newest point.
        newest: Vec<(String, String)>,
    },
    /// A snapshot that is not a point of kvmb's, or one that cannot be read.
    #[error("point {point} cannot be read: {reason}")]
    BadPoint { point: String, reason: String },
    /// A point whose manifest says what its definition does not.
    #[error("point {point} was not restored: its point.json does not match its definition: {reason}")]
    UntrustedPoint { point: String, reason: String },
    /// A snapshot file that may be the point that is meant.
    #[error("snapshot {snapshot} cannot be read and might be the requested point: {reason}")]
    UnreadableSnapshot { snapshot: String, reason: String },
    /// The repository does not hold what it should.
    #[error("point {point} is damaged in {} place{}: \
        {}", damage.len(), if damage.len() == 1 { "" } else { "s" }, describe(damage))]
    Damaged { point: String, damage: Vec<Damage> },
    /// A repository in which nothing may be removed, because something in it is damaged.
    #[error("the repository is damaged, so nothing was removed: {source}")]
    Unprunable { source: Box<repo::Error> },
    /// A file of a repository that may not be removed.
    #[error("the repository in {url} refuses to remove files: {source}")]
    RemovalRefused { url: String, source: Box<repo::Error> },
    /// Something is where a restore would write.
    #[error("{} already exists", path.display())]
    Exists { path: PathBuf },
    /// A machine of that name is there.
    #[error("machine {machine} already exists")]
    MachineExists { machine: String },
    /// Another machine has the name: replacing it is not what `--overwrite` means.
    #[error("another machine is already named {machine} (UUID {uuid})")]
    NameTaken {
        machine: String,
        /// The other machine's UUID.
        uuid: String,
    },
    /// The machine of the point has another name by now.
    #[error("machine {machine} is now named {present}")]
    Renamed {
        /// Its name when the point was captured, or the one that was asked for.
        machine: String,
        present: String,
    },
    /// A running machine is never written over.
    #[error("machine {machine} is running")]
    MachineRunning { machine: String },
    /// A running machine's image is never written over.
    #[error("disk {disk} cannot be restored to {}: it is in use by a running machine", path.display())]
    ImageInUse { disk: String, path: PathBuf },
    #[error("{} has {} free, but {} is needed", path.display(), in_units(*free_bytes), in_units(*wanted_bytes))]
    NoRoom { path: PathBuf, free_bytes: u64, wanted_bytes: u64 },
    /// Scratch files of a running machine would fill their file system.
    #[error(
        "{} has {} free, but {} is needed for scratch files",
        path.display(),
        in_units(*free_bytes),
        in_units(*wanted_bytes)
    )]
    NoScratchRoom { path: PathBuf, free_bytes: u64, wanted_bytes: u64 },
    /// A server's list of keys has ours, and the server does not take it.
    #[error(
        "the key was added to .ssh/authorized_keys of {account}, but the server still refuses it; it may read the keys \
         from another file"
    )]
    KeyNotTaken {
        /// `user@host`.
        account: String,
        /// The line for the list that the server reads.
        line: String,
    },
    /// A device that is not there: a file in its place would be in memory.
    #[error("disk {disk} cannot be restored: device {} does not exist", path.display())]
    NoDevice {
        disk: String,
        path: PathBuf,
        /// How large it must be.
        capacity_bytes: u64,
    },
    /// The same for what is no disk.
    #[error("{name} cannot be restored: there is no device {}", path.display())]
    NoDeviceOfFile {
        /// What would be written.
        name: String,
        path: PathBuf,
    },
    /// There is nothing that says where a machine without disks goes.
    #[error("there is no place for the definition of {machine}, which has no disk")]
    Nowhere { machine: String },
    /// A volume of a storage pool that is not there and cannot be made.
    #[error("disk {disk} cannot be restored to volume {volume}: {reason}")]
    NoVolume {
        disk: String,
        /// `pool/volume`
        volume: String,
        reason: String,
        /// The command that solves it.
        solve: String,
    },
    /// Saved memory would be woken on top of other disks than it was saved with.
    #[error("{machine} has saved memory, which does not match the disks to be restored")]
    SavedMemory { machine: String },
    /// The machine needs something that this host does not have.
    #[error("{machine} cannot {}: this host does not have {what}", if *is_start { "start" } else { "be defined" })]
    MissingHere {
        machine: String,
        what: String,
        solve: String,
        /// Whether it is needed for the start only.
        is_start: bool,
    },
    /// Something of a machine cannot be restored while the machine runs.
    #[error("{subject} cannot be restored live: {reason}")]
    NotLive {
        /// A disk, or a file.
        subject: String,
        reason: &'static str,
        /// What to do instead.
        solve: &'static str,
    },
    /// The security module of the host keeps QEMU from the socket of the served point.
    #[error("{module} does not permit {machine} to run on a served point: the rule {rule} is missing")]
    ForbiddenBy {
        machine: String,
        /// The security module.
        module: String,
        rule: String,
        /// The command that adds it.
        command: String,
    },
    /// The server of a live restore did not start.
    #[error("point {point} cannot be served: {message}")]
    NotServed {
        /// Its id.
        point: String,
        /// What the server said.
        message: String,
    },
    /// A live restore of the machine has to end first.
    #[error("the restore of {machine} is not finished")]
    LiveRestoreUnfinished { machine: String },
    /// Another process is at it.
    #[error("another process is restoring {machine}")]
    LiveRestoreBusy { machine: String },
    /// There is nothing to continue.
    #[error("no live restore of {machine} is unfinished")]
    NoLiveRestore { machine: String },
    /// The machine has never run on its new disks.
    #[error("the restore of {machine} was interrupted before the machine ran; everything is as it was before")]
    LiveRestoreUndone { machine: String },
    /// The machine was shut down before all of its data was there.
    #[error("{machine} was shut down before its restore was finished")]
    LiveRestoreStopped { machine: String },
    /// QEMU ends the copy again and again.
    #[error("the data of {machine}'s disk {disk} cannot be copied from the point")]
    PullFailed { machine: String, disk: String },
    /// Nobody says where the disk shall go.
    #[error("disk {disk} has no destination: {reason}")]
    NoDestination { disk: String, reason: String },
    /// The disk cannot be restored where the user wants it.
    #[error("disk {disk} cannot be restored to {}: {reason}", path.display())]
    BadTarget {
        disk: String,
        /// The file or device.
        path: PathBuf,
        reason: String,
    },
}

impl From<capture::Error> for Error {
    fn from(error: capture::Error) -> Error {
        match error {
            capture::Error::Interrupted => Error::Interrupted,
            error => Error::Capture(error),
        }
    }
}

impl From<ConfinedError> for Error {
    fn from(error: ConfinedError) -> Error {
        match error {
            ConfinedError::Stopped => Error::Interrupted,
            error => Error::Confined(error),
        }
    }
}

impl From<repo::Error> for Error {
    fn from(error: repo::Error) -> Error {
        match error.root() {
            repo::Error::Storage(storage::Error::Interrupted) => Error::Interrupted,
            _ => Error::Repo(Box::new(error)),
        }
    }
}

impl Error {
    /// Makes an [`Error::Io`]; for `map_err`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        move |source| Error::Io { action, path: path.to_owned(), source }
    }

    /// Makes an [`Error::Disk`]; for `map_err`.
    pub(crate) fn disk(disk: &str) -> impl Fn(nbd::Error) -> Error {
        move |source| match source {
            nbd::Error::Stopped => Error::Interrupted,
            source => Error::Disk { disk: disk.to_owned(), source },
        }
    }
}

fn hosts_text(newest: &[(String, String)]) -> String {
    let texts: Vec<String> = newest.iter().map(|(hosts, point)| format!("{hosts} (newest point {point})")).collect();
    texts.join("; ")
}

fn describe(damage: &[Damage]) -> String {
    let Some(first) = damage.first() else {
        return String::new();
    };
    let place = match (&first.disk, first.offset_bytes, first.length_bytes) {
        (Some(disk), Some(offset), Some(length)) => format!("disk {disk}, bytes {offset} to {}: ", offset + length),
        (Some(disk), ..) => format!("disk {disk}: "),
        _ => String::new(),
    };
    format!("{place}{}{}", first.error, if damage.len() > 1 { " …" } else { "" })
}

/// The times that a machine's points are between, for the end of a message.
fn known_times(known: &Option<(Time, Time)>) -> String {
    let text = |time: &Time| time.with_timezone(&chrono::Local).format("%Y-%m-%d %H:%M:%S").to_string();
    match known {
        None => String::new(),
        Some((oldest, newest)) if oldest == newest => format!("; its only point is of {}", text(oldest)),
        Some((oldest, newest)) => format!("; its oldest point is of {}, its newest of {}", text(oldest), text(newest)),
    }
}
