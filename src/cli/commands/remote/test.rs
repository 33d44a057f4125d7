//! `kvmb remote test`

use super::http_test;
use super::server::{RemoteServer, ServerArgs};
use crate::cli::context::Context;
use crate::cli::failure::CliError;
use crate::cli::session::Session;
use crate::cli::table::bytes;
use crate::ops;
use crate::ops::remote::{ExamineFinding, ExamineStep, ExamineTarget, FolderKind, Speed, examine, refused_key};
use crate::record::{Check, Extra, Status};
use crate::storage::sftp::authenticate::Login;
use crate::units::Size;
use serde_json::json;

/// Check whether a backup to the server would work.
///
/// Tests the connection, host key, login, folder, free space, speed and clock. Prints a 'check' record for each
/// step. After a critical step, the remaining steps are skipped. The test writes and removes some files next to the
/// repository. Exits with code 1 if a step is critical.
///
/// For a REST server or a bucket, tests the connection, the certificate, the login and whether there is a repository,
/// and writes nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb remote test -r sftp://kvm@backup.example.com//srv/kvm
  kvmb remote test -r sftp://kvm@backup.example.com//srv/kvm --accept-host-key SHA256:Xk…
  kvmb remote test -r sftp:backup:kvm --size 2G
  kvmb remote test -r rest:https://backup.example.com:8000/kvm/
  kvmb remote test -r sftp:backup:kvm --json | jq -r 'select(.status != \"ok\") | .hint'")]
pub(crate) struct TestArgs {
    #[command(flatten)]
    server: ServerArgs,

    /// Amount of data to send for the speed test, over all connections as in a backup.
    ///
    /// Default: one connection is measured for some seconds. The server needs this much free space during the test.
    #[arg(long, value_name = "SIZE")]
    size: Option<Size>,
}

/// Less free space than this is a warning.
const LITTLE_ROOM: u64 = 5 << 30;

/// A clock that is off by more than this makes locks look older or younger than they are.
const CLOCK_SECONDS: u64 = 60;

impl TestArgs {
    pub(crate) fn run(self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        if let Some(repo) = self.server.over_http(context)? {
            return http_test::test(&repo, context, session);
        }
        let RemoteServer { target, ssh_context, below } = self.server.open(context)?;
        let url = target.to_string();
        let mut last = None;
        let subject = ExamineTarget { target: &target, below, speed_bytes: self.size.map(|size| size.0) };
        examine(subject, &ssh_context, &mut |step, result| {
            last = Some((step, result.is_ok()));
            let check = match result {
                Ok(finding) => judge(step, finding, &url),
                Err(error) => refused(step, error, &url),
            };
            session.check(check);
        })?;
        if let Some((failed, false)) = last {
            for step in ExamineStep::ALL.into_iter().skip_while(|step| *step != failed).skip(1) {
                session.check(Check::new(word(step), url.clone(), Status::Unknown, "not tried"));
            }
        }
        Ok(())
    }
}

fn word(step: ExamineStep) -> &'static str {
    match step {
        ExamineStep::Reach => "reach",
        ExamineStep::HostKey => "host_key",
        ExamineStep::Login => "login",
        ExamineStep::Path => "path",
        ExamineStep::Space => "space",
        ExamineStep::Speed => "speed",
        ExamineStep::Clock => "clock",
    }
}

/// Returns the check of a failed step, with the host key if that was not accepted.
fn refused(step: ExamineStep, error: ops::Error, url: &str) -> Check {
    let key = refused_key(&error).map(|key| host_key_fields(key.state, key.algorithm, key.fingerprint));
    let error = CliError::from(error);
    let mut check = Check::new(word(step), url, Status::Critical, error.message);
    check.extra.extend(key.unwrap_or_default());
    with_hint(check, error.hint)
}

fn host_key_fields(state: &str, algorithm: &str, fingerprint: &str) -> Extra {
    let fields = json!({ "host_key_state": state, "algorithm": algorithm, "fingerprint": fingerprint });
    fields.as_object().cloned().unwrap_or_default()
}

fn with_hint(check: Check, hint: Option<String>) -> Check {
    match hint {
        Some(hint) => check.hint(hint),
        None => check,
    }
}

