//! Rules for values. Each rule is one sentence, which is also the error message if it is violated.

use crate::schedule::Cron;
use crate::units;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use std::borrow::Cow;
use std::cmp::Ordering;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

/// A value that is written as a string and follows a rule.
pub(crate) trait Term: Sized {
    /// The name of the rule in the schema.
    const NAME: &'static str;
    /// The rule, as the end of a sentence that begins with "must be".
    const RULE: &'static str;
    /// The rule as a regular expression for editors, as far as that is possible.
    const PATTERN: &'static str;

    /// Parses the text if it follows the rule.
    fn read(text: &str) -> Option<Self>;

    /// Returns a more precise error for a text that violates the rule, if there is one.
    fn detail(_text: &str) -> Option<String> {
        None
    }
}

/// A value, and the text that it was written as.
#[derive(Debug, Clone)]
pub(crate) struct WithText<T> {
    text: String,
    value: T,
}

impl<T: Term> WithText<T> {
    /// Parses a text.
    pub(crate) fn read(text: &str) -> Option<WithText<T>> {
        Some(WithText { value: T::read(text)?, text: text.to_owned() })
    }

    /// Returns the text as it was written.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Returns the parsed value.
    pub(crate) fn value(&self) -> &T {
        &self.value
    }
}

impl<T> PartialEq for WithText<T> {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl<T> Eq for WithText<T> {}

impl<T> PartialOrd for WithText<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for WithText<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.text.cmp(&other.text)
    }
}

impl<T> Serialize for WithText<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de, T: Term> Deserialize<'de> for WithText<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let text = value.as_str();
        text.and_then(WithText::read).ok_or_else(|| match text.and_then(T::detail) {
            Some(detail) => D::Error::custom(format!("{}: {detail}", T::RULE)),
            None => D::Error::custom(T::RULE),
        })
    }
}

impl<T: Term> JsonSchema for WithText<T> {
    fn schema_name() -> Cow<'static, str> {
        T::NAME.into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // An empty string counts as omitted.
        json_schema!({ "type": "string", "pattern": format!("^({})?$", T::PATTERN) })
    }
}

/// A whole number from `MIN` to `MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Bounded<const MIN: u64, const MAX: u64>(u64);

impl<const MIN: u64, const MAX: u64> Bounded<MIN, MAX> {
    /// Creates a constant, whose range is checked at compile time.
    pub(crate) const fn of<const NUMBER: u64>() -> Self {
        const { assert!(MIN <= NUMBER && NUMBER <= MAX) };
        Bounded(NUMBER)
    }

    pub(crate) fn get(self) -> u64 {
        self.0
    }
}

impl<'de, const MIN: u64, const MAX: u64> Deserialize<'de> for Bounded<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = Value::deserialize(deserializer)?.as_u64().filter(|number| (MIN..=MAX).contains(number));
        number.map(Bounded).ok_or_else(|| D::Error::custom(format!("a whole number from {MIN} to {MAX}")))
    }
}

impl<const MIN: u64, const MAX: u64> JsonSchema for Bounded<MIN, MAX> {
    fn schema_name() -> Cow<'static, str> {
        format!("NumberFrom{MIN}To{MAX}").into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": MIN, "maximum": MAX })
    }
}

/// A host name (RFC 1123) or an IP address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HostName {
    Name,
    V4,
    /// An IPv6 address, which needs brackets in a URL.
    V6,
}

impl Term for HostName {
    const NAME: &'static str = "HostName";
    const RULE: &'static str = "a host name (letters, digits, '-' and '.'), an IPv4 or an IPv6 address";
    const PATTERN: &'static str = "[A-Za-z0-9][A-Za-z0-9.-]{0,252}|[0-9A-Fa-f:.]+(%[A-Za-z0-9._-]+)?";

