//! Maps each error to its code and its hint. The match is exhaustive, so that a new error must be added here.

use std::borrow::Cow;
use std::io;
use std::path::Path;

use crate::capture::{self, LibvirtErrorKind};
use crate::cli::failure::capture_hints;
use crate::cli::failure::code::Code;
use crate::cli::failure::explain_storage::{make_repository, of_storage};
use crate::cli::failure::explanation::{Explanation, hint, no_thread, of_io, quoted};
use crate::confined::parent::ConfinedError;
use crate::filesystems::FsError;
use crate::nbd;
use crate::ops;
use crate::repo;
use crate::schedule;
use crate::storage;
use crate::units::in_units;

/// `ENOSPC`, which NBD uses as well.
const NO_SPACE: u32 = 28;

/// Explains errors of a guest's files.
fn of_guest_file(error: &FsError) -> Explanation {
    match error {
        FsError::Unreadable(_) => (Code::Disk, None),
        FsError::Damaged(_) => (Code::Failed, hint("an older point may have it: kvmb points MACHINE")),
        FsError::Unsupported(_) => {
            (Code::Unsupported, hint("run 'kvmb serve POINT', and read the disk with guestfish (package guestfish)"))
        }
        FsError::Closed(_) => (Code::Unsupported, hint("open it with --guestfish, or --luks-key-file VOLUME=FILE")),
        FsError::NotFound { .. } => (
            Code::NotFound,
            hint("run 'kvmb files ls POINT' to list the file systems, 'kvmb files ls POINT /' the files"),
        ),
        FsError::BadPath(_) => (Code::Usage, hint("run 'kvmb files ls POINT' to list the file systems")),
    }
}

/// Explains errors of the process that reads file systems.
fn of_confined(error: &ConfinedError) -> Explanation {
    match error {
        ConfinedError::Stopped => (Code::Interrupted, None),
        ConfinedError::NotConfined(_) => {
            (Code::Unsupported, hint("run 'kvmb serve POINT', and read the disk with another program"))
        }
        ConfinedError::Ended(_) | ConfinedError::Silent | ConfinedError::Protocol(_) => {
            (Code::Failed, hint("the file system may be damaged or malicious; an older point may be intact"))
        }
        ConfinedError::Start(source) => of_io(source),
    }
}

