//! Trees: the entries of one folder.
//!
//! A tree is a blob of JSON, `{"nodes":[…]}` and a newline, the entries sorted by name, their fields in restic's order.
//! Names are written as Go's `strconv.Quote` writes them, without the quotes around, and that again as a JSON string: a
//! name with a newline stands there as `\\n`.
//!
//! The list of blobs of a disk makes a tree large: 1.4 GB for 10 TiB. It is never in memory as JSON. Writing runs over
//! it three times: for its length, which is cheap, and at the same time for the hash and the compressor. Reading
//! decompresses in one thread, and hashes and parses in another. Lists of blobs have one form, 67 bytes an id, and are
//! read as such ([`fixed_form`]); a tree that has another form is read once more by the general parser ([`json`]).

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
