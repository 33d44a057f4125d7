//! The parts of a machine in addition to its disks, and those that are excluded. They are copied without following
//! links that QEMU's user could have created.

pub(crate) mod copies;
pub(crate) mod left_out;
pub(crate) mod network_file;
pub(crate) mod safe_path;
