//! Measures the speed of a server: files of random data are stored there durably, read back and removed.

use crate::helper_thread;
use crate::repo::WriterOptions;
use crate::storage::sftp::SshContext;
use crate::storage::sftp::fault::SftpFault;
use crate::storage::sftp::files::SftpClient;
use crate::storage::sftp::pool::Pool;
use crate::storage::sftp::ssh_target::SshTarget;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The limits of the short test: the size and number of the pieces, and the duration of each direction.
const PIECE_BYTES: usize = 4 << 20;
const MOST_PIECES: u64 = 12;
const LONGEST: Duration = Duration::from_secs(3);

/// The transfer rates to and from a server, in bytes per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Speed {
    /// The number of connections used in parallel.
    pub(crate) connections: usize,
    /// The rate until the data was durable on the server.
    pub(crate) upload: u64,
    pub(crate) download: u64,
}

type SpeedResult<T> = std::result::Result<T, SftpFault>;

/// Runs a short test on one connection. Once `stop` is raised, it ends soon and the result is meaningless.
pub(crate) fn at_a_glance(files: &SftpClient, folder: &str, stop: &AtomicBool) -> SpeedResult<Speed> {
    let piece = noise(PIECE_BYTES);
    let name = |number: u64| name(folder, number);
    let goes_on = |done: u64, begun: Instant| !stop.load(Ordering::Relaxed) && (done == 0 || begun.elapsed() < LONGEST);
    let mut pieces = 0;
    let mut transfer = || -> SpeedResult<Speed> {
        let begun = Instant::now();
        while pieces < MOST_PIECES && goes_on(pieces, begun) {
            pieces += 1;
            files.write_new(&name(pieces), &piece)?;
        }
        let upload = rate(pieces, piece.len(), begun.elapsed());
        let begun = Instant::now();
        let mut read = 0;
        while read < pieces && goes_on(read, begun) {
            read += 1;
            files.read(&name(read), piece.len() as u64)?;
        }
        Ok(Speed { connections: 1, upload, download: rate(read, piece.len(), begun.elapsed()) })
    };
    let measured = transfer();
    for number in 1..=pieces {
        // A partly written piece must be removed too. It is not an error if a piece is missing.
        let _ = files.remove(&name(number));
    }
    measured
}

/// Transfers this number of bytes over all connections, stored as a backup stores its packs, which gives the speed of a
/// long backup. Once `ssh_context.stop` is raised, it ends after the packs in transit, and the result is meaningless.
pub(crate) fn at_length(
    ssh_target: &SshTarget,
    ssh_context: &SshContext,
    folder: &str,
    size_bytes: u64,
) -> SpeedResult<Speed> {
    let (pack, pool) = (noise(WriterOptions::default().pack_bytes), Pool::new(ssh_target.clone(), ssh_context.clone()));
    let packs = size_bytes.div_ceil(pack.len() as u64).max(1);
    let connections = ssh_context.connections.max(1).min(usize::try_from(packs).unwrap_or(usize::MAX));
    let is_stopped = || ssh_context.stop.load(Ordering::Relaxed);
    let name = |number: u64| name(folder, number);
    let for_each_pack =
        |packs: u64, work: &(dyn Fn(&SftpClient, u64) -> SpeedResult<()> + Sync)| -> SpeedResult<Duration> {
            let (next, begun) = (AtomicU64::new(0), Instant::now());
            let worker = || -> SpeedResult<()> {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= packs {
                        return Ok(());
                    }
                    if let Err(fault) = pool.with(|files| work(files, number)) {
                        // The other threads need not continue.
                        next.fetch_max(packs, Ordering::Relaxed);
                        return Err(fault);
                    }
                }
            };
            thread::scope(|scope| {
                let workers: Vec<_> = (0..connections).map(|_| helper_thread::start(scope, worker)).collect();
                let results = workers.into_iter().map(|worker| worker.join());
                let results: Vec<_> =
                    results.map(|joined| joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect();
                results.into_iter().collect::<SpeedResult<()>>()
            })?;
            Ok(begun.elapsed())
        };
    let begun = AtomicU64::new(0);
    let transfer = || -> SpeedResult<Speed> {
        let upload = for_each_pack(packs, &|files, number| match is_stopped() {
            true => Ok(()),
            false => {
                begun.fetch_max(number + 1, Ordering::Relaxed);
                files.store(folder, &part(&name(number)), &name(number), &pack, &|_| true)
            }
        })?;
        let download = for_each_pack(packs, &|files, number| match is_stopped() {
            true => Ok(()),
            false => files.read_range(&name(number), 0, pack.len()).map(drop),
        })?;
        let rate = |took| rate(packs, pack.len(), took);
        Ok(Speed { connections, upload: rate(upload), download: rate(download) })
    };
    let measured = transfer();
    // Partly written packs are removed too. Packs that were not started are not looked for, which would take long on a
    // distant server.
    let _ = for_each_pack(begun.into_inner(), &|files, number| {
        let name = name(number);
        let _ = files.remove(&name).or_else(|_| files.remove(&part(&name)));
        Ok(())
    });
    measured
}

/// Random data, so that nothing on the way can compress it.
fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    rand::RngCore::fill_bytes(&mut rand::rng(), &mut bytes);
    bytes
}

fn name(folder: &str, number: u64) -> String {
    format!("{folder}/kvmb-tmp-speed-{}-{number}", std::process::id())
}

fn part(name: &str) -> String {
    format!("{name}-part")
}

/// The rate in bytes per second.
fn rate(pieces: u64, piece_bytes: usize, took: Duration) -> u64 {
    ((pieces * piece_bytes as u64) as f64 / took.as_secs_f64().max(0.001)) as u64
}
