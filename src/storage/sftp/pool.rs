//! Several connections to one server, made when they are needed.
//!
//! | a caller finds | and does |
//! | --- | --- |
//! | an idle connection | takes it; if it was idle for long, sees first whether it still lives |
//! | none, and there is no other | makes the first one, which may ask for a password |
//! | all in use, and fewer than allowed | has one more made beside, and takes whichever is free first: to make one takes a dozen round trips, to read a short file two |
//! | all that are allowed in use | waits for one |
//!
//! A connection that broke is dropped: the call fails with an error that says so ([`Error::is_transient`]), and the
//! next one connects again. A server that admits fewer connections than we would like gets fewer for a while.

use super::credential_cache::CredentialCache;
use super::{Credentials, Error, Login, Result, SftpClient, SftpFault, SshContext, SshTarget};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// After so long it must show that it lives.
const TRUSTED_IDLE: Duration = Duration::from_secs(20);

/// After so long it is tried again whether more connections are admitted: it may have been the network.
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
    /// What let us in the last time. Held while somebody finds that out, so that nobody is asked for a password twice.
    login: Mutex<Option<Login>>,
}

#[derive(Debug)]
struct PoolState {
    idle: Vec<(SftpClient, Instant)>,
    /// Idle, in use, or being made.
    open: usize,
    /// Whether the server has let us in, so that more connections can be made without asking anybody.
    is_known: bool,
    /// Fewer connections than we would like, until then.
    limit: Option<(usize, Instant)>,
    /// The program shall end and the server was not there: nobody needs to find that out again.
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

    /// Does something on a connection.
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

    /// Opens connections in the background, up to this number or the allowed maximum. Does nothing before the first one
    /// is made, for that is who may have to be asked something.
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

    /// Has a connection made beside.
    fn add(&self, state: &mut PoolState) {
        state.open += 1;
        let shared = Arc::clone(&self.0);
        let started = thread::Builder::new().spawn(move || match shared.connect() {
            Ok(files) => shared.give_back(files),
            // Who is left without any makes one himself, and hears why there is none.
            Err(error) => shared.not_connected(&error),
        });
        if started.is_err() {
            state.open -= 1;
        }
    }
}

impl PoolShared {
    /// Whether one connection more can be made beside.
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
            // Somebody may have to make the first one again.
            self.changed.notify_all();
        } else {
            state.idle.push((files, Instant::now()));
            self.changed.notify_one();
        }
    }
}
