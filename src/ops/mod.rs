//! The workflows: what the commands do, without a terminal and without a configuration file.
//!
//! | module | what |
//! | --- | --- |
//! | [`inventory`] | machines and disks as records |
//! | [`doctor`] | what will stand in the way of a backup (pure) |
//! | [`snapshot`], [`release`] | open and end captures |
//! | [`guard`] | the guard process of a capture: its lease, the scratch space |
//! | [`hash`] | the SHA-256 of disks and files |
//! | [`offline_watch`] | an eye on a machine that is off while it is read |
//! | [`object_lock`] | points in a place that locks files |
//! | [`store`] | one captured disk into a repository |
//! | [`push`] | a captured machine into a repository: the one storage path |
//! | [`copy`] | points from one repository to another, and which are there or are yet to come |
//! | [`backup`] | the three above for one machine, in the commit order |
//! | [`chain`] | what a backup can continue, disk by disk, and why not |
//! | [`points`] | find restore points, by id or by time, and open them; which are one machine's |
//! | [`repo_lock`], [`locked_repo`] | locks of a repository, and what it has while one is held |
//! | [`latest_points`] | the newest point of each machine, quickly |
//! | [`stats`] | the space that each machine takes |
//! | [`verify`], [`verify_sampling`] | verify points, all of them or a part at a time |
//! | [`pin`] | keep a point whatever the retention says |
//! | [`prune`] | apply retention, free the space |
//! | [`serve`] | the disks of a point over NBD |
//! | [`drill`] | boot a point in isolation, and report how far it gets |
//! | [`files`] | the files of a point: listed, read, copied |
//! | [`mount`] | mounts of a served point |
//! | [`restore`] | bring a machine back: the one restore path |
//! | [`manifest`], [`chunk_map`] | what a point says of itself, and a disk as a list of chunks |
//! | [`shared_list`] | a long list of which two points have most in common |

pub(crate) mod backup;
pub(crate) mod chain;
pub(crate) mod chunk_map;
pub mod copy;
pub(crate) mod doctor;
pub(crate) mod drill;
pub(crate) mod error;
pub(crate) mod files;
pub(crate) mod guard;
pub(crate) mod hash;
pub(crate) mod inventory;
pub(crate) mod latest_points;
pub(crate) mod locked_repo;
pub(crate) mod manifest;
pub(crate) mod monitor;
pub(crate) mod mount;
pub(crate) mod object_lock;
pub(crate) mod offline_watch;
pub(crate) mod pieces;
pub(crate) mod pin;
pub(crate) mod points;
pub mod prune;
pub(crate) mod push;
pub(crate) mod release;
pub(crate) mod remote;
pub(crate) mod repo_lock;
pub(crate) mod restore;
pub(crate) mod serve;
mod shared_list;
pub(crate) mod snapshot;
pub(crate) mod stats;
mod storable;
pub(crate) mod store;
pub(crate) mod threads;
pub(crate) mod verify;
pub(crate) mod verify_sampling;
mod watched;

pub use error::{Error, Result};
pub(crate) use monitor::{Monitor, Progress};
pub use monitor::{Silent, Stop};
