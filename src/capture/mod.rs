//! The moment of capture: everything that talks to libvirt and QEMU.
//!
//! A *capture* is an open moment of one machine: a libvirt backup job - or, for a machine that is off, one read-only
//! `qemu-storage-daemon` - whose disks can be read over NBD until it is closed or its lease ends. This layer opens and
//! closes captures and knows nothing of what reads them.
//!
//! | module | its subject |
//! | --- | --- |
//! | [`domain_xml`] | domain XML: read, changed for a restore (pure) |
//! | [`parts::copies`] | firmware variables, TPM state, kernel, initrd and other files, copied at the moment of capture |
//! | `left_out` | what a backup leaves out, and why |
//! | `network_file` | small files on network storage |
//! | [`connection`] | the hypervisor: open, list, look up, define |
//! | `link` | a connection to libvirt, which a hypervisor and its machines share |
//! | [`limits`] | how long libvirt may take; machines that do not answer |
//! | [`pools`] | volumes of storage pools, for a restore |
//! | [`machine`] | one domain: state, definition, disk sizes |
//! | `machine_lock` | one command at a time opens or clears captures of a machine |
//! | `domain_folder` | the folder that libvirt keeps for a running machine |
//! | [`agent`] | freeze and thaw the guest's file systems |
//! | [`checkpoint`] | checkpoints and their bitmaps: list, test, delete, bring back |
//! | [`guard`] | the record of a capture's guard process |
//! | `first_schema` | the first schema is read by one thread alone |
//! | [`job`] | the backup job: begin, find, end |
//! | [`block_job`] | block jobs of running machines |
//! | [`offline`] | a machine that is off: its images as QEMU would open them, and the program that serves them |
//! | [`holders`] | who has a file open |
//! | [`images`] | image files: which file it is, and its bitmaps |
//! | [`process`] | processes, distinguished from later ones with the same number |
//! | `pull` | copies what is below an image into it, while the machine runs |
//! | [`runtime`] | the folders: state, sockets, scratch files |
//! | [`parts::safe_path`] | files in folders that QEMU's user can write: opened without being led elsewhere |
//! | [`state`] | what is known of an open capture, on disk |
//! | [`open`] | opens a capture: what is asked for, a machine that runs, one that is off |
//! | [`close`] | closes captures, and clears what a killed run left |
//! | [`transient`] | machines that exist while this process does |
//! | [`survey`] | what a backup would meet, looked at and left as it is |
//!
//! # What survives what
//! The state file is written *before* the job begins and says so ([`state::Phase`]), so that a run killed at any
//! instant leaves a trail that [`close::clear_leftovers`] can follow: freeze not thawed, job begun, checkpoint made,
//! scratch files and sockets there. Jobs, checkpoints and processes that are not ours are never touched.

pub mod agent;
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
pub(crate) mod parts;
pub(crate) mod pools;
pub mod process;
mod pull;
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
