//! Reads blobs, one or millions of them.

use std::cell::RefCell;
use std::ops::{ControlFlow, Range};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use super::crypto::IV_LENGTH;
use super::{BlobKind, BlobLocation, Error, Flaw, Id, Index, Repository, Result, reread};
use crate::helper_thread;
use crate::storage::FileKind;

/// The maximum length of a read, unless a single blob is longer.
const RANGE_BYTES: u64 = 8 << 20;
/// The maximum gap between two blobs that is read as well, to read them together.
const GAP_BYTES: u64 = 128 << 10;

/// The alignment of device blocks and memory pages.
const PAGE_BYTES: usize = 4096;

/// A blob from its pack, unsealed, possibly still compressed, whose hash has not been compared.
pub(super) struct OpenedBlob {
    buffer: Vec<u8>,
    range: Range<usize>,
}

impl OpenedBlob {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }
}

/// A blob whose length and SHA-256 were verified.
#[derive(Debug, Clone, Copy)]
pub(super) struct VerifiedBlob<'a> {
    pub(super) plain: &'a [u8],
    /// The unsealed bytes from its pack, possibly compressed.
    pub(super) packed: &'a [u8],
    /// The plaintext's length, if the blob is compressed.
    pub(super) raw_length: Option<u32>,
}

pub(super) fn damaged(kind: BlobKind, id: &Id, location: &BlobLocation, flaw: Flaw) -> Error {
    Error::BlobDamaged { kind, id: *id, pack: location.pack, flaw }
}

/// Reads one blob from one location and unseals it.
pub(super) fn fetch(repo: &Repository, kind: BlobKind, id: &Id, location: &BlobLocation) -> Result<OpenedBlob> {
    let mut buffer = repo
        .storage()
        .read_range(FileKind::Pack, &location.pack.to_string(), u64::from(location.offset), location.length as usize)
        .map_err(|source| match source.is_unreachable() {
            true => Error::Storage(source),
            false => Error::BlobUnreadable { kind, id: *id, pack: location.pack, source },
        })?;
    let length = repo.key().open_in_place(&mut buffer).map_err(|e| damaged(kind, id, location, e.into()))?.len();
    Ok(OpenedBlob { buffer, range: IV_LENGTH..IV_LENGTH + length })
}

