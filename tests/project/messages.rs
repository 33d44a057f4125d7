//! One sample of every error with its own message, for the pinned list of messages.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use chrono::TimeZone;
use kvmb::capture::block_job::{BlockJob, BlockJobKind};
use kvmb::capture::holders::Holder;
use kvmb::capture::process::RunningBackup;
use kvmb::capture::{self, LibvirtErrorKind};
use kvmb::cli::failure::{self, CliError};
use kvmb::config::{self, document::DocumentError};
use kvmb::confined::parent::ConfinedError;
use kvmb::filesystems::FsError;
use kvmb::nbd;
use kvmb::ops;
use kvmb::record::{Damage, Record, Time};
use kvmb::repo::{self, BlobKind, Flaw, Id, LockInfo};
use kvmb::schedule;
use kvmb::storage::{self, FileAction, FileKind, http, sftp};
use serde_json::{Value, json};

const REPO: &str = "/backup/kvm";
const SERVER: &str = "sftp://kvm@backup.example.com//backup/kvm";
const BUCKET: &str = "s3:https://s3.example.com/bucket/kvm";

fn machine() -> String {
    "web1".to_owned()
}

fn disk() -> String {
    "vda".to_owned()
}

fn image() -> PathBuf {
    "/var/lib/libvirt/images/web1.qcow2".into()
}

fn denied() -> io::Error {
    io::Error::from_raw_os_error(13)
}

fn missing() -> io::Error {
    io::Error::from_raw_os_error(2)
}

fn full() -> io::Error {
    io::Error::from_raw_os_error(28)
}

fn id() -> Id {
    Id::hash(b"a point")
}

/// Returns all of the errors below, as the command line shows them.
pub fn of_the_command_line() -> Vec<CliError> {
    let mut errors: Vec<CliError> = Vec::new();
    errors.extend(of_captures().into_iter().map(CliError::from));
    errors.extend(of_operations().into_iter().map(CliError::from));
    errors.extend(of_repositories().into_iter().map(CliError::from));
    errors.extend(of_schedules().into_iter().map(CliError::from));
    errors.extend(of_configurations().into_iter().flat_map(failure::of_config));
    errors
}

