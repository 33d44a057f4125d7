//! `kvmb init`

use crate::cli::args::object_lock::LockForArgs;
use crate::cli::args::repo::{Purpose, RepoArgs};
use crate::cli::context::Context;
use crate::cli::failure::CliError;
use crate::cli::session::Session;
use crate::cli::terminal::stderr::say;
use crate::record::{Action, Record};
use crate::repo::{self, Presence, Repository};
use crate::storage::FileKind;
use serde_json::json;

/// Create a new repository.
///
/// This is a restic repository (format version 2): 'restic -r REPO' opens it with the same password. An existing
/// repository is left unchanged if the password opens it. If the creation of a repository was interrupted, it is
/// completed after a wait of ten seconds. Prints an 'action' record.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb init -r /backup/kvm --password-file /root/kvmb.pass
  kvmb init -r /backup/kvm --dry-run")]
pub(crate) struct InitArgs {
    /// Show what would be done without doing it.
    #[arg(short = 'n', long)]
    dry_run: bool,

    #[command(flatten)]
    repo: RepoArgs,

    #[command(flatten)]
    lock: LockForArgs,
}

impl InitArgs {
    pub(crate) fn run(mut self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        self.lock.apply(context, &mut self.repo, None)?;
        let storage = self.repo.settled_storage(context)?;
        let url = storage.url();
        let named = self.repo.storage(context)?.url();
        if named != url {
            say(&format!("kvmb: {named} contains other files and no repository; using {url}"));
        }
        let presence = Repository::presence(&*storage)?;
        let action = |changed: bool, reason: &str, id: Option<&str>| {
            let extra = id.map(|id| json!({ "repository_id": id })).and_then(|extra| extra.as_object().cloned());
            Record::Action(Action {
                action: "init".into(),
                target: url.clone(),
                changed,
                reason: reason.to_owned(),
                dry_run: self.dry_run,
                extra: extra.unwrap_or_default(),
            })
        };
        if presence == Presence::Repository {
            let opened = self.repo.open(context)?;
            session.done(action(false, "the repository already exists", Some(opened.id())));
        } else if self.dry_run {
            let reason = match presence {
                Presence::Unfinished { .. } => "the creation of the repository was interrupted and would be completed",
                _ => "the repository would be created",
            };
            session.done(action(true, reason, None));
        } else if self.repo.is_named() {
            let password = self.repo.password(context, Purpose::Create)?;
            let made = match Repository::create(storage, &password) {
                Err(error @ repo::Error::AlreadyExists { found: FileKind::Config, .. }) => {
                    return Err(CliError::from(error)
                        .hint("another process has just created it; use it, or choose another folder"));
                }
                Err(error @ repo::Error::AlreadyExists { .. }) => {
                    return Err(CliError::from(error).hint("choose an empty folder"));
                }
                other => other?,
            };
            session.done(action(true, "the repository was created", Some(made.id())));
        } else {
            let made = self.repo.create_default(context)?;
            session.done(action(true, "the repository was created", Some(made.id())));
        }
        Ok(())
    }
}
