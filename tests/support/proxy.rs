//! A bad network between kvmb and a server: traffic is delayed, cut off, dropped or corrupted.
//!
//! A delay adds latency without limiting throughput: every byte is passed on this long after it arrived, however many
//! are in transit. If a rate is given, all connections together share that rate in each direction. Each trouble affects
//! one connection, in the given order, after a number of bytes that a seed determines. After the last one, the network
//! works normally. Only the standard library is used, so that the benchmark can compile this file alone.
//! build it alone.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// What happens to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// It is cut.
    Cut,
    /// Nothing passes any more in either direction, without any error.
    Stall,
    /// One bit is corrupted.
    Flip,
    /// All connections are cut, and new ones are refused until [`Proxy::mend`].
    Outage,
}

/// A port that forwards to a server. When this is dropped, it is closed with all connections.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    listener: Option<JoinHandle<()>>,
}

struct Shared {
    server: u16,
    delay: Duration,
    bytes_per_second: Option<u64>,
    /// When the data so far will have passed, towards the client and towards the server.
    free_at: [Mutex<Instant>; 2],
    ended: AtomicBool,
    broken: AtomicBool,
    plan: Mutex<Plan>,
    open: Mutex<Vec<TcpStream>>,
    happened: AtomicUsize,
    /// Whether the last bytes came from the server.
    server_spoke: AtomicBool,
    turns: AtomicU64,
}

/// The troubles that are still to come.
#[derive(Default)]
struct Plan {
    troubles: Vec<Trouble>,
    after_bytes: Range<u64>,
    random: u64,
}

impl Plan {
    /// Returns the next trouble, and the number of bytes after which it happens.
    fn next(&mut self) -> Option<(Trouble, u64)> {
        if self.troubles.is_empty() {
            return None;
        }
        let span = (self.after_bytes.end - self.after_bytes.start).max(1);
        Some((self.troubles.remove(0), self.after_bytes.start + self.draw() % span))
    }

