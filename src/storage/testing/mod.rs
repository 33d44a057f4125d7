//! Storages for tests: one in memory, one that misbehaves on request, and the suite that every storage passes.
//!
//! Nothing outside of tests uses this module.

mod conformance;
mod fault;
mod memory;

pub use conformance::{conformance, conformance_without_overwriting, folder_conformance};
#[cfg(test)]
pub(crate) use fault::RecordedCall;
pub use fault::{FaultEffect, FaultStorage, InjectedFault, Operation};
pub use memory::MemoryStorage;
