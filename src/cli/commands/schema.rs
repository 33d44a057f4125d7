//! `kvmb schema`

use crate::cli::session::Session;
use crate::record::{
    Action, Check, Disk, Failure, File, Filesystem, Job, Log, Machine, Point, Progress, Setting, Usage,
};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

/// Print JSON Schemas.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb schema records > records.schema.json")]
pub(crate) struct SchemaArgs {
    #[command(subcommand)]
    command: SchemaCommand,
}

#[derive(Debug, clap::Subcommand)]
enum SchemaCommand {
    /// Print the JSON Schema of the records, with a description of each field.
    ///
    /// It is valid for one record: a line of JSON Lines, or an element of the array that --output json prints.
    #[command(after_help = "Examples:
  kvmb schema records > records.schema.json
  kvmb schema records | jq -r '.definitions.point.properties | keys[]'")]
    Records,
}

impl SchemaArgs {
    pub(crate) fn run(self, session: &mut Session) {
        match self.command {
            SchemaCommand::Records => {
                let text = serde_json::to_string_pretty(&of_records()).unwrap_or_default() + "\n";
                session.text(text.as_bytes());
            }
        }
    }
}

/// Returns the JSON Schema (draft 7) of any record that this version prints. A record may have additional fields: those
/// of an action or a check are described in the text of their types.
fn of_records() -> Value {
    let types: [(&str, Value); 13] = [
        ("machine", of::<Machine>()),
        ("disk", of::<Disk>()),
        ("file", of::<File>()),
        ("filesystem", of::<Filesystem>()),
        ("point", of::<Point>()),
        ("action", of::<Action>()),
        ("check", of::<Check>()),
        ("setting", of::<Setting>()),
        ("usage", of::<Usage>()),
        ("job", of::<Job>()),
        ("progress", of::<Progress>()),
        ("log", of::<Log>()),
        ("failure", of::<Failure>()),
    ];
    let reference = |kind: &str| json!({ "$ref": format!("#/definitions/{kind}") });
    let definitions: Map<String, Value> =
        types.into_iter().map(|(kind, schema)| (kind.to_owned(), of_type(kind, schema))).collect();
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A record of kvmb",
        "description": "One JSON object per line. Sizes end in _bytes, times end in _at and are RFC 3339 with offset. \
            Readers ignore fields and types that they do not know.",
        "oneOf": definitions.keys().map(|kind| reference(kind)).collect::<Vec<_>>(),
        "definitions": definitions,
    })
}

fn of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft07().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    settings.for_serialize().into_generator().into_root_schema_for::<T>().to_value()
}

/// Returns the schema of a record: its fields, preceded by `type`.
fn of_type(kind: &str, mut schema: Value) -> Value {
    without_extra(&mut schema);
    let fields = schema.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
    let mut properties = Map::from_iter([("type".to_owned(), json!({ "const": kind }))]);
    properties.extend(fields);
    schema["properties"] = properties.into();
    let required = schema.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
    schema["required"] = [vec![json!("type")], required].concat().into();
    if let Some(schema) = schema.as_object_mut() {
        schema.remove("title");
    }
    schema
}

/// Removes `extra`, which stands for any other fields, at all levels. Its description is moved to the type.
fn without_extra(schema: &mut Value) {
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        let words =
            properties.shift_remove("extra").and_then(|extra| Some(extra.get("description")?.as_str()?.to_owned()));
        if let Some(words) = words.filter(|words| words != "Unknown fields.") {
            let own = schema.get("description").and_then(Value::as_str).unwrap_or_default();
            schema["description"] = format!("{own}\n\n{words}").into();
        }
    }
    if let Some(required) = schema.get_mut("required").and_then(Value::as_array_mut) {
        required.retain(|name| name != "extra");
    }
    match schema {
        Value::Object(below) => below.values_mut().for_each(without_extra),
        Value::Array(below) => below.iter_mut().for_each(without_extra),
        _ => {}
    }
}
