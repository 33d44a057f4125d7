//! The blobs that a snapshot needs.

use super::{BlobKind, Id, Index, NodeKind, Repository, Result, read_tree};
use std::sync::atomic::{AtomicBool, Ordering};

/// Calls `visit` with every blob that is reachable from a root tree; consecutive repetitions of an id are visited once.
/// If `visit` returns `false` for a tree, its contents are skipped. `stop` ends it early.
pub(super) fn each_blob(
    repo: &Repository,
    index: &Index,
    root: &Id,
    stop: &AtomicBool,
    mut visit: impl FnMut(BlobKind, &Id) -> Result<bool>,
) -> Result<()> {
    let mut ahead = vec![*root];
    while let Some(id) = ahead.pop() {
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        if !visit(BlobKind::Tree, &id)? {
            continue;
        }
        for node in read_tree(repo, index, &id)?.nodes {
            match node.kind {
                NodeKind::Dir { subtree } => ahead.push(subtree),
                NodeKind::File { content, .. } => {
                    for (blob, _) in content.runs() {
                        visit(BlobKind::Data, &blob)?;
                    }
                }
                NodeKind::Other(_) => {}
            }
        }
    }
    Ok(())
}
