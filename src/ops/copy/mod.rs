//! Copying points to a second repository.

pub mod plan;
pub mod transfer;
