//! The repository and its password: flags and variables that have the same meaning for every command.

use crate::atomic_file;
use crate::cli::args::value_parsers::{duration, path_or_nothing, rate, repositories};
use crate::cli::context::Context;
use crate::cli::failure::{CliError, Code};
use crate::cli::folders::{cache_folder, data_folder, make_data_folder, state_folder};
use crate::cli::terminal::prompt;
use crate::cli::terminal::secret;
use crate::cli::terminal::stderr::say;
use crate::history::History;
use crate::rate_limiter::RateLimiter;
use crate::repo::{self, HandedKey, KeyCache, Password, Presence, Repository};
use crate::storage::{self, FileKind, LimitStorage, RetryPolicy, RetryStorage, Storage};
use clap::Args;
use std::fs;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// The repository's folder inside `backup_path` of the configuration if that contains other files, such as those of
/// kvm_backup.
pub(crate) const OWN_FOLDER: &str = "kvmb";

/// How often a person may try a password, as with ssh.
const TRIES: u32 = 3;

/// How long a command that only watches retries a lost connection.
const WATCHING: Duration = Duration::from_secs(10);

/// The size of a generated key file: 64 hexadecimal digits and a newline.
const KEY_FILE_BYTES: u64 = 65;

/// How long to wait for another run that is writing the key file.
const KEY_WAIT: Duration = Duration::from_secs(10);

/// The repository of a command.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Repository")]
pub(crate) struct RepoArgs {
    /// Restic repository: a folder (/backup/kvm), a folder on a server (sftp://user@host//backup/kvm), a REST
    /// server (rest:https://host:8000/kvm/), or a bucket (s3:https://host/bucket/kvm).
    ///
    /// As with restic, a path after a single slash is relative to the login folder (sftp://user@host/kvm). The host
    /// may be an alias from ~/.ssh/config.
    ///
    /// Default: $KVMB_REPO, otherwise the repository of the configuration, otherwise /var/lib/kvmb/repo. That one
    /// is created on first use, with a generated key file next to it.
    #[arg(short, long, value_name = "URL", env = "KVMB_REPO", hide_env_values = true, add = repositories())]
    pub(crate) repo: Option<String>,

    /// File with the repository password.
    ///
    /// As with restic, leading and trailing white space is ignored. Default: $KVMB_PASSWORD_FILE, otherwise the
    /// output of $KVMB_PASSWORD_COMMAND, $KVMB_PASSWORD, the configuration, or a prompt on a terminal.
    #[arg(long, value_name = "FILE", env = "KVMB_PASSWORD_FILE", hide_env_values = true,
        value_parser = path_or_nothing())]
    pub(crate) password_file: Option<PathBuf>,

    /// File whose first line is the SSH password of the account, or the passphrase of the key.
    ///
    /// Default: $KVMB_SSH_PASSWORD_FILE, otherwise the output of $KVMB_SSH_PASSWORD_COMMAND, $KVMB_SSH_PASSWORD, or
    /// a prompt on a terminal. Not needed with an agent or a key without a passphrase.
    #[arg(long, value_name = "FILE", env = "KVMB_SSH_PASSWORD_FILE", hide_env_values = true,
        value_parser = path_or_nothing())]
    pub(crate) ssh_password_file: Option<PathBuf>,

    /// File with the certificates (PEM) to verify HTTPS servers with, instead of those of the system.
    #[arg(long, value_name = "FILE", env = "KVMB_CACERT", hide_env_values = true, value_parser = path_or_nothing())]
    pub(crate) cacert: Option<PathBuf>,

    /// File with a certificate and its private key (PEM) to show to HTTPS servers.
    #[arg(long, value_name = "FILE", env = "KVMB_TLS_CLIENT_CERT", hide_env_values = true,
        value_parser = path_or_nothing())]
    pub(crate) tls_client_cert: Option<PathBuf>,

    /// Limit writes to the repository, in bytes per second (example: 500K, 10M).
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub(crate) limit_upload: Option<NonZeroU32>,

    /// How long to retry after the connection to the repository is lost (default: 15m).
    ///
    /// The first connection is retried for up to 20 seconds; on a terminal only with this option.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) retry_for: Option<Duration>,

    /// Folder for local copies of the repository index, so that it need not be read from the repository each time.
    ///
    /// Default: $KVMB_CACHE_DIR, otherwise /var/cache/kvmb, or $XDG_CACHE_HOME/kvmb (~/.cache/kvmb) for users other
    /// than root. It can be removed at any time.
    #[arg(long, value_name = "DIR", env = "KVMB_CACHE_DIR", hide_env_values = true, value_parser = path_or_nothing())]
    pub(crate) cache_dir: Option<PathBuf>,

    /// Do not use or create local copies of the index.
    #[arg(long)]
    pub(crate) no_cache: bool,

    /// Keep the key that is derived from the password in the kernel's keyring for this long (example: 2d).
    ///
    /// Later runs of the same user then start faster. They still need the password. Default: off.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) key_cache: Option<Duration>,

    /// The key file of this host's own repository, where this is a copy of that.
    #[arg(skip)]
    pub(crate) shared_key: Option<PathBuf>,

    /// How long what is written to a bucket is locked, where the command line says it.
    #[arg(skip)]
    pub(crate) lock_for: Option<Duration>,
}

