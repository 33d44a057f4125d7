//! Stopped machines: inspecting their images as little as necessary, and serving them for reading.
//!
//! | module | subject |
//! | --- | --- |
//! | [`backing_string`] | the backing file names in image headers (pure) |
//! | [`block_graph`] | the block nodes that QEMU opens for a disk (pure) |
//! | `image_bytes` | bytes of an image, and the numbers of its header (pure) |
//! | [`image_header`] | headers of image files: the files that they refer to (pure) |
//! | [`image_lookup`] | reads image headers for a block graph |
//! | [`network_storage`] | network storage as QEMU's options (pure) |
//! | `offline_changes` | detects changes of a stopped machine while it is read |
//! | [`offline_fingerprint`] | the attributes that show whether its files were written to |
//! | `qcow2_end` | detects images that are truncated within their data (pure) |
//! | [`qemu_user`] | the user that QEMU runs as, and running programs as that user |
//! | [`storage_daemon`] | serves the disks of a machine that is off |

pub(crate) mod backing_string;
pub(crate) mod block_graph;
mod image_bytes;
pub(crate) mod image_header;
pub mod image_lookup;
pub(crate) mod network_storage;
pub(crate) mod offline_changes;
pub(crate) mod offline_fingerprint;
mod qcow2_end;
pub(crate) mod qemu_user;
pub mod storage_daemon;
