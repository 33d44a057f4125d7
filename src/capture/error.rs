//! Errors of libvirt, QEMU and captures.

use crate::capture::block_job::BlockJob;
use crate::capture::holders::Holder;
use crate::capture::process::RunningBackup;
use crate::suggest::suggestion;
use crate::units::in_units;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use virt::enumutil::Enum;
use virt::error::{ErrorDomain, ErrorNumber};

/// The result of a call of this layer.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// The meaning of a libvirt error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LibvirtErrorKind {
    /// The machine does not exist.
    NotFound,
    /// libvirt does not, or no longer, know the checkpoint.
    CheckpointMissing,
    /// The bitmap of a checkpoint is missing or broken on at least one disk.
    BitmapBroken,
    /// There is no backup job.
    NoBackupJob,
    /// libvirt, QEMU or the machine does not support the operation.
    Unsupported,
    /// The machine is busy with another job.
    Busy,
    /// The guest agent is not connected, disappeared, or did not answer in time.
    AgentSilent,
    /// The guest agent answered with an error.
    AgentFailed,
    /// The connection is read-only, or the user lacks the permission.
    ReadOnlyUri,
    /// libvirt is unreachable, or the connection was lost.
    NoConnection,
    /// The machine is in the wrong state for the operation, for example not running.
    InvalidState,
    /// There was no answer: the time limit was exceeded or the program was interrupted.
    NoAnswer,
    /// An error of libvirt or QEMU without a specific code.
    Internal,
    /// Any other error; the message describes it.
    Other,
}

