//! What a prune reports while it works.

/// What a prune reports while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PruneEvent {
    /// The trees of one more snapshot are read.
    SnapshotMarked,
    /// A pack that no index names is gone.
    UnnamedRemoved { bytes: u64 },
    /// Bytes that were copied into new packs.
    Copied { bytes: u64 },
    /// All that is to be copied is durable and has an index.
    AllCopied,
    /// The index without the packs that go is durable.
    IndexStored,
    /// An old index file is gone.
    IndexRemoved,
    /// No index names the packs that go any more.
    OldIndexGone,
    /// A pack is gone.
    PackRemoved { bytes: u64 },
}

/// Called with each [`PruneEvent`], from several threads.
pub(crate) type PruneWatch<'a> = &'a (dyn Fn(PruneEvent) + Sync);