pub(crate) fn of_ops(error: &ops::Error) -> Explanation {
    use ops::Error;
    match error {
        Error::Interrupted => (Code::Interrupted, None),
        Error::Capture(error) => of_capture(error),
        Error::Disk { source, .. } => match source {
            nbd::Error::NoSuchExport { .. } | nbd::Error::Connect { .. } | nbd::Error::Disconnected => (
                Code::Disk,
                hint("the capture may have been closed; run 'kvmb release MACHINE' and capture the machine again"),
            ),
            nbd::Error::Request { error: NO_SPACE, .. } => {
                (Code::NoSpace, hint("free some space and try again; no partial data was kept"))
            }
            nbd::Error::NoThread(_) => no_thread(),
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
                format!(
                    "check that its file system is mounted, choose another folder with --into DIR, or create it: \
                     mkdir -p {path}"
                )
                .into()
            }),
        ),
        Error::NotAFolder { .. } => (Code::Usage, hint("choose a folder with --into DIR")),
        Error::NoThread(_) => no_thread(),
        Error::NotStarted { program, source } => not_started(program, source),
        Error::ServerStuck { pid, .. } => {
            (Code::Timeout, hint(format!("check what it is waiting for, or end it: kill -9 {pid}")))
        }
        Error::Mount { program: "guestmount", .. } => (Code::Failed, hint("mount the disks as files instead: --disks")),
        Error::Mount { .. } => (Code::Failed, hint("check that FUSE is available: ls -l /dev/fuse")),
        Error::NotEmpty { .. } => (Code::Exists, hint("choose an empty folder: mktemp -d")),
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
        Error::GuestFile { source, .. } => of_guest_file(source),
        Error::IncompleteCopies { .. } => (
            Code::Unsupported,
            hint("copy to a file system that can store it, as root; or run 'kvmb files tar POINT' to write an archive"),
        ),
        Error::Guestfish { .. } => {
            (Code::Failed, hint("check that guestfish works on this host: libguestfs-test-tool"))
        }
        Error::TooLittleMemory { .. } => {
            (Code::Failed, hint("give it more, in MiB, in the environment of kvmb: LIBGUESTFS_MEMSIZE=4096"))
        }
        Error::VolumeNotOpened { .. } => {
            (Code::Failed, hint("run 'kvmb serve POINT', and look at the disk with cryptsetup luksDump"))
        }
        Error::WrongPassphrase { .. } => (
            Code::WrongPassword,
            hint("type it again, or check the file of --luks-key-file; 'kvmb files ls POINT' lists the volumes"),
        ),
        Error::Confined(error) => of_confined(error),
        Error::NotCaptured { .. } => {
            (Code::NotCaptured, hint("run 'kvmb snapshot' first: kvmb snapshot VM | kvmb push -r REPO"))
        }
        Error::CaptureIncomplete { .. } => {
            (Code::Incomplete, hint("an earlier command in the pipe failed or left out a disk"))
        }
        Error::CaptureExpired { .. } => {
            (Code::Expired, hint("capture the machine again, with a longer --lease if necessary"))
        }
        Error::NoSuchDisk { .. } => {
            (Code::NotFound, hint("run 'kvmb disks MACHINE' or 'kvmb points' to list the disks"))
        }
        Error::NoSuchPoint { known: Some(_), .. } => (
            Code::NotFound,
            hint(
                "use MACHINE@latest, @yesterday, @2026-11-20, @2026-11-20T14:30, @-2h, or an ID from 'kvmb points \
                 MACHINE'",
            ),
        ),
        Error::NoSuchPoint { .. } => (Code::NotFound, hint("run 'kvmb points -r REPO' to list the points")),
        Error::NotAPoint { snapshot, machine, .. } => (
            Code::NotFound,
            machine.as_deref().and_then(quoted).map(|machine| {
                format!(
                    "if kvmb made it, give it its tags again: restic tag --add kvmb,machine={machine} {snapshot}; if \
                     restic made it: restic restore {snapshot}"
                )
                .into()
            }),
        ),
        Error::AmbiguousPoint { .. } => (Code::Usage, hint("enter more digits of the ID")),
        Error::AmbiguousMachine { .. } => (Code::Usage, hint("use the ID of the point")),
        Error::BadPoint { .. } => (
            Code::Damage,
            hint("run 'kvmb verify --all' to find out what else is affected; older points may be intact"),
        ),
        Error::UntrustedPoint { .. } => {
            (Code::Damage, hint("restore another point; run 'kvmb points -r REPO' to list them"))
        }
        Error::UnreadableSnapshot { .. } => {
            (Code::Damage, hint("run 'kvmb points -r REPO' to list the readable points, and use the ID of one of them"))
        }
        Error::Damaged { .. } => (
            Code::Damage,
            hint("no damaged data was returned; run 'kvmb verify --all' to find out which points are intact"),
        ),
        Error::Unprunable { .. } => (
            Code::Damage,
            hint(
                "run 'kvmb verify --all' to see which points are affected; remove those ('restic forget ID') or repair \
                 the repository",
            ),
        ),
        Error::RemovalRefused { .. } => (
            Code::Permission,
            hint("the repository is append-only: run 'kvmb prune' on the server, as a user who may remove files"),
        ),
        Error::Exists { .. } | Error::MachineExists { .. } => {
            (Code::Exists, hint("restore beside it with --as NAME --into DIR, or replace it with --overwrite"))
        }
        Error::NameTaken { .. } => {
            (Code::Exists, hint("restore under another name with --as NAME, or undefine the other machine first"))
        }
        Error::Renamed { present, .. } => (
            Code::Exists,
            quoted(present).map(|present| {
                format!(
                    "restore it under its present name: --as {present} --overwrite; or as a copy: --as NAME --into DIR"
                )
                .into()
            }),
        ),
        Error::MachineRunning { .. } | Error::ImageInUse { .. } => {
            (Code::Running, hint("shut down the machine first; a running machine is never overwritten"))
        }
        Error::DeviceInUse { .. } => (Code::Busy, hint("end that program first, or restore the disk elsewhere")),
        Error::NoDevice { disk, path, capacity_bytes } => {
            let create = create_device(path, *capacity_bytes);
            (Code::NotFound, hint(format!("{create}or restore it elsewhere: --to {disk}=PATH, --into DIR")))
        }
        Error::NoVolume { solve, .. } => (Code::NotFound, hint(format!("{solve}, or choose a folder with --into DIR"))),
        Error::MissingHere { solve, is_start, .. } => {
            let without = if *is_start { "; or restore without --start" } else { "" };
            (Code::NotFound, hint(format!("{solve}{without}")))
        }
        Error::OtherFamily { family, .. } => {
            let file = "or write the definition to a file with --no-define and change it";
            (Code::Unsupported, hint(format!("use --machine-type {family}, {file}")))
        }
        Error::SavedMemory { machine } => (
            Code::Busy,
            quoted(machine).map(|machine| {
                format!(
                    "start it and shut it down ('virsh start {machine}', 'virsh shutdown {machine}'), or discard its \
                     memory with --overwrite --discard-saved-memory"
                )
                .into()
            }),
        ),
        Error::NoRoom { .. } => (Code::NoSpace, hint("free some space, or choose another folder with --into DIR")),
        Error::NoScratchRoom { .. } => {
            (Code::NoSpace, hint("free some space, or choose another folder with --scratch DIR"))
        }
        Error::KeyNotTaken { line, .. } => {
            (Code::Login, hint(format!("ask the administrator to add this line to authorized_keys: {line}")))
        }
        Error::NotLive { solve, .. } => (Code::Unsupported, hint(*solve)),
        Error::ForbiddenBy { command, .. } => (Code::Permission, hint(command.clone())),
        Error::NotServed { point, .. } => (Code::Failed, hint(format!("kvmb serve {point}"))),
        Error::LiveRestoreUnfinished { machine } | Error::LiveRestoreStopped { machine } => {
            (Code::Busy, continue_or_abort(machine))
        }
        Error::LiveRestoreBusy { .. } => (Code::Busy, hint("wait for it to end")),
        Error::NoLiveRestore { .. } => (Code::NotFound, hint("run 'kvmb status' to list unfinished restores")),
        Error::LiveRestoreUndone { machine } => {
            (Code::Failed, quoted(machine).map(|machine| format!("kvmb restore {machine} --live").into()))
        }
        Error::NotSwitched { machine, .. } => (Code::Disk, continue_or_abort(machine)),
        Error::LiveDiskMoved { machine, disk, .. } => (
            Code::Disk,
            quoted(machine).map(|machine| {
                format!(
                    "attach that image as {disk} again and run 'kvmb restore --continue {machine}', or shut down the \
                     machine and run 'kvmb restore --abort {machine}'"
                )
                .into()
            }),
        ),
        Error::BadTarget { .. } | Error::NoDestination { .. } => {
            (Code::Failed, hint("choose another destination with --into DIR or --to DISK=PATH"))
        }
    }
}

