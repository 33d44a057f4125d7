//! `kvmb remote setup`

use super::http_setup;
use super::server::{RemoteServer, ServerArgs};
use crate::cli::context::Context;
use crate::cli::failure::CliError;
use crate::cli::session::Session;
use crate::ops::inventory::host_name;
use crate::ops::remote::{SetupChange, setup};
use crate::record::{Action, Record};
use serde_json::{Map, Value, json};

/// Set up passwordless access to the server, so that scheduled backups can log in.
///
/// Asks you to compare the host key of the server and, once, for the password of the account (or uses any key that
/// ssh would use). Creates a key for kvmb and adds it to authorized_keys of the account, restricted to SFTP. Can be
/// run again: completed steps are skipped.
///
/// For a REST server or a bucket, takes the login from the variables (AWS_ACCESS_KEY_ID, RESTIC_REST_USERNAME and so
/// on) or asks for it, tests it, and stores it in a private file. The configuration then refers to this file, and to
/// those of --cacert and --tls-client-cert.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb remote setup -r sftp://kvm@backup.example.com//srv/kvm
  kvmb remote setup -r sftp://kvm@backup//srv/kvm --accept-host-key SHA256:… --ssh-password-file F
  kvmb remote setup -r sftp://kvm@backup.example.com//srv/kvm --dry-run
  kvmb remote setup -r rest:https://backup.example.com:8000/kvm/ --cacert /root/backup-ca.pem")]
pub(crate) struct SetupArgs {
    /// Show what would be done without doing it.
    #[arg(short = 'n', long)]
    dry_run: bool,

    #[command(flatten)]
    server: ServerArgs,
}

impl SetupArgs {
    pub(crate) fn run(self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        if let Some(repo) = self.server.over_http(context)? {
            return http_setup::setup(&repo, context, session, self.dry_run);
        }
        let RemoteServer { target, ssh_context, .. } = self.server.open(context)?;
        let comment = format!("kvmb@{}", host_name());
        setup(&target, &ssh_context, &comment, self.dry_run, &mut |change| {
            // Only all steps together count as done.
            session.pass(&Record::Action(action(change, self.dry_run)));
        })?;
        Ok(())
    }
}

fn action(change: SetupChange, dry_run: bool) -> Action {
    let was = |past: &str, would: &str| if dry_run { would.to_owned() } else { past.to_owned() };
    let (target, changed, reason, extra) = match change {
        SetupChange::HostKey { server, algorithm, fingerprint, noted_in } => {
            let reason = match &noted_in {
                Some(file) => {
                    format!("{} {}", was("the host key was added to", "the host key would be added to"), file.display())
                }
                None => "the host key is known".to_owned(),
            };
            (server, noted_in.is_some(), reason, json!({ "algorithm": algorithm, "fingerprint": fingerprint }))
        }
        SetupChange::OwnKey { path, line, made } => {
            let reason = match made {
                true => was("the key was created", "the key would be created"),
                false => "the key already exists".to_owned(),
            };
            (path.to_string_lossy().into_owned(), made, reason, json!({ "authorized_keys_line": line }))
        }
        SetupChange::Authorized { account, added } => {
            let reason = match added {
                true => was(
                    "the key was added to authorized_keys, restricted to SFTP",
                    "the key would be added to authorized_keys, restricted to SFTP",
                ),
                false => "the key is accepted".to_owned(),
            };
            (account, added, reason, json!({}))
        }
    };
    let extra: Map<String, Value> = extra.as_object().cloned().unwrap_or_default();
    let extra = extra.into_iter().filter(|(_, value)| !value.is_null()).collect();
    Action { action: "remote setup".into(), target, changed, reason, dry_run, extra }
}
