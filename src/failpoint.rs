//! The steps of the commit order, and of the other commands that change something, by name, so that tests can interrupt
//! a run at every one of them.
//!
//! A build with debug assertions stops itself (SIGSTOP) at the step that `$KVMB_TEST_STOP_AT` names, once: a test then
//! kills it there, or cuts the storage off and lets it go on. In a release build [`hit`] is empty.

/// The steps of each command that changes a repository or a host, in the order in which a run passes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failpoint {
    /// The config of a new repository is there, its key is not.
    ConfigCreated,
    /// Its key is there.
    KeyCreated,
    /// The repository is locked and its index loaded.
    RepositoryOpened,
    /// The point to continue is known.
    ParentFound,
    /// The machine's lock is taken.
    MachineLocked,
    /// What earlier runs left is cleared.
    LeftoversCleared,
    /// The capture's state is on disk; nothing has been begun.
    CaptureNoted,
    /// The bitmaps of a new chain are in the images of a machine that is off.
    BitmapsAdded,
    /// The guest's file systems are frozen.
    Frozen,
    /// The job is begun and the checkpoint made, the guest not yet thawed (off: every disk is served).
    Begun,
    /// The capture is open, its state says so.
    CaptureOpen,
    /// The first chunk of a disk is stored.
    FirstChunk,
    /// The last byte of the last disk is read.
    AllRead,
    /// The job has ended, or the servers.
    JobEnded,
    /// Packs and index are in the repository.
    IndexStored,
    /// The snapshot file is in the repository: the point is committed.
    PointStored,
    /// The capture's state says that the point is committed.
    CommitNoted,
    /// Checkpoints are made known and superseded ones deleted.
    CheckpointsSettled,
    /// The capture's state is gone.
    CaptureForgotten,
    /// A prune knows what goes and what is copied; nothing has been changed.
    PrunePlanned,
    /// The first pack that no index named is gone.
    UnnamedPackRemoved,
    /// The first point is forgotten.
    PointForgotten,
    /// All points that go are forgotten.
    PointsForgotten,
    /// Blobs of the first range are copied.
    BlobsCopied,
    /// All that is copied is durable, with an index.
    CopiesStored,
    /// The index without the packs that go is durable.
    NewIndexStored,
    /// The first old index file is gone.
    OldIndexRemoved,
    /// All old index files are gone.
    OldIndexGone,
    /// The first pack is gone.
    PackRemoved,
    /// All packs that go are gone.
    PacksGone,
    /// The repository is locked by a command that is no backup and no copy.
    LockTaken,
    /// A pinned or unpinned point is in the repository, and the one that it replaces as well.
    PinStored,
    /// Another key is in the repository.
    KeyAdded,
    /// The exported key is in its file; that it was exported is not noted.
    KeyExported,
    /// A copy has locked both repositories.
    CopyBegun,
    /// What a point needs is in the second repository, with an index.
    CopyTransferred,
    /// The copied point is committed.
    CopyStored,
    /// All that is restored is complete, and nothing has taken its place.
    RestoreWritten,
    /// The first file has taken its place.
    RestorePlacedFirst,
    /// All files have.
    RestorePlaced,
    /// The definition is libvirt's; what was replaced is still there.
    RestoreDefined,
    /// What was replaced is gone.
    RestoreKept,
    /// A disk of a live restore has all its data, as far as its QEMU knows: the image may not.
    RestorePulled,
    /// What a drill will have on the host is noted.
    DrillNoted,
    /// Its files are written.
    DrillPrepared,
    /// Its machine is there, and does not run yet.
    DrillCreated,
    /// Its guest runs.
    DrillRuns,
    /// Its machine is gone, and its files are still there.
    DrillEnded,
}

impl Failpoint {
    /// Those of a backup.
    pub const ALL: [Failpoint; 17] = [
        Failpoint::RepositoryOpened,
        Failpoint::ParentFound,
        Failpoint::MachineLocked,
        Failpoint::LeftoversCleared,
        Failpoint::CaptureNoted,
        Failpoint::BitmapsAdded,
        Failpoint::Frozen,
        Failpoint::Begun,
        Failpoint::CaptureOpen,
        Failpoint::FirstChunk,
        Failpoint::AllRead,
        Failpoint::JobEnded,
        Failpoint::IndexStored,
        Failpoint::PointStored,
        Failpoint::CommitNoted,
        Failpoint::CheckpointsSettled,
        Failpoint::CaptureForgotten,
    ];

    /// Those of a prune.
    pub const PRUNE: [Failpoint; 11] = [
        Failpoint::PrunePlanned,
        Failpoint::UnnamedPackRemoved,
        Failpoint::PointForgotten,
        Failpoint::PointsForgotten,
        Failpoint::BlobsCopied,
        Failpoint::CopiesStored,
        Failpoint::NewIndexStored,
        Failpoint::OldIndexRemoved,
        Failpoint::OldIndexGone,
        Failpoint::PackRemoved,
        Failpoint::PacksGone,
    ];

    /// Those of a copy from one repository to another.
    pub const COPY: [Failpoint; 3] = [Failpoint::CopyBegun, Failpoint::CopyTransferred, Failpoint::CopyStored];

    /// Those of a restore.
    pub const RESTORE: [Failpoint; 5] = [
        Failpoint::RestoreWritten,
        Failpoint::RestorePlacedFirst,
        Failpoint::RestorePlaced,
        Failpoint::RestoreDefined,
        Failpoint::RestoreKept,
    ];

    /// Those of a drill.
    pub const DRILL: [Failpoint; 5] = [
        Failpoint::DrillNoted,
        Failpoint::DrillPrepared,
        Failpoint::DrillCreated,
        Failpoint::DrillRuns,
        Failpoint::DrillEnded,
    ];

    /// Its name: what `$KVMB_TEST_STOP_AT` says.
    pub fn name(self) -> String {
        format!("{self:?}")
    }
}

/// Marks that a step is reached.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub(crate) fn hit(_step: Failpoint) {}

/// Marks that a step is reached; stops there if a test wants that.
#[cfg(debug_assertions)]
pub(crate) fn hit(step: Failpoint) {
    use std::sync::atomic::{AtomicBool, Ordering};

    static STOPPED: AtomicBool = AtomicBool::new(false);
    let wanted = std::env::var("KVMB_TEST_STOP_AT").is_ok_and(|name| name == step.name());
    if wanted && !STOPPED.swap(true, Ordering::SeqCst) {
        // A process may always stop itself.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP);
        // Another thread may be the one to take the signal, a moment later; with it, all stop.
        while stop_is_pending() {
            std::thread::yield_now();
        }
    }
}

/// Whether this process is still to take a SIGSTOP.
#[cfg(debug_assertions)]
fn stop_is_pending() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:"));
    let signals = pending.and_then(|pending| u64::from_str_radix(pending.trim(), 16).ok()).unwrap_or(0);
    signals & (1 << (rustix::process::Signal::STOP.as_raw() - 1)) != 0
}
