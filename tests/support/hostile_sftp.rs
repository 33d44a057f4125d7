//! A misbehaving SFTP server. `sshd` and `sftp-server` are real; replies between them are delayed, sent byte by byte,
//! lengthened or forged.
//!
//! ```text
//! kvmb ── sshd ── bash (/dev/tcp) ── Hostile ── sftp-server
//! ```

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::sshd::Sshd;
use super::{Env, parts};

/// Types of SFTP requests and replies.
pub mod kind {
    pub const CLOSE: u8 = 4;
    pub const READ: u8 = 5;
    pub const WRITE: u8 = 6;
    pub const FSTAT: u8 = 8;
    pub const READDIR: u8 = 12;
    pub const STAT: u8 = 17;
    pub const OPEN: u8 = 3;
    pub const EXTENDED: u8 = 200;
    /// A stand-in for `fsync@openssh.com` of a file that was opened read-only, which is a folder. Not a real packet
    /// type.
    pub const FOLDER_SYNC: u8 = 250;
    pub const HANDLE: u8 = 102;
    pub const STATUS: u8 = 101;
    pub const DATA: u8 = 103;
    pub const NAME: u8 = 104;
    pub const ATTRS: u8 = 105;
}

/// How the server misbehaves on one connection.
#[derive(Debug, Clone)]
pub enum Mischief {
    /// Does not answer requests of this type, nor any later one.
    Mute(u8),
    /// Answers requests of this type with this delay per byte.
    Trickle(u8, Duration),
    /// Answers reads with one byte at a time, each after this delay.
    OneByteReads(Duration),
    /// Returns endless folders: this many names per reply, each after this delay.
    EndlessFolder(usize, Duration),
    /// Reports that files have this size, and returns that much data.
    LongFiles(u64),
    /// Answers requests to sync a folder with this status and message.
    FolderSync(u32, &'static str),
}

/// A server that misbehaves on its next connections, and works correctly if nothing is ordered.
pub struct Hostile {
    sshd: Sshd,
    shared: Arc<Shared>,
}

struct Shared {
    home: PathBuf,
    ended: AtomicBool,
    /// One entry for each new connection; the last one may be permanent.
    plan: Mutex<Plan>,
    happened: AtomicUsize,
}

#[derive(Default)]
struct Plan {
    mischiefs: Vec<Mischief>,
    for_ever: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hostile {
    /// Starts a server that the test's user may log in to.
    pub fn start(env: &Env) -> Hostile {
        parts::require(&["bash"]);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a listener that can be ended");
        let port = listener.local_addr().expect("a port").port();
        let script = env.path("subsystem");
        // In the background, a shell has no standard input unless it is redirected.
        let lines = format!("exec 3<>/dev/tcp/127.0.0.1/{port} 4<&0\ncat <&4 >&3 &\nexec cat <&3\n");
        fs::write(&script, lines).expect("cannot write");
        let sshd = env.sshd_with(&format!("ForceCommand bash {}", script.display()));
        sshd.trust_host_key();
        let shared = Arc::new(Shared {
            home: sshd.home(),
            ended: AtomicBool::new(false),
            plan: Mutex::default(),
            happened: AtomicUsize::new(0),
        });
        let for_thread = Arc::clone(&shared);
        thread::spawn(move || for_thread.listen(&listener));
        Hostile { sshd, shared }
    }

    /// Sets how the next connections misbehave, one entry for each.
    pub fn order(&self, mischiefs: &[Mischief]) {
        *lock(&self.shared.plan) = Plan { mischiefs: mischiefs.to_vec(), for_ever: false };
    }

    /// Makes every new connection misbehave.
    pub fn always(&self, mischief: Mischief) {
        *lock(&self.shared.plan) = Plan { mischiefs: vec![mischief], for_ever: true };
    }

    /// Returns the number of connections that misbehaved.
    pub fn happened(&self) -> usize {
        self.shared.happened.load(Ordering::Relaxed)
    }

    /// Returns the URL of a folder of the account.
    pub fn url(&self, folder: &str) -> String {
        self.sshd.url(folder)
    }

    /// Returns the account's home folder.
    pub fn home(&self) -> PathBuf {
        self.sshd.home()
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn listen(&self, listener: &TcpListener) {
        thread::scope(|scope| {
            while !self.ended.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((client, _)) => {
                        scope.spawn(move || self.serve(client));
                    }
                    Err(_) => thread::sleep(Duration::from_millis(5)),
                }
            }
        });
    }

    fn next(&self) -> Option<Mischief> {
        let mut plan = lock(&self.plan);
        let next = match plan.for_ever {
            true => plan.mischiefs.first().cloned(),
            false => (!plan.mischiefs.is_empty()).then(|| plan.mischiefs.remove(0)),
        };
        self.happened.fetch_add(usize::from(next.is_some()), Ordering::Relaxed);
        next
    }

    fn serve(&self, client: TcpStream) {
        client.set_nonblocking(false).expect("a socket that blocks");
        let mut server = Command::new("/usr/lib/openssh/sftp-server")
            .current_dir(&self.home)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sftp-server");
        let link =
            Link { mischief: self.next(), asked: Mutex::default(), read_only: Mutex::default(), ended: &self.ended };
        let (to_server, from_server) = (server.stdin.take().expect("pipe"), server.stdout.take().expect("pipe"));
        thread::scope(|scope| {
            scope.spawn(|| {
                link.requests(&client, to_server);
                end(&mut server);
            });
            let _ = link.replies(from_server, &client);
            let _ = client.shutdown(std::net::Shutdown::Both);
        });
    }
}

fn end(server: &mut Child) {
    let _ = server.kill();
    let _ = server.wait();
}

/// A pending request.
struct Asked {
    kind: u8,
    /// Whether it opens something read-only.
    is_to_read: bool,
}

/// One connection.
struct Link<'a> {
    mischief: Option<Mischief>,
    /// The types of requests that are not answered yet.
    asked: Mutex<HashMap<u32, Asked>>,
    /// Handles that were opened read-only.
    read_only: Mutex<HashSet<Vec<u8>>>,
    ended: &'a AtomicBool,
}

