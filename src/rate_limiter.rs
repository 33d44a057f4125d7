//! Bandwidth limits for reading disks and for uploads.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota};

/// Interval at which a waiting caller checks the stop flag.
const TICK: Duration = Duration::from_millis(100);
/// The size of one request: small enough that several callers share the limit evenly.
const LARGEST_PIECE_BYTES: u32 = 64 << 10;
/// After a pause, at most this fraction of a second's bytes may pass at once.
const BURST: u32 = 8;

/// A limit that all its users share.
pub struct RateLimiter {
    limiter: DefaultDirectRateLimiter,
    clock: DefaultClock,
    bytes_per_second: NonZeroU32,
    piece: NonZeroU32,
    stop: Arc<AtomicBool>,
}

impl RateLimiter {
    /// Creates a limit of this many bytes per second. Raising `stop` ends all waiting.
    pub fn new(bytes_per_second: NonZeroU32, stop: Arc<AtomicBool>) -> RateLimiter {
        let burst = NonZeroU32::new(bytes_per_second.get() / BURST).unwrap_or(NonZeroU32::MIN);
        let clock = DefaultClock::default();
        let quota = Quota::per_second(bytes_per_second).allow_burst(burst);
        let limiter = governor::RateLimiter::direct_with_clock(quota, clock.clone());
        let piece = NonZeroU32::new(burst.get().min(LARGEST_PIECE_BYTES)).unwrap_or(NonZeroU32::MIN);
        RateLimiter { limiter, clock, bytes_per_second, piece, stop }
    }

    /// Waits until this number of bytes may pass. Returns immediately if the run is interrupted; the caller has to
    /// check for that.
    pub(crate) fn acquire(&self, bytes: usize) {
        self.acquire_while(bytes, || true);
    }

    /// Like `acquire`, but stops waiting when `goes_on` returns false, so that a failed run does not wait.
    pub(crate) fn acquire_while(&self, bytes: usize, goes_on: impl Fn() -> bool) {
        let mut left = bytes as u64;
        while let Some(piece) = NonZeroU32::new(left.min(u64::from(self.piece.get())) as u32) {
            if self.stop.load(Ordering::Relaxed) || !goes_on() {
                return;
            }
            match self.limiter.check_n(piece) {
                Ok(Err(later)) => thread::sleep(later.wait_time_from(self.clock.now()).min(TICK)),
                // A piece is never larger than a burst.
                Ok(Ok(())) | Err(_) => left -= u64::from(piece.get()),
            }
        }
    }
}

impl fmt::Debug for RateLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RateLimiter({} bytes per second)", self.bytes_per_second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn limiter(bytes_per_second: u32) -> (RateLimiter, Arc<AtomicBool>) {
        let stop = Arc::<AtomicBool>::default();
        (RateLimiter::new(NonZeroU32::new(bytes_per_second).unwrap(), Arc::clone(&stop)), stop)
    }

    #[test]
    fn concurrent_acquirers_share_one_rate_limit() {
        let (rate_limit, _) = limiter(10 << 20);
        let began = Instant::now();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..5).for_each(|_| rate_limit.acquire(256 << 10)));
            }
        });
        // 5 MiB at 10 MiB per second, minus the first burst. There is no upper bound on a busy host.
        assert!(began.elapsed() > Duration::from_millis(350), "{:?}", began.elapsed());
    }

    #[test]
    fn minimal_rate_passes_bytes_and_stop_ends_the_wait() {
        let (rate_limit, stop) = limiter(1);
        rate_limit.acquire(1);
        let began = Instant::now();
        thread::scope(|scope| {
            scope.spawn(|| rate_limit.acquire(1 << 40));
            thread::sleep(Duration::from_millis(50));
            stop.store(true, Ordering::Relaxed);
        });
        assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    }

    #[test]
    fn failed_run_stops_waiting() {
        let (rate_limit, _) = limiter(1);
        rate_limit.acquire(1);
        let (began, failed) = (Instant::now(), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| rate_limit.acquire_while(1 << 40, || !failed.load(Ordering::Relaxed)));
            thread::sleep(Duration::from_millis(50));
            failed.store(true, Ordering::Relaxed);
        });
        assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    }
}
