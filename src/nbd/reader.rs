//! The fast path: the map and the data of a whole disk, over several connections with many requests in flight.
//!
//! ```text
//!              NBD_CMD_BLOCK_STATUS             NBD_CMD_READ             one buffer each, recycled
//! connection 1 ──────► map ──► plan (runs) ──┬─► reads in flight ──┬──► ready ──► the consumer's iterator
//! connection 2 ──────────────────────────────┴─► reads in flight ──┘
//! ```
//!
//! Every connection has a thread. The first one also requests the map, one request ahead of the reads, so that data
//! flows before the whole map is known. Chunks are assigned in ascending order, each with a sequence number.
//!
//! **Memory** is limited by permits: a chunk takes one when it is assigned to be read and returns it when the consumer
//! takes the chunk, so at most `in_flight` buffers exist between the two. Permits are granted in ascending order, so
//! the chunk that an ordered consumer waits for always has one: later chunks cannot starve it. Chunks that the consumer
//! holds do not count. The buffer of a dropped [`ChunkBytes`] is reused.
//!
//! **Termination**: the threads end when nothing is left to read, when one of them fails, or - within a tenth of a
//! second - when the consumer is gone or the stop flag is set.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use super::client::{Client, ClientOptions, ReplyBody, Ticket};
use super::extents::{ChunkCutter, ChunkRun, ChunkState, Mapper, MapperStep};
use super::uri::NbdUri;
use super::wire::{BASE_ALLOCATION, Violation};
use super::{Error, Result};

/// The interval at which waits check the stop flag.
const TICK: Duration = Duration::from_millis(100);

/// More of the map is requested when fewer runs than this are planned.
const LOW_PLAN_RUNS: usize = 64;

/// The maximum number of runs without data that wait for the consumer. They are small, but a disk can have many.
const MAX_READY: usize = 1024;

/// The timeout for each further connection: a server that allows several may have no free slots left, and then does not
/// answer at all.
const FURTHER_CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);

/// Options for reading a disk.
#[derive(Debug, Clone)]
pub struct ReadOptions {
    /// The size of a chunk in bytes; the last one of a disk may be shorter.
    pub chunk_bytes: u32,
    /// The number of connections, if the server allows more than one.
    pub connections: usize,
    /// The maximum number of chunks that are being read or wait for the consumer, over all connections: limits the
    /// memory.
    pub in_flight: usize,
    /// The timeout for an answer of the server.
    pub timeout: Duration,
    /// The metadata context of the dirty bitmap, `qemu:dirty-bitmap:NAME`.
    pub bitmap_context: Option<String>,
    /// Returns partially dirty chunks without reading them, as [`Chunk::Mixed`] with pieces of this size.
    pub piece_bytes: Option<u32>,
    /// May be set by another thread to end the read with [`Error::Stopped`].
    pub stop: Arc<AtomicBool>,
}

impl Default for ReadOptions {
    fn default() -> ReadOptions {
        ReadOptions {
            chunk_bytes: 1024 * 1024,
            connections: 2,
            in_flight: 16,
            timeout: Duration::from_secs(60),
            bitmap_context: None,
            piece_bytes: None,
            stop: Arc::default(),
        }
    }
}

/// A part of the disk. Each chunk is in exactly one part.
#[derive(Debug)]
pub enum Chunk {
    /// A chunk that was read; it may still be all zeros.
    Data {
        /// The index of the chunk.
        index: u64,
        /// Its offset in bytes.
        offset: u64,
        /// All its bytes.
        bytes: ChunkBytes,
    },
    /// Chunks that are dirty, or not known to be clean, and read as zeros. They were not read.
    Zero {
        /// The index of the first one.
        first: u64,
        /// Their number.
        count: u64,
    },
    /// Chunks without a dirty byte. They were not read.
    Clean {
        /// The index of the first one.
        first: u64,
        /// Their number.
        count: u64,
        /// Whether they currently read as zeros.
        zero: bool,
    },
    /// A partially dirty chunk. It was not read. See [`ReadOptions::piece_bytes`].
    Mixed {
        /// The index of the chunk.
        index: u64,
        /// Its dirty pieces; bit 0 is the first one.
        dirty: u64,
        /// The pieces that are clean, and currently read as zeros.
        clean_zeros: u64,
    },
}

