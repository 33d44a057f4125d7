//! The number of threads for a part of the work.

/// No more than this, so that memory stays bounded on any machine.
const MOST: usize = 8;

/// Threads that hash and compress: one for each processor.
pub(crate) fn for_processors() -> usize {
    std::thread::available_parallelism().map_or(2, |n| n.get()).clamp(2, MOST)
}

/// What each machine may use while several are stored at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Parallelism {
    /// Threads that hash and compress.
    pub(crate) threads: usize,
    /// How many machines share the memory.
    pub(crate) machines: usize,
}

impl Parallelism {
    /// With this number of threads for each machine, by default one for each processor.
    pub(crate) fn new(threads: Option<usize>, machines: usize) -> Parallelism {
        Parallelism { threads: threads.unwrap_or_else(for_processors).max(1), machines: machines.max(1) }
    }

    /// How much of an amount that is for all machines together one of them may take.
    pub(crate) fn share(&self, amount: usize) -> usize {
        amount / self.machines
    }
}

/// Threads that also read from a disk or write to one: while half of them wait, the others keep the processors busy.
pub(crate) fn for_disks() -> usize {
    (2 * for_processors()).min(MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_share_memory_and_have_threads_of_their_own() {
        let parallelism = Parallelism::new(Some(3), 8);
        assert_eq!((parallelism.threads, parallelism.share(64)), (3, 8));
        assert_eq!(Parallelism::new(None, 0), Parallelism { threads: for_processors(), machines: 1 });
        assert_eq!(Parallelism::new(Some(0), 1).threads, 1);
    }
}