/// Returns errors of libvirt, QEMU and captures.
pub fn of_captures() -> Vec<capture::Error> {
    use capture::Error;
    let kinds = [
        LibvirtErrorKind::NotFound,
        LibvirtErrorKind::Unsupported,
        LibvirtErrorKind::Busy,
        LibvirtErrorKind::AgentSilent,
        LibvirtErrorKind::ReadOnlyUri,
        LibvirtErrorKind::NoConnection,
        LibvirtErrorKind::Other,
    ];
    let mut all: Vec<Error> = kinds
        .map(|meaning| Error::Libvirt {
            action: "begin the backup of web1".into(),
            message: format!("(what libvirt says: {meaning:?})"),
            meaning,
        })
        .into();
    all.extend([
        Error::TimedOut { action: "begin the backup of web1".into(), limit: Duration::from_secs(60) },
        Error::Silent { action: "begin the backup of web1".into(), machine: machine() },
        Error::Interrupted,
        Error::NoSuchMachine { name: "wbe1".into(), uri: "qemu:///system".into(), near: vec![machine()] },
        Error::NotLocal { uri: "qemu+ssh://host/system".into() },
        Error::ForeignJob { machine: machine(), job: "pull mode".into() },
        Error::OtherJob { machine: machine() },
        Error::Held { machine: machine(), capture: "c-a1b2c3d4".into(), until: None, by: None },
        Error::Held {
            machine: machine(),
            capture: "c-a1b2c3d4".into(),
            until: Some("2026-11-20T20:00:00+01:00".into()),
            by: None,
        },
        Error::Held {
            machine: machine(),
            capture: "c-a1b2c3d4".into(),
            until: None,
            by: Some(RunningBackup {
                pid: 1234,
                since: chrono::Local.with_ymd_and_hms(2025, 11, 20, 19, 38, 0).unwrap().fixed_offset(),
            }),
        },
        Error::BeingOpened { machine: machine() },
        Error::NoSuchCapture { name: "web1-a1b2c3d4".into() },
        Error::BadState { capture: "web1-a1b2c3d4".into(), message: "expected value at line 1 column 1".into() },
        Error::DiskNotCapturable { machine: machine(), disk: disk(), reason: "it is empty".into() },
        Error::UnsupportedImage { image: image().display().to_string(), reason: "its format is unknown".into() },
        Error::DamagedImage { image: image().display().to_string(), reason: "it is not a qcow2 image (qcow2)".into() },
        Error::NoBlockDriver { image: "rbd:pool/web1".into(), message: "Unknown driver 'rbd'".into() },
        Error::NoBackingFormat {
            image: image().display().to_string(),
            format: "qcow2".into(),
            backing: "base image.img".into(),
        },
        Error::NoStorageDaemon { package: "qemu-utils" },
        Error::DiskNotReadable {
            machine: machine(),
            disk: disk(),
            message: "Permission denied".into(),
            is_of_header: false,
        },
        Error::DiskNotReadable {
            machine: machine(),
            disk: disk(),
            message: "Permission denied".into(),
            is_of_header: true,
        },
        Error::UnknownOwner { machine: machine(), label: "qemu:qemu".into() },
        Error::ImageHeld {
            machine: machine(),
            holders: vec![Holder { name: "qemu-img".into(), pid: 1234 }],
            message: "Failed to get lock".into(),
        },
        Error::ImageHeld {
            machine: machine(),
            holders: vec![Holder { name: "qemu-system-x86".into(), pid: 1234 }],
            message: "Failed to get lock".into(),
        },
        Error::ImageHeld { machine: machine(), holders: Vec::new(), message: "Failed to get lock".into() },
        Error::BlockJob {
            machine: machine(),
            disk: disk(),
            job: BlockJob { kind: BlockJobKind::Copy, is_ready: true, done_bytes: 2, total_bytes: 2 },
        },
        Error::BlockJob {
            machine: machine(),
            disk: disk(),
            job: BlockJob { kind: BlockJobKind::Pull, is_ready: false, done_bytes: 1, total_bytes: 2 },
        },
        Error::SavedMemory { machine: machine() },
        Error::SecretUnavailable { machine: machine(), disk: disk(), message: "secret is private".into() },
        Error::WrongPassphrase { machine: machine(), disk: disk() },
        Error::StartedMeanwhile { machine: machine() },
        Error::ChangedMeanwhile { machine: machine(), what: "the size of vda".into() },
        Error::DiskTransient { machine: machine(), disk: disk() },
        Error::PoolNotRunning { pool: "vms".into(), volume: "web1.qcow2".into() },
        Error::NotResumed { machine: machine() },
        Error::NothingToCapture { machine: machine() },
        Error::FreezeFailed { machine: machine(), reason: "the guest agent does not respond".into() },
        Error::JobStuck { machine: machine(), waited: Duration::from_secs(60) },
        Error::Wedged { machine: machine(), message: "cannot acquire state change lock".into() },
        Error::NotStarted { program: "qemu-img", source: missing() },
        Error::Program { program: "qemu-img", subject: disk(), message: "Image is corrupt".into() },
        Error::SocketPathTooLong { path: "/run/kvmb/s".into() },
        Error::UnsafeFolder { path: "/run/kvmb".into(), reason: "it belongs to user 1000".into() },
        Error::UnsafePath { path: "/srv/images/web1.img".into(), reason: "it is a symbolic link".into() },
        Error::TooLarge { path: "/srv/images/web1.fd".into(), size_bytes: 1 << 30, limit_bytes: 128 << 20 },
        Error::Unreachable { path: "/root".into(), uid: 64055 },
        Error::Io { action: "read", path: image(), source: denied() },
    ]);
    all
}