    fn read(text: &str) -> Option<HostName> {
        let (address, zone) = text.split_once('%').map_or((text, None), |(address, zone)| (address, Some(zone)));
        if address.parse::<Ipv6Addr>().is_ok() {
            let fits =
                |zone: &str| !zone.is_empty() && zone.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
            return zone.is_none_or(fits).then_some(HostName::V6);
        }
        if text.parse::<Ipv4Addr>().is_ok() {
            return Some(HostName::V4);
        }
        let label = |label: &str| {
            let inner = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
            inner && (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-')
        };
        // A name whose last label is numeric would be an invalid IP address.
        let last_is_number = text.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
        (text.len() <= 253 && text.split('.').all(label) && !last_is_number).then_some(HostName::Name)
    }
}

/// The name of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UserName;

impl Term for UserName {
    const NAME: &'static str = "UserName";
    const RULE: &'static str =
        "a user name: a letter or '_', then letters, digits, '_', '-' and '.', at most 32 in all";
    const PATTERN: &'static str = "[A-Za-z_][A-Za-z0-9_.-]{0,31}";

    fn read(text: &str) -> Option<UserName> {
        let first = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        let rest = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
        (first && rest && text.len() <= 32).then_some(UserName)
    }
}

/// An absolute path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AbsolutePath(pub(crate) PathBuf);

impl Term for AbsolutePath {
    const NAME: &'static str = "AbsolutePath";
    const RULE: &'static str = "an absolute path, which begins with '/'";
    const PATTERN: &'static str = "/.*";

    fn read(text: &str) -> Option<AbsolutePath> {
        let fits = text.starts_with('/') && text.len() < 4096 && !text.contains(char::is_control);
        fits.then(|| AbsolutePath(text.into()))
    }
}

/// The address of a repository. Empty means none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RepoAddress;

impl Term for RepoAddress {
    const NAME: &'static str = "RepoAddress";
    const RULE: &'static str = "an absolute path, sftp://user@host:port//path, rest:https://host:port/path/ or \
                                s3:https://host/bucket/path, without a password";
    const PATTERN: &'static str = "/.*|sftp://[^/]+/.*|rest:https?://[^/]+(/.*)?|rest:http\\+unix:///.+|s3:.+/.+";

    fn read(text: &str) -> Option<RepoAddress> {
        if let Some(rest) = text.strip_prefix("s3:") {
            return is_s3(rest).then_some(RepoAddress);
        }
        if let Some(rest) = text.strip_prefix("rest:") {
            return is_rest(rest).then_some(RepoAddress);
        }
        let Some(rest) = text.strip_prefix("sftp://") else {
            return (text.is_empty() || AbsolutePath::read(text).is_some()).then_some(RepoAddress);
        };
        let (authority, path) = rest.split_at_checked(rest.find('/')?)?;
        let (user, place) = authority.rsplit_once('@').map_or((None, authority), |(user, place)| (Some(user), place));
        let (host, port) = match place.strip_prefix('[') {
            Some(v6) => v6
                .split_once(']')
                .map(|(host, rest)| (host, rest.strip_prefix(':'), rest))
                .filter(|(_, port, rest)| rest.is_empty() || port.is_some())
                .map(|(host, port, _)| (host, port))?,
            None => place.split_once(':').map_or((place, None), |(host, port)| (host, Some(port))),
        };
        let fits = user.is_none_or(|user| UserName::read(user).is_some())
            && HostName::read(host).is_some()
            && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
            && AbsolutePath::read(path).is_some();
        fits.then_some(RepoAddress)
    }
}

/// Whether the text after `s3:` is valid.
fn is_s3(text: &str) -> bool {
    let rest = ["https://", "http://", "//"].iter().find_map(|scheme| text.strip_prefix(scheme)).unwrap_or(text);
    let is_plain = !rest.contains(|c: char| c.is_control() || matches!(c, '@' | '?' | '#'));
    is_plain && rest.split_once('/').is_some_and(|(server, bucket)| !server.is_empty() && bucket.len() >= 3)
}

/// The storage class for objects that are read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StorageClass;

impl Term for StorageClass {
    const NAME: &'static str = "StorageClass";
    const RULE: &'static str = "a storage class whose objects can be read at once: STANDARD_IA, not GLACIER";
    const PATTERN: &'static str = "[A-Za-z0-9_-]+";

