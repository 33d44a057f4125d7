//! `kvmb unlock`

use crate::cli::args::repo::RepoArgs;
use crate::cli::context::Context;
use crate::cli::failure::CliError;
use crate::cli::session::Session;
use crate::record::{Action, Record, time_value};
use crate::repo::FoundLock;
use serde_json::json;

/// Remove stale locks from a repository.
///
/// As with 'restic unlock', a lock is stale if it is older than 30 minutes, or if its process on this host has
/// ended. Other commands remove such locks themselves. A lock dated in the future, or one that cannot be read, is
/// removed only with --remove-all. Prints an 'unlock' record for each lock.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb unlock -r /backup/kvm
  kvmb unlock -r /backup/kvm --remove-all     if no other program uses the repository")]
pub(crate) struct UnlockArgs {
    /// Remove all locks, even those in use. Make sure first that no other program is using the repository.
    #[arg(long)]
    remove_all: bool,

    /// Show what would be removed without removing it.
    #[arg(short = 'n', long)]
    dry_run: bool,

    #[command(flatten)]
    repo: RepoArgs,
}

impl UnlockArgs {
    pub(crate) fn run(self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        let repo = self.repo.open(context)?;
        for lock in repo.locks(self.remove_all)? {
            context.stop.check()?;
            if lock.goes && !self.dry_run {
                repo.remove_lock(&lock.id)?;
            }
            session.done(self.record(&lock, &repo.url()));
        }
        Ok(())
    }

    fn record(&self, lock: &FoundLock, url: &str) -> Record {
        let (held, holder) = match &lock.holder {
            Ok(holder) => (format!("held {holder}"), Some(holder)),
            Err(flaw) => (format!("cannot be read: {flaw}"), None),
        };
        let reason = match (lock.goes, self.remove_all) {
            (true, true) => format!("all locks are removed; {held}"),
            (true, false) => format!("stale; {held}"),
            (false, _) if holder.is_none() => format!("{held}; use --remove-all to remove it"),
            (false, _) => format!("not stale; {held}"),
        };
        let fields = json!({ "repo": url, "host": holder.map(|holder| &holder.hostname),
            "locked_at": holder.map(|h| time_value(h.time)) });
        Record::Action(Action {
            action: "unlock".into(),
            target: lock.id.to_string(),
            changed: lock.goes,
            reason,
            dry_run: self.dry_run,
            extra: fields.as_object().cloned().unwrap_or_default(),
        })
    }
}
