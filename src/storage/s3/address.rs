//! The address of a repository in an object storage, as restic reads it.
//!
//! | written | server, bucket and folder |
//! | --- | --- |
//! | `s3:https://host:9000/bucket/kvm` | with TLS |
//! | `s3:http://host:9000/bucket/kvm` | not encrypted |
//! | `s3:host/bucket/kvm`, `s3://host/bucket/kvm` | as `s3:https://…` |
//!
//! In the forms with `http:` and `https:`, special characters of the folder may be written as `%XX`; in the others, `%`
//! is itself.

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use std::borrow::Cow;
use std::fmt;

/// Characters of a folder that are escaped in an address.
const ESCAPED: &AsciiSet = &CONTROLS.add(b'%').add(b'?').add(b'#');

/// The location of a repository: a server, a bucket, and a folder in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Address {
    pub(crate) is_encrypted: bool,
    /// `host` or `host:port`.
    pub(crate) server: String,
    pub(crate) bucket: String,
    /// Without leading and trailing slashes; empty for the whole bucket.
    pub(crate) folder: String,
}

impl S3Address {
    /// Parses an address that begins with `s3:`. The error describes what is wrong with it.
    pub fn parse(url: &str) -> Result<S3Address, &'static str> {
        let rest = url.strip_prefix("s3:").ok_or("it does not begin with s3:")?;
        let is_url = rest.starts_with("http://") || rest.starts_with("https://");
        let (is_encrypted, rest) = match rest.strip_prefix("http://") {
            Some(rest) => (false, rest),
            None => (true, rest.strip_prefix("https://").or_else(|| rest.strip_prefix("//")).unwrap_or(rest)),
        };
        if rest.contains(|c: char| c.is_control() || c == '?' || c == '#') {
            return Err("it contains a character that is not allowed");
        }
        let example = "it does not name a bucket (s3:https://host/bucket/folder)";
        let (server, path) = rest.split_once('/').ok_or(example)?;
        if server.contains('@') {
            return Err("an address must not contain an access key; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY");
        }
        if server.is_empty() || ureq::http::uri::Authority::try_from(server).is_err() {
            return Err("its server is not a valid host name or address");
        }
        let server = server.strip_suffix(if is_encrypted { ":443" } else { ":80" }).unwrap_or(server);
        let path = match is_url {
            true => percent_decode_str(path).decode_utf8().map_err(|_| "its folder is not UTF-8")?,
            false => Cow::from(path),
        };
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let (bucket, folder) = parts.split_first().ok_or(example)?;
        let fits = |c: u8| c.is_ascii_alphanumeric() || b".-_".contains(&c);
        if !bucket.bytes().all(fits) || !(3..=255).contains(&bucket.len()) {
            return Err("its bucket is not a valid name: three characters or more, letters, digits, dots and hyphens");
        }
        if folder.iter().any(|part| matches!(*part, "." | "..")) {
            return Err("a folder of a bucket cannot be named . or ..");
        }
        let (server, bucket) = (server.to_owned(), (*bucket).to_owned());
        Ok(S3Address { is_encrypted, server, bucket, folder: folder.join("/") })
    }
}

impl fmt::Display for S3Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_encrypted { "https" } else { "http" };
        write!(f, "s3:{scheme}://{}/{}", self.server, self.bucket)?;
        match self.folder.as_str() {
            "" => Ok(()),
            folder => write!(f, "/{}", utf8_percent_encode(folder, ESCAPED)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed_as_in_restic() {
        let table = [
            ("s3:https://host:9000/bucket/kvm/a/", "s3:https://host:9000/bucket/kvm/a"),
            ("s3:http://127.0.0.1:9000/bucket", "s3:http://127.0.0.1:9000/bucket"),
            ("s3:s3.amazonaws.com/bucket//kvm", "s3:https://s3.amazonaws.com/bucket/kvm"),
            ("s3://s3.eu-central-1.amazonaws.com/bucket", "s3:https://s3.eu-central-1.amazonaws.com/bucket"),
            ("s3:https://host:443/bucket/", "s3:https://host/bucket"),
            ("s3:https://host/bucket/My%20VMs", "s3:https://host/bucket/My VMs"),
            ("s3:https://host/bucket/50%25%3F", "s3:https://host/bucket/50%25%3F"),
            ("s3:host/bucket/50%25", "s3:https://host/bucket/50%2525"),
        ];
        for (url, shown) in table {
            let address = S3Address::parse(url).unwrap();
            assert_eq!(address.to_string(), shown, "{url}");
            assert_eq!(S3Address::parse(shown).unwrap(), address, "{url}");
        }
        for url in [
            "s3:",
            "s3:host",
            "s3:host/",
            "s3:/bucket",
            "s3:https://key:secret@host/bucket",
            "s3:host/ab",
            "s3:host/a bucket",
            "s3:host/bucket/../x",
            "s3:ho st/bucket",
        ] {
            assert!(S3Address::parse(url).is_err(), "{url}");
        }
    }
}
