//! Authentication, in the order in which `ssh` tries methods: keys of the agent and of files, keyboard-interactive,
//! password.
//!
//! kvmb's own key, if it exists, is tried before all others: it was made for this purpose, and a server closes the
//! connection after a few failed keys. The successful method is remembered, so that further connections do not repeat
//! failed ones.

use super::agent_relay::AgentRelay;
use super::{Connection, Error, Result, Secret, SshContext, SshTarget};
use crate::atomic_file;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ssh_key::{PrivateKey, PublicKey};
use ssh2::{KeyboardInteractivePrompt, Prompt};
use std::iter;
use std::path::{Path, PathBuf};

/// A successful login method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Login {
    /// The server requires no authentication.
    Nothing,
    /// A key of the agent, as its public key blob.
    Agent(Vec<u8>),
    /// A key file, and whether it has a passphrase.
    Key(PathBuf, bool),
    /// Answers to keyboard-interactive questions.
    Questions,
    Password,
}

/// The maximum number of prompts for the same secret, as in `ssh`.
const PROMPTS: usize = 3;

/// The maximum length of the server's questions in an error message.
const LONGEST_QUESTIONS: usize = 300;

/// The authentication methods, in the order in which they are tried.
const WAYS: [&str; 3] = ["publickey", "keyboard-interactive", "password"];

/// Logs in. `known` is the method that succeeded before.
pub(crate) fn authenticate(
    connection: &Connection,
    ssh_target: &SshTarget,
    ssh_context: &SshContext,
    known: Option<&Login>,
) -> Result<Login> {
    let mut attempt = Attempt { connection, ssh_target, ssh_context, tried: Vec::new() };
    let mut left: Vec<&str> = WAYS.into_iter().filter(|way| !ssh_target.forbidden.contains(way)).collect();
    match known {
        Some(login) if attempt.again(login)? => return Ok(login.clone()),
        _ => {}
    }
    let Some(mut offered) = attempt.offered()? else {
        return Ok(Login::Nothing);
    };
    let next = |left: &[&str], offered: &str| left.iter().position(|way| offered.split(',').any(|offer| offer == *way));
    while let Some(at) = next(&left, &offered) {
        let login = match left.remove(at) {
            "publickey" => attempt.keys()?,
            "keyboard-interactive" => attempt.questions()?,
            _ => attempt.password()?,
        };
        if let Some(login) = login {
            return Ok(login);
        }
        // A server that requires two factors offers the second one after the first succeeded.
        if next(&left, &offered).is_none() && !attempt.tried.is_empty() {
            match attempt.offered()? {
                Some(now) => offered = now,
                None => return Ok(Login::Nothing),
            }
        }
    }
    Err(attempt.refused(&offered.replace(',', ", ")))
}

/// The errors of libssh2 for a key file that its passphrase does not decrypt, in OpenSSH's format or an older one. The
/// server is not contacted in this case.
const KEY_STAYS_SHUT: [ssh2::ErrorCode; 2] = [ssh2::ErrorCode::Session(-16), ssh2::ErrorCode::Session(-48)];

/// The result of trying a key file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeyOutcome {
    Accepted,
    Refused,
    /// No passphrase decrypted it.
    Locked,
}

/// A login in progress.
struct Attempt<'a> {
    connection: &'a Connection,
    ssh_target: &'a SshTarget,
    ssh_context: &'a SshContext,
    /// The methods and keys that were tried, with the reason why each failed.
    tried: Vec<String>,
}

