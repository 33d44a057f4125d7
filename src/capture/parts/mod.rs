//! What belongs to a machine beside its disks, and what is left out: copied without following what QEMU's user can write.

pub mod copies;
pub(crate) mod left_out;
pub(crate) mod network_file;
pub mod safe_path;
