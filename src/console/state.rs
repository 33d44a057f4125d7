//! The state that all requests share.

use super::fields::Fields;
use super::followed::Followed;
use super::sessions::{Sessions, random_text};
use super::toolbox::Toolbox;
use super::{Listen, Options};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

pub(super) struct Console {
    pub(super) options: Options,
    pub(super) toolbox: Arc<Toolbox>,
    /// Distinguishes the cookies of consoles on one host, so that they do not end each other's sessions.
    pub(super) instance: String,
    /// The beginning of the login links.
    address: String,
    sessions: Mutex<Sessions>,
    /// The time of the last use.
    used: Mutex<Instant>,
    /// The newest test of the backup server.
    server_test: Mutex<Option<Arc<Followed>>>,
    /// The number of open event streams.
    pub(super) streams: AtomicUsize,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Console {
    /// Creates a console whose links begin with `address`.
    pub(super) fn new(options: Options, address: String) -> Console {
        let toolbox = Arc::new(Toolbox::new(options.program.clone(), options.arguments.clone()));
        let instance = random_text()[..8].to_owned();
        let (sessions, used) = (Mutex::new(Sessions::new()), Mutex::new(Instant::now()));
        let (server_test, streams) = (Mutex::default(), AtomicUsize::new(0));
        Console { options, toolbox, instance, address, sessions, used, server_test, streams }
    }

    pub(super) fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a use of the console.
    pub(super) fn touch(&self) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Whether the console has not been used for the allowed time.
    pub(super) fn is_idle(&self) -> bool {
        let used = *self.used.lock().unwrap_or_else(PoisonError::into_inner);
        self.streams.load(Ordering::Relaxed) == 0 && used.elapsed() > self.options.idle
    }

    /// Returns the newest test of the backup server.
    pub(super) fn server_test(&self) -> Option<Arc<Followed>> {
        self.server_test.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Starts a test of the backup server. A running one with the same command line continues; any other is stopped.
    pub(super) fn test_server(&self, words: Vec<String>, form: Fields) {
        let mut test = self.server_test.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*test {
            if known.words == words && !known.has_ended() {
                return;
            }
            known.stop();
        }
        *test = Some(Followed::start(&self.toolbox, words, form));
    }

    /// Returns a link that opens one session, and invalidates an earlier unused one.
    pub(super) fn new_link(&self) -> String {
        let token = self.sessions().new_token();
        format!("{}/login?token={token}", self.address)
    }

    /// Returns the host in the login links, as in a `Host` header.
    pub(super) fn host(&self) -> &str {
        let authority = self.address.strip_prefix("http://").unwrap_or(&self.address);
        authority.rsplit_once(':').map_or(authority, |(host, _)| host)
    }

    /// Whether systemd has started the console. Nobody reads its output then.
    pub(super) fn is_of_system(&self) -> bool {
        matches!(self.options.listen, Listen::Given(_))
    }

    /// Announces a link that opens a session.
    pub(super) fn announce(&self) {
        if !self.is_of_system() {
            (self.options.announce)(&self.new_link());
        }
    }
}
