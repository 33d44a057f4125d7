//! Changes of the configuration file that preserve its comments, order and white space.
//!
//! Only the value of a key is replaced in the text. A new key is added at the end of its object, with the indentation
//! of its neighbours.

use super::{Config, SECRET_KEYS, schema};
use crate::suggest::nearest_word;
use serde_json::Value;

/// A change of one key.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Change {
    /// The key as a path: `ssh`, `port`.
    pub(crate) path: Vec<String>,
    /// Its new value; None removes the key.
    pub(crate) value: Option<Value>,
}

/// Why a text is not a valid change.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(crate) enum ChangeError {
    /// There is no `=`.
    #[error("\"{text}\" is not of the form KEY=VALUE")]
    NoValue {
        /// The text.
        text: String,
    },
    /// There is no such key.
    #[error("the key \"{key}\" is unknown")]
    UnknownKey {
        /// The key.
        key: String,
        /// The most similar key.
        nearest: Option<String>,
    },
    /// The value is a list or an object, and the text is not JSON.
    #[error("the value of \"{key}\" must be JSON: {reason}")]
    NotJson {
        /// The key.
        key: String,
        /// The parser's message, with the position of the error.
        reason: String,
    },
    /// A part of the path has a value that is not an object.
    #[error("the key \"{key}\" has a value that is not an object")]
    NotObject {
        /// The key.
        key: String,
    },
}

impl Change {
    /// Parses `KEY=VALUE`: a number or `true` as such, a list or an object as JSON, and any other text as a string.
    pub(crate) fn parse(text: &str) -> Result<Change, ChangeError> {
        // The name of a machine may contain an equals sign; the values of these keys, `true` or a list of disks, do
        // not.
        let by_machine = ["selected_vms.", "excluded_disks."].into_iter().find(|prefix| text.starts_with(prefix));
        let (key, value) = match by_machine.and_then(|_| text.rsplit_once('=')) {
            Some((key, value)) => (key.to_owned(), value),
            None => {
                let (key, value) =
                    text.split_once('=').ok_or_else(|| ChangeError::NoValue { text: text.to_owned() })?;
                (key.to_owned(), value)
            }
        };
        let (path, schema) = path_of(&key)?;
        let value = typed(&key, &path, value, schema)?;
        Ok(Change { path, value: Some(value) })
    }

    /// Creates the removal of a key.
    pub(crate) fn removal(key: &str) -> Result<Change, ChangeError> {
        Ok(Change { path: path_of(key)?.0, value: None })
    }

    /// Returns the key as people write it.
    pub(crate) fn key(&self) -> String {
        self.path.join(".")
    }

    /// Whether its value may reveal a password.
    pub(crate) fn is_secret(&self) -> bool {
        SECRET_KEYS.contains(&self.key().as_str())
    }
}

/// Returns the path of a key, and the schema of its value. User-defined names may contain dots.
fn path_of(key: &str) -> Result<(Vec<String>, &'static Value), ChangeError> {
    let (mut path, mut schema, mut rest) = (Vec::new(), schema::of_config(), key);
    loop {
        if let Some(entry) = schema::of_entries(schema).filter(|_| schema.get("properties").is_none()) {
            path.push(rest.to_owned());
            return Ok((path, entry));
        }
        let (step, tail) = rest.split_once('.').map_or((rest, None), |(step, tail)| (step, Some(tail)));
        let known = schema.get("properties").and_then(Value::as_object);
        let Some(inner) = known.and_then(|known| known.get(step)) else {
            return Err(ChangeError::UnknownKey { key: key.to_owned(), nearest: nearest_key(key) });
        };
        path.push(step.to_owned());
        match tail {
            None => return Ok((path, inner)),
            Some(tail) => (schema, rest) = (inner, tail),
        }
    }
}

