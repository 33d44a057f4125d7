//! Failures at the edge: here an error gets its kind, its hint and its exit code, once.

use crate::capture::{self, LibvirtErrorKind};
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
    /// No disk of the machine can be backed up.
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
        (Code::Usage, "usage", "wrong arguments, configuration or input records"),
        (Code::Interrupted, "interrupted", "interrupted by the user or the system"),
        (Code::Connection, "connection", "libvirt cannot be reached"),
        (Code::NotFound, "not_found", "no such machine, disk, point or capture"),
        (Code::Busy, "busy", "another run holds the machine or the repository"),
        (Code::Exists, "exists", "the file or machine to be written already exists"),
        (Code::Running, "running", "the machine is running"),
        (Code::Permission, "permission", "not permitted"),
        (Code::NoSpace, "no_space", "not enough free space"),
        (Code::Unsupported, "unsupported", "not supported by libvirt, QEMU, the image format or a driver"),
        (Code::NoDisks, "no_disks", "no disk of the machine can be backed up"),
        (Code::NotCaptured, "not_captured", "a disk record has no capture"),
        (Code::Incomplete, "incomplete", "not all disks of a capture arrived"),
        (
            Code::PartMissing,
            "part_missing",
            "the point lacks firmware variables, TPM state, kernel or initrd of the machine",
        ),
        (Code::Expired, "expired", "the lease of the capture has expired"),
        (Code::Changed, "changed", "a stopped machine was started or changed while it was being read"),
        (Code::Timeout, "timeout", "libvirt, QEMU or a password command did not answer in time"),
        (Code::Freeze, "freeze", "the guest's file systems could not be frozen"),
        (Code::NoRepository, "no_repository", "there is no repository"),
        (Code::WrongPassword, "wrong_password", "no key of the repository matches the password"),
        (Code::Unreachable, "unreachable", "the backup server cannot be reached"),
        (Code::HostKey, "host_key", "the host key of the backup server is unknown, changed or revoked"),
        (Code::Login, "login", "the backup server refused the login"),
        (Code::Damage, "damage", "damage in the repository"),
        (Code::Disk, "disk", "reading or writing a disk failed"),
        (Code::Hook, "hook", "a hook failed and nothing was backed up"),
        (Code::Failed, "failed", "any other failure"),
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
        let reasons = point.left_out.iter().filter(|left_out| left_out.part.is_some());
        let reasons: Vec<&str> = reasons.map(|left_out| left_out.reason.as_str()).collect();
        let error = CliError::new(
            Code::PartMissing,
            format!("the point of {} lacks a part that the machine needs: {}", point.machine, reasons.join("; ")),
        );
        let hint = "the disks are in the point; make sure that the file exists and kvmb can read it, then back up the machine again";
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
            "the repository has lost data of older points: {}; the new point of {} is intact",
            points.join(", "),
            point.machine
        );
        let hint = "run 'kvmb verify --all'; data that the new point shares with older ones has been stored again";
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
            return Some(format!("ask the administrator to add this line to authorized_keys: {line}"));
        }
        ops::Error::NoFolder { path } => {
            let path = shlex::try_quote(path.to_str()?).ok()?.into_owned();
            return Some(format!(
                "check that its file system is mounted; create it with 'mkdir -p {path}', or choose another folder with --into DIR"
            ));
        }
        ops::Error::NoDevice { disk, path, capacity_bytes } => {
            return Some(format!(
                "{}or use another destination: --to {disk}=PATH, --into DIR",
                create_device(path, *capacity_bytes)
            ));
        }
        ops::Error::NoVolume { solve, .. } => return Some(format!("{solve}, or choose a folder with --into DIR")),
        ops::Error::MissingHere { solve, is_start, .. } => {
            let without = if *is_start { "; or restore without --start" } else { "" };
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
        ops::Error::Capture(error) => return exact_capture_hint(error),
        ops::Error::Repo(error) => error.root(),
        _ => return None,
    };
    let error = match error {
        repo::Error::Locked { holder, .. } if holder.time > chrono::Local::now() + chrono::Duration::minutes(5) => {
            return Some(format!(
                "the lock is dated in the future and never becomes stale: check the clocks of this host and of {}; if no other \
                 program uses the repository, run 'kvmb unlock --remove-all'",
                holder.hostname
            ));
        }
        repo::Error::NoRepository { url } => {
            let folder = SftpAddress::parse(url).ok().filter(SftpAddress::is_relative)?.path;
            return Some(format!(
                "run 'kvmb init -r REPO' to create one; {folder:?} is relative to the login folder: an absolute path starts with \
                 two slashes (sftp://user@host//folder)"
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
            "compare it with the output of 'ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub' on the server; if it matches: \
             kvmb remote test -r {url} --accept-host-key {fingerprint}"
        )),
        sftp::Error::HostKeyChanged { name, path, .. } => Some(format!(
            "ask the administrator of the server; only if the change is expected: ssh-keygen -R {} -f {}",
            shlex::try_quote(name).ok()?,
            shlex::try_quote(&path.to_string_lossy()).ok()?
        )),
        sftp::Error::Login { .. } => {
            Some(format!("run 'kvmb remote setup -r {url}' to set up a key, or use --ssh-password-file FILE"))
        }
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
        _ => return format!("install {program}, or add its folder to PATH"),
    };
    format!("install {program}: package {package}")
}