/// Tries every location of a blob in the index. The error is that of the last location. `seen` is a location that has
/// already been read once with a wrong result: there one attempt less is made.
pub(super) fn from_any_location<T>(
    (repo, index): (&Repository, &Index),
    kind: BlobKind,
    id: &Id,
    seen: Option<&BlobLocation>,
    mut read: impl FnMut(&BlobLocation) -> Result<T>,
) -> Result<T> {
    let mut last = Error::BlobMissing { kind, id: *id };
    for location in index.locations(kind, id) {
        let result = match seen == Some(&location) {
            true => reread::read_again(&**repo.storage(), || read(&location)),
            false => reread::read(&**repo.storage(), || read(&location)),
        };
        match result {
            Ok(value) => return Ok(value),
            Err(error) if error.is_unreachable() => return Err(error),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Reads one blob. `seen` is a location that was already read with a wrong result.
pub(super) fn read_blob(
    source: (&Repository, &Index),
    kind: BlobKind,
    id: &Id,
    seen: Option<&BlobLocation>,
) -> Result<Vec<u8>> {
    with_blob(source, kind, id, seen, |blob| blob.plain.to_vec())
}

fn with_blob<T>(
    (repo, index): (&Repository, &Index),
    kind: BlobKind,
    id: &Id,
    seen: Option<&BlobLocation>,
    use_it: impl Fn(VerifiedBlob) -> T,
) -> Result<T> {
    from_any_location((repo, index), kind, id, seen, |location| {
        let opened = fetch(repo, kind, id, location)?;
        let mut plain = Vec::new();
        verify_blobs(kind, id, location, opened.bytes(), &mut plain).map(&use_it)
    })
}

thread_local! {
    /// Creating one for every blob would take longer than using it.
    static DECOMPRESSOR: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Returns `length` bytes of a buffer, page-aligned: direct I/O then needs no copy.
fn aligned(buffer: &mut Vec<u8>, length: usize) -> &mut [u8] {
    if buffer.len() < length + PAGE_BYTES {
        *buffer = vec![0; length + PAGE_BYTES];
    }
    let start = buffer.as_ptr().align_offset(PAGE_BYTES);
    &mut buffer[start..start + length]
}

/// Decompresses the unsealed blob if it is compressed, and verifies length and hash.
pub(super) fn verify_blobs<'a>(
    kind: BlobKind,
    id: &Id,
    location: &BlobLocation,
    opened: &'a [u8],
    buffer: &'a mut Vec<u8>,
) -> Result<VerifiedBlob<'a>> {
    let fail = |flaw| damaged(kind, id, location, flaw);
    let wanted = location.raw_length as usize;
    let plain = if location.compressed {
        let place = aligned(buffer, wanted);
        let length = DECOMPRESSOR
            .with_borrow_mut(|slot| {
                let decompressor = match slot {
                    Some(decompressor) => decompressor,
                    None => slot.insert(zstd::bulk::Decompressor::new()?),
                };
                decompressor.decompress_to_buffer(opened, place)
            })
            .map_err(|_| fail(Flaw::NotDecompressable))?;
        &place[..length]
    } else {
        opened
    };
    if plain.len() != wanted {
        return Err(fail(Flaw::WrongLength { wanted_bytes: wanted as u64, actual_bytes: plain.len() as u64 }));
    }
    match Id::hash(plain) == *id {
        true => {
            let raw_length = location.compressed.then_some(location.raw_length);
            Ok(VerifiedBlob { plain, packed: opened, raw_length })
        }
        false => Err(fail(Flaw::NotItsName)),
    }
}

/// A blob to read, with the location that is tried first.
pub(super) struct BlobRequest {
    pub(super) id: Id,
    pub(super) location: BlobLocation,
}

/// Reads many data blobs, in the order of their locations.
///
/// `ids` should be distinct. Adjacent blobs are read together. `threads` threads, or more if the storage is remote,
/// read, unseal, decompress and verify blobs, and call `deliver` with each blob, or with the error after all its
/// locations were tried. Ends early when `deliver` breaks or `stop` is set, and with an error when the storage is
/// unreachable. Nothing is delivered that was not verified.
///
/// Memory: 8 MiB of sealed bytes and one plaintext blob per thread, and some 90 bytes per id.
pub fn read_blobs(
    repo: &Repository,
    index: &Index,
    ids: Vec<Id>,
    threads: usize,
    stop: &AtomicBool,
    deliver: impl Fn(Id, Result<&[u8]>) -> ControlFlow<()> + Sync,
) -> Result<()> {
    let source = BlobSource { repo, index, kind: BlobKind::Data };
    source.read(ids, threads, stop, |id, blob| deliver(id, blob.map(|blob| blob.plain)))
}

/// Splits data blobs into groups that [`read_blobs`] reads at once, of at most `most_bytes` sealed bytes unless a
/// single blob is longer. The groups are ordered by their first blobs in `ids`. A blob that is not in the index has its
/// own group.
pub fn read_groups(index: &Index, ids: &[Id], most_bytes: u64) -> Vec<Vec<Id>> {
    let (mut found, mut groups) = (Vec::with_capacity(ids.len()), Vec::new());
    for (number, id) in ids.iter().enumerate() {
        match index.get(BlobKind::Data, id) {
            Some(location) => found.push((location, number)),
            None => groups.push((number, vec![*id])),
        }
    }
    found.sort_unstable_by_key(|(location, _)| (location.pack, location.offset));
    for range in ranges_up_to(most_bytes, found.iter().map(|(location, _)| *location)) {
        let group = &found[range];
        let first = group.iter().map(|(_, number)| *number).min().unwrap_or_default();
        groups.push((first, group.iter().map(|(_, number)| ids[*number]).collect()));
    }
    groups.sort_unstable_by_key(|(first, _)| *first);
    groups.into_iter().map(|(_, ids)| ids).collect()
}

/// A source of blobs of one kind.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlobSource<'a> {
    pub(super) repo: &'a Repository,
    pub(super) index: &'a Index,
    pub(super) kind: BlobKind,
}

impl BlobSource<'_> {
    /// See [`read_blobs`].
    pub(super) fn read(
        self,
        ids: Vec<Id>,
        threads: usize,
        stop: &AtomicBool,
        deliver: impl Fn(Id, Result<VerifiedBlob>) -> ControlFlow<()> + Sync,
    ) -> Result<()> {
        let BlobSource { index, kind, .. } = self;
        let mut wanted = Vec::with_capacity(ids.len());
        for id in ids {
            match index.get(kind, &id) {
                Some(location) => wanted.push(BlobRequest { id, location }),
                None => {
                    if deliver(id, Err(Error::BlobMissing { kind, id })).is_break() {
                        return Ok(());
                    }
                }
            }
        }
        wanted.sort_unstable_by_key(|blob| (blob.location.pack, blob.location.offset));
        let job = ReadJob {
            source: self,
            ranges: ranges(wanted.iter().map(|blob| blob.location)),
            wanted,
            next: AtomicUsize::new(0),
            stop,
            broken: AtomicBool::new(false),
            unreachable: OnceLock::new(),
            deliver,
        };
        let threads = threads.max(self.repo.storage().parallel()).min(job.ranges.len());
        thread::scope(|scope| {
            let helpers: Vec<_> = (1..threads).map(|_| helper_thread::start(scope, || job.run())).collect();
            job.run();
            match helpers.into_iter().all(|helper| helper.join().is_ok()) {
                true => Ok(()),
                false => Err(Error::WorkerGone),
            }
        })?;
        job.unreachable.into_inner().map_or(Ok(()), Err)
    }
}

