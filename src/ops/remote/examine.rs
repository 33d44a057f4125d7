//! A look at the server, step by step, in the order in which a backup would need it.

use super::{failed, speed, unreached};
use crate::ops::{Error, Result};
use crate::storage::sftp::authenticate::{Login, authenticate};
use crate::storage::sftp::connect::connect;
use crate::storage::sftp::fault::{Fault, Refusal};
use crate::storage::sftp::files::Files;
use crate::storage::sftp::remember::Remember;
use crate::storage::sftp::route::Route;
use crate::storage::sftp::storage::is_taken;
use crate::storage::sftp::{Access, Target};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
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
    /// The rates, in bytes a second.
    Speed {
        /// Of so many connections together.
        connections: usize,
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

/// What is looked at, and how closely.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The repository's address.
    pub target: &'a Target,
    /// The repository's folder in the target, should that hold other things.
    pub below: Option<&'a str>,
    /// How many bytes are sent to measure the speed, on all connections; none takes a short look at one connection.
    pub speed_bytes: Option<u64>,
}

/// Takes the steps; `told` hears of each. After one that failed the others are not tried. Once `access.stop` is raised it ends as
/// interrupted, and nothing is told of the step that it was at.
pub fn examine(subject: Subject, access: &Access, told: &mut dyn FnMut(Step, Result<Finding>)) -> Result<()> {
    let mut step = Step::Reach;
    // The speed may need further connections, for which nobody shall be asked again.
    let credentials = Arc::new(Remember::new(Arc::clone(&access.credentials)));
    let access = Access { credentials, ..access.clone() };
    match walk(subject, &access, &mut step, told) {
        // Whatever failed, failed because of it.
        Err(_) if access.stop.load(Ordering::Relaxed) => return Err(Error::Interrupted),
        Err(error) => told(step, Err(error)),
        Ok(()) => {}
    }
    Ok(())
}

fn walk(
    Subject { target, below, speed_bytes }: Subject,
    access: &Access,
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
        let measured = match speed_bytes {
            None => speed::at_a_glance(&files, &folder, &access.stop),
            Some(size_bytes) => speed::at_length(&route, access, &folder, size_bytes),
        };
        if access.stop.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        told(Step::Speed, measured.map_err(failed(target, "measure in", &folder)));
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
