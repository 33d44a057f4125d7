//! Errors in one key of the configuration.

use serde_json::Value;
use std::fmt;

/// An error in one key.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyError {
    /// The key, from the top: `ssh.port`, `hooks.before_run.0.command`.
    pub(crate) key: String,
    /// Its value; none if it is secret, or if the key itself is invalid.
    pub(crate) value: Option<Value>,
    /// The violated rule, as the end of a sentence that begins with the key.
    pub(crate) rule: String,
    /// The suggestion: for the value, or for the key if the key itself is invalid.
    pub(crate) nearest: Option<String>,
}

impl KeyError {
    /// Creates the error of a key that violates a rule, whatever its value.
    pub(crate) fn rule(key: &str, rule: &str) -> KeyError {
        KeyError { key: key.to_owned(), value: None, rule: rule.to_owned(), nearest: None }
    }
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "the key \"{}\" is {value} and {}", self.key, self.rule),
            None => write!(f, "the key \"{}\" {}", self.key, self.rule),
        }
    }
}