    fn read(text: &str) -> Option<StorageClass> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        let is_archive = ["GLACIER", "DEEP_ARCHIVE"].contains(&text);
        (!text.is_empty() && text.len() <= 64 && text.bytes().all(fits) && !is_archive).then_some(StorageClass)
    }
}

/// The server-side encryption of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ServerEncryption;

impl Term for ServerEncryption {
    const NAME: &'static str = "ServerEncryption";
    const RULE: &'static str = "AES256, aws:kms or aws:kms:KEY";
    const PATTERN: &'static str = "AES256|aws:kms(:.+)?";

    fn read(text: &str) -> Option<ServerEncryption> {
        let is_key = |key: &str| !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic());
        let fits = text == "AES256" || text == "aws:kms" || text.strip_prefix("aws:kms:").is_some_and(is_key);
        fits.then_some(ServerEncryption)
    }
}

/// Whether the text after `rest:` is valid.
fn is_rest(text: &str) -> bool {
    if text.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return false;
    }
    let Some(rest) = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")) else {
        return text.strip_prefix("http+unix://").is_some_and(|socket| AbsolutePath::read(socket).is_some());
    };
    let authority = rest.split('/').next().unwrap_or_default();
    let (user, server) = authority.rsplit_once('@').map_or((None, authority), |(user, server)| (Some(user), server));
    !server.is_empty() && user.is_none_or(|user| UserName::read(user).is_some())
}

/// A machine's name, or a glob that matches several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MachineName;

impl Term for MachineName {
    const NAME: &'static str = "MachineName";
    const RULE: &'static str = "the name of a machine or a glob ('web*', 'db[12]'), without '/'";
    const PATTERN: &'static str = "[^/]+";

    fn read(text: &str) -> Option<MachineName> {
        let mut open = false;
        for c in text.chars() {
            open = c == '[' || (open && c != ']');
        }
        (!text.is_empty() && !open && !text.contains('/') && !text.contains(char::is_control)).then_some(MachineName)
    }
}

/// A disk of a machine, by its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DiskName;

impl Term for DiskName {
    const NAME: &'static str = "DiskName";
    const RULE: &'static str = "the target of a disk: vda, sdb";
    const PATTERN: &'static str = "[A-Za-z][A-Za-z0-9]{0,31}";

    fn read(text: &str) -> Option<DiskName> {
        let is_plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        (is_plain && text.len() <= 32 && text.starts_with(|c: char| c.is_ascii_alphabetic())).then_some(DiskName)
    }
}

/// A libvirt connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LibvirtUri;

impl Term for LibvirtUri {
    const NAME: &'static str = "LibvirtUri";
    const RULE: &'static str = "a libvirt connection: qemu:///system, qemu:///session";
    const PATTERN: &'static str = "[a-z][a-z0-9+]*:.*";

    fn read(text: &str) -> Option<LibvirtUri> {
        let (scheme, rest) = text.split_once(':')?;
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'+';
        let good = scheme.starts_with(|c: char| c.is_ascii_lowercase()) && scheme.bytes().all(fits);
        (good && !rest.contains(|c: char| c.is_control() || c == ' ')).then_some(LibvirtUri)
    }
}

/// A command for a shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CommandLine;

impl Term for CommandLine {
    const NAME: &'static str = "CommandLine";
    const RULE: &'static str = "a shell command on one line";
    const PATTERN: &'static str = ".*\\S.*";

    fn read(text: &str) -> Option<CommandLine> {
        (!text.trim().is_empty() && !text.contains(char::is_control)).then_some(CommandLine)
    }
}

impl Term for Cron {
    const NAME: &'static str = "Cron";
    const RULE: &'static str = "a time as in crontab(5)";
    const PATTERN: &'static str = "@[a-z]+|\\s*\\S+(\\s+\\S+){4}\\s*";

    fn read(text: &str) -> Option<Cron> {
        text.parse().ok()
    }

