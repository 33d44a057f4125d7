//! The memory of chunks: reused, and limited.
//!
//! Allocating a chunk of 1 MiB costs 256 page faults, and freed memory stays with the thread that allocated it. With
//! many connections, that doubled the memory.

use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
struct Account {
    free: Vec<Vec<u8>>,
    free_bytes: usize,
    used_bytes: usize,
}

/// Buffers of one or a few sizes. Free buffers are only kept while all buffers together are within the budget.
#[derive(Debug)]
pub(super) struct ChunkBuffers {
    budget_bytes: usize,
    account: Mutex<Account>,
}

impl ChunkBuffers {
    pub(super) fn new(budget_bytes: usize) -> Arc<ChunkBuffers> {
        Arc::new(ChunkBuffers { budget_bytes, account: Mutex::default() })
    }

    fn account(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// By how much the budget would be exceeded if this number of bytes more were in use.
    pub(super) fn excess(&self, more_bytes: usize) -> usize {
        (self.account().used_bytes + more_bytes).saturating_sub(self.budget_bytes)
    }

    /// Copies these bytes into a buffer. The caller must check the budget.
    pub(super) fn copy_of(self: &Arc<Self>, content: &[u8]) -> ChunkBuffer {
        let mut account = self.account();
        // A buffer much larger than the content would waste memory that counts towards the budget.
        let fits = |buffer: &Vec<u8>| buffer.capacity() >= content.len() && buffer.capacity() / 2 <= content.len();
        let fitting = account.free.iter().rposition(fits);
        let recycled = fitting.map(|at| account.free.swap_remove(at));
        let mut bytes = match recycled {
            Some(buffer) => {
                account.free_bytes -= buffer.capacity();
                buffer
            }
            None => Vec::with_capacity(content.len()),
        };
        account.used_bytes += bytes.capacity();
        // Free buffers of other sizes are dropped if they exceed the budget.
        let mut surplus = Vec::new();
        while account.used_bytes + account.free_bytes > self.budget_bytes
            && let Some(buffer) = account.free.pop()
        {
            account.free_bytes -= buffer.capacity();
            surplus.push(buffer);
        }
        drop(account);
        drop(surplus);
        bytes.extend_from_slice(content);
        ChunkBuffer { bytes, buffers: Arc::clone(self) }
    }
}

/// The bytes of a chunk. Dropping it makes the memory available for another chunk.
#[derive(Debug)]
pub(super) struct ChunkBuffer {
    bytes: Vec<u8>,
    buffers: Arc<ChunkBuffers>,
}

impl Deref for ChunkBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for ChunkBuffer {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        let mut account = self.buffers.account();
        account.used_bytes -= bytes.capacity();
        if account.used_bytes + account.free_bytes + bytes.capacity() <= self.buffers.budget_bytes {
            account.free_bytes += bytes.capacity();
            account.free.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(buffers: &ChunkBuffers) -> (usize, usize) {
        let account = buffers.account();
        (account.used_bytes, account.free_bytes)
    }

    #[test]
    fn buffers_are_reused_within_the_budget() {
        let buffers = ChunkBuffers::new(40);
        let taken: Vec<_> = (0..6).map(|_| buffers.copy_of(&[7; 10])).collect();
        assert_eq!((buffers.excess(0), buffers.excess(5)), (20, 25), "what is in use is counted");
        drop(taken);
        assert_eq!(totals(&buffers), (0, 40));
        let again: Vec<_> = (0..4).map(|_| buffers.copy_of(&[8; 9])).collect();
        assert!(again.iter().all(|buffer| **buffer == [8; 9]));
        assert_eq!(totals(&buffers), (40, 0), "nothing new was allocated");
        drop(again);
        let large = buffers.copy_of(&[9; 30]);
        assert_eq!(large.len(), 30);
        assert!(totals(&buffers).1 <= 10, "small ones make room");
        drop(large);
        let small = buffers.copy_of(&[1; 4]);
        assert_eq!(totals(&buffers).0, small.len(), "none of a large one's memory is wasted");
    }
}
