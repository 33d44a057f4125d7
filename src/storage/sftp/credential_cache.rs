//! Caches credentials, so that the user is asked only once, however many connections are made.

use super::{Credentials, Secret, ShownKey};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Caches the answers of other credentials.
#[derive(Debug)]
pub(crate) struct CredentialCache {
    inner: Arc<dyn Credentials>,
    answers: Mutex<HashMap<String, Secret>>,
}

impl CredentialCache {
    pub(crate) fn new(inner: Arc<dyn Credentials>) -> CredentialCache {
        CredentialCache { inner, answers: Mutex::default() }
    }

    /// Discards all answers after a failed login: a secret may have been wrong, or valid only once.
    pub(crate) fn forget(&self) {
        self.answers().clear();
    }

    fn answers(&self) -> MutexGuard<'_, HashMap<String, Secret>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn once(
        &self,
        question: String,
        ask: impl FnOnce() -> Result<Option<Secret>, String>,
    ) -> Result<Option<Secret>, String> {
        if let Some(answer) = self.answers().get(&question) {
            return Ok(Some(answer.clone()));
        }
        let answer = ask()?;
        if let Some(answer) = &answer {
            self.answers().insert(question, answer.clone());
        }
        Ok(answer)
    }
}

impl Credentials for CredentialCache {
    fn password(&self, account: &str) -> Result<Option<Secret>, String> {
        self.once(format!("password {account}"), || self.inner.password(account))
    }

    fn passphrase(&self, key_file: &Path) -> Result<Option<Secret>, String> {
        self.once(format!("passphrase {}", key_file.display()), || self.inner.passphrase(key_file))
    }

    fn answer(&self, account: &str, question: &str, hidden: bool) -> Result<Option<Secret>, String> {
        self.once(format!("answer {account} {question}"), || self.inner.answer(account, question, hidden))
    }

    fn was_wrong(&self) -> bool {
        self.forget();
        self.inner.was_wrong()
    }

    fn accepts(&self, key: &ShownKey) -> Result<bool, String> {
        self.inner.accepts(key)
    }
}
