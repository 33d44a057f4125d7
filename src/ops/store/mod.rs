//! Stores the disks of a capture in a repository, one at a time.
//!
//! | module | content |
//! | --- | --- |
//! | `task` | what to read of a disk, and the result of storing it |
//! | `store_disk` | the pipeline: read, find zeros, hash, compress, encrypt, pack |
//! | `chunk_map_builder` | combines chunks that arrive in any order into one map |
//! | `audit` | reads clean chunks again and compares them with the parent |
//! | `lost_chunks` | chunks of the parent that the repository has lost |

mod audit;
mod chunk_map_builder;
mod lost_chunks;
mod store_disk;
mod task;

pub(super) use lost_chunks::{damaged_points, lost_chunks};
pub(crate) use store_disk::store_disk;
pub(crate) use task::{Base, DiskTask, StoreOutcome, StoredDisk, check_size};
