//! Opens a TCP connection to a host with several addresses.
//!
//! An address that does not answer, often an IPv6 address without a route behind it, must not delay each connection by
//! the connect timeout. So the next address is tried after a second, and the first one that answers is used
//! (RFC 8305, section 5).

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long an address has before the next one is tried as well.
const HEAD_START: Duration = Duration::from_secs(1);

/// The interval at which the stop flag is checked.
const TICK: Duration = Duration::from_millis(100);

/// Connects to the address that answers first, within `limit`. Once `stop` is set, within `ending`.
pub(super) fn connect_to_first(
    addresses: &[SocketAddr],
    limit: Duration,
    stop: &AtomicBool,
    ending: Duration,
) -> io::Result<TcpStream> {
    let mut failure = io::Error::from(ErrorKind::AddrNotAvailable);
    let mut waiting: Vec<OwnedFd> = Vec::new();
    let mut left = addresses.iter();
    let begun = Instant::now();
    let mut next_at = begun;
    loop {
        if waiting.is_empty() || Instant::now() >= next_at {
            match left.next().map(begin) {
                Some(Ok(socket)) => waiting.push(socket),
                Some(Err(error)) => {
                    failure = error;
                    continue;
                }
                None if waiting.is_empty() => return Err(failure),
                None => {}
            }
            next_at = Instant::now() + HEAD_START;
        }
        let limit = if stop.load(Ordering::Relaxed) { limit.min(ending) } else { limit };
        let remaining = limit.saturating_sub(begun.elapsed());
        if remaining.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        wait_for_any(&waiting, remaining.min(TICK))?;
        let mut pending = Vec::new();
        for socket in waiting {
            match state(&socket) {
                Ok(true) => return in_blocking_mode(socket),
                Ok(false) => pending.push(socket),
                Err(error) => failure = error,
            }
        }
        waiting = pending;
    }
}

/// Begins to connect to an address.
fn begin(address: &SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    match connect(&socket, address) {
        Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

fn wait_for_any(sockets: &[OwnedFd], longest: Duration) -> io::Result<()> {
    let mut polled: Vec<PollFd> = sockets.iter().map(|socket| PollFd::new(socket, PollFlags::OUT)).collect();
    let longest = Timespec { tv_sec: 0, tv_nsec: longest.subsec_nanos().into() };
    match poll(&mut polled, Some(&longest)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Returns whether a socket is connected; `false` while it is being connected.
fn state(socket: &OwnedFd) -> io::Result<bool> {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut polled = [PollFd::new(socket, PollFlags::OUT)];
    if poll(&mut polled, Some(&now)).is_ok_and(|ready| ready == 0) {
        return Ok(false);
    }
    sockopt::socket_error(socket)??;
    Ok(true)
}

fn in_blocking_mode(socket: OwnedFd) -> io::Result<TcpStream> {
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    const LIMIT: Duration = Duration::from_secs(20);

    /// Fills the queue of a server that accepts no connections, so that it drops further ones.
    fn unresponsive() -> (OwnedFd, Vec<TcpStream>, SocketAddr) {
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        rustix::net::bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        rustix::net::listen(&socket, 0).unwrap();
        let address = SocketAddr::try_from(rustix::net::getsockname(&socket).unwrap()).unwrap();
        let mut queued = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
            queued.push(stream);
        }
        (socket, queued, address)
    }

    fn dial(addresses: &[SocketAddr], limit: Duration) -> io::Result<TcpStream> {
        connect_to_first(addresses, limit, &AtomicBool::new(false), limit)
    }

    #[test]
    fn address_that_does_not_answer_delays_a_connection_only_briefly() {
        let (_socket, _queued, dead) = unresponsive();
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let alive = server.local_addr().unwrap();
        let begun = Instant::now();
        assert_eq!(dial(&[dead, alive], LIMIT).unwrap().peer_addr().unwrap(), alive);
        assert!(begun.elapsed() < LIMIT / 2, "{:?}", begun.elapsed());
        let error = dial(&[dead], Duration::from_millis(200)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }

    #[test]
    fn refused_address_is_skipped_at_once_and_reported_if_it_is_the_only_one() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let alive = server.local_addr().unwrap();
        let closed = SocketAddr::from(([127, 0, 0, 1], 1));
        let begun = Instant::now();
        assert_eq!(dial(&[closed, closed, alive], LIMIT).unwrap().peer_addr().unwrap(), alive);
        assert!(begun.elapsed() < HEAD_START, "{:?}", begun.elapsed());
        assert_eq!(dial(&[closed], LIMIT).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert_eq!(dial(&[], LIMIT).unwrap_err().kind(), ErrorKind::AddrNotAvailable);
    }

    #[test]
    fn set_stop_flag_shortens_the_wait() {
        let (_socket, _queued, dead) = unresponsive();
        let error = connect_to_first(&[dead], LIMIT, &AtomicBool::new(true), Duration::ZERO).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }
}
