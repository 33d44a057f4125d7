//! How many threads do a part of the work.

/// No more than this, so that memory stays bounded on any machine.
const MOST: usize = 8;

/// Threads that hash and compress: one for each processor.
pub(crate) fn for_processors() -> usize {
    std::thread::available_parallelism().map_or(2, |n| n.get()).clamp(2, MOST)
}

/// Threads that also read from a disk or write to one: while half of them wait, the others keep the processors busy.
pub(crate) fn for_disks() -> usize {
    (2 * for_processors()).min(MOST)
}