fn nearest_key(key: &str) -> Option<String> {
    let mut keys = Vec::new();
    schema::each_key(&mut |known, _| keys.push(known.to_owned()));
    nearest_word(key, keys.iter().map(String::as_str)).map(str::to_owned)
}

fn typed(key: &str, path: &[String], text: &str, schema: &Value) -> Result<Value, ChangeError> {
    let is = |wanted: &str| match schema.get("type") {
        Some(Value::Array(kinds)) => kinds.iter().any(|kind| kind == wanted),
        kind => kind.is_some_and(|kind| kind == wanted),
    };
    if is("array") || is("object") || schema::is_of_objects(schema) {
        let reason = |error: serde_json::Error| error.to_string();
        return serde_json::from_str(text)
            .map_err(|error| ChangeError::NotJson { key: key.to_owned(), reason: reason(error) });
    }
    // Use a number or `true` as such if the key accepts it.
    let plain = serde_json::from_str::<Value>(text).ok().filter(|value| value.is_number() || value.is_boolean());
    Ok(plain.filter(|value| is_taken(path, value)).unwrap_or_else(|| Value::from(text)))
}

/// Whether a document that contains only this value is a configuration.
fn is_taken(path: &[String], value: &Value) -> bool {
    let document = path
        .iter()
        .rev()
        .fold(value.clone(), |inner, step| Value::Object(serde_json::Map::from_iter([(step.clone(), inner)])));
    serde_json::from_value::<Config>(document).is_ok()
}

/// Applies changes to a text, which must be a JSON object.
pub(crate) fn apply(text: &str, changes: &[Change]) -> Result<String, ChangeError> {
    let mut text = text.to_owned();
    for change in changes {
        text = match &change.value {
            Some(value) => set(&text, &change.path, value)?,
            None => remove(&text, &change.path)?,
        };
    }
    Ok(text)
}

/// Hides the values of keys that may reveal a password.
pub(crate) fn without_secrets(text: &str) -> String {
    let mut text = text.to_owned();
    for key in SECRET_KEYS {
        let path: Vec<String> = key.split('.').map(str::to_owned).collect();
        if let Ok(KeyPlace::Value { value, .. }) = find(&text, &path) {
            text.replace_range(value.0..value.1, "\"(hidden)\"");
        }
    }
    text
}

fn set(text: &str, path: &[String], value: &Value) -> Result<String, ChangeError> {
    let mut changed = text.to_owned();
    match find(text, path)? {
        KeyPlace::Value { value: (start, end), .. } => {
            let column = indent_of_line(text, start);
            changed.replace_range(start..end, &pretty(value, column, &unit(text)));
        }
        KeyPlace::Missing { depth, open, last_end, close } => {
            // Create the missing part of the path around the value.
            let inner = path[depth + 1..]
                .iter()
                .rev()
                .fold(value.clone(), |inner, step| Value::Object(serde_json::Map::from_iter([(step.clone(), inner)])));
            let unit = unit(text);
            let outer = indent_of_line(text, open);
            let is_inline = last_end.is_some() && !text[open..close].contains('\n');
            let indent = if is_inline { outer.clone() } else { format!("{outer}{unit}") };
            let member = format!("{}: {}", Value::from(path[depth].as_str()), pretty(&inner, indent.clone(), &unit));
            match (last_end, is_inline) {
                (Some(end), true) => changed.insert_str(end, &format!(", {member}")),
                (Some(end), false) => changed.insert_str(end, &format!(",\n{indent}{member}")),
                (None, _) => changed.replace_range(open + 1..close, &format!("\n{indent}{member}\n{outer}")),
            }
        }
    }
    Ok(changed)
}

fn remove(text: &str, path: &[String]) -> Result<String, ChangeError> {
    let KeyPlace::Value { key_start, value: (_, end), previous_end, next_start } = find(text, path)? else {
        return Ok(text.to_owned());
    };
    let mut changed = text.to_owned();
    match (previous_end, next_start) {
        // Remove the preceding comma and white space too.
        (Some(previous), _) => changed.replace_range(previous..end, ""),
        (None, Some(next)) => changed.replace_range(key_start..next, ""),
        (None, None) => changed.replace_range(key_start..end, ""),
    }
    Ok(changed)
}

