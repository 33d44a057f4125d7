//! NBD: the client by which the bytes of a disk come out of QEMU, and the server that hands out those of a point.
//!
//! It is a client of our own, because there is no library with several meta contexts at once and many requests on the
//! way.
//!
//! The protocol is the one of NetworkBlockDevice's `doc/proto.md`; the comments cite its sections. Sizes are bytes.
//!
//! | file | what |
//! | --- | --- |
//! | `uri.rs` | where an export is: `nbd+unix:///EXPORT?socket=PATH` |
//! | `wire.rs` | numbers and layouts of the protocol; pure |
//! | `link.rs` | a socket on which nothing waits longer than its deadline |
//! | `handshake.rs` | from the greeting to the negotiated export |
//! | `client.rs` | one connection: requests, several in flight, and their checked replies |
//! | `extents.rs` | the map of a disk: merged, clipped, cut to chunks; pure but for asking |
//! | `reader.rs` | the fast path: map and data of a whole disk over several connections |
//! | `server.rs` | the server: read-only exports, and overlays that forget what was written |
//!
//! # The extent replies that a client has to cope with
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
//! used               |--------|                           rounded down, or one block of «data, dirty» if that is nothing
//!
//! broken             an extent of length 0, an extent that is not the last past the end, a context twice, one that was
//!                    not negotiated, one missing: the connection is dropped
//! ```
//!
//! Without `base:allocation` everything counts as data; without the bitmap nobody knows what is dirty.
//!
//! # The read replies that a client has to cope with
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

/// What can go wrong between us and an NBD server.
#[allow(missing_docs, reason = "the messages say what the fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody answers at the socket.
    #[error("cannot connect to the NBD server at {}: {source}", socket.display())]
    Connect { socket: PathBuf, source: std::io::Error },
    /// The server has no export of this name.
    #[error("the NBD server has no export {export:?}{}", suffix(message))]
    NoSuchExport {
        /// The name that was asked for.
        export: String,
        /// What the server said about it, often nothing.
        message: String,
    },
    /// The server refused an option without which there is no connection (it wants TLS, say).
    #[error("the NBD server refused to negotiate: {}{}", wire::option_error_name(*reply), suffix(message))]
    Negotiation {
        /// The reply's type, `NBD_REP_ERR_…`.
        reply: u32,
        /// What the server said about it, often nothing.
        message: String,
    },
    /// The server broke the protocol: the connection is gone.
    #[error("the NBD server broke the protocol: {0}")]
    Protocol(#[from] Violation),
    /// The server refused this one request; the connection is still good.
    #[error("the NBD server failed to {command} {length} bytes at offset {offset}: \
        {}{}", wire::error_name(*error), suffix(message))]
    Request {
        command: RequestType,
        offset: u64,
        length: u64,
        /// The error's number: Linux's `errno` for all that the protocol knows.
        error: u32,
        /// What the server said about it, often nothing.
        message: String,
    },
    #[error("cannot {action} the NBD server: {source}")]
    Io {
        /// "read from", "write to" …
        action: &'static str,
        source: std::io::Error,
    },
    /// The system has no thread left for us.
    #[error("cannot start a thread: {0}")]
    NoThread(#[source] std::io::Error),
    /// The server stopped answering: the connection is gone.
    #[error("the NBD server did not answer within {} s", after.as_secs_f64())]
    Timeout {
        /// How long we waited.
        after: Duration,
    },
    /// The server closed the connection: QEMU ended, or the backup job did.
    #[error("the NBD server closed the connection")]
    Disconnected,
    /// The stop flag was raised while waiting.
    #[error("interrupted while reading from the NBD server")]
    Stopped,
}

impl Error {
    /// Whether the connection on which this happened can go on.
    pub fn connection_is_usable(&self) -> bool {
        matches!(self, Error::Request { .. })
    }
}

/// The result of an NBD call.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// A server's remark, as the tail of a message.
fn suffix(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(" ('{message}')") }
}
