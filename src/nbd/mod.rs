//! NBD: a client that reads the bytes of a disk from QEMU, and a server that exports those of a point.
//!
//! kvmb has its own client because no library supports several metadata contexts at once and many requests in flight.
//!
//! The protocol is specified in NetworkBlockDevice's `doc/proto.md`; comments cite its sections. Sizes are in bytes.
//!
//! | file | contents |
//! | --- | --- |
//! | `uri.rs` | the address of an export: `nbd+unix:///EXPORT?socket=PATH` |
//! | `wire.rs` | numbers and layouts of the protocol; no I/O |
//! | `link.rs` | a socket on which no wait exceeds its deadline |
//! | `handshake.rs` | the handshake, up to the negotiated export |
//! | `client.rs` | one connection: requests, several in flight, and the verification of their replies |
//! | `extents.rs` | the map of a disk: merged, clipped, split into chunks; almost no I/O |
//! | `reader.rs` | the fast path: map and data of a whole disk over several connections |
//! | `server.rs` | the server: read-only exports, and overlays that discard writes at the end |
//!
//! # Extent replies that a client has to handle
//!
//! `NBD_CMD_BLOCK_STATUS` is answered with one list of extents for each negotiated context. The lists need not have the
//! same boundaries, nor the same length:
//!
//! ```text
//! asked              |<------------------------- length ------------------------->|
//!
//! equal              |---- data ----|----------- zero ------------|---- data -----|   base:allocation
//!                    |------ clean ------|-------- dirty ---------|---- clean ----|   qemu:dirty-bitmap:NAME
//! merged             |-- d,c --|-z,c-|------- z,d -------|- … all boundaries of both
//!
//! short              |---- data ----|---- zero ----|                                  the server may stop anywhere
//!                    |------ clean ------|-------- dirty ---------|                   after the first extent
//! used               |------------------------------|  asked again from here
//!
//! long               |---- data ----|----------------------- zero -------------------------|--->
//!                                                   only the last extent may pass the end: clipped
//!
//! unaligned          |---- data -|                        ends inside the server's own minimum block:
//! used               |--------|                           rounded down, or one block of "data, dirty" if that is nothing
//!
//! broken             an extent of length 0, an extent that is not the last past the end, a context twice, one that was
//!                    not negotiated, one missing: the connection is dropped
//! ```
//!
//! Without `base:allocation` everything counts as data; without the bitmap it is unknown what is dirty.
//!
//! # Read replies that a client has to handle
//!
//! ```text
//! simple             |------------------------- data -----------------------------|   no structured replies
//! structured         |--- data ---|------ hole ------|---- data ----| NONE            in any order, cut anywhere
//! failed             |--- data ---| ERROR_OFFSET … NONE                               the request fails, the connection lives
//! broken             overlapping, out of bounds, incomplete without an error, unknown: the connection is dropped
//! ```

mod client;
mod extents;
mod handshake;
mod link;
mod reader;
mod server;
mod uri;
pub mod wire;

pub use client::{Client, ClientOptions, ContextStatus};
pub use extents::{ChunkRun, ChunkState, Extent, chunk_runs, extents};
pub use reader::{Chunk, DiskReader, ReadOptions};
pub(crate) use server::Overlay;
pub use server::{Export, Exports, Piece, Server, zero_flags};
pub use uri::{NbdUri, UriError};
pub use wire::{RequestType, StatusExtent, Violation};

use std::path::PathBuf;
use std::time::Duration;

/// An error of a connection to an NBD server.
#[allow(missing_docs, reason = "the messages say what the fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket does not accept connections.
    #[error("cannot connect to the NBD server at {}: {source}", socket.display())]
    Connect { socket: PathBuf, source: std::io::Error },
    /// The server has no export of this name.
    #[error("the NBD server has no export {export:?}{}", suffix(message))]
    NoSuchExport {
        /// The requested name.
        export: String,
        /// The server's message, often empty.
        message: String,
    },
    /// The server refused an option that is required for a connection (for example, it requires TLS).
    #[error("the NBD server refused to negotiate: {}{}", wire::option_error_name(*reply), suffix(message))]
    Negotiation {
        /// The reply's type, `NBD_REP_ERR_…`.
        reply: u32,
        /// The server's message, often empty.
        message: String,
    },
    /// The server violated the protocol: the connection is closed.
    #[error("the NBD server broke the protocol: {0}")]
    Protocol(#[from] Violation),
    /// The server refused this request; the connection is still usable.
    #[error("the NBD server failed to {command} {length} bytes at offset {offset}: \
        {}{}", wire::error_name(*error), suffix(message))]
    Request {
        command: RequestType,
        offset: u64,
        length: u64,
        /// The error number: Linux's `errno` for all errors in the protocol.
        error: u32,
        /// The server's message, often empty.
        message: String,
    },
    #[error("cannot {action} the NBD server: {source}")]
    Io {
        /// "read from", "write to" …
        action: &'static str,
        source: std::io::Error,
    },
    /// The system cannot start another thread.
    #[error("cannot start a thread: {0}")]
    NoThread(#[source] std::io::Error),
    /// The server stopped answering: the connection is closed.
    #[error("the NBD server did not answer within {} s", after.as_secs_f64())]
    Timeout {
        /// How long the client waited.
        after: Duration,
    },
    /// The server closed the connection: QEMU has exited, or the backup job has ended.
    #[error("the NBD server closed the connection")]
    Disconnected,
    /// The stop flag was set during a wait.
    #[error("interrupted while reading from the NBD server")]
    Stopped,
}

impl Error {
    /// Returns whether the connection is still usable after this error.
    pub fn connection_is_usable(&self) -> bool {
        matches!(self, Error::Request { .. })
    }
}

/// The result of an NBD operation.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// Formats a server's message as the end of another one.
fn suffix(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(" ('{message}')") }
}
