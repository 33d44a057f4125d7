//! Pins each test to one processor if KVM is available.
//!
//! With KVM, libvirt probes QEMU's capabilities again, which takes four seconds, whenever the processor that it runs on
//! differs from the cached one - and the virtual processors of one computer may differ. So a test and all of its child
//! processes stay on one processor, and libvirt's cache is kept separately for each. `make test` hides KVM, which no
//! test needs.

use std::fs::File;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Pins this thread and its child processes to a processor, unless that has already been done.
pub fn settle() {
    if !has_kvm() {
        return;
    }
    let allowed = allowed();
    // nextest numbers the tests that run concurrently; other runners start a thread for each test.
    static TESTS: AtomicUsize = AtomicUsize::new(0);
    let slot = std::env::var("NEXTEST_TEST_GLOBAL_SLOT").ok().and_then(|slot| slot.parse().ok());
    let slot: usize = slot.unwrap_or_else(|| TESTS.fetch_add(1, Ordering::Relaxed));
    let mut one = CpuSet::new();
    one.set(allowed[slot % allowed.len()]);
    sched_setaffinity(None, &one).expect("cannot choose a processor");
}

/// Returns the scope in which libvirt's cached capabilities are valid.
pub fn scope() -> String {
    match has_kvm() {
        true => allowed()[0].to_string(),
        false => "without-kvm".to_owned(),
    }
}

fn has_kvm() -> bool {
    File::options().read(true).write(true).open("/dev/kvm").is_ok()
}

fn allowed() -> Vec<usize> {
    let set = sched_getaffinity(None).expect("cannot ask for the processors");
    (0..CpuSet::MAX_CPU).filter(|processor| set.is_set(*processor)).collect()
}
