//! kvmb backs up and restores KVM/libvirt virtual machines into restic repositories.
//!
//! The modules below stand in layer order, lowest first: a layer imports only from those above it in this list.
//! `storage`, `nbd` and `capture` are neighbours that do not know each other; `ops` ties them together; `cli` alone knows
//! the terminal, the environment and the configuration file. `steps` names the steps of a backup for the tests. `tests/architecture.rs` checks this.

pub mod capture;
pub mod cli;
pub mod nbd;
pub mod ops;
pub mod record;
pub mod repo;
pub mod steps;
pub mod storage;
