//! A bad connection only costs time: interrupted operations are repeated, and take effect once.

// A test panics if a result is not what it expects.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::repo::{Home, PASSWORD, disk, read_disk, write_disk};
use kvmb::rate_limiter::RateLimiter;
use kvmb::repo::{Password, Repository};
use kvmb::storage::testing::{FaultEffect, FaultStorage, InjectedFault, MemoryStorage, Operation, conformance};
use kvmb::storage::{Error, FileKind, LimitStorage, LocalStorage, RetryPolicy, RetryStorage, Storage};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const NAME: &str = "aa0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd";

/// Short enough for a test, long enough for a busy host.
const POLICY: RetryPolicy = RetryPolicy {
    known: Duration::from_secs(20),
    unknown: Duration::from_secs(20),
    shortest_pause: Duration::from_millis(1),
    longest_pause: Duration::from_millis(10),
};

/// Gives up soon.
const HASTE: RetryPolicy =
    RetryPolicy { known: Duration::from_millis(400), unknown: Duration::from_millis(100), ..POLICY };

fn faulty() -> Arc<FaultStorage> {
    Arc::new(FaultStorage::new(Arc::new(MemoryStorage::new())))
}

fn patient(inner: &Arc<FaultStorage>, policy: RetryPolicy) -> RetryStorage {
    RetryStorage::new(Arc::clone(inner) as Arc<dyn Storage>, policy, Arc::default())
}

fn rate_limit(bytes_per_second: u32) -> Arc<RateLimiter> {
    Arc::new(RateLimiter::new(NonZeroU32::new(bytes_per_second).unwrap(), Arc::default()))
}

/// All calls except removals: if one of those was cut off, it is unknown whether the file was already missing.
const TELLING: [Operation; 9] = [
    Operation::CreateLayout,
    Operation::List,
    Operation::Size,
    Operation::Read,
    Operation::ReadRange,
    Operation::Write,
    Operation::Create,
    Operation::SyncFolder,
    Operation::FreeBytes,
];

/// Cuts these calls off at random, before or after they take effect.
fn cut_at_random(storage: &FaultStorage, operations: &[Operation], seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    for &operation in operations {
        for _ in 0..120 {
            let effect = if random.random() { FaultEffect::Cut } else { FaultEffect::CutAfter };
            storage.add(InjectedFault::every(operation, effect).nth(random.random_range(1..600)));
        }
    }
}

#[test]
fn create_with_a_lost_reply_fails_only_if_another_file_exists() {
    for (first, expected) in [(&b"mine"[..], true), (b"yours", false)] {
        let inner = faulty();
        let storage = patient(&inner, POLICY);
        inner.add(InjectedFault::every(Operation::Create, FaultEffect::CutAfter).nth(1));
        if !expected {
            inner.write(FileKind::Config, "", first).unwrap();
        }
        let created = storage.create(FileKind::Config, "", b"mine");
        assert_eq!(created.is_ok(), expected, "{created:?}");
        assert!(expected || matches!(created, Err(Error::Exists { .. })), "{created:?}");
        assert_eq!(inner.read(FileKind::Config, "").unwrap(), first);
    }
}

#[test]
fn retry_storage_conforms() {
    conformance(&patient(&faulty(), POLICY));
}

#[test]
fn retry_storage_conforms_over_a_randomly_cut_connection() {
    for seed in 0..8 {
        let storage = faulty();
        cut_at_random(&storage, &TELLING, seed);
        conformance(&patient(&storage, POLICY));
    }
}

#[test]
fn limit_storage_conforms() {
    conformance(&LimitStorage::new(Arc::new(MemoryStorage::new()), rate_limit(1 << 30)));
    let folder = tempfile::tempdir().unwrap();
    conformance(&LimitStorage::new(Arc::new(LocalStorage::new(folder.path().join("repo"))), rate_limit(1 << 30)));
}

