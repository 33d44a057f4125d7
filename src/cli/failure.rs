//! Failures at the edge: here an error gets its kind, its hint and its exit code, once.

use super::explain::{self, Explanation};
use crate::capture;
use crate::cli::exit_code::ExitCode;
use crate::config;
use crate::ops;
use crate::record::{DamagedPoint, Failure, Point};
use crate::repo;
use crate::schedule;
use std::borrow::Cow;
use std::fmt;

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

    fn explained(message: String, (code, hint): Explanation) -> CliError {
        CliError { code, message, hint: hint.map(Cow::into_owned) }
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
        CliError::explained(error.to_string(), explain::of_ops(&error))
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

impl From<schedule::Error> for CliError {
    fn from(error: schedule::Error) -> CliError {
        CliError::explained(error.to_string(), explain::of_schedule(&error))
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
