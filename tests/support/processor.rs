//! One processor for each test, where there is KVM.
//!
//! With KVM, libvirt asks QEMU again what it can do, which takes four seconds, whenever the processor that it runs on
//! is not the one that it remembers - and the virtual processors of one computer may differ. So a test and all that it
//! starts stay on one, and what libvirt remembers is kept for each processor apart. `make test` hides KVM, which no
//! test needs.

use std::fs::File;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Chooses a processor for this thread and whatever it starts; one that has been chosen stays.
pub fn settle() {
    if !has_kvm() {
        return;
    }
    let allowed = allowed();
    // The runner says which of the tests that run side by side this is; other runners give each test a thread.
    static TESTS: AtomicUsize = AtomicUsize::new(0);
    let slot = std::env::var("NEXTEST_TEST_GLOBAL_SLOT").ok().and_then(|slot| slot.parse().ok());
    let slot: usize = slot.unwrap_or_else(|| TESTS.fetch_add(1, Ordering::Relaxed));
    let mut one = CpuSet::new();
    one.set(allowed[slot % allowed.len()]);
    sched_setaffinity(None, &one).expect("cannot choose a processor");
}

/// A name for where libvirt's findings hold.
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
