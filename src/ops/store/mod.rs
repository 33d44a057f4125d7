//! The disks of a capture into a repository, one at a time.
//!
//! | module | what |
//! | --- | --- |
//! | `task` | what is to be read of a disk, and what storing it came to |
//! | `store_disk` | the pipeline: read, find zeros, hash, compress, encrypt, pack |
//! | `chunk_map_builder` | the chunks that come in any order, put into one map |
//! | `audit` | clean chunks read again and compared with the parent |
//! | `lost_chunks` | chunks of the parent that the repository has lost |

mod audit;
mod chunk_map_builder;
mod lost_chunks;
mod store_disk;
mod task;

pub(super) use lost_chunks::{damaged_points, lost_chunks};
pub(crate) use store_disk::store_disk;
pub(crate) use task::{Base, DiskTask, StoreOutcome, StoredDisk, check_size};
