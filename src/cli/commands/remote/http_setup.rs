//! `kvmb remote setup` of a REST server or a bucket: stores the login where scheduled backups find it.

use crate::atomic_file;
use crate::cli::args::repo::{RepoArgs, storage_error};
use crate::cli::commands::config_set::ConfigSetArgs;
use crate::cli::context::Context;
use crate::cli::failure::CliError;
use crate::cli::folders::{data_folder, make_data_folder};
use crate::cli::http_access::{http_context, s3_options};
use crate::cli::session::Session;
use crate::cli::ssh_access::ssh_context;
use crate::cli::terminal::{prompt, secret};
use crate::ops;
use crate::record::{Action, Extra, Record};
use crate::storage::http::{HttpContext, HttpCredentials, S3Keys};
use crate::storage::rest::RestAddress;
use crate::storage::sftp::Secret;
use crate::storage::{self, AccessContext, FileKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zeroize::Zeroizing;

/// A login that is not in the configuration yet: a name and its secret.
#[derive(Clone)]
struct NewLogin {
    /// The name of an account, or an access key ID.
    name: String,
    secret: Zeroizing<String>,
}

impl std::fmt::Debug for NewLogin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewLogin").field("name", &self.name).finish_non_exhaustive()
    }
}

impl NewLogin {
    fn secret(&self) -> Secret {
        Secret::new(self.secret.to_string())
    }
}

impl HttpCredentials for NewLogin {
    fn login(&self, _user: Option<&str>) -> Result<Option<(String, Secret)>, String> {
        Ok(Some((self.name.clone(), self.secret())))
    }

    fn s3_keys(&self) -> Result<Option<S3Keys>, String> {
        Ok(Some(S3Keys { access_key: self.name.clone(), secret_key: self.secret(), session_token: None }))
    }
}

/// Takes the login from variables or asks for it, tests it, and stores it.
pub(super) fn setup(repo: &RepoArgs, context: &Context, session: &mut Session, dry_run: bool) -> Result<(), CliError> {
    let url = repo.url()?;
    let is_bucket = url.starts_with("s3:");
    // Reports an invalid address, without repeating a password in it.
    context.storage(&url, repo)?;
    let login = match is_bucket {
        true => new_keys(context)?,
        false => new_account(context, &url)?,
    };
    try_out(context, repo, &url, login.as_ref())?;
    let mut changes = Vec::new();
    let mut kept = Action {
        action: "remote setup".into(),
        target: url.clone(),
        changed: false,
        reason: "the server accepts the configured login".into(),
        dry_run,
        extra: Extra::new(),
    };
    if let Some(login) = login {
        let file = data_folder()?.join(if is_bucket { "s3-keys" } else { "rest-password" });
        let profile = context.config().s3.profile.clone().unwrap_or_else(|| "default".to_owned());
        let text = Zeroizing::new(match is_bucket {
            true => {
                format!("[{profile}]\naws_access_key_id = {}\naws_secret_access_key = {}\n", login.name, *login.secret)
            }
            false => format!("{}\n", *login.secret),
        });
        if !dry_run {
            make_data_folder()?;
            atomic_file::write(&file, text.as_bytes(), 0o600).map_err(ops::Error::io("write", &file))?;
        }
        let path = file.display();
        match is_bucket {
            true => changes.push(format!("s3.credentials_file={path}")),
            false => changes.extend([format!("http.user={}", login.name), format!("http.password_file={path}")]),
        }
        kept.changed = true;
        kept.reason = match dry_run {
            true => format!("the server accepts the login; it would be stored in {path}"),
            false => format!("the server accepts the login; it is stored in {path}"),
        };
    }
    session.pass(&Record::Action(kept));
    let config = &context.config().http;
    let files = [
        ("http.ca_file", &repo.cacert, &config.ca_file),
        ("http.client_certificate", &repo.tls_client_cert, &config.client_certificate),
    ];
    for (key, given, known) in files {
        let Some(given) = given.as_deref().filter(|file| !file.as_os_str().is_empty()) else { continue };
        let given = absolute(given)?;
        if known.as_ref().is_none_or(|known| known.value().0 != given) {
            changes.push(format!("{key}={}", given.display()));
        }
    }
    match changes.is_empty() {
        true => Ok(()),
        false => ConfigSetArgs::of(changes, dry_run).run(context, session),
    }
}

fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    Ok(std::path::absolute(path).map_err(ops::Error::io("find", path))?)
}

/// Requests the repository's config, with this login or with the configured one.
fn try_out(context: &Context, repo: &RepoArgs, url: &str, login: Option<&NewLogin>) -> Result<(), CliError> {
    let known = http_context(context, repo);
    let http = match login {
        Some(login) => HttpContext { credentials: Arc::new(login.clone()), ..known },
        None => known,
    };
    let access = AccessContext { ssh: ssh_context(context, None, None)?, http, s3: s3_options(context, repo) };
    let storage = storage::open(url, &access).map_err(storage_error)?;
    match storage.size(FileKind::Config, "") {
        Err(error) if error.is_not_found() => {
            if let Ok(url) = shlex::try_quote(url) {
                context.hint(&format!("create the repository: kvmb init -r {url}"));
            }
            Ok(())
        }
        result => result.map(drop).map_err(storage_error),
    }
}

/// Returns the access key from variables, or asks for it if the configuration has none.
fn new_keys(context: &Context) -> Result<Option<NewLogin>, CliError> {
    let variables = (secret::variable("AWS_ACCESS_KEY_ID"), secret::variable("AWS_SECRET_ACCESS_KEY"));
    if let (Some(name), Some(key)) = variables {
        return match secret::variable("AWS_SESSION_TOKEN") {
            Some(_) => Err(CliError::usage("keys with AWS_SESSION_TOKEN expire and are not stored")
                .hint("create a separate access key for backups")),
            None => Ok(Some(NewLogin { name, secret: Zeroizing::new(key) })),
        };
    }
    if context.config().s3.credentials_file.is_some() || !prompt::possible(context) {
        return Ok(None);
    }
    let name = prompt::text("Access key ID", "", &is_something)?;
    let secret = Zeroizing::new(prompt::password("Secret access key")?);
    Ok(Some(NewLogin { name, secret }))
}

/// Returns the account of a REST server and its password, from the same sources.
fn new_account(context: &Context, url: &str) -> Result<Option<NewLogin>, CliError> {
    let config = &context.config().http;
    let of_address = RestAddress::parse(url).ok().and_then(|address| address.user);
    let configured = config.user.as_ref().map(|user| user.text().to_owned());
    let user = of_address.or_else(|| secret::variable("RESTIC_REST_USERNAME")).or(configured);
    if let (Some(name), Some(password)) = (&user, secret::variable("RESTIC_REST_PASSWORD")) {
        return Ok(Some(NewLogin { name: name.clone(), secret: Zeroizing::new(password) }));
    }
    let is_known = config.password_file.is_some() || config.password_command.is_some();
    if is_known || !prompt::possible(context) {
        return Ok(None);
    }
    let name = prompt::text("User name", user.as_deref().unwrap_or_default(), &is_something)?;
    let secret = Zeroizing::new(prompt::password(&format!("Password of {name}"))?);
    Ok(Some(NewLogin { name, secret }))
}

fn is_something(text: &str) -> Result<(), String> {
    if text.trim().is_empty() { Err("type a name".to_owned()) } else { Ok(()) }
}
