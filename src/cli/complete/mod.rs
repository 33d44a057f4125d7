//! Completing in a shell: what `KVMB_COMPLETE=SHELL kvmb -- WORDS…` answers.
//!
//! The scripts that `kvmb completions` prints call kvmb back at every press of the key, so that names are those of this
//! moment. Whoever presses it waits for us: every look-up has a bound, and what does not answer in time, or would ask a
//! question, is left out without a word. Nothing is ever printed but candidates.

mod answer;
mod candidates;
pub(super) mod connections;
mod line;
mod point_paths;
mod scripts;

pub(crate) use answer::{SHELLS, VARIABLE, answer};
pub(crate) use candidates::{captures, disk_paths, disks, machine_disks, machines, point_machines, points};
pub(crate) use point_paths::point_paths;
