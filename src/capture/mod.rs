//! The moment of capture: everything that talks to libvirt and QEMU.
//!
//! A *capture* is an open moment of one machine: a libvirt backup job - or, for a machine that is off, one read-only
//! `qemu-storage-daemon` - whose disks can be read over NBD until it is closed or its lease ends. This layer opens and closes
//! captures and knows nothing of what reads them.
//!
//! | module | its subject |
//! | --- | --- |
//! | [`definition`] | domain XML, read (pure) |
//! | [`source`] | where a disk's contents are, layer by layer (pure) |
//! | `copies` | firmware variables, TPM state, kernel and initrd, copied at the moment of capture |
//! | [`mod@rewrite`] | domain XML, changed for a restore (pure) |
//! | [`references`] | what a definition refers to on its host (pure) |
//! | [`connection`] | the hypervisor: open, list, look up, define |
//! | [`limits`] | how long libvirt may take; machines that do not answer |
//! | [`pools`] | volumes of storage pools, for a restore |
//! | [`machine`] | one domain: state, definition, disk sizes |
//! | [`suggest`] | names that were meant by one that nobody has (pure) |
//! | [`agent`] | freeze and thaw the guest's file systems |
//! | [`checkpoint`] | checkpoints and their bitmaps: list, test, delete, bring back |
//! | [`guard`] | the record of a capture's guard process |
//! | [`job`] | the backup job: begin, find, end |
//! | `open_off` | opens a capture of a machine that is off |
//! | [`storage_daemon`] | serves the disks of a machine that is off |
//! | [`qemu_user`] | whom QEMU runs as, and programs as that user |
//! | [`image_lookup`] | images looked into for a block graph |
//! | [`image_server`] | any image as the guest sees it, for the time of one command |
//! | [`block_graph`] | the nodes that QEMU opens for a disk (pure) |
//! | [`network_storage`] | network storage as QEMU's options (pure) |
//! | [`backing_string`] | what a header calls the layer below it (pure) |
//! | [`image_header`] | headers of image files: what they name (pure) |
//! | [`holders`] | who has a file open |
//! | `open_request` | what a capture is asked for |
//! | [`images`] | image files: which file it is, and its bitmaps |
//! | [`runtime`] | the folders: state, sockets, scratch files |
//! | [`safe_path`] | files in folders that QEMU's user can write: opened without being led elsewhere |
//! | [`tpm`] | where the state of an emulated TPM is |
//! | [`state`] | what is known of an open capture, on disk |
//! | [`offline_fingerprint`] | whether a machine that is off stayed as it was while it was read |
//! | [`open`] | opens a capture |
//! | [`close`] | closes captures, and clears what a killed run left |
//! | [`survey`] | what a backup would meet, looked at and left as it is |
//!
//! # What survives what
//! The state file is written *before* the job begins and says so ([`state::Phase`]), so that a run killed at any instant
//! leaves a trail that [`close::clear_leftovers`] can follow: freeze not thawed, job begun, checkpoint made, scratch files
//! and sockets there. Jobs, checkpoints and processes that are not ours are never touched.

pub mod agent;
pub mod backing_string;
pub mod block_graph;
pub mod checkpoint;
pub mod close;
pub mod connection;
mod copies;
pub mod definition;
mod error;
mod ffi;
pub mod guard;
pub mod holders;
pub mod image_header;
pub mod image_lookup;
pub mod image_server;
pub mod images;
pub mod job;
pub mod limits;
pub mod machine;
pub mod network_storage;
pub mod offline_fingerprint;
pub mod open;
mod open_off;
mod open_request;
pub mod pools;
pub mod qemu_user;
pub mod references;
pub mod rewrite;
pub mod runtime;
pub mod safe_path;
mod signals;
pub mod source;
pub mod state;
pub mod storage_daemon;
pub mod suggest;
pub mod survey;
pub mod tpm;
mod xml;

pub use agent::{Consistency, FreezeMode, FreezeOptions};
pub use close::{CloseRequest, ClosedCapture, clear_leftovers, close_capture};
pub use connection::{Hypervisor, complete_path, quiet_libvirt_log};
pub use definition::{DefinedDisk, Definition, Device, DiskSource};
pub use error::{Error, LibvirtErrorKind, Result};
pub use ffi::{detach_from_terminal, fork};
pub use limits::Limits;
pub use machine::Machine;
pub use open::{DiskRequest, OpenRequest, open_capture};
pub use rewrite::{Changes, NewDisk, NewDiskKind, rewrite, rewrite_with_notes};
pub use runtime::RuntimeDirs;
pub use state::{CaptureFile, CaptureKind, CaptureState, CapturedDisk};
