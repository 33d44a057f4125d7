//! Failures at the edge: here an error gets its kind, its hint and its exit code, once.

use crate::capture::{self, LibvirtErrorKind};
use crate::cli::capture_hints;
use crate::cli::exit_code::ExitCode;
use crate::config;
use crate::nbd;
use crate::ops;
use crate::record::{DamagedPoint, Failure, Point};
use crate::repo;
use crate::schedule;
use crate::storage;
use crate::storage::sftp::{self, SftpAddress};
use std::borrow::Cow;
use std::fmt;
use std::path::Path;

/// The kinds of failure: the `code` of a failure record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// Wrong arguments or configuration, or records that make no sense.
    Usage,
    /// Told to stop.
    Interrupted,
    /// libvirt cannot be reached.
    Connection,
    /// No such machine, disk, point or capture.
    NotFound,
    /// Another run holds the machine or the repository.
    Busy,
    /// What would be written exists.
    Exists,
    /// The machine is running.
    Running,
    /// Not permitted.
    Permission,
    /// Not enough room.
    NoSpace,
    /// libvirt, QEMU, an image or a driver cannot do that.
    Unsupported,
    /// No disk was chosen of a machine that has some.
    NoDisks,
    /// A disk record without a capture.
    NotCaptured,
    /// Not all disks of a capture came.
    Incomplete,
    /// A point was stored without a part that the machine needs.
    PartMissing,
    /// The capture's lease is over.
    Expired,
    /// A machine that is off was started or changed while it was read.
    Changed,
    /// Something did not answer within its limit.
    Timeout,
    /// The guest could not be frozen.
    Freeze,
    /// There is no repository.
    NoRepository,
    /// The password opens no key of the repository.
    WrongPassword,
    /// The backup server cannot be reached.
    Unreachable,
    /// The backup server's host key is unknown, or not the known one.
    HostKey,
    /// The backup server does not let us in.
    Login,
    /// Damage in the repository.
    Damage,
    /// Reading or writing a disk over NBD.
    Disk,
    /// A hook failed.
    Hook,
    /// Anything else.
    Failed,
}

impl Code {
    /// Every code with its word and the sentence that the manual gives it.
    pub const ALL: [(Code, &'static str, &'static str); 27] = [
        (Code::Usage, "usage", "wrong arguments or configuration, or records that make no sense"),
        (Code::Interrupted, "interrupted", "told to stop"),
        (Code::Connection, "connection", "libvirt cannot be reached"),
        (Code::NotFound, "not_found", "no such machine, disk, point or capture"),
        (Code::Busy, "busy", "another run holds the machine or the repository"),
        (Code::Exists, "exists", "what would be written is there already"),
        (Code::Running, "running", "the machine is running"),
        (Code::Permission, "permission", "not permitted"),
        (Code::NoSpace, "no_space", "not enough room"),
        (Code::Unsupported, "unsupported", "libvirt, QEMU, an image or a driver cannot do that"),
        (Code::NoDisks, "no_disks", "no disk was chosen of a machine that has some"),
        (Code::NotCaptured, "not_captured", "a disk record without a capture"),
        (Code::Incomplete, "incomplete", "not all disks of a capture came"),
        (
            Code::PartMissing,
            "part_missing",
            "the point was stored without firmware variables, TPM state, kernel or initrd of the machine",
        ),
        (Code::Expired, "expired", "the lease of the capture is over"),
        (Code::Changed, "changed", "a machine that is off was started or changed while it was read"),
        (Code::Timeout, "timeout", "libvirt, QEMU or a password command did not answer in time"),
        (Code::Freeze, "freeze", "the guest's file systems could not be frozen"),
        (Code::NoRepository, "no_repository", "there is no repository"),
        (Code::WrongPassword, "wrong_password", "the password opens no key of the repository"),
        (Code::Unreachable, "unreachable", "the backup server cannot be reached"),
        (Code::HostKey, "host_key", "the host key of the backup server is unknown, changed or revoked"),
        (Code::Login, "login", "the backup server does not let kvmb in"),
        (Code::Damage, "damage", "damage in the repository"),
        (Code::Disk, "disk", "reading or writing a disk failed"),
        (Code::Hook, "hook", "a hook of the configuration failed, and nothing was backed up"),
        (Code::Failed, "failed", "anything else"),
    ];

