//! Whether a server makes progress, beyond answering keep-alives.
//!
//! A server's SSH may be alive while its disk, or the process that serves files, is stuck; or it may hand out its
//! answers byte by byte. What counts is therefore the time that is spent waiting, and it starts again when the server
//!
//! | | why that ends at some time |
//! | --- | --- |
//! | answers a request whose answer is of fixed length | there are only so many requests |
//! | takes or sends [`SLOWEST_BYTES_A_SECOND`] over the whole time; requests do not count | there are only so many bytes to store or read |
//!
//! Time in which nobody waits for the server (a limited upload, a program that is stopped) does not count.

use std::cell::Cell;
use std::time::Duration;

/// Slower than this is no progress: a modem is ten times as quick.
pub(crate) const SLOWEST_BYTES_A_SECOND: u64 = 512;

/// One wait for the socket is much shorter; a longer one is time in which this program did not run, or asked somebody.
const LONGEST_STEP: Duration = Duration::from_secs(1);

/// The time that one connection has been waited for since its server made progress.
#[derive(Debug, Default)]
pub(crate) struct TransferProgress {
    waited: Cell<Duration>,
    moved_bytes: Cell<u64>,
}

impl TransferProgress {
    /// The server made progress, or something new is asked for.
    pub(crate) fn restart(&self) {
        self.waited.set(Duration::ZERO);
        self.moved_bytes.set(0);
    }

    /// So many bytes went to or came from the server; `limit` is the time in which so many are expected.
    pub(crate) fn moved(&self, bytes: usize, limit: Duration) {
        let moved_bytes = self.moved_bytes.get().saturating_add(bytes as u64);
        self.moved_bytes.set(moved_bytes);
        if moved_bytes >= limit.as_secs().max(1).saturating_mul(SLOWEST_BYTES_A_SECOND) {
            self.restart();
        }
    }

    /// The server was waited for.
    pub(crate) fn waited(&self, time: Duration) {
        self.waited.set(self.waited.get().saturating_add(time.min(LONGEST_STEP)));
    }

    /// How long it has been waited for without progress.
    pub(crate) fn stuck_for(&self) -> Duration {
        self.waited.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(120);

    #[test]
    fn only_enough_bytes_are_progress() {
        let progress = TransferProgress::default();
        for _ in 0..1000 {
            progress.waited(Duration::from_millis(100));
            progress.moved(50, LIMIT);
        }
        assert_eq!(progress.stuck_for(), Duration::from_secs(100), "500 bytes a second are too few");
        progress.moved(20_000, LIMIT);
        assert_eq!(progress.stuck_for(), Duration::ZERO);
        progress.moved(40_000, LIMIT);
        progress.waited(Duration::from_secs(1));
        assert_eq!(progress.stuck_for(), Duration::from_secs(1), "what went before is not counted again");
    }

    #[test]
    fn a_program_that_slept_did_not_wait() {
        let progress = TransferProgress::default();
        progress.waited(Duration::from_secs(3600));
        assert_eq!(progress.stuck_for(), LONGEST_STEP);
    }
}
