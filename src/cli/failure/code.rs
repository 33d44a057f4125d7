//! The codes of failures, and the exit code of each.

use crate::cli::failure::exit_code::ExitCode;

/// The kinds of failure: the `code` of a failure record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// Wrong arguments or configuration, or invalid records.
    Usage,
    /// Interrupted by the user or the system.
    Interrupted,
    /// libvirt cannot be reached.
    Connection,
    /// No such machine, disk, point or capture.
    NotFound,
    /// Another run holds the machine or the repository.
    Busy,
    /// The output already exists.
    Exists,
    /// The machine is running.
    /// The machine is running.
    Running,
    /// Permission was denied.
    Permission,
    /// Not enough free space.
    NoSpace,
    /// libvirt, QEMU, an image or a driver does not support this.
    Unsupported,
    /// No disk of a machine that has disks was selected.
    NoDisks,
    /// A disk record without a capture.
    NotCaptured,
    /// Not all disks of a capture arrived.
    Incomplete,
    /// A point was stored without a part that the machine needs.
    PartMissing,
    /// The capture's lease has expired.
    Expired,
    /// A stopped machine was started or changed while it was read.
    Changed,
    /// Something did not respond within its time limit.
    Timeout,
    /// The guest could not be frozen.
    Freeze,
    /// There is no repository.
    NoRepository,
    /// The password does not open any key of the repository.
    WrongPassword,
    /// The backup server cannot be reached.
    Unreachable,
    /// The backup server's host key is unknown, or has changed.
    HostKey,
    /// The backup server refused the login.
    Login,
    /// Damage in the repository.
    Damage,
    /// Reading or writing a disk over NBD failed.
    Disk,
    /// A hook failed.
    Hook,
    /// Anything else.
    Failed,
}

impl Code {
    /// Every code with its word and its sentence in the manual.
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
        (Code::NoDisks, "no_disks", "no disk of the machine was selected"),
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
        (Code::WrongPassword, "wrong_password", "no key of the repository or of a LUKS volume matches the password"),
        (Code::Unreachable, "unreachable", "the backup server cannot be reached"),
        (Code::HostKey, "host_key", "the host key of the backup server is unknown, changed or revoked"),
        (Code::Login, "login", "the backup server refused the login"),
        (Code::Damage, "damage", "damage in the repository"),
        (Code::Disk, "disk", "reading or writing a disk failed"),
        (Code::Hook, "hook", "a hook failed and nothing was backed up"),
        (Code::Failed, "failed", "any other failure"),
    ];

    /// Returns the word in the record.
    pub fn word(self) -> &'static str {
        Code::ALL.iter().find(|(code, ..)| *code == self).map_or("failed", |(_, word, _)| word)
    }

    /// Returns the exit code for a command that had only this failure.
    pub(crate) fn exit_code(self) -> ExitCode {
        match self {
            Code::Usage => ExitCode::Usage,
            Code::Busy => ExitCode::Busy,
            Code::Damage => ExitCode::Damage,
            Code::Interrupted
            | Code::Connection
            | Code::NotFound
            | Code::Exists
            | Code::Running
            | Code::Permission
            | Code::NoSpace
            | Code::Unsupported
            | Code::NoDisks
            | Code::NotCaptured
            | Code::Incomplete
            | Code::PartMissing
            | Code::Expired
            | Code::Changed
            | Code::Timeout
            | Code::Freeze
            | Code::NoRepository
            | Code::WrongPassword
            | Code::Unreachable
            | Code::HostKey
            | Code::Login
            | Code::Disk
            | Code::Hook
            | Code::Failed => ExitCode::Failed,
        }
    }
}