/// An error of this layer.
#[allow(missing_docs, reason = "the messages say what the fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {action}: {message}")]
    Libvirt {
        /// The failed action, for example "begin the backup of web1".
        action: String,
        /// The meaning of libvirt's error code.
        meaning: LibvirtErrorKind,
        /// libvirt's message, in the language of its daemon. No decision depends on it.
        message: String,
    },
    /// libvirt or QEMU did not answer in time. The action may still be carried out.
    #[error("cannot {action}: no response within {} s", .limit.as_secs())]
    TimedOut {
        action: String,
        /// The time limit.
        limit: Duration,
    },
    /// An earlier call about this machine timed out and has not returned yet.
    #[error("cannot {action}: {machine} is not responding")]
    Silent {
        /// The action that was not attempted.
        action: String,
        machine: String,
    },
    /// The program was interrupted.
    #[error("interrupted")]
    Interrupted,
    /// There is no machine with this name.
    #[error("no machine named '{name}' on {uri}{}", suggestion(.near))]
    NoSuchMachine {
        /// The requested name.
        name: String,
        uri: String,
        /// Machines with similar names.
        near: Vec<String>,
    },
    /// The definition of a machine is unusable.
    #[error("the machine's definition cannot be read: {0}")]
    Definition(#[from] crate::capture::domain_xml::definition::DefinitionError),
    /// A capture requires the hypervisor of this host.
    #[error("{uri} is not the QEMU hypervisor of this host; a machine can only be captured on the host that runs it")]
    NotLocal { uri: String },
    /// Another program has a backup job of the machine.
    #[error("{machine} has a backup job of another program ({job})")]
    ForeignJob {
        machine: String,
        /// The known details of the job.
        job: String,
    },
    /// libvirt is busy with another operation on the machine.
    #[error("{machine} is busy: it is being saved, migrated or dumped, or a snapshot is being created")]
    OtherJob { machine: String },
    /// Some of the machine's data is still only in the repository.
    #[error("the restore of {machine} is not finished: disk {disk} still needs the served point")]
    LiveRestore { machine: String, disk: String },
    /// A disk has a block job, and libvirt allows only one at a time.
    #[error("disk {disk} of {machine} has a block job ({job})")]
    BlockJob { machine: String, disk: String, job: BlockJob },
    /// A stopped machine has a managed save image, which includes data that the guest has not written to the disks yet.
    #[error("the memory of {machine} is saved on disk, and a backup of only its disks would not match it")]
    SavedMemory { machine: String },
    /// QEMU sees different mounts than this process.
    #[error(
        "QEMU of {machine} does not see the folder {}: its file system was mounted after the machine was \
         started", .folder.display()
    )]
    ScratchHidden {
        machine: String,
        /// The folder of the scratch files.
        folder: PathBuf,
    },
    /// A live capture of kvmb exists.
    #[error("{}", held_text(machine, capture, until, by.as_ref()))]
    Held {
        machine: String,
        capture: String,
        /// The end of its lease, if the lease is what keeps it.
        until: Option<String>,
        /// The running backup that it belongs to.
        by: Option<RunningBackup>,
    },
    /// Another command has been opening or closing a capture of the machine for too long.
    #[error("another command is opening or closing a capture of {machine}")]
    BeingOpened { machine: String },
    /// No capture has this id or belongs to this machine.
    #[error("no capture '{name}': it was released or its lease expired")]
    NoSuchCapture {
        /// The requested id or name.
        name: String,
    },
    /// The state file of a capture cannot be parsed.
    #[error("the state of capture {capture} cannot be read: {message}")]
    BadState { capture: String, message: String },
    /// A disk cannot be captured.
    #[error("disk {disk} of {machine} cannot be captured: {reason}")]
    DiskNotCapturable { machine: String, disk: String, reason: String },
    /// A `<transient/>` disk of a running machine.
    #[error("disk {disk} of {machine} is transient: libvirt cannot back it up while the machine is running")]
    DiskTransient { machine: String, disk: String },
    /// The storage pool of a volume is not running, so the volume cannot be looked up.
    #[error("volume {volume} is in storage pool {pool}, which is not running")]
    PoolNotRunning { pool: String, volume: String },
    /// An image or storage cannot be opened while its machine is off.
    #[error("{image}: {reason}")]
    UnsupportedImage {
        /// The path or address.
        image: String,
        reason: String,
    },
    /// The header of an image is invalid.
    #[error("{image}: {reason}")]
    DamagedImage {
        /// The path.
        image: String,
        reason: String,
    },
    /// This host's QEMU has no driver for a disk's storage.
    #[error("{image}: QEMU has no driver for it ({message})")]
    NoBlockDriver {
        /// The path or address.
        image: String,
        message: String,
    },
    /// An image does not record the format of its backing file, and guessing it would be unsafe.
    #[error("{image} does not record the format of its backing file {backing}, and guessing it would be unsafe")]
    NoBackingFormat {
        image: String,
        format: String,
        /// The backing file, as spelled in the image.
        backing: String,
    },
    /// The program that serves the disks of stopped machines is not installed.
    #[error("qemu-storage-daemon is not installed; it is needed to read the disks of a stopped machine")]
    NoStorageDaemon {
        /// The package that contains it.
        package: &'static str,
    },
    /// QEMU's user cannot read a file that a disk needs.
    #[error("disk {disk} of {machine} cannot be read as QEMU's user: {message}")]
    DiskNotReadable {
        machine: String,
        /// The target of the disk; several are separated by commas.
        disk: String,
        message: String,
        /// Whether the unreadable file is only referenced by the header of an image.
        is_of_header: bool,
    },
    /// A security label contains a user or group that does not exist on this host.
    #[error("QEMU of {machine} runs as '{label}', which is not a user of this host")]
    UnknownOwner { machine: String, label: String },
    /// An image of a stopped machine is open for writing in another process.
    #[error("an image of {machine} is in use{}: {message}", holders_text(.holders))]
    ImageHeld {
        machine: String,
        /// The processes that have it open, as far as they can be determined.
        holders: Vec<Holder>,
        message: String,
    },
    /// A secret that a disk requires cannot be read.
    #[error("the secret of disk {disk} of {machine} cannot be read: {message}")]
    SecretUnavailable { machine: String, disk: String, message: String },
    /// The passphrase of an encrypted image, from libvirt's secret or a file, is wrong.
    #[error("the passphrase of disk {disk} of {machine} is wrong")]
    WrongPassphrase { machine: String, disk: String },
    /// A stopped machine was started while it was being captured.
    #[error("{machine} was started while it was being captured")]
    StartedMeanwhile { machine: String },
    /// A stopped machine changed while it was being read, so the data is not of a single moment.
    #[error("{machine} changed while it was being read: {what}")]
    ChangedMeanwhile { machine: String, what: String },
    /// A machine was not resumed after a restore or migration. QEMU has not activated its images, and the state of
    /// their bitmaps is meaningless.
    #[error("{machine} is still paused after a restore or migration")]
    NotResumed { machine: String },
    /// None of the machine's disks was selected.
    #[error("{machine} has no selected disk that can be backed up")]
    NothingToCapture { machine: String },
    /// The guest had to be frozen but could not be.
    #[error("the file systems of {machine} could not be frozen: {reason}")]
    FreezeFailed { machine: String, reason: String },
    /// A job did not end in time.
    #[error("the backup job of {machine} did not end within {} s", .waited.as_secs())]
    JobStuck {
        machine: String,
        /// The time that was waited.
        waited: Duration,
    },
    /// libvirt was killed while it began a job, and lost track of it.
    #[error("libvirt has lost track of the backup job of {machine} ({message})")]
    Wedged { machine: String, message: String },
    /// A program could not be started.
    #[error("cannot start {program}: {source}")]
    NotStarted { program: &'static str, source: io::Error },
    /// `qemu-storage-daemon` or `qemu-img` failed.
    #[error("{program} failed for {subject}: {message}")]
    Program {
        program: &'static str,
        /// The disk or file.
        subject: String,
        message: String,
    },
    /// The path of a Unix socket exceeds 107 bytes.
    #[error("the socket path {} is longer than 107 bytes; set KVMB_RUNTIME_DIR to a shorter path", .path.display())]
    SocketPathTooLong { path: PathBuf },
    /// A folder could be tampered with by other users.
    #[error("the folder {} is not safe to use: {reason}", .path.display())]
    UnsafeFolder { path: PathBuf, reason: String },
    /// A file or folder is in a place that users other than root can write to, and was replaced.
    #[error("{} is not safe to use: {reason}", .path.display())]
    UnsafePath {
        /// The file or folder.
        path: PathBuf,
        reason: String,
    },
    /// A file exceeds the maximum size for its kind.
    #[error("{} has {}; the maximum is {}", .path.display(), in_units(*size_bytes), in_units(*limit_bytes))]
    TooLarge {
        /// The file or device.
        path: PathBuf,
        size_bytes: u64,
        limit_bytes: u64,
    },
    /// A folder is not accessible to QEMU's user.
    #[error("QEMU runs as user {uid}, which has no access to {}", .path.display())]
    Unreachable {
        /// The first inaccessible folder on the path.
        path: PathBuf,
        uid: u32,
    },
    /// An operation on a file of this host failed.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// The verb: "read", "create" …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        source: io::Error,
    },
}

