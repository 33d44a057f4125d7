//! Tests of a server, step by step, in the order in which a backup needs them.

use super::failures::{failed, unreachable_host};
use super::speed::{self, Speed};
use crate::ops::{Error, Result};
use crate::storage::FileAction;
use crate::storage::sftp::authenticate::{Login, authenticate};
use crate::storage::sftp::connect::connect;
use crate::storage::sftp::credential_cache::CredentialCache;
use crate::storage::sftp::fault::{SftpFault, SftpStatus};
use crate::storage::sftp::files::SftpClient;
use crate::storage::sftp::ssh_target::SshTarget;
use crate::storage::sftp::storage::is_taken;
use crate::storage::sftp::{SftpAddress, SshContext};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// One thing that is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExamineStep {
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

impl ExamineStep {
    /// All of them, in order.
    pub(crate) const ALL: [ExamineStep; 7] = [
        ExamineStep::Reach,
        ExamineStep::HostKey,
        ExamineStep::Login,
        ExamineStep::Path,
        ExamineStep::Space,
        ExamineStep::Speed,
        ExamineStep::Clock,
    ];
}

#[derive(Debug, Clone)]
pub(crate) enum ExamineFinding {
    Reached {
        address: Option<SocketAddr>,
        /// How long it took until the encrypted connection was there.
        took: Duration,
    },
    /// Its key is known.
    HostKey {
        algorithm: String,
        /// Its SHA-256.
        fingerprint: String,
    },
    /// It let us in.
    LoggedIn {
        /// `user@host`.
        account: String,
        by: Login,
    },
    Path {
        /// Its absolute path there.
        path: String,
        /// What is in it.
        place: FolderKind,
        /// Whether what was written could be removed again.
        removable: bool,
        /// The folder that was asked for, where it holds other things and the repository is below it.
        beside: Option<String>,
    },
    /// The room; none if the server cannot tell.
    Space {
        free_bytes: Option<u64>,
    },
    Speed(Speed),
    /// By how much the server's clock is ahead of ours; negative where it is behind.
    Clock {
        ahead_seconds: i64,
    },
}

/// What the repository's folder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FolderKind {
    /// It holds a repository.
    Repository,
    /// It is there and holds none.
    Folder,
    /// It is not there, and can be made.
    Missing,
}

/// What is looked at, and how closely.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ExamineTarget<'a> {
    pub(crate) target: &'a SftpAddress,
    /// The repository's folder in the target, should that hold other things.
    pub(crate) below: Option<&'a str>,
    /// How many bytes are sent to measure the speed, on all connections; none takes a short look at one connection.
    pub(crate) speed_bytes: Option<u64>,
}

/// Takes the steps; `report` is called for each. After one that failed the others are not tried. Once
/// `ssh_context.stop` is raised it ends as interrupted, and nothing is reported of the step that it was at.
pub(crate) fn examine(
    subject: ExamineTarget,
    ssh_context: &SshContext,
    report: &mut dyn FnMut(ExamineStep, Result<ExamineFinding>),
) -> Result<()> {
    let mut step = ExamineStep::Reach;
    // The speed may need further connections, for which nobody shall be asked again.
    let credentials = Arc::new(CredentialCache::new(Arc::clone(&ssh_context.credentials)));
    let ssh_context = SshContext { credentials, ..ssh_context.clone() };
    match walk(subject, &ssh_context, &mut step, report) {
        // Whatever failed, failed because of it.
        Err(_) if ssh_context.stop.load(Ordering::Relaxed) => return Err(Error::Interrupted),
        Err(error) => report(step, Err(error)),
        Ok(()) => {}
    }
    Ok(())
}

