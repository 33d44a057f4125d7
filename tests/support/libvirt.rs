//! A test's embedded libvirt, driven by `virsh`.
//!
//! `qemu:///embed?root=DIR` runs libvirt's QEMU driver inside the process that opens it; only one process at a time can
//! open a root. The machines keep running when that process ends, and the next process finds them again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{Call, Env, Output, parts, processor};

/// Settings of the embedded driver: no virtlogd, and nothing that needs more privileges than a plain container has.
/// They also prevent libvirt from querying each CPU feature of a starting QEMU: 600 queries, which take most of a
/// machine's start time.
const QEMU_CONF: &str = r#"stdio_handler = "file"
security_driver = "none"
namespaces = []
cgroup_controllers = []
max_core = 0
capability_filters = ["cpu-unavailable-features"]
"#;

/// Initialises a new root with our settings and the cached capabilities.
pub(super) fn prepare_root(root: &Path) {
    fs::create_dir_all(root.join("etc")).expect("cannot make a folder");
    fs::write(root.join("etc/qemu.conf"), QEMU_CONF).expect("cannot write");
    bring_capabilities(root);
}

/// Copies the cached capabilities of this host's QEMUs into a new root. Probing them takes libvirt 4 seconds.
pub fn bring_capabilities(root: &Path) {
    copy_files(&probed(), &capabilities(root));
}

/// Saves the capabilities that libvirt has probed for the next test. libvirt probes every installed QEMU when a client
/// asks for the host's capabilities. A QEMU in a test's private folder is ignored.
pub fn keep_capabilities(root: &Path) {
    copy_files(&capabilities(root), &probed());
}

fn capabilities(root: &Path) -> PathBuf {
    root.join("cache/qemu/capabilities")
}

fn probed() -> PathBuf {
    parts::cache_dir().join(format!("qemu-capabilities-{}", processor::scope()))
}

/// Whether a virsh command creates a machine, after which libvirt knows QEMU's capabilities.
fn is_making(command: &str) -> bool {
    matches!(command.split(' ').next(), Some("define" | "create"))
}

/// Whether virsh has succeeded and was then crashed by the embedded driver, whose threads are still running at exit.
/// Earlier failures are reported on standard error.
fn crashed_at_its_exit(output: &Output) -> bool {
    let by_signal = [Signal::SEGV, Signal::ABORT].iter().any(|signal| output.ended_by(*signal));
    by_signal && !output.stderr().contains("error:") && (output.stdout.is_empty() || output.stdout.ends_with(b"\n"))
}

/// Copies libvirt's files that differ or are missing, atomically.
fn copy_files(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).into_iter().flatten().flatten() {
        let Ok(contents) = fs::read(entry.path()) else {
            continue;
        };
        // A file that libvirt has not completed has another name.
        let is_whole = entry.path().extension().is_some_and(|extension| extension == "xml");
        let begin = String::from_utf8_lossy(&contents[..contents.len().min(200)]);
        if !is_whole || !begin.contains("<emulator>/usr/") {
            continue;
        }
        let target = to.join(entry.file_name());
        if fs::read(&target).is_ok_and(|old| old == contents) {
            continue;
        }
        fs::create_dir_all(to).expect("cannot make a folder");
        let mut file = tempfile::NamedTempFile::new_in(to).expect("cannot write");
        std::io::Write::write_all(&mut file, &contents).expect("cannot write");
        file.persist(&target).expect("cannot rename");
    }
}

impl Env {
    /// Runs virsh, and waits while another process has the root open.
    pub fn try_virsh(&self, args: &[&str]) -> Output {
        let _only_one = self.libvirt.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let end = Instant::now() + Duration::from_secs(40);
        loop {
            // Line-buffered, so that the output is written before the exit.
            let mut command = Command::new("stdbuf");
            self.apply_to(&mut command);
            let output = Call::new(command).args(["-oL", "virsh", "-q"]).args(args).run();
            let output = if crashed_at_its_exit(&output) { output.forgiven() } else { output };
            let busy = output.code() != 0 && output.stderr().contains("pid file");
            if busy && Instant::now() < end {
                thread::sleep(Duration::from_millis(30));
                continue;
            }
            if output.code() == 0 && args.first().is_some_and(|first| is_making(first)) {
                keep_capabilities(&self.libvirt_root());
            }
            return output;
        }
    }

    /// Runs virsh, which must succeed.
    #[track_caller]
    pub fn virsh(&self, args: &[&str]) -> String {
        let output = self.try_virsh(args).assert_ok();
        output.stdout().trim_end().to_owned()
    }
}
