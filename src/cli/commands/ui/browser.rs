//! Opens the link on a desktop, as `xdg-open` does.

use crate::cli::terminal::secret::variable;
use std::process::{Command, Stdio};

/// Opens a link in the browser of the desktop that kvmb runs on, if there is one.
pub(super) fn open(link: &str) {
    let has_desktop = ["DISPLAY", "WAYLAND_DISPLAY"].into_iter().any(|name| variable(name).is_some());
    let is_remote = ["SSH_CONNECTION", "SSH_CLIENT", "SSH_TTY"].into_iter().any(|name| variable(name).is_some());
    // The desktop is somebody else's, and so would be the browser.
    let is_root_from_afar = is_remote && rustix::process::geteuid().is_root();
    if !has_desktop || is_root_from_afar {
        return;
    }
    let mut command = Command::new("xdg-open");
    command.arg(link).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let started = command.spawn().and_then(|mut child| {
        // Waited for, so that it does not stay a zombie.
        std::thread::Builder::new().name("browser".into()).spawn(move || child.wait()).map(drop)
    });
    if let Err(error) = started {
        tracing::debug!("cannot open a browser: {error}");
    }
}