fn walk(
    ExamineTarget { target, below, speed_bytes }: ExamineTarget,
    ssh_context: &SshContext,
    step: &mut ExamineStep,
    report: &mut dyn FnMut(ExamineStep, Result<ExamineFinding>),
) -> Result<()> {
    use crate::storage::sftp::Error as Server;
    let unreachable_host = unreachable_host(target);
    let ssh_target = SshTarget::find(target, ssh_context).map_err(&unreachable_host)?;
    let begun = Instant::now();
    let connection = connect(&ssh_target, ssh_context).map_err(|error| {
        if !matches!(error, Server::Resolve { .. } | Server::Unreachable { .. } | Server::SshConfig { .. }) {
            *step = ExamineStep::HostKey;
        }
        unreachable_host(error)
    });
    let took = begun.elapsed();
    if let Err(error) = connection {
        if *step == ExamineStep::HostKey {
            report(ExamineStep::Reach, Ok(ExamineFinding::Reached { address: None, took }));
        }
        return Err(error);
    }
    let connection = connection?;
    report(ExamineStep::Reach, Ok(ExamineFinding::Reached { address: connection.address(), took }));
    let (algorithm, fingerprint) = connection.host_key().unwrap_or_default();
    report(ExamineStep::HostKey, Ok(ExamineFinding::HostKey { algorithm, fingerprint }));

    *step = ExamineStep::Login;
    let by = authenticate(&connection, &ssh_target, ssh_context, None).map_err(&unreachable_host)?;
    let files = SftpClient::start(connection, &ssh_target).map_err(&unreachable_host)?;
    report(ExamineStep::Login, Ok(ExamineFinding::LoggedIn { account: ssh_target.account(), by }));

    *step = ExamineStep::Path;
    let mut target = target.clone();
    let mut beside = None;
    if let Some(below) = below
        && is_taken(&files, &target.path).map_err(failed(&target, FileAction::List, &target.path))?
    {
        beside = Some(target.path.clone());
        target.path = format!("{}/{below}", target.path);
    }
    let target = &target;
    let (folder, place) = find_place(&files, target)?;
    let probe = format!("{folder}/kvmb-tmp-{:016x}", rand::random::<u64>());
    let now = SystemTime::now();
    files.write_new(&probe, b"kvmb remote test").map_err(failed(target, FileAction::Write, &folder))?;
    let written = files.stat(&probe).map_err(failed(target, FileAction::Read, &probe))?.modified;
    let removable = match files.remove(&probe) {
        Ok(()) => true,
        Err(SftpFault::Refused(SftpStatus::Permission)) => false,
        Err(fault) => return Err(failed(target, FileAction::Remove, &probe)(fault)),
    };
    let path = files.real_path(&folder).unwrap_or(folder.clone());
    report(ExamineStep::Path, Ok(ExamineFinding::Path { path, place, removable, beside }));

    *step = ExamineStep::Space;
    let free_bytes = files.free_bytes(&folder).map_err(failed(target, FileAction::Examine, &folder))?;
    report(ExamineStep::Space, Ok(ExamineFinding::Space { free_bytes }));

    *step = ExamineStep::Speed;
    if removable {
        let measured = match speed_bytes {
            None => speed::at_a_glance(&files, &folder, &ssh_context.stop),
            Some(size_bytes) => speed::at_length(&ssh_target, ssh_context, &folder, size_bytes),
        };
        if ssh_context.stop.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        report(
            ExamineStep::Speed,
            measured.map(ExamineFinding::Speed).map_err(failed(target, FileAction::Measure, &folder)),
        );
    }

    let ours = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    if let Some(theirs) = written {
        report(
            ExamineStep::Clock,
            Ok(ExamineFinding::Clock { ahead_seconds: theirs.cast_signed() - ours.cast_signed() }),
        );
    }
    Ok(())
}

/// The folder to write to: the repository's, or the nearest one above that is there.
fn find_place(files: &SftpClient, target: &SftpAddress) -> Result<(String, FolderKind)> {
    let root = target.path.as_str();
    match files.stat(root) {
        Ok(_) if files.stat(&format!("{root}/config")).is_ok() => return Ok((root.to_owned(), FolderKind::Repository)),
        Ok(_) => return Ok((root.to_owned(), FolderKind::Folder)),
        Err(SftpFault::Refused(SftpStatus::NotFound)) => {}
        Err(fault) => return Err(failed(target, FileAction::Examine, root)(fault)),
    }
    let mut above = root;
    while let Some((parent, _)) = above.rsplit_once('/') {
        if parent.is_empty() {
            return Ok(("/".to_owned(), FolderKind::Missing));
        }
        if files.stat(parent).is_ok() {
            return Ok((parent.to_owned(), FolderKind::Missing));
        }
        above = parent;
    }
    Ok((".".to_owned(), FolderKind::Missing))
}
