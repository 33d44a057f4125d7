//! Trees: the entries of one folder.
//!
//! A tree is a blob of JSON, `{"nodes":[…]}` and a newline, the entries sorted by name, their fields in restic's order.
//! Names are written as Go's `strconv.Quote` writes them, without the quotes around, and that again as a JSON string: a
//! name with a newline stands there as `\\n`.
//!
//! The list of blobs of a disk makes a tree large: 280 MB for 2 TiB. It is never in memory as JSON: writing runs over
//! it twice, for the hash and for the compressor; reading decompresses, hashes and parses in one go.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use chrono::{DateTime, FixedOffset};
use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, SeqAccess, Visitor};
use sha2::{Digest, Sha256};

use super::{BlobKind, BlobLocation, Content, Error, Flaw, Id, Index, Repository, Result, Writer, reader, time};

/// Go's bit for a folder in the mode.
const GO_MODE_DIR: u32 = 1 << 31;

/// The entries of a folder, sorted by name.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Tree {
    /// The entries.
    pub nodes: Vec<Node>,
}

/// One entry.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Its name: not empty, without `/`. restic allows any bytes.
    pub name: OsString,
    /// Owner, mode, times.
    pub(crate) metadata: Metadata,
    /// What it is.
    pub kind: NodeKind,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq)]
pub enum NodeKind {
    /// A folder.
    Dir {
        /// Its tree.
        subtree: Id,
    },
    /// A file.
    File {
        /// Its size: the sum of its blobs.
        size_bytes: u64,
        /// Its blobs.
        content: Content,
    },
    /// A link, a device …: restic's word for it. kvmb reads over these and never writes one.
    Other(String),
}

/// Owner, mode and times of an entry, for whoever restores it with restic.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Metadata {
    /// Permission bits.
    pub(crate) mode: u32,
    /// Modified.
    pub(crate) mtime: DateTime<FixedOffset>,
    /// Accessed.
    pub(crate) atime: DateTime<FixedOffset>,
    /// Changed.
    pub(crate) ctime: DateTime<FixedOffset>,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// The owner's name, or empty.
    pub(crate) user: String,
    /// The group's name, or empty.
    pub(crate) group: String,
}

impl Metadata {
    /// Root's, for nobody else's eyes, with one time for all three.
    pub(crate) fn private(time: DateTime<FixedOffset>, mode: u32) -> Self {
        Metadata {
            mode,
            mtime: time,
            atime: time,
            ctime: time,
            uid: 0,
            gid: 0,
            user: String::new(),
            group: String::new(),
        }
    }
}

impl Node {
    /// A folder, mode 0700.
    pub fn dir(name: impl Into<OsString>, time: DateTime<FixedOffset>, subtree: Id) -> Self {
        Node { name: name.into(), metadata: Metadata::private(time, 0o700), kind: NodeKind::Dir { subtree } }
    }

    /// A file, mode 0600.
    pub fn file(name: impl Into<OsString>, time: DateTime<FixedOffset>, size_bytes: u64, content: Content) -> Self {
        Node {
            name: name.into(),
            metadata: Metadata::private(time, 0o600),
            kind: NodeKind::File { size_bytes, content },
        }
    }
}

impl Tree {
    /// The entry of this name.
    pub fn get(&self, name: impl AsRef<OsStr>) -> Option<&Node> {
        let name = name.as_ref();
        self.nodes.iter().find(|node| node.name == name)
    }

    /// The tree of the folder of this name.
    pub fn subtree(&self, name: impl AsRef<OsStr>) -> Option<Id> {
        match self.get(name)?.kind {
            NodeKind::Dir { subtree } => Some(subtree),
            _ => None,
        }
    }
}

// --- writing ---------------------------------------------------------------------------------------------------------

/// Stores the tree of a folder. The nodes must stand in ascending order of their names (by bytes).
pub fn write_tree(writer: &Writer, nodes: &[Node]) -> Result<Id> {
    check_nodes(nodes)?;
    writer.put_stream(BlobKind::Tree, |out| write_json(nodes, out)).map(|stored| stored.id)
}

fn check_nodes(nodes: &[Node]) -> Result<()> {
    let bad = |node: &Node, reason| Err(Error::BadNode { name: node.name.to_string_lossy().into_owned(), reason });
    for node in nodes {
        if let Some(reason) = name_flaw(&node.name) {
            return bad(node, reason);
        }
        if matches!(node.kind, NodeKind::Other(_)) {
            return bad(node, "only folders and files are written");
        }
    }
    match nodes.windows(2).find(|pair| pair[0].name >= pair[1].name) {
        Some(pair) => bad(&pair[1], "the names are not in ascending order"),
        None => Ok(()),
    }
}

