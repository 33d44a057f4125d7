//! Blobs from one repository to another.
//!
//! A blob is opened with the one key, verified, and sealed with the other. Compressed it stays: the SHA-256 is that of
//! the plaintext, so it is decompressed to be verified, and compressed again only where that is asked for or pays
//! ([`Compression`](super::Compression)).

use std::ops::ControlFlow;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

use super::reader::BlobSource;
use super::{BlobKind, Id, Index, PutOutcome, Repository, Result, Writer};

/// Copies blobs of one kind into the repository that `writer` writes to.
///
/// `ids` should be distinct, and not known to the writer, which would leave them out. `tell` is called with each blob
/// what became of it, or why it cannot be had: such a blob is not copied, and the others are. Ends early when `stop` is
/// set; an error is about one of the two places as a whole.
pub(crate) fn copy_blobs(
    (repo, index): (&Repository, &Index),
    kind: BlobKind,
    ids: Vec<Id>,
    writer: &Writer,
    threads: usize,
    stop: &AtomicBool,
    tell: impl Fn(Id, Result<PutOutcome>) + Sync,
) -> Result<()> {
    let failed = OnceLock::new();
    BlobSource { repo, index, kind }.read(ids, threads, stop, |id, blob| {
        let stored = match blob {
            Ok(blob) => writer.put_verified(kind, id, &blob),
            Err(damaged) => {
                tell(id, Err(damaged));
                return ControlFlow::Continue(());
            }
        };
        match stored {
            Ok(stored) => {
                tell(id, Ok(stored));
                ControlFlow::Continue(())
            }
            Err(error) => {
                failed.get_or_init(|| error);
                ControlFlow::Break(())
            }
        }
    })?;
    failed.into_inner().map_or(Ok(()), Err)
}
