//! Parses a text into a [`Config`], or lists *all* its errors, so that they can be fixed at once.
//!
//! The schema defines which keys exist. Each single value is then tested in a document that contains nothing else: if
//! that does not deserialise into a [`Config`], the value is invalid, and its full key is known. The same test decides
//! whether a repaired value would be valid.

use super::duplicate_keys;
use super::repairs::repairs;
use super::schema::{self, is_comment};
use super::{Config, KeyError, SECRET_KEYS};
use crate::suggest::nearest_word;
use serde_json::{Map, Value};

/// Why a text is not a valid configuration.
#[derive(Debug, Clone, PartialEq)]
pub enum DocumentError {
    /// The text is not a JSON object.
    NotJson(String),
    /// Some keys or values are invalid.
    Faults(Vec<KeyError>),
}

/// Parses a configuration. Also returns the document without comments and empty values.
pub fn read(text: &str) -> Result<(Config, Value), DocumentError> {
    // Some Windows editors write a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let document: Value = serde_json::from_str(text).map_err(|error| DocumentError::NotJson(error.to_string()))?;
    let Value::Object(object) = document else {
        return Err(DocumentError::NotJson("it must be a JSON object: { … }".into()));
    };
    let mut walk = KeyWalk { faults: duplicate_keys::find(text).iter().map(|key| twice(key)).collect() };
    let kept = walk.object(&[], object, schema::of_config());
    if !walk.faults.is_empty() {
        return Err(DocumentError::Faults(walk.faults));
    }
    // Every value has been tested separately, so this should not fail.
    let config: Config =
        serde_json::from_value(kept.clone()).map_err(|error| DocumentError::NotJson(error.to_string()))?;
    match config.contradictions() {
        faults if faults.is_empty() => Ok((config, kept)),
        faults => Err(DocumentError::Faults(faults)),
    }
}

/// A step from a value to one inside it.
#[derive(Debug, Clone)]
enum PathSegment {
    Key(String),
    Item(usize),
}

struct KeyWalk {
    faults: Vec<KeyError>,
}

impl KeyWalk {
    fn object(&mut self, path: &[PathSegment], object: Map<String, Value>, schema: &Value) -> Value {
        let mut kept = Map::new();
        for (key, value) in object {
            if is_comment(&key) {
                continue;
            }
            let inner = [path, &[PathSegment::Key(key.clone())]].concat();
            let known = schema.get("properties").and_then(Value::as_object);
            match (known.and_then(|known| known.get(&key)), schema::of_entries(schema)) {
                (Some(schema), _) | (None, Some(schema)) => {
                    if let Some(value) = self.value(&inner, value, schema) {
                        kept.insert(key, value);
                    }
                }
                (None, None) => {
                    let names: Vec<&str> =
                        known.map(|known| known.keys().map(String::as_str).collect()).unwrap_or_default();
                    self.faults.push(KeyError {
                        nearest: nearest_word(&key, names).map(str::to_owned),
                        ..KeyError::rule(&name(&inner), "is unknown")
                    });
                }
            }
        }
        Value::Object(kept)
    }

    /// Returns what to keep of a value: nothing if it is invalid or empty.
    fn value(&mut self, path: &[PathSegment], value: Value, schema: &Value) -> Option<Value> {
        match (value, schema.get("items")) {
            (Value::Object(object), _) if schema::is_of_objects(schema) => Some(self.object(path, object, schema)),
            (Value::Array(items), Some(schema)) if schema::is_of_objects(schema) => {
                let items = items.into_iter().enumerate();
                let kept =
                    items.filter_map(|(at, item)| self.value(&[path, &[PathSegment::Item(at)]].concat(), item, schema));
                Some(Value::Array(kept.collect()))
            }
            (value, _) => match trial(path, &value) {
                // serde would accept a list for a struct, with the items in the order of the fields.
                Ok(()) if value.is_array() && schema::is_of_objects(schema) => {
                    self.faults.push(KeyError {
                        value: Some(value),
                        ..KeyError::rule(&name(path), "must be an object: { … }")
                    });
                    None
                }
                Ok(()) => Some(value),
                Err(_) if value.is_null() || value.as_str() == Some("") => None,
                Err(rule) => {
                    let key = name(path);
                    let mut right =
                        repairs(&value, schema).into_iter().filter(|repaired| trial(path, repaired).is_ok());
                    let is_secret = SECRET_KEYS.contains(&key.as_str());
                    let nearest = right.next().filter(|_| !is_secret).map(|repaired| repaired.to_string());
                    let value = (!is_secret).then_some(value);
                    self.faults.push(KeyError { key, value, rule: format!("must be {rule}"), nearest });
                    None
                }
            },
        }
    }
}

