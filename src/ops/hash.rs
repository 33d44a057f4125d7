//! SHA-256 of disks as the guest sees them, and of files.

use super::store_disk::check_size;
use super::{Error, Monitor, Result, Stop};
use crate::nbd::{Chunk, DiskReader, NbdUri, ReadOptions};
use crate::rate_limiter::RateLimiter;
use crate::record;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The size of reads, and of the zeros that a hole is hashed as.
const STEP_BYTES: u32 = 1 << 20;

/// The SHA-256 of everything that can be read at `uri`, no faster than `pace`, and its size, which must be that of the capture
/// where there is one. Holes are hashed without being read.
pub fn hash_export(
    uri: &NbdUri,
    captured_bytes: Option<u64>,
    label: &str,
    disk: &str,
    pace: Option<&RateLimiter>,
    monitor: &dyn Monitor,
    stop: &Stop,
) -> Result<(String, u64)> {
    let options = ReadOptions { chunk_bytes: STEP_BYTES, stop: stop.flag(), ..ReadOptions::default() };
    let reader = DiskReader::open(uri, options).map_err(Error::disk(disk))?;
    let size_bytes = reader.size_bytes();
    if let Some(captured_bytes) = captured_bytes {
        check_size(disk, size_bytes, captured_bytes)?;
    }
    let progress = monitor.start("hashing", label, size_bytes);
    let zeros = vec![0; STEP_BYTES as usize];
    let (mut hasher, mut hashed) = (Sha256::new(), 0);
    for chunk in reader.chunks_in_order() {
        stop.check()?;
        let before = hashed;
        match chunk.map_err(Error::disk(disk))? {
            Chunk::Data { bytes, .. } => {
                if let Some(pace) = pace {
                    pace.acquire(bytes.len());
                }
                hasher.update(&bytes[..]);
                hashed += bytes.len() as u64;
            }
            Chunk::Zero { count, .. } | Chunk::Clean { count, .. } => {
                for _ in 0..count {
                    stop.check()?;
                    let length = u64::from(STEP_BYTES).min(size_bytes - hashed);
                    hasher.update(&zeros[..length as usize]);
                    hashed += length;
                }
            }
        }
        progress.advance(hashed - before);
    }
    stop.check()?;
    Ok((hex::encode(hasher.finalize()), size_bytes))
}

/// The SHA-256 of a file's own bytes, as `sha256sum` prints it.
pub fn hash_file(path: &Path, monitor: &dyn Monitor, stop: &Stop) -> Result<record::File> {
    let mut file = File::open(path).map_err(Error::io("read", path))?;
    let metadata = file.metadata().map_err(Error::io("read", path))?;
    let progress = monitor.start("hashing", &path.display().to_string(), metadata.len());
    let (mut hasher, mut size_bytes) = (Sha256::new(), 0);
    let mut buffer = vec![0; STEP_BYTES as usize];
    loop {
        stop.check()?;
        let count = file.read(&mut buffer).map_err(Error::io("read", path))?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
        size_bytes += count as u64;
        progress.advance(count as u64);
    }
    Ok(record::File {
        path: path.to_string_lossy().into_owned(),
        size_bytes,
        sha256: hex::encode(hasher.finalize()),
        extra: Default::default(),
    })
}
