//! Completion of libvirt connections.

use clap_complete::{ArgValueCompleter, CompletionCandidate};
use std::ffi::OsStr;

/// The connections that most hosts have.
const CONNECTIONS: [(&str, &str); 2] =
    [("qemu:///system", "the host's machines"), ("qemu:///session", "your own machines")];

/// Completes the usual connections, without asking the host.
pub(crate) fn connections() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let begins = |(uri, _): &(&str, &str)| current.to_str().is_some_and(|typed| uri.starts_with(typed));
        let candidate = |(at, (uri, about)): (usize, (&str, &'static str))| {
            CompletionCandidate::new(uri).help(Some(about.into())).display_order(Some(at))
        };
        CONNECTIONS.into_iter().filter(begins).enumerate().map(candidate).collect()
    })
}
