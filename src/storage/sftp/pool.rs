//! A pool of connections to one server, opened on demand.
//!
//! | state of the pool | a caller |
//! | --- | --- |
//! | an idle connection | takes it; after a long idle time it checks first that the connection still works |
//! | no connection | opens the first one, which may ask for a password |
//! | all in use, and fewer than allowed | has another one opened in the background, and takes whichever is free first: opening one takes a dozen round trips, reading a short file two |
//! | all in use, and no more allowed | waits for one |
//!
//! A broken connection is dropped: the call fails with a transient error ([`Error::is_transient`]), and the next call
//! connects again. If a server admits fewer connections than are allowed, the pool uses fewer for a while.

use super::credential_cache::CredentialCache;
use super::{Credentials, Error, Login, Result, SftpClient, SftpFault, SshContext, SshTarget};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The idle time after which a connection is checked before it is used.
const TRUSTED_IDLE: Duration = Duration::from_secs(20);

/// The time after which the full number of connections is tried again: the failure may have been due to the network.
const MODEST: Duration = Duration::from_secs(60);

/// The connections to one server. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Pool(Arc<PoolShared>);

#[derive(Debug)]
struct PoolShared {
    ssh_target: SshTarget,
    ssh_context: SshContext,
    remember: Arc<CredentialCache>,
    state: Mutex<PoolState>,
    changed: Condvar,
    /// The login that succeeded last. Locked while a login is in progress, so that nobody is asked for a password
    /// twice.
    login: Mutex<Option<Login>>,
}

#[derive(Debug)]
struct PoolState {
    idle: Vec<(SftpClient, Instant)>,
    /// Idle, in use, or being opened.
    open: usize,
    /// Whether a login has succeeded, so that more connections can be opened without asking the user.
    is_known: bool,
    /// A lower limit on the number of connections, and when it expires.
    limit: Option<(usize, Instant)>,
    /// The program is ending and the server was unreachable, so no further attempt is made.
    given_up: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    pub(crate) fn new(ssh_target: SshTarget, mut ssh_context: SshContext) -> Pool {
        let remember = Arc::new(CredentialCache::new(ssh_context.credentials));
        ssh_context.credentials = Arc::clone(&remember) as Arc<dyn Credentials>;
        let state = PoolState { idle: Vec::new(), open: 0, is_known: false, limit: None, given_up: false };
        let (state, changed, login) = (Mutex::new(state), Condvar::new(), Mutex::new(None));
        Pool(Arc::new(PoolShared { ssh_target, ssh_context, remember, state, changed, login }))
    }

    /// Runs `work` on a connection.
    pub(crate) fn with<T>(
        &self,
        work: impl FnOnce(&SftpClient) -> std::result::Result<T, SftpFault>,
    ) -> std::result::Result<T, SftpFault> {
        let files = self.take()?;
        files.restart_progress();
        let result = work(&files);
        self.0.give_back(files);
        result
    }

    /// Opens connections in the background, up to this number or the allowed maximum. Does nothing before the first
    /// connection is made, because that one may have to ask the user something.
    pub(crate) fn warm_up(&self, connections: usize) {
        let mut state = lock(&self.0.state);
        while state.open < connections && self.0.may_add(&state) {
            self.add(&mut state);
        }
    }

    fn take(&self) -> Result<SftpClient> {
        let shared = &*self.0;
        let mut has_added = false;
        let mut state = lock(&shared.state);
        loop {
            if state.given_up {
                return Err(Error::Lost {
                    server: shared.ssh_target.server(),
                    reason: "it was closed at the end".to_owned(),
                });
            }
            if let Some((files, since)) = state.idle.pop() {
                drop(state);
                files.restart_progress();
                if since.elapsed() < TRUSTED_IDLE || files.stat(".").is_ok() {
                    return Ok(files);
                }
                tracing::debug!("{}: an idle connection is gone", shared.ssh_target.server());
                shared.give_back(files);
                state = lock(&shared.state);
                continue;
            }
            if state.open == 0 {
                state.open = 1;
                drop(state);
                return shared.connect().inspect_err(|error| shared.not_connected(error));
            }
            if !has_added && shared.may_add(&state) {
                has_added = true;
                self.add(&mut state);
            }
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Opens a connection in the background.
    fn add(&self, state: &mut PoolState) {
        state.open += 1;
        let shared = Arc::clone(&self.0);
        let started = thread::Builder::new().spawn(move || match shared.connect() {
            Ok(files) => shared.give_back(files),
            // A caller that finds no connection makes one itself and gets the error.
            Err(error) => shared.not_connected(&error),
        });
        if started.is_err() {
            state.open -= 1;
        }
    }
}

impl PoolShared {
    /// Returns whether another connection may be opened in the background.
    fn may_add(&self, state: &PoolState) -> bool {
        let limit = match state.limit {
            Some((limit, until)) if Instant::now() < until => limit,
            _ => self.ssh_context.connections,
        };
        state.is_known && state.open > 0 && state.open < limit && !state.given_up
    }

    fn connect(&self) -> Result<SftpClient> {
        let files = self.log_in()?;
        lock(&self.state).is_known = true;
        self.changed.notify_all();
        Ok(files)
    }

    fn log_in(&self) -> Result<SftpClient> {
        let mut login = lock(&self.login);
        if let Some(key @ (Login::Agent(_) | Login::Key(..))) = &*login {
            let key = key.clone();
            drop(login);
            return self.open(Some(&key)).map(|(files, _)| files);
        }
        let (files, worked) = self.open(login.as_ref())?;
        *login = Some(worked);
        Ok(files)
    }

    fn open(&self, known: Option<&Login>) -> Result<(SftpClient, Login)> {
        let begun = Instant::now();
        let opened = SftpClient::open(&self.ssh_target, &self.ssh_context, known).inspect_err(|error| {
            if matches!(error, Error::Login { .. }) {
                self.remember.forget();
            }
        });
        let opened = opened.map_err(|error| match error {
            // It offered SFTP before: it is shutting down, or cannot start the process at the moment.
            Error::NoSftp { server, reason, .. } if lock(&self.state).is_known => Error::Lost { server, reason },
            error => error,
        })?;
        tracing::debug!("{}: connected in {} ms", self.ssh_target.server(), begun.elapsed().as_millis());
        Ok(opened)
    }

    fn not_connected(&self, error: &Error) {
        let mut state = lock(&self.state);
        state.open -= 1;
        state.given_up |= self.ssh_context.stop.load(Ordering::Relaxed);
        if state.open > 0 {
            tracing::debug!("{}: no more than {} connections: {error}", self.ssh_target.server(), state.open);
            state.limit = Some((state.open, Instant::now() + MODEST));
        }
        self.changed.notify_all();
    }

    fn give_back(&self, files: SftpClient) {
        let mut state = lock(&self.state);
        if files.is_broken() {
            state.open -= 1;
            state.given_up |= self.ssh_context.stop.load(Ordering::Relaxed);
            // A waiting caller may have to make the first connection again.
            self.changed.notify_all();
        } else {
            state.idle.push((files, Instant::now()));
            self.changed.notify_one();
        }
    }
}
