//! The address of a repository on a server, as restic reads it: the same address names the same folder in both
//! programs.
//!
//! | written | folder |
//! | --- | --- |
//! | `sftp://user@host:port//srv/kvm` | `/srv/kvm` |
//! | `sftp://user@host:port/kvm` | `kvm`, relative to the folder of the login |
//! | `sftp:user@host:/srv/kvm` | `/srv/kvm` |
//! | `sftp:user@host:kvm` | `kvm`, relative to the folder of the login |
//!
//! `host` may be an alias of `~/.ssh/config`, or an IPv6 address in brackets. In the longer form, the `%` before a zone
//! is written `%25` (RFC 6874): `[fe80::1%25eth0]`.

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use std::fmt;

/// Characters that are escaped in an address.
const ESCAPED: &AsciiSet = &CONTROLS.add(b' ').add(b'%').add(b'?').add(b'#').add(b'"').add(b'<').add(b'>');

/// Characters that are also escaped in the user name of an address.
const ESCAPED_IN_USER: &AsciiSet = &ESCAPED.add(b'@').add(b'/').add(b':');

/// The location of a repository: a server and a folder on it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SftpAddress {
    /// The user to log in as, if the address names one.
    pub(crate) user: Option<String>,
    /// The server's name, alias or address; an IPv6 address has no brackets.
    pub(crate) host: String,
    /// The port, if the address has one.
    pub(crate) port: Option<u16>,
    /// The folder. A relative one starts in the folder of the login.
    pub(crate) path: String,
}

impl SftpAddress {
    /// Parses an address that begins with `sftp:`. The error describes what is wrong with it.
    pub fn parse(url: &str) -> Result<SftpAddress, &'static str> {
        let rest = url.strip_prefix("sftp:").ok_or("it does not begin with sftp:")?;
        let (user, host, port, path) = match rest.strip_prefix("//") {
            Some(rest) => {
                let (authority, path) =
                    rest.split_once('/').ok_or("it does not name a folder (sftp://user@host//folder)")?;
                let (user, host) = split_user(authority);
                let (host, port) = split_port(host)?;
                (user.map(decoded).transpose()?, host, port, decoded(path)?)
            }
            None => {
                let (user, rest) = match rest.split_once('@') {
                    Some((user, rest)) if !user.contains('/') => (Some(user.to_owned()), rest),
                    _ => (None, rest),
                };
                let after_host = rest.strip_prefix('[').and_then(|rest| rest.find(']')).map_or(0, |end| end + 2);
                let colon = rest[after_host..].find(':').ok_or("it does not name a folder (sftp:user@host:/folder)")?;
                let (host, path) = (&rest[..after_host + colon], &rest[after_host + colon + 1..]);
                (user, host.trim_start_matches('[').trim_end_matches(']').to_owned(), None, path.to_owned())
            }
        };
        if user.as_deref() == Some("") {
            return Err("it does not name a user before the @");
        }
        // The name is not passed to a shell, but a leading dash or a control character is never valid in a host name.
        if host.is_empty() || host.starts_with('-') || host.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err("it does not name a host");
        }
        let path = cleaned(&path);
        if path.is_empty() {
            return Err("it does not name a folder (sftp://user@host//folder)");
        }
        if path.starts_with('~') {
            return Err(
                "~ is not supported: omit it, a relative folder starts in the home folder (sftp://user@host/folder)",
            );
        }
        if path.contains('\0') {
            return Err("its folder contains a zero byte");
        }
        Ok(SftpAddress { user, host, port, path })
    }

    /// Returns whether the folder is relative to that of the login.
    pub(crate) fn is_relative(&self) -> bool {
        !self.path.starts_with('/')
    }
}

impl fmt::Display for SftpAddress {
    /// Formats the address in its longer form, which restic accepts as well.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sftp://")?;
        if let Some(user) = &self.user {
            write!(f, "{}@", utf8_percent_encode(user, ESCAPED_IN_USER))?;
        }
        match self.host.contains(':') {
            true => write!(f, "[{}]", self.host.replacen('%', "%25", 1))?,
            false => f.write_str(&self.host)?,
        }
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        write!(f, "/{}", utf8_percent_encode(&self.path, ESCAPED))
    }
}

