//! The NBD client, against real servers and hostile ones.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod client;
mod servers;