fn exact_capture_hint(error: &capture::Error) -> Option<String> {
    use capture::Error;
    let quoted = |text: &str| shlex::try_quote(text).ok().map(|text| text.into_owned());
    match error {
        Error::NoBackingFormat { image, format, backing } => Some(format!(
            "if you know the format ('qemu-img info' shows that of the backing file), record it: qemu-img rebase -u -f {format} -F FORMAT \
             -b {} {}; or add a <backingStore> with the format to the definition of the machine",
            quoted(backing)?,
            quoted(image)?
        )),
        Error::NoStorageDaemon { package } => Some(format!("install it: apt install {package}")),
        Error::UnsupportedImage { reason, .. }
            if reason.contains("Unknown driver") || reason.contains("does not accept value") =>
        {
            Some("install QEMU's driver for this storage: apt install qemu-block-extra".to_owned())
        }
        Error::SecretUnavailable { disk, machine, .. } => Some(format!(
            "back up {machine} while it is running, or provide the passphrase: --luks-key-file {disk}=FILE"
        )),
        _ => None,
    }
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
        Some((group, volume)) => format!("run 'lvcreate -L {capacity_bytes}b -n {volume} {group}'; "),
        None => format!("provide a device of at least {capacity_bytes} bytes there; "),
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
        Error::Missing { .. } => "correct or omit --config or $KVMB_CONFIG".into(),
        Error::Io { .. } => "give the user that runs kvmb read access".into(),
        Error::ForeignOwner { .. } => format!("sudo chown root '{path}'"),
        Error::Writable { .. } => format!("chmod go-w '{path}'"),
        Error::Readable { .. } => format!("chmod 600 '{path}'"),
        Error::NotJson { .. } => "see example_config.json, or run 'kvmb config schema'".into(),
    };
    vec![CliError::usage(error.to_string()).hint(hint)]
}

