//! The chunks of a served point: read once, verified, and kept while they are used.
//!
//! ```text
//!  absent ─ wanted or read ahead ─→ loading ─┬─→ loaded ─ not used for long ─→ absent
//!     ↑                                      ├─→ damaged: final, reported once
//!     └──────── the repository is unreachable ┘
//! ```
//! A chunk is never read twice at the same time: requests for a chunk that is loading wait for it. Chunks that are
//! being sent count towards the memory limit, and the number of parallel reads is limited, so memory does not grow with
//! the number of connections.

use super::super::{Stop, threads};
use super::chunk_buffers::{ChunkBuffer, ChunkBuffers};
use super::read_ahead::Streams;
use crate::repo::{self, Id, Index, Repository, read_blobs, read_groups};
use crossbeam_channel::{Sender, bounded};
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// The memory for chunks, both cached ones and those being sent.
const KEPT_BYTES: usize = 48 << 20;

/// The encrypted size of one read-ahead request. It has several chunks, so that a disk or server receives few requests,
/// but is small enough that several threads share the chunks that one client will need.
const GROUP_BYTES: u64 = 2 << 20;

/// The number of requests that may wait for a thread.
const QUEUE: usize = 32;

/// How often a thread that waits for a chunk checks the stop flag.
const TICK: Duration = Duration::from_millis(100);

/// Why a chunk is not available.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unavailable {
    /// The chunk is damaged or lost.
    Damaged(Arc<str>),
    /// The repository is currently unreachable.
    Unreachable(String),
    Stopping,
}

enum Slot {
    Loading {
        /// Whether a request waits for it.
        is_awaited: bool,
    },
    Loaded {
        bytes: Arc<ChunkBuffer>,
        last_use: u64,
    },
    Damaged(Arc<str>),
}

#[derive(Default)]
struct Slots {
    by_id: HashMap<Id, Slot>,
    by_use: BTreeMap<u64, Id>,
    uses: u64,
    /// The number of chunks that are being read for a waiting request.
    wanted: usize,
    /// The number of requests that wait until fewer are being read.
    waiting: usize,
}

impl Slots {
    /// Returns the bytes of a loaded chunk and marks it as just used.
    fn touch(&mut self, id: &Id) -> Option<Arc<ChunkBuffer>> {
        let Some(Slot::Loaded { bytes, last_use }) = self.by_id.get_mut(id) else { return None };
        self.uses += 1;
        self.by_use.remove(last_use);
        self.by_use.insert(self.uses, *id);
        *last_use = self.uses;
        Some(Arc::clone(bytes))
    }

    fn store(&mut self, id: Id, bytes: Arc<ChunkBuffer>) {
        self.uses += 1;
        self.by_use.insert(self.uses, id);
        self.by_id.insert(id, Slot::Loaded { bytes, last_use: self.uses });
    }

    /// Drops the least recently used chunks until this number of bytes is available, or only chunks being sent are
    /// left.
    fn make_room(&mut self, buffers: &ChunkBuffers, length: usize) {
        let mut passed = 0;
        while buffers.excess(length) > 0
            && let Some((use_number, id)) = self.by_use.range(passed..).next().map(|(number, id)| (*number, *id))
        {
            passed = use_number + 1;
            // Dropping a chunk that is being sent would not free its memory.
            if matches!(self.by_id.get(&id), Some(Slot::Loaded { bytes, .. }) if Arc::strong_count(bytes) == 1) {
                self.by_use.remove(&use_number);
                self.by_id.remove(&id);
            }
        }
    }
}

struct Shared {
    repo: Repository,
    index: Arc<Index>,
    slots: Mutex<Slots>,
    buffers: Arc<ChunkBuffers>,
    changed: Condvar,
    /// The maximum number of chunks that are read in parallel for waiting requests.
    most_wanted: usize,
    stop: Stop,
}

/// Verified chunks of one repository.
pub(super) struct ChunkCache {
    shared: Arc<Shared>,
    /// Chunks to read ahead. The threads end when this is dropped.
    ahead: Sender<Vec<Id>>,
    streams: Mutex<Streams>,
}

impl ChunkCache {
    pub(super) fn new(repo: Repository, index: Arc<Index>, stop: Stop) -> ChunkCache {
        let readers = threads::for_disks().max(repo.storage().parallel());
        let shared = Arc::new(Shared {
            repo,
            index,
            slots: Mutex::default(),
            buffers: ChunkBuffers::new(KEPT_BYTES),
            changed: Condvar::new(),
            most_wanted: readers,
            stop,
        });
        let (ahead, wanted) = bounded::<Vec<Id>>(QUEUE);
        for _ in 0..readers {
            let (wanted, shared) = (wanted.clone(), Arc::clone(&shared));
            // If a thread cannot start, requests load their chunks themselves.
            let _ = thread::Builder::new().spawn(move || wanted.iter().for_each(|ids| shared.load_all(ids)));
        }
        ChunkCache { shared, ahead, streams: Mutex::default() }
    }