/// A chunk's bytes, in a buffer that is reused when this is dropped.
pub struct ChunkBytes {
    bytes: Vec<u8>,
    pool: Sender<Vec<u8>>,
}

impl Deref for ChunkBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for ChunkBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkBytes({} bytes)", self.bytes.len())
    }
}

impl Drop for ChunkBytes {
    fn drop(&mut self) {
        if self.bytes.capacity() > 0 {
            // If the pool is full, or the reader is gone, the memory is freed.
            let _ = self.pool.try_send(std::mem::take(&mut self.bytes));
        }
    }
}

/// A connected disk that is ready to be read.
#[derive(Debug)]
pub struct DiskReader {
    clients: Vec<Client>,
    options: ReadOptions,
}

impl DiskReader {
    /// Opens as many connections as `options` and the server allow.
    pub fn open(uri: &NbdUri, options: ReadOptions) -> Result<DiskReader> {
        let mut contexts = vec![BASE_ALLOCATION.to_owned()];
        contexts.extend(options.bitmap_context.clone());
        let first = Client::connect(
            uri,
            &ClientOptions { contexts, timeout: options.timeout, stop: Arc::clone(&options.stop) },
        )?;
        let size_bytes = first.size_bytes();
        let connections = if first.multi_conn() { options.connections.clamp(1, options.in_flight.max(1)) } else { 1 };
        let mut clients = vec![first];
        let further = ClientOptions {
            contexts: Vec::new(),
            timeout: options.timeout.min(FURTHER_CONNECTION_TIMEOUT),
            stop: Arc::clone(&options.stop),
        };
        while clients.len() < connections {
            match Client::connect(uri, &further) {
                Ok(client) if client.size_bytes() != size_bytes => {
                    return Err(Violation::SizeChanged { first: size_bytes, second: client.size_bytes() }.into());
                }
                Ok(client) => clients.push(client),
                Err(Error::Stopped) => return Err(Error::Stopped),
                Err(error) => {
                    tracing::debug!(%error, "reading over {} connections only", clients.len());
                    break;
                }
            }
        }
        Ok(DiskReader { clients, options })
    }

    /// Returns the size of the disk.
    pub fn size_bytes(&self) -> u64 {
        self.clients[0].size_bytes()
    }

    /// Returns whether the server has the requested bitmap. Without it, no chunk is ever [`Chunk::Clean`].
    pub fn has_bitmap(&self) -> bool {
        self.options.bitmap_context.as_deref().is_some_and(|name| self.clients[0].has_context(name))
    }

    /// Returns the number of connections.
    pub fn connections(&self) -> usize {
        self.clients.len()
    }

    /// Returns all chunks, in the order in which they arrive. The iterator ends after an error; nothing is known about
    /// chunks that were not returned before.
    pub fn chunks(self) -> Chunks {
        Chunks::start(self, Order::AsTheyCome)
    }