/// The position of a key in a text, or the position for a new one.
#[derive(Debug)]
enum KeyPlace {
    Value {
        key_start: usize,
        value: (usize, usize),
        previous_end: Option<usize>,
        next_start: Option<usize>,
    },
    /// The object at `path[..depth]`, from `open` to `close` (its braces), does not have the key.
    Missing {
        depth: usize,
        open: usize,
        last_end: Option<usize>,
        close: usize,
    },
}

/// Finds a key. If there are several with the same name, returns the last one, which is in effect.
fn find(text: &str, path: &[String]) -> Result<KeyPlace, ChangeError> {
    let mut open = skip_space(text, 0);
    for depth in 0..path.len() {
        if text.as_bytes().get(open) != Some(&b'{') {
            return Err(ChangeError::NotObject { key: path[..depth].join(".") });
        }
        let (members, close) = members(text, open);
        let found = members.iter().rposition(|member| member.key == path[depth]);
        match found {
            None => {
                let last_end = members.last().map(|member| member.value.1);
                return Ok(KeyPlace::Missing { depth, open, last_end, close });
            }
            Some(at) if depth + 1 == path.len() => {
                return Ok(KeyPlace::Value {
                    key_start: members[at].start,
                    value: members[at].value,
                    previous_end: at.checked_sub(1).map(|before| members[before].value.1),
                    next_start: members.get(at + 1).map(|next| next.start),
                });
            }
            Some(at) => open = members[at].value.0,
        }
    }
    Err(ChangeError::NotObject { key: path.join(".") })
}

struct ObjectMember {
    key: String,
    start: usize,
    value: (usize, usize),
}

/// Returns the members of the object that begins at `open`, and the position of its closing brace. The text must be
/// valid JSON.
fn members(text: &str, open: usize) -> (Vec<ObjectMember>, usize) {
    let bytes = text.as_bytes();
    let mut members = Vec::new();
    let mut at = skip_space(text, open + 1);
    while bytes.get(at) == Some(&b'"') {
        let start = at;
        let end = skip_value(text, at);
        let key = serde_json::from_str(&text[start..end]).unwrap_or_default();
        let value_start = skip_space(text, skip_space(text, end) + 1);
        let value_end = skip_value(text, value_start);
        members.push(ObjectMember { key, start, value: (value_start, value_end) });
        at = skip_space(text, value_end);
        if bytes.get(at) == Some(&b',') {
            at = skip_space(text, at + 1);
        }
    }
    (members, at)
}

fn skip_space(text: &str, from: usize) -> usize {
    let rest = text.as_bytes().get(from..).unwrap_or_default();
    from + rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count()
}

/// Returns the end of the value that begins at `from`.
fn skip_value(text: &str, from: usize) -> usize {
    let bytes = text.as_bytes();
    let (mut at, mut depth, mut in_string) = (from, 0usize, false);
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'\\' if in_string => at += 1,
            b'"' => {
                in_string = !in_string;
                if !in_string && depth == 0 {
                    return at + 1;
                }
            }
            _ if in_string => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 0 => return at,
            b'}' | b']' => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            byte if depth == 0 && (*byte == b',' || byte.is_ascii_whitespace()) => return at,
            _ => {}
        }
        at += 1;
    }
    at
}

/// Returns the indentation of the line at a position.
fn indent_of_line(text: &str, at: usize) -> String {
    let line = text[..at].rsplit('\n').next().unwrap_or_default();
    line.chars().take_while(|c| *c == ' ' || *c == '\t').collect()
}