/// The default repository, which kvmb creates automatically.
#[derive(Debug, Clone)]
pub(crate) struct DefaultRepo {
    pub(crate) folder: PathBuf,
    /// The file with the generated password.
    pub(crate) key_file: PathBuf,
}

impl DefaultRepo {
    /// Returns `/var/lib/kvmb` for root, `$XDG_DATA_HOME/kvmb` (`~/.local/share/kvmb`) for other users.
    pub(crate) fn locate() -> Result<DefaultRepo, CliError> {
        let base = data_folder()?;
        Ok(DefaultRepo { folder: base.join("repo"), key_file: base.join("repo.key") })
    }

    /// Whether the repository exists and has a key. Without a key it is being created, or its creation was interrupted.
    pub(crate) fn exists(&self) -> bool {
        let has_key = || fs::read_dir(self.folder.join("keys")).is_ok_and(|mut keys| keys.next().is_some());
        self.folder.join("config").exists() && has_key()
    }

    /// Whether no creation was ever started. If the key file exists, the repository was created, and its folder may not
    /// be mounted.
    fn was_never_created(&self) -> bool {
        !self.folder.exists() && !self.key_file.exists()
    }

    /// Returns the marker file which says that the key is also kept elsewhere.
    pub(crate) fn exported_mark(&self) -> PathBuf {
        self.key_file.with_extension("exported")
    }

    /// Whether the key was exported or another password was added. Otherwise it is lost with this host.
    pub(crate) fn is_key_kept_elsewhere(&self) -> bool {
        self.exported_mark().exists()
    }

    /// Creates the key file if it does not exist. One of several concurrent runs succeeds; the others use its file.
    fn ensure_key(&self) -> Result<(), CliError> {
        make_data_folder()?;
        let secret: [u8; 32] = rand::random();
        match atomic_file::create(&self.key_file, (hex::encode(secret) + "\n").as_bytes(), 0o600) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                Err(crate::ops::Error::io("create", &self.key_file)(error).into())
            }
            _ => Ok(()),
        }
    }

    /// Returns the generated password, if the key file exists. On a file system without hard links, the file is
    /// incomplete while another run writes it; waits for that.
    fn key(&self, limit: Duration) -> Result<Option<Password>, CliError> {
        while fs::metadata(&self.key_file).is_ok_and(|metadata| is_being_written(&metadata)) {
            thread::sleep(Duration::from_millis(50));
        }
        self.key_file.exists().then(|| secret::from_file(&self.key_file, limit)).transpose()
    }
}

/// Whether this host has stored points in the repository with this address.
fn was_used(url: &str) -> bool {
    let memories = state_folder().map(|folder| History::of(&folder, url).all().0).unwrap_or_default();
    memories.iter().any(|memory| memory.newest_point.is_some())
}

/// Whether a generated key file is so short and so recent that another run may still be writing it.
fn is_being_written(file: &fs::Metadata) -> bool {
    let age = file.modified().ok().and_then(|modified| modified.elapsed().ok());
    file.len() < KEY_FILE_BYTES && age.is_some_and(|age| age < KEY_WAIT)
}

impl RepoArgs {
    /// Whether a repository was given by flag or environment.
    pub(crate) fn is_named(&self) -> bool {
        self.repo.as_ref().is_some_and(|repo| !repo.is_empty())
    }

    /// Returns the address: the given one, or that of the default repository.
    pub(crate) fn url(&self) -> Result<String, CliError> {
        match self.repo.as_ref().filter(|repo| !repo.is_empty()) {
            Some(url) => Ok(url.clone()),
            None => Ok(DefaultRepo::locate()?.folder.to_string_lossy().into_owned()),
        }
    }