    /// Returns all chunks in ascending order.
    pub fn chunks_in_order(self) -> Chunks {
        Chunks::start(self, Order::Ascending)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    AsTheyCome,
    Ascending,
}

/// The chunks of a disk; see [`DiskReader::chunks`].
#[derive(Debug)]
pub struct Chunks {
    shared: Arc<ReaderShared>,
    order: Order,
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<()>>,
    ended: bool,
}

/// The state that the threads and the consumer share.
#[derive(Debug)]
struct ReaderShared {
    state: Mutex<ReaderState>,
    /// Signals that there may be chunks to assign.
    work: Condvar,
    /// Signals that there may be parts to deliver.
    delivery: Condvar,
    /// Ends all waits on the connections.
    halt: Arc<AtomicBool>,
    chunk_bytes: u64,
    size_bytes: u64,
    in_flight: usize,
    pool: Sender<Vec<u8>>,
    recycled: Receiver<Vec<u8>>,
}

#[derive(Debug, Default)]
struct ReaderState {
    /// The part of the map that was not assigned yet, in order.
    plan: VecDeque<ChunkRun>,
    map_is_complete: bool,
    /// The sequence number of the next part to assign, and the number of parts that were delivered.
    next_sequence: u64,
    delivered: u64,
    /// The number of data chunks that were assigned but not delivered.
    permits_used: usize,
    ready: BTreeMap<u64, Chunk>,
    workers_left: usize,
    failure: Option<Error>,
}

/// A chunk to read.
#[derive(Debug)]
struct Assignment {
    sequence: u64,
    index: u64,
    offset: u64,
    length: usize,
}

impl ReaderState {
    /// Moves runs that need no reading from the plan to the consumer.
    fn pass_through(&mut self) -> bool {
        let mut moved = false;
        while self.ready.len() < MAX_READY
            && let Some(run) = self.plan.front_mut()
        {
            let ChunkRun { first, count, .. } = *run;
            let mut is_done = true;
            let chunk = match run.state {
                ChunkState::Data => break,
                ChunkState::Zero => Chunk::Zero { first, count },
                ChunkState::Clean { zero } => Chunk::Clean { first, count, zero },
                ChunkState::Mixed { dirty, clean_zeros } => {
                    run.first += 1;
                    run.count -= 1;
                    is_done = run.count == 0;
                    Chunk::Mixed { index: first, dirty, clean_zeros }
                }
            };
            if is_done {
                self.plan.pop_front();
            }
            self.ready.insert(self.next_sequence, chunk);
            self.next_sequence += 1;
            moved = true;
        }
        moved
    }

    /// Returns the next chunk to read, if there is one and a permit for it.
    fn next_data(&mut self, in_flight: usize) -> Option<(u64, u64)> {
        if !self.has_data(in_flight) {
            return None;
        }
        let run = self.plan.front_mut()?;
        let index = run.first;
        run.first += 1;
        run.count -= 1;
        if run.count == 0 {
            self.plan.pop_front();
        }
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.permits_used += 1;
        Some((sequence, index))
    }

    fn has_data(&self, in_flight: usize) -> bool {
        let is_data = |run: &ChunkRun| run.state == ChunkState::Data;
        self.permits_used < in_flight && self.plan.front().is_some_and(is_data)
    }

    fn nothing_left_to_hand_out(&self) -> bool {
        self.map_is_complete && self.plan.is_empty()
    }

    fn is_delivered(&self) -> bool {
        self.nothing_left_to_hand_out() && self.delivered == self.next_sequence
    }
}

impl ReaderShared {
    /// Ignores poisoning: no code that holds the lock leaves the state inconsistent.
    fn lock(&self) -> MutexGuard<'_, ReaderState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_halted(&self) -> bool {
        self.halt.load(Ordering::Relaxed)
    }

    /// Returns up to `most` chunks to read.
    fn take_work(&self, most: usize) -> Vec<Assignment> {
        let mut state = self.lock();
        let mut taken = Vec::new();
        let mut moved = state.pass_through();
        while taken.len() < most
            && let Some((sequence, index)) = state.next_data(self.in_flight)
        {
            let offset = index * self.chunk_bytes;
            taken.push(Assignment {
                sequence,
                index,
                offset,
                length: self.chunk_bytes.min(self.size_bytes - offset) as usize,
            });
            moved |= state.pass_through();
        }
        if moved {
            self.delivery.notify_one();
        }
        taken
    }

    fn deliver(&self, sequence: u64, chunk: Chunk) {
        self.lock().ready.insert(sequence, chunk);
        self.delivery.notify_one();
    }

