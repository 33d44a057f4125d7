//! A machine that is off: its images, looked into as little as it takes and served to be read.
//!
//! | module | its subject |
//! | --- | --- |
//! | [`backing_string`] | what a header calls the layer below it (pure) |
//! | [`block_graph`] | the nodes that QEMU opens for a disk (pure) |
//! | [`image_header`] | headers of image files: what they name (pure) |
//! | [`image_lookup`] | images looked into for a block graph |
//! | [`network_storage`] | network storage as QEMU's options (pure) |
//! | `offline_changes` | whether a machine that is off stayed as it was while it was read |
//! | [`offline_fingerprint`] | what shows whether its files were written |
//! | [`qemu_user`] | whom QEMU runs as, and programs as that user |
//! | [`storage_daemon`] | serves the disks of a machine that is off |

pub(crate) mod backing_string;
pub(crate) mod block_graph;
pub(crate) mod image_header;
pub mod image_lookup;
pub(crate) mod network_storage;
pub(crate) mod offline_changes;
pub(crate) mod offline_fingerprint;
pub(crate) mod qemu_user;
pub mod storage_daemon;