    fn detail(text: &str) -> Option<String> {
        text.parse::<Cron>().err().map(|error| error.to_string())
    }
}

/// A duration above zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PositiveSpan(pub(crate) Duration);

impl PositiveSpan {
    /// Creates a value of this many seconds.
    pub(crate) fn written(seconds: u64) -> WithText<PositiveSpan> {
        WithText { text: format!("{seconds}s"), value: PositiveSpan(Duration::from_secs(seconds)) }
    }
}

impl Term for PositiveSpan {
    const NAME: &'static str = "Span";
    const RULE: &'static str = units::ShortDuration::RULE;
    const PATTERN: &'static str = "0*[1-9][0-9]*[smhdw]";

    fn read(text: &str) -> Option<PositiveSpan> {
        text.parse::<units::ShortDuration>().ok().filter(|span| !span.0.is_zero()).map(|span| PositiveSpan(span.0))
    }
}

/// A number of bytes above zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PositiveSize(pub(crate) u64);

impl PositiveSize {
    /// Creates a value of this many bytes.
    pub(crate) fn written(bytes: u64) -> WithText<PositiveSize> {
        WithText { text: units::Size(bytes).to_string(), value: PositiveSize(bytes) }
    }
}

impl Term for PositiveSize {
    const NAME: &'static str = "Size";
    const RULE: &'static str = units::Size::RULE;
    const PATTERN: &'static str = "0*[1-9][0-9]*[KMGT]?";

    fn read(text: &str) -> Option<PositiveSize> {
        text.parse::<units::Size>().ok().filter(|size| size.0 > 0).map(|size| PositiveSize(size.0))
    }
}

/// The size of a disk's chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChunkSizeText(pub(crate) u32);

impl Term for ChunkSizeText {
    const NAME: &'static str = "ChunkSize";
    const RULE: &'static str = units::ChunkSize::RULE;
    const PATTERN: &'static str = "512K|1M|2M|4M";

    fn read(text: &str) -> Option<ChunkSizeText> {
        text.parse::<units::ChunkSize>().ok().map(|size| ChunkSizeText(size.bytes()))
    }
}

/// A share of a whole.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct ShareText(pub(crate) f64);

impl Term for ShareText {
    const NAME: &'static str = "Share";
    const RULE: &'static str = units::Share::RULE;
    const PATTERN: &'static str = "[0-9]+(\\.[0-9]+)?%?";

