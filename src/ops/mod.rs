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
//! | [`store`] | one captured disk into a repository |
//! | [`push`] | a captured machine into a repository: the one storage path |
//! | [`copy`] | points from one repository to another, and which are there or are yet to come |
//! | [`backup`] | the three above for one machine, in the commit order |
//! | [`chain`] | what a backup can continue, disk by disk, and why not |
//! | [`points`] | find restore points, by id or by time, and open them; which are one machine's |
//! | [`repo_lock`], [`locked_repo`] | locks of a repository, and what it has while one is held |
//! | [`latest_points`] | the newest point of each machine, quickly |
//! | [`verify`], [`verify_sampling`] | prove points, all of them or a part at a time |
//! | [`pin`] | keep a point whatever the retention says |
//! | [`prune`] | apply retention, free the space |
//! | [`restore`] | bring a machine back: the one restore path |
//! | [`manifest`], [`chunk_map`] | what a point says of itself, and a disk as a list of chunks |

pub mod backup;
pub mod chain;
pub mod chunk_map;
pub mod copy;
pub mod doctor;
pub mod error;
pub mod guard;
pub mod hash;
pub mod inventory;
pub mod latest_points;
pub mod locked_repo;
pub mod manifest;
pub mod monitor;
pub mod offline_watch;
pub mod pin;
pub mod points;
pub mod prune;
pub mod push;
pub mod release;
pub mod remote;
pub mod repo_lock;
pub mod restore;
pub mod snapshot;
pub mod store;
mod threads;
pub mod verify;
pub mod verify_sampling;

pub use error::{Error, Result};
pub use monitor::{Monitor, Progress, Silent, Stop};
