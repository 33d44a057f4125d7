//! Repository addresses.

use super::http::HttpContext;
use super::rest::{RestAddress, RestStorage};
use super::s3::{S3Address, S3Options, S3Storage};
use super::sftp::{SftpAddress, SftpStorage, SshContext};
use super::{Error, LocalStorage, Result, Storage};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How to reach servers, over SSH and HTTP.
#[derive(Debug, Clone)]
pub(crate) struct AccessContext {
    pub(crate) ssh: SshContext,
    pub(crate) http: HttpContext,
    pub(crate) s3: S3Options,
}

/// Opens the storage at an address: a folder of this host, or of a server. Does not connect yet.
pub(crate) fn open(url: &str, access: &AccessContext) -> Result<Arc<dyn Storage>> {
    let bad = |reason: &str| Error::BadUrl { url: without_password(url), reason: reason.to_owned() };
    if url.is_empty() {
        return Err(bad("it is empty"));
    }
    if has_password(url) {
        return Err(bad(match url.starts_with("rest:") {
            true => "an address must not contain a password; set RESTIC_REST_USERNAME and RESTIC_REST_PASSWORD",
            false => "an address must not contain a password",
        }));
    }
    if url.starts_with("sftp:") {
        let target = SftpAddress::parse(url).map_err(bad)?;
        let url = target.to_string();
        let failed = |error| Error::Server { url, source: Box::new(error) };
        return Ok(Arc::new(SftpStorage::new(target, &access.ssh).map_err(failed)?));
    }
    if url.starts_with("rest:") {
        let address = RestAddress::parse(url).map_err(bad)?;
        let url = address.to_string();
        let failed = |error| Error::Http { url, source: Box::new(error) };
        return Ok(Arc::new(RestStorage::new(address, &access.http).map_err(failed)?));
    }
    if url.starts_with("s3:") {
        let address = S3Address::parse(url).map_err(bad)?;
        let url = address.to_string();
        let failed = |error| Error::Http { url, source: Box::new(error) };
        return Ok(Arc::new(S3Storage::new(address, &access.s3, &access.http).map_err(failed)?));
    }
    // restic's other backends begin with a word and a colon. A folder with such a name can be written as ./word:…
    let folder = url.strip_prefix("local:").unwrap_or(url);
    if let Some((scheme, _)) = folder.split_once(':')
        && !scheme.is_empty()
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
        && !scheme.contains('.')
    {
        return Err(bad(&format!(
            "{scheme} repositories are not supported; use a folder (/backup/kvm), sftp://user@host//folder, \
             rest:https://host/folder/ or s3:https://host/bucket/folder"
        )));
    }
    let path = std::path::absolute(Path::new(folder)).map_err(|error| bad(&error.to_string()))?;
    // Shell completion adds a trailing slash. Remove it, so that the history finds the same storage either way.
    Ok(Arc::new(LocalStorage::new(path.components().collect::<PathBuf>())))
}

/// Returns the part before the `@` of `word://…@…/` or `sftp:…@…`.
fn user_info(url: &str) -> Option<&str> {
    let rest = match url.split_once("://") {
        Some((_, rest)) => rest,
        None => url.strip_prefix("sftp:")?,
    };
    let authority = rest.split('/').next()?;
    authority.rsplit_once('@').map(|(user, _)| user)
}

fn has_password(url: &str) -> bool {
    user_info(url).is_some_and(|user| user.contains(':'))
}

/// Returns an address for an error message. If it is invalid, the password may contain a slash or an `@`.
fn without_password(url: &str) -> String {
    let scheme = url.find("://").map(|at| at + 3).or_else(|| Some(url.find(':')? + 1)).unwrap_or_default();
    let (scheme, rest) = url.split_at(scheme);
    let parts = rest.rsplit_once('@').and_then(|(info, host)| Some((info.split_once(':')?.0, host)));
    match parts {
        Some((user, host)) => format!("{scheme}{user}:***@{host}"),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(url: &str) -> Result<Arc<dyn Storage>> {
        super::open(
            url,
            &AccessContext { ssh: SshContext::new("me"), http: HttpContext::default(), s3: S3Options::default() },
        )
    }

    #[test]
    fn folder_addresses_are_normalised_and_foreign_schemes_refused() {
        assert_eq!(open("/backup/kvm").unwrap().url(), "/backup/kvm");
        for same in ["/backup/kvm/", "/backup//kvm", "/backup/./kvm/.", "local:/backup/kvm//"] {
            assert_eq!(open(same).unwrap().url(), "/backup/kvm", "{same}");
        }
        assert_eq!(open("/").unwrap().url(), "/");
        assert!(open("relative/folder").unwrap().url().ends_with("/relative/folder"));
        assert!(open("./odd:name").is_ok());
        assert_eq!(open("local:/backup/kvm").unwrap().url(), "/backup/kvm");
        let error = open("file:///backup/kvm").unwrap_err().to_string();
        assert!(error.contains("use a folder (/backup/kvm)"), "{error}");
        for url in ["", "local:", "local:b2:x", "s3:bucket", "rest:host", "b2:x", "s3:key:secret@host/bucket"] {
            assert!(open(url).is_err(), "{url}");
        }
    }

    #[test]
    fn a_password_in_an_address_is_refused_and_not_repeated() {
        for url in ["sftp://me:secret@host/path", "sftp:me:secret@host:/path", "sftp:me:a@secret@host:/path"] {
            let error = open(url).unwrap_err().to_string();
            assert!(error.contains("password") && !error.contains("secret"), "{error}");
        }
        // The text up to the slash looks like an invalid port.
        let error = open("sftp://me:a/secret@host/path").unwrap_err().to_string();
        assert!(error.contains("sftp://me:***@host/path") && !error.contains("secret"), "{error}");
    }
}
