//! Capturing machines: everything that talks to libvirt and QEMU.
//!
//! A *capture* is the state of one machine at one instant: a libvirt backup job or, for a stopped machine, a read-only
//! `qemu-storage-daemon`. Its disks can be read over NBD until it is closed or its lease expires. This layer opens and
//! closes captures, and does not depend on their readers.
//!
//! | module | subject |
//! | --- | --- |
//! | [`domain_xml`] | domain XML: parsing, and changes for a restore (pure) |
//! | [`parts::copies`] | firmware variables, TPM state, kernel, initrd and other files, copied at the moment of capture |
//! | `left_out` | the parts that a backup excludes, and why |
//! | `network_file` | small files on network storage |
//! | [`connection`] | the hypervisor: open, list, look up, define |
//! | `link` | a libvirt connection, shared by a hypervisor and its machines |
//! | [`limits`] | time limits for libvirt calls; machines that do not answer |
//! | [`pools`] | volumes of storage pools, for a restore |
//! | [`machine`] | one domain: state, definition, disk sizes |
//! | `machine_lock` | lets one command at a time open or clean up captures of a machine |
//! | `domain_folder` | the folder that libvirt keeps for a running machine |
//! | [`agent`] | freeze and thaw the guest's file systems |
//! | [`checkpoint`] | checkpoints and their bitmaps: list, test, delete, restore |
//! | [`guard`] | the record of a capture's guard process |
//! | `first_schema` | lets a single thread load the first schema |
//! | [`job`] | the backup job: begin, find, end |
//! | [`block_job`] | block jobs of running machines |
//! | [`offline`] | stopped machines: their images as QEMU would open them, and the program that serves them |
//! | [`holders`] | the processes that have a file open |
//! | [`images`] | image files: their identity and their bitmaps |
//! | [`process`] | processes, distinguished from later ones with the same PID |
//! | `block_copy` | moves a running machine from an overlay to another image (block copy) |
//! | `own_changes` | changes that kvmb itself makes to backing files |
//! | [`runtime`] | the folders: state, sockets, scratch files |
//! | [`parts::safe_path`] | safe access to files in folders that QEMU's user can write to |
//! | [`state`] | the state of an open capture, on disk |
//! | [`open`] | opens a capture: the plan, running machines, stopped machines |
//! | [`close`] | closes captures, and cleans up after killed runs |
//! | [`transient`] | transient machines that end with this process |
//! | [`survey`] | read-only inspection of what a backup would encounter |
//!
//! # Cleanup after a crash
//! The state file is written *before* the job starts and records the phase ([`state::Phase`]). A run that is killed at
//! any instant therefore leaves enough information for [`close::clear_leftovers`] to clean up a frozen guest, a started
//! job, a new checkpoint, scratch files and sockets. Jobs, checkpoints and processes of other programs are never
//! touched.

pub mod agent;
mod block_copy;
pub mod block_job;
pub(crate) mod checkpoint;
pub mod close;
pub(crate) mod connection;
pub(crate) mod disk_session;
mod domain_folder;
pub mod domain_xml;
mod error;
mod ffi;
mod first_schema;
pub(crate) mod guard;
pub mod holders;
pub(crate) mod images;
pub mod job;
mod job_exports;
pub(crate) mod limits;
mod link;
pub mod machine;
mod machine_lock;
pub mod offline;
pub(crate) mod open;
pub(crate) mod own_changes;
pub(crate) mod parts;
pub(crate) mod pools;
pub mod process;
pub(crate) mod runtime;
mod signals;
pub mod state;
pub(crate) mod survey;
pub(crate) mod transient;

pub use crate::capture::domain_xml::definition::Definition;
pub(crate) use crate::capture::domain_xml::definition::{DefinedDisk, DiskSource};
pub(crate) use crate::capture::domain_xml::rewrite::{Changes, NewDisk, NewDiskKind, rewrite_with_notes};
pub(crate) use agent::{FreezeMode, FreezeOptions};
pub(crate) use close::clear_leftovers;
pub use close::{CloseRequest, ClosedCapture, close_capture};
pub use connection::Hypervisor;
pub(crate) use connection::{complete_path, quiet_libvirt_log};
pub(crate) use error::Result;
pub use error::{Error, LibvirtErrorKind};
pub(crate) use ffi::{detach_from_terminal, fork, share_freed_memory};
pub(crate) use limits::CallLimits;
pub use machine::Machine;
pub use open::{DiskRequest, OpenRequest, open_capture};
pub(crate) use process::RunningBackup;
pub use runtime::RuntimeDirs;
pub(crate) use state::{CaptureFile, CaptureMethod, CaptureState, CapturedDisk};