/// Groups blobs, which are sorted by location, into ranges that are read together: neighbours in one pack.
pub(super) fn ranges(wanted: impl Iterator<Item = BlobLocation>) -> Vec<Range<usize>> {
    ranges_up_to(RANGE_BYTES, wanted)
}

fn ranges_up_to(most_bytes: u64, wanted: impl Iterator<Item = BlobLocation>) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    // The first and the last blob of the current range.
    let mut ends: Option<(BlobLocation, BlobLocation)> = None;
    for (position, blob) in wanted.enumerate() {
        let first = ends.filter(|(first, last)| {
            let last_end = u64::from(last.offset) + u64::from(last.length);
            let end = u64::from(blob.offset) + u64::from(blob.length);
            first.pack == blob.pack
                && u64::from(blob.offset) <= last_end + GAP_BYTES
                && end - u64::from(first.offset) <= most_bytes
        });
        match (ranges.last_mut(), first) {
            (Some(range), Some(_)) => range.end = position + 1,
            _ => ranges.push(position..position + 1),
        }
        ends = Some((first.map_or(blob, |(first, _)| first), blob));
    }
    ranges
}

/// Reads adjacent blobs of one pack and verifies each. The results are in the order of the blobs.
pub(super) fn verify_together(repo: &Repository, kinds: &[BlobKind], blobs: &[BlobRequest]) -> Vec<Result<()>> {
    let [first, ..] = blobs else { return Vec::new() };
    let start = u64::from(first.location.offset);
    let ends = blobs.iter().map(|blob| u64::from(blob.location.offset) + u64::from(blob.location.length));
    let length = ends.max().unwrap_or(start) - start;
    let pack = first.location.pack.to_string();
    let mut bytes = repo.storage().read_range(FileKind::Pack, &pack, start, length as usize).ok();
    let mut plain = Vec::new();
    let verify = |(kind, blob): (&BlobKind, &BlobRequest)| {
        let location = &blob.location;
        let at = (u64::from(location.offset) - start) as usize;
        let sealed = bytes.as_mut().and_then(|bytes| bytes.get_mut(at..at + location.length as usize));
        let opened = sealed.and_then(|sealed| repo.key().open_in_place(sealed).ok());
        match opened {
            Some(opened) => verify_blobs(*kind, &blob.id, location, opened, &mut plain).map(drop),
            // Read it separately for its specific error: the pack may be truncated, or the storage unreachable.
            None => fetch(repo, *kind, &blob.id, location)
                .and_then(|opened| verify_blobs(*kind, &blob.id, location, opened.bytes(), &mut plain).map(drop)),
        }
    };
    kinds.iter().zip(blobs).map(verify).collect()
}

