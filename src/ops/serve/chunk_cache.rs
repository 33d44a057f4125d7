//! The chunks of a served point: read once, verified, kept while they are used.
//!
//! ```text
//! absent ─ wanted or read ahead ─→ loading ─┬─→ loaded ─ not used for long ─→ absent
//!    ↑                                      ├─→ damaged: it stays that, and is reported once
//!    └──────── the repository is unreachable ┘
//! ```
//! Whoever wants a chunk that is loading waits for it: it is never read twice at once. Chunks that are being sent count
//! with those that are kept, and only so many are read at once: memory does not grow with the connections.

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

/// How much memory chunks take: those that are kept, and those that are being sent.
const KEPT_BYTES: usize = 48 << 20;

/// The sealed bytes of one read-ahead request: several chunks, so that there are few requests to a disk or a server,
/// but not so many that one thread reads all that one client will need.
const GROUP_BYTES: u64 = 2 << 20;

/// The number of requests that may wait for a thread.
const QUEUE: usize = 32;

/// How often somebody who waits for a chunk looks at the stop flag.
const TICK: Duration = Duration::from_millis(100);

/// Why a chunk cannot be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unavailable {
    /// It is damaged, or gone.
    Damaged(Arc<str>),
    /// The repository cannot be reached now.
    Unreachable(String),
    Stopping,
}

enum Slot {
    Loading {
        /// Whether somebody waits for it.
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
    /// How many are read because somebody waits for them.
    wanted: usize,
    /// How many wait until fewer are.
    waiting: usize,
}

impl Slots {
    /// The bytes of a loaded chunk, which are used now.
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

    /// Drops what was not used for long, until there is memory for so many bytes or all that is left is being sent.
    fn make_room(&mut self, buffers: &ChunkBuffers, length: usize) {
        let mut passed = 0;
        while buffers.excess(length) > 0
            && let Some((use_number, id)) = self.by_use.range(passed..).next().map(|(number, id)| (*number, *id))
        {
            passed = use_number + 1;
            // One that is sent would keep its memory.
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
    /// How many chunks may be read at once for somebody who waits.
    most_wanted: usize,
    stop: Stop,
}

/// Verified chunks of one repository.
pub(super) struct ChunkCache {
    shared: Arc<Shared>,
    /// Chunks to read ahead; the threads end when this is dropped.
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
            // Without such a thread, clients load their chunks themselves.
            let _ = thread::Builder::new().spawn(move || wanted.iter().for_each(|ids| shared.load_all(ids)));
        }
        ChunkCache { shared, ahead, streams: Mutex::default() }
    }

    /// A chunk, as the repository's index and its SHA-256 say that it is.
    pub(super) fn get(&self, id: &Id) -> Result<Arc<ChunkBuffer>, Unavailable> {
        self.shared.get(id)
    }

    /// Whether a chunk is there, or on its way.
    pub(super) fn is_known(&self, id: &Id) -> bool {
        self.shared.slots().by_id.contains_key(id)
    }

    /// How far to read ahead of whoever reads this part of a disk now, if he goes on from where he was.
    pub(super) fn ahead_of(&self, disk: usize, chunk: (u64, u64)) -> Option<u64> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).ahead_of(disk, chunk)
    }

    /// Has those of the chunks read that are not there. It does not wait: when too much waits for the readers, nobody
    /// reads ahead.
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

    /// Puts what reading a chunk came to in its place, and wakes whoever waits for it.
    fn put(&self, id: Id, read: Result<&[u8], &repo::Error>) -> Result<Arc<ChunkBuffer>, Unavailable> {
        let copied = read.map(|bytes| {
            self.slots().make_room(&self.buffers, bytes.len());
            Arc::new(self.buffers.copy_of(bytes))
        });
        let mut slots = self.slots();
        // Most of what is read ahead nobody waits for yet, and those who wait for other chunks need not look.
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

    /// Reads chunks that were marked as loading.
    fn load_all(&self, ids: Vec<Id>) {
        let flag = self.stop.flag();
        let read = read_blobs(&self.repo, &self.index, ids.clone(), 1, &flag, |id, blob| {
            // Whoever wants it asks for it.
            let _ = self.put(id, blob.as_ref().map(|bytes| *bytes));
            ControlFlow::Continue(())
        });
        if let Err(error) = read {
            tracing::debug!("reading ahead: {error}");
        }
        self.forget(&ids);
    }

    /// Chunks that are still marked as loading are not: whoever waits for one reads it.
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
