//! A look at the server, step by step, in the order in which a backup would need it.

use super::{failed, unreached};
use crate::ops::Result;
use crate::storage::sftp::authenticate::{Login, authenticate};
use crate::storage::sftp::connect::connect;
use crate::storage::sftp::fault::{Fault, Refusal};
use crate::storage::sftp::files::Files;
use crate::storage::sftp::route::Route;
use crate::storage::sftp::storage::is_taken;
use crate::storage::sftp::{Access, Target};
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// One thing that is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Whether the server answers.
    Reach,
    /// Whether it is the right one.
    HostKey,
    /// Whether it lets us in.
    Login,
    /// Whether the folder can be written to.
    Path,
    /// How much room there is.
    Space,
    /// How quick the way is.
    Speed,
    /// Whether its clock is right.
    Clock,
}

impl Step {
    /// All of them, in order.
    pub const ALL: [Step; 7] =
        [Step::Reach, Step::HostKey, Step::Login, Step::Path, Step::Space, Step::Speed, Step::Clock];
}

/// What was found.
#[derive(Debug, Clone)]
pub enum Finding {
    /// It answers.
    Reached {
        /// Its address.
        address: Option<SocketAddr>,
        /// How long it took until the encrypted connection was there.
        took: Duration,
    },
    /// Its key is known.
    HostKey {
        /// The key's type.
        algorithm: String,
        /// Its SHA-256.
        fingerprint: String,
    },
    /// It let us in.
    LoggedIn {
        /// `user@host`.
        account: String,
        /// How.
        by: Login,
    },
    /// The folder.
    Path {
        /// Its absolute path there.
        path: String,
        /// What is in it.
        place: Place,
        /// Whether what was written could be removed again.
        removable: bool,
        /// The folder that was asked for, where it holds other things and the repository is below it.
        beside: Option<String>,
    },
    /// The room; none if the server cannot tell.
    Space {
        /// In bytes.
        free_bytes: Option<u64>,
    },
    /// The rates of one connection, in bytes a second.
    Speed {
        /// To the server, until the data was on its disk.
        upload: u64,
        /// From the server.
        download: u64,
    },
    /// By how much the server's clock is ahead of ours; negative where it is behind.
    Clock {
        /// In seconds.
        ahead_seconds: i64,
    },
}

/// What the repository's folder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// It holds a repository.
    Repository,
    /// It is there and holds none.
    Folder,
    /// It is not there, and can be made.
    Missing,
}

/// What is sent to measure: at most so much, in pieces, for at most so long.
const PIECE_BYTES: usize = 4 << 20;
const MOST_PIECES: usize = 12;
const LONGEST: Duration = Duration::from_secs(3);

/// Takes the steps; `told` hears of each. After one that failed the others are not tried. `below` is the repository's folder
/// in the target, should that hold other things.
pub fn examine(target: &Target, access: &Access, below: Option<&str>, told: &mut dyn FnMut(Step, Result<Finding>)) {
    let mut step = Step::Reach;
    if let Err(error) = walk(target, access, below, &mut step, told) {
        told(step, Err(error));
    }
}

