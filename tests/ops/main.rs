//! Whole backups and restores, and what can go wrong in them.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod backup;
mod capture_failures;
mod chain;
mod commit_order;
mod copy;
mod failure_modes;
mod hosts;
mod model;
mod restore;
mod vm_lifecycle;
mod zoo;
