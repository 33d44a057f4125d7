//! Repositories on a REST server, such as restic's `rest-server` and `rclone serve restic`.
//!
//! | file | contents |
//! | --- | --- |
//! | [`address`] | the address, as restic reads it |
//! | [`storage`] | the repository |

pub(crate) mod address;
pub(crate) mod storage;

pub use address::RestAddress;
pub use storage::RestStorage;
