//! Repositories on a server that offers nothing but SSH.
//!
//! | file | what |
//! | --- | --- |
//! | [`target`] | the address, as restic reads it |
//! | [`access`] | what this layer is told about the host and its user |
//! | [`route`] | what `ssh_config` makes of an address |
//! | [`known_hosts`] | which servers are who they say they are |
//! | [`connection`] | one SSH connection on which nothing waits for ever |
//! | [`mod@connect`], [`mod@authenticate`] | making one, and logging in |
//! | [`files`] | SFTP on it |
//! | [`posix_rename`] | the one call that the library lacks |
//! | [`pool`] | several of them |
//! | [`storage`] | the repository |

pub mod access;
pub mod authenticate;
pub mod connect;
pub mod connection;
pub mod error;
pub mod files;
pub mod known_hosts;
pub mod pool;
pub mod posix_rename;
pub mod route;
pub mod storage;
pub mod target;

pub use access::{Access, Credentials, Nobody, Patience, Secret, ShownKey};
pub use error::{Error, Result};
pub use storage::SftpStorage;
pub use target::Target;

use authenticate::{Login, authenticate};
use connect::connect;
use connection::Connection;
use files::{Fault, Files, Refusal};
use pool::Pool;
use route::Route;

/// How many connections to one server are made at most.
pub const CONNECTIONS: usize = 4;