impl Error {
    /// The meaning of libvirt's error; [`LibvirtErrorKind::Other`] if the error is not from libvirt.
    pub fn meaning(&self) -> LibvirtErrorKind {
        match self {
            Error::Libvirt { meaning, .. } => *meaning,
            Error::NoSuchMachine { .. } => LibvirtErrorKind::NotFound,
            Error::ForeignJob { .. }
            | Error::OtherJob { .. }
            | Error::BlockJob { .. }
            | Error::LiveRestore { .. }
            | Error::SavedMemory { .. }
            | Error::Held { .. }
            | Error::BeingOpened { .. }
            | Error::ImageHeld { .. } => LibvirtErrorKind::Busy,
            Error::NotLocal { .. } => LibvirtErrorKind::Unsupported,
            Error::TimedOut { .. } | Error::Silent { .. } | Error::Interrupted => LibvirtErrorKind::NoAnswer,
            _ => LibvirtErrorKind::Other,
        }
    }

    /// Whether it may help to wait, because the machine is busy.
    pub fn is_busy(&self) -> bool {
        self.meaning() == LibvirtErrorKind::Busy
    }

    /// Whether the machine does not, or no longer, exist.
    pub fn is_not_found(&self) -> bool {
        self.meaning() == LibvirtErrorKind::NotFound
    }

    pub(super) fn libvirt(action: impl Into<String>, error: &virt::error::Error) -> Error {
        let meaning = match (error.code(), error.domain()) {
            (Enum::Known(number), Enum::Known(domain)) => meaning(number, domain),
            (Enum::Known(number), Enum::Unknown(_)) => meaning(number, ErrorDomain::None),
            (Enum::Unknown(_), _) => LibvirtErrorKind::Other,
        };
        Error::Libvirt { action: action.into(), meaning, message: error.message().to_owned() }
    }

    /// Whether there was no answer: the time limit was exceeded or the program was interrupted.
    pub(crate) fn is_no_answer(&self) -> bool {
        self.meaning() == LibvirtErrorKind::NoAnswer
    }

    /// Adjusts an error of opening a connection: an error without a specific code then means that libvirt is
    /// unreachable or that this user lacks the permission.
    pub(super) fn of_opening(self, is_refused: bool) -> Error {
        let vague = |meaning| {
            use LibvirtErrorKind::{Internal, NoConnection, Other};
            matches!(meaning, Internal | NoConnection | Other)
        };
        match self {
            Error::Libvirt { action, meaning, message } if vague(meaning) => {
                let meaning = match is_refused {
                    true => LibvirtErrorKind::ReadOnlyUri,
                    false => LibvirtErrorKind::NoConnection,
                };
                Error::Libvirt { action, meaning, message }
            }
            other => other,
        }
    }