fn of_fault(path: &str, fault: &config::KeyError) -> CliError {
    let error = CliError::usage(format!("{path}: {fault}"));
    match &fault.nearest {
        Some(nearest) => error.hint(format!("did you mean {nearest}?")),
        None => error.hint("run 'kvmb config schema' for a description of all keys"),
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
            nbd::Error::NoSuchExport { .. } | nbd::Error::Connect { .. } | nbd::Error::Disconnected => (
                Code::Disk,
                Some("the capture may have been closed; run 'kvmb release MACHINE' and capture the machine again"),
            ),
            nbd::Error::Request { error: NO_SPACE, .. } => {
                (Code::NoSpace, Some("free some space and try again; no partial data was kept"))
            }
            _ => (Code::Disk, None),
        },
        Error::Repo(error) => explain_repo(error),
        Error::Io { source, .. } => explain_io(source),
        Error::DiskMap { .. } => (Code::Disk, None),
        Error::NoFolder { .. } => (Code::NotFound, None),
        Error::Program { .. } => (Code::Failed, None),
        Error::NotCaptured { .. } => {
            (Code::NotCaptured, Some("run 'kvmb snapshot' first: kvmb snapshot VM | kvmb push -r REPO"))
        }
        Error::CaptureIncomplete { .. } => {
            (Code::Incomplete, Some("an earlier command in the pipe failed or left out a disk"))
        }
        Error::CaptureExpired { .. } => {
            (Code::Expired, Some("capture the machine again, with a longer --lease if necessary"))
        }
        Error::NoSuchDisk { .. } => {
            (Code::NotFound, Some("run 'kvmb disks MACHINE' or 'kvmb points' to list the disks"))
        }
        Error::NoSuchPoint { .. } => (Code::NotFound, Some("run 'kvmb points -r REPO' to list the points")),
        Error::AmbiguousPoint { .. } => (Code::Usage, Some("enter more digits of the ID")),
        Error::AmbiguousMachine { .. } => (Code::Usage, Some("use the ID of the point")),
        Error::BadPoint { .. } => (
            Code::Damage,
            Some("run 'kvmb verify --all' to find out what else is affected; older points may be intact"),
        ),
        Error::UntrustedPoint { .. } => {
            (Code::Damage, Some("restore another point; run 'kvmb points -r REPO' to list them"))
        }
        Error::UnreadableSnapshot { .. } => {
            (Code::Damage, Some("run 'kvmb points -r REPO' to list the readable points, and use the ID of one of them"))
        }
        Error::Damaged { .. } => (
            Code::Damage,
            Some("no damaged data was returned; run 'kvmb verify --all' to find out which points are intact"),
        ),
        Error::Unprunable { .. } => (
            Code::Damage,
            Some(
                "run 'kvmb verify --all' to see which points are affected; remove those ('restic forget ID') or repair the repository",
            ),
        ),
        Error::RemovalRefused { .. } => (
            Code::Permission,
            Some("the repository is append-only: run 'kvmb prune' on the server, as a user who may remove files"),
        ),
        Error::Exists { .. } | Error::MachineExists { .. } => {
            (Code::Exists, Some("restore beside it with --as NAME --into DIR, or replace it with --overwrite"))
        }
        Error::NameTaken { .. } => {
            (Code::Exists, Some("restore under another name with --as NAME, or undefine the other machine first"))
        }
        Error::MachineRunning { .. } | Error::ImageInUse { .. } => {
            (Code::Running, Some("shut down the machine first; a running machine is never overwritten"))
        }
        Error::NoDevice { .. } | Error::NoVolume { .. } | Error::MissingHere { .. } => (Code::NotFound, None),
        Error::SavedMemory { .. } => (Code::Busy, None),
        Error::NoRoom { .. } => (Code::NoSpace, Some("free some space, or choose another folder with --into DIR")),
        Error::KeyNotTaken { .. } => (Code::Login, None),
        Error::BadTarget { .. } => (Code::Failed, Some("choose another destination with --into DIR or --to DISK=PATH")),
    }
}

fn explain_io(error: &std::io::Error) -> (Code, Option<&'static str>) {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::NotFound => (Code::NotFound, None),
        ErrorKind::PermissionDenied => (Code::Permission, Some("run kvmb as root, or give your user access")),
        ErrorKind::ReadOnlyFilesystem => (Code::Permission, Some("the file system is mounted read-only")),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            (Code::NoSpace, Some("free some space and try again; no partial data was kept"))
        }
        _ => (Code::Failed, None),
    }
}

