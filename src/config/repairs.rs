//! Suggestions for invalid values: common mistakes, corrected one by one. The caller uses the first valid one.

use crate::suggest::{nearest_word, similar_words};
use serde_json::{Value, json};

/// Returns candidates for what a value was meant to be, most likely first. Most of them are invalid, too.
pub(crate) fn repairs(value: &Value, schema: &Value) -> Vec<Value> {
    match value {
        Value::String(text) => of_text(text, schema),
        Value::Number(number) => {
            let texts = ["%", "s", ""].map(|unit| json!(format!("{number}{unit}")));
            let switch = number.as_u64().filter(|number| *number <= 1).map(|number| json!(number == 1));
            switch.into_iter().chain(texts).collect()
        }
        Value::Bool(switch) => vec![json!(switch.to_string())],
        Value::Array(items) if items.len() == 1 => items.first().cloned().into_iter().collect(),
        _ => Vec::new(),
    }
}

fn of_text(text: &str, schema: &Value) -> Vec<Value> {
    let trimmed = text.trim();
    let lower = trimmed.to_lowercase();
    let mut found: Vec<Value> = Vec::new();
    match lower.as_str() {
        "true" | "yes" | "on" | "1" => found.push(json!(true)),
        "false" | "no" | "off" | "0" => found.push(json!(false)),
        _ => {}
    }
    found.extend(trimmed.parse::<u64>().ok().map(Value::from));
    found.extend(words_of(schema, &lower));
    found.push(json!(trimmed));
    found.push(json!(lower));
    let compact: String = trimmed.chars().filter(|c| !c.is_whitespace()).collect();
    found.extend(with_short_unit(&compact).into_iter().map(Value::from));
    found.push(json!(compact));
    // user@host, host:port, [v6] and whole addresses, where a host is expected.
    let place = trimmed.split_once("://").map_or(trimmed, |(_, rest)| rest).split('/').next().unwrap_or(trimmed);
    let host = place.rsplit('@').next().unwrap_or(place);
    let bare = host.trim_start_matches('[').split(']').next().unwrap_or(host);
    let name = bare.split(':').next().unwrap_or(bare);
    found.extend([host, bare, name].map(Value::from));
    found.push(json!(host.replace(['_', ' '], "-")));
    found.push(json!(trimmed.replace([' ', '/'], "_")));
    found.extend(times_of_cron(&lower, trimmed).into_iter().map(Value::from));
    if !trimmed.is_empty() && !trimmed.starts_with(['~', '$', '.']) {
        found.push(json!(format!("/{trimmed}")));
    }
    found.extend(shlex::split(trimmed).filter(|words| !words.is_empty()).map(|words| json!(words)));
    found
}

/// Returns the words that a schema lists, most similar first.
fn words_of(schema: &Value, wrong: &str) -> Vec<Value> {
    fn collect(schema: &Value, words: &mut Vec<String>) {
        for key in ["enum", "const", "oneOf", "anyOf"] {
            match schema.get(key) {
                Some(Value::Array(items)) if key == "enum" => {
                    words.extend(items.iter().filter_map(Value::as_str).map(str::to_owned));
                }
                Some(Value::String(word)) if key == "const" => words.push(word.clone()),
                Some(Value::Array(items)) => items.iter().for_each(|item| collect(item, words)),
                _ => {}
            }
        }
    }
    let mut words = Vec::new();
    collect(schema, &mut words);
    similar_words(wrong, words.iter().map(String::as_str)).into_iter().map(Value::from).collect()
}

/// Returns candidates for cron expressions: a time of day, a nickname without its @ or misspelt, and features of other
/// cron dialects.
fn times_of_cron(lower: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    if let Some((hour, minute)) = lower.split_once(':') {
        let number = |text: &str| text.trim_start_matches('0').parse::<u8>().unwrap_or(0);
        found.push(format!("{} {} * * *", number(minute), number(hour)));
    }
    let names = ["hourly", "daily", "weekly", "monthly", "yearly", "reboot"];
    found.extend(nearest_word(lower.trim_start_matches('@'), names).map(|name| format!("@{name}")));
    let fields: Vec<&str> = text.split_whitespace().map(|field| if field == "?" { "*" } else { field }).collect();
    found.push(fields.join(" "));
    found.push(format!("{} *", fields.join(" ")));
    found.extend(fields.get(1..).map(|without_seconds| without_seconds.join(" ")));
    found
}

/// Shortens the unit of a number to one letter: "6hours" → "6h", "10MB" → "10M".
fn with_short_unit(text: &str) -> Vec<String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let Some(first) = unit.chars().next().filter(|first| first.is_ascii_alphabetic() && !number.is_empty()) else {
        return Vec::new();
    };
    match unit.to_lowercase().as_str() {
        "b" | "byte" | "bytes" => vec![number.to_owned()],
        _ => vec![format!("{number}{}", first.to_ascii_lowercase()), format!("{number}{}", first.to_ascii_uppercase())],
    }
}