    /// Returns the storage of the repository, with retries and rate limits. Storages of the same context share their
    /// connections to a server.
    pub(crate) fn storage(&self, context: &Context) -> Result<Arc<dyn Storage>, CliError> {
        let mut storage = context.storage(&self.url()?, self)?;
        let stop = context.stop.flag();
        if let Some(rate) = self.limit_upload {
            storage = Arc::new(LimitStorage::new(storage, Arc::new(RateLimiter::new(rate, Arc::clone(&stop)))));
        }
        let mut policy = RetryPolicy::default();
        match self.retry_for {
            Some(time) => policy.known = time,
            // A user at a terminal should see at once that a server does not respond, and can try again.
            None if prompt::possible(context) => policy.unknown = Duration::ZERO,
            None => {}
        }
        Ok(Arc::new(RetryStorage::new(storage, policy, stop)))
    }

    /// Returns another repository that is accessed in the same way. Its password is in `password_file`; without that,
    /// it has the same password as this one, or its own key file if it is the default repository.
    pub(crate) fn other(
        &self,
        context: &Context,
        url: String,
        password_file: Option<PathBuf>,
    ) -> Result<RepoArgs, CliError> {
        let default = DefaultRepo::locate()?;
        let is_default = |repo: &RepoArgs| -> Result<bool, CliError> {
            Ok(repo.storage(context)?.url() == default.folder.to_string_lossy())
        };
        let mut other = RepoArgs { repo: Some(url), ..self.clone() };
        other.password_file = match password_file.filter(|file| !file.as_os_str().is_empty()) {
            None if is_default(&other)? && default.key_file.exists() => Some(default.key_file.clone()),
            None => self.password_file.clone(),
            given => given,
        };
        other.shared_key = is_default(self)?.then_some(default.key_file);
        Ok(other)
    }

    /// Returns the folder of the repository if it is on this host.
    pub(crate) fn local_folder(&self, context: &Context) -> Result<Option<PathBuf>, CliError> {
        Ok(Some(PathBuf::from(self.storage(context)?.url())).filter(|folder| folder.is_absolute()))
    }

    /// Whether this is the repository of the configured backup server, under either of its addresses.
    pub(crate) fn is_of_server(&self, context: &Context) -> Result<bool, CliError> {
        let Some(server) = context.config().remote_url() else { return Ok(false) };
        // A local folder needs no lookup of the server's address, which may fail.
        if !self.url()?.starts_with("sftp:") {
            return Ok(false);
        }
        let server = context.storage(&server, self)?.url();
        let url = self.storage(context)?.url();
        Ok(url == server || url == format!("{server}/{OWN_FOLDER}"))
    }

    /// Like `storage`, but inspects the storage: if the configured `backup_path` contains other files and no
    /// repository, returns the subfolder for kvmb's repository.
    pub(crate) fn settled_storage(&self, context: &Context) -> Result<Arc<dyn Storage>, CliError> {
        let storage = self.storage(context)?;
        let Some(server) = context.config().remote_url() else { return Ok(storage) };
        if !self.is_of_server(context)? || !storage.is_taken().map_err(storage_error)? {
            return Ok(storage);
        }
        RepoArgs { repo: Some(format!("{server}/{OWN_FOLDER}")), ..self.clone() }.storage(context)
    }

    /// Fails if this is the default repository and no run has created it yet.
    pub(crate) fn require_created(&self) -> Result<(), CliError> {
        if !self.is_named() && DefaultRepo::locate()?.was_never_created() {
            return Err(CliError::new(Code::NoRepository, "no backups on this host yet")
                .hint("run 'kvmb backup NAME' to make the first one, or choose a repository with -r URL"));
        }
        Ok(())
    }

    /// Opens the repository. A user may mistype the password twice, and is not asked if there is no repository.
    pub(crate) fn open(&self, context: &Context) -> Result<Repository, CliError> {
        self.require_created()?;
        let storage = self.settled_storage(context)?;
        if let Some(password) = self.given_password(context)? {
            return Ok(self.remembered(self.open_with(storage, &password)?));
        }
        if Repository::presence(&*storage)? == Presence::Nothing {
            return Err(repo::Error::NoRepository { url: storage.url() }.into());
        }
        let mut tries = 1;
        loop {
            let password = self.ask_password(context, Purpose::Open)?;
            match self.open_with(Arc::clone(&storage), &password) {
                Err(error @ repo::Error::WrongPassword { .. }) if tries < TRIES => {
                    say(&format!("kvmb: {error}; try again"))
                }
                other => return Ok(self.remembered(other?)),
            }
            tries += 1;
        }
    }

