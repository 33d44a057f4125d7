//! Tests that records survive a round trip, including unknown fields.

use super::*;

#[test]
fn unknown_fields_and_types_are_preserved() {
    let line = r#"{"type":"file","path":"a","size_bytes":1,"sha256":"00","colour":{"deep":[1]}}"#;
    assert_eq!(Record::parse(line).unwrap().to_line(), line);
    let line = r#"{"type":"comet","tail":true}"#;
    assert_eq!(Record::parse(line).unwrap().to_line(), line);
}

#[test]
fn control_characters_are_escaped_in_lines_and_round_trip() {
    let text = "a\u{9b}2J\u{7f}\u{202e}\u{1b}\u{85}é";
    let record = Record::Other(Map::from_iter([("type".into(), "x".into()), ("name".into(), text.into())]));
    let line = record.to_line();
    assert!(!line.contains(steers_terminal), "{line:?}");
    assert_eq!(Record::parse(&line).unwrap(), record);
}

#[test]
fn type_is_written_first() {
    let record = Record::parse(r#"{"path":"a","size_bytes":1,"type":"file","sha256":"00"}"#).unwrap();
    assert!(record.to_line().starts_with(r#"{"type":"file","path":"#));
}

#[test]
fn invalid_records_are_errors() {
    for line in ["", "x", "[]", "1", "{}", r#"{"type":1}"#, r#"{"type":"disk"}"#] {
        assert!(Record::parse(line).is_err(), "{line}");
    }
}

#[test]
fn disk_without_a_source_round_trips() {
    let source = serde_json::to_string(&Source::None {}).unwrap();
    assert_eq!(source, r#"{"type":"none"}"#);
    assert_eq!(serde_json::from_str::<Source>(&source).unwrap(), Source::None {});
}