fn explain_capture(error: &capture::Error) -> (Code, Option<&'static str>) {
    use capture::Error;
    match error {
        Error::Libvirt { meaning, .. } => match meaning {
            LibvirtErrorKind::NotFound | LibvirtErrorKind::CheckpointMissing => (Code::NotFound, None),
            LibvirtErrorKind::Busy => (Code::Busy, Some("another job is running; 'virsh domjobinfo MACHINE' shows it")),
            LibvirtErrorKind::Unsupported => (Code::Unsupported, None),
            LibvirtErrorKind::ReadOnlyUri => {
                (Code::Permission, Some("run kvmb as root, or add your user to the libvirt group"))
            }
            LibvirtErrorKind::NoConnection => (
                Code::Connection,
                Some(
                    "check that libvirtd is running, or choose another connection with -c URI ('virsh uri' shows the default)",
                ),
            ),
            LibvirtErrorKind::AgentTimeout | LibvirtErrorKind::AgentMissing | LibvirtErrorKind::AgentFailed => {
                (Code::Freeze, Some("check the guest agent in the guest, or use --freeze never"))
            }
            _ => (Code::Failed, None),
        },
        Error::TimedOut { .. } | Error::Silent { .. } => (
            Code::Timeout,
            Some(
                "check whether QEMU or libvirtd hangs, often because of the storage ('ps' shows state D); the next backup cleans up",
            ),
        ),
        Error::Interrupted => (Code::Interrupted, None),
        Error::NoSuchMachine { .. } => (Code::NotFound, Some("run 'kvmb vms' to list the machines")),
        Error::NotLocal { .. } => (Code::Unsupported, Some("run kvmb on the host that runs the machine")),
        Error::ForeignJob { .. } => {
            (Code::Busy, Some("wait for the other backup, or cancel it with 'virsh domjobabort MACHINE'"))
        }
        Error::StartedMeanwhile { .. } => (Code::Changed, Some("back it up again now that it is running")),
        Error::ChangedMeanwhile { .. } => (
            Code::Changed,
            Some(
                "nothing was stored; make sure that no other program or host writes to its disks, then back it up again",
            ),
        ),
        Error::NotResumed { .. } => (Code::Unsupported, Some("resume it first: virsh resume MACHINE")),
        Error::OtherJob { .. } => {
            (Code::Busy, Some("wait for it to finish; 'virsh domjobinfo MACHINE' shows its progress"))
        }
        Error::Wedged { .. } => (
            Code::Failed,
            Some(
                "the machine keeps running; at the next opportunity, shut it down in the guest (or 'virsh destroy MACHINE'), restart \
                 libvirtd, and start the machine",
            ),
        ),
        Error::Held { .. } => {
            (Code::Busy, Some("wait for it to finish; 'kvmb release MACHINE' closes a capture that was abandoned"))
        }
        Error::NoSuchCapture { .. } => (Code::NotFound, Some("capture the machine again with 'kvmb snapshot'")),
        Error::NothingToCapture { .. } => {
            (Code::NoDisks, Some("run 'kvmb disks MACHINE' to see why each disk is excluded"))
        }
        Error::FreezeFailed { .. } => (Code::Freeze, Some("check the guest agent in the guest, or use --freeze auto")),
        Error::Io { source, .. } => explain_io(source),
        Error::UnsupportedImage { .. } | Error::NoBackingFormat { .. } | Error::NoStorageDaemon { .. } => {
            (Code::Unsupported, Some("back up the machine while it is running"))
        }
        Error::DiskNotReadable { is_of_header: true, .. } => (
            Code::Permission,
            Some(
                "only the image header refers to this file, so it is opened as QEMU's user: add it to the \
                 definition (<dataStore>), let that user read it, or back up the machine while it is running",
            ),
        ),
        Error::DiskNotReadable { .. } => {
            (Code::Permission, Some("give QEMU's user read access, as it has while the machine is running"))
        }
        Error::UnknownOwner { .. } => {
            (Code::Unsupported, Some("use numeric IDs in the definition: <label>+107:+107</label>"))
        }
        Error::SecretUnavailable { .. } => (Code::Permission, None),
        Error::ImageHeld { .. } => (
            Code::Busy,
            Some("stop the program that has the image open, or wait for it, then back up the machine again"),
        ),
        Error::UnsafePath { .. } => {
            (Code::Permission, Some("remove it, or move the file to a folder that only root can write to"))
        }
        Error::Unreachable { .. } => {
            (Code::Permission, Some("choose a folder that QEMU's user can access: --scratch DIR"))
        }
        _ => (Code::Failed, None),
    }
}

