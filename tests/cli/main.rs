//! The commands as users call them: arguments, records, tables, exit codes.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod chosen_disks;
mod commands;
mod completions;
mod config;
mod config_set;
#[cfg(feature = "console")]
mod console;
mod doctor;
mod first_steps;
mod folders;
mod hooks;
mod interrupt;
mod inventory;
mod jobs;
mod logs;
mod output_formats;
mod pipe;
mod progress;
mod records;
mod restore_dialog;
mod status;
