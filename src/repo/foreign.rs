//! Parsers of unsealed data from a repository, for the fuzz targets. Each returns whether the data is valid. Only
//! holders of the key can write such data, but bits may flip before they are sealed, and other versions and programs
//! write, too.

use super::{index_builder, pack, tree};

/// Checks the header of a pack.
pub(crate) fn pack_header(bytes: &[u8]) -> bool {
    pack::decode_header(bytes).is_some()
}

/// Checks the JSON of an index file.
pub(crate) fn index_json(bytes: &[u8]) -> bool {
    index_builder::is_readable(bytes)
}

/// Checks the JSON of a tree.
pub(crate) fn tree_json(bytes: &[u8]) -> bool {
    tree::is_readable(bytes)
}