fn explain_repo(error: &repo::Error) -> (Code, Option<&'static str>) {
    use repo::Error;
    match error.root() {
        Error::NoRepository { .. } => (Code::NoRepository, Some("run 'kvmb init -r REPO' to create one")),
        Error::WrongPassword { .. } => {
            (Code::WrongPassword, Some("use --password-file FILE to provide the right password"))
        }
        Error::UnsupportedVersion { .. } => (
            Code::Unsupported,
            Some(
                "kvmb supports version 2 of the repository format; 'restic migrate upgrade_repo_v2' converts version 1",
            ),
        ),
        Error::Locked { .. } => (Code::Busy, Some("wait for the other program; 'kvmb unlock' removes stale locks")),
        Error::Unfinished { .. } => (Code::NoRepository, Some("run 'kvmb init -r REPO' to complete it")),
        Error::AlreadyExists { .. } => (Code::Exists, None),
        Error::Storage(storage::Error::NoSpace { .. }) => {
            (Code::NoSpace, Some("free some space for the repository; existing points are intact"))
        }
        Error::Storage(storage::Error::Io { action: "find", source, .. })
            if source.kind() == std::io::ErrorKind::NotFound =>
        {
            (Code::NotFound, Some("the folder of the repository is missing; check that its file system is mounted"))
        }
        // A folder that every repository has.
        Error::Storage(storage::Error::Io { action: "list", source, .. })
            if source.kind() == std::io::ErrorKind::NotFound =>
        {
            (Code::Damage, Some("a part of the repository is missing; check that it was mounted or copied completely"))
        }
        Error::Storage(storage::Error::TooShort { .. } | storage::Error::TooLong { .. }) => {
            (Code::Damage, Some("run 'kvmb verify --all' to see which points are affected"))
        }
        Error::Storage(storage::Error::Server { source, .. }) => explain_server(source),
        Error::Storage(storage::Error::GaveUp { source, .. }) => match &**source {
            storage::Error::Server { source, .. } => explain_server(source),
            _ => (
                Code::Failed,
                Some("run the command again when the connection is back; data that was stored is not sent again"),
            ),
        },
        Error::Storage(storage::Error::Io { source, .. }) => explain_io(source),
        Error::RepositoryGone { .. } => {
            (Code::NoRepository, Some("check that its file system is still mounted, then run the command again"))
        }
        Error::LockLost { .. } => (Code::Busy, Some("nothing was stored; run the command again")),
        Error::Damaged { kind: storage::FileKind::Config, .. } | Error::ConfigMissing { .. } | Error::NoKey { .. } => (
            Code::Damage,
            Some("a repository cannot be read without its config and key files; restore them from a copy"),
        ),
        Error::Damaged { kind: storage::FileKind::Lock, .. } => {
            (Code::Busy, Some("if no other program uses the repository, run 'kvmb unlock --remove-all'"))
        }
        Error::Damaged { .. }
        | Error::BlobMissing { .. }
        | Error::BlobDamaged { .. }
        | Error::PackLost { .. }
        | Error::BlobUnreadable { .. }
        | Error::TreeMalformed { .. } => {
            (Code::Damage, Some("run 'kvmb verify --all' to see which points are affected"))
        }
        _ => (Code::Failed, None),
    }
}

fn explain_schedule(error: &schedule::Error) -> (Code, Option<&'static str>) {
    use schedule::Error;
    match error {
        Error::NoProgram { name: "crontab" } => (Code::NotFound, Some("install cron, or use --systemd")),
        Error::NoProgram { name: "systemctl" } => {
            (Code::NotFound, Some("this host does not use systemd; omit --systemd"))
        }
        Error::NoProgram { .. } => (Code::NotFound, Some("install util-linux and coreutils")),
        Error::Unspeakable { .. } => {
            (Code::Usage, Some("use a glob for the machine name, with ? in place of that character"))
        }
        Error::TooLong { .. } => (Code::Usage, Some("use globs, --all, or selected_vms in the configuration")),
        Error::Unpaired { .. } => (Code::Failed, Some("fix the crontab with 'crontab -e'; nothing was changed")),
        Error::CarriageReturns => {
            (Code::Failed, Some("remove them with 'crontab -e', or use --system; nothing was changed"))
        }
        Error::Changed => (Code::Busy, Some("nothing was changed; run the command again")),
        Error::Program { .. } => (Code::Failed, None),
        Error::Io { source, .. } => explain_io(source),
    }
}

fn explain_server(error: &sftp::Error) -> (Code, Option<&'static str>) {
    use sftp::Error;
    match error {
        Error::SshConfig { .. } => (Code::Usage, None),
        Error::Resolve { .. } => {
            (Code::Unreachable, Some("check the host name; aliases from ~/.ssh/config can be used"))
        }
        Error::Unreachable { .. } | Error::Silent { .. } => {
            (Code::Unreachable, Some("check that the server is up, the SSH port is right and no firewall blocks it"))
        }
        Error::Stuck { .. } => (
            Code::Unreachable,
            Some("check the disks of the server; ssh.progress_timeout in the configuration sets how long to wait"),
        ),
        Error::Handshake { .. } => (Code::Unreachable, Some("check that an SSH server listens on this port")),
        Error::Lost { .. } => {
            (Code::Unreachable, Some("run the command again; data that was stored is not sent again"))
        }
        Error::KnownHosts { source, .. } => explain_io(source),
        Error::HostKeyUnknown { .. } | Error::HostKeyChanged { .. } => (Code::HostKey, None),
        Error::HostKeyRevoked { .. } => (Code::HostKey, Some("do not connect; ask the administrator of the server")),
        Error::Secret(_) => (Code::Usage, None),
        Error::Login { .. } => (Code::Login, None),
        Error::NoSftp { .. } => {
            (Code::Unsupported, Some("add this line to sshd_config on the server: Subsystem sftp internal-sftp"))
        }
    }
}