/// Tests whether a document that contains only this value is a configuration. Returns the violated rule.
fn trial(path: &[PathSegment], value: &Value) -> Result<(), String> {
    let document = path.iter().rev().fold(value.clone(), |inner, step| match step {
        PathSegment::Key(key) => Value::Object(Map::from_iter([(key.clone(), inner)])),
        PathSegment::Item(_) => Value::Array(vec![inner]),
    });
    match serde_json::from_value::<Config>(document) {
        Ok(_) => Ok(()),
        Err(error) => Err(plain_rule(&error.to_string())),
    }
}

/// Returns kvmb's own rules unchanged, and rewrites serde's type errors in terms of JSON.
fn plain_rule(message: &str) -> String {
    if let Some((_, rule)) = message.split_once(" is not a ") {
        return format!("a {rule}");
    }
    let Some((_, expected)) = message.rsplit_once(", expected ") else {
        return message.to_owned();
    };
    match expected {
        "a boolean" => "true or false".into(),
        "a sequence" => "a list: [ … ]".into(),
        "a map" => "an object: { … }".into(),
        "a string" => "a string".into(),
        words if words.starts_with("struct ") => "an object: { … }".into(),
        words => words.replace('`', "\""),
    }
}

fn twice(path: &str) -> KeyError {
    KeyError::rule(path, "appears more than once")
}

