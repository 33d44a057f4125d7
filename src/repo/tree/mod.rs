//! Trees: the entries of one folder.
//!
//! A tree is a blob of JSON, `{"nodes":[…]}` and a newline, with the entries sorted by name and their fields in
//! restic's order. Names are escaped like Go's `strconv.Quote`, without the surrounding quotes, and the result is a
//! JSON string: a newline in a name becomes `\\n`.
//!
//! The list of blobs of a disk makes a tree large: 1.4 GB for 10 TiB. It is never in memory as JSON. Writing generates
//! it three times: for its length, which is cheap, and then concurrently for the hash and the compressor. Reading
//! decompresses in one thread, and hashes and parses in another. Lists of blobs normally have one form, 67 bytes per
//! id, for which there is a special parser ([`fixed_form`]). A tree in another form is read again by the general parser
//! ([`json`]).

mod fixed_form;
mod json;
mod name;
mod node;
mod read;
mod write;

pub use node::{Node, NodeKind, Tree};
#[cfg(any(test, feature = "testing"))]
pub(super) use read::is_readable;
pub use read::read_tree;
pub use write::write_tree;
pub(crate) use write::write_tree_of_file;

#[cfg(test)]
mod tests;