impl Attempt<'_> {
    fn refused(&self, offered: &str) -> Error {
        let offered = if offered.is_empty() { "nothing" } else { offered };
        Error::Login {
            server: self.ssh_target.server(),
            user: self.ssh_target.user.clone(),
            tried: self.tried.clone(),
            offered: offered.to_owned(),
        }
    }

    /// Makes one attempt and returns whether it succeeded. A server closes the connection after too many failed
    /// attempts.
    fn lets_in(&mut self, what: String, call: impl FnMut() -> std::result::Result<(), ssh2::Error>) -> Result<bool> {
        Ok(self.keeps_out(what, call)?.is_none())
    }

    /// Like [`Attempt::lets_in`], but returns the error code of a refusal.
    fn keeps_out(
        &mut self,
        what: String,
        call: impl FnMut() -> std::result::Result<(), ssh2::Error>,
    ) -> Result<Option<ssh2::ErrorCode>> {
        self.connection.restart_progress();
        match self.connection.step(call) {
            Ok(Ok(())) => Ok(None),
            Ok(Err(error)) => {
                tracing::debug!("{}: {what}: {}", self.ssh_target.server(), error.message());
                let what = match error.code() {
                    // libssh2's text for the request to change the password; it has another one for a wrong password.
                    _ if what == "password" && error.message() == "Authentication failed" => {
                        format!("{what} (the server demands a new one: it has expired)")
                    }
                    // A plain refusal needs no explanation.
                    ssh2::ErrorCode::Session(-18 | -19) => what,
                    _ => format!("{what} ({})", error.message()),
                };
                // Report a repeated failure only once.
                if self.tried.last() != Some(&what) {
                    self.tried.push(what);
                }
                Ok(Some(error.code()))
            }
            // Nothing was tried yet, so the server did not close the connection because of failed attempts.
            Err(error @ Error::Lost { .. }) if self.tried.is_empty() => Err(error),
            Err(Error::Lost { .. }) => {
                self.tried.push(format!("{what} (then the server closed the connection)"));
                Err(self.refused("no more attempts"))
            }
            Err(error) => Err(error),
        }
    }

    /// Returns the methods that the server offers now, or `None` if the login is complete.
    fn offered(&self) -> Result<Option<String>> {
        // The server lists its methods in its answer to a `none` request.
        let session = self.connection.session();
        self.connection.restart_progress();
        let answer = self.connection.step(|| session.auth_methods(&self.ssh_target.user).map(str::to_owned))?;
        match answer {
            _ if session.authenticated() => Ok(None),
            Ok(offered) => Ok(Some(offered)),
            Err(error) => Err(self.refused(error.message())),
        }
    }

    /// Tries the key that was accepted before.
    fn again(&mut self, login: &Login) -> Result<bool> {
        match login {
            Login::Nothing | Login::Questions | Login::Password => Ok(false),
            Login::Agent(blob) => self.agent_key(|key| key.blob() == blob.as_slice()).map(|found| found.is_some()),
            Login::Key(file, _) => self.identity(file).map(|found| found.is_some()),
        }
    }

    fn keys(&mut self) -> Result<Option<Login>> {
        let own = self.ssh_context.own_key.as_ref();
        if let Some(own) = own
            && let Some(login) = self.identity(own)?
        {
            return Ok(Some(login));
        }
        let only: Option<Vec<Vec<u8>>> = self.ssh_target.identities_only.then(|| {
            let blobs = |file: &PathBuf| {
                let certificates = self.certificates_of(file).into_iter().map(|(_, blob)| blob);
                certificates.chain(public_half(file)).collect::<Vec<_>>()
            };
            self.ssh_target.identities.iter().flat_map(blobs).collect()
        });
        let wanted =
            |key: &ssh2::PublicKey| only.as_ref().is_none_or(|only| only.iter().any(|blob| blob == key.blob()));
        if let Some(blob) = self.agent_key(wanted)? {
            return Ok(Some(Login::Agent(blob)));
        }
        for file in self.ssh_target.identities.iter().filter(|file| Some(*file) != own) {
            if let Some(login) = self.identity(file)? {
                return Ok(Some(login));
            }
        }
        Ok(None)
    }

    /// Tries keys of the agent and returns the one that was accepted.
    fn agent_key(&mut self, wanted: impl Fn(&ssh2::PublicKey) -> bool) -> Result<Option<Vec<u8>>> {
        let Some(socket) = &self.ssh_target.agent_socket else {
            return Ok(None);
        };
        let mut relay = match AgentRelay::start(socket, self.ssh_target.timeouts, &self.ssh_context.stop) {
            Ok(relay) => relay,
            Err(error) => {
                self.agent_failed(&error.to_string());
                return Ok(None);
            }
        };
        let mut listed = || -> std::result::Result<_, ssh2::Error> {
            let mut agent = self.connection.session().agent()?;
            agent.set_identity_path(relay.socket())?;
            agent.connect()?;
            relay.connected();
            agent.list_identities()?;
            let keys = agent.identities()?;
            Ok((agent, keys))
        };
        let (agent, keys) = match listed() {
            Ok(found) => found,
            Err(error) => {
                self.agent_failed(relay.failure().unwrap_or(error.message()));
                return Ok(None);
            }
        };
        relay.expect_signatures();
        for key in keys.iter().filter(|key| wanted(key)) {
            let user = self.ssh_target.user.clone();
            if self.lets_in(format!("the agent's key '{}'", key.comment()), || agent.userauth(&user, key))? {
                return Ok(Some(key.blob().to_vec()));
            }
            if let Some(reason) = relay.failure() {
                self.agent_failed(reason);
                break;
            }
        }
        Ok(None)
    }

    /// Records why the agent is not used. An agent that does not answer delays each login, also one that succeeds.
    fn agent_failed(&mut self, reason: &str) {
        tracing::debug!("the ssh-agent: {reason}");
        self.tried.push(format!("the agent ({reason})"));
    }

    /// Tries a key file, if it exists.
    fn identity(&mut self, file: &Path) -> Result<Option<Login>> {
        let text = match atomic_file::read_to_string(file) {
            Ok(text) => zeroize::Zeroizing::new(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                self.tried.push(format!("the key {} ({error})", file.display()));
                return Ok(None);
            }
        };
        let is_encrypted = is_encrypted(&text);
        // Certificates are tried before their keys, as ssh does.
        let certificates = self.certificates_of(file).into_iter().map(|(path, _)| Some(path));
        for certificate in certificates.chain([None]) {
            match self.key_file(file, certificate.as_deref(), is_encrypted)? {
                KeyOutcome::Accepted => return Ok(Some(Login::Key(file.to_owned(), is_encrypted))),
                KeyOutcome::Refused => {}
                KeyOutcome::Locked => break,
            }
        }
        Ok(None)
    }

    /// Returns the certificates of a key with their blobs: the one next to the key file, and configured ones.
    fn certificates_of(&self, file: &Path) -> Vec<(PathBuf, Vec<u8>)> {
        let beside = PathBuf::from(format!("{}-cert.pub", file.display()));
        let Some(key) = public_half(file) else { return Vec::new() };
        let certificate = |path: PathBuf| {
            let text = atomic_file::read_to_string(&path).ok()?;
            let blob = STANDARD.decode(text.split_whitespace().nth(1)?).ok()?;
            certifies(&blob, &key).then_some((path, blob))
        };
        iter::once(beside).chain(self.ssh_target.certificates.iter().cloned()).filter_map(certificate).collect()
    }

    /// Tries a key file, alone or with a certificate.
    fn key_file(&mut self, file: &Path, certificate: Option<&Path>, is_encrypted: bool) -> Result<KeyOutcome> {
        let (session, user) = (self.connection.session(), self.ssh_target.user.clone());
        let shown = match certificate {
            Some(certificate) => format!("the key {} with {}", file.display(), certificate.display()),
            None => format!("the key {}", file.display()),
        };
        for prompt in 1..=PROMPTS {
            let passphrase = match is_encrypted {
                false => None,
                true => self.ssh_context.credentials.passphrase(file).map_err(Error::Secret)?,
            };
            if is_encrypted && passphrase.is_none() {
                self.tried.push(format!("the key {} (it needs a passphrase, and none was given)", file.display()));
                break;
            }
            let words = passphrase.as_ref().map(Secret::reveal);
            let outcome =
                self.keeps_out(shown.clone(), || session.userauth_pubkey_file(&user, certificate, file, words))?;
            match outcome {
                None => return Ok(KeyOutcome::Accepted),
                Some(error) if is_encrypted && KEY_STAYS_SHUT.contains(&error) => {
                    // libssh2 reports this as a key of an unknown format.
                    self.tried.pop();
                    let what = format!("the key {} (the passphrase does not open it)", file.display());
                    if self.tried.last() != Some(&what) {
                        self.tried.push(what);
                    }
                    if prompt == PROMPTS || !self.ssh_context.credentials.was_wrong() {
                        break;
                    }
                }
                Some(_) => return Ok(KeyOutcome::Refused),
            }
        }
        Ok(KeyOutcome::Locked)
    }

    /// Answers the server's questions.
    fn questions(&mut self) -> Result<Option<Login>> {
        let (session, user) = (self.connection.session(), self.ssh_target.user.clone());
        for prompt in 1..=PROMPTS {
            let mut person = InteractivePrompt {
                ssh_context: self.ssh_context,
                account: self.ssh_target.account(),
                questions: Vec::new(),
                failed: None,
            };
            let what = "keyboard-interactive".to_owned();
            let let_in = self.lets_in(what, || session.userauth_keyboard_interactive(&user, &mut person))?;
            if let Some(failed) = person.failed {
                return Err(Error::Secret(failed));
            }
            if let_in {
                return Ok(Some(Login::Questions));
            }
            self.explain_refused_answers(&person.questions);
            if prompt == PROMPTS || person.questions.is_empty() || !self.ssh_context.credentials.was_wrong() {
                break;
            }
        }
        Ok(None)
    }

    /// Adds the questions to the last failure if there were several: the refusal may not be due to the password.
    fn explain_refused_answers(&mut self, questions: &[String]) {
        if questions.len() < 2 {
            return;
        }
        let asked: String = questions.join(" / ").chars().take(LONGEST_QUESTIONS).collect();
        let what = format!("keyboard-interactive (the server asked: {asked})");
        if self.tried.last().is_some_and(|last| last == "keyboard-interactive") {
            self.tried.pop();
        }
        if self.tried.last() != Some(&what) {
            self.tried.push(what);
        }
    }

    fn password(&mut self) -> Result<Option<Login>> {
        let (session, user) = (self.connection.session(), self.ssh_target.user.clone());
        for prompt in 1..=PROMPTS {
            let Some(password) =
                self.ssh_context.credentials.password(&self.ssh_target.account()).map_err(Error::Secret)?
            else {
                self.tried.push("password (none was given)".to_owned());
                break;
            };
            if self.lets_in("password".to_owned(), || session.userauth_password(&user, password.reveal()))? {
                return Ok(Some(Login::Password));
            }
            if prompt == PROMPTS || !self.ssh_context.credentials.was_wrong() {
                break;
            }
        }
        Ok(None)
    }
}

