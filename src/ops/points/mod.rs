//! Restore points: list, find and open them.

mod find;
pub mod lineage;
mod open;
mod point_ref;

pub use find::{PointName, find, find_surely, name_matches, no_such_point};
pub use open::{
    Description, OpenPoint, describe, disk_file, load_index_for_reading, open, open_with_damage, read_manifest,
    read_origin, to_record,
};
pub use point_ref::{MACHINE_TAG, PINNED_TAG, PointRef, TAG, list};
