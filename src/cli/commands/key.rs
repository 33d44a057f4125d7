//! `kvmb key`

use crate::atomic_file;
use crate::cli::args::repo::{DefaultRepo, Purpose, RepoArgs};
use crate::cli::context::Context;
use crate::cli::failure::CliError;
use crate::cli::session::Session;
use crate::cli::terminal::prompt;
use crate::cli::terminal::secret;
use crate::failpoint::{self, Failpoint};
use crate::ops::{self, Error};
use crate::record::{Action, Check, Record, Status};
use crate::repo::{LockMode, Password};
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Export the repository key, or add a password.
///
/// Without a key a repository cannot be opened. Keep a copy of the key away from the host that is backed up.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb key export /mnt/usb/kvmb.key
  kvmb key add -r /backup/kvm
  kvmb key add -r /backup/kvm --new-password-file /root/second.pass")]
pub(crate) struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Debug, clap::Subcommand)]
enum KeyCommand {
    Export(ExportArgs),
    Add(AddArgs),
}

/// Write the repository password to a file, to be kept elsewhere.
///
/// The file has mode 0600. Prints an 'action' record.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb key export /mnt/usb/kvmb.key
  kvmb key export kvmb.key -r /backup/kvm --dry-run")]
struct ExportArgs {
    /// File to create. It must not exist.
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Show what would be done without doing it.
    #[arg(short = 'n', long)]
    dry_run: bool,

    #[command(flatten)]
    repo: RepoArgs,
}

/// Add a password to the repository.
///
/// Prints an 'action' record.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb key add -r /backup/kvm
  kvmb key add -r /backup/kvm --new-password-file /root/second.pass")]
struct AddArgs {
    /// File with the new password. Default: prompt on a terminal.
    #[arg(long, value_name = "FILE")]
    new_password_file: Option<PathBuf>,

    /// Show what would be done without doing it.
    #[arg(short = 'n', long)]
    dry_run: bool,

    #[command(flatten)]
    repo: RepoArgs,
}

impl KeyArgs {
    pub(crate) fn run(self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        match self.command {
            KeyCommand::Export(args) => args.run(context, session),
            KeyCommand::Add(args) => args.run(context, session),
        }
    }
}

/// Returns whether the key that kvmb generated is also kept elsewhere, and a check about it: the key must not exist
/// only on the host whose backups it opens. None if kvmb has not generated a key.
pub(crate) fn kept_elsewhere() -> Result<Option<(bool, Check)>, CliError> {
    let default = DefaultRepo::locate()?;
    if !default.exists() {
        return Ok(None);
    }
    let folder = default.folder.to_string_lossy().into_owned();
    let kept = default.is_key_kept_elsewhere();
    let check = match kept {
        true => Check::new("key", folder, Status::Ok, "the key was exported, or a second password was added"),
        false => {
            Check::new("key", folder, Status::Warning, "the key exists only on this host and would be lost with it")
                .hint("kvmb key export /mnt/usb/kvmb.key")
        }
    };
    Ok(Some((kept, check)))
}

/// Records that the default repository's key is also kept elsewhere.
fn note_exported(context: &Context, repo: &RepoArgs) -> Result<(), CliError> {
    let default = DefaultRepo::locate()?;
    if Path::new(&repo.storage(context)?.url()) == default.folder {
        let mark = default.exported_mark();
        fs::write(&mark, "").map_err(Error::io("write", &mark))?;
    }
    Ok(())
}

/// Whether a regular file that nobody else can read has exactly this content.
fn holds(file: &Path, contents: &[u8]) -> bool {
    let is_private = fs::symlink_metadata(file).is_ok_and(|metadata| {
        metadata.is_file() && metadata.permissions().mode() & 0o077 == 0 && metadata.len() == contents.len() as u64
    });
    is_private && fs::read(file).is_ok_and(|found| zeroize::Zeroizing::new(found).as_slice() == contents)
}

impl ExportArgs {
    fn run(self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        self.repo.require_created()?;
        let password = self.repo.password(context, Purpose::Open)?;
        // Only a password that opens the repository is worth exporting.
        let opened = crate::repo::Repository::open(self.repo.storage(context)?, &password)?;
        let exists =
            || CliError::from(Error::Exists { path: self.file.clone() }).hint("choose a file that does not exist");
        let line = zeroize::Zeroizing::new([password.as_bytes(), b"\n"].concat());
        // The previous export may have been interrupted before it was recorded; complete it now.
        let is_there = holds(&self.file, &line);
        if self.dry_run {
            if self.file.exists() && !is_there {
                return Err(exists());
            }
        } else {
            match atomic_file::create(&self.file, &line, 0o600) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    if !is_there {
                        return Err(exists());
                    }
                }
                other => other.map_err(Error::io("create", &self.file))?,
            }
            failpoint::hit(Failpoint::KeyExported);
            note_exported(context, &self.repo)?;
        }
        session.done(Record::Action(Action {
            action: "key".into(),
            target: self.file.to_string_lossy().into_owned(),
            changed: !is_there,
            reason: match (is_there, self.dry_run) {
                (true, _) => "already contains the repository password; keep it away from this host",
                (false, true) => "the repository password would be written",
                (false, false) => "contains the repository password; keep it away from this host",
            }
            .into(),
            dry_run: self.dry_run,
            extra: json!({ "repo": opened.url() }).as_object().cloned().unwrap_or_default(),
        }));
        Ok(())
    }
}

impl AddArgs {
    fn run(self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        let repo = self.repo.open(context)?;
        let new = match &self.new_password_file {
            Some(file) => secret::from_file(file, context.password_limit())?,
            None if prompt::possible(context) => Password::new(prompt::new_password("New password")?),
            None => {
                return Err(CliError::usage("no new password").hint("use --new-password-file FILE"));
            }
        };
        let mut extra = json!({});
        let known = crate::repo::Repository::open(self.repo.storage(context)?, &new).is_ok();
        if !known && !self.dry_run {
            let permit = ops::repo_lock::lock(&repo, LockMode::Shared, &context.stop)?.permit();
            extra = json!({ "key": repo.add_key(&new, &permit)?.to_string() });
            failpoint::hit(Failpoint::KeyAdded);
            note_exported(context, &self.repo)?;
        }
        session.done(Record::Action(Action {
            action: "key".into(),
            target: repo.url(),
            changed: !known,
            reason: match (known, self.dry_run) {
                (true, _) => "this password already opens the repository",
                (false, true) => "a password would be added",
                (false, false) => "a password was added",
            }
            .into(),
            dry_run: self.dry_run,
            extra: extra.as_object().cloned().unwrap_or_default(),
        }));
        Ok(())
    }
}
