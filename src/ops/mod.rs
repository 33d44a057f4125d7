//! The workflows: what the commands do, without a terminal and without a configuration file.
//!
//! | module | what |
//! | --- | --- |
//! | [`inventory`] | machines and disks as records |
//! | [`doctor`] | the problems that would prevent a backup (pure) |
//! | [`snapshot`], [`release`] | open and end captures |
//! | [`guard`] | the guard process of a capture: renews its lease and watches the scratch space |
//! | [`hash`] | the SHA-256 of disks and files |
//! | [`offline_watch`] | watches a stopped machine while it is read |
//! | [`object_lock`] | locks on the files of new points, in storages that support object locks |
//! | [`store`] | stores one captured disk in a repository |
//! | [`push`] | stores a captured machine in a repository: the only code path that stores a machine |
//! | [`copy`] | copies points between repositories, and finds those that are not copied yet |
//! | [`backup`] | snapshot, push and release of one machine, in the commit order |
//! | [`chain`] | which point a backup can continue, disk by disk, and why not |
//! | [`points`] | finds restore points by id or by time, opens them, and groups them by machine |
//! | [`repo_lock`], [`locked_repo`] | locks of a repository, and its content while one is held |
//! | [`latest_points`] | the newest point of each machine, for quick queries |
//! | [`stats`] | the space that each machine uses |
//! | [`verify`], [`verify_sampling`] | verifies points, completely or in samples |
//! | [`pin`] | excludes a point from retention |
//! | [`prune`] | applies the retention rules and frees the space |
//! | [`serve`] | serves the disks of a point over NBD |
//! | [`drill`] | boots a point in isolation and reports how far it gets |
//! | [`files`] | lists, reads and copies the files of a point |
//! | [`mount`] | mounts of a served point |
//! | [`restore`] | restores a machine: the only code path that does |
//! | [`manifest`], [`chunk_map`] | the description of a point, and a disk as a list of chunks |
//! | [`shared_list`] | a long list that shares unchanged parts with its earlier version |

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