fn continue_or_abort(machine: &str) -> Option<Cow<'static, str>> {
    let machine = quoted(machine)?;
    let words = format!("'kvmb restore --continue {machine}' resumes it; 'kvmb restore --abort {machine}' undoes it");
    Some(words.into())
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
            LibvirtErrorKind::Busy => (Code::Busy, hint("another job is running; 'virsh domjobinfo MACHINE' shows it")),
            LibvirtErrorKind::Unsupported => (Code::Unsupported, None),
            LibvirtErrorKind::ReadOnlyUri => {
                (Code::Permission, hint("run kvmb as root, or add your user to the libvirt group"))
            }
            LibvirtErrorKind::NoConnection => (
                Code::Connection,
                hint(
                    "check that libvirtd is running, or choose another connection: -c qemu:///system for KVM machines \
                     of this host",
                ),
            ),
            LibvirtErrorKind::AgentSilent | LibvirtErrorKind::AgentFailed => {
                (Code::Freeze, hint("check the guest agent in the guest, or use --freeze never"))
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
                "check whether QEMU or libvirtd hangs, often because of the storage ('ps' shows state D); the next \
                 backup cleans up",
            ),
        ),
        Error::Interrupted => (Code::Interrupted, None),
        Error::NoSuchMachine { .. } => (Code::NotFound, hint("run 'kvmb vms' to list the machines")),
        Error::NotLocal { .. } => (Code::Unsupported, hint("run kvmb on the host that runs the machine")),
        Error::ForeignJob { .. }
        | Error::OtherJob { .. }
        | Error::BlockJob { .. }
        | Error::LiveRestore { .. }
        | Error::SavedMemory { .. }
        | Error::ImageHeld { .. } => (Code::Busy, capture_hints::way_out(error).map(Cow::from)),
        Error::StartedMeanwhile { .. } => (Code::Changed, hint("back it up again now that it is running")),
        Error::ChangedMeanwhile { .. } => (
            Code::Changed,
            hint(
                "nothing was stored; make sure that no other program or host writes to its disks, then back it up \
                 again",
            ),
        ),
        Error::DiskTransient { .. } => {
            (Code::Unsupported, hint("back up the other disks, or this one while the machine is off"))
        }
        Error::PoolNotRunning { pool, .. } => {
            (Code::NotFound, quoted(pool).map(|pool| format!("start it: virsh pool-start {pool}").into()))
        }
        Error::NotResumed { .. } => (Code::Unsupported, hint("resume it first: virsh resume MACHINE")),
        Error::Wedged { .. } => (
            Code::Failed,
            hint(
                "the machine keeps running; at the next opportunity, shut it down in the guest (or 'virsh destroy \
                 MACHINE'), restart libvirtd, and start the machine",
            ),
        ),
        Error::Held { by: Some(backup), .. } => {
            (Code::Busy, hint(format!("wait for it to finish, or end it with 'kill {}'", backup.pid)))
        }
        Error::Held { until: None, .. } => (Code::Busy, hint("wait for the command that reads it")),
        Error::Held { .. } => {
            (Code::Busy, hint("if nobody needs that capture any more, close it with 'kvmb release MACHINE'"))
        }
        Error::BeingOpened { .. } => (Code::Busy, hint("run the command again when the other one has finished")),
        Error::NoSuchCapture { .. } => (Code::NotFound, hint("capture the machine again with 'kvmb snapshot'")),
        Error::NothingToCapture { .. } => {
            (Code::NoDisks, hint("run 'kvmb disks MACHINE' to see why each disk is excluded"))
        }
        Error::FreezeFailed { .. } => (Code::Freeze, hint("check the guest agent in the guest, or use --freeze auto")),
        Error::Io { source, .. } => of_io(source),
        Error::UnsupportedImage { .. } => (Code::Unsupported, hint("back up the machine while it is running")),
        Error::DamagedImage { image, .. } => (
            Code::Unsupported,
            quoted(image).map(|image| {
                format!("inspect it: qemu-img info {image}; if it is damaged, restore the disk from a point").into()
            }),
        ),
        Error::NoBackingFormat { image, format, backing } => (
            Code::Unsupported,
            record_format(image, format, backing).or(hint("back up the machine while it is running")),
        ),
        Error::NoStorageDaemon { package } => (Code::Unsupported, hint(format!("install it: apt install {package}"))),
        Error::NoBlockDriver { .. } => {
            (Code::Unsupported, hint("install QEMU's driver for this storage: apt install qemu-block-extra"))
        }
        Error::NotStarted { program, source } => not_started(program, source),
        Error::DiskNotReadable { is_of_header: true, .. } => (
            Code::Permission,
            hint(
                "only the image header refers to this file, so it is opened as QEMU's user: add it to the \
                 definition (<dataStore>), let that user read it, or back up the machine while it is running",
            ),
        ),
        Error::DiskNotReadable { .. } => {
            (Code::Permission, hint("give QEMU's user read access, as it has while the machine is running"))
        }
        Error::UnknownOwner { .. } => {
            (Code::Unsupported, hint("use numeric IDs in the definition: <label>+107:+107</label>"))
        }
        Error::SecretUnavailable { disk, machine, .. } => (
            Code::Permission,
            hint(format!(
                "back up {machine} while it is running, or provide the passphrase: --luks-key-file {disk}=FILE"
            )),
        ),
        Error::WrongPassphrase { .. } => (
            Code::WrongPassword,
            hint("correct the secret ('virsh secret-set-value'), or provide the passphrase: --luks-key-file DISK=FILE"),
        ),
        Error::UnsafePath { .. } => {
            (Code::Permission, hint("remove it, or move the file to a folder that only root can write to"))
        }
        Error::ScratchHidden { .. } => (
            Code::NotFound,
            hint("choose a folder on a file system that was mounted before (--scratch DIR), or restart the machine"),
        ),
        Error::Unreachable { .. } => {
            (Code::Permission, hint("choose a folder that QEMU's user can access: --scratch DIR"))
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
        Error::WrongPassword { .. } => {
            (Code::WrongPassword, hint("use --password-file FILE to provide the right password"))
        }
        Error::UnsupportedVersion { .. } => (
            Code::Unsupported,
            hint("version 2 of the repository format is needed; 'restic migrate upgrade_repo_v2' converts version 1"),
        ),
        Error::Locked { holder, .. } if holder.time > chrono::Local::now() + chrono::Duration::minutes(5) => (
            Code::Busy,
            hint(format!(
                "the lock is dated in the future and never becomes stale: check the clocks of this host and of {}; if \
                 no other program uses the repository, run 'kvmb unlock --remove-all'",
                holder.hostname
            )),
        ),
        Error::Locked { .. } => (Code::Busy, hint("wait for the other program; 'kvmb unlock' removes stale locks")),
        Error::Unfinished { .. } => (Code::NoRepository, hint("run 'kvmb init -r REPO' to complete it")),
        Error::AlreadyExists { .. } => (Code::Exists, None),
        Error::Storage(error) => of_storage(error),
        Error::RepositoryGone { .. } => {
            (Code::NoRepository, hint("check that its file system is still mounted, then run the command again"))
        }
        Error::IndexOutdated { .. } => {
            (Code::Failed, hint("no data was lost; check the log of the server, then run 'kvmb prune' again"))
        }
        Error::LockLost { .. } => (Code::Busy, hint("nothing was stored; run the command again")),
        Error::Damaged { kind: storage::FileKind::Config, .. } | Error::ConfigMissing { .. } | Error::NoKey { .. } => (
            Code::Damage,
            hint("a repository cannot be read without its config and key files; restore them from a copy"),
        ),
        Error::Damaged { kind: storage::FileKind::Lock, .. } => {
            (Code::Busy, hint("if no other program uses the repository, run 'kvmb unlock --remove-all'"))
        }
        Error::Damaged { .. }
        | Error::BlobMissing { .. }
        | Error::BlobDamaged { .. }
        | Error::PackLost { .. }
        | Error::BlobUnreadable { .. }
        | Error::TreeMalformed { .. } => {
            (Code::Damage, hint("run 'kvmb verify --all' to see which points are affected"))
        }
        Error::NoThread(_) => no_thread(),
        Error::BadNode { .. }
        | Error::BlobTooLarge { .. }
        | Error::Compress(_)
        | Error::Encrypt(_)
        | Error::KeyDerivation
        | Error::Random(_)
        | Error::WorkerGone => (Code::Failed, None),
        // Its root causes were handled above.
        Error::Writer(error) => of_repo(error),
    }
}