/// Passes the server's questions on to the credentials.
struct InteractivePrompt<'a> {
    ssh_context: &'a SshContext,
    account: String,
    /// What the server asked, without repetitions.
    questions: Vec<String>,
    failed: Option<String>,
}

impl KeyboardInteractivePrompt for InteractivePrompt<'_> {
    fn prompt<'a>(&mut self, _username: &str, instructions: &str, prompts: &[Prompt<'a>]) -> Vec<String> {
        let mut answers = Vec::new();
        for prompt in prompts {
            // Instructions may have several lines, and a prompt is printed with a colon of its own.
            let words: Vec<&str> = instructions.split_whitespace().chain(prompt.text.split_whitespace()).collect();
            let question = words.join(" ").trim_end_matches([':', ' ']).to_owned();
            let shown: String = question.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
            if !self.questions.contains(&shown) {
                self.questions.push(shown);
            }
            match self.ssh_context.credentials.answer(&self.account, &question, !prompt.echo) {
                Ok(Some(answer)) => answers.push(answer.reveal().to_owned()),
                // With an empty answer the server refuses the login.
                Ok(None) => answers.push(String::new()),
                Err(reason) => {
                    self.failed.get_or_insert(reason);
                    answers.push(String::new());
                }
            }
        }
        answers
    }
}