/// Returns errors of operations on machines, disks and points.
pub fn of_operations() -> Vec<ops::Error> {
    use ops::Error;
    let point = || id().short();
    let disk_error = |source| Error::Disk { disk: disk(), source };
    let request = |error| nbd::Error::Request {
        command: nbd::RequestType::Read,
        offset: 65536,
        length: 4096,
        error,
        message: String::new(),
    };
    let guest_file = |path: &str, source| Error::GuestFile { path: path.to_owned(), source };
    let damage = Damage {
        disk: Some(disk()),
        offset_bytes: Some(1 << 20),
        length_bytes: Some(1 << 20),
        file: None,
        error: "its content does not match its name".into(),
    };
    vec![
        Error::Interrupted,
        disk_error(nbd::Error::Disconnected),
        disk_error(nbd::Error::Timeout { after: Duration::from_secs(60) }),
        disk_error(request(5)),
        disk_error(request(28)),
        Error::DiskMap { disk: disk(), reason: "the map ends before the disk does".into() },
        Error::Io { action: "write", path: image(), source: full() },
        Error::NoFolder { path: "/srv/my images".into() },
        Error::NotAFolder { path: "/srv/my images".into() },
        Error::NotStarted { program: "qemu-img", source: missing() },
        Error::NbdAddress { disk: disk(), source: nbd::UriError::NoSocket("nbd+unix:///vda".into()) },
        guest_file("/etc/fstap", FsError::NotFound { path: "/etc/fstap".into(), near: vec!["fstab".into()] }),
        guest_file(
            "/home",
            FsError::BadPath("no operating system was found; name a file system (vda1, vda2): vda1:/home".into()),
        ),
        guest_file("vda5:/", FsError::Unsupported("kvmb cannot read exfat".into())),
        guest_file("vda5:/", FsError::Closed("kvmb cannot read crypto_LUKS".into())),
        guest_file("/var/log", FsError::Damaged("a directory entry is invalid".into())),
        guest_file("/srv/data", FsError::Unreadable("pack 0a1b2c3d is damaged".into())),
        Error::IncompleteCopies { count: 2, what: "attribute user.note".into(), source: denied() },
        Error::NotStarted { program: "guestfish", source: missing() },
        Error::Guestfish { message: "guestfs_launch failed.".into() },
        Error::WrongPassphrase {
            volume: "vda5".into(),
            message: "cryptsetup_open: cryptsetup exited with status 2: No key available with this passphrase.".into(),
        },
        Error::TooLittleMemory {
            volume: "vda5".into(),
            message: "cryptsetup_open: external command 'cryptsetup' killed by signal -7".into(),
        },
        Error::VolumeNotOpened {
            volume: "vda5".into(),
            message: "cryptsetup_open: cryptsetup exited with status 1: Device /dev/sda5 is not a valid LUKS device."
                .into(),
        },
        Error::Confined(ConfinedError::NotConfined("cannot become user nobody: Invalid argument".into())),
        Error::Confined(ConfinedError::Silent),
        Error::Confined(ConfinedError::Ended(ExitStatus::from_raw(31))),
        Error::NotCaptured { machine: machine(), disk: disk() },
        Error::CaptureIncomplete { capture: "web1-a1b2c3d4".into(), arrived: 1, expected: 2 },
        Error::CaptureExpired {
            capture: "web1-a1b2c3d4".into(),
            machine: machine(),
            lease_ends_at: "2026-11-20T20:00:00+01:00".parse().unwrap(),
        },
        Error::NoSuchDisk { subject: machine(), disk: "vdz".into() },
        Error::NoSuchPoint { wanted: "wbe1@latest".into(), repo: REPO.into(), near: vec![machine()], known: None },
        Error::AmbiguousPoint { wanted: "a1".into(), count: 2 },
        Error::AmbiguousMachine {
            machine: machine(),
            newest: vec![("host1".into(), point()), ("host2".into(), point())],
        },
        Error::BadPoint { point: point(), reason: "it has no point.json".into() },
        Error::UntrustedPoint { point: point(), reason: "disk vdb is not in the definition".into() },
        Error::UnreadableSnapshot { snapshot: point(), reason: "its authentication code is wrong".into() },
        Error::Damaged { point: point(), damage: vec![damage.clone(), damage] },
        Error::Unprunable { source: Box::new(repo::Error::BlobMissing { kind: BlobKind::Data, id: id() }) },
        Error::RemovalRefused {
            url: REPO.into(),
            source: Box::new(
                storage::Error::Io { action: FileAction::Remove, path: "/backup/kvm/data/a1".into(), source: denied() }
                    .into(),
            ),
        },
        Error::Exists { path: image() },
        Error::MachineExists { machine: machine() },
        Error::NameTaken { machine: machine(), uuid: "c7a5fdbd-edaf-9455-926a-d65c16db1809".into() },
        Error::Renamed { machine: machine(), present: "web2".into() },
        Error::NoDestination { disk: disk(), reason: "its image was not a file or device of this host".into() },
        Error::MachineRunning { machine: machine() },
        Error::ImageInUse { disk: disk(), path: image() },
        Error::DeviceInUse { disk: disk(), path: "/dev/vg0/web1".into(), holder: "qemu-nbd (process 4711)".into() },
        Error::LiveDiskMoved {
            machine: machine(),
            disk: disk(),
            overlay: "/var/lib/libvirt/images/.kvmb-live-1a2b3c4d-vda.overlay".into(),
        },
        Error::NoRoom { path: "/srv/images".into(), free_bytes: 1 << 30, wanted_bytes: 20 << 30 },
        Error::NotAPoint { snapshot: "0f385283".into(), repo: "/backup/kvm".into(), machine: Some("web1".into()) },
        Error::NoScratchRoom { path: "/var/lib/kvmb/scratch".into(), free_bytes: 1 << 30, wanted_bytes: 20 << 30 },
        Error::KeyNotTaken { account: "kvm@backup.example.com".into(), line: "ssh-ed25519 AAAA kvmb@host1".into() },
        Error::NoDevice { disk: disk(), path: "/dev/vg0/web1".into(), capacity_bytes: 20 << 30 },
        Error::NoDevice { disk: disk(), path: "/dev/nvme7n1".into(), capacity_bytes: 20 << 30 },
        Error::NoDeviceOfFile { name: "nvram".into(), path: "/dev/vg0/web1-vars".into() },
        Error::Nowhere { machine: machine() },
        Error::NoVolume {
            disk: disk(),
            volume: "pool/web1".into(),
            reason: "there is no pool of that name".into(),
            solve: "start the pool: virsh pool-start pool".into(),
        },
        Error::SavedMemory { machine: machine() },
        Error::MissingHere {
            machine: machine(),
            what: "the network br7".into(),
            solve: "create the network".into(),
            is_start: true,
        },
        Error::OtherFamily { machine: machine(), machine_type: "pc".into(), family: "q35" },
        Error::BadTarget { disk: disk(), path: "/srv".into(), reason: "it is a folder".into() },
        Error::Mount {
            program: "guestmount",
            target: "/mnt".into(),
            message: "no operating system was found on this disk".into(),
        },
        Error::Mount { program: "nbdfuse", target: "/mnt/vda".into(), message: "fuse device not found".into() },
        Error::NotEmpty { path: "/mnt".into() },
    ]
}