fn name_flaw(name: &OsStr) -> Option<&'static str> {
    match name.as_bytes() {
        b"" => Some("the name is empty"),
        b"." | b".." => Some("the name is not one of an entry"),
        bytes if bytes.contains(&b'/') || bytes.contains(&0) => Some("the name contains a slash or a zero byte"),
        _ => None,
    }
}

fn write_json(nodes: &[Node], out: &mut dyn Write) -> io::Result<()> {
    out.write_all(b"{\"nodes\":[")?;
    for (position, node) in nodes.iter().enumerate() {
        if position > 0 {
            out.write_all(b",")?;
        }
        write_node(node, out)?;
    }
    out.write_all(b"]}\n")
}

fn write_node(node: &Node, out: &mut dyn Write) -> io::Result<()> {
    let metadata = &node.metadata;
    let (kind, go_mode) = match node.kind {
        NodeKind::Dir { .. } => ("dir", metadata.mode | GO_MODE_DIR),
        _ => ("file", metadata.mode),
    };
    write!(out, "{{\"name\":{},\"type\":\"{kind}\"", json_string(&quote(&node.name)))?;
    if go_mode != 0 {
        write!(out, ",\"mode\":{go_mode}")?;
    }
    write!(
        out,
        ",\"mtime\":\"{}\",\"atime\":\"{}\",\"ctime\":\"{}\",\"uid\":{},\"gid\":{}",
        time::to_text(&metadata.mtime),
        time::to_text(&metadata.atime),
        time::to_text(&metadata.ctime),
        metadata.uid,
        metadata.gid
    )?;
    for (field, text) in [("user", &metadata.user), ("group", &metadata.group)] {
        if !text.is_empty() {
            write!(out, ",\"{field}\":{}", json_string(text))?;
        }
    }
    match &node.kind {
        NodeKind::File { size_bytes, content } => {
            if *size_bytes != 0 {
                write!(out, ",\"size\":{size_bytes}")?;
            }
            out.write_all(b",\"content\":[")?;
            write_content(content, out)?;
            out.write_all(b"]}")
        }
        NodeKind::Dir { subtree } => write!(out, ",\"content\":null,\"subtree\":\"{subtree}\"}}"),
        NodeKind::Other(_) => Err(io::ErrorKind::InvalidInput.into()),
    }
}

fn write_content(content: &Content, out: &mut dyn Write) -> io::Result<()> {
    /// `,"` + id + `"`
    const ITEM: usize = Id::HEX_LENGTH + 3;
    /// So many items of a run are made at once.
    const BATCH: u64 = 1000;
    let mut first = true;
    let mut batch = Vec::new();
    for (id, count) in content.runs() {
        let mut item = [0; ITEM];
        item[..2].copy_from_slice(b",\"");
        item[2..ITEM - 1].copy_from_slice(&id.to_hex());
        item[ITEM - 1] = b'"';
        let mut left = count;
        if first {
            out.write_all(&item[1..])?;
            first = false;
            left -= 1;
        }
        if left > 1 {
            batch.clear();
            for _ in 0..left.min(BATCH) {
                batch.extend_from_slice(&item);
            }
        }
        while left > 1 {
            let now = left.min(BATCH);
            out.write_all(&batch[..now as usize * ITEM])?;
            left -= now;
        }
        if left == 1 {
            out.write_all(&item)?;
        }
    }
    Ok(())
}

/// `strconv.Quote` without the quotes.
fn quote(name: &OsStr) -> String {
    let mut quoted = String::with_capacity(name.len());
    for chunk in name.as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' => quoted.push_str("\\\""),
                '\\' => quoted.push_str("\\\\"),
                '\x07' => quoted.push_str("\\a"),
                '\x08' => quoted.push_str("\\b"),
                '\x0c' => quoted.push_str("\\f"),
                '\n' => quoted.push_str("\\n"),
                '\r' => quoted.push_str("\\r"),
                '\t' => quoted.push_str("\\t"),
                '\x0b' => quoted.push_str("\\v"),
                c if is_printable(c) => quoted.push(c),
                '\0'..='\x7f' => quoted.push_str(&format!("\\x{:02x}", c as u32)),
                '\u{80}'..='\u{ffff}' => quoted.push_str(&format!("\\u{:04x}", c as u32)),
                _ => quoted.push_str(&format!("\\U{:08x}", c as u32)),
            }
        }
        for byte in chunk.invalid() {
            quoted.push_str(&format!("\\x{byte:02x}"));
        }
    }
    quoted
}