    /// The word in the record.
    pub fn word(self) -> &'static str {
        Code::ALL.iter().find(|(code, ..)| *code == self).map_or("failed", |(_, word, _)| word)
    }

    /// What the exit code is when nothing else happened.
    pub fn exit_code(self) -> ExitCode {
        match self {
            Code::Usage => ExitCode::Usage,
            Code::Busy => ExitCode::Busy,
            Code::Damage => ExitCode::Damage,
            _ => ExitCode::Failed,
        }
    }
}

/// An error on its way to the user.
#[derive(Debug, Clone)]
pub struct CliError {
    /// Its kind.
    pub code: Code,
    /// What happened.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

impl CliError {
    /// An error of this kind.
    pub fn new(code: Code, message: impl Into<String>) -> CliError {
        CliError { code, message: message.into(), hint: None }
    }

    /// Wrong usage.
    pub fn usage(message: impl Into<String>) -> CliError {
        CliError::new(Code::Usage, message)
    }

    /// A failure of no special kind.
    pub fn failed(message: impl Into<String>) -> CliError {
        CliError::new(Code::Failed, message)
    }

    /// Adds what to do.
    pub fn hint(mut self, hint: impl Into<String>) -> CliError {
        self.hint = Some(hint.into());
        self
    }

    /// That a new point lacks parts that its machine needs; none when it lacks none.
    pub fn of_missing_parts(point: &Point) -> Option<CliError> {
        let reasons = point.left_out.iter().filter(|left_out| left_out.is_required());
        let reasons: Vec<&str> = reasons.map(|left_out| left_out.reason.as_str()).collect();
        let error = CliError::new(
            Code::PartMissing,
            format!("{} was stored without a part that it needs: {}", point.machine, reasons.join("; ")),
        );
        let hint = "its disks are in the point; put a regular file there that kvmb can read, then back it up again";
        (!reasons.is_empty()).then(|| error.hint(hint))
    }

    /// What is wrong with the repository that a new point was stored in, if it has lost what older points need.
    pub fn of_damaged_points(point: &Point) -> Option<CliError> {
        let named = |damaged: &DamagedPoint| {
            let (machine, id) = (&damaged.machine, damaged.point.get(..8).unwrap_or(&damaged.point));
            match damaged.disks.is_empty() {
                true => format!("{machine}@{id}"),
                false => format!("{machine}@{id} ({})", damaged.disks.join(" ")),
            }
        };
        let points: Vec<String> = point.damaged_points.iter().map(named).collect();
        let message = format!(
            "the repository has lost chunks of older points: {}; the new point of {} is whole",
            points.join(", "),
            point.machine
        );
        let hint = "run 'kvmb verify': what the new point shares with the others is there again";
        (!points.is_empty()).then(|| CliError::new(Code::Damage, message).hint(hint))
    }

