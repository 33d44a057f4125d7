//! The identity of this process, for locks, keys and snapshots.

/// The host's name, as `os.Hostname` of Go gives it to restic.
pub(super) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Real user and group.
pub(super) fn user_and_group() -> (u32, u32) {
    (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw())
}

/// The user's name by the system's databases, else out of the environment, else empty.
pub(super) fn user_name() -> String {
    let user = uzers::get_user_by_uid(user_and_group().0);
    let named = user.map(|user| user.name().to_string_lossy().into_owned());
    named.or_else(|| std::env::var("USER").ok()).unwrap_or_default()
}

/// Whether a process with this number lives on this host.
pub(super) fn process_exists(pid: i32) -> bool {
    let Some(pid) = rustix::process::Pid::from_raw(pid) else {
        return false;
    };
    // Not being allowed to signal it proves that it is there.
    !matches!(rustix::process::test_kill_process(pid), Err(rustix::io::Errno::SRCH))
}
