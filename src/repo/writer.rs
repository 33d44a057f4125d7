//! Writes blobs: hash, look up, compress, seal, pack, store.
//!
//! ```text
//! callers' threads:  put ─ SHA-256 ─ known? ─ zstd ─ seal ─┬─ open data pack ┐ full
//!                                                          └─ open tree pack ┴──► bounded channel
//! writer threads:    header, SHA-256 of the pack, storage.write (durable) ─► pending index ─► index file
//! ```
//!
//! An index file lists only packs that are durable. It is written whenever 50,000 blobs are pending or
//! [`WriterOptions::index_interval`] has passed, so that the work of an interrupted run is not lost, and by
//! [`Writer::finish`]. Dropping a writer leaves packs that are not in the index, or blobs that are not referenced. They
//! are harmless, and removed by the next prune, unless a run comes before that can use them
//! ([`super::orphaned_packs`]).
//!
//! Memory: two open packs, one in the channel, one in each writer thread; a compression context and two buffers of a
//! blob's size for each thread that calls `put` at the same time; and the id of each new blob in a hash set.

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

/// The only size of a blob of zeros that restic restores as a hole.
pub(crate) const ZERO_BLOB_BYTES: usize = 512 << 10;

/// Streams up to this size are buffered and written in one pass.
const SMALL_STREAM_BYTES: usize = 1 << 20;
/// The size from which on a compressed stream gets its own pack, which avoids a copy.
const OWN_PACK_BYTES: usize = 4 << 20;

/// The interval of checks of the lock while a pack cannot be passed to the writer threads.
const LOOK: Duration = Duration::from_millis(100);
/// The interval of checks of the writer threads.
const TICK: Duration = Duration::from_millis(2);

/// Returns the id of the blob of [`ZERO_BLOB_BYTES`] zeros.
pub fn zero_blob_id() -> Id {
    static ID: LazyLock<Id> = LazyLock::new(|| Id::hash(&vec![0; ZERO_BLOB_BYTES]));
    *ID
}

/// Options of a writer.
#[derive(Debug, Clone)]
pub struct WriterOptions {
    /// The compression of data blobs.
    pub compression: Compression,
    /// The size at which a pack is closed.
    pub pack_bytes: usize,
    /// The interval at which an index of the packs stored so far is saved.
    pub index_interval: Duration,
    /// The number of concurrent writers, which share the number of packs that are stored at once to limit memory.
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

/// The outcome of storing a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PutOutcome {
    pub id: Id,
    /// Whether the blob was not in the repository yet.
    pub(crate) new: bool,
    /// Its stored size, if it is new.
    pub(crate) stored_bytes: u64,
}

/// The statistics of a writer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WriteSummary {
    /// Blobs that were not in the repository yet.
    pub(crate) new_blobs: u64,
    pub(crate) new_bytes: u64,
    /// Their stored size, compressed and sealed.
    pub(crate) stored_bytes: u64,
    pub packs: u64,
}

/// Stores blobs in a repository. May be used by several threads at once.
pub struct Writer {
    shared: Arc<WriterShared>,
    index: Arc<Index>,
    /// Blobs of this run, stored or being stored.
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

/// The state that callers and writer threads share.
struct WriterShared {
    repo: Repository,
    permit: Permit,
    options: WriterOptions,
    levels: LevelChooser,
    /// How many packs are stored at the same time.
    workers: usize,
    pending: Mutex<PendingBlob>,
    notes: Mutex<Noted>,
    /// Buffers of stored packs, for reuse.
    spare: Mutex<Vec<Vec<u8>>>,
    failed: AtomicBool,
    failure: OnceLock<Arc<Error>>,
    abandoned: AtomicBool,
    /// The flag that stops all waiting, if one was set.
    stop: OnceLock<Arc<AtomicBool>>,
    new_blobs: AtomicU64,
    new_bytes: AtomicU64,
    stored_bytes: AtomicU64,
    packs: AtomicU64,
}

/// Whether stored packs are recorded.
#[derive(Default)]
enum Noted {
    /// No pack was recorded yet.
    #[default]
    Nothing,
    Packs(Notes),
    GivenUp,
}

struct PendingBlob {
    index: PendingIndex,
    since: Instant,
}

/// The reusable state of a `put` call.
struct Scratch {
    compressor: BlobCompressor,
    buffer: Vec<u8>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Writer {
    /// Creates a writer. `index` lists the existing blobs: load it after taking the repository's lock, which provides
    /// the permit. Once the lock is lost nothing is written, and every call fails with [`Error::LockLost`].
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
        // With few writer threads, one more pack may wait. Otherwise it would only take memory.
        let (queue, packs) = bounded(usize::from(self.shared.workers < 4 && self.shared.options.writers == 1));
        let worker = |_| {
            let (shared, packs) = (Arc::clone(&self.shared), packs.clone());
            thread::Builder::new().spawn(move || shared.store_packs(&packs))
        };
        for number in 0..self.shared.workers {
            match worker(number) {
                Ok(worker) => self.workers.push(worker),
                Err(error) if number == 0 => drop(self.shared.fail(Error::NoThread(error))),
                // Fewer threads are sufficient.
                Err(_) => break,
            }
        }
        self.queue = Some(queue);
    }

    /// Stops all waiting and writing when this flag is set: every call then fails. Only the first flag is used.
    pub(crate) fn end_with(&self, stop: Arc<AtomicBool>) {
        // As documented, another flag is ignored.
        let _ = self.shared.stop.set(stop);
    }