/// Returns the indentation of one level, which is that of the first key of the text.
fn unit(text: &str) -> String {
    let first = text.lines().skip(1).find(|line| line.trim_start().starts_with('"'));
    let indent: String =
        first.map(|line| line.chars().take_while(|c| *c == ' ' || *c == '\t').collect()).unwrap_or_default();
    if indent.is_empty() { "  ".into() } else { indent }
}

/// Formats a value; long ones take several lines.
fn pretty(value: &Value, indent: String, unit: &str) -> String {
    let inner = format!("{indent}{unit}");
    match value {
        Value::Object(object) if !object.is_empty() => {
            let member = |(key, value): (&String, &Value)| {
                format!("{inner}{}: {}", Value::from(key.as_str()), pretty(value, inner.clone(), unit))
            };
            let members: Vec<String> = object.iter().map(member).collect();
            format!("{{\n{}\n{indent}}}", members.join(",\n"))
        }
        Value::Array(items) if items.iter().any(|item| item.is_object() || item.is_array()) => {
            let items: Vec<String> =
                items.iter().map(|item| format!("{inner}{}", pretty(item, inner.clone(), unit))).collect();
            format!("[\n{}\n{indent}]", items.join(",\n"))
        }
        Value::Array(items) => {
            format!("[{}]", items.iter().map(Value::to_string).collect::<Vec<_>>().join(", "))
        }
        plain => plain.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::document;
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const FILE: &str = r#"{
    "//": "our server",
    "backup_host": "backup.example.com",
    "selected_vms": {"vm1": true, "a.b": false},

    "ssh": {
        "//port": "the firewall's",
        "port": 22
    },
    "hooks": {}
}
"#;

    fn edited(text: &str, changes: &[&str]) -> String {
        let changes: Vec<Change> = changes
            .iter()
            .map(|change| match change.strip_prefix('-') {
                Some(key) => Change::removal(key).unwrap(),
                None => Change::parse(change).unwrap(),
            })
            .collect();
        apply(text, &changes).unwrap()
    }

    #[test]
    fn edit_replaces_one_value_and_preserves_the_rest() {
        assert_eq!(edited(FILE, &["ssh.port=2222"]), FILE.replace("22\n", "2222\n"));
        assert_eq!(edited(FILE, &["selected_vms.a.b=true"]), FILE.replace("false", "true"));
        assert_eq!(edited(FILE, &["backup_host=192.0.2.1"]), FILE.replace("backup.example.com", "192.0.2.1"));
    }

    #[test]
    fn new_keys_are_appended_with_the_indentation_of_their_object() {
        assert_eq!(edited(FILE, &["jobs=4"]), FILE.replace("\"hooks\": {}\n", "\"hooks\": {},\n    \"jobs\": 4\n"));
        assert_eq!(edited(FILE, &["selected_vms.web*=true"]), FILE.replace("false}", "false, \"web*\": true}"));
        assert_eq!(edited(FILE, &["ssh.connections=2"]), FILE.replace("22\n", "22,\n        \"connections\": 2\n"));
        assert_eq!(
            edited(FILE, &["retention.local.keep_daily=7"]),
            FILE.replace(
                "\"hooks\": {}\n",
                "\"hooks\": {},\n    \"retention\": {\n        \"local\": {\n            \
                 \"keep_daily\": 7\n        }\n    }\n"
            )
        );
        assert_eq!(edited("{}", &["jobs=4"]), "{\n  \"jobs\": 4\n}");
        assert_eq!(
            edited(FILE, &[r#"hooks.after_run=[{"command":["a","b"]}]"#]),
            FILE.replace(
                "{}",
                "{\n        \"after_run\": [\n            {\n                \
                 \"command\": [\"a\", \"b\"]\n            }\n        ]\n    }"
            )
        );
    }

    #[test]
    fn removed_key_takes_its_comma_along() {
        assert_eq!(edited(FILE, &["-hooks"]), FILE.replace(",\n    \"hooks\": {}", ""));
        assert_eq!(edited(FILE, &["-selected_vms.vm1"]), FILE.replace("\"vm1\": true, ", ""));
        assert_eq!(edited(r#"{"jobs": 1}"#, &["-jobs", "-ssh.port"]), "{}");
    }

    #[test]
    fn new_values_are_parsed_by_the_type_of_their_key() {
        let value = |text: &str| Change::parse(text).unwrap().value.unwrap();
        assert_eq!(value("jobs=4"), json!(4));
        assert_eq!(value("limit_upload=20M"), json!("20M"));
        assert_eq!(value("auto_backup=false"), json!(false));
        assert_eq!(value("backup_host=10"), json!("10"));
        assert_eq!(value("repo="), json!(""));
        assert_eq!(value("password_command=echo a=b"), json!("echo a=b"));
        assert_eq!(value("selected_vms.a=b=true"), json!(true));
        assert_eq!(Change::parse("selected_vms.a=b=true").unwrap().path, ["selected_vms", "a=b"]);
        assert_eq!(value(r#"excluded_disks.a.b=c=["vdb"]"#), json!(["vdb"]));
        assert_eq!(Change::parse(r#"excluded_disks.a.b=c=["vdb"]"#).unwrap().path, ["excluded_disks", "a.b=c"]);
        // An invalid value is refused when the document is checked.
        assert_eq!(value("jobs=many"), json!("many"));
        assert!(matches!(Change::parse("jobs"), Err(ChangeError::NoValue { .. })));
        assert!(matches!(Change::parse("hooks.after_run=x"), Err(ChangeError::NotJson { .. })));
        match Change::parse("ssh.prot=1") {
            Err(ChangeError::UnknownKey { nearest, .. }) => assert_eq!(nearest.as_deref(), Some("ssh.port")),
            other => panic!("{other:?}"),
        }
        let text = r#"{"ssh": 1}"#;
        let change = Change::parse("ssh.port=1").unwrap();
        assert!(matches!(apply(text, &[change]), Err(ChangeError::NotObject { .. })));
    }

    #[test]
    fn the_last_of_duplicate_keys_is_edited() {
        assert_eq!(edited(r#"{"jobs": 1, "jobs": 2}"#, &["jobs=3"]), r#"{"jobs": 1, "jobs": 3}"#);
    }

    #[test]
    fn secrets_are_hidden() {
        let text = r#"{"password_command": "echo \"secret\"", "ssh": {"password_command": "echo x"}}"#;
        let hidden = without_secrets(text);
        assert_eq!(hidden, r#"{"password_command": "(hidden)", "ssh": {"password_command": "(hidden)"}}"#);
    }

    proptest! {
        #[test]
        fn edits_preserve_all_other_values_of_any_document(
            host in "[ -~é\\\\\"]{0,20}", pretty in any::<bool>(), name in "[ -~é]{1,12}", taken in any::<bool>(),
        ) {
            let document = json!({"//": host, "backup_host": "h", "selected_vms": {"x{": true, name.clone(): !taken},
                "jobs": 1, "hooks": {"after_run": [{"command": [host.clone(), "]}"]}]}});
            let text = if pretty { serde_json::to_string_pretty(&document).unwrap() } else { document.to_string() };
            let path = vec!["selected_vms".to_owned(), name.clone()];
            let changes = [Change { path, value: Some(json!(taken)) }, Change::parse("limits.libvirt=9s").unwrap()];
            let changed: Value = serde_json::from_str(&apply(&text, &changes).unwrap()).unwrap();
            let mut expected = document;
            expected["selected_vms"][&name] = json!(taken);
            expected["limits"] = json!({"libvirt": "9s"});
            prop_assert_eq!(changed, expected);
        }
    }

    #[test]
    fn edited_file_is_still_a_valid_configuration() {
        let text = edited(FILE, &["jobs=4", "retention.local.keep_daily=7", "-backup_host"]);
        document::read(&text).unwrap();
    }
}
