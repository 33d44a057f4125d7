//! The number of threads for each kind of work.

/// The upper limit, which bounds the memory on any machine.
const MOST: usize = 8;

/// The number of threads that hash and compress: one per processor.
pub(crate) fn for_processors() -> usize {
    std::thread::available_parallelism().map_or(2, |n| n.get()).clamp(2, MOST)
}

/// The resources of each machine while several are stored in parallel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Parallelism {
    /// The number of threads that hash and compress.
    pub(crate) threads: usize,
    /// The number of machines that share the memory.
    pub(crate) machines: usize,
}

impl Parallelism {
    /// `threads` is the number for each machine, by default one per processor.
    pub(crate) fn new(threads: Option<usize>, machines: usize) -> Parallelism {
        Parallelism { threads: threads.unwrap_or_else(for_processors).max(1), machines: machines.max(1) }
    }

    /// The share of one machine in an amount that is for all machines together.
    pub(crate) fn share(&self, amount: usize) -> usize {
        amount / self.machines
    }
}

/// The number of threads that also read from or write to a disk: while half of them wait for it, the others keep the
/// processors busy.
pub(crate) fn for_disks() -> usize {
    (2 * for_processors()).min(MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_share_memory_and_have_separate_threads() {
        let parallelism = Parallelism::new(Some(3), 8);
        assert_eq!((parallelism.threads, parallelism.share(64)), (3, 8));
        assert_eq!(Parallelism::new(None, 0), Parallelism { threads: for_processors(), machines: 1 });
        assert_eq!(Parallelism::new(Some(0), 1).threads, 1);
    }
}
