//! Copies blobs from one repository to another.
//!
//! A blob is unsealed with one key, verified, and sealed with the other. It remains compressed. It is decompressed to
//! verify the SHA-256 of the plaintext, but recompressed only if that is requested or worthwhile
//! ([`Compression`](super::Compression)).

use std::ops::ControlFlow;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

use super::reader::BlobSource;
use super::{BlobKind, Id, Index, PutOutcome, Repository, Result, Writer};

/// Copies blobs of one kind into the repository that `writer` writes to.
///
/// `ids` should be distinct, and unknown to the writer, which skips known ones. `report` is called for each blob with
/// the outcome, or with the reason why it is unreadable: such a blob is not copied, but the others are. Ends early when
/// `stop` is set. An error concerns one of the two repositories as a whole.
pub(crate) fn copy_blobs(
    (repo, index): (&Repository, &Index),
    kind: BlobKind,
    ids: Vec<Id>,
    writer: &Writer,
    threads: usize,
    stop: &AtomicBool,
    report: impl Fn(Id, Result<PutOutcome>) + Sync,
) -> Result<()> {
    let failed = OnceLock::new();
    BlobSource { repo, index, kind }.read(ids, threads, stop, |id, blob| {
        let stored = match blob {
            Ok(blob) => writer.put_verified(kind, id, &blob),
            Err(damaged) => {
                report(id, Err(damaged));
                return ControlFlow::Continue(());
            }
        };
        match stored {
            Ok(stored) => {
                report(id, Ok(stored));
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
