//! Several connections to one server, made when they are needed.
//!
//! | a caller finds | and does |
//! | --- | --- |
//! | an idle connection | takes it; if it was idle for long, sees first whether it still lives |
//! | none, and fewer than allowed | makes one; one caller at a time unless a key is known to let us in, so that nobody is asked for a password twice |
//! | none, and all that are allowed are in use | waits for one |
//!
//! A connection that broke is dropped: the call fails with an error that says so ([`Error::is_transient`]), and the next
//! one connects anew. A server that admits fewer connections than we would like gets fewer for a while.

use super::remember::Remember;
use super::{Access, Credentials, Error, Fault, Files, Login, Result, Route};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// After so long it must show that it lives.
const TRUSTED_IDLE: Duration = Duration::from_secs(20);

/// After so long it is tried again whether more connections are admitted: it may have been the network.
const MODEST: Duration = Duration::from_secs(60);

/// The connections to one server.
#[derive(Debug)]
pub struct Pool {
    route: Route,
    access: Access,
    remember: Arc<Remember>,
    state: Mutex<State>,
    changed: Condvar,
    /// Held by whoever makes a connection; holds what let us in the last time.
    login: Mutex<Option<Login>>,
}

#[derive(Debug)]
struct State {
    idle: Vec<(Files, Instant)>,
    /// Idle, in use, or being made.
    open: usize,
    /// Fewer connections than we would like, until then.
    limit: Option<(usize, Instant)>,
    /// The program shall end and the server was not there: nobody needs to find that out again.
    given_up: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// Connects nowhere yet.
    pub fn new(route: Route, mut access: Access) -> Pool {
        let remember = Arc::new(Remember::new(access.credentials));
        access.credentials = Arc::clone(&remember) as Arc<dyn Credentials>;
        let state = State { idle: Vec::new(), open: 0, limit: None, given_up: false };
        Pool { route, access, state: Mutex::new(state), changed: Condvar::new(), remember, login: Mutex::new(None) }
    }

    /// Does something on a connection.
    pub fn with<T>(&self, work: impl FnOnce(&Files) -> std::result::Result<T, Fault>) -> std::result::Result<T, Fault> {
        let files = self.take()?;
        let result = work(&files);
        self.give_back(files);
        result
    }

    /// Sees to it that there are so many connections, or as many as are allowed, while the caller does something else. Does
    /// nothing before the first one is made, for that is who may have to be asked something.
    pub fn warm_up(self: &Arc<Pool>, connections: usize) {
        let mut state = lock(&self.state);
        if state.open == 0 || state.limit.is_some() || state.given_up {
            return;
        }
        while state.open < connections.min(self.access.connections) {
            state.open += 1;
            let pool = Arc::clone(self);
            thread::spawn(move || match pool.connect() {
                Ok(files) => pool.give_back(files),
                Err(error) => {
                    // Whoever needs it hears why there is none.
                    tracing::debug!("{}: {error}", pool.route.server());
                    lock(&pool.state).open -= 1;
                    pool.changed.notify_all();
                }
            });
        }
    }

    fn take(&self) -> Result<Files> {
        loop {
            let mut state = lock(&self.state);
            if state.given_up {
                return Err(Error::Lost {
                    server: self.route.server(),
                    reason: "it was given up at the end".to_owned(),
                });
            }
            if let Some((files, since)) = state.idle.pop() {
                drop(state);
                if since.elapsed() < TRUSTED_IDLE || files.stat(".").is_ok() {
                    return Ok(files);
                }
                tracing::debug!("{}: an idle connection is gone", self.route.server());
                self.give_back(files);
                continue;
            }
            let limit = match state.limit {
                Some((limit, until)) if Instant::now() < until => limit,
                _ => self.access.connections.max(1),
            };
            if state.open >= limit {
                drop(self.changed.wait(state).unwrap_or_else(PoisonError::into_inner));
                continue;
            }
            state.open += 1;
            drop(state);
            match self.connect() {
                Ok(files) => return Ok(files),
                Err(error) => {
                    let mut state = lock(&self.state);
                    state.open -= 1;
                    self.changed.notify_all();
                    state.given_up |= self.access.stop.load(Ordering::Relaxed);
                    let enough = matches!(
                        error,
                        Error::NoSftp { .. } | Error::Login { .. } | Error::Handshake { .. } | Error::Lost { .. }
                    );
                    if state.open == 0 || !enough || state.given_up {
                        return Err(error);
                    }
                    tracing::debug!("{}: no more than {} connections: {error}", self.route.server(), state.open);
                    state.limit = Some((state.open, Instant::now() + MODEST));
                }
            }
        }
    }

    fn connect(&self) -> Result<Files> {
        let mut login = lock(&self.login);
        if let Some(key @ (Login::Agent(_) | Login::Key(..))) = &*login {
            let key = key.clone();
            drop(login);
            return self.log_in(Some(&key)).map(|(files, _)| files);
        }
        let (files, worked) = self.log_in(login.as_ref())?;
        *login = Some(worked);
        Ok(files)
    }

    fn log_in(&self, known: Option<&Login>) -> Result<(Files, Login)> {
        let begun = Instant::now();
        let opened = Files::open(&self.route, &self.access, known).inspect_err(|error| {
            if matches!(error, Error::Login { .. }) {
                self.remember.forget();
            }
        })?;
        tracing::debug!("{}: connected in {} ms", self.route.server(), begun.elapsed().as_millis());
        Ok(opened)
    }

    fn give_back(&self, files: Files) {
        let mut state = lock(&self.state);
        if files.is_broken() {
            state.open -= 1;
            state.given_up |= self.access.stop.load(Ordering::Relaxed);
        } else {
            state.idle.push((files, Instant::now()));
        }
        match state.given_up {
            // Nobody needs to wait any more.
            true => self.changed.notify_all(),
            false => self.changed.notify_one(),
        }
    }
}
