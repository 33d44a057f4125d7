//! The commands as users call them: arguments, records, tables, exit codes.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod commands;
mod completions;
mod config;
mod config_set;
mod console;
mod doctor;
mod first_steps;
mod hooks;
mod interrupt;
mod inventory;
mod jobs;
mod logs;
mod output_formats;
mod pipe;
mod records;
mod status;
