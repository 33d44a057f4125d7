//! Restore points: list, find and open them.

mod find;
pub(crate) mod lineage;
mod open;
mod point_ref;

pub(crate) use find::{PointName, find, find_surely, name_matches, no_such_point};
pub(crate) use open::{
    Description, OpenPoint, describe, known_manifest, load_index_for_reading, load_whole_index, open, open_with_damage,
    read_manifest, read_origin, to_record,
};
pub(crate) use point_ref::{MACHINE_TAG, PINNED_TAG, PointRef, RESTORING_TAG, TAG, is_restoring, list, of_snapshots};
