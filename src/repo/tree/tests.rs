//! Tests of reading and writing trees, with both parsers.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use chrono::{DateTime, FixedOffset};
use proptest::prelude::*;

use super::name::{json_string, quote, unquote};
use super::read::{is_readable, parse_tree};
use super::write::{check_nodes, write_json};
use super::{Node, Tree, fixed_form, json::TreeJson};
use crate::repo::{BlobLocation, Content, Error, Flaw, Id, Result};

fn time() -> DateTime<FixedOffset> {
    DateTime::parse_from_rfc3339("2026-11-23T14:55:59.62812736Z").unwrap()
}

fn json(nodes: &[Node]) -> String {
    let mut json = Vec::new();
    write_json(nodes, &mut json).unwrap();
    String::from_utf8(json).unwrap()
}

fn parse(json: &str) -> Result<Tree> {
    let id = Id::hash(json.as_bytes());
    let location = BlobLocation { pack: id, offset: 0, length: 0, raw_length: json.len() as u32, compressed: false };
    parse_tree(json.as_bytes(), &id, &location)
}

#[test]
fn fields_are_written_in_the_order_of_restic() {
    let id = Id::hash(b"x");
    let mut content = Content::new();
    content.push_run(id, 2);
    let mut file = Node::file("a<", time(), 7, content);
    file.metadata.user = "root".to_owned();
    let nodes = [file, Node::dir("b", time(), id)];
    let times = r#""mtime":"2026-11-23T14:55:59.62812736Z","atime":"2026-11-23T14:55:59.62812736Z","ctime":"2026-11-23T14:55:59.62812736Z","uid":0,"gid":0"#;
    let wanted = format!(
        "{{\"nodes\":[{{\"name\":\"a\\u003c\",\"type\":\"file\",\"mode\":384,{times},\"user\":\"root\",\"size\":7,\
         \"content\":[\"{id}\",\"{id}\"]}},\
         {{\"name\":\"b\",\"type\":\"dir\",\"mode\":2147484096,{times},\"content\":null,\"subtree\":\"{id}\"}}]}}\n"
    );
    assert_eq!(json(&nodes), wanted);
    assert_eq!(parse(&wanted).unwrap().nodes, nodes);
}

#[test]
fn names_are_quoted_as_in_go() {
    // Both sides as written by restic 0.14.
    for (name, quoted) in [
        (&b"q\"u'o\\te"[..], "q\\\"u'o\\\\te"),
        (b"new\nline", "new\\nline"),
        (b"bad\xff", "bad\\xff"),
        (b"del\x7f", "del\\x7f"),
        ("ünï".as_bytes(), "ünï"),
        ("\u{200b}\u{e000} z".as_bytes(), "\\u200b\\ue000 z"),
        ("😀\u{a0}\u{2028}".as_bytes(), "😀\\u00a0\\u2028"),
        ("e\u{301}".as_bytes(), "e\u{301}"),
        ("\u{301}".as_bytes(), "\u{301}"),
        ("\u{e0001}".as_bytes(), "\\U000e0001"),
        (b"\x00\x01\x07\x1f", "\\x00\\x01\\a\\x1f"),
    ] {
        assert_eq!(quote(OsStr::from_bytes(name)), quoted);
        assert_eq!(unquote(quoted).as_deref(), Some(name));
    }
    assert_eq!(unquote("\\101\\x41\\U0001f600").unwrap(), "AA😀".as_bytes());
    for bad in ["\"", "\\", "\\q", "\\'", "\\x4", "\\ud800", "\\777", "\\U00110000", "a\nb"] {
        assert_eq!(unquote(bad), None, "{bad}");
    }
}

