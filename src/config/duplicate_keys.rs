//! Finds keys that appear more than once in an object of a JSON text. Parsers take the last one and silently ignore the
//! others.

use super::schema::is_comment;
use serde::de::DeserializeSeed;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::collections::BTreeSet;
use std::fmt;

/// Returns the full names of duplicate keys, each once. Comments may be repeated. Returns nothing for a text that is
/// not JSON.
pub(super) fn find(text: &str) -> Vec<String> {
    let mut found = BTreeSet::new();
    let walk = Walk { path: String::new(), found: &mut found };
    let _ = walk.deserialize(&mut serde_json::Deserializer::from_str(text));
    found.into_iter().collect()
}

struct Walk<'a> {
    /// The path of the value, followed by a dot.
    path: String,
    found: &'a mut BTreeSet<String>,
}

impl Walk<'_> {
    fn inside(&mut self, step: &dyn fmt::Display) -> Walk<'_> {
        Walk { path: format!("{}{step}.", self.path), found: self.found }
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        let mut seen = BTreeSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if is_comment(&key) {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            map.next_value_seed(self.inside(&key))?;
            if !seen.insert(key.clone()) {
                self.found.insert(format!("{}{key}", self.path));
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        let mut at = 0;
        while items.next_element_seed(self.inside(&at))?.is_some() {
            at += 1;
        }
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicate_keys_are_found_at_any_depth_except_comments() {
        let text = r#"{"a": 1, "b": {"x": [null, {"y": true, "y": -2, "y": "z"}]}, "a": 0.5, "c": {"a": 1}}"#;
        assert_eq!(find(text), ["a", "b.x.1.y"]);
        assert!(find(r#"{"//": "one", "//": {"a": 1, "a": 2}, "a": {"b": 1}, "b": 1}"#).is_empty());
    }
}