/// Formats a path as people write it.
fn name(path: &[PathSegment]) -> String {
    let step = |step: &PathSegment| match step {
        PathSegment::Key(key) => key.clone(),
        PathSegment::Item(at) => at.to_string(),
    };
    path.iter().map(step).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn faults(document: Value) -> Vec<KeyError> {
        match read(&document.to_string()) {
            Err(DocumentError::Faults(faults)) => faults,
            other => panic!("{document} was not refused: {other:?}"),
        }
    }

    /// Returns the suggestion for the only invalid key.
    fn nearest(document: Value) -> Option<String> {
        let faults = faults(document.clone());
        assert_eq!(faults.len(), 1, "{document}: {faults:?}");
        faults.into_iter().next().and_then(|fault| fault.nearest)
    }

    #[test]
    fn byte_order_mark_and_crlf_are_accepted() {
        let (config, _) = read("\u{feff}{\r\n  \"repo\": \"/backup\"\r\n}\r\n").unwrap();
        assert_eq!(config.primary_repo(), Some("/backup".to_owned()));
    }

    #[test]
    fn original_six_keys_are_still_read() {
        let text = r#"{"backup_host": "backup.example.com", "backup_user": "kvm", "backup_path": "/backup/kvm",
            "auto_backup": false, "backup_freq": "30 1 * * 0", "selected_vms": {"vm1": true, "vm2": false}}"#;
        let (config, kept) = read(text).unwrap();
        assert_eq!(config.backup_host.unwrap().text(), "backup.example.com");
        assert!(!config.auto_backup);
        assert_eq!(config.backup_freq.unwrap().text(), "30 1 * * 0");
        let chosen: Vec<_> = config.selected_vms.iter().map(|(name, taken)| (name.text(), *taken)).collect();
        assert_eq!(chosen, [("vm1", true), ("vm2", false)]);
        assert_eq!(kept, serde_json::from_str::<Value>(text).unwrap());
    }

    #[test]
    fn empty_and_null_values_are_unset_and_comments_are_ignored() {
        let (config, kept) = read(
            r#"{"//": "x", "backup_host": "", "backup_user": "", "backup_path": null, "jobs": null, "ssh": {"//port": 1, "port": null},
                "hooks": {"after_run": [{"//": 1, "command": ["true"], "timeout": ""}]}, "log": {"max_size": ""}}"#,
        )
        .unwrap();
        assert_eq!(config.hooks.after_run.len(), 1);
        assert_eq!(Config { hooks: Default::default(), ..config }, Config::default());
        assert_eq!(kept["log"], json!({}));
        // An empty repository has a meaning.
        let (config, _) = read(r#"{"repo": "", "backup_host": "h", "backup_path": "/x"}"#).unwrap();
        assert_eq!(config.repo.unwrap().text(), "");
    }

    #[test]
    fn all_faults_are_listed_with_key_value_and_rule() {
        let found = faults(json!({
            "backup_host": "my_host", "bakup_path": "/x", "ssh": {"port": 99999, "prot": 22},
            "backup_freq": "61 2 * * *", "retention": {"local": {"keep_within": "soon", "keep_dayly": 7}},
            "selected_vms": {"vm1": "yes", "a/b": true}, "hooks": {"before_run": [{"command": ["a"], "timout": "5m"}]}
        }));
        let messages: Vec<String> = found.iter().map(KeyError::to_string).collect();
        assert_eq!(
            messages,
            [
                "the key \"backup_host\" is \"my_host\" and must be a host name (letters, digits, '-' and '.'), an \
                 IPv4 or an IPv6 address",
                "the key \"bakup_path\" is unknown",
                "the key \"ssh.port\" is 99999 and must be a whole number from 1 to 65535",
                "the key \"ssh.prot\" is unknown",
                "the key \"backup_freq\" is \"61 2 * * *\" and must be a time as in crontab(5): invalid minute '61': \
                 it goes from 0 to 59",
                "the key \"retention.local.keep_within\" is \"soon\" and must be a duration: expected numbers with y, \
                 m (months), w, d or h, such as 30d or 1y6m",
                "the key \"retention.local.keep_dayly\" is unknown",
                "the key \"selected_vms.vm1\" is \"yes\" and must be true or false",
                "the key \"selected_vms.a/b\" is true and must be the name of a machine or a glob ('web*', 'db[12]'), \
                 without '/'",
                "the key \"hooks.before_run.0.timout\" is unknown",
            ]
        );
        let nearest: Vec<Option<&str>> = found.iter().map(|fault| fault.nearest.as_deref()).collect();
        let host = Some("\"my-host\"");
        let wanted = [
            host,
            Some("backup_path"),
            None,
            Some("port"),
            None,
            None,
            Some("keep_daily"),
            Some("true"),
            None,
            Some("timeout"),
        ];
        assert_eq!(nearest, wanted);
    }

    #[test]
    fn invalid_values_get_the_nearest_valid_suggestion() {
        for (key, wrong, right) in [
            ("backup_path", json!("backup/kvm"), json!("/backup/kvm")),
            ("backup_host", json!(" Backup.Example.com "), json!("Backup.Example.com")),
            ("backup_host", json!("kvm@backup"), json!("backup")),
            ("backup_host", json!("[::1]"), json!("::1")),
            ("backup_host", json!("sftp://kvm@backup:22/x"), json!("backup")),
            ("backup_host", json!("backup:22"), json!("backup")),
            ("backup_user", json!("john doe"), json!("johndoe")),
            ("auto_backup", json!("yes"), json!(true)),
            ("auto_backup", json!("False"), json!(false)),
            ("auto_backup", json!(0), json!(false)),
            ("jobs", json!("4"), json!(4)),
            ("lease", json!("6 hours"), json!("6h")),
            ("lease", json!("90 min"), json!("90m")),
            ("lease", json!(30), json!("30s")),
            ("audit", json!("0.5 %"), json!("0.5%")),
            ("audit", json!(5), json!("5%")),
            ("backup_freq", json!("@dayly"), json!("@daily")),
            ("backup_freq", json!("Daily"), json!("@daily")),
            ("backup_freq", json!("02:30"), json!("30 2 * * *")),
            ("backup_freq", json!("0 2 * *"), json!("0 2 * * *")),
            ("backup_freq", json!("0 0 2 * * *"), json!("0 2 * * *")),
            ("backup_freq", json!("0 2 ? * MON"), json!("0 2 * * MON")),
            ("freeze", json!("nevr"), json!("never")),
            ("freeze", json!("REQUIRED"), json!("required")),
        ] {
            let found = nearest(json!({ key: wrong }));
            assert_eq!(found, Some(right.to_string()), "{key}: {wrong}");
        }
        for (wrong, right) in
            [("10 MB", "10M"), ("5gb", "5G"), ("512 KiB", "512K"), ("1 g", "1G"), ("100 bytes", "100")]
        {
            assert_eq!(nearest(json!({"log": {"max_size": wrong}})), Some(json!(right).to_string()), "{wrong}");
        }
        assert_eq!(nearest(json!({"retention": {"local": {"keep_daily": "7"}}})), Some("7".into()));
        assert_eq!(
            nearest(json!({"retention": {"remote": {"keep_last": "Unlimited"}}})),
            Some(r#""unlimited""#.into())
        );
        assert_eq!(nearest(json!({"retention": {"local": {"keep_within": "30 days"}}})), Some(r#""30d""#.into()));
        let command = json!({"hooks": {"after_run": [{"command": "mail -s 'it is done' root"}]}});
        assert_eq!(nearest(command), Some(r#"["mail","-s","it is done","root"]"#.into()));
        assert_eq!(
            nearest(json!({"hooks": {"after_run": [{"command": ["x"], "when": "failure"}]}})),
            Some(r#""failed""#.into())
        );
    }

    #[test]
    fn secrets_are_not_repeated_in_faults() {
        let found = faults(json!({"password_command": 12345, "ssh": {"password_command": ["hunter2"]}}));
        assert_eq!(found.len(), 2);
        for fault in &found {
            let text = format!("{fault} {:?}", fault.nearest);
            assert!(!text.contains("12345") && !text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn missing_and_conflicting_keys_are_reported() {
        for (document, key) in [
            (json!({"backup_host": "h"}), "backup_path"),
            (json!({"password_file": "/p", "password_command": "x"}), "password_command"),
            (json!({"ssh": {"password_file": "/p", "password_command": "x"}}), "ssh.password_command"),
            (json!({"repo": ""}), "backup_host"),
            (json!({"hooks": {"before_run": [{"timeout": "1m"}]}}), "hooks.before_run.0.command"),
            (json!({"hooks": {"after_machine": [{"command": [""]}]}}), "hooks.after_machine.0.command"),
        ] {
            let found = faults(document.clone());
            assert_eq!(found.iter().map(|fault| fault.key.as_str()).collect::<Vec<_>>(), [key], "{document}");
        }
    }

    #[test]
    fn documents_that_are_not_json_objects_are_refused() {
        for text in ["", "x", "[]", "1", "{", "{'a': 1}", "{\"jobs\": 1,}"] {
            assert!(matches!(read(text), Err(DocumentError::NotJson(_))), "{text}");
        }
        for document in [
            json!({"ssh": 1}),
            json!({"hooks": []}),
            json!({"selected_vms": ["vm1"]}),
            json!({"hooks": {"after_run": {}}}),
            json!({"hooks": {"after_run": [["true"]]}}),
        ] {
            assert_eq!(faults(document.clone()).len(), 1, "{document}");
        }
    }

    proptest! {
        /// Every value is either valid, or empty, or an error of this key with a valid suggestion.
        #[test]
        fn every_suggestion_is_valid(key in prop::sample::select(vec![
                "backup_host", "backup_user", "backup_path", "auto_backup", "backup_freq", "connect", "repo", "lease",
                "audit", "jobs", "freeze",
            ]), text in "[a-z0-9 /@:._%MG-]{0,12}", number in any::<i32>(), kind in 0..3) {
            let value = match kind { 0 => json!(text), 1 => json!(number), _ => json!([text]) };
            if let Err(DocumentError::Faults(found)) = read(&json!({key: value}).to_string()) {
                for fault in found.iter().filter(|fault| fault.key == key) {
                    if let Some(nearest) = &fault.nearest {
                        let nearest: Value = serde_json::from_str(nearest).unwrap();
                        prop_assert!(trial(&[PathSegment::Key(key.into())], &nearest).is_ok(), "{} {}", key, nearest);
                    }
                }
            }
        }
    }
}
