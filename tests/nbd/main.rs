//! The NBD client with real and hostile servers; and the NBD server with real and hostile clients.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod client;
mod server;
mod servers;
