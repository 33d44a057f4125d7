//! Writes trees.

use std::io::{self, Write};

use chrono::{DateTime, FixedOffset};

use super::name::{json_string, quote};
use super::node::{GO_MODE_DIR, Node, NodeKind, name_flaw};
use crate::repo::{BlobKind, Content, Error, Id, Result, Writer, time};

const BEGINNING: &[u8] = b"{\"nodes\":[";
const END: &[u8] = b"]}\n";

/// Stores the tree of a folder. The nodes must be in ascending order of their names (by bytes).
pub fn write_tree(writer: &Writer, nodes: &[Node]) -> Result<Id> {
    check_nodes(nodes)?;
    writer.put_stream(BlobKind::Tree, |out| write_json(nodes, out)).map(|stored| stored.id)
}

/// Stores the tree of a folder with one file that only its owner may read. `blobs` returns the blobs of the file with
/// the lengths of runs. It is called several times, and must return the same each time.
pub(crate) fn write_tree_of_file<I: Iterator<Item = (Id, u64)>>(
    writer: &Writer,
    (name, time): (&str, DateTime<FixedOffset>),
    size_bytes: u64,
    blobs: impl Fn() -> I + Sync,
) -> Result<Id> {
    let node = Node::file(name, time, size_bytes, Content::new());
    check_nodes(std::slice::from_ref(&node))?;
    let write = |out: &mut dyn Write| {
        out.write_all(BEGINNING)?;
        write_head(&node, out)?;
        write_file(size_bytes, blobs(), out)?;
        out.write_all(END)
    };
    writer.put_stream(BlobKind::Tree, write).map(|stored| stored.id)
}

pub(super) fn check_nodes(nodes: &[Node]) -> Result<()> {
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

pub(super) fn write_json(nodes: &[Node], out: &mut dyn Write) -> io::Result<()> {
    out.write_all(BEGINNING)?;
    for (position, node) in nodes.iter().enumerate() {
        if position > 0 {
            out.write_all(b",")?;
        }
        write_node(node, out)?;
    }
    out.write_all(END)
}

fn write_node(node: &Node, out: &mut dyn Write) -> io::Result<()> {
    write_head(node, out)?;
    match &node.kind {
        NodeKind::File { size_bytes, content } => write_file(*size_bytes, content.runs(), out),
        NodeKind::Dir { subtree } => write!(out, ",\"content\":null,\"subtree\":\"{subtree}\"}}"),
        NodeKind::Other(_) => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// Writes an entry up to its contents.
fn write_head(node: &Node, out: &mut dyn Write) -> io::Result<()> {
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
    Ok(())
}

fn write_file(size_bytes: u64, blobs: impl Iterator<Item = (Id, u64)>, out: &mut dyn Write) -> io::Result<()> {
    if size_bytes != 0 {
        write!(out, ",\"size\":{size_bytes}")?;
    }
    out.write_all(b",\"content\":[")?;
    write_content(blobs, out)?;
    out.write_all(b"]}")
}

fn write_content(blobs: impl Iterator<Item = (Id, u64)>, out: &mut dyn Write) -> io::Result<()> {
    /// `,"` + id + `"`
    const ITEM: usize = Id::HEX_LENGTH + 3;
    /// The number of items of a run that are created at once.
    const BATCH: u64 = 1000;
    let mut first = true;
    let mut batch = Vec::new();
    for (id, count) in blobs {
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
