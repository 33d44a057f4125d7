//! Runs programs at another time, with libfaketime.

use std::fs;
use std::path::Path;

/// Returns the library to preload.
pub fn library() -> String {
    let folders = ["/usr/lib/x86_64-linux-gnu/faketime", "/usr/lib/aarch64-linux-gnu/faketime", "/usr/lib/faketime"];
    let mut libraries = folders.iter().map(|folder| format!("{folder}/libfaketime.so.1"));
    libraries.find(|file| Path::new(file).exists()).expect("the tests need faketime; as root run: .ci/install-parts")
}

/// Removes the shared memory of processes that were killed. Otherwise a later process with the same PID and another
/// user could not start.
pub fn clear() {
    for entry in fs::read_dir("/dev/shm").expect("/dev/shm").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix("sem.faketime_sem_").or(name.strip_prefix("faketime_shm_"));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}
