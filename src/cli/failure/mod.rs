//! Failures as shown to the user: the only place that assigns codes, hints and exit codes to errors.

pub use crate::cli::failure::code::Code;

pub(crate) mod capture_hints;
pub(crate) mod code;
pub mod exit_code;
pub(crate) mod explain;
pub(crate) mod explain_storage;
pub(crate) mod explanation;
pub mod hint;

use crate::capture;
use crate::cli::failure::explanation::Explanation;
use crate::config;
use crate::ops;
use crate::record::{DamagedPoint, Failure, Point};
use crate::repo;
use crate::schedule;
use std::borrow::Cow;
use std::fmt;

/// An error on its way to the user.
#[derive(Debug, Clone)]
pub struct CliError {
    /// Its kind.
    pub code: Code,
    /// What happened.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl CliError {
    /// Creates an error of this kind.
    pub(crate) fn new(code: Code, message: impl Into<String>) -> CliError {
        CliError { code, message: message.into(), hint: None }
    }

    fn explained(message: String, (code, hint): Explanation) -> CliError {
        CliError { code, message, hint: hint.map(Cow::into_owned) }
    }

    pub(crate) fn usage(message: impl Into<String>) -> CliError {
        CliError::new(Code::Usage, message)
    }

    /// Creates an error of no special kind.
    pub(crate) fn failed(message: impl Into<String>) -> CliError {
        CliError::new(Code::Failed, message)
    }

    /// Adds a hint.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> CliError {
        self.hint = Some(hint.into());
        self
    }

    /// Returns an error if a new point lacks parts that its machine needs.
    pub(crate) fn of_missing_parts(point: &Point) -> Option<CliError> {
        let reasons = point.left_out.iter().filter(|left_out| left_out.is_required());
        let reasons: Vec<&str> = reasons.map(|left_out| left_out.reason.as_str()).collect();
        let error = CliError::new(
            Code::PartMissing,
            format!("the point of {} lacks a part that the machine needs: {}", point.machine, reasons.join("; ")),
        );
        let hint = "the disks are in the point; make sure that the file exists and kvmb can read it, then back up the \
            machine again";
        (!reasons.is_empty()).then(|| error.hint(hint))
    }

    /// Returns an error if the repository of a new point has lost data of older points.
    pub(crate) fn of_damaged_points(point: &Point) -> Option<CliError> {
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

    /// Returns the failure record of this error.
    pub(crate) fn to_record(&self, command: &str) -> Failure {
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

/// Converts a configuration error: one error for each of its faults.
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
