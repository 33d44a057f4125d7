//! The repository format, checked with restic.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod cache;
mod compression;
mod concurrent_prune;
mod damage;
mod frozen;
mod interrupted_changes;
mod prune;
mod prune_after_backup;
mod reread;
mod restic;
mod resume;
mod retention;
mod retention_restic;
mod retry;
mod sample;
mod unlock;