fn judge(step: ExamineStep, finding: ExamineFinding, url: &str) -> Check {
    let ok = |detail: String| Check::new(word(step), url, Status::Ok, detail);
    let warning = |detail: String, hint: &str| Check::new(word(step), url, Status::Warning, detail).hint(hint);
    match finding {
        ExamineFinding::Reached { address: Some(address), took } => {
            ok(format!("{address} responds; connecting takes {} ms", took.as_millis()))
        }
        ExamineFinding::Reached { address: None, .. } => ok("the server responds".to_owned()),
        ExamineFinding::HostKey { algorithm, fingerprint } => {
            let mut check = ok(format!("known: {algorithm} {fingerprint}"));
            check.extra.extend(host_key_fields("known", &algorithm, &fingerprint));
            check
        }
        ExamineFinding::LoggedIn { account, by } => {
            let needs_somebody = matches!(by, Login::Password | Login::Questions | Login::Key(_, true));
            let how = match by {
                Login::Nothing => "without authentication".to_owned(),
                Login::Agent(_) => "with a key from the agent".to_owned(),
                Login::Key(file, false) => format!("with the key {}", file.display()),
                Login::Key(file, true) => format!("with the key {} and its passphrase", file.display()),
                Login::Questions => "with keyboard-interactive authentication".to_owned(),
                Login::Password => "with the password".to_owned(),
            };
            match needs_somebody {
                true => {
                    warning(format!("logged in as {account} {how}"), &format!("kvmb remote setup -r {}", quoted(url)))
                }
                false => ok(format!("logged in as {account} {how}")),
            }
        }
        ExamineFinding::Path { path, place, removable, beside } => {
            let beside =
                beside.map(|folder| format!("{folder} contains other files, so the repository uses a subfolder; "));
            let beside = beside.unwrap_or_default();
            match (place, removable) {
                (FolderKind::Missing, _) => warning(
                    format!("{beside}the folder does not exist yet; {path} is writable"),
                    &format!("kvmb init -r {}", quoted(url)),
                ),
                (FolderKind::Folder, true) => warning(
                    format!("{beside}{path} is writable and does not contain a repository yet"),
                    &format!("kvmb init -r {}", quoted(url)),
                ),
                (_, false) => warning(
                    format!("{beside}{path} is writable, but files cannot be removed"),
                    "an append-only server protects the backups; run 'kvmb prune' on the server",
                ),
                (FolderKind::Repository, true) => ok(format!("{beside}{path} contains a repository and is writable")),
            }
        }
        ExamineFinding::Space { free_bytes: None } => {
            Check::new(word(step), url, Status::Unknown, "the server does not report its free space")
        }
        ExamineFinding::Space { free_bytes: Some(free) } => {
            let mut check = match free < LITTLE_ROOM {
                true => warning(format!("only {} free", bytes(free)), "free some space on the server"),
                false => ok(format!("{} free", bytes(free))),
            };
            check.extra.insert("free_bytes".into(), json!(free));
            check
        }
        ExamineFinding::Speed(Speed { connections, upload, download }) => {
            let carrier = match connections {
                1 => "one connection:".to_owned(),
                more => format!("{more} connections:"),
            };
            let detail = format!("{carrier} upload {}/s, download {}/s", bytes(upload), bytes(download));
            let mut check = ok(detail);
            check.extra.insert("upload_bytes_per_second".into(), json!(upload));
            check.extra.insert("download_bytes_per_second".into(), json!(download));
            check
        }
        ExamineFinding::Clock { ahead_seconds } => {
            let side = if ahead_seconds < 0 { "behind" } else { "ahead" };
            let off = ahead_seconds.unsigned_abs();
            let mut check = match off > CLOCK_SECONDS {
                true => warning(
                    format!("the clock of the server is {off} s {side}"),
                    "synchronize both clocks (NTP); the age of locks depends on them",
                ),
                false => ok("the clock of the server is correct".to_owned()),
            };
            check.extra.insert("ahead_seconds".into(), json!(ahead_seconds));
            check
        }
    }
}

fn quoted(url: &str) -> String {
    shlex::try_quote(url).map(Into::into).unwrap_or_else(|_| url.to_owned())
}