fn split_user(authority: &str) -> (Option<&str>, &str) {
    match authority.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, authority),
    }
}

fn split_port(host: &str) -> Result<(String, Option<u16>), &'static str> {
    let (host, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or("its [ is never closed")?;
            (
                host,
                if after.is_empty() {
                    None
                } else {
                    Some(after.strip_prefix(':').ok_or("what follows ] is not a port number")?)
                },
            )
        }
        None => match host.split_once(':') {
            Some((_, rest)) if rest.contains(':') => {
                return Err("an IPv6 address must be in brackets: [2001:db8::1]");
            }
            Some((host, port)) => (host, Some(port)),
            None => (host, None),
        },
    };
    let port = match port {
        None => None,
        Some(port) => match port.parse() {
            Ok(port) if port > 0 => Some(port),
            _ => return Err("its port is not a number from 1 to 65535"),
        },
    };
    // A plain `%` is understood, too.
    Ok((host.replacen("%25", "%", 1), port))
}

fn decoded(text: &str) -> Result<String, &'static str> {
    percent_decode_str(text).decode_utf8().map(Into::into).map_err(|_| "it is not UTF-8")
}

/// Normalizes a path: removes doubled and trailing slashes and `.`, and resolves `..`.
fn cleaned(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            // The parent of the root is the root.
            ".." if path.starts_with('/') => {}
            _ => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (path.starts_with('/'), joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) if !path.is_empty() => ".".to_owned(),
        _ => joined,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(user: Option<&str>, host: &str, port: Option<u16>, path: &str) -> SftpAddress {
        SftpAddress { user: user.map(str::to_owned), host: host.to_owned(), port, path: path.to_owned() }
    }

    #[test]
    fn addresses_are_parsed_as_in_restic() {
        let table = [
            ("sftp://kvm@host:2222//srv/kvm", address(Some("kvm"), "host", Some(2222), "/srv/kvm")),
            ("sftp://host/kvm/a", address(None, "host", None, "kvm/a")),
            ("sftp://a%40b@host//srv/with%20space/", address(Some("a@b"), "host", None, "/srv/with space")),
            ("sftp://kvm@[2001:db8::1]:22//srv", address(Some("kvm"), "2001:db8::1", Some(22), "/srv")),
            ("sftp://[::1]/rel", address(None, "::1", None, "rel")),
            ("sftp://[fe80::1%25eth0]:22//srv", address(None, "fe80::1%eth0", Some(22), "/srv")),
            ("sftp://[fe80::1%eth0]//srv", address(None, "fe80::1%eth0", None, "/srv")),
            ("sftp:kvm@[fe80::1%eth0]:/srv", address(Some("kvm"), "fe80::1%eth0", None, "/srv")),
            ("sftp:kvm@host:/srv//kvm/./x/..", address(Some("kvm"), "host", None, "/srv/kvm")),
            ("sftp:host:kvm", address(None, "host", None, "kvm")),
            ("sftp:kvm@[::1]:/srv", address(Some("kvm"), "::1", None, "/srv")),
        ];
        for (url, wanted) in table {
            let parsed = SftpAddress::parse(url).unwrap();
            assert_eq!(parsed, wanted, "{url}");
            // The printed form leads to the same place.
            assert_eq!(SftpAddress::parse(&parsed.to_string()).unwrap(), wanted, "{parsed}");
        }
    }

    #[test]
    fn invalid_addresses_are_refused() {
        for url in [
            "sftp:",
            "sftp://",
            "sftp://host",
            "sftp://host/",
            "sftp:///srv",
            "sftp://@host//srv",
            "sftp://host:0//srv",
            "sftp://host:port//srv",
            "sftp://2001:db8::1//srv",
            "sftp://[::1//srv",
            "sftp://-oProxyCommand=x//srv",
            "sftp:host",
            "sftp://host/~/kvm",
            "sftp://host//a%00b",
        ] {
            assert!(SftpAddress::parse(url).is_err(), "{url}");
        }
    }
}
