//! AWS Signature Version 4 in the `Authorization` header. It includes the SHA-256 of the body, so that the server
//! detects alterations in transit.

use super::super::http::S3Keys;
use chrono::{DateTime, Utc};
use hmac::{Hmac, Mac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};

/// The characters to escape in a query.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The characters to escape in a path.
const ESCAPED_IN_PATH: &AsciiSet = &ESCAPED.remove(b'/');

/// A request before it is signed.
pub(super) struct Unsigned<'a> {
    pub(super) method: &'a str,
    pub(super) host: &'a str,
    /// The escaped path.
    pub(super) path: &'a str,
    /// The escaped query, sorted by name.
    pub(super) query: &'a str,
    /// Headers with lower-case names.
    pub(super) headers: &'a [(&'static str, String)],
    /// SHA-256 of the body, in hexadecimal digits.
    pub(super) payload: &'a str,
}

/// Returns the escaped path of a request.
pub(super) fn escaped_path(path: &str) -> String {
    utf8_percent_encode(path, ESCAPED_IN_PATH).to_string()
}

/// Returns the escaped query of a request, in the order required for the signature.
pub(super) fn escaped_query(pairs: &[(&str, String)]) -> String {
    let escaped = |text: &str| utf8_percent_encode(text, ESCAPED).to_string();
    let mut pairs: Vec<_> = pairs.iter().map(|(name, value)| (escaped(name), escaped(value))).collect();
    pairs.sort();
    let pairs: Vec<_> = pairs.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    pairs.join("&")
}

/// Returns the headers that authenticate a request with these keys.
pub(super) fn signature(
    request: &Unsigned,
    keys: &S3Keys,
    region: &str,
    now: DateTime<Utc>,
) -> Vec<(&'static str, String)> {
    let time = now.format("%Y%m%dT%H%M%SZ").to_string();
    let scope = format!("{}/{region}/s3/aws4_request", now.format("%Y%m%d"));
    let mut added = vec![("x-amz-content-sha256", request.payload.to_owned()), ("x-amz-date", time.clone())];
    if let Some(token) = &keys.session_token {
        added.push(("x-amz-security-token", token.reveal().to_owned()));
    }
    let is_signed = |name: &str| name.starts_with("x-amz-") || name == "content-md5";
    let given = request.headers.iter().filter(|(name, _)| is_signed(name));
    let mut signed: Vec<(&str, &str)> = given.chain(&added).map(|(name, value)| (*name, value.as_str())).collect();
    signed.push(("host", request.host));
    signed.sort();
    let names = signed.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
    let lines: String = signed.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
    let Unsigned { method, path, query, payload, .. } = request;
    let canonical = format!("{method}\n{path}\n{query}\n{lines}\n{names}\n{payload}");
    let to_sign = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", hex::encode(Sha256::digest(canonical)));
    let secret = zeroize::Zeroizing::new(format!("AWS4{}", keys.secret_key.reveal()));
    let day = now.format("%Y%m%d").to_string();
    let key = [day.as_str(), region, "s3", "aws4_request"]
        .iter()
        .fold(secret.as_bytes().to_vec(), |key, part| mac(&key, part.as_bytes()));
    let signature = hex::encode(mac(&key, to_sign.as_bytes()));
    let credential = format!("{}/{scope}", keys.access_key);
    added.push((
        "authorization",
        format!("AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={names}, Signature={signature}"),
    ));
    added
}

fn mac(key: &[u8], text: &[u8]) -> Vec<u8> {
    // HMAC accepts keys of any length.
    let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(key).unwrap_or_else(|_| Hmac::new(&Default::default()));
    mac.update(text);
    mac.finalize().into_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::sftp::Secret;

    /// The examples in Amazon's documentation ("Signature Calculations for the Authorization Header").
    #[test]
    fn signatures_match_the_amazon_documentation() {
        let keys = S3Keys {
            access_key: "AKIAIOSFODNN7EXAMPLE".to_owned(),
            secret_key: Secret::new("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned()),
            session_token: None,
        };
        let now = DateTime::parse_from_rfc3339("2013-05-24T00:00:00Z").unwrap().to_utc();
        let empty = hex::encode(Sha256::digest(b""));
        for (query, wanted) in [
            (vec![("lifecycle", String::new())], "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
            (
                vec![("prefix", "J".to_owned()), ("max-keys", "2".to_owned())],
                "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
            ),
        ] {
            let request = Unsigned {
                method: "GET",
                host: "examplebucket.s3.amazonaws.com",
                path: "/",
                query: &escaped_query(&query),
                headers: &[],
                payload: &empty,
            };
            let headers = signature(&request, &keys, "us-east-1", now);
            let authorization = &headers.iter().find(|(name, _)| *name == "authorization").unwrap().1;
            assert!(authorization.ends_with(&format!("Signature={wanted}")), "{authorization}");
        }
        assert_eq!(escaped_path("a b/ä+"), "a%20b/%C3%A4%2B");
    }
}
