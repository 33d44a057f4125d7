//! SHA-256 of disks as the guest sees them, and of files.

use super::store::check_size;
use super::{Error, Monitor, Result, Stop};
use crate::bounded::{self, GaveUp};
use crate::nbd::{Chunk, DiskReader, NbdUri, ReadOptions};
use crate::rate_limiter::RateLimiter;
use crate::record;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::time::Duration;

/// The writer of a pipe may send nothing for a long time.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// The size of reads, and of the buffer of zeros that holes are hashed from.
const STEP_BYTES: u32 = 1 << 20;

/// Returns the SHA-256 and the size of everything readable at `uri`, no faster than `rate_limit`. If it belongs to a
/// capture, the size must be the captured one. Holes are hashed without being read.
pub(crate) fn hash_export(
    uri: &NbdUri,
    captured_bytes: Option<u64>,
    label: &str,
    disk: &str,
    rate_limit: Option<&RateLimiter>,
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
        match chunk.map_err(Error::disk(disk))? {
            Chunk::Data { bytes, .. } => {
                if let Some(rate_limit) = rate_limit {
                    rate_limit.acquire_while(bytes.len(), || !stop.requested());
                }
                hasher.update(&bytes[..]);
                hashed += bytes.len() as u64;
                progress.advance(bytes.len() as u64);
            }
            Chunk::Mixed { index, .. } => {
                let reason = format!("chunk {index} was not read");
                return Err(Error::DiskMap { disk: disk.to_owned(), reason });
            }
            Chunk::Zero { count, .. } | Chunk::Clean { count, .. } => {
                for _ in 0..count {
                    stop.check()?;
                    let length = u64::from(STEP_BYTES).min(size_bytes - hashed);
                    hasher.update(&zeros[..length as usize]);
                    hashed += length;
                    progress.skip(length);
                }
            }
        }
    }
    stop.check()?;
    Ok((hex::encode(hasher.finalize()), size_bytes))
}

/// Returns the SHA-256 of a file's own bytes, as `sha256sum` prints it.
pub(crate) fn hash_file(path: &Path, monitor: &dyn Monitor, stop: &Stop) -> Result<record::File> {
    // Opening or reading a named pipe may block. It must not delay an interrupt.
    let named = path.to_owned();
    let opened = match bounded::call(FOR_EVER, &stop.flag(), move || File::open(named)) {
        Err(GaveUp::Interrupted) => return Err(Error::Interrupted),
        opened => opened.unwrap_or_else(|why| Err(why.into())),
    };
    let mut file = opened.map_err(Error::io("read", path))?;
    let metadata = file.metadata().map_err(Error::io("read", path))?;
    let progress = monitor.start("hashing", &path.display().to_string(), metadata.len());
    let (mut hasher, mut size_bytes) = (Sha256::new(), 0);
    let mut buffer = vec![0; STEP_BYTES as usize];
    loop {
        wait_for_bytes(&file, stop)?;
        let count = match file.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            read => read.map_err(Error::io("read", path))?,
        };
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
        sha256: Some(hex::encode(hasher.finalize())),
        machine: None,
        point: None,
        filesystem: None,
        kind: None,
        mode: None,
        uid: None,
        gid: None,
        links: None,
        modified_at: None,
        target: None,
        extra: Default::default(),
    })
}

/// Waits until a file, which may be a pipe, has data to read.
fn wait_for_bytes(file: &File, stop: &Stop) -> Result<()> {
    const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    loop {
        stop.check()?;
        // If `poll` fails, the read that follows reports the error.
        if poll(&mut [PollFd::new(file, PollFlags::IN)], Some(&TICK)) != Ok(0) {
            return Ok(());
        }
    }
}
