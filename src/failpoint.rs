//! Named steps of the commit order, and of other commands that change something, at which tests can interrupt a run.
//!
//! A build with debug assertions stops itself (SIGSTOP) once, at the step that `$KVMB_TEST_STOP_AT` names. A test then
//! kills it there, or cuts off the storage and lets it continue. In a release build, [`hit`] is empty.

/// The steps of each command that changes a repository or a host, in execution order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failpoint {
    /// The config of a new repository is stored, its key is not.
    ConfigCreated,
    /// The key of a new repository is stored.
    KeyCreated,
    /// The repository is locked and its index loaded.
    RepositoryOpened,
    /// The point to continue from is known.
    ParentFound,
    /// The machine is locked.
    MachineLocked,
    /// Leftovers of earlier runs are removed.
    LeftoversCleared,
    /// The capture's state is on disk; nothing has been started.
    CaptureNoted,
    /// The bitmaps of a new chain are in the images of a machine that is shut off.
    BitmapsAdded,
    /// The guest's file systems are frozen.
    Frozen,
    /// The job is started and the checkpoint created; the guest is still frozen. (Machine shut off: every disk is
    /// served.)
    Begun,
    /// The capture is open, and its state says so.
    CaptureOpen,
    /// The first chunk of a disk is stored.
    FirstChunk,
    /// The last byte of the last disk is read.
    AllRead,
    /// The job or the servers have ended.
    JobEnded,
    /// Packs and index are in the repository.
    IndexStored,
    /// The snapshot file is in the repository: the point is committed.
    PointStored,
    /// The capture's state says that the point is committed.
    CommitNoted,
    /// New checkpoints are recorded and superseded ones deleted.
    CheckpointsSettled,
    /// The capture's state is removed.
    CaptureForgotten,
    /// A prune has decided what to remove and what to copy; nothing has been changed.
    PrunePlanned,
    /// The first pack that no index mentions is removed.
    UnnamedPackRemoved,
    /// The first expired point is removed.
    PointForgotten,
    /// All expired points are removed.
    PointsForgotten,
    /// The blobs of the first range are copied.
    BlobsCopied,
    /// All copied blobs are durable, and an index of them.
    CopiesStored,
    /// The index without the expired packs is durable.
    NewIndexStored,
    /// The first old index file is removed.
    OldIndexRemoved,
    /// All old index files are removed.
    OldIndexGone,
    /// The first expired pack is removed.
    PackRemoved,
    /// All expired packs are removed.
    PacksGone,
    /// A command other than a backup or a copy has locked the repository.
    LockTaken,
    /// A pinned or unpinned point is stored, and the point that it replaces still exists.
    PinStored,
    /// An additional key is stored.
    KeyAdded,
    /// The exported key is in its file; the export is not recorded yet.
    KeyExported,
    /// A copy has locked both repositories.
    CopyBegun,
    /// The data that a point needs is in the second repository, with an index.
    CopyTransferred,
    /// The copied point is committed.
    CopyStored,
    /// All restored files are complete; none has been moved into place.
    RestoreWritten,
    /// The first file has been moved into place.
    RestorePlacedFirst,
    /// All files have been moved into place.
    RestorePlaced,
    /// libvirt has the definition; the replaced files still exist.
    RestoreDefined,
    /// The replaced files are removed.
    RestoreKept,
    /// The images of a live restore are complete and in their places; the machine runs on its point.
    RestoreCopied,
    /// The machine of a live restore is paused and on its own disks; its definition may not say so.
    RestoreSwitched,
    /// The changes that a drill will make to the host are recorded.
    DrillNoted,
    /// The drill's files are written.
    DrillPrepared,
    /// The drill's machine is defined and does not run yet.
    DrillCreated,
    /// The drill's guest runs.
    DrillRuns,
    /// The drill's machine is removed; its files still exist.
    DrillEnded,
}

impl Failpoint {
    /// The steps of a backup.
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

    /// The steps of a prune.
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

    /// The steps of a copy from one repository to another.
    pub const COPY: [Failpoint; 3] = [Failpoint::CopyBegun, Failpoint::CopyTransferred, Failpoint::CopyStored];

    /// The steps of a restore.
    pub const RESTORE: [Failpoint; 5] = [
        Failpoint::RestoreWritten,
        Failpoint::RestorePlacedFirst,
        Failpoint::RestorePlaced,
        Failpoint::RestoreDefined,
        Failpoint::RestoreKept,
    ];

    /// The steps of a drill.
    pub const DRILL: [Failpoint; 5] = [
        Failpoint::DrillNoted,
        Failpoint::DrillPrepared,
        Failpoint::DrillCreated,
        Failpoint::DrillRuns,
        Failpoint::DrillEnded,
    ];

    /// Returns the name that `$KVMB_TEST_STOP_AT` refers to.
    pub fn name(self) -> String {
        format!("{self:?}")
    }
}

/// Marks a step.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub(crate) fn hit(_step: Failpoint) {}

/// Marks a step; stops there if a test requests it.
#[cfg(debug_assertions)]
pub(crate) fn hit(step: Failpoint) {
    use std::sync::atomic::{AtomicBool, Ordering};

    static STOPPED: AtomicBool = AtomicBool::new(false);
    let wanted = std::env::var("KVMB_TEST_STOP_AT").is_ok_and(|name| name == step.name());
    if wanted && !STOPPED.swap(true, Ordering::SeqCst) {
        // A process may always stop itself.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP);
        // Another thread may handle the signal a moment later; then all threads stop.
        while stop_is_pending() {
            std::thread::yield_now();
        }
    }
}

/// Whether a SIGSTOP is pending for this process.
#[cfg(debug_assertions)]
fn stop_is_pending() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:"));
    let signals = pending.and_then(|pending| u64::from_str_radix(pending.trim(), 16).ok()).unwrap_or(0);
    signals & (1 << (rustix::process::Signal::STOP.as_raw() - 1)) != 0
}
