//! Opens a link on the desktop, with `xdg-open`.

use crate::cli::terminal::secret::variable;
use std::process::{Command, Stdio};

/// Opens a link in the browser of the local desktop, if there is one.
pub(super) fn open(link: &str) {
    let has_desktop = ["DISPLAY", "WAYLAND_DISPLAY"].into_iter().any(|name| variable(name).is_some());
    let is_remote = ["SSH_CONNECTION", "SSH_CLIENT", "SSH_TTY"].into_iter().any(|name| variable(name).is_some());
    // In a remote session of root, the desktop and its browser belong to someone else.
    let is_root_from_afar = is_remote && rustix::process::geteuid().is_root();
    if !has_desktop || is_root_from_afar {
        return;
    }
    let mut command = Command::new("xdg-open");
    command.arg(link).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let started = command.spawn().and_then(|mut child| {
        // Wait for the child, so that it does not remain a zombie.
        std::thread::Builder::new().name("browser".into()).spawn(move || child.wait()).map(drop)
    });
    if let Err(error) = started {
        tracing::debug!("cannot open a browser: {error}");
    }
}
