//! Settings and credentials for the storages over HTTP.

use crate::cli::args::repo::RepoArgs;
use crate::cli::aws_profile;
use crate::cli::context::Context;
use crate::cli::failure::CliError;
use crate::cli::folders;
use crate::cli::terminal::secret;
use crate::config::{Http, S3, S3Lookup};
use crate::repo::Password;
use crate::storage::http::{HttpContext, HttpCredentials, HttpProxies, HttpTimeouts, ProxyVariable, S3Keys};
use crate::storage::s3::{BucketLookup, S3Options, ServerSideEncryption};
use crate::storage::sftp::Secret;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Returns the settings with which commands access HTTP servers.
pub(crate) fn http_context(context: &Context, repo: &RepoArgs) -> HttpContext {
    let given = |file: &Option<PathBuf>| file.clone().filter(|file| !file.as_os_str().is_empty());
    let config = context.config().http.clone();
    let mut timeouts = HttpTimeouts::default();
    if let Some(timeout) = &config.timeout {
        timeouts.silence = timeout.value().0;
    }
    HttpContext {
        ca_file: given(&repo.cacert),
        client_certificate: given(&repo.tls_client_cert),
        stop: context.stop.flag(),
        credentials: Arc::new(GivenCredentials {
            config,
            s3: context.config().s3.clone(),
            limit: context.password_limit(),
        }),
        timeouts,
        proxies: http_proxies(),
        ..HttpContext::default()
    }
}

/// Returns the proxy variables, which exist in upper and lower case.
fn http_proxies() -> HttpProxies {
    let named = |name: String| Some(ProxyVariable { value: secret::variable(&name)?, name });
    let either = |name: &str| named(name.to_owned()).or_else(|| named(name.to_ascii_lowercase()));
    HttpProxies {
        https: either("HTTPS_PROXY").or_else(|| either("ALL_PROXY")),
        http: either("HTTP_PROXY").or_else(|| either("ALL_PROXY")),
        exceptions: either("NO_PROXY").map(|variable| variable.value).unwrap_or_default(),
    }
}

/// Returns the settings with which commands access buckets.
pub(crate) fn s3_options(context: &Context, repo: &RepoArgs) -> S3Options {
    let config = &context.config().s3;
    let text = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
    let variable = || secret::variable("AWS_REGION").or_else(|| secret::variable("AWS_DEFAULT_REGION"));
    S3Options {
        region: variable().or_else(|| text(&config.region)),
        lookup: match config.bucket_lookup {
            S3Lookup::Auto => BucketLookup::Auto,
            S3Lookup::Dns => BucketLookup::Dns,
            S3Lookup::Path => BucketLookup::Path,
        },
        storage_class: config.storage_class.as_ref().map(|class| class.text().to_owned()),
        encryption: config.encryption.as_ref().map(|encryption| match encryption.text() {
            "AES256" => ServerSideEncryption::Aes256,
            kms => ServerSideEncryption::Kms(kms.strip_prefix("aws:kms:").map(str::to_owned)),
        }),
        lock_for: repo.lock_for.or_else(|| config.lock_for.as_ref().map(|period| period.value().0)),
        ..S3Options::default()
    }
}

/// Credentials from variables, files and commands: restic's variables first, then the configuration.
#[derive(Debug)]
struct GivenCredentials {
    config: Http,
    s3: S3,
    /// Time limit for reading a secret from a command or a file.
    limit: Duration,
}

impl GivenCredentials {
    fn password(&self) -> Result<Option<Password>, CliError> {
        if let Some(file) = secret::variable("KVMB_REST_PASSWORD_FILE") {
            return secret::line_from_file(&PathBuf::from(file), self.limit).map(Some);
        }
        if let Some(command) = secret::variable("KVMB_REST_PASSWORD_COMMAND") {
            return secret::line_from_command(&command, "$KVMB_REST_PASSWORD_COMMAND", self.limit).map(Some);
        }
        if let Some(password) = secret::variable("RESTIC_REST_PASSWORD") {
            return Ok(Some(Password::new(password)));
        }
        if let Some(file) = &self.config.password_file {
            return secret::line_from_file(&file.value().0, self.limit).map(Some);
        }
        let origin = "http.password_command of the configuration";
        let command = self.config.password_command.as_ref();
        command.map(|command| secret::line_from_command(command.text(), origin, self.limit)).transpose()
    }
}

impl HttpCredentials for GivenCredentials {
    fn login(&self, user: Option<&str>) -> Result<Option<(String, Secret)>, String> {
        let configured = || self.config.user.as_ref().map(|user| user.text().to_owned());
        let user = user.map(str::to_owned).or_else(|| secret::variable("RESTIC_REST_USERNAME")).or_else(configured);
        let password = self.password().map_err(|error| error.message)?;
        let (Some(user), password) = (user, password) else { return Ok(None) };
        let password = password.map(|password| String::from_utf8_lossy(password.as_bytes()).into_owned());
        Ok(Some((user, Secret::new(password.unwrap_or_default()))))
    }

    fn s3_keys(&self) -> Result<Option<S3Keys>, String> {
        let (access, secret_key) = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY");
        match (secret::variable(access), secret::variable(secret_key)) {
            (Some(access_key), Some(key)) => {
                let session_token = secret::variable("AWS_SESSION_TOKEN").map(Secret::new);
                return Ok(Some(S3Keys { access_key, secret_key: Secret::new(key), session_token }));
            }
            (Some(_), None) => return Err(format!("{access} is set, but {secret_key} is not")),
            (None, Some(_)) => return Err(format!("{secret_key} is set, but {access} is not")),
            (None, None) => {}
        }
        let profile = secret::variable("AWS_PROFILE").or_else(|| self.s3.profile.clone());
        let named = secret::variable("AWS_SHARED_CREDENTIALS_FILE").map(PathBuf::from);
        let named = named.or_else(|| self.s3.credentials_file.as_ref().map(|file| file.value().0.clone()));
        let is_wanted = named.is_some() || profile.is_some();
        let usual = || folders::home().map(|home| home.join(".aws/credentials"));
        let Some(file) = named.or_else(usual).filter(|file| is_wanted || file.exists()) else { return Ok(None) };
        let text = secret::from_file(&file, self.limit).map_err(|error| error.message)?;
        let profile = profile.as_deref().unwrap_or("default");
        let keys = aws_profile::keys_of(&String::from_utf8_lossy(text.as_bytes()), profile);
        keys.map(Some).ok_or_else(|| format!("{} has no access key for the profile {profile}", file.display()))
    }
}