    /// Opens the repository with the key that the parent process sends through standard input, or with the password if
    /// that key does not match.
    pub(crate) fn open_with_handed_key(&self, context: &Context) -> Result<Repository, CliError> {
        let handed = HandedKey::receive(std::io::stdin().lock()).unwrap_or_else(|error| {
            tracing::debug!("no key on standard input: {error}");
            None
        });
        let opened = match handed {
            Some(key) => Repository::open_handed(self.settled_storage(context)?, key)?,
            None => None,
        };
        opened.map_or_else(|| self.open(context), |repo| Ok(self.remembered(repo)))
    }

    fn open_with(&self, storage: Arc<dyn Storage>, password: &Password) -> repo::Result<Repository> {
        let key_cache = self.key_cache.map(KeyCache::new);
        Repository::open_with(storage, password, key_cache.as_ref(), self.cache_base().as_deref())
    }

    /// Opens the repository if the user has to type its password, so that this happens now and not hours later. A
    /// missing or unreachable repository is left to later steps.
    pub(crate) fn open_if_asked(&self, context: &Context) -> Result<Option<Repository>, CliError> {
        if self.given_password(context)?.is_some() {
            return Ok(None);
        }
        let presence = self.settled_storage(context).and_then(|storage| Ok(Repository::presence(&*storage)?));
        match presence {
            Ok(Presence::Nothing) => Ok(None),
            Err(error) if !matches!(error.code, Code::Usage | Code::Interrupted) => Ok(None),
            Err(error) => Err(error),
            Ok(_) => self.open(context).map(Some),
        }
    }

    /// Checks whether the repository is reachable, and opens it if its password is available without asking.
    pub(crate) fn probe(&self, context: &Context) -> Result<Reached, CliError> {
        if !self.is_named() && DefaultRepo::locate()?.was_never_created() {
            return Ok(Reached::NotCreatedYet);
        }
        let storage = self.settled_storage(context)?;
        if Repository::presence(&*storage)? == Presence::Nothing {
            return Err(repo::Error::NoRepository { url: storage.url() }.into());
        }
        match self.given_password(context)? {
            Some(password) => {
                let key_cache = self.key_cache.map(KeyCache::new);
                // Without the cache: this checks the repository itself.
                Repository::open_with(storage, &password, key_cache.as_ref(), None)?;
                Ok(Reached::Opened)
            }
            None => Ok(Reached::WithoutPassword),
        }
    }

    /// Like this, but for monitoring: does not retry a lost connection for long.
    pub(crate) fn in_a_hurry(&self) -> RepoArgs {
        RepoArgs { retry_for: Some(self.retry_for.unwrap_or(WATCHING)), ..self.clone() }
    }

    /// Whether there is a repository that can be opened without asking the user.
    pub(crate) fn can_open_unasked(&self, context: &Context) -> bool {
        let is_there = self.is_named() || DefaultRepo::locate().is_ok_and(|default| default.exists());
        is_there && !prompt::possible(context)
    }

    /// Opens the repository for storing, and creates the default repository if it does not exist. One of several
    /// concurrent runs creates it, and the others use it.
    ///
    /// If this host has already stored points in it, it is not created again: its file system is not mounted, or it was
    /// removed. A new one would hide that.
    pub(crate) fn open_or_create_default(&self, context: &Context) -> Result<Repository, CliError> {
        if self.is_named() {
            return self.open(context);
        }
        let storage = self.storage(context)?;
        // Read before the presence is checked: a concurrent run may be creating the repository.
        let was_used = was_used(&storage.url());
        match Repository::presence(&*storage)? {
            Presence::Repository => return self.open(context),
            Presence::Nothing if was_used => return Err(repo::Error::NoRepository { url: storage.url() }.into()),
            _ => {}
        }
        match self.try_to_create_default(context)? {
            Err(repo::Error::AlreadyExists { found: FileKind::Config, .. }) => self.open(context),
            made => Ok(made?),
        }
    }

    /// Creates the default repository, which must not exist.
    pub(crate) fn create_default(&self, context: &Context) -> Result<Repository, CliError> {
        Ok(self.try_to_create_default(context)??)
    }

    fn try_to_create_default(&self, context: &Context) -> Result<repo::Result<Repository>, CliError> {
        let default = DefaultRepo::locate()?;
        default.ensure_key()?;
        let password = self.password(context, Purpose::Open)?;
        let made = Repository::create(self.storage(context)?, &password);
        if let Ok(made) = &made {
            say(&format!("kvmb: created the repository {} with the key {}", made.url(), default.key_file.display()));
            say(
                "kvmb: hint: keep a copy of the key elsewhere ('kvmb key export FILE'); without it the backups cannot \
                 be read",
            );
        }
        Ok(made.map(|repo| self.remembered(repo)))
    }

