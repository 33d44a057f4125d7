//! The JSON Schema of the configuration, derived from the types and their doc comments.

use super::Config;
use schemars::Schema;
use schemars::generate::SchemaSettings;
use schemars::transform::{Transform, transform_subschemas};
use serde_json::{Value, json};
use std::sync::LazyLock;

/// The prefix of keys that are comments.
const COMMENT: &str = "//";

pub(crate) fn is_comment(key: &str) -> bool {
    key.starts_with(COMMENT)
}

/// Returns the schema.
pub(crate) fn of_config() -> &'static Value {
    static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
        let settings = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true);
        let generator = settings.with_transform(ForbidUnknownKeys).into_generator();
        generator.into_root_schema_for::<Config>().to_value()
    });
    &SCHEMA
}

/// Returns the schema of the entries of an object with user-defined names.
pub(crate) fn of_entries(schema: &Value) -> Option<&Value> {
    let entries = schema.get("patternProperties").and_then(Value::as_object);
    let named = entries.and_then(|entries| entries.iter().find(|(pattern, _)| !pattern.starts_with("^//")));
    named.map(|(_, schema)| schema).or_else(|| schema.get("additionalProperties").filter(|more| more.is_object()))
}

/// Whether a schema describes an object.
pub(crate) fn is_of_objects(schema: &Value) -> bool {
    schema.get("properties").is_some() || of_entries(schema).is_some()
}

/// Allows comments but no unknown keys in every object whose keys kvmb defines.
#[derive(Debug, Clone)]
struct ForbidUnknownKeys;

impl Transform for ForbidUnknownKeys {
    fn transform(&mut self, schema: &mut Schema) {
        transform_subschemas(self, schema);
        if schema.get("properties").is_some() {
            schema.insert("additionalProperties".into(), json!(false));
            schema.insert("patternProperties".into(), json!({ "^//": true }));
        }
    }
}

/// Calls `visit` for every key that has a value, such as `ssh.port`, with its schema.
pub(crate) fn each_key(visit: &mut dyn FnMut(&str, &Value)) {
    fn below(prefix: &str, schema: &Value, visit: &mut dyn FnMut(&str, &Value)) {
        for (key, schema) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            let key = format!("{prefix}{key}");
            match schema.get("properties") {
                Some(_) => below(&format!("{key}."), schema, visit),
                None => visit(&key, schema),
            }
        }
    }
    below("", of_config(), visit);
}
