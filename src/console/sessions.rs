//! The one-time token, sessions and their form tokens.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::RngCore;
use sha2::{Digest, Sha256};
use std::time::{Duration, Instant};

/// The maximum number of open sessions; a new one ends the oldest.
const MOST_SESSIONS: usize = 8;

/// A session without requests ends after this time.
const SESSION_LIMIT: Duration = Duration::from_secs(12 * 60 * 60);

/// Returns 256 random bits as text.
pub(super) fn random_text() -> String {
    let mut bytes = [0; 32];
    rand::rng().fill_bytes(&mut bytes);
    URL_SAFE_NO_PAD.encode(bytes)
}

#[derive(Debug)]
pub(super) struct Sessions {
    /// The hash of the token that opens the next session; None once it is used.
    token: Option<[u8; 32]>,
    open: Vec<BrowserSession>,
}

#[derive(Debug)]
struct BrowserSession {
    /// The hash of its cookie.
    cookie: [u8; 32],
    form_token: String,
    used: Instant,
}

impl Sessions {
    pub(super) fn new() -> Sessions {
        Sessions { token: None, open: Vec::new() }
    }

    /// Creates a token that opens one session, and invalidates an earlier unused one.
    pub(super) fn new_token(&mut self) -> String {
        let token = random_text();
        self.token = Some(hash(&token));
        token
    }

    /// Opens a session for the token, which can be used only once, and returns its cookie.
    pub(super) fn open(&mut self, token: &str) -> Option<String> {
        // Compare hashes, so that the time of the comparison reveals nothing.
        if self.token != Some(hash(token)) {
            return None;
        }
        self.token = None;
        if self.open.len() >= MOST_SESSIONS {
            self.open.sort_by_key(|session| session.used);
            self.open.remove(0);
        }
        let cookie = random_text();
        self.open.push(BrowserSession { cookie: hash(&cookie), form_token: random_text(), used: Instant::now() });
        Some(cookie)
    }

    /// Returns the form token of the session with this cookie.
    pub(super) fn form_token(&mut self, cookie: &str) -> Option<String> {
        self.open.retain(|session| session.used.elapsed() < SESSION_LIMIT);
        let wanted = hash(cookie);
        let session = self.open.iter_mut().find(|session| session.cookie == wanted)?;
        session.used = Instant::now();
        Some(session.form_token.clone())
    }

    pub(super) fn close(&mut self, cookie: &str) {
        let wanted = hash(cookie);
        self.open.retain(|session| session.cookie != wanted);
    }
}

/// Whether two texts are equal. The time does not depend on where they differ.
pub(super) fn is_same(a: &str, b: &str) -> bool {
    hash(a) == hash(b)
}

fn hash(text: &str) -> [u8; 32] {
    Sha256::digest(text).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_opens_exactly_one_session() {
        let mut sessions = Sessions::new();
        assert!(sessions.open("").is_none());
        let void = sessions.new_token();
        let token = sessions.new_token();
        assert!(sessions.open(&void).is_none() && sessions.open(&token[..42]).is_none());
        let cookie = sessions.open(&token).unwrap();
        assert!(sessions.open(&token).is_none());
        assert_eq!(sessions.form_token(&cookie).unwrap().len(), 43);
        assert!(sessions.form_token(&token).is_none());
        sessions.close(&cookie);
        assert!(sessions.form_token(&cookie).is_none());
    }

    #[test]
    fn least_recently_used_session_is_closed_at_the_limit() {
        let mut sessions = Sessions::new();
        let cookies: Vec<String> = (0..=MOST_SESSIONS)
            .map(|_| {
                let token = sessions.new_token();
                sessions.open(&token).unwrap()
            })
            .collect();
        assert!(sessions.form_token(&cookies[0]).is_none());
        assert!(cookies[1..].iter().all(|cookie| sessions.form_token(cookie).is_some()));
    }
}
