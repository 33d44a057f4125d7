//! Detects a server that answers keep-alives but makes no progress.
//!
//! The SSH layer of a server may respond while its disk, or the process that serves files, is stuck; or it may send its
//! replies byte by byte. So the time spent waiting is measured, and restarts when the server
//!
//! | | why this cannot go on forever |
//! | --- | --- |
//! | answers a request whose reply has a fixed length | the number of requests is finite |
//! | receives or sends [`SLOWEST_BYTES_A_SECOND`] over the whole time, not counting requests | the number of bytes to store or read is finite |
//!
//! Time in which nobody waits for the server (a rate-limited upload, a suspended program) does not count.

use std::cell::Cell;
use std::time::Duration;

/// A lower rate is not progress. A modem is ten times faster.
pub(crate) const SLOWEST_BYTES_A_SECOND: u64 = 512;

/// A single wait for the socket is much shorter. In a longer one this program was suspended, or waited for the user.
const LONGEST_STEP: Duration = Duration::from_secs(1);

/// The time that a connection has been waited for since its server last made progress.
#[derive(Debug, Default)]
pub(crate) struct TransferProgress {
    waited: Cell<Duration>,
    moved_bytes: Cell<u64>,
}

impl TransferProgress {
    /// Restarts the measurement, after progress or for a new request.
    pub(crate) fn restart(&self) {
        self.waited.set(Duration::ZERO);
        self.moved_bytes.set(0);
    }

    /// Counts bytes sent or received. `limit` is the time in which [`SLOWEST_BYTES_A_SECOND`] must be reached.
    pub(crate) fn moved(&self, bytes: usize, limit: Duration) {
        let moved_bytes = self.moved_bytes.get().saturating_add(bytes as u64);
        self.moved_bytes.set(moved_bytes);
        if moved_bytes >= limit.as_secs().max(1).saturating_mul(SLOWEST_BYTES_A_SECOND) {
            self.restart();
        }
    }

    /// Counts time that was spent waiting for the server.
    pub(crate) fn waited(&self, time: Duration) {
        self.waited.set(self.waited.get().saturating_add(time.min(LONGEST_STEP)));
    }

    /// Returns the time spent waiting without progress.
    pub(crate) fn stuck_for(&self) -> Duration {
        self.waited.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(120);

    #[test]
    fn only_sufficient_throughput_resets_the_stall_time() {
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
    fn single_wait_counts_at_most_the_longest_step() {
        let progress = TransferProgress::default();
        progress.waited(Duration::from_secs(3600));
        assert_eq!(progress.stuck_for(), LONGEST_STEP);
    }
}
