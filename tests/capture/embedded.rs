//! The embedded driver admits one process at a time: the second one waits.

use std::fs;
use std::time::{Duration, Instant};

use kvmb::capture::Hypervisor;

use crate::lab::{Lab, uri};
use crate::support::{Env, wait_until};

#[test]
fn open_waits_for_a_root_locked_by_another_process() {
    let env = Env::new("embedded");
    let other = env.sh("exec virsh event --all --loop --timeout 4").spawn();
    // libvirt writes to the file after it has locked it.
    let pid_file = env.libvirt_root().join("run/qemu/driver.pid");
    wait_until("the root is locked", Duration::from_secs(60), || {
        fs::read_to_string(&pid_file).is_ok_and(|pid| pid.trim() == other.pid().to_string())
    });
    let begin = Instant::now();
    env.kvmb(["vms"]).run().assert_ok();
    assert!(begin.elapsed() > Duration::from_secs(2), "{:?}", begin.elapsed());
    other.wait();
}

#[test]
fn root_that_is_open_is_opened_again_by_the_same_process() {
    let _open = Lab::new("opened again");
    for _ in 0..50 {
        let again = Hypervisor::open(Some(&uri())).unwrap();
        assert!(again.is_local());
        again.machines(&[]).unwrap();
    }
}