    /// Returns whether the repository has this blob, or will have it when this writer is finished.
    pub(crate) fn has(&self, kind: BlobKind, id: &Id) -> bool {
        self.index.contains(kind, id) || lock(&self.claimed).contains(&(kind, *id))
    }

    /// Stores a blob from another repository. It is kept as it is, unless recompression is requested, or worthwhile
    /// because the storage is slow.
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

    /// Stores a blob, unless it exists or another thread is storing it.
    pub fn put(&self, kind: BlobKind, plaintext: &[u8]) -> Result<PutOutcome> {
        self.shared.check()?;
        let id = Id::hash(plaintext);
        if !self.claim(kind, id) {
            return Ok(known(id));
        }
        self.shared.guard(|| self.store(kind, id, plaintext))
    }

    /// Stores the output of `write`, holding only its compressed form in memory. `write` is called several times, for
    /// the length, the hash and the content, and must write the same each time.
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
        // Such a large stream is usually new, so it is hashed and compressed at the same time.
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

    /// Stores a sealed blob from another pack as it is. The caller has verified it, and passes each blob only once.
    /// Whether the blob exists is neither checked nor remembered.
    pub(super) fn put_sealed(&self, kind: BlobKind, id: Id, sealed: &[u8], raw_length: Option<u32>) -> Result<()> {
        self.shared.check()?;
        self.shared.guard(|| self.append(kind, id, sealed, raw_length))?;
        self.shared.count(u64::from(raw_length.unwrap_or(0)), sealed.len() as u64);
        Ok(())
    }

    /// Returns what was written so far, including packs that are still open.
    pub fn summary(&self) -> WriteSummary {
        let shared = &self.shared;
        WriteSummary {
            new_blobs: shared.new_blobs.load(Ordering::Relaxed),
            new_bytes: shared.new_bytes.load(Ordering::Relaxed),
            stored_bytes: shared.stored_bytes.load(Ordering::Relaxed),
            packs: shared.packs.load(Ordering::Relaxed),
        }
    }

    /// Stores the remaining packs and their index. When it returns, all blobs are durable and may be referred to.
    pub fn finish(mut self) -> Result<WriteSummary> {
        self.settle()?;
        Ok(self.summary())
    }

    /// Like [`Writer::finish`], but the writer can be used further.
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

    /// Returns whether the caller has to store this blob.
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
        // Format 2 allows both. Data that does not shrink is stored uncompressed, which reads faster.
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

    /// Compresses a stream, after space for the IV.
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

    /// Appends a sealed blob to the open pack. A full pack is passed to the writer threads.
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
                // The writer threads may hang after the lock is lost.
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
            // The threads write nothing more, and end on their own.
            return;
        }
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl WriterShared {
    /// Waits for the workers to end, but gives up when the lock is lost, because they may wait for a slow storage. When
    /// the program is interrupted, they end soon, before the next piece is sent.
    fn wait_for(&self, workers: &[JoinHandle<()>]) -> Result<()> {
        let mut is_lost = self.permit.check();
        while !workers.iter().all(JoinHandle::is_finished) {
            is_lost?;
            thread::sleep(TICK);
            is_lost = self.permit.check();
        }
        Ok(())
    }

    /// Returns whether all pending data is obsolete.
    fn is_over(&self) -> bool {
        let is_stopped = self.stop.get().is_some_and(|stop| stop.load(Ordering::Relaxed));
        is_stopped || self.abandoned.load(Ordering::Relaxed) || self.failed.load(Ordering::Acquire)
    }

    /// Fails if a writer thread has failed, the lock is lost, or the program is interrupted.
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

    /// A blob that was claimed but not stored must stop everything, because other callers rely on it.
    fn guard<T>(&self, store: impl FnOnce() -> Result<T>) -> Result<T> {
        store().map_err(|error| self.fail(error))
    }

    fn count(&self, plain_bytes: u64, stored_bytes: u64) {
        self.new_blobs.fetch_add(1, Ordering::Relaxed);
        self.new_bytes.fetch_add(plain_bytes, Ordering::Relaxed);
        self.stored_bytes.fetch_add(stored_bytes, Ordering::Relaxed);
    }

    fn store_packs(&self, packs: &Receiver<PackBuilder>) {
        // Receive to the end even after a failure: callers may be waiting to send.
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
        // A lost lock is the cause of any error of the write.
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

    /// Records a durable pack, so that a later run can use it if this one ends before it is in an index.
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

    /// Adds a durable pack to the pending index, which is saved if it is due.
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

/// Returns the length of a blob, or an error if it is too large for the format.
fn plain_length(kind: BlobKind, plaintext: &[u8]) -> Result<u32> {
    let size_bytes = plaintext.len() as u64;
    u32::try_from(size_bytes).map_err(|_| Error::BlobTooLarge { kind, size_bytes })
}

fn known(id: Id) -> PutOutcome {
    PutOutcome { id, new: false, stored_bytes: 0 }
}

/// Hashes the output of `write`.
fn hash_stream(write: &impl Fn(&mut dyn Write) -> io::Result<()>) -> io::Result<Id> {
    let mut buffered = BufWriter::with_capacity(1 << 16, Sha256::new());
    write(&mut buffered)?;
    let hasher = buffered.into_inner().map_err(|e| e.into_error())?;
    Ok(Id::from_bytes(hasher.finalize().into()))
}

/// Counts the bytes that are written.
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