pub(crate) fn of_schedule(error: &schedule::Error) -> Explanation {
    use schedule::Error;
    match error {
        Error::NoProgram { name: "crontab" } => (Code::NotFound, hint("install cron, or use --systemd")),
        Error::NoProgram { name: "systemctl" } => {
            (Code::NotFound, hint("this host does not use systemd; omit --systemd"))
        }
        Error::NoProgram { .. } => (Code::NotFound, hint("install util-linux and coreutils")),
        Error::Unspeakable { .. } => {
            (Code::Usage, hint("use a glob for the machine name, with ? in place of that character"))
        }
        Error::TooLong { .. } => (Code::Usage, hint("use globs, --all, or selected_vms in the configuration")),
        Error::Unpaired { .. } => (Code::Failed, hint("fix the crontab with 'crontab -e'; nothing was changed")),
        Error::CarriageReturns => {
            (Code::Failed, hint("remove them with 'crontab -e', or use --system; nothing was changed"))
        }
        Error::Changed => (Code::Busy, hint("nothing was changed; run the command again")),
        Error::Program { .. } => (Code::Failed, None),
        Error::Excluded { .. } => {
            (Code::Permission, hint("ask the administrator to change /etc/cron.allow or /etc/cron.deny"))
        }
        Error::TimedOut { program, .. } => {
            (Code::Timeout, hint(format!("run {program} yourself to see what it is waiting for; kvmb stopped it")))
        }
        Error::Interrupted => (Code::Interrupted, None),
        Error::Locked { .. } => (Code::Busy, hint("wait for the other run to end; nothing was changed")),
        Error::Foreign { path } => {
            (Code::Exists, hint(format!("rename it if it is no longer needed: mv {0} {0}.old", path.display())))
        }
        Error::Io { source, .. } => of_io(source),
    }
}

