//! `kvmb config set`

use crate::atomic_file::{self, folder_of};
use crate::cli::context::Context;
use crate::cli::failure::{CliError, Code, of_config};
use crate::cli::folders;
use crate::cli::session::Session;
use crate::config::document::{self, DocumentError};
use crate::config::edit::{self, Change, ChangeError};
use crate::config::{self, Loaded, file::value_of};
use crate::record::{Action, Record};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use similar::TextDiff;
use std::fs::{self, DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// How long another change of the file may take.
const LOCK_LIMIT: Duration = Duration::from_secs(10);

/// The text of a new configuration file.
const EMPTY: &str = "{}\n";

/// Change keys of the configuration file.
///
/// The file is checked before it is replaced, and replaced as a whole. Comments, order and white space of all other
/// keys stay as they are. Without a configuration file, one is created. Prints an action record with the difference.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb config set backup_host=backup.example.com backup_user=kvm backup_path=/backup/kvm
  kvmb config set -n selected_vms.vm1=true 'selected_vms.web*=true'
  kvmb config set retention.local.keep_daily=14
  kvmb config set --unset limit_upload")]
pub(crate) struct ConfigSetArgs {
    /// The keys and their new values. Names of keys are those of 'kvmb config show'; lists are written as JSON.
    #[arg(value_name = "KEY=VALUE", required_unless_present = "unset")]
    changes: Vec<String>,

    /// Remove a key, so that its default applies (repeatable).
    #[arg(long, value_name = "KEY")]
    unset: Vec<String>,

    /// Change the file only if this is its SHA-256; empty if it must not exist.
    #[arg(long, value_name = "SHA256")]
    if_sha256: Option<String>,

    /// Show the difference without writing the file.
    #[arg(short = 'n', long)]
    dry_run: bool,
}

impl ConfigSetArgs {
    /// Returns the arguments for `KEY=VALUE` changes by another command.
    pub(super) fn of(changes: Vec<String>, dry_run: bool) -> ConfigSetArgs {
        ConfigSetArgs { changes, unset: Vec::new(), if_sha256: None, dry_run }
    }

    pub(crate) fn run(self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        let mut changes = Vec::new();
        for text in &self.changes {
            changes.push(Change::parse(text).map_err(explained)?);
        }
        for key in &self.unset {
            changes.push(Change::removal(key).map_err(explained)?);
        }
        let loaded = match context.global.load_config() {
            Ok(loaded) => loaded,
            Err(config::Error::Missing { path }) => Loaded { file: Some(path), ..Loaded::default() },
            Err(error) => return fail(session, of_config(error)),
        };
        let path = match &loaded.file {
            // Replace the file itself, not a symbolic link to it.
            Some(path) => fs::canonicalize(path).unwrap_or_else(|_| path.clone()),
            None => place_of_new()?,
        };
        let cannot = |verb: &str| {
            let path = path.display().to_string();
            let verb = verb.to_owned();
            move |error: std::io::Error| of_io(&verb, &path, &error)
        };
        if !folder_of(&path).exists()
            && let Err(errors) = changed_text(&path, EMPTY, &changes)
        {
            // The lock would create the folder.
            return fail(session, errors);
        }
        let _lock = match self.dry_run {
            true => None,
            false => Some(lock_folder(&path).map_err(cannot("lock"))?),
        };
        let before = match atomic_file::read_to_string(&path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(cannot("read")(error)),
        };
        let sum = before.as_ref().map(|text| hex::encode(Sha256::digest(text)));
        if self.if_sha256.as_deref().is_some_and(|wanted| wanted != sum.as_deref().unwrap_or_default()) {
            let message = format!("{} has been changed by someone else", path.display());
            return Err(CliError::new(Code::Changed, message).hint("check the file, then try again"));
        }
        let old = before.clone().unwrap_or_else(|| EMPTY.to_owned());
        let (new, said) = match changed_text(&path, &old, &changes) {
            Ok(changed) => changed,
            Err(errors) => return fail(session, errors),
        };
        let changed = before.is_none() || old != new;
        if changed && !self.dry_run {
            // Nobody else may read a file with secrets.
            let replaced = fs::metadata(&path).ok();
            let mode = replaced.as_ref().map_or(0o600, |found| found.mode() & 0o7777);
            let has_secret = config::SECRET_KEYS.iter().any(|key| value_of(&said, key).is_some());
            let mode = if has_secret { mode & !0o004 } else { mode };
            let written = match &replaced {
                Some(replaced) => atomic_file::replace(&path, new.as_bytes(), mode, replaced),
                None => atomic_file::write(&path, new.as_bytes(), mode),
            };
            written.map_err(cannot("write"))?;
        }
        let shown_old = if before.is_some() { edit::without_secrets(&old) } else { String::new() };
        let diff = difference(&path, &shown_old, &edit::without_secrets(&new));
        let document: Value = serde_json::from_str(&old).unwrap_or_default();
        let listed: Vec<Value> = changes.iter().map(|change| listed(change, &document)).collect();
        session.say_to_people(&diff);
        let extra = json!({ "changes": listed, "diff": diff, "file_sha256": sum });
        session.done(Record::Action(Action {
            action: "config set".into(),
            target: path.display().to_string(),
            changed,
            reason: reason(&changes, before.is_some(), changed),
            dry_run: self.dry_run,
            extra: extra.as_object().cloned().unwrap_or_default(),
        }));
        Ok(())
    }
}

/// Returns the configuration with these changes, as text and as a document, or all of its errors.
fn changed_text(path: &Path, old: &str, changes: &[Change]) -> Result<(String, Value), Vec<CliError>> {
    let new = edit::apply(old, changes).map_err(|error| vec![explained(error)])?;
    match document::read(&new) {
        Ok((_, said)) => Ok((new, said)),
        Err(refusal) => Err(of_config(refused(path, refusal))),
    }
}

fn reason(changes: &[Change], exists: bool, changed: bool) -> String {
    let keys: Vec<String> = changes.iter().map(Change::key).collect();
    match (exists, changed) {
        (_, false) => "the file already has this value".into(),
        (true, true) => format!("new value of {}", keys.join(", ")),
        (false, true) => format!("new file with {}", keys.join(", ")),
    }
}

fn listed(change: &Change, document: &Value) -> Value {
    let before = change.path.iter().try_fold(document, |value, step| value.get(step));
    let shown = |value: Option<&Value>| match value {
        Some(_) if change.is_secret() => json!("(hidden)"),
        value => value.cloned().unwrap_or_default(),
    };
    json!({ "key": change.key(), "before": shown(before), "after": shown(change.value.as_ref()) })
}

fn difference(path: &Path, old: &str, new: &str) -> String {
    let name = path.display().to_string();
    TextDiff::from_lines(old, new).unified_diff().context_radius(3).header(&name, &name).to_string()
}

/// Locks the folder, to serialise concurrent changes.
fn lock_folder(path: &Path) -> std::io::Result<File> {
    let folder = folder_of(path);
    DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    let lock = File::open(folder)?;
    let end = Instant::now() + LOCK_LIMIT;
    loop {
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::AGAIN) if Instant::now() < end => thread::sleep(Duration::from_millis(20)),
            Err(Errno::AGAIN) => return Err(std::io::Error::other("another program has locked it")),
            locked => return locked.map(|()| lock).map_err(Into::into),
        }
    }
}

