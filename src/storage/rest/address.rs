//! The address of a repository on a REST server, as restic reads it.
//!
//! | written | server |
//! | --- | --- |
//! | `rest:https://user@host:8000/kvm/` | TLS |
//! | `rest:http://host:8000/kvm/` | not encrypted |
//! | `rest:http+unix:///run/rest.socket:/kvm/` | a Unix socket on this host |

use crate::storage::http::ServerPlace;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use std::fmt;
use std::path::PathBuf;

/// Characters of a user name that are escaped in an address.
const ESCAPED_IN_USER: &AsciiSet = &CONTROLS.add(b' ').add(b'%').add(b'@').add(b'/').add(b':').add(b'?').add(b'#');

/// The location of a repository: a server and a folder on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestAddress {
    /// The account, if the address names one.
    pub(crate) user: Option<String>,
    place: ServerPlace,
    /// `host:port`, or the path of the socket.
    pub(crate) server: String,
    /// Begins and ends with a slash.
    folder: String,
}

impl RestAddress {
    /// Parses an address that begins with `rest:`. The error describes what is wrong with it.
    pub fn parse(url: &str) -> Result<RestAddress, &'static str> {
        let rest = url.strip_prefix("rest:").ok_or("it does not begin with rest:")?;
        if rest.contains(|c: char| c.is_control() || c.is_whitespace() || c == '?' || c == '#') {
            return Err("it contains a character that must be written as %XX");
        }
        if let Some(rest) = rest.strip_prefix("http+unix://") {
            let (socket, folder) = rest.split_once(":/").unwrap_or((rest.trim_end_matches('/'), ""));
            if !socket.starts_with('/') {
                return Err("it does not name a socket (rest:http+unix:///run/rest.socket:/folder/)");
            }
            let place = ServerPlace::Unix(PathBuf::from(socket));
            let (server, folder) = (socket.to_owned(), folder_of(folder));
            return Ok(RestAddress { user: None, place, server, folder });
        }
        let (is_encrypted, rest) = match (rest.strip_prefix("https://"), rest.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => return Err("it does not name a server (rest:https://host:8000/folder/)"),
        };
        let (authority, folder) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, server) = match authority.rsplit_once('@') {
            Some((user, server)) => {
                let user = percent_decode_str(user).decode_utf8().map_err(|_| "its user is not UTF-8")?;
                (Some(user.into_owned()), server)
            }
            None => (None, authority),
        };
        let host = server.rsplit_once(':').map_or(server, |(host, _)| host);
        if host.is_empty() || user.as_deref() == Some("") {
            return Err("it does not name a server (rest:https://host:8000/folder/)");
        }
        if ureq::http::uri::Authority::try_from(server).is_err() {
            return Err("its server is not a valid host name or address");
        }
        let (server, folder) = (server.to_owned(), folder_of(folder));
        Ok(RestAddress { user, place: ServerPlace::Network { is_encrypted }, server, folder })
    }

    /// Returns whether the network cannot alter the data.
    pub(crate) fn is_protected(&self) -> bool {
        self.place != ServerPlace::Network { is_encrypted: false }
    }

    /// Returns how the server is reached.
    pub(crate) fn place(&self) -> ServerPlace {
        self.place.clone()
    }

    /// Returns the base URL for requests, which ends with a slash.
    pub(crate) fn base(&self) -> String {
        match self.place {
            // An IP address, because a name would be resolved.
            ServerPlace::Unix(_) => format!("http://127.0.0.1{}", self.folder),
            ServerPlace::Network { is_encrypted: true } => format!("https://{}{}", self.server, self.folder),
            ServerPlace::Network { is_encrypted: false } => format!("http://{}{}", self.server, self.folder),
        }
    }
}

/// Puts one slash on each side.
fn folder_of(folder: &str) -> String {
    match folder.trim_matches('/') {
        "" => "/".to_owned(),
        folder => format!("/{folder}/"),
    }
}

impl fmt::Display for RestAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (server, folder) = (&self.server, &self.folder);
        let scheme = match self.place {
            ServerPlace::Unix(_) => return write!(f, "rest:http+unix://{server}:{folder}"),
            ServerPlace::Network { is_encrypted: true } => "https",
            ServerPlace::Network { is_encrypted: false } => "http",
        };
        match &self.user {
            Some(user) => {
                let user = utf8_percent_encode(user, ESCAPED_IN_USER);
                write!(f, "rest:{scheme}://{user}@{server}{folder}")
            }
            None => write!(f, "rest:{scheme}://{server}{folder}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed_as_in_restic() {
        let table = [
            ("rest:http://host:8000/", "http://host:8000/", "rest:http://host:8000/"),
            ("rest:https://host", "https://host/", "rest:https://host/"),
            ("rest:https://me@host/kvm", "https://host/kvm/", "rest:https://me@host/kvm/"),
            ("rest:https://me%40corp%2Flab@host/", "https://host/", "rest:https://me%40corp%2Flab@host/"),
            ("rest:http://[::1]:8000/a/b/", "http://[::1]:8000/a/b/", "rest:http://[::1]:8000/a/b/"),
            ("rest:http+unix:///run/r.sock:/kvm/", "http://127.0.0.1/kvm/", "rest:http+unix:///run/r.sock:/kvm/"),
            ("rest:http+unix:///run/r.sock", "http://127.0.0.1/", "rest:http+unix:///run/r.sock:/"),
        ];
        for (url, base, shown) in table {
            let address = RestAddress::parse(url).unwrap();
            assert_eq!((address.base().as_str(), address.to_string().as_str()), (base, shown), "{url}");
            assert_eq!(RestAddress::parse(shown).unwrap(), address, "{url}");
        }
    }

    #[test]
    fn escaped_characters_of_the_user_are_decoded() {
        let user = |url| RestAddress::parse(url).unwrap().user.unwrap();
        assert_eq!(user("rest:https://me%40corp%2Flab@host/"), "me@corp/lab");
        assert_eq!(user("rest:https://me@corp@host/"), "me@corp");
    }

    #[test]
    fn invalid_addresses_are_refused() {
        for url in [
            "rest:",
            "rest:host",
            "rest:http://",
            "rest:http:///kvm",
            "rest:http://@host/",
            "rest:http://%FF@host/",
            "rest:http://a b/",
            "rest:http://host:port:1/",
            "rest:http+unix://relative:/x",
            "rest:ftp://host/",
            "rest:http://host/?x",
        ] {
            assert!(RestAddress::parse(url).is_err(), "{url}");
        }
    }
}