struct ReadJob<'a, F> {
    source: BlobSource<'a>,
    wanted: Vec<BlobRequest>,
    ranges: Vec<Range<usize>>,
    next: AtomicUsize,
    stop: &'a AtomicBool,
    broken: AtomicBool,
    /// Why the storage is unreachable.
    unreachable: OnceLock<Error>,
    deliver: F,
}

impl<F: Fn(Id, Result<VerifiedBlob>) -> ControlFlow<()> + Sync> ReadJob<'_, F> {
    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.broken.load(Ordering::Relaxed)
    }

    fn run(&self) {
        let mut plain = Vec::new();
        while !self.is_over() {
            let range = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(range) = self.ranges.get(range) else {
                return;
            };
            if self.read_range(&self.wanted[range.clone()], &mut plain).is_break() {
                self.broken.store(true, Ordering::Relaxed);
            }
        }
    }

    fn give_up(&self, error: Error) -> ControlFlow<()> {
        self.unreachable.get_or_init(|| error);
        ControlFlow::Break(())
    }

    fn read_range(&self, blobs: &[BlobRequest], plain: &mut Vec<u8>) -> ControlFlow<()> {
        let [first, ..] = blobs else {
            return ControlFlow::Continue(());
        };
        let start = first.location.offset;
        let end = blobs
            .iter()
            .map(|blob| u64::from(blob.location.offset) + u64::from(blob.location.length))
            .max()
            .unwrap_or_default();
        let BlobSource { repo, index, kind } = self.source;
        let read = repo.storage().read_range(
            FileKind::Pack,
            &first.location.pack.to_string(),
            u64::from(start),
            (end - u64::from(start)) as usize,
        );
        // The range may extend beyond the end of a truncated pack: try each blob separately.
        let mut bytes = match read {
            Err(error) if error.is_unreachable() => return self.give_up(error.into()),
            read => read.ok(),
        };
        for blob in blobs {
            if self.is_over() {
                return ControlFlow::Break(());
            }
            let at = (blob.location.offset - start) as usize;
            let sealed = bytes.as_mut().and_then(|bytes| bytes.get_mut(at..at + blob.location.length as usize));
            let opened = sealed.and_then(|sealed| repo.key().open_in_place(sealed).ok());
            let verified = opened.and_then(|opened| verify_blobs(kind, &blob.id, &blob.location, opened, plain).ok());
            match verified {
                Some(verified) => (self.deliver)(blob.id, Ok(verified))?,
                None => {
                    let read = with_blob((repo, index), kind, &blob.id, Some(&blob.location), |verified| {
                        (self.deliver)(blob.id, Ok(verified))
                    });
                    match read {
                        Ok(flow) => flow?,
                        Err(error) if error.is_unreachable() => return self.give_up(error),
                        Err(error) => (self.deliver)(blob.id, Err(error))?,
                    }
                }
            }
        }
        ControlFlow::Continue(())
    }
}

impl Repository {
    /// Reads one data blob and verifies its length and SHA-256.
    pub fn read_blob(&self, index: &Index, id: &Id) -> Result<Vec<u8>> {
        read_blob((self, index), BlobKind::Data, id, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adjacent_blobs_are_read_together_up_to_a_limit() {
        let at = |pack: u8, offset, length| BlobLocation {
            pack: Id::hash(&[pack]),
            offset,
            length,
            raw_length: length,
            compressed: false,
        };
        let gap = GAP_BYTES as u32;
        let blobs = [at(1, 0, 100), at(1, 100, 100), at(1, 200 + gap, 50), at(1, 251 + 2 * gap, 10), at(2, 0, 900)];
        assert_eq!(ranges_up_to(RANGE_BYTES, blobs.into_iter()), [0..3, 3..4, 4..5]);
        assert_eq!(ranges_up_to(200, blobs.into_iter()), [0..2, 2..3, 3..4, 4..5]);
    }

    #[test]
    fn blobs_missing_from_the_index_are_grouped_separately() {
        let ids = [3, 1, 2].map(|number: u8| Id::hash(&[number]));
        assert_eq!(read_groups(&Index::default(), &ids, RANGE_BYTES), ids.map(|id| vec![id]));
    }
}
