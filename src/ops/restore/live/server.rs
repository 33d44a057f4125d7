//! The server of the point that a machine runs on: a detached `kvmb serve` on a socket that only QEMU's user can open.

use super::state::{LiveFolder, LiveState, ServerAccess};
use crate::bounded::{self, Group};
use crate::capture::RuntimeDirs;
use crate::ops::guard;
use crate::ops::serve::registry::ServedState;
use crate::ops::{Error, Monitor, Result, Stop};
use crate::repo::Repository;
use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// The time limit for opening the repository.
const START_LIMIT: Duration = Duration::from_secs(600);

/// The time limit for removing the tags from the point in the repository.
const RELEASE_LIMIT: Duration = Duration::from_secs(120);

/// The time after which a server without clients exits.
const LEASE: &str = "7d";

/// Keeps the point served.
pub(super) struct PointServer<'a> {
    pub(super) folder: &'a LiveFolder,
    pub(super) runtime: &'a RuntimeDirs,
    pub(super) state: &'a LiveState,
    /// The repository, if this process has opened it.
    pub(super) repo: Option<&'a Repository>,
    pub(super) stop: &'a Stop,
}

impl PointServer<'_> {
    /// Starts the server unless it runs. Returns whether it was started.
    pub(super) fn ensure(&self) -> Result<bool> {
        if running(self.runtime, self.state)?.is_some() {
            return Ok(false);
        }
        let _alone = self.folder.lock_server(&self.state.uuid, &self.state.machine, self.stop)?;
        // Another process may have started the server, or ended the restore, while this one waited for the lock.
        if running(self.runtime, self.state)?.is_some() || self.folder.load(&self.state.uuid)?.is_none() {
            return Ok(false);
        }
        let socket = &self.state.socket;
        let folder = socket.parent().unwrap_or(Path::new("/"));
        // Every user may traverse the folder but not list it. The socket itself is private.
        match DirBuilder::new().mode(0o711).create(folder) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(Error::io("create", folder)(error)),
            _ => {}
        }
        let not_started = |message: String| Error::NotServed { point: self.state.point.clone(), message };
        let mut command = command("serve", &self.state.access, self.runtime).map_err(not_started)?;
        let unknown = || not_started("the user that QEMU runs as is not known".to_owned());
        let (user, group) = self.state.owner.ok_or_else(unknown)?;
        command.args(["--detach", "--lease", LEASE, "--owner", &format!("+{user}:+{group}"), "--socket"]).arg(socket);
        let key = self.repo.map(|repo| repo.handed_key().to_bytes());
        if key.is_some() {
            command.arg("--handed-key");
        }
        command.args(["--", &self.state.point]);
        let output = bounded::output_of(command, key, Group::Own, START_LIMIT, &self.stop.flag());
        self.stop.check()?;
        let output = output.map_err(|source| Error::NotStarted { program: "kvmb serve", source })?;
        failure_of(&output).map_or(Ok(true), |message| Err(not_started(message)))
    }
}

/// A command of kvmb that uses the repository of a live restore.
fn command(name: &str, access: &ServerAccess, runtime: &RuntimeDirs) -> std::result::Result<Command, String> {
    let mut command = plain_command(runtime).ok_or("its program is not known")?;
    command.args([name, "--json", "--quiet", "--repo", &access.repo]);
    for (flag, path) in [
        ("--password-file", &access.password_file),
        ("--ssh-password-file", &access.ssh_password_file),
        ("--cacert", &access.cacert),
        ("--tls-client-cert", &access.tls_client_cert),
        ("--config", &access.config),
    ] {
        if let Some(path) = path {
            command.arg(flag).arg(path);
        }
    }
    command.stderr(Stdio::piped());
    Ok(command)
}

/// Any other command of kvmb. `None` if the path of the program is not known.
pub(super) fn plain_command(runtime: &RuntimeDirs) -> Option<Command> {
    let mut command = Command::new(guard::program()?);
    command.env("KVMB_RUNTIME_DIR", runtime.state_folder()).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Some(command)
}

/// The error message of a failed command.
fn failure_of(output: &Output) -> Option<String> {
    let said = String::from_utf8_lossy(&output.stderr);
    let line = said.lines().next().unwrap_or_default();
    (!output.status.success()).then(|| line.trim_start_matches("kvmb: error: ").to_owned())
}

/// Removes the restore's tags from the point. An unreachable repository is only a warning, because all data was copied.
pub(super) fn release_point(runtime: &RuntimeDirs, state: &LiveState, monitor: &dyn Monitor) {
    let released = command("pin", &state.access, runtime).and_then(|mut command| {
        command.args(["--undo", "--restoring", &state.id]);
        let output = bounded::output(command, Group::Own, RELEASE_LIMIT, &bounded::ending());
        failure_of(&output.map_err(|error| error.to_string())?).map_or(Ok(()), Err)
    });
    if let Err(error) = released {
        let (point, repo) = (&state.point, &state.access.repo);
        monitor.warn(&format!(
            "point {point} in {repo} stays protected from pruning until 'kvmb pin --undo {point} -r {repo}': {error}"
        ));
    }
}

/// The server of a live restore, if it runs.
pub(super) fn running(runtime: &RuntimeDirs, state: &LiveState) -> Result<Option<ServedState>> {
    Ok(ServedState::list(runtime)?.into_iter().find(|served| served.socket == state.socket))
}

/// Ends the server, and removes its socket and folder.
pub(super) fn end(runtime: &RuntimeDirs, state: &LiveState) -> Result<()> {
    if let Some(served) = running(runtime, state)? {
        served.end(runtime)?;
    }
    let folder = state.socket.parent().unwrap_or(Path::new("/"));
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", folder)(error)),
        _ => Ok(()),
    }
}