/// Returns the package of a missing program.
fn missing_program(program: &str) -> String {
    let package = match program {
        "qemu-img" | "qemu-nbd" | "qemu-io" => {
            "qemu-utils (Debian, Ubuntu), qemu-img (Fedora, RHEL), qemu-tools (SUSE)"
        }
        "qemu-storage-daemon" => "qemu-utils or qemu-system-common (Debian, Ubuntu), qemu-img (Fedora, RHEL)",
        "setsid" | "timeout" | "sh" => "util-linux, coreutils",
        "guestfish" => return "install it: apt-get install guestfish (Debian, Ubuntu)".to_owned(),
        "ssh" | "ssh-keygen" | "ssh-copy-id" => "openssh-client (Debian, Ubuntu), openssh-clients (Fedora, RHEL)",
        _ => return format!("install {program}, or add its folder to PATH"),
    };
    format!("install {program}: package {package}")
}

fn record_format(image: &str, format: &str, backing: &str) -> Option<Cow<'static, str>> {
    let (image, backing) = (quoted(image)?, quoted(backing)?);
    hint(format!(
        "if you know the format ('qemu-img info' shows that of the backing file), record it: qemu-img rebase -u -f \
         {format} -F FORMAT -b {backing} {image}; or add a <backingStore> \
         with the format to the definition of the machine"
    ))
}

/// Returns the beginning of a hint: the command that creates a logical volume of that path.
fn create_device(path: &Path, capacity_bytes: u64) -> String {
    let parts: Vec<&str> = path.iter().filter_map(|part| part.to_str()).collect();
    let names = match parts[..] {
        ["/", "dev", "mapper", name] => {
            // The device mapper doubles hyphens that belong to a name.
            let marked = name.replace("--", "\0");
            marked.split_once('-').map(|(group, volume)| (group.replace('\0', "-"), volume.replace('\0', "-")))
        }
        ["/", "dev", group, volume] => Some((group.to_owned(), volume.to_owned())),
        _ => None,
    };
    match names.and_then(|(group, volume)| Some((quoted(&group)?, quoted(&volume)?))) {
        Some((group, volume)) => format!("run 'lvcreate -L {capacity_bytes}b -n {volume} {group}'; "),
        None => format!("provide a device of at least {} there; ", in_units(capacity_bytes)),
    }
}
