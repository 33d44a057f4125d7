//! Setting up passwordless access to a server, so that cron can use it.
//!
//! | step | changed if |
//! | --- | --- |
//! | the host key | it was unknown and was accepted |
//! | this host's own key | there was none |
//! | the account's authorized keys | the key was not accepted yet |
//!
//! Each step checks first, so a second run changes nothing. At the end, the key alone must give access to SFTP: a
//! server that keeps its authorized keys elsewhere is detected now, and not by cron.

use super::failures::{failed, unreachable_host};
use crate::ops::{Error, Result};
use crate::storage::FileAction;
use crate::storage::sftp::connect::connect;
use crate::storage::sftp::connection::Connection;
use crate::storage::sftp::files::SftpClient;
use crate::storage::sftp::ssh_target::SshTarget;
use crate::storage::sftp::{self, Credentials, Secret, SftpAddress, ShownKey, SshContext, own_key};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// What a step of the setup found or did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SetupChange {
    HostKey {
        server: String,
        algorithm: String,
        /// The SHA-256 of the key.
        fingerprint: String,
        /// The file to which the key was added; `None` if it was known already.
        noted_in: Option<PathBuf>,
    },
    /// This host's own key.
    OwnKey {
        path: PathBuf,
        /// The line for the account's authorized keys. Unknown in a dry run that would create the key.
        line: Option<String>,
        /// Whether the key was created.
        made: bool,
    },
    /// The account's authorized keys.
    Authorized {
        /// `user@host`.
        account: String,
        added: bool,
    },
}

/// Sets up the access and calls `report` after each step. A dry run checks the server's key and whether this host's key
/// is accepted, and changes nothing. `comment` identifies the key among the account's authorized keys.
pub(crate) fn setup(
    target: &SftpAddress,
    ssh_context: &SshContext,
    comment: &str,
    dry_run: bool,
    report: &mut dyn FnMut(SetupChange),
) -> Result<()> {
    let unreachable_host = unreachable_host(target);
    let own = ssh_context
        .own_key
        .clone()
        .ok_or_else(|| unreachable_host(sftp::Error::Secret("there is no place for a key".into())))?;
    let watched = Arc::new(Watched { inner: Arc::clone(&ssh_context.credentials), dry_run, shown: Mutex::default() });
    let ssh_context = SshContext { credentials: Arc::clone(&watched) as Arc<dyn Credentials>, ..ssh_context.clone() };
    let ssh_target = SshTarget::find(target, &ssh_context).map_err(&unreachable_host)?;

    let connection = match connect(&ssh_target, &ssh_context) {
        Ok(connection) => Some(connection),
        Err(sftp::Error::HostKeyUnknown { .. }) if dry_run && watched.shown().is_some() => None,
        Err(error) => return Err(unreachable_host(error)),
    };
    report(host_key(&ssh_target, connection.as_ref(), watched.shown()));

    let before = own_key::read(&own).map_err(Error::io("read", &own))?;
    let (key, made) = match before {
        None if dry_run => (None, true),
        None => {
            own_key::ensure(&own, comment).map(|(key, made)| (Some(key), made)).map_err(Error::io("create", &own))?
        }
        before => (before, false),
    };
    let is_openssh = connection.as_ref().is_none_or(Connection::is_openssh);
    let line = key.as_ref().map(|key| own_key::authorized_line(key, is_openssh));
    report(SetupChange::OwnKey { path: own.clone(), line: line.clone(), made });

    let authorized = |added: bool| SetupChange::Authorized { account: ssh_target.account(), added };
    let by_key = ssh_target.only_with(&own);
    // This uses a separate connection, because servers count the login attempts of each connection.
    let is_let_in = || match SftpClient::open(&by_key, &ssh_context, None) {
        Ok(_) => Ok(None),
        Err(error @ (sftp::Error::Login { .. } | sftp::Error::NoSftp { .. })) => Ok(Some(error)),
        Err(error) => Err(unreachable_host(error)),
    };
    let Some(key) = key.filter(|_| connection.is_some()) else {
        report(authorized(true));
        return Ok(());
    };
    if !made && is_let_in()?.is_none() {
        report(authorized(false));
        return Ok(());
    }
    if dry_run {
        report(authorized(true));
        return Ok(());
    }
    let others = SshContext { own_key: None, ..ssh_context.clone() };
    let ssh_target = SshTarget::find(target, &others).map_err(&unreachable_host)?;
    let (files, _) = SftpClient::open(&ssh_target, &others, None).map_err(&unreachable_host)?;
    let added =
        own_key::authorize(&files, &key).map_err(failed(target, FileAction::AddKey, own_key::AUTHORIZED_KEYS))?;
    drop(files);
    match is_let_in()? {
        None => report(authorized(added)),
        Some(_) => {
            return Err(Error::KeyNotTaken { account: ssh_target.account(), line: line.unwrap_or_default() });
        }
    }
    Ok(())
}

fn host_key(ssh_target: &SshTarget, connection: Option<&Connection>, noted: Option<ShownKey>) -> SetupChange {
    match (noted, connection.and_then(Connection::host_key)) {
        (Some(key), _) => SetupChange::HostKey {
            server: key.server,
            algorithm: key.algorithm,
            fingerprint: key.fingerprint,
            noted_in: Some(key.known_hosts),
        },
        (None, key) => {
            let (algorithm, fingerprint) = key.unwrap_or_default();
            SetupChange::HostKey { server: ssh_target.server(), algorithm, fingerprint, noted_in: None }
        }
    }
}

/// Records which key was shown and accepted. In a dry run no key is accepted, but the question is still asked.
#[derive(Debug)]
struct Watched {
    inner: Arc<dyn Credentials>,
    dry_run: bool,
    shown: Mutex<Option<ShownKey>>,
}

impl Watched {
    fn shown(&self) -> Option<ShownKey> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Credentials for Watched {
    fn password(&self, account: &str) -> std::result::Result<Option<Secret>, String> {
        self.inner.password(account)
    }

    fn passphrase(&self, key_file: &Path) -> std::result::Result<Option<Secret>, String> {
        self.inner.passphrase(key_file)
    }

    fn answer(&self, account: &str, question: &str, hidden: bool) -> std::result::Result<Option<Secret>, String> {
        self.inner.answer(account, question, hidden)
    }

    fn was_wrong(&self) -> bool {
        self.inner.was_wrong()
    }

    fn accepts(&self, key: &ShownKey) -> std::result::Result<bool, String> {
        let accepted = self.inner.accepts(key)?;
        if accepted {
            *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Some(key.clone());
        }
        Ok(accepted && !self.dry_run)
    }
}