    fn extend_plan(&self, runs: impl Iterator<Item = ChunkRun>, is_complete: bool) {
        let mut state = self.lock();
        state.plan.extend(runs);
        state.map_is_complete = is_complete;
        state.pass_through();
        drop(state);
        self.work.notify_all();
        self.delivery.notify_one();
    }

    /// Waits, at most for a tick, until there may be work. `has_map` is whether the caller could request more of the
    /// map.
    fn wait_for_work(&self, has_map: bool) {
        let state = self.lock();
        let busy = state.has_data(self.in_flight)
            || has_map && state.plan.len() < LOW_PLAN_RUNS
            || state.nothing_left_to_hand_out()
            || self.is_halted();
        if !busy {
            drop(self.work.wait_timeout(state, TICK));
        }
    }

    fn fail(&self, error: Error) {
        self.lock().failure.get_or_insert(error);
        self.halt();
    }

    /// Accounts for a worker that could not be started. It may have been the one that requests the map.
    fn is_one_short(&self, error: std::io::Error) {
        let mut state = self.lock();
        state.workers_left -= 1;
        state.failure.get_or_insert(Error::NoThread(error));
    }

    fn halt(&self) {
        self.halt.store(true, Ordering::Relaxed);
        self.work.notify_all();
        self.delivery.notify_all();
    }
}

/// Signals to the consumer that a thread has ended, even by a panic.
struct Attendance(Arc<ReaderShared>);

impl Drop for Attendance {
    fn drop(&mut self) {
        self.0.lock().workers_left -= 1;
        self.0.work.notify_all();
        self.0.delivery.notify_all();
    }
}

struct ReadWorker {
    shared: Arc<ReaderShared>,
    client: Client,
    /// The maximum number of chunks that this connection has in flight.
    depth: usize,
    /// The chunks being read, by ticket.
    reading: HashMap<Ticket, Assignment>,
    /// Only on the first connection.
    map: Option<Map>,
}

/// The state of requesting the map.
struct Map {
    mapper: Mapper,
    cutter: ChunkCutter,
    /// The request in flight.
    asked: Option<Ticket>,
}

impl ReadWorker {
    fn run(mut self) {
        let _attendance = Attendance(Arc::clone(&self.shared));
        if let Err(error) = self.work() {
            // After a halt, errors are a consequence of another thread's end.
            if !self.shared.is_halted() {
                self.shared.fail(error);
            }
        }
    }

    fn work(&mut self) -> Result<()> {
        while !self.shared.is_halted() {
            self.ask_for_map()?;
            let room = self.depth.saturating_sub(self.reading.len());
            for assignment in self.shared.take_work(room) {
                let buffer = self.shared.recycled.try_recv().unwrap_or_default();
                let ticket = self.client.submit_read(assignment.offset, buffer, assignment.length)?;
                self.reading.insert(ticket, assignment);
            }
            if !self.client.is_idle() {
                self.finish_one()?;
            } else if self.shared.lock().nothing_left_to_hand_out() {
                return Ok(());
            } else {
                self.shared.wait_for_work(self.map.is_some());
            }
        }
        Ok(())
    }

    /// Keeps one request for the map in flight while the plan is short.
    fn ask_for_map(&mut self) -> Result<()> {
        let Some(map) = &mut self.map else {
            return Ok(());
        };
        if map.asked.is_some() || self.shared.lock().plan.len() >= LOW_PLAN_RUNS {
            return Ok(());
        }
        match map.mapper.next_step() {
            MapperStep::Ask { offset, length } => {
                map.asked = Some(self.client.submit_block_status(offset, length)?);
            }
            MapperStep::Known(extent) => {
                map.cutter.push(extent)?;
                self.shared.extend_plan(map.cutter.take_runs(), false);
            }
            MapperStep::Complete => {
                map.cutter.finish()?;
                self.shared.extend_plan(map.cutter.take_runs(), true);
                self.map = None;
            }
        }
        Ok(())
    }

