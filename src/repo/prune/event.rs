//! Progress events of a prune.

/// A progress event of a prune.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PruneEvent {
    /// The trees of one more snapshot were read.
    SnapshotMarked,
    /// A pack that is not in the index was removed.
    UnnamedRemoved { bytes: u64 },
    /// Bytes were copied into new packs.
    Copied { bytes: u64 },
    /// All copies are durable and in an index.
    AllCopied,
    /// The index without the removed packs is durable.
    IndexStored,
    /// An old index file was removed.
    IndexRemoved,
    /// The packs to remove are no longer in any index.
    OldIndexGone,
    /// A pack was removed.
    PackRemoved { bytes: u64 },
}

/// Called with each [`PruneEvent`], from several threads.
pub(crate) type PruneWatch<'a> = &'a (dyn Fn(PruneEvent) + Sync);
