//! An event as a line of the log.

use crate::record::steers_terminal;
use chrono::{DateTime, Local, SecondsFormat};
use serde_json::{Map, Value};
use std::fmt;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// The format of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// `2025-08-06 14:30:15,123 - INFO - [run] message key=value`
    Text,
    Json,
}

/// Writes the lines of one run.
#[derive(Debug, Clone)]
pub(crate) struct LogLine {
    /// The id of the run.
    pub(crate) run: String,
    pub(crate) command: &'static str,
    pub(crate) style: Style,
}

impl<S, N> FormatEvent<S, N> for LogLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = EventFields::default();
        event.record(&mut fields);
        // The level names that kvmb's predecessor used.
        let level = match *event.metadata().level() {
            tracing::Level::ERROR => "ERROR",
            tracing::Level::WARN => "WARNING",
            tracing::Level::INFO => "INFO",
            _ => "DEBUG",
        };
        let line = match self.style {
            Style::Text => self.text(Local::now(), level, &fields),
            Style::Json => self.json(Local::now(), level, fields),
        };
        writer.write_str(&line)?;
        writer.write_char('\n')
    }
}

/// Writes lines for people: `kvmb: warning: message key=value`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StderrLine {
    /// Whether the level is coloured.
    pub(crate) color: bool,
}

impl<S, N> FormatEvent<S, N> for StderrLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = EventFields::default();
        event.record(&mut fields);
        let (word, code) = match *event.metadata().level() {
            tracing::Level::ERROR => ("error:", "31"),
            tracing::Level::WARN => ("warning:", "33"),
            tracing::Level::INFO => ("info:", "32"),
            _ => ("debug:", "34"),
        };
        match self.color {
            true => write!(writer, "kvmb: \u{1b}[{code}m{word}\u{1b}[0m ")?,
            false => write!(writer, "kvmb: {word} ")?,
        }
        writer.write_str(&fields.in_words())?;
        writer.write_char('\n')
    }
}

impl LogLine {
    fn text(&self, now: DateTime<Local>, level: &str, fields: &EventFields) -> String {
        format!("{} - {level} - [{}] {}", now.format("%Y-%m-%d %H:%M:%S,%3f"), self.run, fields.in_words())
    }

    fn json(&self, now: DateTime<Local>, level: &str, fields: EventFields) -> String {
        let mut object = Map::new();
        object.insert("time".into(), now.to_rfc3339_opts(SecondsFormat::Millis, false).into());
        object.insert("level".into(), level.into());
        object.insert("run".into(), self.run.clone().into());
        object.insert("command".into(), self.command.into());
        object.insert("message".into(), fields.message.into());
        for (key, value) in fields.others {
            object.entry(key).or_insert(value);
        }
        crate::record::without_steering(Value::Object(object).to_string())
    }
}

/// The fields of an event, with the message separate.
#[derive(Debug, Default)]
struct EventFields {
    message: String,
    others: Vec<(&'static str, Value)>,
}

impl EventFields {
    /// Returns the message followed by the fields, in one line.
    fn in_words(&self) -> String {
        let mut line = self.message.clone();
        for (key, value) in &self.others {
            let text = match value {
                Value::String(text) if !text.is_empty() && !text.contains([' ', '"', '=']) => text.clone(),
                other => other.to_string(),
            };
            line.push_str(&format!(" {key}={text}"));
        }
        // Names are not trusted: a line break in a name could forge a line of the log.
        line.chars().map(|c| if steers_terminal(c) { '\u{fffd}' } else { c }).collect()
    }

    fn add(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            (name, value) => self.others.push((name, value)),
        }
    }
}

impl Visit for EventFields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(style: Style) -> LogLine {
        LogLine { run: "1a2b3c4d".into(), command: "backup", style }
    }

    fn hostile() -> EventFields {
        EventFields {
            message: "vm\n2025-01-01 00:00:00,000 - INFO - all is well\u{1b}[2J\u{9b}\u{202e}".into(),
            others: vec![("machine", "a b".into()), ("point", "1234".into()), ("read_bytes", 7.into())],
        }
    }

    #[test]
    fn text_line_is_single_and_free_of_control_characters() {
        let now = Local::now();
        let text = line(Style::Text).text(now, "INFO", &hostile());
        assert!(text.starts_with(&now.format("%Y-%m-%d %H:%M:%S,").to_string()), "{text}");
        assert!(text.contains(" - INFO - [1a2b3c4d] vm\u{fffd}2025"), "{text}");
        assert!(text.ends_with(" machine=\"a b\" point=1234 read_bytes=7"), "{text}");
        assert!(!text.contains(steers_terminal), "{text:?}");
    }

    #[test]
    fn json_line_preserves_the_message_and_fields() {
        let text = line(Style::Json).json(Local::now(), "ERROR", hostile());
        assert!(!text.contains(steers_terminal), "{text:?}");
        let object: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(object["message"], hostile().message);
        assert_eq!(
            (&object["level"], &object["run"], &object["read_bytes"]),
            (&"ERROR".into(), &"1a2b3c4d".into(), &7.into())
        );
        assert!(DateTime::parse_from_rfc3339(object["time"].as_str().unwrap()).is_ok());
    }
}