/// What Go calls printable: letters, marks, numbers, punctuation, symbols and the space. Rust knows the same set behind
/// `escape_debug`, which escapes a combining mark only where it comes first: so there is a letter before it.
fn is_printable(c: char) -> bool {
    match c {
        ' '..='~' => true,
        '\0'..='\x7f' => false,
        _ => {
            let mut text = [b'a', 0, 0, 0, 0];
            let length = 1 + c.encode_utf8(&mut text[1..]).len();
            let text = std::str::from_utf8(&text[..length]).unwrap_or_default();
            text.escape_debug().eq(text.chars())
        }
    }
}

/// The other way: `None` where `strconv.Unquote` would fail.
fn unquote(quoted: &str) -> Option<Vec<u8>> {
    let mut name = Vec::with_capacity(quoted.len());
    let mut rest = quoted.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'"' | b'\n' => return None,
            b'\\' => rest = unescape(rest, &mut name)?,
            other => name.push(other),
        }
    }
    Some(name)
}

/// What stands behind a backslash; returns what stands behind that.
fn unescape<'a>(text: &'a [u8], name: &mut Vec<u8>) -> Option<&'a [u8]> {
    let number = |skip: usize, digits: usize, radix: u32| {
        let (digits, after) = text.get(skip..)?.split_at_checked(digits)?;
        let mut value = 0u32;
        for digit in digits {
            value = value * radix + char::from(*digit).to_digit(radix)?;
        }
        Some((value, after))
    };
    let (&escape, after) = text.split_first()?;
    let (byte, after) = match escape {
        b'a' => (0x07, after),
        b'b' => (0x08, after),
        b'f' => (0x0c, after),
        b'n' => (b'\n', after),
        b'r' => (b'\r', after),
        b't' => (b'\t', after),
        b'v' => (0x0b, after),
        b'\\' | b'"' => (escape, after),
        b'x' => {
            let (value, after) = number(1, 2, 16)?;
            (u8::try_from(value).ok()?, after)
        }
        b'0'..=b'7' => {
            let (value, after) = number(0, 3, 8)?;
            (u8::try_from(value).ok()?, after)
        }
        b'u' | b'U' => {
            let digits = if escape == b'u' { 4 } else { 8 };
            let (value, after) = number(1, digits, 16)?;
            let c = char::from_u32(value)?;
            name.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            return Some(after);
        }
        _ => return None,
    };
    name.push(byte);
    Some(after)
}

/// A JSON string as Go's encoder writes it, quotes included.
fn json_string(text: &str) -> String {
    let mut json = String::with_capacity(text.len() + 2);
    json.push('"');
    for c in text.chars() {
        match c {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            '\n' => json.push_str("\\n"),
            '\r' => json.push_str("\\r"),
            '\t' => json.push_str("\\t"),
            '<' | '>' | '&' | '\0'..='\x1f' | '\u{2028}' | '\u{2029}' => {
                json.push_str(&format!("\\u{:04x}", c as u32));
            }
            other => json.push(other),
        }
    }
    json.push('"');
    json
}

// --- reading ---------------------------------------------------------------------------------------------------------

/// Reads the tree of a folder. Its hash, its JSON and its names are checked before anything is returned.
pub fn read_tree(repo: &Repository, index: &Index, id: &Id) -> Result<Tree> {
    reader::from_any_location(index, BlobKind::Tree, id, |location| {
        let opened = reader::fetch(repo, BlobKind::Tree, id, location)?;
        let bytes = opened.bytes();
        match location.compressed {
            true => match zstd::Decoder::with_buffer(bytes) {
                Ok(decoder) => parse_tree(decoder, id, location),
                Err(_) => Err(reader::damaged(BlobKind::Tree, id, location, Flaw::NotDecompressable)),
            },
            false => parse_tree(bytes, id, location),
        }
    })
}

fn parse_tree(plain: impl Read, id: &Id, location: &BlobLocation) -> Result<Tree> {
    let damaged = |flaw| Err(reader::damaged(BlobKind::Tree, id, location, flaw));
    let wanted_bytes = u64::from(location.raw_length);
    let mut reader = BufReader::with_capacity(
        1 << 16,
        HashingReader {
            // One byte more than there should be, to see that there is more.
            inner: plain.take(wanted_bytes + 1),
            hasher: Sha256::new(),
            count: 0,
        },
    );
    let parsed = serde_json::from_reader::<_, TreeJson>(&mut reader);
    // Whatever the parser said: with the wrong bytes it had no chance.
    if io::copy(&mut reader, &mut io::sink()).is_err() {
        return damaged(Flaw::NotDecompressable);
    }
    let hashed = reader.into_inner();
    if hashed.count != wanted_bytes {
        return damaged(Flaw::WrongLength { wanted_bytes, actual_bytes: hashed.count });
    }
    if Id::from_bytes(hashed.hasher.finalize().into()) != *id {
        return damaged(Flaw::NotItsName);
    }
    parsed
        .map_err(|e| e.to_string())
        .and_then(|tree| tree.check().map_err(str::to_owned))
        .map_err(|reason| Error::TreeMalformed { id: *id, reason })
}

