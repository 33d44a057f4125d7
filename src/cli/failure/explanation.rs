//! The explanation of a failure: its code for programs, and its hint for people.

use std::borrow::Cow;
use std::io;

use crate::cli::failure::code::Code;

pub(crate) type Explanation = (Code, Option<Cow<'static, str>>);

/// Returns a hint.
pub(super) fn hint(text: impl Into<Cow<'static, str>>) -> Option<Cow<'static, str>> {
    Some(text.into())
}

/// Quotes a text for a shell; None if that is impossible.
pub(super) fn quoted(text: &str) -> Option<String> {
    shlex::try_quote(text).ok().map(Cow::into_owned)
}

/// Explains errors of system calls.
pub(super) fn of_io(error: &io::Error) -> Explanation {
    use io::ErrorKind;
    match error.kind() {
        ErrorKind::NotFound => (Code::NotFound, hint("check the path, and that its file system is mounted")),
        // EPERM for root: this is not about missing permissions.
        ErrorKind::PermissionDenied
            if error.raw_os_error() == Some(rustix::io::Errno::PERM.raw_os_error())
                && rustix::process::geteuid().is_root() =>
        {
            (
                Code::Permission,
                hint("check whether the file is immutable: 'lsattr FILE' shows it, 'chattr -i FILE' changes it"),
            )
        }
        ErrorKind::PermissionDenied => (Code::Permission, hint("run kvmb as root, or give your user access")),
        ErrorKind::ReadOnlyFilesystem => (Code::Permission, hint("the file system is mounted read-only")),
        ErrorKind::ResourceBusy => {
            (Code::Failed, hint("unmount it, or end what uses it: 'lsblk' and 'fuser -v PATH' show it"))
        }
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            (Code::NoSpace, hint("free some space and try again; no partial data was kept"))
        }
        ErrorKind::FileTooLarge => {
            (Code::Failed, hint("check 'ulimit -f', and whether the file system can hold files of this size"))
        }
        // fork() and similar; all other operations that would block are waited for.
        ErrorKind::WouldBlock => no_thread(),
        _ if error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) => {
            (Code::Failed, hint("raise the limit of open files: 'LimitNOFILE=' of the systemd unit, or 'ulimit -n'"))
        }
        // There are many other kinds, and more are added.
        _ => (Code::Failed, None),
    }
}

/// Explains that a thread could not be started.
pub(super) fn no_thread() -> Explanation {
    (
        Code::Failed,
        hint(
            "raise the limit of processes and threads: 'TasksMax=' of the systemd unit, 'ulimit -u', or that of the \
             container",
        ),
    )
}