    pub(super) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }
}

/// Adds the failed action to an error of the `virt` crate.
pub(super) trait LibvirtContext<T> {
    fn context(self, action: impl FnOnce() -> String) -> Result<T>;
}

impl<T> LibvirtContext<T> for std::result::Result<T, virt::error::Error> {
    fn context(self, action: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::libvirt(action(), &error))
    }
}

/// Maps libvirt's error code and domain to a meaning. The messages are in the language of its daemon and are not
/// evaluated; if a code is ambiguous, further queries to libvirt decide.
fn meaning(number: ErrorNumber, domain: ErrorDomain) -> LibvirtErrorKind {
    match number {
        ErrorNumber::NoDomain
        | ErrorNumber::NoNetwork
        | ErrorNumber::NoStoragePool
        | ErrorNumber::NoStorageVolume
        | ErrorNumber::NoNwfilter
        | ErrorNumber::NoSecret => LibvirtErrorKind::NotFound,
        ErrorNumber::NoDomainCheckpoint => LibvirtErrorKind::CheckpointMissing,
        ErrorNumber::NoDomainBackup => LibvirtErrorKind::NoBackupJob,
        ErrorNumber::CheckpointInconsistent => LibvirtErrorKind::BitmapBroken,
        ErrorNumber::NoSupport
        | ErrorNumber::ConfigUnsupported
        | ErrorNumber::ArgumentUnsupported
        | ErrorNumber::OperationUnsupported => LibvirtErrorKind::Unsupported,
        ErrorNumber::OperationTimeout => LibvirtErrorKind::Busy,
        ErrorNumber::AgentCommandTimeout | ErrorNumber::AgentUnsynced | ErrorNumber::AgentUnresponsive => {
            LibvirtErrorKind::AgentSilent
        }
        ErrorNumber::AgentCommandFailed => LibvirtErrorKind::AgentFailed,
        ErrorNumber::OperationDenied
        | ErrorNumber::AuthFailed
        | ErrorNumber::AuthCancelled
        | ErrorNumber::AccessDenied
        | ErrorNumber::AuthUnavailable => LibvirtErrorKind::ReadOnlyUri,
        ErrorNumber::NoConnect | ErrorNumber::Rpc => LibvirtErrorKind::NoConnection,
        ErrorNumber::OperationInvalid => LibvirtErrorKind::InvalidState,
        // The connection's own layer has no specific codes for its failures.
        ErrorNumber::InternalError | ErrorNumber::SystemError
            if matches!(domain, ErrorDomain::Rpc | ErrorDomain::Remote) =>
        {
            LibvirtErrorKind::NoConnection
        }
        ErrorNumber::InternalError => LibvirtErrorKind::Internal,
        ErrorNumber::SystemError
        | ErrorNumber::Ok
        | ErrorNumber::NoMemory
        | ErrorNumber::UnknownHost
        | ErrorNumber::InvalidConn
        | ErrorNumber::InvalidDomain
        | ErrorNumber::InvalidArg
        | ErrorNumber::OperationFailed
        | ErrorNumber::GetFailed
        | ErrorNumber::PostFailed
        | ErrorNumber::HttpError
        | ErrorNumber::SExprSerial
        | ErrorNumber::NoXen
        | ErrorNumber::XenCall
        | ErrorNumber::OsType
        | ErrorNumber::NoKernel
        | ErrorNumber::NoRoot
        | ErrorNumber::NoSource
        | ErrorNumber::NoTarget
        | ErrorNumber::NoName
        | ErrorNumber::NoOs
        | ErrorNumber::NoDevice
        | ErrorNumber::NoXenStore
        | ErrorNumber::DriverFull
        | ErrorNumber::CallFailed
        | ErrorNumber::XmlError
        | ErrorNumber::DomExist
        | ErrorNumber::OpenFailed
        | ErrorNumber::ReadFailed
        | ErrorNumber::ParseFailed
        | ErrorNumber::ConfSyntax
        | ErrorNumber::WriteFailed
        | ErrorNumber::XmlDetail
        | ErrorNumber::InvalidNetwork
        | ErrorNumber::NetworkExist
        | ErrorNumber::GnutlsError
        | ErrorNumber::InvalidMac
        | ErrorNumber::InvalidStoragePool
        | ErrorNumber::InvalidStorageVol
        | ErrorNumber::InvalidNodeDevice
        | ErrorNumber::NoNodeDevice
        | ErrorNumber::NoSecurityModel
        | ErrorNumber::NoInterface
        | ErrorNumber::InvalidInterface
        | ErrorNumber::MultipleInterfaces
        | ErrorNumber::InvalidNwfilter
        | ErrorNumber::BuildFirewall
        | ErrorNumber::InvalidSecret
        | ErrorNumber::MigratePersistFailed
        | ErrorNumber::HookScriptFailed
        | ErrorNumber::InvalidDomainSnapshot
        | ErrorNumber::NoDomainSnapshot
        | ErrorNumber::InvalidStream
        | ErrorNumber::StorageProbeFailed
        | ErrorNumber::StoragePoolBuilt
        | ErrorNumber::SnapshotRevertRisky
        | ErrorNumber::OperationAborted
        | ErrorNumber::NoDomainMetadata
        | ErrorNumber::MigrateUnsafe
        | ErrorNumber::Overflow
        | ErrorNumber::BlockCopyActive
        | ErrorNumber::Ssh
        | ErrorNumber::ResourceBusy
        | ErrorNumber::DbusService
        | ErrorNumber::StorageVolExist
        | ErrorNumber::CpuIncompatible
        | ErrorNumber::XmlInvalidSchema
        | ErrorNumber::MigrateFinishOk
        | ErrorNumber::NoServer
        | ErrorNumber::NoClient
        | ErrorNumber::Libssh
        | ErrorNumber::DeviceMissing
        | ErrorNumber::InvalidNwfilterBinding
        | ErrorNumber::NoNwfilterBinding
        | ErrorNumber::InvalidDomainCheckpoint
        | ErrorNumber::InvalidNetworkPort
        | ErrorNumber::NetworkPortExists
        | ErrorNumber::NoNetworkPort
        | ErrorNumber::NoHostname
        | ErrorNumber::MultipleDomains
        | ErrorNumber::NoNetworkMetadata
        | ErrorNumber::InvalidEncrKeySecret
        | ErrorNumber::NoNetworkStart
        | ErrorNumber::NoStorage
        | ErrorNumber::NoNode
        | ErrorNumber::NoInterfaceStart
        | ErrorNumber::NoNwfilterStart
        | ErrorNumber::NoSecretStart => LibvirtErrorKind::Other,
    }
}

