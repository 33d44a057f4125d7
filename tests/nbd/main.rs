//! The NBD client, against real servers and hostile ones; and the server, with real clients and hostile ones.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod client;
mod server;
mod servers;