/// Returns errors of repositories, their storage, and backup servers.
pub fn of_repositories() -> Vec<repo::Error> {
    use repo::Error;
    let url = || REPO.to_owned();
    let holder = |time: chrono::DateTime<chrono::FixedOffset>| LockInfo {
        time,
        exclusive: true,
        hostname: "host2".into(),
        username: "root".into(),
        pid: 1234,
        uid: 0,
        gid: 0,
    };
    let io = |action, source| storage::Error::Io { action, path: "/backup/kvm/data".into(), source };
    let mut all = vec![
        Error::NoRepository { url: url() },
        Error::NoRepository { url: "sftp://kvm@backup.example.com/kvm".into() },
        Error::Unfinished { url: url() },
        Error::ConfigMissing { url: url() },
        Error::AlreadyExists { url: url(), found: FileKind::Key },
        Error::UnsupportedVersion { url: url(), version: 1 },
        Error::WrongPassword { url: url(), damaged: vec![] },
        Error::WrongPassword { url: url(), damaged: vec![id()] },
        Error::NoKey { url: url(), damaged: vec![id()] },
        Error::Damaged { kind: FileKind::Config, name: "config".into(), flaw: Flaw::Unauthentic },
        Error::Damaged { kind: FileKind::Lock, name: id().short(), flaw: Flaw::TooShort },
        Error::Damaged { kind: FileKind::Pack, name: id().short(), flaw: Flaw::NotItsName },
        Error::BlobMissing { kind: BlobKind::Data, id: id() },
        Error::PackLost { id: id(), blob: id(), kind: BlobKind::Tree },
        Error::BlobDamaged { kind: BlobKind::Data, id: id(), pack: id(), flaw: Flaw::NotDecompressable },
        Error::TreeMalformed { id: id(), reason: "its names are not in order".into() },
        Error::BlobTooLarge { kind: BlobKind::Tree, size_bytes: 1 << 33 },
        Error::Locked { url: url(), holder: Box::new(holder("2026-01-02T03:04:05Z".parse().unwrap())) },
        Error::Locked { url: url(), holder: Box::new(holder("2096-01-02T03:04:05Z".parse().unwrap())) },
        Error::RepositoryGone { url: url() },
        Error::IndexOutdated { url: url(), id: id(), change: "the removal" },
        Error::LockLost { url: url(), reason: "its file was removed".into() },
        Error::Compress(io::Error::other("out of memory")),
        Error::Encrypt("aead::Error".into()),
        Error::KeyDerivation,
        Error::Random(io::Error::other("no entropy")),
        Error::WorkerGone,
    ];
    let of_places = [
        storage::Error::BadUrl { url: "ftp://host/kvm".into(), reason: "an unknown kind of address".into() },
        storage::Error::NotFound { url: url(), kind: FileKind::Index, name: id().short() },
        storage::Error::Exists { url: url(), kind: FileKind::Lock, name: id().short() },
        storage::Error::TooShort { url: url(), kind: FileKind::Pack, name: id().short(), wanted_bytes: 4096 },
        storage::Error::TooLong { url: url(), kind: FileKind::Lock, name: id().short(), longest_bytes: 4096 },
        storage::Error::NoSpace { url: url(), path: "/backup/kvm/data/a1".into(), source: full() },
        io(FileAction::Find, io::Error::from_raw_os_error(2)),
        io(FileAction::List, io::Error::from_raw_os_error(2)),
        io(FileAction::Write, denied()),
        // The form in which servers refuse.
        io(FileAction::Write, io::Error::new(io::ErrorKind::PermissionDenied, "the server says: permission denied")),
        storage::Error::GaveUp {
            source: Box::new(io(FileAction::Read, io::Error::from_raw_os_error(5))),
            after: Duration::from_secs(900),
        },
        storage::Error::GaveUp {
            source: Box::new(storage::Error::Server {
                url: SERVER.into(),
                source: Box::new(sftp::Error::Silent { server: server(), after: Duration::from_secs(1) }),
            }),
            after: Duration::from_secs(1),
        },
    ];
    all.extend(of_places.into_iter().map(Error::from));
    all.extend(
        of_servers()
            .into_iter()
            .map(|source| Error::from(storage::Error::Server { url: SERVER.into(), source: Box::new(source) })),
    );
    all.extend(
        of_http_servers()
            .into_iter()
            .map(|source| Error::from(storage::Error::Http { url: BUCKET.into(), source: Box::new(source) })),
    );
    all
}