/// Returns whether a private key file is encrypted.
fn is_encrypted(text: &str) -> bool {
    match PrivateKey::from_openssh(text) {
        Ok(key) => key.is_encrypted(),
        // The older formats have this word in their first lines.
        Err(_) => text.contains("ENCRYPTED"),
    }
}

/// Returns whether a certificate is for this key. A certificate contains its type, a nonce, the key without its type,
/// and more (section 2 of OpenSSH's PROTOCOL.certkeys).
fn certifies(certificate: &[u8], key: &[u8]) -> bool {
    fn after_text(blob: &[u8]) -> Option<&[u8]> {
        let (length, rest) = blob.split_first_chunk()?;
        rest.get(u32::from_be_bytes(*length) as usize..)
    }
    match (after_text(certificate).and_then(after_text), after_text(key)) {
        (Some(certified), Some(key)) => !key.is_empty() && certified.starts_with(key),
        _ => false,
    }
}

/// Returns the public key of a key file, to find it in the agent.
fn public_half(file: &Path) -> Option<Vec<u8>> {
    let beside = PathBuf::from(format!("{}.pub", file.display()));
    let from_public = |path: &Path| atomic_file::read_to_string(path).ok()?.parse::<PublicKey>().ok();
    // As with `ssh`, the configured file may itself be the public key.
    let from_private = || Some(PrivateKey::read_openssh_file(file).ok()?.public_key().clone());
    from_public(&beside).or_else(|| from_public(file)).or_else(from_private)?.to_bytes().ok()
}
