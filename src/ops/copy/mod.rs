//! Copying points to a second repository.

pub(crate) mod plan;
pub mod transfer;
