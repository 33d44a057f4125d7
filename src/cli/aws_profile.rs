//! Access keys from the credentials file that AWS's own tools share (`~/.aws/credentials`).

use crate::storage::http::S3Keys;
use crate::storage::sftp::Secret;
use std::collections::BTreeMap;

/// Returns the keys of a profile; None if the file does not have that profile, or the profile has no keys.
pub(crate) fn keys_of(text: &str, profile: &str) -> Option<S3Keys> {
    let mut found = BTreeMap::new();
    let mut is_it = false;
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            is_it = name.trim() == profile;
        } else if let Some((key, value)) = line.split_once('=').filter(|_| is_it) {
            found.insert(key.trim().to_ascii_lowercase(), value.trim());
        }
    }
    let text = |key: &str| found.get(key).filter(|value| !value.is_empty()).map(|value| (*value).to_owned());
    Some(S3Keys {
        access_key: text("aws_access_key_id")?,
        secret_key: Secret::new(text("aws_secret_access_key")?),
        session_token: text("aws_session_token").map(Secret::new),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_keys_are_read_per_profile() {
        let text = "# comment\n[default]\naws_access_key_id = one\naws_secret_access_key=s=1\n\n[ other ]\n\
                    AWS_ACCESS_KEY_ID=two\naws_secret_access_key = s2\naws_session_token = t\n[empty]\nregion=x\n";
        let of = |profile| keys_of(text, profile).map(|keys| (keys.access_key, keys.session_token.is_some()));
        assert_eq!(of("default"), Some(("one".to_owned(), false)));
        assert_eq!(of("other"), Some(("two".to_owned(), true)));
        assert_eq!((of("empty"), of("none")), (None, None));
    }
}
