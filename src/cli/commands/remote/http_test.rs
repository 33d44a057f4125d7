//! `kvmb remote test` of an HTTP server.

use crate::cli::args::repo::{RepoArgs, storage_error};
use crate::cli::context::Context;
use crate::cli::failure::CliError;
use crate::cli::session::Session;
use crate::record::{Check, Status};
use crate::storage::{self, FileKind, Storage, http};
use crate::units::ShortDuration;
use std::time::Instant;

/// The steps of the test, in order.
const STEPS: [&str; 4] = ["reach", "certificate", "login", "path"];

/// Requests the repository's config, and reports the result of each step. Writes nothing, because an append-only server
/// would keep it.
pub(super) fn test(repo: &RepoArgs, context: &Context, session: &mut Session) -> Result<(), CliError> {
    let storage = context.storage(&repo.url()?, repo)?;
    let (url, begun) = (storage.url(), Instant::now());
    let asked = storage.size(FileKind::Config, "");
    let took = begun.elapsed();
    let failed = match &asked {
        Ok(_) => None,
        Err(error) if error.is_not_found() => None,
        Err(storage::Error::Interrupted) => return Err(storage_error(storage::Error::Interrupted)),
        Err(error) => Some(step_of(error)),
    };
    let check = |step: usize, status, detail: String| Check::new(STEPS[step], url.clone(), status, detail);
    let passed = failed.unwrap_or(STEPS.len());
    for (step, name) in STEPS.into_iter().enumerate().take(passed) {
        session.check(match name {
            "reach" => check(step, Status::Ok, format!("the server responds after {} ms", took.as_millis())),
            "certificate" => of_encryption(&url),
            "login" => check(step, Status::Ok, "the server accepts the login".to_owned()),
            _ if asked.is_ok() => check(step, Status::Ok, "the repository exists".to_owned()),
            _ => {
                let hint = shlex::try_quote(&url).map(|url| format!("kvmb init -r {url}")).unwrap_or_default();
                check(step, Status::Warning, "there is no repository yet".to_owned()).hint(hint)
            }
        });
    }
    if failed.is_none() && url.starts_with("s3:") {
        session.check(of_object_lock(&*storage, &url)?);
    }
    if let (Some(failed), Err(error)) = (failed, asked) {
        let error = storage_error(error);
        let critical = check(failed, Status::Critical, error.message);
        session.check(match error.hint {
            Some(hint) => critical.hint(hint),
            None => critical,
        });
        for step in failed + 1..STEPS.len() {
            session.check(check(step, Status::Unknown, "not tried".to_owned()));
        }
    }
    Ok(())
}

/// Checks whether the connection is encrypted.
fn of_encryption(url: &str) -> Check {
    let is_here = ["://127.", "://localhost", "://[::1]", "+unix://"].iter().any(|place| url.contains(place));
    match (url.contains(":https://"), is_here) {
        (true, _) => Check::new("certificate", url, Status::Ok, "the certificate of the server is valid"),
        (false, true) => Check::new("certificate", url, Status::Ok, "not encrypted, on this host"),
        (false, false) => Check::new(
            "certificate",
            url,
            Status::Warning,
            "not encrypted: anyone on the network path can read the login",
        )
        .hint("use an address with https://"),
    }
}

/// Checks whether the bucket supports object locks, and whether they are configured.
pub(in crate::cli::commands) fn of_object_lock(storage: &dyn Storage, url: &str) -> Result<Check, CliError> {
    let check = |status, detail: String| Check::new("object_lock", url, status, detail);
    Ok(match (storage.can_lock(), storage.lock_period()) {
        (Err(storage::Error::Interrupted), _) => return Err(storage_error(storage::Error::Interrupted)),
        (Err(error), _) => {
            let CliError { message, hint, .. } = storage_error(error);
            Check { hint, ..check(Status::Unknown, message) }
        }
        (Ok(true), Some(period)) => check(Status::Ok, format!("new files are locked for {}", ShortDuration(period))),
        (Ok(true), None) => check(Status::Ok, "the bucket supports Object Lock (--lock-for)".to_owned()),
        (Ok(false), None) => check(Status::Ok, "not configured; the bucket has no Object Lock".to_owned()),
        (Ok(false), Some(_)) => {
            let detail = "s3.lock_for is set, and the bucket has no Object Lock";
            check(Status::Critical, detail.to_owned())
                .hint("enable versioning and Object Lock for the bucket, or use a new bucket: kvmb init --lock-for 30d")
        }
    })
}

/// Returns the step at which an error ends the test.
fn step_of(error: &storage::Error) -> usize {
    use http::Error;
    let storage::Error::Http { source, .. } = error else { return STEPS.len() - 1 };
    match **source {
        Error::Certificate { .. } => 1,
        Error::Secret(_)
        | Error::Login { .. }
        | Error::ClientCertificate { .. }
        | Error::NoKeys { .. }
        | Error::Keys { .. }
        | Error::Clock { .. } => 2,
        Error::Denied { .. } | Error::Refused { .. } => 3,
        _ => 0,
    }
}