#[test]
fn upload_limit_slows_writes_but_not_reads() {
    let folder = tempfile::tempdir().unwrap();
    let local = Arc::new(LocalStorage::new(folder.path().join("repo")));
    let storage = LimitStorage::new(Arc::<LocalStorage>::clone(&local), rate_limit(4 << 20));
    storage.create_layout().unwrap();
    let began = Instant::now();
    storage.write(FileKind::Pack, NAME, &vec![7; 3 << 20]).unwrap();
    // 3 MiB at 4 MiB/s, minus the initial burst.
    assert!(began.elapsed() > Duration::from_millis(550), "{:?}", began.elapsed());
    // Under this limit it would take a month.
    let slow = LimitStorage::new(local, rate_limit(1));
    assert_eq!(slow.read(FileKind::Pack, NAME).unwrap().len(), 3 << 20);
}

#[test]
fn write_cut_after_completion_is_not_sent_again() {
    let inner = faulty();
    inner.add(InjectedFault::every(Operation::Write, FaultEffect::CutAfter).nth(1));
    let storage = patient(&inner, POLICY);
    storage.write(FileKind::Pack, NAME, b"whole").unwrap();
    assert_eq!(inner.written().len(), 1, "{:?}", inner.calls());
    assert_eq!(storage.read(FileKind::Pack, NAME).unwrap(), b"whole");
    // The config's name is not derived from its content, so an equal length does not mean equal content.
    storage.write(FileKind::Config, "", b"former").unwrap();
    inner.add(InjectedFault::every(Operation::Write, FaultEffect::Cut).on(FileKind::Config).nth(1));
    storage.write(FileKind::Config, "", b"latter").unwrap();
    assert_eq!(storage.read(FileKind::Config, "").unwrap(), b"latter");
}

#[test]
fn remove_cut_after_completion_succeeds() {
    let inner = faulty();
    let storage = patient(&inner, POLICY);
    storage.write(FileKind::Lock, NAME, b"x").unwrap();
    inner.add(InjectedFault::every(Operation::Remove, FaultEffect::CutAfter).nth(1));
    storage.remove(FileKind::Lock, NAME).unwrap();
    assert!(storage.remove(FileKind::Lock, NAME).unwrap_err().is_not_found(), "but a second remove is an error");
}

#[test]
fn retried_write_or_remove_syncs_the_folder() {
    // It is unknown whether the interrupted attempt has synced the folder.
    let since = |inner: &FaultStorage, at: usize| -> Vec<Operation> {
        inner.calls()[at..].iter().map(|call| call.operation).collect()
    };
    use Operation::{Remove, Size, SyncFolder, Write};
    let inner = faulty();
    let storage = patient(&inner, POLICY);
    for (effect, expected) in [
        (FaultEffect::CutAfter, vec![Write, Size, SyncFolder]),
        (FaultEffect::Cut, vec![Write, Size, Write, SyncFolder]),
    ] {
        for (number, kind) in [FileKind::Pack, FileKind::Snapshot].into_iter().enumerate() {
            inner.add(InjectedFault::every(Write, effect).nth(1));
            let before = inner.calls().len();
            storage.write(kind, &format!("{number}{effect:?}{NAME}"), b"whole").unwrap();
            assert_eq!(since(&inner, before), expected, "{kind}");
        }
    }
    inner.add(InjectedFault::every(Write, FaultEffect::CutAfter).nth(1));
    let before = inner.calls().len();
    storage.write(FileKind::Config, "", b"config").unwrap();
    assert_eq!(since(&inner, before), [Write, Write, SyncFolder]);
    // The sync may be interrupted too; without an interruption, no extra sync is needed.
    inner.add(InjectedFault::every(Write, FaultEffect::CutAfter).nth(1));
    inner.add(InjectedFault::every(SyncFolder, FaultEffect::Cut).nth(1));
    let before = inner.calls().len();
    storage.write(FileKind::Lock, NAME, b"lock").unwrap();
    assert_eq!(since(&inner, before), [Write, Size, SyncFolder, Size, SyncFolder]);
    inner.add(InjectedFault::every(Remove, FaultEffect::CutAfter).nth(1));
    let before = inner.calls().len();
    storage.remove(FileKind::Lock, NAME).unwrap();
    assert_eq!(since(&inner, before), [Remove, Remove, SyncFolder]);
    let before = inner.calls().len();
    storage.write(FileKind::Lock, NAME, b"lock").unwrap();
    storage.remove(FileKind::Lock, NAME).unwrap();
    assert_eq!(since(&inner, before), [Write, Remove]);
}

