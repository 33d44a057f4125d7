//! The folders of captures, with those of users other than root in parentheses.
//!
//! | folder | mode | content |
//! | --- | --- | --- |
//! | `/run/kvmb` (`$XDG_RUNTIME_DIR/kvmb`) | 0700 | per capture: state, lock, copied files; per machine: a lock, `own_changes` |
//! | `/run/kvmb-nbd` (the same name with `-nbd`) | 0711 | per capture, 0700, owned by QEMU's user: sockets |
//! | `/var/lib/kvmb/scratch` (`$XDG_DATA_HOME/kvmb/scratch`) | 0711 | per capture, the same: scratch files |
//!
//! A live restore has a folder next to those of captures, named `live-` and a part of its machine's UUID, with the
//! socket of the served point.
//!
//! `$KVMB_RUNTIME_DIR` sets another state folder. A folder that another user owns or can write to, or that is a
//! symbolic link, is refused, because the folders contain definitions with secrets.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::capture::error::{Error, Result};
use crate::capture::limits::CallLimits;

/// The maximum length of a Unix socket's path, without the terminating zero byte.
pub(crate) const MAX_SOCKET_PATH_BYTES: usize = 107;

/// The folders of captures, after they were checked.
#[derive(Debug, Clone)]
pub struct RuntimeDirs {
    state: PathBuf,
    sockets: PathBuf,
    scratch: PathBuf,
    limits: CallLimits,
}

impl RuntimeDirs {
    /// The default folders of this user. Missing ones are created.
    pub(crate) fn open() -> Result<RuntimeDirs> {
        let state = match std::env::var_os("KVMB_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
            Some(dir) => PathBuf::from(dir),
            None => default_state_folder(),
        };
        RuntimeDirs::open_at(&state)
    }

    /// The state folder at this path, with the socket folder next to it.
    pub fn open_at(state: &Path) -> Result<RuntimeDirs> {
        let state = std::path::absolute(state).map_err(Error::io("find", state))?;
        let mut sockets = state.clone().into_os_string();
        sockets.push("-nbd");
        let runtime = RuntimeDirs {
            state,
            sockets: PathBuf::from(sockets),
            scratch: default_scratch_folder(),
            limits: CallLimits::default(),
        };
        make_private_folder(&runtime.state, 0o700)?;
        make_private_folder(&runtime.sockets, 0o711)?;
        Ok(runtime)
    }

    /// The folder of the captures' states.
    pub fn state_folder(&self) -> &Path {
        &self.state
    }

    /// The folder of the sockets.
    pub fn socket_folder(&self) -> &Path {
        &self.sockets
    }

    /// The socket of the point that a machine runs on during a live restore.
    pub(crate) fn live_restore_socket(&self, uuid: &str) -> PathBuf {
        let part: String = uuid.chars().filter(char::is_ascii_alphanumeric).take(12).collect();
        self.sockets.join(format!("{LIVE_PREFIX}{part}")).join(SERVED_SOCKET)
    }

    /// The sockets of all live restores, as a pattern for the profile of a security module.
    pub(crate) fn live_restore_sockets(&self) -> String {
        format!("{}/{LIVE_PREFIX}*/{SERVED_SOCKET}", self.sockets.display())
    }

    /// The default folder of scratch files.
    pub fn scratch_folder(&self) -> &Path {
        &self.scratch
    }

    /// Sets another folder for scratch files.
    pub fn with_scratch_folder(mut self, scratch: PathBuf) -> RuntimeDirs {
        self.scratch = scratch;
        self
    }

    /// Sets other time limits.
    pub(crate) fn with_limits(mut self, limits: CallLimits) -> RuntimeDirs {
        self.limits = limits;
        self
    }

    /// The time limits for connections that a capture opens itself.
    pub(crate) fn limits(&self) -> &CallLimits {
        &self.limits
    }

    /// The lock file for opening and closing captures of a machine.
    pub(super) fn machine_lock(&self, uuid: &str) -> PathBuf {
        self.of_machine(uuid, "lock")
    }

    /// The file with the changes that kvmb made to a machine's backing files.
    pub(super) fn own_changes(&self, uuid: &str) -> PathBuf {
        self.of_machine(uuid, "changes")
    }

    fn of_machine(&self, uuid: &str, extension: &str) -> PathBuf {
        let name: String =
            uuid.chars().filter(|character| character.is_ascii_alphanumeric() || *character == '-').collect();
        self.state.join(format!("machine-{name}.{extension}"))
    }
}

/// The prefix of the folders of live restores.
const LIVE_PREFIX: &str = "live-";

/// The name of a served point's socket in its folder.
pub(crate) const SERVED_SOCKET: &str = "nbd";

/// Whether a socket belongs to a live restore.
pub(crate) fn is_of_live_restore(socket: &Path) -> bool {
    let folder = socket.parent().and_then(Path::file_name).and_then(|name| name.to_str());
    socket.file_name().is_some_and(|name| name == SERVED_SOCKET)
        && folder.is_some_and(|name| name.starts_with(LIVE_PREFIX))
}