    /// Returns the password that the configuration has for this repository.
    fn configured_password(&self, context: &Context) -> Result<Option<Password>, CliError> {
        let config = context.config();
        let is_second = || self.repo.is_some() && self.repo == config.second_repo();
        let is_of_server = self.is_of_server(context)? || is_second();
        let of_remote = config.remote_password_file.as_ref().filter(|_| is_of_server);
        if let Some(file) = of_remote.or(config.password_file.as_ref()) {
            return secret::from_file(&file.value().0, context.password_limit()).map(Some);
        }
        let origin = "password_command of the configuration";
        let command = config.password_command.as_ref();
        command.map(|command| secret::from_command(command.text(), origin, context.password_limit())).transpose()
    }

    /// Returns the password from the first source that has one, or asks the user.
    pub(crate) fn password(&self, context: &Context, purpose: Purpose) -> Result<Password, CliError> {
        match self.given_password(context)? {
            Some(password) => Ok(password),
            None => self.ask_password(context, purpose),
        }
    }

    fn given_password(&self, context: &Context) -> Result<Option<Password>, CliError> {
        if let Some(file) = self.password_file.as_ref().filter(|file| !file.as_os_str().is_empty()) {
            return secret::from_file(file, context.password_limit()).map(Some);
        }
        if let Some(command) = secret::variable("KVMB_PASSWORD_COMMAND") {
            return secret::from_command(&command, "$KVMB_PASSWORD_COMMAND", context.password_limit()).map(Some);
        }
        if let Some(password) = secret::variable("KVMB_PASSWORD") {
            return Ok(Some(Password::new(password)));
        }
        if let Some(password) = self.configured_password(context)? {
            return Ok(Some(password));
        }
        let default = DefaultRepo::locate()?;
        let is_default = self.storage(context)?.url() == default.folder.to_string_lossy();
        if is_default {
            return default.key(context.password_limit());
        }
        // If the configuration names no primary repository, the server's repository is the copy of the default one.
        let is_copy_of_default =
            || Ok::<_, CliError>(context.config().primary_repo().is_none() && self.is_of_server(context)?);
        let shared = match &self.shared_key {
            None if default.key_file.exists() && is_copy_of_default()? => Some(&default.key_file),
            shared => shared.as_ref(),
        };
        let shared = shared.filter(|key| key.exists());
        shared.map(|key| secret::from_file(key, context.password_limit())).transpose()
    }

    /// Attaches the caches that this host keeps for the repository.
    fn remembered(&self, repo: Repository) -> Repository {
        let repo = match state_folder() {
            Ok(folder) => repo.remembered_in(&folder),
            Err(_) => repo,
        };
        match self.cache_base() {
            Some(folder) => repo.cached_in(&folder),
            None => repo,
        }
    }

    /// Returns the folder for repository caches, unless caching is disabled.
    fn cache_base(&self) -> Option<PathBuf> {
        let named = self.cache_dir.clone().filter(|folder| !folder.as_os_str().is_empty());
        named.or_else(cache_folder).filter(|_| !self.no_cache)
    }

    fn ask_password(&self, context: &Context, purpose: Purpose) -> Result<Password, CliError> {
        if prompt::possible(context) {
            let question = format!("Password for {}", self.url()?);
            let password = match purpose {
                Purpose::Open => prompt::password(&question)?,
                Purpose::Create => prompt::new_password(&question)?,
            };
            return Ok(Password::new(password));
        }
        Err(CliError::usage(format!("no password for {}", self.url()?))
            .hint("use --password-file FILE, $KVMB_PASSWORD_FILE or $KVMB_PASSWORD_COMMAND"))
    }
}

/// The result of checking a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reached {
    /// It was opened.
    Opened,
    /// It exists; its password is not available without asking.
    WithoutPassword,
    /// It is the default repository, which the first backup creates.
    NotCreatedYet,
}

impl Reached {
    /// Describes the result in words.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Reached::Opened => "the repository can be opened",
            Reached::WithoutPassword => "the repository was found; it was not opened, because no password was given",
            Reached::NotCreatedYet => "the first backup creates this repository",
        }
    }
}

/// The purpose of a password prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The password opens an existing repository.
    Open,
    /// The password is new and must be typed twice.
    Create,
}

/// Converts an error of the storage, with its kind.
pub(crate) fn storage_error(error: storage::Error) -> CliError {
    match error {
        storage::Error::BadUrl { .. } => CliError::usage(error.to_string()),
        other => crate::repo::Error::from(other).into(),
    }
}