#[test]
fn permanent_errors_are_not_retried() {
    let inner = faulty();
    let storage = patient(&inner, POLICY);
    for effect in [FaultEffect::Fail, FaultEffect::NoSpace] {
        inner.heal();
        inner.add(InjectedFault::every(Operation::Write, effect));
        let before = inner.calls().len();
        storage.write(FileKind::Pack, NAME, b"x").unwrap_err();
        assert_eq!(inner.calls().len(), before + 1);
    }
    assert!(storage.read(FileKind::Pack, "nothing").unwrap_err().is_not_found());
    assert_eq!(inner.calls().iter().filter(|call| call.operation == Operation::Read).count(), 1);
}

#[test]
fn retries_end_sooner_with_an_unresponsive_server() {
    let inner = faulty();
    let storage = patient(&inner, HASTE);
    let give_up = || {
        let began = Instant::now();
        let error = storage.size(FileKind::Pack, NAME).unwrap_err();
        assert!(matches!(error, Error::GaveUp { .. }), "{error:?}");
        began.elapsed()
    };
    inner.add(InjectedFault::every(Operation::Size, FaultEffect::Cut));
    assert!(give_up() >= HASTE.unknown);
    inner.heal();
    assert!(storage.size(FileKind::Pack, NAME).unwrap_err().is_not_found(), "an answer");
    inner.add(InjectedFault::every(Operation::Size, FaultEffect::Cut));
    assert!(give_up() >= HASTE.known);
    let began = inner.calls().len();
    let short = give_up();
    let tries = inner.calls().len() - began;
    assert!(short >= HASTE.unknown && tries > 1, "{tries} tries in {short:?}");
    // A strict upper bound would fail on a busy host: far fewer pauses fit in.
    assert!(short < HASTE.known + HASTE.unknown * 20, "{short:?}");
}

#[test]
fn stop_flag_ends_a_retry_pause() {
    let inner = faulty();
    inner.add(InjectedFault::every(Operation::List, FaultEffect::Cut));
    let stop = Arc::<AtomicBool>::default();
    let slow =
        RetryPolicy { shortest_pause: Duration::from_secs(3600), longest_pause: Duration::from_secs(3600), ..POLICY };
    let storage = RetryStorage::new(inner, slow, Arc::clone(&stop));
    let began = Instant::now();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| storage.list(FileKind::Pack));
        thread::sleep(Duration::from_millis(100));
        stop.store(true, Ordering::Relaxed);
        assert!(matches!(waiting.join().unwrap(), Err(Error::Interrupted)));
    });
    assert!(began.elapsed() < Duration::from_secs(600), "{:?}", began.elapsed());
}

#[test]
fn repository_over_a_randomly_cut_connection_is_whole() {
    let home = Home::new();
    let repo = home.create();
    drop(repo);
    let faulty = Arc::new(FaultStorage::new(home.storage()));
    cut_at_random(&faulty, &TELLING, 77);
    cut_at_random(&faulty, &[Operation::Remove], 78);
    let storage = RetryStorage::new(Arc::clone(&faulty) as Arc<dyn Storage>, POLICY, Arc::default());
    let repo = Repository::open(Arc::new(storage), &Password::new(PASSWORD.to_owned())).unwrap();
    let images: Vec<_> = (1..4).map(|seed| disk(6 << 20, seed)).collect();
    let points: Vec<_> = images.iter().map(|image| write_disk(&repo, "vm1", image)).collect();
    for (point, image) in points.iter().zip(&images) {
        assert!(read_disk(&repo, &repo.snapshot(point).unwrap(), "vm1") == *image);
    }
    let cuts = faulty.calls().len();
    assert!(cuts > 50, "{cuts} calls are too few for this test");
    home.clean(&home.open());
    home.restic(&["check", "--read-data"]);
}
