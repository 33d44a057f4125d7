//! Shell completion: the answers to `KVMB_COMPLETE=SHELL kvmb -- WORDS…`.
//!
//! The scripts that `kvmb completions` prints call kvmb at every press of Tab, so that names are current. The user
//! waits meanwhile, so every look-up has a time limit. Anything that does not answer in time, or would need a prompt,
//! is silently left out. Only candidates are ever printed.

mod answer;
mod candidates;
pub(super) mod connections;
mod line;
mod point_paths;
mod scripts;

pub(crate) use answer::{SHELLS, VARIABLE, answer};
pub(crate) use candidates::{captures, disk_paths, disks, machine_disks, machines, point_machines, points};
pub(crate) use point_paths::point_paths;
