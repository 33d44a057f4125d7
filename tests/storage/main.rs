//! Storage backends: folders and servers, over good and bad networks.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use kvmb::rate_limiter::RateLimiter;
use support::Call;

mod conformance;
mod hostile_servers;
mod http_backups;
mod network;
mod object_lock;
mod remote;
mod rest;
mod rest_commands;
mod s3;
mod s3_commands;
mod sftp;
mod sftp_logins;

/// Longer than any call here takes, even on a busy host: a call that takes longer hangs.
const BOUND: Duration = Duration::from_secs(240);

/// Returns a limit that is never reached here.
fn fast() -> Arc<RateLimiter> {
    Arc::new(RateLimiter::new(NonZeroU32::MAX, Arc::default()))
}

/// Adds the key of [`support::http_server::HttpServer::rclone_s3`] to a call.
fn with_keys(call: Call) -> Call {
    call.env("AWS_ACCESS_KEY_ID", "keeper-key").env("AWS_SECRET_ACCESS_KEY", "swordfish-secret").limit(BOUND)
}