fn holders_text(holders: &[Holder]) -> String {
    match holders {
        [] => String::new(),
        holders => format!(" by {}", holders.iter().map(Holder::to_string).collect::<Vec<_>>().join(", ")),
    }
}

fn held_text(machine: &str, capture: &str, until: &Option<String>, by: Option<&RunningBackup>) -> String {
    match (by, until) {
        (Some(backup), _) => format!("{machine} is being backed up by {backup}"),
        (None, Some(until)) => format!("{machine} has an open capture, {capture}, until {until}"),
        (None, None) => format!("{machine} has an open capture, {capture}, which is being read"),
    }
}

impl fmt::Display for LibvirtErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LibvirtErrorKind::NotFound => "not found",
            LibvirtErrorKind::CheckpointMissing => "checkpoint missing",
            LibvirtErrorKind::BitmapBroken => "bitmap missing or broken",
            LibvirtErrorKind::NoBackupJob => "no backup job",
            LibvirtErrorKind::Unsupported => "unsupported",
            LibvirtErrorKind::Busy => "busy",
            LibvirtErrorKind::AgentSilent => "no answer from the guest agent",
            LibvirtErrorKind::AgentFailed => "guest agent failed",
            LibvirtErrorKind::ReadOnlyUri => "not permitted",
            LibvirtErrorKind::NoConnection => "no connection",
            LibvirtErrorKind::InvalidState => "invalid state",
            LibvirtErrorKind::NoAnswer => "no answer",
            LibvirtErrorKind::Internal => "internal error",
            LibvirtErrorKind::Other => "error",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rpc_errors_mean_a_lost_connection_but_storage_errors_do_not() {
        assert_eq!(meaning(ErrorNumber::SystemError, ErrorDomain::Rpc), LibvirtErrorKind::NoConnection);
        assert_eq!(meaning(ErrorNumber::InternalError, ErrorDomain::Rpc), LibvirtErrorKind::NoConnection);
        assert_eq!(meaning(ErrorNumber::SystemError, ErrorDomain::Storage), LibvirtErrorKind::Other);
        assert_eq!(meaning(ErrorNumber::InternalError, ErrorDomain::Qemu), LibvirtErrorKind::Internal);
    }
}
