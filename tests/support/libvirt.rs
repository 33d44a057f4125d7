//! The embedded libvirt of a test, driven by `virsh`.
//!
//! `qemu:///embed?root=DIR` runs libvirt's QEMU driver inside the process that opens it, one process at a time for a
//! root. The machines live on when it ends, and the next process finds them again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{Call, Env, Output, parts, processor};

/// Settings of the embedded driver: no virtlogd, and nothing that needs more than a plain container. It does not ask a
/// starting QEMU for each feature of its processor either: 600 questions, which are most of a machine's start.
const QEMU_CONF: &str = r#"stdio_handler = "file"
security_driver = "none"
namespaces = []
cgroup_controllers = []
max_core = 0
capability_filters = ["cpu-unavailable-features"]
"#;

/// Fills a new root with our settings and with what libvirt has found out before.
pub(super) fn prepare_root(root: &Path) {
    fs::create_dir_all(root.join("etc")).expect("cannot make a folder");
    fs::write(root.join("etc/qemu.conf"), QEMU_CONF).expect("cannot write");
    bring_capabilities(root);
}

/// Fills a new root with what libvirt has found out about this host's QEMUs before (which takes it 4 seconds).
pub fn bring_capabilities(root: &Path) {
    copy_files(&probed(), &capabilities(root));
}

/// Remembers what libvirt has found out for the next test: of each QEMU that is installed, as libvirt asks all of them
/// when somebody wants to know what this host can do. A QEMU in a test's own folder is nobody else's.
pub fn keep_capabilities(root: &Path) {
    copy_files(&capabilities(root), &probed());
}

fn capabilities(root: &Path) -> PathBuf {
    root.join("cache/qemu/capabilities")
}

fn probed() -> PathBuf {
    parts::cache_dir().join(format!("qemu-capabilities-{}", processor::scope()))
}

/// Whether a command of virsh's makes a machine: then libvirt knows what QEMU can do.
fn is_making(command: &str) -> bool {
    matches!(command.split(' ').next(), Some("define" | "create"))
}

/// Whether virsh has done its work and said so, and was then crashed by the embedded driver, whose threads its exit
/// does not wait for. What fails before that says so on standard error.
fn crashed_at_its_exit(output: &Output) -> bool {
    let by_signal = [Signal::SEGV, Signal::ABORT].iter().any(|signal| output.ended_by(*signal));
    by_signal && !output.stderr().contains("error:") && (output.stdout.is_empty() || output.stdout.ends_with(b"\n"))
}

/// Copies libvirt's files that differ or are missing; each appears whole.
fn copy_files(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).into_iter().flatten().flatten() {
        let Ok(contents) = fs::read(entry.path()) else {
            continue;
        };
        // One that libvirt did not write to its end has another name.
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
    /// Runs virsh, waiting while another process has the root open.
    pub fn try_virsh(&self, args: &[&str]) -> Output {
        let _only_one = self.libvirt.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let end = Instant::now() + Duration::from_secs(40);
        loop {
            // Line by line: what was said is out before the exit.
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

    /// Runs virsh; it must succeed.
    #[track_caller]
    pub fn virsh(&self, args: &[&str]) -> String {
        let output = self.try_virsh(args).assert_ok();
        output.stdout().trim_end().to_owned()
    }
}