fn server() -> String {
    "backup.example.com:22".to_owned()
}

fn of_servers() -> Vec<sftp::Error> {
    use sftp::Error;
    let (algorithm, fingerprint) = ("ssh-ed25519".to_owned(), "SHA256:abc".to_owned());
    let path = || PathBuf::from("/root/.ssh/known_hosts");
    let proxy = |problem, said: &str| Error::Proxy { server: server(), problem, said: said.into() };
    vec![
        Error::SshConfig {
            path: "/root/.ssh/config".into(),
            reason: "ssh cannot read its configuration: line 3: Bad configuration option: prot".into(),
        },
        Error::Resolve { host: "bakcup".into(), source: io::Error::other("Name or service not known") },
        Error::Unreachable { server: server(), source: io::Error::from_raw_os_error(111) },
        Error::Handshake { server: server(), reason: "no common method".into() },
        Error::TurnedAway { server: server(), said: "Not allowed at this time".into() },
        Error::Lost { server: server(), reason: "connection reset".into() },
        proxy(sftp::ProxyProblem::HostKey, "Host key verification failed."),
        proxy(sftp::ProxyProblem::Login, "me@gate: Permission denied (publickey)."),
        proxy(sftp::ProxyProblem::Forwarding, "channel 0: open failed: administratively prohibited: open failed"),
        proxy(sftp::ProxyProblem::Name, "ssh: Could not resolve hostname gate: Name or service not known"),
        Error::Silent { server: server(), after: Duration::from_secs(30) },
        Error::Stuck { server: server(), after: Duration::from_secs(300) },
        Error::KnownHosts { action: "read", path: path(), source: denied() },
        Error::HostKeyUnknown {
            server: server(),
            algorithm: algorithm.clone(),
            fingerprint: fingerprint.clone(),
            certified: false,
        },
        Error::HostKeyChanged {
            server: server(),
            name: "backup.example.com".into(),
            algorithm: algorithm.clone(),
            fingerprint: fingerprint.clone(),
            path: path(),
            line: 3,
        },
        Error::HostKeyRevoked { server: server(), algorithm, fingerprint, path: path(), line: 3 },
        Error::Secret("the password command failed".into()),
        Error::Login { server: server(), user: "kvm".into(), tried: vec![], offered: "publickey".into() },
        Error::Login {
            server: server(),
            user: "kvm".into(),
            tried: vec!["/root/.ssh/id_ed25519 (refused)".into()],
            offered: "publickey".into(),
        },
        Error::NoSftp { server: server(), user: "kvm".into(), reason: "subsystem refused".into() },
    ]
}

/// Returns errors of REST servers and object storage.
fn of_http_servers() -> Vec<http::Error> {
    use http::{CertificateFlaw, Error};
    let server = || "s3.example.com".to_owned();
    let action = || FileAction::Write.to_string();
    let path = || format!("{BUCKET}/config");
    let refused =
        |status, reason: &str| Error::Refused { action: action(), path: path(), status, reason: reason.into() };
    let certificate =
        |reason: &str, flaw: CertificateFlaw| Error::Certificate { server: server(), reason: reason.into(), flaw };
    let proxy = |status| Error::Proxy { server: server(), proxy: "proxy.example.com:3128".into(), status };
    vec![
        Error::File { path: "/etc/kvmb/ca.pem".into(), source: missing() },
        Error::BadFile { path: "/etc/kvmb/ca.pem".into(), reason: "it contains no certificate".into() },
        Error::BadProxy { variable: "ALL_PROXY".into(), reason: "SOCKS is not supported" },
        proxy(None),
        proxy(Some(407)),
        Error::TooLarge { path: path() },
        Error::Resolve { server: server(), is_temporary: false },
        Error::Unreachable { server: server(), source: io::Error::from_raw_os_error(111) },
        Error::Lost { server: server(), reason: "connection reset".into() },
        Error::Corrupted { server: server(), reason: "XAmzContentSHA256Mismatch".into() },
        Error::Silent { server: server(), after: Duration::from_secs(30) },
        certificate("unable to get local issuer certificate", CertificateFlaw::Untrusted),
        certificate("certificate has expired", CertificateFlaw::OutOfDate),
        certificate("hostname mismatch", CertificateFlaw::OtherName),
        Error::ClientCertificate { server: server(), reason: "certificate required".into() },
        Error::Tls { server: server(), reason: "wrong version number".into() },
        Error::Protocol { server: server(), reason: "the answer is not JSON".into() },
        Error::Login { server: server(), reason: "status 401".into() },
        Error::NoKeys { server: server() },
        Error::Keys { server: server(), reason: "InvalidAccessKeyId".into() },
        Error::Clock { server: server() },
        Error::NoObjectLock { bucket: "bucket".into() },
        Error::NoFolder { path: path() },
        Error::Denied { action: action(), path: path(), reason: "AccessDenied".into() },
        refused(302, "status 302"),
        refused(404, "NoSuchBucket"),
        refused(503, "SlowDown"),
        refused(507, "status 507"),
    ]
}