/// Whether this is the JSON of a tree that makes sense.
#[cfg(any(test, feature = "testing"))]
pub(super) fn is_readable(json: &[u8]) -> bool {
    serde_json::from_reader::<_, TreeJson>(json).is_ok_and(|tree| tree.check().is_ok())
}

struct HashingReader<R> {
    inner: R,
    hasher: Sha256,
    count: u64,
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.count += count as u64;
        Ok(count)
    }
}

#[derive(serde::Deserialize)]
struct TreeJson {
    nodes: Option<Vec<NodeJson>>,
}

#[derive(serde::Deserialize)]
struct NodeJson {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    mode: u32,
    #[serde(default)]
    mtime: DateTime<FixedOffset>,
    #[serde(default)]
    atime: DateTime<FixedOffset>,
    #[serde(default)]
    ctime: DateTime<FixedOffset>,
    #[serde(default)]
    uid: u32,
    #[serde(default)]
    gid: u32,
    #[serde(default)]
    user: String,
    #[serde(default)]
    group: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    content: Option<Content>,
    #[serde(default)]
    subtree: Option<Id>,
}

impl TreeJson {
    fn check(self) -> std::result::Result<Tree, &'static str> {
        let nodes = self.nodes.unwrap_or_default().into_iter();
        let nodes: Vec<Node> = nodes.map(NodeJson::check).collect::<std::result::Result<_, _>>()?;
        match nodes.is_sorted_by(|one, next| one.name < next.name) {
            true => Ok(Tree { nodes }),
            false => Err("the names are not in ascending order"),
        }
    }
}

impl NodeJson {
    fn check(self) -> std::result::Result<Node, &'static str> {
        let name = unquote(&self.name).ok_or("a name is not quoted as it should be")?;
        let name = OsString::from_vec(name);
        if let Some(flaw) = name_flaw(&name) {
            return Err(flaw);
        }
        let kind = match self.kind.as_str() {
            "dir" => NodeKind::Dir { subtree: self.subtree.ok_or("a folder has no tree")? },
            "file" => NodeKind::File { size_bytes: self.size, content: self.content.ok_or("a file has no content")? },
            _ => NodeKind::Other(self.kind),
        };
        Ok(Node {
            name,
            metadata: Metadata {
                mode: self.mode & !GO_MODE_DIR,
                mtime: self.mtime,
                atime: self.atime,
                ctime: self.ctime,
                uid: self.uid,
                gid: self.gid,
                user: self.user,
                group: self.group,
            },
            kind,
        })
    }
}

/// Builds the run-length list while the JSON array is parsed.
#[derive(Default)]
struct ContentBuilder {
    content: Content,
    last: Option<(Id, [u8; Id::HEX_LENGTH])>,
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let mut builder = ContentBuilder::default();
        deserializer.deserialize_seq(&mut builder)?;
        Ok(builder.content)
    }
}

impl<'de> Visitor<'de> for &mut ContentBuilder {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of ids")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<(), A::Error> {
        while list.next_element_seed(&mut *self)?.is_some() {}
        Ok(())
    }

    fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<(), E> {
        let id = match self.last {
            Some((id, hex)) if hex == text.as_bytes() => id,
            _ => {
                let id: Id = text.parse().map_err(E::custom)?;
                self.last = Some((id, id.to_hex()));
                id
            }
        };
        self.content.push(id);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for &mut ContentBuilder {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
        let location =
            BlobLocation { pack: id, offset: 0, length: 0, raw_length: json.len() as u32, compressed: false };
        parse_tree(json.as_bytes(), &id, &location)
    }

    #[test]
    fn fields_stand_in_restics_order() {
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
    fn names_are_quoted_as_go_does() {
        // Both sides as restic 0.14 wrote them.
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
    fn trees_that_make_no_sense_are_refused() {
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
        fn any_name_goes_both_ways(name in proptest::collection::vec(any::<u8>(), 0..40)) {
            let quoted = quote(OsStr::from_bytes(&name));
            prop_assert_eq!(unquote(&quoted), Some(name));
            let json: String = serde_json::from_str(&json_string(&quoted)).unwrap();
            prop_assert_eq!(json, quoted);
        }

        #[test]
        fn any_text_is_quoted_or_not(text: String) {
            let _ = unquote(&text);
        }

        #[test]
        fn any_tree_goes_both_ways(
            files in proptest::collection::btree_map("[^/\0]{1,12}", proptest::collection::vec((0u8..3, 1u64..3000),
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
    }
}
