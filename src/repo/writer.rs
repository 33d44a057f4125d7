//! Writing blobs: hash, look up, compress, seal, pack, store.
//!
//! ```text
//! callers' threads:  put ─ SHA-256 ─ known? ─ zstd ─ seal ─┬─ open data pack ┐ full
//!                                                          └─ open tree pack ┴──► bounded channel
//! writer threads:    header, SHA-256 of the pack, storage.write (durable) ─► pending index ─► index file
//! ```
//!
//! An index file names only packs that are durable; it is written whenever 50,000 blobs or
//! [`WriterOptions::index_interval`] have come together, so that an interrupted run is not for nothing, and at
//! [`Writer::finish`]. Dropping a writer leaves packs that nobody names, or blobs that nobody refers to: harmless, and
//! removed by the next prune, unless a run comes before that can use them ([`super::orphaned_packs`]).
//!
//! Memory: two open packs, one in the channel, one in each writer thread; a compression context and two buffers of a
//! blob's size for each thread that calls `put` at the same time; and for each new blob its id in a hash set.

use std::collections::HashSet;
use std::io::{self, BufWriter, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, SendTimeoutError, Sender, bounded};
use sha2::{Digest, Sha256};

use super::compression::{BlobCompressor, Effort, LevelChooser, TREE_LEVEL};
use super::crypto::{IV_LENGTH, OVERHEAD};
use super::index_file::PendingIndex;
use super::orphaned_packs::Notes;
use super::pack::{FinishedPack, PackBuilder};
use super::reader::VerifiedBlob;
use super::{BlobKind, Compression, Error, Id, Index, Permit, Repository, Result};
use crate::helper_thread;
use crate::storage::{self, FileKind};

/// The only blob of zeros that restic restores as a hole.
pub(crate) const ZERO_BLOB_BYTES: usize = 512 << 10;

/// Streams up to this size are put as one buffer, in one pass.
const SMALL_STREAM_BYTES: usize = 1 << 20;
/// A compressed stream from this size on gets a pack of its own instead of being copied.
const OWN_PACK_BYTES: usize = 4 << 20;

/// Between two looks at the lock while a pack cannot be handed over.
const LOOK: Duration = Duration::from_millis(100);
/// Between two looks at the threads that store packs.
const TICK: Duration = Duration::from_millis(2);

/// The id of the blob of [`ZERO_BLOB_BYTES`] zeros.
pub fn zero_blob_id() -> Id {
    static ID: LazyLock<Id> = LazyLock::new(|| Id::hash(&vec![0; ZERO_BLOB_BYTES]));
    *ID
}

/// How to write.
#[derive(Debug, Clone)]
pub struct WriterOptions {
    /// The compression of data.
    pub compression: Compression,
    /// A pack is closed when it has reached this size.
    pub pack_bytes: usize,
    /// After this time the index of what is durable is saved.
    pub index_interval: Duration,
    /// How many writers work at the same time: they share the number of packs that are stored at once, for memory.
    pub writers: usize,
}

impl Default for WriterOptions {
    fn default() -> Self {
        WriterOptions {
            compression: Compression::Auto,
            pack_bytes: 16 << 20,
            index_interval: Duration::from_secs(10 * 60),
            writers: 1,
        }
    }
}

/// What became of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PutOutcome {
    pub id: Id,
    /// Whether the repository did not have it.
    pub(crate) new: bool,
    /// What it takes there, if it is new.
    pub(crate) stored_bytes: u64,
}

/// What a writer has written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WriteSummary {
    /// Blobs that the repository did not have.
    pub(crate) new_blobs: u64,
    pub(crate) new_bytes: u64,
    /// What they take, compressed and sealed.
    pub(crate) stored_bytes: u64,
    pub packs: u64,
}

/// Puts blobs into a repository. May be called from several threads at once.
pub struct Writer {
    shared: Arc<WriterShared>,
    index: Arc<Index>,
    /// Blobs of this run, written or being written.
    claimed: Mutex<HashSet<(BlobKind, Id)>>,
    scratch: Mutex<Vec<Scratch>>,
    data_pack: Mutex<PackBuilder>,
    tree_pack: Mutex<PackBuilder>,
    queue: Option<Sender<PackBuilder>>,
    workers: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("summary", &self.summary()).finish_non_exhaustive()
    }
}