impl Link<'_> {
    fn requests(&self, mut client: &TcpStream, mut server: ChildStdin) {
        while let Some(packet) = read_packet(&mut client) {
            // The initial packet has no request number.
            if packet.len() >= 5 && packet[0] != 1 {
                lock(&self.asked).insert(number(&packet[1..]), self.understand(&packet));
            }
            if write_packet(&mut server, &packet).is_err() {
                return;
            }
        }
    }

    fn understand(&self, packet: &[u8]) -> Asked {
        let (first, rest) = text(&packet[5..]);
        match packet[0] {
            kind::OPEN => Asked { kind: kind::OPEN, is_to_read: number(rest) == 1 },
            kind::EXTENDED if first == b"fsync@openssh.com" && lock(&self.read_only).contains(text(rest).0) => {
                Asked { kind: kind::FOLDER_SYNC, is_to_read: false }
            }
            kind => Asked { kind, is_to_read: false },
        }
    }

    fn replies(&self, mut server: impl Read, mut client: &TcpStream) -> std::io::Result<()> {
        let mut is_mute = false;
        while let Some(mut reply) = read_packet(&mut server) {
            let of = match reply[0] {
                2 => None,
                _ => lock(&self.asked).remove(&number(&reply[1..])),
            };
            if reply[0] == kind::HANDLE && of.as_ref().is_some_and(|of| of.is_to_read) {
                lock(&self.read_only).insert(text(&reply[5..]).0.to_vec());
            }
            let of = of.map(|of| of.kind);
            let head = reply.get(1..5).unwrap_or_default().to_vec();
            match (&self.mischief, of) {
                (Some(Mischief::Mute(kind)), Some(of)) if *kind == of || is_mute => {
                    is_mute = true;
                    continue;
                }
                (Some(Mischief::Trickle(kind, pause)), Some(of)) if *kind == of => {
                    let whole = [&(reply.len() as u32).to_be_bytes()[..], &reply].concat();
                    for byte in whole {
                        self.pause(*pause);
                        client.write_all(&[byte])?;
                    }
                    continue;
                }
                (Some(Mischief::OneByteReads(pause)), Some(kind::READ)) if reply[0] == kind::DATA => {
                    self.pause(*pause);
                    reply = [&[kind::DATA][..], &head, &[0, 0, 0, 1], &reply[9..10]].concat();
                }
                (Some(Mischief::EndlessFolder(names, pause)), Some(kind::READDIR)) => {
                    self.pause(*pause);
                    reply = made_up_names(&head, *names);
                }
                (Some(Mischief::LongFiles(size)), Some(kind::FSTAT | kind::STAT)) if reply[0] == kind::ATTRS => {
                    reply = [&[kind::ATTRS][..], &head, &[0, 0, 0, 1], &size.to_be_bytes()].concat();
                }
                (Some(Mischief::LongFiles(_)), Some(kind::READ)) => {
                    reply = [&[kind::DATA][..], &head, &32_000u32.to_be_bytes(), &[b'x'; 32_000]].concat();
                }
                (Some(Mischief::FolderSync(code, words)), Some(kind::FOLDER_SYNC)) => {
                    let length = (words.len() as u32).to_be_bytes();
                    reply =
                        [&[kind::STATUS][..], &head, &code.to_be_bytes(), &length, words.as_bytes(), &[0; 4]].concat();
                }
                _ => {}
            }
            write_packet(&mut client, &reply)?;
        }
        Ok(())
    }

    fn pause(&self, time: Duration) {
        if !self.ended.load(Ordering::Relaxed) {
            thread::sleep(time);
        }
    }
}

fn made_up_names(head: &[u8], names: usize) -> Vec<u8> {
    let mut reply = [&[kind::NAME][..], head, &(names as u32).to_be_bytes()].concat();
    for name in 0..names {
        for text in [format!("{name:064x}"), format!("-rw------- 1 nobody nobody 9 Jan  1 00:00 {name:064x}")] {
            reply.extend_from_slice(&(text.len() as u32).to_be_bytes());
            reply.extend_from_slice(text.as_bytes());
        }
        // No attributes.
        reply.extend_from_slice(&[0; 4]);
    }
    reply
}

fn number(bytes: &[u8]) -> u32 {
    bytes.get(..4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_be_bytes)
}

/// Splits off a leading string.
fn text(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = 4 + number(bytes) as usize;
    (bytes.get(4..end).unwrap_or_default(), bytes.get(end..).unwrap_or_default())
}

fn read_packet(from: &mut impl Read) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length).ok()?;
    let mut packet = vec![0; u32::from_be_bytes(length) as usize];
    from.read_exact(&mut packet).ok()?;
    (!packet.is_empty()).then_some(packet)
}

fn write_packet(to: &mut impl Write, packet: &[u8]) -> std::io::Result<()> {
    to.write_all(&[&(packet.len() as u32).to_be_bytes()[..], packet].concat())?;
    to.flush()
}