/// Returns errors of schedules.
pub fn of_schedules() -> Vec<schedule::Error> {
    use schedule::Error;
    vec![
        Error::NoProgram { name: "crontab" },
        Error::NoProgram { name: "systemctl" },
        Error::NoProgram { name: "flock" },
        Error::Unspeakable { what: "a line break".into() },
        Error::TooLong { bytes: 1200, most: 998 },
        Error::Unpaired { line: 4, text: "# kvmb begin".into() },
        Error::CarriageReturns,
        Error::Program { program: "crontab -".into(), message: "errors in crontab file".into() },
        Error::Excluded { message: "You (kvm) are not allowed to use this program (crontab)".into() },
        Error::TimedOut { program: "crontab", after: Duration::from_secs(30) },
        Error::Interrupted,
        Error::Locked { folder: "/root".into() },
        Error::Changed,
        Error::Io { action: "write", path: "/etc/cron.d/kvmb".into(), source: denied() },
    ]
}

/// Returns errors of configuration files.
pub fn of_configurations() -> Vec<config::Error> {
    use config::Error;
    let path = || PathBuf::from("/etc/kvmb/config.json");
    let faulty = r#"{"backup_freq": "0 2 30 2 *", "selected_vm": {}, "jobs": 0, "backup_host": "a b"}"#;
    let Err(DocumentError::Faults(faults)) = config::document::read(faulty) else {
        panic!("this configuration has faults");
    };
    vec![
        Error::Missing { path: path() },
        Error::Io { path: path(), source: denied() },
        Error::ForeignOwner { path: path(), owner: 1000 },
        Error::Writable { path: path(), mode: 0o666 },
        Error::Readable { path: path(), mode: 0o644, key: "password_command" },
        Error::NotJson { path: path(), reason: "expected value at line 1 column 1".into() },
        Error::Faults { path: path(), faults },
    ]
}

