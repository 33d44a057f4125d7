//! Storages for tests: one in memory, one that misbehaves on request, and the suite that every storage passes.
//!
//! Nothing outside of tests uses this module.

mod conformance;
mod fault;
mod memory;

pub use conformance::{conformance, folder_conformance};
pub use fault::{FaultEffect, FaultStorage, InjectedFault, Operation, RecordedCall};
pub use memory::MemoryStorage;
