//! Storages for tests: one in memory, one with injected faults, and the conformance suite for all storages.
//!
//! Used only by tests.

mod conformance;
mod fault;
mod memory;

pub use conformance::{conformance, conformance_without_overwriting, folder_conformance};
#[cfg(test)]
pub(crate) use fault::RecordedCall;
pub use fault::{FaultEffect, FaultStorage, InjectedFault, Operation};
pub use memory::MemoryStorage;
