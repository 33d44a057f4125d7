//! What belongs to a machine beside its disks, and what is left out: copied without following what QEMU's user can
//! write.

pub(crate) mod copies;
pub(crate) mod left_out;
pub(crate) mod network_file;
pub(crate) mod safe_path;
