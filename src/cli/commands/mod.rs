//! One file a subcommand: its arguments, whose doc comments are its help, and a short `run`.

pub mod backup;
pub mod completions;
pub mod config;
mod config_set;
pub mod disks;
pub mod doctor;
pub mod guard;
pub mod hash;
pub mod init;
pub mod installed_schedules;
pub mod jobs;
pub mod key;
pub mod log;
pub mod man;
pub mod pin;
pub mod points;
pub mod prune;
pub mod push;
pub mod release;
pub mod remote;
pub mod restore;
mod restore_dialog;
pub mod schedule;
pub mod serve;
pub mod snapshot;
pub mod status;
#[cfg(feature = "console")]
pub mod ui;
pub mod unlock;
pub mod verify;
pub mod vms;
