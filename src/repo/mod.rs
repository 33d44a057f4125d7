//! restic repositories, format version 2.
//!
//! There is one file for each concept of the format: [`Id`], key, config, [`RepoLock`], pack, [`Index`], [`Tree`],
//! [`Content`], [`Snapshot`]; and others for operations: [`Writer`], [`read_blobs`], [`copy_blobs`], [`check()`],
//! [`PrunePlan`]. All files are accessed through a [`Storage`](crate::storage::Storage). Blobs and files are
//! authenticated, and their SHA-256 is compared, before any byte is returned: data from this module is correct, or it
//! is a typed [`Error`].
//!
//! kvmb has its own implementation because no library accepts chunks of a fixed size, continues a parent's list of
//! chunks, and reports unreadable data.
//!
//! # Order of operations
//! A prune concurrent with a backup loses data unless both hold locks. So call [`Repository::lock`], then
//! [`Repository::load_index`], then write, with the lock's [`Permit`], without which nothing can be written. Before the
//! index is loaded, writers look for packs of interrupted runs with [`Repository::begin_recovery`], to add them to an
//! index.
//!
//! # Memory
//! | type or function | memory |
//! | --- | --- |
//! | [`Index`] | 50 bytes per blob, shared by all users of the [`Repository`] |
//! | [`Content`] | 32 bytes per blob, a run of the same id counts as one |
//! | [`Writer`] | about `(3 + Storage::parallel) · pack_bytes`, two chunks per caller, 40-80 bytes per new blob |
//! | [`read_blobs`] | 8 MiB and one blob (sealed and plain) per thread, some 90 bytes per id |
//! | [`PrunePlan`] | the index, 2 bits per blob, 200 bytes per pack, 16 bytes per copied blob, one tree at a time |
//! | [`RepoUsage`] | the index, 8 bytes per blob, one tree at a time |
//! | [`write_tree`], [`read_tree`] | the tree *compressed*, and its [`Content`] |

mod base64;
mod blob_kind;
mod cache_folder;
mod cached_index;
mod check;
mod compression;
mod config;
mod content;
mod creation;
mod crypto;
mod error;
#[cfg(any(test, feature = "testing"))]
pub(crate) mod foreign;
mod handed_key;
mod host;
mod id;
mod index;
mod index_builder;
mod index_cache;
mod index_file;
mod index_table;
mod kept_key;
mod kept_records;
mod key;
mod key_cache;
mod keys;
mod lock;
mod lock_info;
mod object_lock;
mod orphaned_packs;
mod pack;
mod place_set;
mod polynomial;
mod prune;
mod reachable;
mod reader;
mod repo_cache_dir;
mod repository;
mod reread;
mod snapshot;
mod time;
mod transfer;
mod tree;
mod unlock;
mod usage;
mod writer;

pub use blob_kind::BlobKind;
pub use check::{CheckOptions, check};
pub use compression::Compression;
pub use content::Content;
pub(crate) use creation::Presence;
pub use crypto::Password;
pub use error::{Error, Flaw, Result};
pub(crate) use handed_key::HandedKey;
pub use id::Id;
pub(crate) use index::BlobLocation;
pub use index::Index;
pub(crate) use index_cache::{IndexWithDamage, are_all_there};
pub(crate) use key::KeyInfo;
pub use key_cache::KeyCache;
pub(crate) use lock::PendingLock;
pub use lock::{LockMode, LockTiming, Permit, RepoLock};
pub use lock_info::LockInfo;
pub(crate) use object_lock::extend_locks;
pub(crate) use place_set::PlaceSet;
pub use prune::{MaxUnused, PruneLimits, PrunePlan, PruneSummary};
pub(crate) use prune::{PruneEvent, is_no_space};
pub use reader::{read_blobs, read_groups};
pub(crate) use repo_cache_dir::RepoCacheDir;
pub use repository::Repository;
pub use snapshot::Snapshot;
pub(crate) use snapshot::{DamagedSnapshot, SnapshotList, StoredSnapshot};
pub(crate) use transfer::copy_blobs;
pub(crate) use tree::write_tree_of_file;
pub use tree::{Node, NodeKind, Tree, read_tree, write_tree};
pub(crate) use unlock::FoundLock;
pub(crate) use usage::RepoUsage;
pub(crate) use writer::{PutOutcome, ZERO_BLOB_BYTES};
pub use writer::{Writer, WriterOptions, zero_blob_id};