    /// splitmix64
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Proxy {
    /// Forwards to a port of this host, with this delay in each direction.
    pub fn start(server: u16, delay: Duration) -> Proxy {
        Proxy::start_limited(server, delay, None)
    }

    /// The same with a limit of the bytes per second in each direction.
    pub fn start_limited(server: u16, delay: Duration, bytes_per_second: Option<u64>) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("a port").port();
        listener.set_nonblocking(true).expect("a listener that can be ended");
        let shared = Arc::new(Shared {
            server,
            delay,
            bytes_per_second,
            free_at: [(); 2].map(|()| Mutex::new(Instant::now())),
            ended: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            plan: Mutex::default(),
            open: Mutex::default(),
            happened: AtomicUsize::new(0),
            server_spoke: AtomicBool::new(false),
            turns: AtomicU64::new(0),
        });
        let for_thread = Arc::clone(&shared);
        let listener = thread::spawn(move || for_thread.listen(&listener));
        Proxy { port, shared, listener: Some(listener) }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Orders these troubles: each for one new connection, after a number of bytes in this range.
    pub fn order(&self, troubles: &[Trouble], after_bytes: Range<u64>, seed: u64) {
        *lock(&self.shared.plan) = Plan { troubles: troubles.to_vec(), after_bytes, random: seed };
        // Existing connections would not be affected.
        self.shared.cut_all();
    }

    /// Returns the number of troubles that have happened.
    pub fn happened(&self) -> usize {
        self.shared.happened.load(Ordering::Relaxed)
    }

    /// Whether an [`Trouble::Outage`] is in progress.
    pub fn is_broken(&self) -> bool {
        self.shared.broken.load(Ordering::Relaxed)
    }

    /// Ends an outage, and cancels all remaining troubles.
    pub fn mend(&self) {
        lock(&self.shared.plan).troubles.clear();
        self.shared.broken.store(false, Ordering::Relaxed);
    }

    /// Returns how often the client sent data after the server did: with a delay, the number of round trips.
    pub fn turns(&self) -> u64 {
        self.shared.turns.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.shared.cut_all();
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

/// Data in transit, and when it is to be passed on.
struct OnTheWay {
    due: Instant,
    bytes: Vec<u8>,
    length: usize,
}

/// One connection.
struct Link {
    client: TcpStream,
    server: TcpStream,
    /// The trouble of the connection, and the number of bytes after which it happens.
    trouble: Mutex<Option<(Trouble, u64)>>,
    passed: AtomicU64,
    stalled: AtomicBool,
}

impl Shared {
    fn listen(self: &Arc<Self>, listener: &TcpListener) {
        while !self.ended.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((client, _)) if !self.broken.load(Ordering::Relaxed) => {
                    // If the server is not running, the connection ends at once.
                    if let Ok(server) = TcpStream::connect(("127.0.0.1", self.server)) {
                        self.link(client, server);
                    }
                }
                Ok(_) => {}
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn link(self: &Arc<Self>, client: TcpStream, server: TcpStream) {
        for socket in [&client, &server] {
            socket.set_nonblocking(false).expect("a socket that blocks");
            socket.set_nodelay(true).expect("nodelay");
            lock(&self.open).push(socket.try_clone().expect("a second handle"));
        }
        let trouble = Mutex::new(lock(&self.plan).next());
        let link =
            Arc::new(Link { client, server, trouble, passed: AtomicU64::new(0), stalled: AtomicBool::new(false) });
        for to_server in [true, false] {
            let (queue, queued) = mpsc::channel();
            let (spent, spare) = mpsc::channel();
            let (shared, of_reader) = (Arc::clone(self), Arc::clone(&link));
            thread::spawn(move || shared.read(&of_reader, to_server, &queue, &spare));
            let (shared, of_writer) = (Arc::clone(self), Arc::clone(&link));
            thread::spawn(move || shared.write(&of_writer, to_server, &queued, &spent));
        }
    }

    fn read(&self, link: &Link, to_server: bool, queue: &Sender<OnTheWay>, spare: &Receiver<Vec<u8>>) {
        let mut from = if to_server { &link.client } else { &link.server };
        loop {
            // Reuse buffers: allocating them would cost more than forwarding the data.
            let mut bytes = spare.try_recv().unwrap_or_else(|_| vec![0; 128 << 10]);
            let length = match from.read(&mut bytes) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Ok(0) | Err(_) => break,
                Ok(length) => length,
            };
            if to_server && self.server_spoke.swap(false, Ordering::Relaxed) {
                self.turns.fetch_add(1, Ordering::Relaxed);
            }
            let before = link.passed.fetch_add(length as u64, Ordering::Relaxed);
            let due = {
                let mut trouble = lock(&link.trouble);
                match *trouble {
                    Some((_, after)) if after < before + length as u64 => trouble.take(),
                    _ => None,
                }
            };
            if let Some((trouble, after)) = due {
                self.happened.fetch_add(1, Ordering::Relaxed);
                let at = usize::try_from(after.saturating_sub(before)).unwrap_or(0);
                match trouble {
                    Trouble::Flip => bytes[at] ^= 0x10,
                    Trouble::Stall => link.stalled.store(true, Ordering::Relaxed),
                    Trouble::Cut => link.cut(),
                    Trouble::Outage => {
                        self.broken.store(true, Ordering::Relaxed);
                        self.cut_all();
                    }
                }
            }
            // Dropped data must still be read, because a full pipe would be noticed.
            let on_the_way = OnTheWay { due: self.arrival(to_server, length), bytes, length };
            if !link.stalled.load(Ordering::Relaxed) && queue.send(on_the_way).is_err() {
                break;
            }
        }
        // A side that closed a stalled connection must not wait.
        if link.stalled.load(Ordering::Relaxed) {
            link.cut();
        }
    }

    /// Returns when data that was received now is passed on.
    fn arrival(&self, to_server: bool, length: usize) -> Instant {
        let now = Instant::now();
        let passed = self.bytes_per_second.map_or(now, |rate| {
            let mut free_at = lock(&self.free_at[usize::from(to_server)]);
            *free_at = (*free_at).max(now) + Duration::from_secs_f64(length as f64 / rate as f64);
            *free_at
        });
        passed + self.delay
    }

    fn write(&self, link: &Link, to_server: bool, queue: &Receiver<OnTheWay>, spent: &Sender<Vec<u8>>) {
        let mut to = if to_server { &link.server } else { &link.client };
        for OnTheWay { due, bytes, length } in queue {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if !to_server {
                self.server_spoke.store(true, Ordering::Relaxed);
            }
            if to.write_all(&bytes[..length]).is_err() {
                break;
            }
            // The receiver is gone if the other direction has ended.
            let _ = spent.send(bytes);
        }
        if !link.stalled.load(Ordering::Relaxed) {
            let _ = to.shutdown(Shutdown::Write);
        }
    }

    fn cut_all(&self) {
        for socket in lock(&self.open).drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Link {
    fn cut(&self) {
        for socket in [&self.client, &self.server] {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}
