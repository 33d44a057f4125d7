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

/// Why a workflow failed. The command line adds the kind of failure and the hint.
#[allow(missing_docs, reason = "the messages say what the fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("interrupted")]
    Interrupted,
    /// An error of libvirt, of QEMU or of a capture's state.
    #[error(transparent)]
    Capture(capture::Error),
    /// A disk could not be read or written.
    #[error("disk {disk}: {source}")]
    Disk {
        /// The disk's target name.
        disk: String,
        source: nbd::Error,
    },
    /// The address of a disk is invalid.
    #[error("disk {disk}: {source}")]
    NbdAddress {
        /// The disk's target name.
        disk: String,
        source: nbd::UriError,
    },
    /// The data read from a disk is inconsistent.
    #[error("disk {disk}: {reason}")]
    DiskMap {
        /// The disk's target name.
        disk: String,
        reason: String,
    },
    /// The list of a disk's chunks would exceed the limit of the repository format.
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
        chunk_bytes: u32,
        /// Whether the holes alone make the list that long. Larger chunks do not help then.
        has_holes: bool,
    },
    #[error(transparent)]
    Repo(Box<repo::Error>),
    /// An operation on a file of this host failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        source: std::io::Error,
    },
    /// The target folder does not exist.
    #[error("folder {} does not exist", path.display())]
    NoFolder { path: PathBuf },
    /// The target folder is not a folder.
    #[error("{} is not a folder", path.display())]
    NotAFolder { path: PathBuf },
    /// The system cannot start another thread.
    #[error("cannot start a thread: {0}")]
    NoThread(#[source] std::io::Error),
    /// A program could not be started.
    #[error("cannot start {program}: {source}")]
    NotStarted { program: &'static str, source: std::io::Error },
    /// The server of a point did not exit when it was asked to.
    #[error("server {served} (process {pid}) does not exit")]
    ServerStuck { served: String, pid: u32 },
    /// A program could not mount.
    #[error("{program} did not mount {}: {message}", target.display())]
    Mount {
        /// `guestmount` or `nbdfuse`.
        program: &'static str,
        target: PathBuf,
        message: String,
    },
    /// A mount would hide the content of the folder.
    #[error("folder {} is not empty", path.display())]
    NotEmpty { path: PathBuf },
    /// A file of a guest cannot be read.
    #[error("{}: {source}", path)]
    GuestFile {
        /// The path as requested, or as the guest has it.
        path: String,
        /// Why it cannot be read.
        source: FsError,
    },
    /// Files were copied without some of their attributes.
    #[error(
        "{count} file{} copied without {what}: {source}",
        if *.count == 1 { " was" } else { "s were" }
    )]
    IncompleteCopies {
        count: u64,
        /// What the first one lacks.
        what: String,
        /// Why the first one lacks it.
        source: std::io::Error,
    },
    /// guestfish, which opens LUKS, RAID and logical volumes, failed.
    #[error("guestfish: {message}")]
    Guestfish {
        /// Its message.
        message: String,
    },
    /// A passphrase does not open a LUKS volume.
    #[error("the passphrase does not open {volume}: {message}")]
    WrongPassphrase {
        /// The volume, such as `vda5`.
        volume: String,
        /// The message of cryptsetup.
        message: String,
    },
    /// guestfish's virtual machine has less memory than the key of a LUKS volume needs.
    #[error("the virtual machine of guestfish has too little memory to open {volume}: {message}")]
    TooLittleMemory {
        /// The volume, such as `vda5`.
        volume: String,
        /// The message of cryptsetup.
        message: String,
    },
    /// A LUKS volume cannot be opened with any passphrase.
    #[error("cannot open {volume}: {message}")]
    VolumeNotOpened {
        /// The volume, such as `vda5`.
        volume: String,
        /// The message of cryptsetup.
        message: String,
    },
    /// The process that reads file systems of guests failed.
    #[error(transparent)]
    Confined(ConfinedError),
    /// The input has a disk that is not captured.
    #[error("disk {disk} of {machine} is not captured")]
    NotCaptured { machine: String, disk: String },
    /// The stream ended before all disks of a capture arrived.
    #[error("only {arrived} of {expected} disks of capture {capture} arrived")]
    CaptureIncomplete {
        capture: String,
        /// The number of disks that arrived.
        arrived: usize,
        /// The number of disks of the capture.
        expected: usize,
    },
    /// The lease of the capture expired, so its disks can no longer be read.
    #[error("the lease of capture {capture} of {machine} expired at {}", lease_ends_at.to_rfc3339())]
    CaptureExpired {
        capture: String,
        machine: String,
        /// When the lease ended.
        lease_ends_at: Time,
    },
    /// The requested disk does not exist.
    #[error("{subject} has no disk {disk:?}")]
    NoSuchDisk {
        /// A machine or a point.
        subject: String,
        /// The requested name.
        disk: String,
    },
    /// No point matches.
    #[error("no point {wanted:?} in {repo}{}{}", suggestion(.near), known_times(.known))]
    NoSuchPoint {
        /// The requested point.
        wanted: String,
        repo: String,
        /// Machines that have points and a similar name.
        near: Vec<String>,
        /// The times of the machine's oldest and newest point, if it has points.
        known: Option<(Time, Time)>,
    },
    /// A snapshot is not a point because its tags are missing. restic can remove tags.
    #[error("snapshot {snapshot} in {repo} is not a point: it lacks the tag kvmb")]
    NotAPoint {
        snapshot: String,
        repo: String,
        /// The machine whose point it would be.
        machine: Option<String>,
    },
    /// More than one point matches.
    #[error("{wanted:?} matches {count} points")]
    AmbiguousPoint {
        /// The requested point.
        wanted: String,
        count: usize,
    },
    /// Machines with this name exist on several other hosts, but not on this one.
    #[error("several hosts have a machine named {machine:?}: {}", hosts_text(.newest))]
    AmbiguousMachine {
        machine: String,
        /// The host of each machine, and its newest point.
        newest: Vec<(String, String)>,
    },
    /// A snapshot is not a point of kvmb, or cannot be read.
    #[error("point {point} cannot be read: {reason}")]
    BadPoint { point: String, reason: String },
    /// The manifest of a point contradicts its definition.
    #[error("point {point} was not restored: its point.json does not match its definition: {reason}")]
    UntrustedPoint { point: String, reason: String },
    /// A snapshot file that cannot be read may be the requested point.
    #[error("snapshot {snapshot} cannot be read and might be the requested point: {reason}")]
    UnreadableSnapshot { snapshot: String, reason: String },
    /// Data of the point is missing or damaged.
    #[error("point {point} is damaged in {} place{}: \
        {}", damage.len(), if damage.len() == 1 { "" } else { "s" }, describe(damage))]
    Damaged { point: String, damage: Vec<Damage> },
    /// Nothing was removed because the repository is damaged.
    #[error("the repository is damaged, so nothing was removed: {source}")]
    Unprunable { source: Box<repo::Error> },
    /// The storage refuses to remove a file of the repository.
    #[error("the repository in {url} refuses to remove files: {source}")]
    RemovalRefused { url: String, source: Box<repo::Error> },
    /// A restore would write to a path that exists already.
    #[error("{} already exists", path.display())]
    Exists { path: PathBuf },
    /// A machine with this name exists already.
    #[error("machine {machine} already exists")]
    MachineExists { machine: String },
    /// Another machine has the name. `--overwrite` does not replace it.
    #[error("another machine is already named {machine} (UUID {uuid})")]
    NameTaken {
        machine: String,
        /// The UUID of the other machine.
        uuid: String,
    },
    /// The machine of the point was renamed.
    #[error("machine {machine} is now named {present}")]
    Renamed {
        /// Its name when the point was captured, or the requested name.
        machine: String,
        present: String,
    },
    /// A running machine is never overwritten.
    #[error("machine {machine} is running")]
    MachineRunning { machine: String },
    /// The image of a running machine is never overwritten.
    #[error("disk {disk} cannot be restored to {}: it is in use by a running machine", path.display())]
    ImageInUse { disk: String, path: PathBuf },
    /// A device that another program writes to is not overwritten.
    #[error("disk {disk} cannot be restored to {}: it is open for writing in {holder}", path.display())]
    DeviceInUse { disk: String, path: PathBuf, holder: String },
    #[error("{} has {} free, but {} is needed", path.display(), in_units(*free_bytes), in_units(*wanted_bytes))]
    NoRoom { path: PathBuf, free_bytes: u64, wanted_bytes: u64 },
    /// The scratch files of a running machine would fill their file system.
    #[error(
        "{} has {} free, but {} is needed for scratch files",
        path.display(),
        in_units(*free_bytes),
        in_units(*wanted_bytes)
    )]
    NoScratchRoom { path: PathBuf, free_bytes: u64, wanted_bytes: u64 },
    /// Our key is in the server's authorized_keys, but the server refuses it.
    #[error(
        "the key was added to .ssh/authorized_keys of {account}, but the server still refuses it; it may read the keys \
         from another file"
    )]
    KeyNotTaken {
        /// `user@host`.
        account: String,
        /// The line to add to the file that the server reads.
        line: String,
    },
    /// The target device does not exist. A file created in its place would be in memory.
    #[error("disk {disk} cannot be restored: device {} does not exist", path.display())]
    NoDevice {
        disk: String,
        path: PathBuf,
        /// The required size.
        capacity_bytes: u64,
    },
    /// The same as [`Error::NoDevice`], for something other than a disk.
    #[error("{name} cannot be restored: there is no device {}", path.display())]
    NoDeviceOfFile {
        /// What was to be restored.
        name: String,
        path: PathBuf,
    },
    /// Nothing determines where the definition of a machine without disks is restored to.
    #[error("there is no place for the definition of {machine}, which has no disk")]
    Nowhere { machine: String },
    /// The volume of a storage pool does not exist and cannot be created.
    #[error("disk {disk} cannot be restored to volume {volume}: {reason}")]
    NoVolume {
        disk: String,
        /// `pool/volume`
        volume: String,
        reason: String,
        /// The command that solves it.
        solve: String,
    },
    /// The memory saved by a managed save does not match the disks to be restored.
    #[error("{machine} has saved memory, which does not match the disks to be restored")]
    SavedMemory { machine: String },
    /// The machine needs something that this host does not have.
    #[error("{machine} cannot {}: this host does not have {what}", if *is_start { "start" } else { "be defined" })]
    MissingHere {
        machine: String,
        what: String,
        solve: String,
        /// Whether only the start needs it.
        is_start: bool,
    },
    /// The requested machine type has other buses and controllers than those in the definition.
    #[error("{machine} cannot be defined with the machine type {machine_type}: its devices are those of {family}")]
    OtherFamily {
        machine: String,
        machine_type: String,
        /// The machine type that fits.
        family: &'static str,
    },
    /// A part of the machine cannot be restored while the machine runs.
    #[error("{subject} cannot be restored live: {reason}")]
    NotLive {
        /// A disk, or a file.
        subject: String,
        reason: &'static str,
        /// What to do instead.
        solve: &'static str,
    },
    /// The host's security module denies QEMU access to the socket of the served point.
    #[error("{module} does not permit {machine} to run on a served point: the rule {rule} is missing")]
    ForbiddenBy {
        machine: String,
        /// The security module.
        module: String,
        rule: String,
        /// The command that adds the rule.
        command: String,
    },
    /// The server of a live restore did not start.
    #[error("point {point} cannot be served: {message}")]
    NotServed {
        point: String,
        /// The message of the server.
        message: String,
    },
    /// A live restore of the machine must finish first.
    #[error("the restore of {machine} is not finished")]
    LiveRestoreUnfinished { machine: String },
    /// Another process is restoring the machine.
    #[error("another process is restoring {machine}")]
    LiveRestoreBusy { machine: String },
    /// There is no live restore to continue.
    #[error("no live restore of {machine} is unfinished")]
    NoLiveRestore { machine: String },
    /// A live restore was interrupted before the machine ran, and was undone.
    #[error("the restore of {machine} was interrupted before the machine ran; everything is as it was before")]
    LiveRestoreUndone { machine: String },
    /// The machine was shut down before all of its data was copied.
    #[error("{machine} was shut down before its restore was finished")]
    LiveRestoreStopped { machine: String },
    /// QEMU repeatedly aborts the copy of an overlay.
    #[error("{machine} cannot be moved to its new disk {disk}")]
    NotSwitched { machine: String, disk: String },
    /// During a live restore, a disk was detached or moved to another image.
    #[error(
        "disk {disk} of {machine} was detached or moved during its restore; what {machine} has written to it may be in \
         {}",
        overlay.display()
    )]
    LiveDiskMoved { machine: String, disk: String, overlay: PathBuf },
    /// Nothing determines where the disk is restored to.
    #[error("disk {disk} has no destination: {reason}")]
    NoDestination { disk: String, reason: String },
    /// The disk cannot be restored to the requested target.
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
    /// Returns a closure for `map_err` that makes an [`Error::Io`].
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        move |source| Error::Io { action, path: path.to_owned(), source }
    }

    /// Returns a closure for `map_err` that makes an [`Error::Disk`].
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

/// The end of the message: the times of a machine's oldest and newest point.
fn known_times(known: &Option<(Time, Time)>) -> String {
    let text = |time: &Time| time.with_timezone(&chrono::Local).format("%Y-%m-%d %H:%M:%S").to_string();
    match known {
        None => String::new(),
        Some((oldest, newest)) if oldest == newest => format!("; its only point is of {}", text(oldest)),
        Some((oldest, newest)) => format!("; its oldest point is of {}, its newest of {}", text(oldest), text(newest)),
    }
}