    /// The failure record of it.
    pub fn to_record(&self, command: &str) -> Failure {
        Failure {
            command: command.to_owned(),
            code: self.code.word().to_owned(),
            error: self.message.clone(),
            hint: self.hint.clone(),
            ..Failure::default()
        }
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<ops::Error> for CliError {
    fn from(error: ops::Error) -> CliError {
        let (code, hint) = explain(&error);
        let hint = exact_hint(&error).or_else(|| hint.map(str::to_owned));
        CliError { code, message: error.to_string(), hint }
    }
}

impl From<capture::Error> for CliError {
    fn from(error: capture::Error) -> CliError {
        ops::Error::from(error).into()
    }
}

impl From<repo::Error> for CliError {
    fn from(error: repo::Error) -> CliError {
        ops::Error::from(error).into()
    }
}

/// A hint that names what it is about: the command to copy.
fn exact_hint(error: &ops::Error) -> Option<String> {
    let error = match error {
        ops::Error::KeyNotTaken { line, .. } => {
            return Some(format!("have this line added to the list that the server reads: {line}"));
        }
        ops::Error::NoFolder { path } => {
            let path = shlex::try_quote(path.to_str()?).ok()?.into_owned();
            return Some(format!("is a disk not mounted? mkdir -p {path}; or choose another folder with --into DIR"));
        }
        ops::Error::NoDevice { disk, path, capacity_bytes } => {
            return Some(format!(
                "{}or restore it elsewhere: --to {disk}=PATH, --into DIR",
                create_device(path, *capacity_bytes)
            ));
        }
        ops::Error::NoVolume { solve, .. } => return Some(format!("{solve}, or choose a folder with --into DIR")),
        ops::Error::MissingHere { solve, is_start, .. } => {
            let without = if *is_start { "; without --start it is restored all the same" } else { "" };
            return Some(format!("{solve}{without}"));
        }
        ops::Error::SavedMemory { machine } => {
            let machine = shlex::try_quote(machine).ok()?;
            return Some(format!(
                "start it and shut it down ('virsh start {machine}', 'virsh shutdown {machine}'), or discard its memory with \
                 --overwrite --discard-saved-memory"
            ));
        }
        ops::Error::Capture(capture::Error::Program { program, message, .. })
        | ops::Error::Program { program, message, .. }
            if message.contains("(os error 2)") =>
        {
            return Some(missing_program(program));
        }
        ops::Error::Capture(error) => return capture_hints::exact_hint(error),
        ops::Error::Repo(error) => error.root(),
        _ => return None,
    };
    let error = match error {
        repo::Error::Locked { holder, .. } if holder.time > chrono::Local::now() + chrono::Duration::minutes(5) => {
            return Some(format!(
                "its time is in the future: a clock is wrong, and the lock never becomes stale. Check the clocks of this host and of \
                 {}; when no other program works on the repository: kvmb unlock --remove-all",
                holder.hostname
            ));
        }
        repo::Error::NoRepository { url } => {
            let folder = SftpAddress::parse(url).ok().filter(SftpAddress::is_relative)?.path;
            return Some(format!(
                "make one with 'kvmb init'; or is {folder:?} not below the folder that the login leads to? A folder of the \
                 server's root begins with two slashes (sftp://user@host//folder)"
            ));
        }
        repo::Error::Storage(storage::Error::GaveUp { source, .. }) => &**source,
        repo::Error::Storage(error) => error,
        _ => return None,
    };
    let storage::Error::Server { url, source } = error else { return None };
    let url = shlex::try_quote(url).ok()?;
    match &**source {
        sftp::Error::HostKeyUnknown { fingerprint, .. } => Some(format!(
            "compare it with the server's own ('ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub' there); if it is the same: \
             kvmb remote test -r {url} --accept-host-key {fingerprint}"
        )),
        sftp::Error::HostKeyChanged { name, path, .. } => Some(format!(
            "ask the server's administrator; only if the change is right: ssh-keygen -R {} -f {}",
            shlex::try_quote(name).ok()?,
            shlex::try_quote(&path.to_string_lossy()).ok()?
        )),
        sftp::Error::Login { .. } => Some(format!(
            "let a key of this host in with 'kvmb remote setup -r {url}', or give the password with --ssh-password-file FILE"
        )),
        _ => None,
    }
}

/// The package of a program that is not there.
fn missing_program(program: &str) -> String {
    let package = match program {
        "qemu-img" | "qemu-nbd" | "qemu-io" => {
            "qemu-utils (Debian, Ubuntu), qemu-img (Fedora, RHEL), qemu-tools (SUSE)"
        }
        "qemu-storage-daemon" => "qemu-utils or qemu-system-common (Debian, Ubuntu), qemu-img (Fedora, RHEL)",
        "setsid" | "timeout" | "sh" => "util-linux, coreutils",
        "ssh" | "ssh-keygen" | "ssh-copy-id" => "openssh-client (Debian, Ubuntu), openssh-clients (Fedora, RHEL)",
        _ => return format!("install {program}, or put it into a folder of PATH"),
    };
    format!("install {program}: package {package}")
}

/// The beginning of a hint: the command that creates a logical volume of that path.
fn create_device(path: &Path, capacity_bytes: u64) -> String {
    let parts: Vec<&str> = path.iter().filter_map(|part| part.to_str()).collect();
    let names = match parts[..] {
        ["/", "dev", "mapper", name] => {
            // A hyphen that belongs to a name is doubled.
            let marked = name.replace("--", "\0");
            marked.split_once('-').map(|(group, volume)| (group.replace('\0', "-"), volume.replace('\0', "-")))
        }
        ["/", "dev", group, volume] => Some((group.to_owned(), volume.to_owned())),
        _ => None,
    };
    let quoted = |name: &str| shlex::try_quote(name).map(Cow::into_owned).ok();
    match names.and_then(|(group, volume)| Some((quoted(&group)?, quoted(&volume)?))) {
        Some((group, volume)) => format!("create it: lvcreate -L {capacity_bytes}b -n {volume} {group}; "),
        None => format!("make a device of at least {capacity_bytes} bytes available there; "),
    }
}

impl From<schedule::Error> for CliError {
    fn from(error: schedule::Error) -> CliError {
        let (code, hint) = explain_schedule(&error);
        CliError { code, message: error.to_string(), hint: hint.map(str::to_owned) }
    }
}

/// What is wrong with a configuration: one error for each of its faults.
pub fn of_config(error: config::Error) -> Vec<CliError> {
    use config::Error;
    let path = error.path().display().to_string();
    let hint = match &error {
        Error::Faults { faults, .. } => return faults.iter().map(|fault| of_fault(&path, fault)).collect(),
        Error::Missing { .. } => "mend --config or $KVMB_CONFIG, or leave them out".into(),
        Error::Io { .. } => "let the user that runs kvmb read it".into(),
        Error::ForeignOwner { .. } => format!("sudo chown root '{path}'"),
        Error::Writable { .. } => format!("chmod go-w '{path}'"),
        Error::Readable { .. } => format!("chmod 600 '{path}'"),
        Error::NotJson { .. } => "see example_config.json, or 'kvmb config schema'".into(),
    };
    vec![CliError::usage(error.to_string()).hint(hint)]
}

fn of_fault(path: &str, fault: &config::KeyError) -> CliError {
    let error = CliError::usage(format!("{path}: {fault}"));
    match &fault.nearest {
        Some(nearest) => error.hint(format!("did you mean {nearest}?")),
        None => error.hint("'kvmb config schema' describes all keys"),
    }
}

/// `ENOSPC`, as NBD has it too.
const NO_SPACE: u32 = 28;

fn explain(error: &ops::Error) -> (Code, Option<&'static str>) {
    use ops::Error;
    match error {
        Error::Interrupted => (Code::Interrupted, None),
        Error::Capture(error) => explain_capture(error),
        Error::Disk { source, .. } => match source {
            nbd::Error::NoSuchExport { .. } | nbd::Error::Connect { .. } | nbd::Error::Disconnected => {
                (Code::Disk, Some("has the capture ended? 'kvmb release' it and capture the machine anew"))
            }
            nbd::Error::Request { error: NO_SPACE, .. } => (Code::NoSpace, Some("make room; nothing half was kept")),
            _ => (Code::Disk, None),
        },
        Error::Repo(error) => explain_repo(error),
        Error::Io { source, .. } => explain_io(source),
        Error::DiskMap { .. } => (Code::Disk, None),
        Error::DiskTooLarge { has_holes: false, .. } => (
            Code::Disk,
            Some("use larger chunks, up to 4M: kvmb backup --chunk-size 4M; or leave it out: --exclude-disk"),
        ),
        Error::DiskTooLarge { .. } => {
            (Code::Disk, Some("leave it out with --exclude-disk, or split it into smaller disks"))
        }
        Error::NoFolder { .. } => (Code::NotFound, None),
        Error::Program { .. } => (Code::Failed, None),
        Error::NotCaptured { .. } => {
            (Code::NotCaptured, Some("put 'kvmb snapshot' before: kvmb snapshot VM | kvmb push -r REPO"))
        }
        Error::CaptureIncomplete { .. } => {
            (Code::Incomplete, Some("a stage before this one failed or left a disk out"))
        }
        Error::CaptureExpired { .. } => {
            (Code::Expired, Some("capture the machine anew, with a longer --lease if need be"))
        }
        Error::NoSuchDisk { .. } => {
            (Code::NotFound, Some("'kvmb disks MACHINE' lists a machine's disks, 'kvmb points' a point's"))
        }
        Error::NoSuchPoint { .. } => (Code::NotFound, Some("'kvmb points -r REPO' lists what there is")),
        Error::AmbiguousPoint { .. } => (Code::Usage, Some("give more digits of the id")),
        Error::AmbiguousMachine { .. } => (Code::Usage, Some("name the point by its id")),
        Error::BadPoint { .. } => {
            (Code::Damage, Some("'kvmb verify' says what else is hit; older points may be whole"))
        }
        Error::UntrustedPoint { .. } => (Code::Damage, Some("restore another point: 'kvmb points -r REPO' lists them")),
        Error::UnreadableSnapshot { .. } => {
            (Code::Damage, Some("'kvmb points -r REPO' lists those that can be read; name one of them by its id"))
        }
        Error::Damaged { .. } => {
            (Code::Damage, Some("nothing of it was handed out; 'kvmb verify' says which points are whole"))
        }
        Error::Unprunable { .. } => (
            Code::Damage,
            Some(
                "'kvmb verify --all' says which points are hit; forget those ('restic forget ID'), or heal the repository",
            ),
        ),
        Error::RemovalRefused { .. } => (
            Code::Permission,
            Some("an append-only repository keeps everything: prune it on its server, as a user who may remove files"),
        ),
        Error::Exists { .. } | Error::MachineExists { .. } => {
            (Code::Exists, Some("restore beside it with --as NAME --into DIR, or replace it with --overwrite"))
        }
        Error::NameTaken { .. } => {
            (Code::Exists, Some("restore under another name with --as NAME, or undefine that machine first"))
        }
        Error::MachineRunning { .. } | Error::ImageInUse { .. } => {
            (Code::Running, Some("shut it down first; a running machine is never written over"))
        }
        Error::NoDevice { .. } | Error::NoVolume { .. } | Error::MissingHere { .. } => (Code::NotFound, None),
        Error::NoDeviceOfFile { .. } => {
            (Code::NotFound, Some("make the device available, or choose a folder with --into DIR"))
        }
        Error::Nowhere { .. } => (Code::Usage, Some("choose a folder with --into DIR")),
        Error::SavedMemory { .. } => (Code::Busy, None),
        Error::NoRoom { .. } => (Code::NoSpace, Some("make room, or choose another place")),
        Error::KeyNotTaken { .. } => (Code::Login, None),
        Error::BadTarget { .. } => (Code::Failed, Some("choose a place with --into DIR or --to DISK=PATH")),
    }
}

fn explain_io(error: &std::io::Error) -> (Code, Option<&'static str>) {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::NotFound => (Code::NotFound, None),
        ErrorKind::PermissionDenied => (Code::Permission, Some("run kvmb as root, or give its user access")),
        ErrorKind::ReadOnlyFilesystem => (Code::Permission, Some("the file system is mounted read-only")),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => (Code::NoSpace, Some("make room; nothing half was kept")),
        _ => (Code::Failed, None),
    }
}

fn explain_capture(error: &capture::Error) -> (Code, Option<&'static str>) {
    use capture::Error;
    match error {
        Error::Libvirt { meaning, .. } => match meaning {
            LibvirtErrorKind::NotFound | LibvirtErrorKind::CheckpointMissing => (Code::NotFound, None),
            LibvirtErrorKind::Busy => {
                (Code::Busy, Some("another job holds the machine; see 'virsh domjobinfo MACHINE'"))
            }
            LibvirtErrorKind::Unsupported => (Code::Unsupported, None),
            LibvirtErrorKind::ReadOnlyUri => (Code::Permission, Some("run kvmb as root, or join the group libvirt")),
            LibvirtErrorKind::NoConnection => (
                Code::Connection,
                Some("is libvirtd running? name another connection with -c URI ('virsh uri' shows yours)"),
            ),
            LibvirtErrorKind::AgentTimeout | LibvirtErrorKind::AgentMissing | LibvirtErrorKind::AgentFailed => {
                (Code::Freeze, Some("look at the guest agent in the guest, or back up with --freeze never"))
            }
            _ => (Code::Failed, None),
        },
        Error::TimedOut { .. } | Error::Silent { .. } => (
            Code::Timeout,
            Some(
                "does its QEMU or libvirtd hang? look at the storage of the machine ('ps' shows a QEMU that waits for it as \
                 state D); the next backup clears what was left",
            ),
        ),
        Error::Interrupted => (Code::Interrupted, None),
        Error::NoSuchMachine { .. } => (Code::NotFound, Some("'kvmb vms' lists the machines")),
        Error::NotLocal { .. } => (Code::Unsupported, Some("run kvmb on the host that runs the machine")),
        Error::ForeignJob { .. } | Error::OtherJob { .. } | Error::BlockJob { .. } => (Code::Busy, None),
        Error::SavedMemory { .. } | Error::ImageHeld { .. } => (Code::Busy, None),
        Error::StartedMeanwhile { .. } => (Code::Changed, Some("back it up again, as a machine that runs")),
        Error::ChangedMeanwhile { .. } => (
            Code::Changed,
            Some(
                "nothing was stored; make sure that nothing writes to its disks (another host?), then back it up again",
            ),
        ),
        Error::NotResumed { .. } => (Code::Unsupported, Some("resume it first: virsh resume MACHINE")),
        Error::Wedged { .. } => (
            Code::Failed,
            Some(
                "the machine runs on; when it suits, shut it down from inside (or 'virsh destroy MACHINE'), then restart \
                 libvirtd, then start the machine",
            ),
        ),
        Error::Held { .. } => (Code::Busy, Some("end it with 'kvmb release MACHINE', or wait for its lease to end")),
        Error::NoSuchCapture { .. } => (Code::NotFound, Some("capture the machine again with 'kvmb snapshot'")),
        Error::NothingToCapture { .. } => (Code::NoDisks, Some("'kvmb disks MACHINE' says why each disk is left out")),
        Error::FreezeFailed { .. } => {
            (Code::Freeze, Some("look at the guest agent in the guest, or use --freeze auto"))
        }
        Error::Io { source, .. } => explain_io(source),
        Error::UnsupportedImage { .. } | Error::NoBackingFormat { .. } | Error::NoStorageDaemon { .. } => {
            (Code::Unsupported, Some("back the machine up while it runs"))
        }
        Error::DiskNotReadable { is_of_header: true, .. } => (
            Code::Permission,
            Some(
                "only the image's header names this file, so it is read with the permissions of QEMU's user: name it in the \
                 definition (<dataStore>), let that user read it, or back the machine up while it runs",
            ),
        ),
        Error::DiskNotReadable { .. } => (Code::Permission, Some("let QEMU's user read it, as it does when it runs")),
        Error::UnknownOwner { .. } => {
            (Code::Unsupported, Some("use numbers in the definition: <label>+107:+107</label>"))
        }
        Error::SecretUnavailable { .. } => (Code::Permission, None),
        Error::UnsafePath { .. } => {
            (Code::Permission, Some("remove what is there, or move the file to a folder that only root can write"))
        }
        Error::Unreachable { .. } => {
            (Code::Permission, Some("choose a folder that QEMU's user may enter: --scratch DIR"))
        }
        _ => (Code::Failed, None),
    }
}

fn explain_repo(error: &repo::Error) -> (Code, Option<&'static str>) {
    use repo::Error;
    match error.root() {
        Error::NoRepository { .. } => (Code::NoRepository, Some("make one with 'kvmb init -r REPO'")),
        Error::WrongPassword { .. } => (Code::WrongPassword, Some("give the right one with --password-file FILE")),
        Error::UnsupportedVersion { .. } => (
            Code::Unsupported,
            Some("kvmb knows restic's repository version 2; 'restic migrate upgrade_repo_v2' converts version 1"),
        ),
        Error::Locked { .. } => {
            (Code::Busy, Some("wait for the other program; 'kvmb unlock' removes locks of dead ones"))
        }
        Error::Unfinished { .. } => (Code::NoRepository, Some("finish it with 'kvmb init -r REPO'")),
        Error::AlreadyExists { .. } => (Code::Exists, None),
        Error::Storage(storage::Error::NoSpace { .. }) => {
            (Code::NoSpace, Some("make room in the repository; the points that are there are whole"))
        }
        Error::Storage(storage::Error::Io { action: "find", source, .. })
            if source.kind() == std::io::ErrorKind::NotFound =>
        {
            (Code::NotFound, Some("the repository's folder is gone: is it still mounted?"))
        }
        // A folder that every repository has.
        Error::Storage(storage::Error::Io { action: "list", source, .. })
            if source.kind() == std::io::ErrorKind::NotFound =>
        {
            (Code::Damage, Some("a part of the repository is missing: is all of it mounted or copied?"))
        }
        Error::Storage(storage::Error::TooShort { .. } | storage::Error::TooLong { .. }) => {
            (Code::Damage, Some("'kvmb verify' says which points are hit"))
        }
        Error::Storage(storage::Error::Server { source, .. }) => explain_server(source),
        Error::Storage(storage::Error::GaveUp { source, .. }) => match &**source {
            storage::Error::Server { source, .. } => explain_server(source),
            _ => (
                Code::Failed,
                Some("run it again when the connection is back: what an index names already is not sent again"),
            ),
        },
        Error::Storage(storage::Error::Io { source, .. }) => explain_io(source),
        Error::RepositoryGone { .. } => {
            (Code::NoRepository, Some("check that its disk or network share is still mounted, then run it again"))
        }
        Error::LockLost { .. } => (Code::Busy, Some("nothing was committed; run it again")),
        Error::Damaged { kind: storage::FileKind::Config, .. } | Error::ConfigMissing { .. } | Error::NoKey { .. } => (
            Code::Damage,
            Some("without its config and key files nobody can read a repository: restore them from a copy"),
        ),
        Error::Damaged { kind: storage::FileKind::Lock, .. } => {
            (Code::Busy, Some("when no other program works on the repository: kvmb unlock --remove-all"))
        }
        Error::Damaged { .. }
        | Error::BlobMissing { .. }
        | Error::BlobDamaged { .. }
        | Error::PackLost { .. }
        | Error::BlobUnreadable { .. }
        | Error::TreeMalformed { .. } => (Code::Damage, Some("'kvmb verify' says which points are hit")),
        _ => (Code::Failed, None),
    }
}

fn explain_schedule(error: &schedule::Error) -> (Code, Option<&'static str>) {
    use schedule::Error;
    match error {
        Error::NoProgram { name: "crontab" } => (Code::NotFound, Some("install cron, or use --systemd")),
        Error::NoProgram { name: "systemctl" } => {
            (Code::NotFound, Some("this host has no systemd: leave out --systemd"))
        }
        Error::NoProgram { .. } => (Code::NotFound, Some("install util-linux and coreutils")),
        Error::Unspeakable { .. } => (Code::Usage, Some("name the machine by a glob, with ? for that character")),
        Error::TooLong { .. } => {
            (Code::Usage, Some("use globs or --all, or let selected_vms of the configuration say which machines"))
        }
        Error::Unpaired { .. } => (Code::Failed, Some("mend it with 'crontab -e'; nothing was changed")),
        Error::CarriageReturns => {
            (Code::Failed, Some("take them out with 'crontab -e', or use --system; nothing was changed"))
        }
        Error::Changed => (Code::Busy, Some("nothing was changed; run it again")),
        Error::Program { .. } => (Code::Failed, None),
        Error::Io { source, .. } => explain_io(source),
    }
}

fn explain_server(error: &sftp::Error) -> (Code, Option<&'static str>) {
    use sftp::Error;
    match error {
        Error::SshConfig { .. } => (Code::Usage, None),
        Error::Resolve { .. } => (Code::Unreachable, Some("is the name right? aliases of ~/.ssh/config may be used")),
        Error::Unreachable { .. } | Error::Silent { .. } => {
            (Code::Unreachable, Some("is the server up, its SSH port the right one, and no firewall in between?"))
        }
        Error::Stuck { .. } => (
            Code::Unreachable,
            Some(
                "is the server's disk stuck or overloaded? ssh.progress_timeout of the configuration is how long to wait",
            ),
        ),
        Error::Handshake { .. } => (Code::Unreachable, Some("is it an SSH server that listens there?")),
        Error::Lost { .. } => (Code::Unreachable, Some("run it again: what was stored already is found and used")),
        Error::KnownHosts { source, .. } => explain_io(source),
        Error::HostKeyUnknown { .. } | Error::HostKeyChanged { .. } => (Code::HostKey, None),
        Error::HostKeyRevoked { .. } => (Code::HostKey, Some("do not connect: ask the server's administrator")),
        Error::Secret(_) => (Code::Usage, None),
        Error::Login { .. } => (Code::Login, None),
        Error::NoSftp { .. } => {
            (Code::Unsupported, Some("sshd_config of the server needs: Subsystem sftp internal-sftp"))
        }
    }
}
