//! The socket of a served point, which is private from the moment it is created.

use super::super::{Error, Result};
use crate::capture::runtime::MAX_SOCKET_PATH_BYTES;
use rustix::fs::{AtFlags, CWD, Gid, Mode, Uid, chownat};
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// A listening socket. Dropping it removes the file.
#[derive(Debug)]
pub(crate) struct PrivateSocket {
    path: PathBuf,
    pub(super) listener: UnixListener,
}

impl PrivateSocket {
    /// Listens at a path, accessible only to its owner (mode 0600): this user, or the given user and group. An
    /// abandoned socket at the path is replaced; any other file is not.
    pub(crate) fn bind(path: &Path, owner: Option<(u32, u32)>) -> Result<PrivateSocket> {
        if path.as_os_str().len() > MAX_SOCKET_PATH_BYTES {
            return Err(crate::capture::Error::SocketPathTooLong { path: path.to_owned() }.into());
        }
        remove_abandoned(path)?;
        let failed = Error::io("listen on", path);
        // The umask ensures that nobody else can connect, even before the owner is changed.
        let before = rustix::process::umask(Mode::from_raw_mode(0o177));
        let bound = UnixListener::bind(path);
        rustix::process::umask(before);
        let socket = PrivateSocket { path: path.to_owned(), listener: bound.map_err(failed)? };
        if let Some((user, group)) = owner {
            let (user, group) = (Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
            chownat(CWD, path, user, group, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| Error::io("hand over", path)(error.into()))?;
        }
        Ok(socket)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The socket that accepts clients.
    pub(in crate::ops) fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for PrivateSocket {
    fn drop(&mut self) {
        // Nobody can connect any more, even if the file is left.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Whether this is a socket without a listener.
pub(super) fn is_abandoned(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
        && UnixStream::connect(path).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

fn remove_abandoned(path: &Path) -> Result<()> {
    if is_abandoned(path) {
        std::fs::remove_file(path).map_err(Error::io("remove", path))?;
    }
    Ok(())
}