    fn read(text: &str) -> Option<ShareText> {
        text.parse::<units::Share>().ok().map(|share| ShareText(share.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keeps<T: Term>(texts: &[&str]) {
        texts.iter().for_each(|text| assert!(T::read(text).is_some(), "{}: {text}", T::NAME));
    }

    fn breaks<T: Term>(texts: &[&str]) {
        texts.iter().for_each(|text| assert!(T::read(text).is_none(), "{}: {text}", T::NAME));
    }

    #[test]
    fn host_names_and_ip_addresses_are_accepted_as_hosts() {
        keeps::<HostName>(&[
            "backup",
            "backup.example.com",
            "3com.example",
            "xn--bcher-kva.example",
            "a-b",
            "192.168.0.1",
        ]);
        keeps::<HostName>(&["::1", "2001:db8::7", "fe80::1%eth0", "::ffff:10.0.0.1"]);
        breaks::<HostName>(&["", ".", "a..b", "-a", "a-", "my_host", "a b", "user@host", "host:22", "[::1]", "bücher"]);
        breaks::<HostName>(&[
            "256.1.1.1",
            "1.2.3",
            "10.0.0.1.",
            "12345",
            "::1%",
            "fe80::1%e/0",
            "1.2.3.4%eth0",
            "a.b.",
        ]);
        breaks::<HostName>(&[&"a".repeat(64), &["a"; 128].join("."), "a\n"]);
        keeps::<HostName>(&[&"a".repeat(63), &["a"; 127].join(".")]);
    }

    #[test]
    fn values_of_each_type_are_checked_by_their_rule() {
        keeps::<UserName>(&["root", "_apt", "j.doe", "kvm-backup2", "Bob"]);
        breaks::<UserName>(&["", "-x", "1st", "a b", "a:b", "a@b", "a$(id)", &"a".repeat(33)]);
        keeps::<AbsolutePath>(&["/", "/backup/kvm", "/with space/ü"]);
        breaks::<AbsolutePath>(&["", "backup", "~/x", "./x", "/a\nb", "/a\0"]);
        keeps::<MachineName>(&["vm1", "web*", "db[12]", "[!a]x", "a b", "x]"]);
        breaks::<MachineName>(&["", "a/b", "a\nb", "web[1", "a[b]["]);
        keeps::<DiskName>(&["vda", "nvme0n1", "x"]);
        breaks::<DiskName>(&["", "0a", "vda,vdb", "vd*", "a b", "abcdefghijklmnopqrstuvwxyzabcdefg"]);
        keeps::<LibvirtUri>(&[
            "qemu:///system",
            "qemu+ssh://root@host/system",
            "qemu:///embed?root=/x",
            "test:///default",
        ]);
        breaks::<LibvirtUri>(&["", "system", "://", "Qemu:///x", "qemu:/// x"]);
        keeps::<Cron>(&["0 2 * * *", "@daily", "*/15 1-5 * jan,feb mon-fri", " 0  2 * * 7 "]);
        breaks::<Cron>(&["", "0 2 * *", "60 2 * * *", "@dayly", "0 0 30 2 *", "0 2 * * * *"]);
        keeps::<CommandLine>(&["pass show kvmb"]);
        breaks::<CommandLine>(&["", "  ", "a\nb"]);
    }

    #[test]
    fn repository_addresses_are_checked_and_passwords_refused() {
        keeps::<RepoAddress>(&[
            "",
            "/backup",
            "sftp://kvm@backup:2222/kvm",
            "sftp://backup/kvm",
            "sftp://u@[::1]:22/x",
        ]);
        breaks::<RepoAddress>(&[
            "backup",
            "sftp://u:secret@host/x",
            "sftp://host",
            "sftp://host:0/x",
            "sftp://ho_st/x",
        ]);
        breaks::<RepoAddress>(&[
            "s3:x",
            "s3:k:s@host/bucket",
            "rest:host",
            "rest:http://u:p@host/",
            "sftp://host:port/x",
            "sftp:///x",
            "sftp://u@[::1]22/x",
            "sftp://@host/x",
        ]);
    }

    proptest! {
        #[test]
        fn every_rfc_1123_name_is_a_host(labels in prop::collection::vec("[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?",
            1..6), last in "[a-z]{2,10}") {
            let name = labels.into_iter().chain([last]).collect::<Vec<_>>().join(".");
            prop_assert_eq!(HostName::read(&name), Some(HostName::Name));
        }

        #[test]
        fn every_ip_address_is_a_host(v4: [u8; 4], v6: [u16; 8]) {
            prop_assert_eq!(HostName::read(&Ipv4Addr::from(v4).to_string()), Some(HostName::V4));
            prop_assert_eq!(HostName::read(&Ipv6Addr::from(v6).to_string()), Some(HostName::V6));
        }

        #[test]
        fn shell_url_and_terminal_metacharacters_are_refused(text in ".*", bad in "[ \
            /@\\\\'\"$`;|&<>()\\[\\]{}*?#!\u{0}-\u{1f}\u{7f}-\u{a0}]", tail in ".*") {
            let text = format!("{text}{bad}{tail}");
            prop_assert_eq!(HostName::read(&text), None);
            prop_assert_eq!(UserName::read(&text), None);
        }

        #[test]
        fn value_parsers_never_panic(text in "\\PC*") {
            let _ = (HostName::read(&text), UserName::read(&text), RepoAddress::read(&text), MachineName::read(&text));
            let _ = (RepoAddress::read(&format!("sftp://{text}")), LibvirtUri::read(&text), ShareText::read(&text));
        }
    }
}
