//! The address of an export: the NBD URI specification (`doc/uri.md`), Unix sockets only.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::str::FromStr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};

/// All characters except RFC 3986's unreserved ones and the slash, which both the path and the query may contain.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// The address of one export: `nbd+unix:///EXPORT?socket=PATH`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NbdUri {
    /// The server's socket.
    pub socket: PathBuf,
    /// The name of the export; an empty name is the server's default export.
    pub export: String,
}

/// Why a text is not a valid [`NbdUri`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// A different scheme: TCP, TLS, vsock, or not NBD.
    #[error("{0:?} does not begin with nbd+unix:///")]
    Scheme(String),
    /// A Unix socket has no host.
    #[error("{0:?} names a host, but a unix socket has none")]
    Host(String),
    /// The `socket` parameter is missing or empty.
    #[error("{0:?} has no socket=PATH")]
    NoSocket(String),
    /// The socket's path or the export's name contains an invalid byte.
    #[error("{0:?} has an impossible character in its export or socket")]
    Character(String),
}

impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "nbd+unix:///{}?socket={}",
            percent_encode(self.export.as_bytes(), ESCAPED),
            percent_encode(self.socket.as_os_str().as_bytes(), ESCAPED)
        )
    }
}

impl FromStr for NbdUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let rest = text.strip_prefix("nbd+unix://").ok_or_else(|| UriError::Scheme(text.to_owned()))?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let export = match path.strip_prefix('/') {
            Some(export) => export,
            None if path.is_empty() => "",
            None => return Err(UriError::Host(text.to_owned())),
        };
        let impossible = || UriError::Character(text.to_owned());
        let export = percent_decode_str(export).decode_utf8().map_err(|_| impossible())?.into_owned();
        // Ignore unknown parameters, which are for other clients.
        let socket: Vec<u8> = query
            .split('&')
            .find_map(|parameter| parameter.strip_prefix("socket="))
            .map(|value| percent_decode_str(value).collect())
            .unwrap_or_default();
        if socket.is_empty() {
            return Err(UriError::NoSocket(text.to_owned()));
        }
        if socket.contains(&0) || export.contains('\0') {
            return Err(impossible());
        }
        Ok(NbdUri { socket: PathBuf::from(OsString::from_vec(socket)), export })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn uris_written_by_libvirt_and_libnbd_are_parsed() {
        let plain: NbdUri = "nbd+unix:///vda?socket=/run/kvmb/1.sock".parse().unwrap();
        assert_eq!(plain.export, "vda");
        assert_eq!(plain.socket, PathBuf::from("/run/kvmb/1.sock"));
        for default in ["nbd+unix:///?socket=/s", "nbd+unix://?socket=%2Fs", "nbd+unix:///?tls-port=1&socket=/s"] {
            let uri: NbdUri = default.parse().unwrap();
            assert_eq!((uri.export.as_str(), uri.socket.to_str()), ("", Some("/s")));
        }
        let slash: NbdUri = "nbd+unix:////a%2fb%20c?socket=/s%3f+x".parse().unwrap();
        assert_eq!(slash.export, "/a/b c");
        assert_eq!(slash.socket, PathBuf::from("/s?+x"));
    }

    #[test]
    fn invalid_uris_are_refused_with_the_reason() {
        let parse = |text: &str| text.parse::<NbdUri>().unwrap_err();
        assert!(matches!(parse("nbd://host/x"), UriError::Scheme(_)));
        assert!(matches!(parse("nbds+unix:///x?socket=/s"), UriError::Scheme(_)));
        assert!(matches!(parse("nbd+unix://host/x?socket=/s"), UriError::Host(_)));
        assert!(matches!(parse("nbd+unix:///x"), UriError::NoSocket(_)));
        assert!(matches!(parse("nbd+unix:///x?socket="), UriError::NoSocket(_)));
        assert!(matches!(parse("nbd+unix:///x?socket=%00"), UriError::Character(_)));
        assert!(matches!(parse("nbd+unix:///%ff?socket=/s"), UriError::Character(_)));
    }

    proptest! {
        #[test]
        fn every_uri_round_trips(
            export in "[^\0]{0,40}",
            socket in proptest::collection::vec(1u8..=255, 1..80),
        ) {
            let uri = NbdUri { socket: PathBuf::from(OsString::from_vec(socket)), export };
            prop_assert_eq!(uri.to_string().parse::<NbdUri>().unwrap(), uri);
        }
    }
}
