//! What all ways to run the console share, whether kvmb starts it here or systemd does.

use crate::cli::context::Context;
use crate::cli::failure::{CliError, Code};
use crate::console;
use std::net::SocketAddr;
use std::path::PathBuf;

/// The default listening address.
pub(super) const DEFAULT_ADDRESS: &str = "127.0.0.1:8420";

/// The socket on which the systemd-managed console hands out links.
pub(super) const LINK_SOCKET: &str = "/run/kvmb-ui.sock";

/// Returns the global options that the console passes to its commands.
pub(super) fn arguments(context: &Context) -> Vec<String> {
    let global = &context.global;
    let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.to_string_lossy().into_owned());
    // The commands inherit the environment, so its values need no option.
    let given = |variable: &str, value: Option<String>| {
        value.filter(|value| std::env::var(variable).ok().as_deref() != Some(value.as_str()))
    };
    let options = [
        ("--connect", global.connect.clone()),
        ("--config", given("KVMB_CONFIG", path(&global.config))),
        ("--log-file", given("KVMB_LOG_FILE", path(&global.log.log_file))),
    ];
    options.into_iter().filter_map(|(flag, value)| Some(format!("{flag}={}", value?))).collect()
}

/// Returns the error for an address that other computers could reach.
pub(super) fn not_loopback(address: SocketAddr) -> CliError {
    explained(console::Error::NotLoopback { address })
}

/// Converts an error of the console, with a hint.
pub(super) fn explained(error: console::Error) -> CliError {
    let message = error.to_string();
    match error {
        console::Error::NotLoopback { .. } => {
            CliError::usage(message).hint("use 127.0.0.1 and, from another computer, ssh -L 8420:127.0.0.1:8420")
        }
        console::Error::Listen { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse => {
            CliError::new(Code::Busy, message).hint("use another port: kvmb ui --listen 127.0.0.1:0")
        }
        console::Error::Listen { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
            CliError::new(Code::Permission, message).hint("choose a folder or a port that this user may use")
        }
        console::Error::SocketInUse { .. } => CliError::new(Code::Busy, message).hint("end the other console first"),
        console::Error::Listen { .. } | console::Error::Runtime(_) => CliError::failed(message),
    }
}
