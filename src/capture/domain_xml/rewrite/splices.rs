//! Replaces parts of an XML text at the positions that the parser found, and keeps all other bytes.

use std::ops::Range;
use std::path::Path;

use roxmltree::{Attribute, Node};

use crate::capture::domain_xml::definition::{DefinitionError, Result, children};
use crate::capture::domain_xml::xml::escape;

/// Replacements of parts of a text, in any order.
pub(super) struct Splices<'x> {
    pub(super) xml: &'x str,
    list: Vec<(Range<usize>, String)>,
}

impl<'x> Splices<'x> {
    pub(super) fn new(xml: &'x str) -> Splices<'x> {
        Splices { xml, list: Vec::new() }
    }

    pub(super) fn replace(&mut self, range: Range<usize>, text: String) {
        self.list.push((range, text));
    }

    /// Removes an element and the line break and indentation before it.
    pub(super) fn remove(&mut self, node: Node) {
        let range = node.range();
        let blank = self.blank_before(range.start).len();
        self.replace(range.start - blank..range.end, String::new());
    }

    /// Removes the content of an element and keeps its attributes.
    pub(super) fn make_empty(&mut self, node: Node) {
        let attributes: String =
            node.attributes().map(|attribute| format!(" {}", &self.xml[attribute.range()])).collect();
        self.replace(node.range(), format!("<{}{attributes}/>", node.tag_name().name()));
    }

    pub(super) fn remove_attribute(&mut self, attribute: Attribute) {
        let range = attribute.range();
        let blank = self.blank_before(range.start).len();
        self.replace(range.start - blank..range.end, String::new());
    }

    pub(super) fn drop_attribute(&mut self, node: Node, name: &str) {
        if let Some(attribute) = node.attribute_node(name) {
            self.remove_attribute(attribute);
        }
    }

    pub(super) fn set_attribute(&mut self, node: Node, name: &str, value: &str) {
        let text = format!("{name}='{}'", escape(value));
        match node.attribute_node(name) {
            Some(attribute) => self.replace(attribute.range(), text),
            None => {
                let at = self.after_tag_name(node);
                self.replace(at..at, format!(" {text}"));
            }
        }
    }

    /// Inserts text after an element, on its own line if the element is on one.
    pub(super) fn insert_after(&mut self, node: Node, text: &str) {
        let range = node.range();
        let blank = self.blank_before(range.start);
        self.replace(range.end..range.end, format!("{blank}{text}"));
    }

    /// Inserts text after an element's start tag.
    pub(super) fn insert_first(&mut self, node: Node, text: &str) {
        let (Some(first), Some(first_element)) = (node.first_child(), node.first_element_child()) else {
            return;
        };
        let at = first.range().start;
        let blank = self.blank_before(first_element.range().start);
        self.replace(at..at, format!("{blank}{text}"));
    }

    /// Inserts text before an element's end tag.
    pub(super) fn insert_last(&mut self, node: Node, text: &str) {
        let range = node.range();
        if let Some(at) = self.xml[range.clone()].rfind("</") {
            let at = range.start + at;
            self.replace(at..at, text.to_owned());
        }
    }

    /// The offset after `<name`, where an attribute may begin.
    fn after_tag_name(&self, node: Node) -> usize {
        let start = node.range().start;
        let length = self.xml[start..]
            .find(|character: char| character.is_whitespace() || matches!(character, '/' | '>'))
            .unwrap_or(0);
        start + length
    }

    fn blank_before(&self, at: usize) -> &'x str {
        let before = &self.xml[..at];
        &before[before.trim_end_matches([' ', '\t', '\r', '\n']).len()..]
    }

    /// Applies all replacements. Those inside a replaced part are dropped.
    pub(super) fn apply(mut self) -> String {
        // Insertions come before replacements at the same offset. Of two replacements, the longer one wins.
        self.list.sort_by_key(|(range, _)| (range.start, !range.is_empty(), std::cmp::Reverse(range.end)));
        let mut result = String::with_capacity(self.xml.len());
        let mut done = 0;
        for (range, text) in &self.list {
            if range.start < done {
                continue;
            }
            result += &self.xml[done..range.start];
            result += text;
            done = range.end;
        }
        result += &self.xml[done..];
        result
    }
}

pub(super) fn element(name: &str, text: &str) -> String {
    format!("<{name}>{}</{name}>", escape(text))
}

pub(super) fn children_named<'a, 'i: 'a>(node: Node<'a, 'i>, name: &'static str) -> Vec<Node<'a, 'i>> {
    children(node, name).collect()
}

/// Returns a path as text, because libvirt only accepts UTF-8.
pub(super) fn path_text(path: &Path) -> Result<&str> {
    path.to_str()
        .ok_or_else(|| DefinitionError::BadValue { what: "the path", value: path.to_string_lossy().into_owned() })
}