/// What callers and writer threads share.
struct WriterShared {
    repo: Repository,
    permit: Permit,
    options: WriterOptions,
    levels: LevelChooser,
    /// How many packs are stored at the same time.
    workers: usize,
    pending: Mutex<PendingBlob>,
    notes: Mutex<Noted>,
    /// Buffers of packs that were stored.
    spare: Mutex<Vec<Vec<u8>>>,
    failed: AtomicBool,
    failure: OnceLock<Arc<Error>>,
    abandoned: AtomicBool,
    /// The flag that ends all waiting, if one was given.
    stop: OnceLock<Arc<AtomicBool>>,
    new_blobs: AtomicU64,
    new_bytes: AtomicU64,
    stored_bytes: AtomicU64,
    packs: AtomicU64,
}

/// Whether the packs that are stored are noted.
#[derive(Default)]
enum Noted {
    /// There is none yet.
    #[default]
    Nothing,
    Packs(Notes),
    GivenUp,
}

struct PendingBlob {
    index: PendingIndex,
    since: Instant,
}

/// What one `put` needs and the next one can use again.
struct Scratch {
    compressor: BlobCompressor,
    buffer: Vec<u8>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Writer {
    /// Begins to write. `index` says what the repository has already: load it after taking the repository's lock, which
    /// gives the permit. Once that is lost nothing is written, and every call fails with [`Error::LockLost`].
    pub fn new(repo: &Repository, index: Arc<Index>, options: WriterOptions, permit: &Permit) -> Writer {
        let shared = Arc::new(WriterShared {
            repo: repo.clone(),
            permit: permit.clone(),
            workers: (repo.storage().parallel() / options.writers.max(1)).max(1),
            levels: LevelChooser::new(options.compression),
            options,
            pending: Mutex::new(PendingBlob { index: PendingIndex::default(), since: Instant::now() }),
            notes: Mutex::default(),
            spare: Mutex::default(),
            failed: AtomicBool::new(false),
            failure: OnceLock::new(),
            abandoned: AtomicBool::new(false),
            stop: OnceLock::new(),
            new_blobs: AtomicU64::new(0),
            new_bytes: AtomicU64::new(0),
            stored_bytes: AtomicU64::new(0),
            packs: AtomicU64::new(0),
        });
        let mut writer = Writer {
            shared,
            index,
            claimed: Mutex::default(),
            scratch: Mutex::default(),
            data_pack: Mutex::new(PackBuilder::new(BlobKind::Data, Vec::new())),
            tree_pack: Mutex::new(PackBuilder::new(BlobKind::Tree, Vec::new())),
            queue: None,
            workers: Vec::new(),
        };
        writer.start_workers();
        writer
    }

    fn start_workers(&mut self) {
        // One more may wait where few are stored at a time; else it would only take memory.
        let (queue, packs) = bounded(usize::from(self.shared.workers < 4 && self.shared.options.writers == 1));
        let worker = |_| {
            let (shared, packs) = (Arc::clone(&self.shared), packs.clone());
            thread::Builder::new().spawn(move || shared.store_packs(&packs))
        };
        for number in 0..self.shared.workers {
            match worker(number) {
                Ok(worker) => self.workers.push(worker),
                Err(error) if number == 0 => drop(self.shared.fail(Error::NoThread(error))),
                // Fewer do as well.
                Err(_) => break,
            }
        }
        self.queue = Some(queue);
    }

    /// Ends all waiting and writing when this flag is raised: every call then fails. The first flag counts.
    pub(crate) fn end_with(&self, stop: Arc<AtomicBool>) {
        // Another one would be ignored, as it says.
        let _ = self.shared.stop.set(stop);
    }

    /// Whether the repository has this blob, or will have it when this writer is done.
    pub(crate) fn has(&self, kind: BlobKind, id: &Id) -> bool {
        self.index.contains(kind, id) || lock(&self.claimed).contains(&(kind, *id))
    }

    /// Stores a blob that was read out of another repository: as it was there, unless compressing it again is asked
    /// for, or pays because the place is slow.
    pub(super) fn put_verified(&self, kind: BlobKind, id: Id, blob: &VerifiedBlob) -> Result<PutOutcome> {
        self.shared.check()?;
        if !self.claim(kind, id) {
            return Ok(known(id));
        }
        self.shared.guard(|| {
            let began = Instant::now();
            let mut scratch = self.scratch()?;
            let Scratch { compressor, buffer } = &mut scratch;
            buffer.resize(IV_LENGTH, 0);
            let effort = match kind {
                BlobKind::Data => self.shared.levels.effort_for_copy(blob.raw_length.is_some()),
                BlobKind::Tree => None,
            };
            let is_compressed_again = match effort {
                Some(effort) => compressor.append(blob.plain, effort, buffer, blob.packed.len())?,
                None => false,
            };
            let raw_length = match is_compressed_again {
                true => Some(plain_length(kind, blob.plain)?),
                false => {
                    buffer.extend_from_slice(blob.packed);
                    blob.raw_length
                }
            };
            self.shared.repo.key().seal_in_place(buffer)?;
            self.shared.levels.add_work(began.elapsed());
            let stored_bytes = buffer.len() as u64;
            self.append(kind, id, buffer, raw_length)?;
            lock(&self.scratch).push(scratch);
            self.shared.count(blob.plain.len() as u64, stored_bytes);
            Ok(PutOutcome { id, new: true, stored_bytes })
        })
    }

    /// Stores a blob, unless the repository has it or another thread is storing it.
    pub fn put(&self, kind: BlobKind, plaintext: &[u8]) -> Result<PutOutcome> {
        self.shared.check()?;
        let id = Id::hash(plaintext);
        if !self.claim(kind, id) {
            return Ok(known(id));
        }
        self.shared.guard(|| self.store(kind, id, plaintext))
    }

    /// Stores what `write` writes, without holding more of it than its compressed form. `write` is called several
    /// times, for the length, the name and the content, and must write the same each time.
    pub(crate) fn put_stream(
        &self,
        kind: BlobKind,
        write: impl Fn(&mut dyn Write) -> io::Result<()> + Sync,
    ) -> Result<PutOutcome> {
        self.shared.check()?;
        let mut length = LengthOnly(0);
        write(&mut length).map_err(Error::Compress)?;
        let raw_length = u32::try_from(length.0).map_err(|_| Error::BlobTooLarge { kind, size_bytes: length.0 })?;
        if length.0 <= SMALL_STREAM_BYTES as u64 {
            let mut plaintext = Vec::with_capacity(raw_length as usize);
            write(&mut plaintext).map_err(Error::Compress)?;
            return self.put(kind, &plaintext);
        }
        // What is this large is new as a rule, and both take their time.
        let (id, compressed) = thread::scope(|scope| {
            let name = helper_thread::start(scope, || hash_stream(&write));
            let compressed = self.compress_stream(raw_length, &write);
            (name.join().map_err(|_| Error::WorkerGone), compressed)
        });
        let id = id?.map_err(Error::Compress)?;
        if !self.claim(kind, id) {
            return Ok(known(id));
        }
        self.shared.guard(|| self.store_stream(kind, id, raw_length, compressed.map_err(Error::Compress)?))
    }

    /// Stores a blob of another pack as it is there: sealed, and verified by the caller, who hands in each blob once.
    /// Whether it is known is not asked and not remembered.
    pub(super) fn put_sealed(&self, kind: BlobKind, id: Id, sealed: &[u8], raw_length: Option<u32>) -> Result<()> {
        self.shared.check()?;
        self.shared.guard(|| self.append(kind, id, sealed, raw_length))?;
        self.shared.count(u64::from(raw_length.unwrap_or(0)), sealed.len() as u64);
        Ok(())
    }

    /// What was written so far; packs that are still open count as written.
    pub fn summary(&self) -> WriteSummary {
        let shared = &self.shared;
        WriteSummary {
            new_blobs: shared.new_blobs.load(Ordering::Relaxed),
            new_bytes: shared.new_bytes.load(Ordering::Relaxed),
            stored_bytes: shared.stored_bytes.load(Ordering::Relaxed),
            packs: shared.packs.load(Ordering::Relaxed),
        }
    }

    /// Stores what is left, and then the index of it. When it returns, all that was put is durable and can be referred
    /// to.
    pub fn finish(mut self) -> Result<WriteSummary> {
        self.settle()?;
        Ok(self.summary())
    }

    /// As [`Writer::finish`], and ready to go on.
    pub(crate) fn flush(&mut self) -> Result<()> {
        self.settle()?;
        self.start_workers();
        Ok(())
    }

    fn settle(&mut self) -> Result<()> {
        self.shared.check()?;
        for (kind, pack) in [(BlobKind::Data, &self.data_pack), (BlobKind::Tree, &self.tree_pack)] {
            let rest = std::mem::replace(&mut *lock(pack), PackBuilder::new(kind, Vec::new()));
            if !rest.is_empty() {
                self.send(rest)?;
            }
        }
        self.queue = None;
        self.shared.wait_for(&self.workers)?;
        for worker in self.workers.drain(..) {
            worker.join().map_err(|_| Error::WorkerGone)?;
        }
        self.shared.check()?;
        let rest = std::mem::take(&mut lock(&self.shared.pending).index);
        if !rest.is_empty() {
            rest.save(&self.shared.repo, &self.shared.permit)?;
        }
        if let Noted::Packs(notes) = std::mem::take(&mut *lock(&self.shared.notes))
            && let Err(error) = notes.remove()
        {
            tracing::debug!(%error, "cannot remove the notes of what was stored");
        }
        Ok(())
    }

    /// Whether it is the caller who stores this blob.
    fn claim(&self, kind: BlobKind, id: Id) -> bool {
        !self.index.contains(kind, &id) && lock(&self.claimed).insert((kind, id))
    }

    fn store(&self, kind: BlobKind, id: Id, plaintext: &[u8]) -> Result<PutOutcome> {
        let raw_length = plain_length(kind, plaintext)?;
        let began = Instant::now();
        let mut scratch = self.scratch()?;
        let Scratch { compressor, buffer } = &mut scratch;
        buffer.resize(IV_LENGTH, 0);
        let effort = match kind {
            BlobKind::Data => self.shared.levels.effort(),
            BlobKind::Tree => Some(Effort::Level(TREE_LEVEL)),
        };
        // Format 2 allows both; what does not get smaller is stored as it is, and reads faster.
        let is_smaller = match effort {
            Some(effort) => compressor.append(plaintext, effort, buffer, plaintext.len())?,
            None => false,
        };
        if !is_smaller {
            buffer.reserve(plaintext.len() + OVERHEAD);
            buffer.extend_from_slice(plaintext);
        }
        self.shared.repo.key().seal_in_place(buffer)?;
        self.shared.levels.add_work(began.elapsed());
        let stored_bytes = buffer.len() as u64;
        self.append(kind, id, buffer, is_smaller.then_some(raw_length))?;
        lock(&self.scratch).push(scratch);
        self.shared.count(u64::from(raw_length), stored_bytes);
        Ok(PutOutcome { id, new: true, stored_bytes })
    }

    /// Compresses a stream behind the room that sealing needs.
    fn compress_stream(
        &self,
        raw_length: u32,
        write: &impl Fn(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<Vec<u8>> {
        let mut encoder = zstd::Encoder::new(vec![0; IV_LENGTH], TREE_LEVEL)?;
        encoder.set_pledged_src_size(Some(u64::from(raw_length)))?;
        let mut buffered = BufWriter::with_capacity(1 << 17, encoder);
        write(&mut buffered)?;
        let encoder = buffered.into_inner().map_err(|e| e.into_error())?;
        encoder.finish()
    }

    fn store_stream(&self, kind: BlobKind, id: Id, raw_length: u32, mut sealed: Vec<u8>) -> Result<PutOutcome> {
        self.shared.repo.key().seal_in_place(&mut sealed)?;
        let stored_bytes = sealed.len() as u64;
        if sealed.len() >= OWN_PACK_BYTES {
            self.send(PackBuilder::of_one(kind, id, sealed, Some(raw_length))?)?;
        } else {
            self.append(kind, id, &sealed, Some(raw_length))?;
        }
        self.shared.count(u64::from(raw_length), stored_bytes);
        Ok(PutOutcome { id, new: true, stored_bytes })
    }

    fn scratch(&self) -> Result<Scratch> {
        if let Some(scratch) = lock(&self.scratch).pop() {
            return Ok(scratch);
        }
        Ok(Scratch { compressor: BlobCompressor::new()?, buffer: Vec::new() })
    }

    /// Puts a sealed blob into the open pack; a full pack goes to the writer threads.
    fn append(&self, kind: BlobKind, id: Id, sealed: &[u8], raw_length: Option<u32>) -> Result<()> {
        let shared = &self.shared;
        let open = match kind {
            BlobKind::Data => &self.data_pack,
            BlobKind::Tree => &self.tree_pack,
        };
        let full = {
            let mut pack = lock(open);
            pack.add(id, sealed, raw_length)?;
            pack.is_full(shared.options.pack_bytes).then(|| {
                let room = shared.options.pack_bytes + shared.options.pack_bytes / 8;
                let spare = lock(&shared.spare).pop().unwrap_or_else(|| Vec::with_capacity(room));
                std::mem::replace(&mut *pack, PackBuilder::new(kind, spare))
            })
        };
        match full {
            Some(full) => self.send(full),
            None => Ok(()),
        }
    }

    fn send(&self, pack: PackBuilder) -> Result<()> {
        match &self.queue {
            Some(queue) => {
                let (mut pack, began) = (pack, Instant::now());
                // Whoever stores packs may be stuck when the lock is lost.
                while let Err(error) = queue.send_timeout(pack, LOOK) {
                    self.shared.check()?;
                    pack = match error {
                        SendTimeoutError::Timeout(pack) => pack,
                        SendTimeoutError::Disconnected(_) => return Err(Error::WorkerGone),
                    };
                }
                self.shared.levels.add_pack(began.elapsed());
                Ok(())
            }
            None => Err(Error::WorkerGone),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.abandoned.store(true, Ordering::Relaxed);
        self.queue = None;
        if self.shared.wait_for(&self.workers).is_err() {
            // They write nothing more, and end by themselves.
            return;
        }
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl WriterShared {
    /// Waits for the end of the workers, but not any longer when the lock is lost: they may wait for a slow place. When
    /// it is time to stop they end soon, at the next piece that goes out.
    fn wait_for(&self, workers: &[JoinHandle<()>]) -> Result<()> {
        let mut is_lost = self.permit.check();
        while !workers.iter().all(JoinHandle::is_finished) {
            is_lost?;
            thread::sleep(TICK);
            is_lost = self.permit.check();
        }
        Ok(())
    }

    /// Whether nothing that is still on its way will be needed.
    fn is_over(&self) -> bool {
        let is_stopped = self.stop.get().is_some_and(|stop| stop.load(Ordering::Relaxed));
        is_stopped || self.abandoned.load(Ordering::Relaxed) || self.failed.load(Ordering::Acquire)
    }

    /// The error of a writer thread, if there was one, that the lock is lost, or that it is time to stop.
    fn check(&self) -> Result<()> {
        self.permit.check()?;
        if self.stop.get().is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            return Err(storage::Error::Interrupted.into());
        }
        if !self.failed.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(match self.failure.get() {
            Some(failure) => Error::Writer(Arc::clone(failure)),
            None => Error::WorkerGone,
        })
    }

    fn fail(&self, error: Error) -> Error {
        let failure = self.failure.get_or_init(|| Arc::new(error));
        self.failed.store(true, Ordering::Release);
        Error::Writer(Arc::clone(failure))
    }

    /// A blob that was claimed and then not stored must stop everything: others rely on it.
    fn guard<T>(&self, store: impl FnOnce() -> Result<T>) -> Result<T> {
        store().map_err(|error| self.fail(error))
    }

    fn count(&self, plain_bytes: u64, stored_bytes: u64) {
        self.new_blobs.fetch_add(1, Ordering::Relaxed);
        self.new_bytes.fetch_add(plain_bytes, Ordering::Relaxed);
        self.stored_bytes.fetch_add(stored_bytes, Ordering::Relaxed);
    }

    fn store_packs(&self, packs: &Receiver<PackBuilder>) {
        // To the end even after a failure: callers may be waiting to send.
        for pack in packs {
            if self.is_over() {
                continue;
            }
            if let Err(error) = self.store_pack(pack) {
                self.fail(error);
            }
        }
    }

    fn store_pack(&self, pack: PackBuilder) -> Result<()> {
        let pack = pack.finish(self.repo.key())?;
        let name = pack.id.to_string();
        self.permit.check()?;
        let goes_on = |_| self.permit.check().is_ok() && !self.is_over();
        let written = self.repo.storage().write_gated(FileKind::Pack, &name, &pack.bytes, &goes_on);
        // That is the cause of whatever came of it.
        self.permit.check()?;
        written?;
        self.packs.fetch_add(1, Ordering::Relaxed);
        self.note(&pack.id);
        self.name(&pack)?;
        let mut spare = lock(&self.spare);
        if spare.len() < self.workers && pack.bytes.len() < 2 * self.options.pack_bytes {
            spare.push(pack.bytes);
        }
        Ok(())
    }

    /// Notes a durable pack, for whoever comes after us should we not live to name it.
    fn note(&self, pack: &Id) {
        let Some(host_folder) = self.repo.host_folder() else {
            return;
        };
        let mut noted = lock(&self.notes);
        let added = match &mut *noted {
            Noted::GivenUp => return,
            Noted::Packs(notes) => notes.add(pack),
            Noted::Nothing => Notes::begin(host_folder).and_then(|mut notes| {
                notes.add(pack)?;
                *noted = Noted::Packs(notes);
                Ok(())
            }),
        };
        if let Err(error) = added {
            tracing::warn!(%error, "cannot record what was stored: if this run is killed, it is stored again");
            *noted = Noted::GivenUp;
        }
    }

    /// Enters a durable pack into the pending index, and saves that when it is time.
    fn name(&self, pack: &FinishedPack) -> Result<()> {
        let mut pending = lock(&self.pending);
        let is_due =
            pending.index.is_full_with(pack.entries.len()) || pending.since.elapsed() >= self.options.index_interval;
        let due = is_due.then(|| {
            pending.since = Instant::now();
            std::mem::take(&mut pending.index)
        });
        pending.index.add(pack.id, pack.entries.iter().map(|entry| (pack.kind, entry)));
        drop(pending);
        match due {
            Some(index) if !index.is_empty() => index.save(&self.repo, &self.permit).map(drop),
            _ => Ok(()),
        }
    }
}

/// The length of a blob that fits into one.
fn plain_length(kind: BlobKind, plaintext: &[u8]) -> Result<u32> {
    let size_bytes = plaintext.len() as u64;
    u32::try_from(size_bytes).map_err(|_| Error::BlobTooLarge { kind, size_bytes })
}

fn known(id: Id) -> PutOutcome {
    PutOutcome { id, new: false, stored_bytes: 0 }
}

/// The name of what is written.
fn hash_stream(write: &impl Fn(&mut dyn Write) -> io::Result<()>) -> io::Result<Id> {
    let mut buffered = BufWriter::with_capacity(1 << 16, Sha256::new());
    write(&mut buffered)?;
    let hasher = buffered.into_inner().map_err(|e| e.into_error())?;
    Ok(Id::from_bytes(hasher.finalize().into()))
}

/// Counts what is written.
struct LengthOnly(u64);

impl Write for LengthOnly {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
