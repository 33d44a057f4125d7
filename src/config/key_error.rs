//! What can be wrong with one key of the configuration.

use serde_json::Value;
use std::fmt;

/// What is wrong with one key.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyError {
    /// The key, from the top: `ssh.port`, `hooks.before_run.0.command`.
    pub(crate) key: String,
    /// Its value; none where it is secret, or where the key is what is wrong.
    pub(crate) value: Option<Value>,
    /// The rule that is broken, as the end of a sentence that the key begins.
    pub(crate) rule: String,
    /// The nearest right spelling, of the value or, where that is what is wrong, of the key.
    pub(crate) nearest: Option<String>,
}

impl KeyError {
    /// A key that breaks a rule, whatever its value is.
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
