//! A TCP or Unix socket below HTTP and TLS, on which every wait is limited.
//!
//! Each wait ends after [`HttpTimeouts::silence`], or soon when the program is ending. There is no limit on the total
//! time: however long a body and slow the network, the transfer continues as long as data moves.

use super::HttpTimeouts;
use crate::storage::dial::connect_to_first;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport,
};
use ureq::{Error, Timeout};

/// The interval at which waits check the stop flag.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// The location of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ServerPlace {
    /// The host and port in the URL of the request.
    Network {
        /// Whether TLS is used.
        is_encrypted: bool,
    },
    /// A Unix socket on this host.
    Unix(PathBuf),
}

/// Opens connections to a server.
#[derive(Debug)]
pub(super) struct SocketConnector {
    pub(super) place: ServerPlace,
    pub(super) timeouts: HttpTimeouts,
    pub(super) stop: Arc<AtomicBool>,
}

impl<In: Transport> Connector<In> for SocketConnector {
    type Out = Either<In, SocketTransport>;

    fn connect(&self, details: &ConnectionDetails, chained: Option<In>) -> Result<Option<Self::Out>, Error> {
        // The socket that leads to a proxy.
        if chained.is_some() {
            return Ok(chained.map(Either::A));
        }
        let socket = match &self.place {
            ServerPlace::Unix(path) => OwnedFd::from(UnixStream::connect(path)?),
            ServerPlace::Network { .. } => OwnedFd::from(self.dial(details)?),
        };
        Ok(Some(Either::B(SocketTransport {
            socket,
            buffers: LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size()),
            timeouts: self.timeouts,
            stop: Arc::clone(&self.stop),
        })))
    }
}

impl SocketConnector {
    /// Connects to the first of the server's addresses that answers.
    fn dial(&self, details: &ConnectionDetails) -> Result<TcpStream, Error> {
        let HttpTimeouts { connect, ending, .. } = self.timeouts;
        let stream = connect_to_first(&details.addrs, connect, &self.stop, ending)?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

#[derive(Debug)]
pub(super) struct SocketTransport {
    socket: OwnedFd,
    buffers: LazyBuffers,
    timeouts: HttpTimeouts,
    stop: Arc<AtomicBool>,
}

impl SocketTransport {
    /// Waits until the socket is ready, within the timeouts.
    fn wait(&self, wanted: PollFlags, timeout: NextTimeout, reason: Timeout) -> Result<(), Error> {
        let (begun, whole) = (Instant::now(), timeout.not_zero().map(|left| *left).unwrap_or(Duration::MAX));
        loop {
            match poll(&mut [PollFd::new(&self.socket, wanted)], Some(&TICK)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(Error::Io(error.into())),
            }
            let waited = begun.elapsed();
            let silence = match self.stop.load(Ordering::Relaxed) {
                true => self.timeouts.ending,
                false => self.timeouts.silence,
            };
            if waited >= silence {
                return Err(Error::Timeout(reason));
            }
            if waited >= whole {
                return Err(Error::Timeout(timeout.reason));
            }
        }
    }
}

impl Transport for SocketTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let mut sent = 0;
        while sent < amount {
            self.wait(PollFlags::OUT, timeout, Timeout::PerWrite)?;
            let left = &self.buffers.output()[sent..amount];
            match send(&self.socket, left, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(passed) => sent += passed,
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(Error::Io(error.into())),
            }
        }
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        loop {
            self.wait(PollFlags::IN, timeout, Timeout::PerRead)?;
            let buffer = self.buffers.input_append_buf();
            match recv(&self.socket, buffer, RecvFlags::DONTWAIT) {
                Ok((received, _)) => {
                    self.buffers.input_appended(received);
                    return Ok(received > 0);
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(Error::Io(error.into())),
            }
        }
    }

    fn is_open(&mut self) -> bool {
        // Unrequested data, or the end of the stream, means that the server is closing the connection.
        let peeked = recv(&self.socket, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        matches!(peeked, Err(Errno::AGAIN))
    }
}
