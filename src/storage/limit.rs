//! A decorator that limits the upload rate.
//!
//! It belongs *below* [`super::RetryStorage`], so that retransmissions are limited as well. Reads are not limited: a
//! backup reads little from a repository.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{FileInfo, FileKind, Gate, Result, Storage, Transit};
use crate::rate_limiter::RateLimiter;

/// However low the limit, the caller's gate is called at least once for this many bytes.
const STEP_BYTES: usize = 16 << 10;

/// A storage with a limited upload rate.
#[derive(Debug)]
pub struct LimitStorage {
    inner: Arc<dyn Storage>,
    upload: Arc<RateLimiter>,
}

impl LimitStorage {
    /// Limits uploads to `inner` by `upload`.
    pub fn new(inner: Arc<dyn Storage>, upload: Arc<RateLimiter>) -> Self {
        LimitStorage { inner, upload }
    }
}

impl Storage for LimitStorage {
    fn url(&self) -> String {
        self.inner.url()
    }

    fn create_layout(&self) -> Result<()> {
        self.inner.create_layout()
    }

    fn list(&self, kind: FileKind) -> Result<Vec<FileInfo>> {
        self.inner.list(kind)
    }

    fn lists_several_at_once(&self) -> bool {
        self.inner.lists_several_at_once()
    }

    fn list_several(&self, kinds: &[FileKind]) -> Result<Vec<Vec<FileInfo>>> {
        self.inner.list_several(kinds)
    }

    fn read_config_and_list(&self, kinds: &[FileKind]) -> Result<(Vec<u8>, Vec<Vec<FileInfo>>)> {
        self.inner.read_config_and_list(kinds)
    }

    fn modified_at(&self, kind: FileKind, name: &str) -> Result<Option<SystemTime>> {
        self.inner.modified_at(kind, name)
    }

    fn size(&self, kind: FileKind, name: &str) -> Result<u64> {
        self.inner.size(kind, name)
    }

    fn read(&self, kind: FileKind, name: &str) -> Result<Vec<u8>> {
        self.inner.read(kind, name)
    }

    fn read_range(&self, kind: FileKind, name: &str, offset: u64, length: usize) -> Result<Vec<u8>> {
        self.inner.read_range(kind, name, offset, length)
    }

    fn write(&self, kind: FileKind, name: &str, contents: &[u8]) -> Result<()> {
        self.write_gated(kind, name, contents, &|_| true)
    }

    fn write_gated(&self, kind: FileKind, name: &str, contents: &[u8], gate: Gate) -> Result<()> {
        self.inner.write_gated(kind, name, contents, &|bytes| {
            gate(0)
                && (0..bytes).step_by(STEP_BYTES).all(|done| {
                    self.upload.acquire_while(STEP_BYTES.min(bytes - done), || gate(0));
                    gate(STEP_BYTES.min(bytes - done))
                })
        })
    }

    fn create(&self, kind: FileKind, name: &str, contents: &[u8]) -> Result<()> {
        self.upload.acquire(contents.len());
        self.inner.create(kind, name, contents)
    }

    fn remove_exact(&self, kind: FileKind, name: &str, contents: &[u8]) -> Result<bool> {
        self.inner.remove_exact(kind, name, contents)
    }

    fn remove(&self, kind: FileKind, name: &str) -> Result<()> {
        self.inner.remove(kind, name)
    }

    fn removal_batch(&self) -> usize {
        self.inner.removal_batch()
    }

    fn remove_many(&self, kind: FileKind, names: &[String]) -> Result<()> {
        self.inner.remove_many(kind, names)
    }

    fn sync_folder(&self, kind: FileKind, name: &str) -> Result<()> {
        self.inner.sync_folder(kind, name)
    }

    fn remove_leftovers(&self) -> Result<()> {
        self.inner.remove_leftovers()
    }

    fn warm_up(&self, files: usize) {
        self.inner.warm_up(files);
    }

    fn sees_writes_at_once(&self) -> bool {
        self.inner.sees_writes_at_once()
    }

    fn parallel(&self) -> usize {
        self.inner.parallel()
    }

    fn transit(&self) -> Transit {
        self.inner.transit()
    }

    fn is_taken(&self) -> Result<bool> {
        self.inner.is_taken()
    }

    fn lock_period(&self) -> Option<Duration> {
        self.inner.lock_period()
    }

    fn can_lock(&self) -> Result<bool> {
        self.inner.can_lock()
    }

    fn locked_until(&self, kind: FileKind, name: &str) -> Result<Option<SystemTime>> {
        self.inner.locked_until(kind, name)
    }

    fn extend_lock(&self, kind: FileKind, name: &str) -> Result<Option<SystemTime>> {
        self.inner.extend_lock(kind, name)
    }

    fn free_bytes(&self) -> Result<Option<u64>> {
        self.inner.free_bytes()
    }
}
