//! One file a subcommand: its arguments, whose doc comments are its help, and a short `run`.

pub(crate) mod backup;
pub(crate) mod completions;
pub(crate) mod config;
mod config_set;
pub(crate) mod disks;
pub(crate) mod doctor;
pub(crate) mod guard;
pub(crate) mod hash;
pub(crate) mod init;
pub(crate) mod installed_schedules;
pub(crate) mod jobs;
pub(crate) mod key;
pub(crate) mod log;
pub(crate) mod man;
pub(crate) mod pin;
pub(crate) mod points;
pub(crate) mod prune;
pub(crate) mod push;
pub(crate) mod release;
pub(crate) mod remote;
pub(crate) mod restore;
mod restore_dialog;
pub(crate) mod schedule;
pub(crate) mod serve;
pub(crate) mod snapshot;
pub(crate) mod status;
#[cfg(feature = "console")]
pub(crate) mod ui;
pub(crate) mod unlock;
pub(crate) mod verify;
pub(crate) mod vms;