    /// Returns a chunk after verifying its SHA-256.
    pub(super) fn get(&self, id: &Id) -> Result<Arc<ChunkBuffer>, Unavailable> {
        self.shared.get(id)
    }

    /// Whether a chunk is loaded or loading.
    pub(super) fn is_known(&self, id: &Id) -> bool {
        self.shared.slots().by_id.contains_key(id)
    }

    /// How far to read ahead of the reader of this part of a disk, if it reads sequentially.
    pub(super) fn ahead_of(&self, disk: usize, chunk: (u64, u64)) -> Option<u64> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).ahead_of(disk, chunk)
    }

    /// Requests the chunks that are absent. This never waits: if too many requests are queued, nothing is read ahead.
    pub(super) fn read_ahead(&self, ids: impl IntoIterator<Item = Id>) {
        let mut slots = self.shared.slots();
        let mut wanted = Vec::new();
        for id in ids {
            if let Entry::Vacant(slot) = slots.by_id.entry(id) {
                slot.insert(Slot::Loading { is_awaited: false });
                wanted.push(id);
            }
        }
        drop(slots);
        for group in read_groups(&self.shared.index, &wanted, GROUP_BYTES) {
            if let Err(busy) = self.ahead.try_send(group) {
                self.shared.forget(&busy.into_inner());
            }
        }
    }
}

impl Shared {
    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, id: &Id) -> Result<Arc<ChunkBuffer>, Unavailable> {
        let mut slots = self.slots();
        loop {
            if let Some(bytes) = slots.touch(id) {
                return Ok(bytes);
            }
            let is_absent = match slots.by_id.get_mut(id) {
                Some(Slot::Damaged(reason)) => return Err(Unavailable::Damaged(Arc::clone(reason))),
                Some(Slot::Loading { is_awaited }) => {
                    *is_awaited = true;
                    false
                }
                known => known.is_none(),
            };
            if is_absent && slots.wanted < self.most_wanted {
                break;
            }
            if self.stop.requested() {
                return Err(Unavailable::Stopping);
            }
            slots.waiting += usize::from(is_absent);
            slots = self.changed.wait_timeout(slots, TICK).unwrap_or_else(PoisonError::into_inner).0;
            slots.waiting -= usize::from(is_absent);
        }
        slots.by_id.insert(*id, Slot::Loading { is_awaited: false });
        slots.wanted += 1;
        drop(slots);
        let read = self.repo.read_blob(&self.index, id);
        self.slots().wanted -= 1;
        self.put(*id, read.as_deref())
    }

    /// Stores the result of reading a chunk and wakes the threads that wait for it.
    fn put(&self, id: Id, read: Result<&[u8], &repo::Error>) -> Result<Arc<ChunkBuffer>, Unavailable> {
        let copied = read.map(|bytes| {
            self.slots().make_room(&self.buffers, bytes.len());
            Arc::new(self.buffers.copy_of(bytes))
        });
        let mut slots = self.slots();
        // Most chunks that are read ahead have no waiting request yet, and threads that wait for other chunks need not
        // wake.
        let is_awaited = slots.waiting > 0 || matches!(slots.by_id.get(&id), Some(Slot::Loading { is_awaited: true }));
        let result = match copied {
            Ok(bytes) => {
                slots.store(id, Arc::clone(&bytes));
                Ok(bytes)
            }
            Err(error) if error.is_unreachable() => {
                slots.by_id.remove(&id);
                Err(Unavailable::Unreachable(error.to_string()))
            }
            Err(error) => {
                let reason: Arc<str> = error.to_string().into();
                slots.by_id.insert(id, Slot::Damaged(Arc::clone(&reason)));
                Err(Unavailable::Damaged(reason))
            }
        };
        drop(slots);
        if is_awaited {
            self.changed.notify_all();
        }
        result
    }

    /// Reads chunks that are marked as loading.
    fn load_all(&self, ids: Vec<Id>) {
        let flag = self.stop.flag();
        let read = read_blobs(&self.repo, &self.index, ids.clone(), 1, &flag, |id, blob| {
            // Requests take the result from the cache.
            let _ = self.put(id, blob.as_ref().map(|bytes| *bytes));
            ControlFlow::Continue(())
        });
        if let Err(error) = read {
            tracing::debug!("reading ahead: {error}");
        }
        self.forget(&ids);
    }

    /// Removes the marks of chunks that are still marked as loading. Waiting requests then read them.
    fn forget(&self, ids: &[Id]) {
        let mut slots = self.slots();
        for id in ids {
            if matches!(slots.by_id.get(id), Some(Slot::Loading { .. })) {
                slots.by_id.remove(id);
            }
        }
        drop(slots);
        self.changed.notify_all();
    }
}
