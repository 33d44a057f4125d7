//! Whole backups and restores, and their possible failures.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod backup;
mod bitmap_mismatches;
mod capture_failures;
mod chain;
mod chain_disks;
mod chain_machines;
mod commit_order;
mod copy;
mod data_files;
mod drill;
mod failure_modes;
mod files;
mod fleet;
mod hosts;
mod live;
mod model;
mod mount;
mod odd_machines;
mod odd_parts;
mod other_hosts;
mod restore;
mod serve;
mod small_writes;
mod vm_lifecycle;
mod zoo;
