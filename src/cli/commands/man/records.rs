//! The records and their fields, from their documentation in [`crate::record`].

use crate::record;
use schemars::{Schema, schema_for};
use serde_json::Value;

/// One type of record.
pub(crate) struct Kind {
    /// The value of `"type"`.
    pub(crate) name: &'static str,
    schema: Schema,
}

/// A field of a record, as `jq` names it (`disks[].sha256`), and its description.
pub(crate) struct RecordField {
    /// Its path; empty for the additional fields that a record may have.
    pub(crate) path: String,
    /// Its description.
    pub(crate) meaning: String,
}

/// Returns every type of record, in the order of a backup.
pub(crate) fn kinds() -> [Kind; 11] {
    [
        Kind { name: "machine", schema: schema_for!(record::Machine) },
        Kind { name: "disk", schema: schema_for!(record::Disk) },
        Kind { name: "filesystem", schema: schema_for!(record::Filesystem) },
        Kind { name: "file", schema: schema_for!(record::File) },
        Kind { name: "point", schema: schema_for!(record::Point) },
        Kind { name: "action", schema: schema_for!(record::Action) },
        Kind { name: "check", schema: schema_for!(record::Check) },
        Kind { name: "job", schema: schema_for!(record::Job) },
        Kind { name: "log", schema: schema_for!(record::Log) },
        Kind { name: "progress", schema: schema_for!(record::Progress) },
        Kind { name: "failure", schema: schema_for!(record::Failure) },
    ]
}

impl Kind {
    /// Returns the description of the type.
    pub(crate) fn summary(&self) -> String {
        meaning(self.schema.as_value())
    }

    /// Returns its fields. The fields of a nested object follow that object.
    pub(crate) fn fields(&self) -> Vec<RecordField> {
        let mut fields = Vec::new();
        self.collect("", self.schema.as_value(), &mut fields);
        fields
    }

    fn collect(&self, prefix: &str, object: &Value, fields: &mut Vec<RecordField>) {
        for (name, schema) in object["properties"].as_object().into_iter().flatten() {
            if name == "extra" {
                // Every record passes on unknown fields; list them only if their description says more than that.
                let meaning = meaning(schema);
                if meaning != "Unknown fields." {
                    fields.push(RecordField { path: String::new(), meaning });
                }
                continue;
            }
            let path = format!("{prefix}{name}");
            fields.push(RecordField { path: path.clone(), meaning: meaning(schema) });
            let (part, path) = match schema.get("items") {
                Some(items) => (self.part(items), format!("{path}[].")),
                None => (self.part(schema), format!("{path}.")),
            };
            let Some(part) = part else { continue };
            for variant in part["oneOf"].as_array().into_iter().flatten() {
                fields.extend(variant_field(&path, variant));
            }
            self.collect(&path, part, fields);
        }
    }

    /// Returns the definition that a schema refers to, even if the value may also be null.
    fn part(&self, schema: &Value) -> Option<&Value> {
        let alternatives = schema["anyOf"].as_array().into_iter().flatten();
        let pointer = alternatives.chain([schema]).find_map(|schema| schema["$ref"].as_str())?;
        self.schema.as_value().pointer(pointer.strip_prefix('#')?)
    }
}

/// Describes one variant of an enum with a `type` tag, and the fields that it has.
fn variant_field(path: &str, variant: &Value) -> Option<RecordField> {
    let own = variant["properties"].as_object()?;
    let kind = own.get("type")?["const"].as_str()?;
    let fields: Vec<String> = own.keys().filter(|name| *name != "type").map(|name| format!("`{path}{name}`")).collect();
    let meaning = match fields.is_empty() {
        true => meaning(variant),
        false => format!("{} Has {}.", meaning(variant), fields.join(", ")),
    };
    Some(RecordField { path: format!("{path}type = {kind}"), meaning })
}

fn meaning(schema: &Value) -> String {
    schema["description"].as_str().unwrap_or_default().replace('\n', " ").replace("[`", "`").replace("`]", "`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_field_has_a_meaning_and_a_path() {
        for kind in kinds() {
            assert!(!kind.summary().is_empty(), "{}", kind.name);
            for field in kind.fields() {
                assert!(!field.meaning.is_empty(), "{} {}", kind.name, field.path);
            }
        }
        let paths = |name: &str| -> Vec<String> {
            let kind = kinds().into_iter().find(|kind| kind.name == name).unwrap();
            kind.fields().into_iter().map(|field| field.path).collect()
        };
        let point = paths("point");
        for path in
            ["captured_at", "disks", "disks[].stored_bytes", "damage[].offset_bytes", "restored_to.disks[].path"]
        {
            assert!(point.contains(&path.to_owned()), "{path}: {point:?}");
        }
        assert!(paths("disk").contains(&"source.type = volume".to_owned()), "{:?}", paths("disk"));
        assert!(paths("action").contains(&String::new()), "an action has fields of its own");
    }
}
