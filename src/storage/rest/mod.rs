//! Repositories on a REST server, as restic's `rest-server` and `rclone serve restic` are.
//!
//! | file | what |
//! | --- | --- |
//! | [`address`] | the address, as restic reads it |
//! | [`storage`] | the repository |

pub(crate) mod address;
pub(crate) mod storage;

pub use address::RestAddress;
pub use storage::RestStorage;