    /// Waits for one reply and processes it.
    fn finish_one(&mut self) -> Result<()> {
        let completion = self.client.wait_any()?;
        match completion.outcome? {
            ReplyBody::Read(bytes) => {
                if let Some(assignment) = self.reading.remove(&completion.ticket) {
                    let chunk = Chunk::Data {
                        index: assignment.index,
                        offset: assignment.offset,
                        bytes: ChunkBytes { bytes, pool: self.shared.pool.clone() },
                    };
                    self.shared.deliver(assignment.sequence, chunk);
                }
            }
            ReplyBody::Status(status) => {
                if let Some(map) = &mut self.map {
                    map.asked = None;
                    for extent in map.mapper.accept(&status)? {
                        map.cutter.push(extent)?;
                    }
                    self.shared.extend_plan(map.cutter.take_runs(), false);
                }
            }
        }
        Ok(())
    }
}

impl Chunks {
    fn start(reader: DiskReader, order: Order) -> Chunks {
        let DiskReader { clients, options } = reader;
        let size_bytes = clients[0].size_bytes();
        let in_flight = options.in_flight.max(1);
        let chunk_bytes = options.chunk_bytes.max(1);
        // The consumer may hold as many buffers as are in flight.
        let (pool, recycled) = crossbeam_channel::bounded(2 * in_flight);
        let shared = Arc::new(ReaderShared {
            state: Mutex::new(ReaderState { workers_left: clients.len(), ..ReaderState::default() }),
            work: Condvar::new(),
            delivery: Condvar::new(),
            halt: Arc::default(),
            chunk_bytes: chunk_bytes.into(),
            size_bytes,
            in_flight,
            pool,
            recycled,
        });
        let mut map = Some(Map {
            mapper: Mapper::new(&clients[0], options.bitmap_context.as_deref()),
            cutter: ChunkCutter::new(size_bytes, chunk_bytes).with_pieces(options.piece_bytes),
            asked: None,
        });
        let depth = in_flight.div_ceil(clients.len());
        let workers = clients
            .into_iter()
            .filter_map(|mut client| {
                client.reconfigure(options.timeout, Arc::clone(&shared.halt));
                let worker =
                    ReadWorker { shared: Arc::clone(&shared), client, depth, reading: HashMap::new(), map: map.take() };
                let started = std::thread::Builder::new().spawn(|| worker.run());
                started.map_err(|error| shared.is_one_short(error)).ok()
            })
            .collect();
        Chunks { shared, order, stop: options.stop, workers, ended: false }
    }

    /// Returns the next part that the order allows.
    fn take_ready(&self, state: &mut ReaderState) -> Option<Chunk> {
        let chunk = match self.order {
            Order::AsTheyCome => state.ready.pop_first()?.1,
            Order::Ascending => state.ready.remove(&state.delivered)?,
        };
        state.delivered += 1;
        if matches!(chunk, Chunk::Data { .. }) {
            state.permits_used -= 1;
        }
        state.pass_through();
        Some(chunk)
    }

    fn wait(&self) -> Result<Option<Chunk>> {
        let mut state = self.shared.lock();
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::Stopped);
            }
            if let Some(error) = state.failure.take() {
                return Err(error);
            }
            if let Some(chunk) = self.take_ready(&mut state) {
                drop(state);
                self.shared.work.notify_all();
                return Ok(Some(chunk));
            }
            if state.is_delivered() {
                return Ok(None);
            }
            if state.workers_left == 0 {
                return Err(Error::Io {
                    action: "go on reading from",
                    source: std::io::Error::other("a reading thread has ended early"),
                });
            }
            state = self.shared.delivery.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Iterator for Chunks {
    type Item = Result<Chunk>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.wait().transpose();
        if !matches!(next, Some(Ok(_))) {
            self.ended = true;
            self.shared.halt();
        }
        next
    }
}

impl Drop for Chunks {
    fn drop(&mut self) {
        self.shared.halt();
        for worker in self.workers.drain(..) {
            // A panic was reported by the panic hook and, as an early end, by the iterator.
            let _ = worker.join();
        }
    }
}