/// Returns records of every kind, in the usual order.
pub fn of_records(now: Time) -> Vec<Record> {
    let ago = |hours: i64| (now - chrono::TimeDelta::hours(hours)).to_rfc3339();
    let id = |name: &str| Id::hash(name.as_bytes()).to_string();
    let disk = json!({ "disk": "vda", "capacity_bytes": 20u64 << 30, "read_mode": "full", "read_bytes": 3u64 << 30,
        "new_bytes": 2u64 << 30, "stored_bytes": 1u64 << 30 });
    let point = |name: &str, hours: i64, more: Value| {
        let mut point = json!({ "type": "point", "point": id(name), "repo": REPO, "machine": name, "uuid": "u",
            "host": "host1", "captured_at": ago(hours), "consistency": "crash", "disks": [disk],
            "read_bytes": 3u64 << 30, "new_bytes": 2u64 << 30, "stored_bytes": 1u64 << 30, "duration_seconds": 75.5 });
        merge(&mut point, more);
        point
    };
    let forget = |name: &str, hours: i64, keep: bool| {
        json!({ "type": "action", "action": "forget", "target": id(&format!("{name}{hours}")), "changed": !keep,
            "dry_run": true,
            "reason": if keep { "keep: daily, weekly" } else { "remove: no rule keeps it" },
            "machine": name, "host": "host1", "captured_at": ago(hours), "keep": keep })
    };
    let check = |check: &str, target: &str, status: &str, detail: &str, hint: Option<&str>| {
        json!({ "type": "check",
        "check": check, "target": target, "status": status, "detail": detail, "hint": hint })
    };
    let mut never = check("backup", "db1", "critical", "never backed up", Some("kvmb backup db1"));
    merge(&mut never, json!({ "standing": "selected" }));
    let mut well = check("backup", "web1", "ok", "the newest point is 3 h old", None);
    merge(
        &mut well,
        json!({ "standing": "selected", "captured_at": ago(3), "last_result": "done", "last_run_at": ago(3),
        "verified_depth": "full", "verified_at": ago(72) }),
    );
    let mut busy = check(
        "backup",
        "mail1",
        "ok",
        "the newest point is 3 h old; being backed up by process 7 since 11:00, \
        25 % read",
        None,
    );
    merge(
        &mut busy,
        json!({ "standing": "selected", "captured_at": ago(3), "last_result": "done", "last_run_at": ago(3),
        "running_pid": 7, "running_began_at": ago(1), "running_done_bytes": 5u64 << 30,
        "running_total_bytes": 20u64 << 30 }),
    );
    let action = |action: &str, target: &str, changed: bool, reason: &str| {
        let kind = "action";
        json!({ "type": kind, "action": action, "target": target, "changed": changed, "reason": reason })
    };
    let disk_record = |more: Value| {
        let mut disk = json!({ "type": "disk", "connect": "qemu:///system", "machine": "web1", "uuid": "u",
            "disk": "vdb", "source": { "type": "block", "path": "/dev/vg0/web1" }, "path": "/dev/vg0/web1",
            "format": "raw", "capacity_bytes": 20u64 << 30, "included": true });
        merge(&mut disk, more);
        disk
    };
    let all = [
        json!({ "type": "machine", "connect": "qemu:///system", "machine": "web1", "uuid": "u", "state": "running",
            "persistent": true, "autostart": true, "memory_bytes": 4u64 << 30, "vcpus": 2, "disks": ["vda", "vdb"],
            "agent": "connected" }),
        json!({ "type": "disk", "connect": "qemu:///system", "machine": "web1", "uuid": "u", "disk": "vda",
            "source": { "type": "file", "path": "/var/lib/libvirt/images/web1.qcow2" },
            "path": "/var/lib/libvirt/images/web1.qcow2",
            "format": "qcow2", "capacity_bytes": 20u64 << 30, "allocated_bytes": 4u64 << 30, "included": true }),
        json!({ "type": "file", "path": "vm1.raw", "size_bytes": 1u64 << 20, "sha256": id("file") }),
        json!({ "type": "filesystem", "machine": "web1", "point": id("web1"), "disk": "vda", "filesystem": "vda2",
            "format": "ext4", "offset_bytes": 1u64 << 20, "size_bytes": 20u64 << 30, "readable": true, "label": "root",
            "system": "Debian GNU/Linux 12 (bookworm)", "mount_point": "/" }),
        json!({ "type": "filesystem", "machine": "web1", "point": id("web1"), "disk": "vda", "filesystem": "vda3",
            "format": "crypto_LUKS", "offset_bytes": 1u64 << 30, "size_bytes": 1u64 << 30, "readable": false }),
        json!({ "type": "file", "path": "/etc/hosts", "size_bytes": 200, "machine": "web1", "point": id("web1"),
            "filesystem": "vda2", "kind": "file", "mode": "0644", "uid": 0, "gid": 0, "links": 1,
            "modified_at": ago(50) }),
        json!({ "type": "file", "path": "/bin", "size_bytes": 7, "machine": "web1", "point": id("web1"),
            "filesystem": "vda2", "kind": "symlink", "mode": "0777", "uid": 0, "gid": 0, "links": 1,
            "modified_at": ago(500), "target": "usr/bin" }),
        point("web1", 3, json!({ "consistency": "filesystem", "verified": "full", "verified_at": ago(2) })),
        point("db1", 30, json!({ "pinned": true, "left_out": [{ "disk": "vdb", "reason": "raw" }] })),
        point("mail1", 300, json!({ "damage": [{ "disk": "vda", "error": "lost" }], "verified": false })),
        forget("web1", 3, true),
        forget("db1", 30, true),
        forget("web1", 900, false),
        json!({ "type": "action", "action": "prune", "target": REPO, "changed": true, "dry_run": true,
            "reason": "keep-daily 7",
            "removed_points": 1, "kept_points": 2, "freed_bytes": 146432 }),
        json!({ "type": "action", "action": "schedule", "target": "crontab", "changed": false,
            "reason": "runs at 0 2 * * *", "machines": ["web1", "db*"], "repo": SERVER, "cron": "0 2 * * *",
            "backup_command": format!("/usr/bin/kvmb backup -r {SERVER} web1 'db*'"), "next_runs": [ago(-14)] }),
        json!({ "type": "action", "action": "schedule", "target": "crontab", "changed": true, "reason": "installed",
            "next_runs": [ago(-14)], "drill": { "next_runs": [ago(-40)] } }),
        json!({ "type": "action", "action": "schedule", "target": "crontab", "changed": false,
            "reason": "a drill runs every Sunday at 04:30 (30 4 * * sun)", "machines": "all", "repo": SERVER,
            "cron": "30 4 * * sun", "next_runs": [ago(-40)],
            "drill_command": format!("/usr/bin/kvmb drill -r {SERVER} --all --sample 3") }),
        json!({ "type": "setting", "key": "jobs", "value": 4, "source": "file", "origin": "/etc/kvmb/config.json" }),
        json!({ "type": "setting", "key": "repo", "value": "/var/lib/kvmb/repo", "source": "default" }),
        json!({ "type": "action", "action": "unlock", "target": id("lock"), "changed": true,
            "reason": "stale; held by process 7" }),
        check(
            "agent",
            "web1",
            "warning",
            "no guest agent channel; backups are crash-consistent only",
            Some("virt-xml web1 --add-device --channel unix,target.type=virtio,target.name=org.qemu.guest_agent.0"),
        ),
        json!({ "type": "job", "job": "5f0c2a9e", "command": "backup", "arguments": ["backup", "--all"],
            "status": "running", "user": "root", "origin": "cron", "pid": 7, "began_at": ago(1),
            "duration_seconds": 3725.0, "done_bytes": 5u64 << 30, "total_bytes": 20u64 << 30, "failures": 0 }),
        json!({ "type": "job", "job": "9e2a0c5f", "command": "verify", "arguments": ["verify", "--all"],
            "status": "failed", "user": "alice", "origin": "shell", "pid": 8, "began_at": ago(9),
            "ended_at": ago(8), "duration_seconds": 42.0, "exit_code": 1, "done_bytes": 1u64 << 30,
            "total_bytes": 1u64 << 30, "failures": 1, "error": "no space left on device" }),
        check("disk", "web1/vda", "ok", "only changes are read", None),
        well,
        never,
        busy,
        check("repository", REPO, "critical", "no repository yet", Some("run 'kvmb init -r /backup/kvm'")),
        check(
            "retention",
            REPO,
            "warning",
            "there are retention rules, but the last successful prune was 9 days ago",
            Some("kvmb prune -r /backup/kvm"),
        ),
        check(
            "space",
            REPO,
            "warning",
            "60.00 GiB free, full in about 12 days at the present growth of 5.00 GiB a day",
            Some("free some space: keep fewer points ('kvmb prune'), or move the repository to a larger disk"),
        ),
        check("copy", SERVER, "ok", "the newest copy of db1 is 3 h old", None),
        check("sample", REPO, "ok", "verified 5% of the chunks of 42 points", None),
        check("login", SERVER, "ok", "logged in with the key /var/lib/kvmb/ssh/id_ed25519", None),
        disk_record(json!({ "included": false, "skip_reason": "shared with other machines" })),
        disk_record(json!({ "capture": "web1-1a2b3c4d", "capture_disks": 1, "captured_at": ago(0),
            "nbd": "nbd+unix:///vdb?socket=/run/kvmb-nbd/web1-1a2b3c4d/vdb.sock", "consistency": "crash",
            "read_mode": "changed", "sha256": id("vdb") })),
        disk_record(json!({ "point": id("web1"), "served": "s-1a2b3c4d",
            "nbd": "nbd+unix:///vdb?socket=/run/kvmb-nbd/s-1a2b3c4d/nbd.sock" })),
        point("web2", 3, json!({ "restored_to": { "machine": "web2-copy", "started": false, "disks": [] } })),
        point(
            "web3",
            3,
            json!({ "copied": { "from_repo": SERVER, "from_point": id("web3"), "already_there": false,
            "new_bytes": 2u64 << 30, "stored_bytes": 1u64 << 30 } }),
        ),
        action("init", REPO, true, "the repository was created"),
        action("release", "web1", true, "the capture was closed; its point is stored"),
        action("pin", &id("web1"), true, "pinned"),
        action("key", REPO, true, "exported to /root/kvmb.key"),
        action("config set", "/etc/kvmb/config.json", true, "new value of jobs"),
        action("jobs cancel", "5f0c2a9e", true, "interrupted; the job cleans up and exits"),
        action("remote setup", SERVER, true, "the server accepts the key of this host"),
    ];
    all.iter().map(|value| Record::parse(&value.to_string()).unwrap()).collect()
}

fn merge(into: &mut Value, more: Value) {
    let (Value::Object(into), Value::Object(more)) = (into, more) else { panic!("objects") };
    into.extend(more);
}