/// The free space, for users other than root, at a folder that exists or will be created.
pub(crate) fn free_bytes(folder: &Path) -> Result<u64> {
    let existing = folder.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(existing)
        .map_err(|error| Error::io("measure the free space in", existing)(error.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// The NBD URI of an export on a Unix socket.
pub(crate) fn nbd_uri(socket: &Path, export: &str) -> String {
    /// The characters that need no escaping in the path and query of a URI.
    const KEEP: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b'~');
    format!(
        "nbd+unix:///{}?socket={}",
        percent_encode(export.as_bytes(), KEEP),
        percent_encode(socket.as_os_str().as_bytes(), KEEP)
    )
}

pub(super) fn check_socket_path(path: &Path) -> Result<()> {
    if path.as_os_str().len() > MAX_SOCKET_PATH_BYTES {
        return Err(Error::SocketPathTooLong { path: path.to_owned() });
    }
    Ok(())
}

/// Creates a folder that only QEMU's user (and root) can access. Its parents are created so that everybody can traverse
/// them, and every folder on the path must let that user pass.
pub(crate) fn make_qemu_folder(path: &Path, owner: (u32, u32)) -> Result<()> {
    make_daemon_folder(path, owner)?;
    check_reachable(path, owner)
}

/// The same for a process of that user that may traverse every folder.
pub(super) fn make_daemon_folder(path: &Path, owner: (u32, u32)) -> Result<()> {
    if let Some(parent) = path.parent() {
        make_passable_folders(parent)?;
    }
    match fs::create_dir(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(Error::io("create", path)(error)),
        _ => {}
    }
    // What exists at the path is checked and changed through one descriptor.
    let folder = open_folder(path)?;
    if ![owner.0, our_uid()].contains(&folder.metadata().map_err(Error::io("access", path))?.uid()) {
        return Err(unsafe_folder(path, "it exists and belongs to somebody else"));
    }
    set_mode_of(&folder, path, 0o700)?;
    if owner.0 != our_uid() {
        fchown(&folder, Some(owner.0), Some(owner.1)).map_err(Error::io("change the owner of", path))?;
    }
    Ok(())
}

/// Checks whether a user can traverse every folder on the path.
pub(super) fn check_reachable(path: &Path, owner: (u32, u32)) -> Result<()> {
    if owner.0 == 0 {
        return Ok(());
    }
    let ancestors: Vec<&Path> = path.ancestors().collect();
    for folder in ancestors.into_iter().rev() {
        let found = fs::metadata(folder).map_err(Error::io("access", folder))?;
        let needed = if found.uid() == owner.0 {
            0o100
        } else if found.gid() == owner.1 {
            0o010
        } else {
            0o001
        };
        if found.mode() & needed == 0 {
            return Err(Error::Unreachable { path: folder.to_owned(), uid: owner.0 });
        }
    }
    Ok(())
}

/// Sets the mode of a folder. Refuses a link.
pub(super) fn set_mode(path: &Path, mode: u32) -> Result<()> {
    set_mode_of(&open_folder(path)?, path, mode)
}

fn set_mode_of(folder: &File, path: &Path, mode: u32) -> Result<()> {
    folder.set_permissions(fs::Permissions::from_mode(mode)).map_err(Error::io("set the mode of", path))
}

/// Opens a folder. Refuses a link, and anything that is not a folder.
fn open_folder(path: &Path) -> Result<File> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let opened = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path);
    opened.map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::LOOP) => unsafe_folder(path, "it is a symbolic link"),
        // The kernel's error for a link if a folder is required.
        Some(Errno::NOTDIR) if path.is_symlink() => unsafe_folder(path, "it is a symbolic link"),
        Some(Errno::NOTDIR) => unsafe_folder(path, "it is not a folder"),
        _ => Error::io("open", path)(error),
    })
}

fn unsafe_folder(path: &Path, reason: &str) -> Error {
    Error::UnsafeFolder { path: path.to_owned(), reason: reason.to_owned() }
}

pub(super) fn our_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The user and group of this process.
pub(super) fn our_owner() -> (u32, u32) {
    (our_uid(), rustix::process::getegid().as_raw())
}

fn default_state_folder() -> PathBuf {
    if our_uid() == 0 {
        return PathBuf::from("/run/kvmb");
    }
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir).join("kvmb"),
        None => std::env::temp_dir().join(format!("kvmb-{}", our_uid())),
    }
}

fn default_scratch_folder() -> PathBuf {
    if our_uid() == 0 {
        return PathBuf::from("/var/lib/kvmb/scratch");
    }
    let data = std::env::var_os("XDG_DATA_HOME")
        .filter(|dir| !dir.is_empty())
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".local/share")))
        .unwrap_or_else(std::env::temp_dir);
    data.join("kvmb/scratch")
}

fn make_private_folder(path: &Path, mode: u32) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    match fs::create_dir(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(Error::io("create", path)(error)),
        _ => {}
    }
    let folder = open_folder(path)?;
    if folder.metadata().map_err(Error::io("access", path))?.uid() != our_uid() {
        return Err(unsafe_folder(path, "it belongs to another user"));
    }
    set_mode_of(&folder, path, mode)
}

/// Creates missing folders that everybody can traverse but not list.
fn make_passable_folders(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_passable_folders(parent)?;
    }
    match fs::create_dir(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(Error::io("create", path)(error)),
        Ok(()) => set_mode(path, 0o711),
    }
}
