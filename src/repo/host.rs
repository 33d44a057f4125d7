//! The identity of this process, for locks, keys and snapshots.

/// Returns the host's name, as restic gets it from Go's `os.Hostname`.
pub(super) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Returns the real user and group ids.
pub(super) fn user_and_group() -> (u32, u32) {
    (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw())
}

/// Returns the user's name from the system's user database, else from `$USER`, else an empty string.
pub(super) fn user_name() -> String {
    let user = uzers::get_user_by_uid(user_and_group().0);
    let named = user.map(|user| user.name().to_string_lossy().into_owned());
    named.or_else(|| std::env::var("USER").ok()).unwrap_or_default()
}

/// Returns whether a process with this number is running on this host.
///
/// A zombie is not running: the first process of a container may collect its exit status late or never.
pub(super) fn process_exists(pid: i32) -> bool {
    let Some(pid) = rustix::process::Pid::from_raw(pid) else {
        return false;
    };
    // Missing permission to signal a process implies that it exists.
    let is_there = !matches!(rustix::process::test_kill_process(pid), Err(rustix::io::Errno::SRCH));
    is_there && !is_zombie(pid)
}

/// Reads `/proc/<pid>/stat`, where the state is the first field after the name in parentheses.
fn is_zombie(pid: rustix::process::Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, state)| state.trim_start().starts_with('Z'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn zombie_process_does_not_exist() {
        assert!(process_exists(std::process::id() as i32) && process_exists(1) && !process_exists(0));
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id() as i32;
        assert!(process_exists(pid));
        child.kill().unwrap();
        // The process has ended, but its exit status has not been collected.
        let id = rustix::process::WaitId::Pid(rustix::process::Pid::from_raw(pid).unwrap());
        rustix::process::waitid(id, rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT)
            .unwrap();
        assert!(!process_exists(pid));
        child.wait().unwrap();
        assert!(!process_exists(pid));
    }
}
