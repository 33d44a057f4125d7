//! The general parser of trees, for any valid JSON.

use std::ffi::OsString;
use std::fmt;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;

use chrono::{DateTime, FixedOffset};
use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, SeqAccess, Visitor};

use super::name::unquote;
use super::node::{GO_MODE_DIR, Metadata, Node, NodeKind, Tree, name_flaw};
use crate::repo::{Content, Id};

#[derive(serde::Deserialize)]
pub(super) struct TreeJson {
    pub(super) nodes: Option<Vec<NodeJson>>,
}

#[derive(serde::Deserialize)]
pub(super) struct NodeJson {
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
    pub(super) fn read(source: impl Read) -> serde_json::Result<TreeJson> {
        serde_json::from_reader(source)
    }

    /// Parses a tree with one entry, whose list of blobs was already parsed.
    pub(super) fn of_one(json: &[u8], content: Option<Content>) -> Option<TreeJson> {
        let mut tree: TreeJson = serde_json::from_slice(json).ok()?;
        let [node] = tree.nodes.as_deref_mut()? else { return None };
        node.content = content;
        Some(tree)
    }

    /// Converts to a tree, if it is valid.
    pub(super) fn check(self) -> std::result::Result<Tree, &'static str> {
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

/// Builds the list of blobs, with runs, while the JSON array is parsed.
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