/// Returns the path for a new configuration file.
fn place_of_new() -> Result<PathBuf, CliError> {
    if rustix::process::geteuid().is_root() {
        return Ok(config::file::OF_HOST.into());
    }
    // An older file in the home folder would have been found.
    let (_, configurations) = folders::of_configurations();
    let configurations =
        configurations.ok_or_else(|| CliError::usage("there is no home folder").hint("use --config"))?;
    Ok(configurations.join(config::file::OF_USER_XDG))
}

fn refused(path: &Path, refusal: DocumentError) -> config::Error {
    let path = path.to_owned();
    match refusal {
        DocumentError::NotJson(reason) => config::Error::NotJson { path, reason },
        DocumentError::Faults(faults) => config::Error::Faults { path, faults },
    }
}

/// Reports every error of the configuration.
fn fail(session: &mut Session, errors: Vec<CliError>) -> Result<(), CliError> {
    errors.into_iter().for_each(|error| session.fail(Default::default(), error));
    Ok(())
}

fn of_io(verb: &str, path: &str, error: &std::io::Error) -> CliError {
    let message = format!("cannot {verb} configuration file {path}: {error}");
    match error.kind() {
        ErrorKind::PermissionDenied => CliError::new(Code::Permission, message).hint("run the command as its owner"),
        ErrorKind::StorageFull => CliError::new(Code::NoSpace, message).hint("free some space"),
        _ => CliError::failed(message),
    }
}

fn explained(error: ChangeError) -> CliError {
    let hint = match &error {
        ChangeError::UnknownKey { nearest: Some(nearest), .. } => format!("did you mean {nearest}?"),
        ChangeError::UnknownKey { .. } => "run 'kvmb config show' for a list of all keys".into(),
        ChangeError::NoValue { .. } => "use --unset to remove a key".into(),
        _ => "run 'kvmb config schema' for a description of all keys".into(),
    };
    CliError::usage(error.to_string()).hint(hint)
}
