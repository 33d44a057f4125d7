//! What an error means to the user: its code, and what to do. Every kind of error is named here: a new one must say what it is.

use std::borrow::Cow;
use std::io;
use std::path::Path;

use super::capture_hints;
use super::failure_code::Code;
use crate::capture::{self, LibvirtErrorKind};
use crate::nbd;
use crate::ops;
use crate::repo;
use crate::schedule;
use crate::storage::sftp::{self, SftpAddress};
use crate::storage::{self, FileAction};

/// A failure's code, and its hint.
pub type Explanation = (Code, Option<Cow<'static, str>>);

fn hint(text: impl Into<Cow<'static, str>>) -> Option<Cow<'static, str>> {
    Some(text.into())
}

fn quoted(text: &str) -> Option<String> {
    shlex::try_quote(text).ok().map(Cow::into_owned)
}

/// `ENOSPC`, as NBD has it too.
const NO_SPACE: u32 = 28;

/// Of a workflow.
pub fn of_ops(error: &ops::Error) -> Explanation {
    use ops::Error;
    match error {
        Error::Interrupted => (Code::Interrupted, None),
        Error::Capture(error) => of_capture(error),
        Error::Disk { source, .. } => match source {
            nbd::Error::NoSuchExport { .. } | nbd::Error::Connect { .. } | nbd::Error::Disconnected => {
                (Code::Disk, hint("has the capture ended? 'kvmb release' it and capture the machine anew"))
            }
            nbd::Error::Request { error: NO_SPACE, .. } => (Code::NoSpace, hint("make room; nothing half was kept")),
            nbd::Error::Request { .. }
            | nbd::Error::Negotiation { .. }
            | nbd::Error::Protocol(_)
            | nbd::Error::Io { .. }
            | nbd::Error::Timeout { .. }
            | nbd::Error::Stopped => (Code::Disk, None),
        },
        Error::Repo(error) => of_repo(error),
        Error::Io { source, .. } => of_io(source),
        Error::DiskMap { .. } | Error::NbdAddress { .. } => (Code::Disk, None),
        Error::NoFolder { path } => (
            Code::NotFound,
            path.to_str().and_then(quoted).map(|path| {
                format!("is a disk not mounted? mkdir -p {path}; or choose another folder with --into DIR").into()
            }),
        ),
        Error::NotStarted { program, source } => not_started(program, source),
        Error::ServerStuck { pid, .. } => (Code::Timeout, hint(format!("look at what it waits for, or end it: kill -9 {pid}"))),
        Error::NoDeviceOfFile { .. } => {
            (Code::NotFound, hint("make the device available, or choose a folder with --into DIR"))
        }
        Error::Nowhere { .. } => (Code::Usage, hint("choose a folder with --into DIR")),
        Error::DiskTooLarge { has_holes: false, .. } => {
            let words = "use larger chunks, up to 4M: kvmb backup --chunk-size 4M; or leave it out: --exclude-disk";
            (Code::Disk, hint(words))
        }
        Error::DiskTooLarge { .. } => {
            (Code::Disk, hint("leave it out with --exclude-disk, or split it into smaller disks"))
        }
        Error::NotCaptured { .. } => {
            (Code::NotCaptured, hint("put 'kvmb snapshot' before: kvmb snapshot VM | kvmb push -r REPO"))
        }
        Error::CaptureIncomplete { .. } => {
            (Code::Incomplete, hint("a stage before this one failed or left a disk out"))
        }
        Error::CaptureExpired { .. } => {
            (Code::Expired, hint("capture the machine anew, with a longer --lease if need be"))
        }
        Error::NoSuchDisk { .. } => {
            (Code::NotFound, hint("'kvmb disks MACHINE' lists a machine's disks, 'kvmb points' a point's"))
        }
        Error::NoSuchPoint { .. } => (Code::NotFound, hint("'kvmb points -r REPO' lists what there is")),
        Error::AmbiguousPoint { .. } => (Code::Usage, hint("give more digits of the id")),
        Error::AmbiguousMachine { .. } => (Code::Usage, hint("name the point by its id")),
        Error::BadPoint { .. } => {
            (Code::Damage, hint("'kvmb verify' says what else is hit; older points may be whole"))
        }
        Error::UntrustedPoint { .. } => (Code::Damage, hint("restore another point: 'kvmb points -r REPO' lists them")),
        Error::UnreadableSnapshot { .. } => {
            (Code::Damage, hint("'kvmb points -r REPO' lists those that can be read; name one of them by its id"))
        }
        Error::Damaged { .. } => {
            (Code::Damage, hint("nothing of it was handed out; 'kvmb verify' says which points are whole"))
        }
        Error::Unprunable { .. } => (
            Code::Damage,
            hint(
                "'kvmb verify --all' says which points are hit; forget those ('restic forget ID'), or heal the repository",
            ),
        ),
        Error::RemovalRefused { .. } => (
            Code::Permission,
            hint("an append-only repository keeps everything: prune it on its server, as a user who may remove files"),
        ),
        Error::Exists { .. } | Error::MachineExists { .. } => {
            (Code::Exists, hint("restore beside it with --as NAME --into DIR, or replace it with --overwrite"))
        }
        Error::NameTaken { .. } => {
            (Code::Exists, hint("restore under another name with --as NAME, or undefine that machine first"))
        }
        Error::MachineRunning { .. } | Error::ImageInUse { .. } => {
            (Code::Running, hint("shut it down first; a running machine is never written over"))
        }
        Error::NoDevice { disk, path, capacity_bytes } => {
            let create = create_device(path, *capacity_bytes);
            (Code::NotFound, hint(format!("{create}or restore it elsewhere: --to {disk}=PATH, --into DIR")))
        }
        Error::NoVolume { solve, .. } => {
            (Code::NotFound, hint(format!("{solve}, or choose a folder with --into DIR")))
        }
        Error::MissingHere { solve, is_start, .. } => {
            let without = if *is_start { "; without --start it is restored all the same" } else { "" };
            (Code::NotFound, hint(format!("{solve}{without}")))
        }
        Error::SavedMemory { machine } => (
            Code::Busy,
            quoted(machine).map(|machine| {
                format!(
                    "start it and shut it down ('virsh start {machine}', 'virsh shutdown {machine}'), or discard its memory \
                     with --overwrite --discard-saved-memory"
                )
                .into()
            }),
        ),
        Error::NoRoom { .. } => (Code::NoSpace, hint("make room, or choose another place")),
        Error::KeyNotTaken { line, .. } => {
            (Code::Login, hint(format!("have this line added to the list that the server reads: {line}")))
        }
        Error::BadTarget { .. } => (Code::Failed, hint("choose a place with --into DIR or --to DISK=PATH")),
    }
}

fn of_io(error: &io::Error) -> Explanation {
    use io::ErrorKind;
    match error.kind() {
        ErrorKind::NotFound => (Code::NotFound, None),
        ErrorKind::PermissionDenied => (Code::Permission, hint("run kvmb as root, or give its user access")),
        ErrorKind::ReadOnlyFilesystem => (Code::Permission, hint("the file system is mounted read-only")),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => (Code::NoSpace, hint("make room; nothing half was kept")),
        // The system has many more, and gains others.
        _ => (Code::Failed, None),
    }
}

fn not_started(program: &str, error: &io::Error) -> Explanation {
    match error.kind() {
        io::ErrorKind::NotFound => (Code::Failed, hint(missing_program(program))),
        _ => of_io(error),
    }
}

fn of_capture(error: &capture::Error) -> Explanation {
    use capture::Error;
    match error {
        Error::Libvirt { meaning, .. } => match meaning {
            LibvirtErrorKind::NotFound | LibvirtErrorKind::CheckpointMissing => (Code::NotFound, None),
            LibvirtErrorKind::Busy => {
                (Code::Busy, hint("another job holds the machine; see 'virsh domjobinfo MACHINE'"))
            }
            LibvirtErrorKind::Unsupported => (Code::Unsupported, None),
            LibvirtErrorKind::ReadOnlyUri => (Code::Permission, hint("run kvmb as root, or join the group libvirt")),
            LibvirtErrorKind::NoConnection => (
                Code::Connection,
                hint("is libvirtd running? name another connection with -c URI ('virsh uri' shows yours)"),
            ),
            LibvirtErrorKind::AgentSilent | LibvirtErrorKind::AgentFailed => {
                (Code::Freeze, hint("look at the guest agent in the guest, or back up with --freeze never"))
            }
            LibvirtErrorKind::BitmapBroken
            | LibvirtErrorKind::NoBackupJob
            | LibvirtErrorKind::InvalidState
            | LibvirtErrorKind::NoAnswer
            | LibvirtErrorKind::Internal
            | LibvirtErrorKind::Other => (Code::Failed, None),
        },
        Error::TimedOut { .. } | Error::Silent { .. } => (
            Code::Timeout,
            hint(
                "does its QEMU or libvirtd hang? look at the storage of the machine ('ps' shows a QEMU that waits for it as \
                 state D); the next backup clears what was left",
            ),
        ),
        Error::Interrupted => (Code::Interrupted, None),
        Error::NoSuchMachine { .. } => (Code::NotFound, hint("'kvmb vms' lists the machines")),
        Error::NotLocal { .. } => (Code::Unsupported, hint("run kvmb on the host that runs the machine")),
        Error::ForeignJob { .. }
        | Error::OtherJob { .. }
        | Error::BlockJob { .. }
        | Error::SavedMemory { .. }
        | Error::ImageHeld { .. } => (Code::Busy, capture_hints::way_out(error).map(Cow::from)),
        Error::StartedMeanwhile { .. } => (Code::Changed, hint("back it up again, as a machine that runs")),
        Error::ChangedMeanwhile { .. } => (
            Code::Changed,
            hint(
                "nothing was stored; make sure that nothing writes to its disks (another host?), then back it up again",
            ),
        ),
        Error::NotResumed { .. } => (Code::Unsupported, hint("resume it first: virsh resume MACHINE")),
        Error::Wedged { .. } => (
            Code::Failed,
            hint(
                "the machine runs on; when it suits, shut it down from inside (or 'virsh destroy MACHINE'), then restart \
                 libvirtd, then start the machine",
            ),
        ),
        Error::Held { .. } => (Code::Busy, hint("end it with 'kvmb release MACHINE', or wait for its lease to end")),
        Error::NoSuchCapture { .. } => (Code::NotFound, hint("capture the machine again with 'kvmb snapshot'")),
        Error::NothingToCapture { .. } => (Code::NoDisks, hint("'kvmb disks MACHINE' says why each disk is left out")),
        Error::FreezeFailed { .. } => {
            (Code::Freeze, hint("look at the guest agent in the guest, or use --freeze auto"))
        }
        Error::Io { source, .. } => of_io(source),
        Error::UnsupportedImage { .. } => (Code::Unsupported, hint("back the machine up while it runs")),
        Error::NoBackingFormat { image, format, backing } => {
            (Code::Unsupported, record_format(image, format, backing).or(hint("back the machine up while it runs")))
        }
        Error::NoStorageDaemon { package } => (Code::Unsupported, hint(format!("install it: apt install {package}"))),
        Error::NoBlockDriver { .. } => {
            (Code::Unsupported, hint("install QEMU's driver for this storage: apt install qemu-block-extra"))
        }
        Error::NotStarted { program, source } => not_started(program, source),
        Error::DiskNotReadable { is_of_header: true, .. } => (
            Code::Permission,
            hint(
                "only the image's header names this file, so it is read with the permissions of QEMU's user: name it in the \
                 definition (<dataStore>), let that user read it, or back the machine up while it runs",
            ),
        ),
        Error::DiskNotReadable { .. } => (Code::Permission, hint("let QEMU's user read it, as it does when it runs")),
        Error::UnknownOwner { .. } => {
            (Code::Unsupported, hint("use numbers in the definition: <label>+107:+107</label>"))
        }
        Error::SecretUnavailable { disk, machine, .. } => (
            Code::Permission,
            hint(format!("back {machine} up while it runs, or give the passphrase: --luks-key-file {disk}=FILE")),
        ),
        Error::UnsafePath { .. } => {
            (Code::Permission, hint("remove what is there, or move the file to a folder that only root can write"))
        }
        Error::ScratchHidden { .. } => (
            Code::NotFound,
            hint("choose a folder on a file system that was mounted before (--scratch DIR), or restart the machine"),
        ),
        Error::Unreachable { .. } => {
            (Code::Permission, hint("choose a folder that QEMU's user may enter: --scratch DIR"))
        }
        Error::Definition(_)
        | Error::BadState { .. }
        | Error::DiskNotCapturable { .. }
        | Error::JobStuck { .. }
        | Error::Program { .. }
        | Error::SocketPathTooLong { .. }
        | Error::TooLarge { .. }
        | Error::UnsafeFolder { .. } => (Code::Failed, None),
    }
}

fn of_repo(error: &repo::Error) -> Explanation {
    use repo::Error;
    match error.root() {
        Error::NoRepository { url } => (Code::NoRepository, Some(make_repository(url))),
        Error::WrongPassword { .. } => (Code::WrongPassword, hint("give the right one with --password-file FILE")),
        Error::UnsupportedVersion { .. } => (
            Code::Unsupported,
            hint("kvmb knows restic's repository version 2; 'restic migrate upgrade_repo_v2' converts version 1"),
        ),
        Error::Locked { holder, .. } if holder.time > chrono::Local::now() + chrono::Duration::minutes(5) => (
            Code::Busy,
            hint(format!(
                "its time is in the future: a clock is wrong, and the lock never becomes stale. Check the clocks of this host and of \
                 {}; when no other program works on the repository: kvmb unlock --remove-all",
                holder.hostname
            )),
        ),
        Error::Locked { .. } => {
            (Code::Busy, hint("wait for the other program; 'kvmb unlock' removes locks of dead ones"))
        }
        Error::Unfinished { .. } => (Code::NoRepository, hint("finish it with 'kvmb init -r REPO'")),
        Error::AlreadyExists { .. } => (Code::Exists, None),
        Error::Storage(error) => of_storage(error),
        Error::RepositoryGone { .. } => {
            (Code::NoRepository, hint("check that its disk or network share is still mounted, then run it again"))
        }
        Error::LockLost { .. } => (Code::Busy, hint("nothing was committed; run it again")),
        Error::Damaged { kind: storage::FileKind::Config, .. } | Error::ConfigMissing { .. } | Error::NoKey { .. } => (
            Code::Damage,
            hint("without its config and key files nobody can read a repository: restore them from a copy"),
        ),
        Error::Damaged { kind: storage::FileKind::Lock, .. } => {
            (Code::Busy, hint("when no other program works on the repository: kvmb unlock --remove-all"))
        }
        Error::Damaged { .. }
        | Error::BlobMissing { .. }
        | Error::BlobDamaged { .. }
        | Error::PackLost { .. }
        | Error::BlobUnreadable { .. }
        | Error::TreeMalformed { .. } => (Code::Damage, hint("'kvmb verify' says which points are hit")),
        Error::BadNode { .. }
        | Error::BlobTooLarge { .. }
        | Error::Compress(_)
        | Error::Encrypt(_)
        | Error::KeyDerivation
        | Error::Random(_)
        | Error::WorkerGone => (Code::Failed, None),
        // Its root is asked for above.
        Error::Writer(error) => of_repo(error),
    }
}

fn of_storage(error: &storage::Error) -> Explanation {
    use storage::Error;
    match error {
        Error::NoSpace { .. } => {
            (Code::NoSpace, hint("make room in the repository; the points that are there are whole"))
        }
        Error::Io { action: FileAction::Find, source, .. } if source.kind() == io::ErrorKind::NotFound => {
            (Code::NotFound, hint("the repository's folder is gone: is it still mounted?"))
        }
        // A folder that every repository has.
        Error::Io { action: FileAction::List, source, .. } if source.kind() == io::ErrorKind::NotFound => {
            (Code::Damage, hint("a part of the repository is missing: is all of it mounted or copied?"))
        }
        Error::Io { source, .. } => of_io(source),
        Error::TooShort { .. } | Error::TooLong { .. } => {
            (Code::Damage, hint("'kvmb verify' says which points are hit"))
        }
        Error::Server { url, source } => of_server(url, source),
        Error::GaveUp { source, .. } => match &**source {
            Error::Server { url, source } => of_server(url, source),
            Error::BadUrl { .. }
            | Error::NotFound { .. }
            | Error::Exists { .. }
            | Error::TooShort { .. }
            | Error::TooLong { .. }
            | Error::NoSpace { .. }
            | Error::Io { .. }
            | Error::GaveUp { .. }
            | Error::Interrupted => (
                Code::Failed,
                hint("run it again when the connection is back: what an index names already is not sent again"),
            ),
        },
        Error::BadUrl { .. } | Error::NotFound { .. } | Error::Exists { .. } | Error::Interrupted => {
            (Code::Failed, None)
        }
    }
}

fn make_repository(url: &str) -> Cow<'static, str> {
    match SftpAddress::parse(url).ok().filter(SftpAddress::is_relative) {
        Some(SftpAddress { path: folder, .. }) => format!(
            "make one with 'kvmb init'; or is {folder:?} not below the folder that the login leads to? A folder of the \
             server's root begins with two slashes (sftp://user@host//folder)"
        )
        .into(),
        None => "make one with 'kvmb init -r REPO'".into(),
    }
}

/// Of a schedule.
pub fn of_schedule(error: &schedule::Error) -> Explanation {
    use schedule::Error;
    match error {
        Error::NoProgram { name: "crontab" } => (Code::NotFound, hint("install cron, or use --systemd")),
        Error::NoProgram { name: "systemctl" } => {
            (Code::NotFound, hint("this host has no systemd: leave out --systemd"))
        }
        Error::NoProgram { .. } => (Code::NotFound, hint("install util-linux and coreutils")),
        Error::Unspeakable { .. } => (Code::Usage, hint("name the machine by a glob, with ? for that character")),
        Error::TooLong { .. } => {
            (Code::Usage, hint("use globs or --all, or let selected_vms of the configuration say which machines"))
        }
        Error::Unpaired { .. } => (Code::Failed, hint("mend it with 'crontab -e'; nothing was changed")),
        Error::CarriageReturns => {
            (Code::Failed, hint("take them out with 'crontab -e', or use --system; nothing was changed"))
        }
        Error::Changed => (Code::Busy, hint("nothing was changed; run it again")),
        Error::Program { .. } => (Code::Failed, None),
        Error::Io { source, .. } => of_io(source),
    }
}

fn of_server(url: &str, error: &sftp::Error) -> Explanation {
    use sftp::Error;
    match error {
        Error::SshConfig { .. } => (Code::Usage, None),
        Error::Resolve { .. } => (Code::Unreachable, hint("is the name right? aliases of ~/.ssh/config may be used")),
        Error::Unreachable { .. } | Error::Silent { .. } => {
            (Code::Unreachable, hint("is the server up, its SSH port the right one, and no firewall in between?"))
        }
        Error::Stuck { .. } => (
            Code::Unreachable,
            hint(
                "is the server's disk stuck or overloaded? ssh.progress_timeout of the configuration is how long to wait",
            ),
        ),
        Error::Handshake { .. } => (Code::Unreachable, hint("is it an SSH server that listens there?")),
        Error::Lost { .. } => (Code::Unreachable, hint("run it again: what was stored already is found and used")),
        Error::KnownHosts { source, .. } => of_io(source),
        Error::HostKeyUnknown { fingerprint, .. } => (
            Code::HostKey,
            quoted(url).map(|url| {
                format!(
                    "compare it with the server's own ('ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub' there); if it is the \
                     same: kvmb remote test -r {url} --accept-host-key {fingerprint}"
                )
                .into()
            }),
        ),
        Error::HostKeyChanged { name, path, .. } => (Code::HostKey, remove_key(name, path)),
        Error::HostKeyRevoked { .. } => (Code::HostKey, hint("do not connect: ask the server's administrator")),
        Error::Secret(_) => (Code::Usage, None),
        Error::Login { .. } => (
            Code::Login,
            quoted(url).map(|url| {
                format!(
                    "let a key of this host in with 'kvmb remote setup -r {url}', or give the password with \
                     --ssh-password-file FILE"
                )
                .into()
            }),
        ),
        Error::NoSftp { .. } => {
            (Code::Unsupported, hint("sshd_config of the server needs: Subsystem sftp internal-sftp"))
        }
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

fn record_format(image: &str, format: &str, backing: &str) -> Option<Cow<'static, str>> {
    let (image, backing) = (quoted(image)?, quoted(backing)?);
    hint(format!(
        "record it, if you know it ('qemu-img info' of the backing file shows it): qemu-img rebase -u -f {format} -F FORMAT \
         -b {backing} {image}; or give the machine's definition a <backingStore> with its format"
    ))
}

fn remove_key(name: &str, known_hosts: &Path) -> Option<Cow<'static, str>> {
    let (name, path) = (quoted(name)?, quoted(&known_hosts.to_string_lossy())?);
    hint(format!("ask the server's administrator; only if the change is right: ssh-keygen -R {name} -f {path}"))
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
    match names.and_then(|(group, volume)| Some((quoted(&group)?, quoted(&volume)?))) {
        Some((group, volume)) => format!("create it: lvcreate -L {capacity_bytes}b -n {volume} {group}; "),
        None => format!("make a device of at least {capacity_bytes} bytes available there; "),
    }
}
