//! Tests a server step by step, in the order in which a backup needs the steps.

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

/// A step of the test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExamineStep {
    /// Whether the server is reachable.
    Reach,
    /// Whether its host key is known.
    HostKey,
    /// Whether it accepts the login.
    Login,
    /// Whether the folder can be written to.
    Path,
    /// How much space is free.
    Space,
    /// How fast the connection is.
    Speed,
    /// Whether the server's clock is right.
    Clock,
}

impl ExamineStep {
    /// All steps, in order.
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
        /// The time until the encrypted connection was established.
        took: Duration,
    },
    /// The host key is known.
    HostKey {
        algorithm: String,
        /// The SHA-256 of the key.
        fingerprint: String,
    },
    /// The login succeeded.
    LoggedIn {
        /// `user@host`.
        account: String,
        by: Login,
    },
    Path {
        /// The absolute path on the server.
        path: String,
        /// What the folder contains.
        place: FolderKind,
        /// Whether the test file could be removed again.
        removable: bool,
        /// The requested folder, if it holds other files and the repository is in a subfolder.
        beside: Option<String>,
    },
    /// The free space; `None` if the server does not report it.
    Space {
        free_bytes: Option<u64>,
    },
    Speed(Speed),
    /// How many seconds the server's clock is ahead of ours; negative if it is behind.
    Clock {
        ahead_seconds: i64,
    },
}

/// The kind of the repository's folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FolderKind {
    /// It is a repository.
    Repository,
    /// It exists and is not a repository.
    Folder,
    /// It does not exist and can be created.
    Missing,
}

/// What to test, and how thoroughly.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ExamineTarget<'a> {
    pub(crate) target: &'a SftpAddress,
    /// The subfolder of the target for the repository, in case the target holds other files.
    pub(crate) below: Option<&'a str>,
    /// The number of bytes to send over all connections to measure the speed. `None` runs a short test on one
    /// connection.
    pub(crate) speed_bytes: Option<u64>,
}

/// Runs the steps and calls `report` for each. After a failed step, the others are skipped. Once `ssh_context.stop` is
/// raised, this returns [`Error::Interrupted`] and does not report the current step.
pub(crate) fn examine(
    subject: ExamineTarget,
    ssh_context: &SshContext,
    report: &mut dyn FnMut(ExamineStep, Result<ExamineFinding>),
) -> Result<()> {
    let mut step = ExamineStep::Reach;
    // The speed test may open more connections. The user must not be prompted again for them.
    let credentials = Arc::new(CredentialCache::new(Arc::clone(&ssh_context.credentials)));
    let ssh_context = SshContext { credentials, ..ssh_context.clone() };
    match walk(subject, &ssh_context, &mut step, report) {
        // After an interrupt, any failure is a consequence of it.
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
        let is_at_proxy = ssh_target.proxy.is_some() && matches!(error, Server::Lost { .. } | Server::Silent { .. });
        let is_not_reached = matches!(
            error,
            Server::Resolve { .. } | Server::Unreachable { .. } | Server::SshConfig { .. } | Server::Proxy { .. }
        );
        if !is_not_reached && !is_at_proxy {
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

/// Returns the folder to write to: the repository's, or its nearest existing parent.
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
