//! Where repository files live: folders and SSH servers, over good networks and bad ones.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod conformance;
mod hostile_servers;
mod network;
mod remote;
mod sftp;
mod sftp_logins;
