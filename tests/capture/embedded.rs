//! The embedded driver admits one process at a time: the second one waits.

// A test panics if a result is not what it expects.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kvmb::capture::Hypervisor;

#[test]
fn open_waits_for_a_root_locked_by_another_process() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("etc")).unwrap();
    let uri = format!("qemu:///embed?root={}", root.path().display());
    let mut other = Command::new("virsh")
        .args(["-c", &uri, "event", "--all", "--loop", "--timeout", "4"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pid_file = root.path().join("run/qemu/driver.pid");
    let deadline = Instant::now() + Duration::from_secs(10);
    // libvirt writes to the file after it has locked it.
    while fs::read_to_string(&pid_file).unwrap_or_default().is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    let begin = Instant::now();
    let hypervisor = Hypervisor::open(Some(&uri)).unwrap();
    assert!(begin.elapsed() > Duration::from_secs(2), "{:?}", begin.elapsed());
    assert!(hypervisor.is_local());
    // Opening it again returns the same connection.
    for _ in 0..50 {
        assert!(Hypervisor::open(Some(&uri)).unwrap().machines(&[]).unwrap().is_empty());
    }
    other.wait().unwrap();
}