fn walk(
    target: &Target,
    access: &Access,
    below: Option<&str>,
    step: &mut Step,
    told: &mut dyn FnMut(Step, Result<Finding>),
) -> Result<()> {
    use crate::storage::sftp::Error as Server;
    let unreached = unreached(target);
    let route = Route::find(target, access).map_err(&unreached)?;
    let begun = Instant::now();
    let connection = connect(&route, access).map_err(|error| {
        if !matches!(error, Server::Resolve { .. } | Server::Unreachable { .. } | Server::SshConfig { .. }) {
            *step = Step::HostKey;
        }
        unreached(error)
    });
    let took = begun.elapsed();
    if let Err(error) = connection {
        if *step == Step::HostKey {
            told(Step::Reach, Ok(Finding::Reached { address: None, took }));
        }
        return Err(error);
    }
    let connection = connection?;
    told(Step::Reach, Ok(Finding::Reached { address: connection.address(), took }));
    let (algorithm, fingerprint) = connection.host_key().unwrap_or_default();
    told(Step::HostKey, Ok(Finding::HostKey { algorithm, fingerprint }));

    *step = Step::Login;
    let by = authenticate(&connection, &route, access, None).map_err(&unreached)?;
    let files = Files::start(connection, &route).map_err(&unreached)?;
    told(Step::Login, Ok(Finding::LoggedIn { account: route.account(), by }));

    *step = Step::Path;
    let mut target = target.clone();
    let mut beside = None;
    if let Some(below) = below
        && is_taken(&files, &target.path).map_err(failed(&target, "list", &target.path))?
    {
        beside = Some(target.path.clone());
        target.path = format!("{}/{below}", target.path);
    }
    let target = &target;
    let (folder, place) = find_place(&files, target)?;
    let probe = format!("{folder}/kvmb-tmp-{:016x}", rand::random::<u64>());
    let now = SystemTime::now();
    files.write_new(&probe, b"kvmb remote test").map_err(failed(target, "write to", &folder))?;
    let written = files.stat(&probe).map_err(failed(target, "read", &probe))?.modified;
    let removable = match files.remove(&probe) {
        Ok(()) => true,
        Err(Fault::Refused(Refusal::Permission)) => false,
        Err(fault) => return Err(failed(target, "remove", &probe)(fault)),
    };
    let path = files.real_path(&folder).unwrap_or(folder.clone());
    told(Step::Path, Ok(Finding::Path { path, place, removable, beside }));

    *step = Step::Space;
    let free_bytes = files.free_bytes(&folder).map_err(failed(target, "examine", &folder))?;
    told(Step::Space, Ok(Finding::Space { free_bytes }));

    *step = Step::Speed;
    if removable {
        told(Step::Speed, measure(&files, &folder).map_err(failed(target, "measure in", &folder)));
    }

    let ours = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    if let Some(theirs) = written {
        told(Step::Clock, Ok(Finding::Clock { ahead_seconds: theirs.cast_signed() - ours.cast_signed() }));
    }
    Ok(())
}

/// The folder to write to: the repository's, or the nearest one above that is there.
fn find_place(files: &Files, target: &Target) -> Result<(String, Place)> {
    let root = target.path.as_str();
    match files.stat(root) {
        Ok(_) if files.stat(&format!("{root}/config")).is_ok() => return Ok((root.to_owned(), Place::Repository)),
        Ok(_) => return Ok((root.to_owned(), Place::Folder)),
        Err(Fault::Refused(Refusal::NotFound)) => {}
        Err(fault) => return Err(failed(target, "examine", root)(fault)),
    }
    let mut above = root;
    while let Some((parent, _)) = above.rsplit_once('/') {
        if parent.is_empty() {
            return Ok(("/".to_owned(), Place::Missing));
        }
        if files.stat(parent).is_ok() {
            return Ok((parent.to_owned(), Place::Missing));
        }
        above = parent;
    }
    Ok((".".to_owned(), Place::Missing))
}

fn measure(files: &Files, folder: &str) -> std::result::Result<Finding, Fault> {
    let mut piece = vec![0u8; PIECE_BYTES];
    // Nothing on the way shall be able to compress it.
    piece.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&rand::random::<[u8; 8]>()[..chunk.len()]));
    let name = |number: usize| format!("{folder}/kvmb-tmp-speed-{}-{number}", std::process::id());
    let mut pieces = 0;
    let mut transfer = || -> std::result::Result<Finding, Fault> {
        let begun = Instant::now();
        while pieces < MOST_PIECES && (pieces == 0 || begun.elapsed() < LONGEST) {
            pieces += 1;
            files.write_new(&name(pieces), &piece)?;
        }
        let upload = rate(pieces, begun.elapsed());
        let begun = Instant::now();
        let mut read = 0;
        while read < pieces && (read == 0 || begun.elapsed() < LONGEST) {
            read += 1;
            files.read(&name(read))?;
        }
        Ok(Finding::Speed { upload, download: rate(read, begun.elapsed()) })
    };
    let measured = transfer();
    for number in 1..=pieces {
        // Half a piece too; what is not there needs no removing.
        let _ = files.remove(&name(number));
    }
    measured
}

fn rate(pieces: usize, took: Duration) -> u64 {
    ((pieces * PIECE_BYTES) as f64 / took.as_secs_f64().max(0.001)) as u64
}
