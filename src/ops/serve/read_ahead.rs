//! Detects sequential readers and determines how far to read ahead of each of them.

/// The read-ahead of all readers together: half of the cache, so that chunks are not evicted before they are read. On a
/// slow connection, a single reader needs all of it.
pub(super) const AHEAD_BYTES: u64 = 24 << 20;

/// The number of readers that are distinguished, such as the connections of `nbdcopy`.
const STREAMS: usize = 32;

/// A reader that did not continue while this number of chunks were read is no longer counted.
const IDLE_CHUNKS: u64 = 4 * STREAMS as u64;

/// The position of a reader.
#[derive(Debug, Clone, Copy)]
struct Stream {
    disk: usize,
    /// The start of the chunk that was read last, and the start of the next data.
    chunk: (u64, u64),
    last_use: u64,
    goes_on: bool,
}

/// The readers of all disks. Used to distinguish sequential readers from random ones.
#[derive(Debug, Default)]
pub(super) struct Streams {
    streams: Vec<Stream>,
    uses: u64,
}

impl Streams {
    /// How far to read ahead of the reader of this chunk, if the chunk follows one that was read recently.
    pub(super) fn ahead_of(&mut self, disk: usize, chunk: (u64, u64)) -> Option<u64> {
        if self.streams.iter().any(|stream| stream.disk == disk && stream.chunk == chunk) {
            return None;
        }
        self.uses += 1;
        let new = Stream { disk, chunk, last_use: self.uses, goes_on: false };
        let follows = |stream: &&mut Stream| stream.disk == disk && stream.chunk.1 == chunk.0;
        if let Some(stream) = self.streams.iter_mut().find(follows) {
            *stream = Stream { goes_on: true, ..new };
            return Some(AHEAD_BYTES / self.readers());
        }
        if self.streams.len() < STREAMS {
            self.streams.push(new);
        } else if let Some(oldest) = self.streams.iter_mut().min_by_key(|stream| stream.last_use) {
            *oldest = new;
        }
        None
    }

    /// The number of sequential readers.
    fn readers(&self) -> u64 {
        let is_active = |stream: &&Stream| stream.goes_on && self.uses - stream.last_use < IDLE_CHUNKS;
        self.streams.iter().filter(is_active).count().max(1) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequential_readers_are_distinguished_from_random_ones() {
        let mut streams = Streams::default();
        let mut goes_on = |disk, chunk: u64| streams.ahead_of(disk, (10 * chunk, 10 * chunk + 10)).is_some();
        assert_eq!(
            [5, 5, 6, 100, 7, 101, 3, 8].map(|chunk| goes_on(0, chunk)),
            [false, false, true, false, true, true, false, true]
        );
        assert!(!goes_on(1, 9), "the other disk has readers of its own");
        assert!(goes_on(0, 9));
    }

    #[test]
    fn read_ahead_is_shared_among_active_readers() {
        let mut streams = Streams::default();
        let mut ahead = 0;
        let far = 1 << 30;
        for step in 0..8 {
            for reader in 0..16 {
                let start = reader * far + step;
                ahead = streams.ahead_of(0, (start, start + 1)).unwrap_or_default();
            }
        }
        assert_eq!(ahead, AHEAD_BYTES / 16);
        // Fifteen of them have stopped.
        for step in 8..300 {
            ahead = streams.ahead_of(0, (step, step + 1)).unwrap_or_default();
        }
        assert_eq!(ahead, AHEAD_BYTES);
    }
}