#[test]
fn malformed_trees_are_refused() {
    let id = Id::hash(b"x");
    let file = |name: &str| format!(r#"{{"name":"{name}","type":"file","content":["{id}"]}}"#);
    let tree = |nodes: &str| format!("{{\"nodes\":[{nodes}]}}\n");
    assert_eq!(parse(&tree(&file("a"))).unwrap().nodes.len(), 1);
    assert_eq!(parse("{\"nodes\":null}").unwrap(), Tree::default());
    for bad in [
        tree(&format!("{},{}", file("b"), file("a"))),
        tree(&format!("{},{}", file("a"), file("a"))),
        tree(&file("")),
        tree(&file("..")),
        tree(&file("a/b")),
        tree(&file("\\\\x00")),
        tree(&file("\\\\q")),
        tree(r#"{"name":"a","type":"file","content":null}"#),
        tree(r#"{"name":"a","type":"dir"}"#),
        tree(r#"{"name":"a","type":"file","content":["00"]}"#),
        tree(r#"{"name":"a","type":"file","content":[1]}"#),
        "[".repeat(100_000),
        "{\"nodes\":[]} x".to_owned(),
        "".to_owned(),
    ] {
        let error = parse(&bad).unwrap_err();
        assert!(matches!(error, Error::TreeMalformed { .. }), "{error}");
    }
}

proptest! {
    #[test]
    fn quoted_names_round_trip(name in proptest::collection::vec(any::<u8>(), 0..40)) {
        let quoted = quote(OsStr::from_bytes(&name));
        prop_assert_eq!(unquote(&quoted), Some(name));
        let json: String = serde_json::from_str(&json_string(&quoted)).unwrap();
        prop_assert_eq!(json, quoted);
    }

    #[test]
    fn unquoting_never_panics(text: String) {
        let _ = unquote(&text);
    }

    #[test]
    fn trees_round_trip(
        files in proptest::collection::btree_map("[^/\0]{1,12}", proptest::collection::vec((0u8..3, 1u64..300),
            0..6), 0..6),
    ) {
        let nodes: Vec<Node> = files
            .into_iter()
            .filter(|(name, _)| name != "." && name != "..")
            .map(|(name, runs)| {
                let mut content = Content::new();
                for (byte, count) in runs {
                    content.push_run(Id::from_bytes([byte; 32]), count);
                }
                Node::file(name, time(), content.len(), content)
            })
            .collect();
        prop_assert!(check_nodes(&nodes).is_ok());
        prop_assert_eq!(parse(&json(&nodes)).unwrap().nodes, nodes);
    }

    #[test]
    fn both_tree_parsers_agree(
        files in proptest::collection::btree_map("[a-z,:\"\\\\\\[]{1,12}", (any::<bool>(), proptest::collection::vec(
            (0u8..3, prop_oneof![1u64..4, 4000u64..5000]), 0..6)), 0..4),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), prop::sample::select(vec![
            &b"\""[..], b",", b"[", b"]", b"}", b"{", b" ", b"0", b"\\", b",\"content\":", b"null",
            b",\"x\":{\"a\":1", b"",
        ]), 0usize..3), 0..3),
    ) {
        let node = |(name, (is_dir, runs)): (String, (bool, Vec<(u8, u64)>))| {
            let mut content = Content::new();
            for (byte, count) in runs {
                content.push_run(Id::from_bytes([byte; 32]), count);
            }
            match is_dir {
                true => Node::dir(name, time(), Id::hash(b"x")),
                false => Node::file(name, time(), content.len(), content),
            }
        };
        let nodes: Vec<Node> = files.into_iter().map(node).collect();
        let mut json = json(&nodes).into_bytes();
        let fixed = fixed_form::parse(&json[..]).map(TreeJson::check);
        prop_assert_eq!(fixed, Some(Ok(Tree { nodes })), "what is written has the fixed form");
        for (place, text, removed) in changes {
            // Prefer places outside lists of blobs.
            let at = place.index(json.len());
            let at = json[..at].iter().rposition(|byte| b",:".contains(byte)).unwrap_or(at);
            let end = (at + removed).min(json.len());
            json.splice(at..end, text.iter().copied());
            // This compares both parsers.
            is_readable(&json);
        }
    }
}

/// A list of the blobs of a 200 GB disk with data and holes: 12 MB of JSON.
fn large() -> String {
    let mut content = Content::new();
    for number in 0..60_000u32 {
        content.push(Id::hash(&number.to_le_bytes()));
    }
    content.push_run(Id::hash(b"zeros"), 100_000);
    content.push_run(Id::hash(b"others"), 20_000);
    json(&[Node::file("vda.raw", time(), content.len(), content)])
}

#[test]
fn large_tree_is_parsed_and_damage_is_detected() {
    let json = large();
    assert_eq!(parse(&json).unwrap(), TreeJson::read(json.as_bytes()).unwrap().check().unwrap());

    let id = Id::hash(json.as_bytes());
    let packed = zstd::bulk::compress(json.as_bytes(), 1).unwrap();
    let location = |raw_length: usize| BlobLocation {
        pack: id,
        offset: 0,
        length: 0,
        raw_length: raw_length as u32,
        compressed: true,
    };
    let flaw = |packed: &[u8], raw_length| match parse_tree(packed, &id, &location(raw_length)) {
        Ok(tree) => {
            assert_eq!(tree.nodes.len(), 1);
            None
        }
        Err(Error::BlobDamaged { flaw, .. }) => Some(flaw),
        Err(error) => panic!("{error}"),
    };
    let is_length = |flaw| matches!(flaw, Some(Flaw::WrongLength { .. }));
    assert!(flaw(&packed, json.len()).is_none());
    assert!(is_length(flaw(&packed, json.len() - 1)) && is_length(flaw(&packed, json.len() + 1)));
    assert!(matches!(flaw(&packed[..packed.len() / 2], json.len()), Some(Flaw::NotDecompressable)));
    let other = zstd::bulk::compress(json.replacen("\"a", "\"b", 1).as_bytes(), 1).unwrap();
    assert!(matches!(flaw(&other, json.len()), Some(Flaw::NotItsName)));
}

#[test]
fn large_tree_with_other_whitespace_is_parsed() {
    let json = large();
    let spaced = json.replacen("\",\"", "\", \"", 5).replacen("]}\n", "] }", 1);
    assert!(fixed_form::parse(spaced.as_bytes()).is_none());
    assert_eq!(parse(&spaced).unwrap(), parse(&json).unwrap());
}
