//! Repositories on a server that offers nothing but SSH.
//!
//! | file | what |
//! | --- | --- |
//! | [`target`] | the address, as restic reads it |
//! | [`ssh_context`] | what this layer knows about the host and its user |
//! | [`mod@ssh_config`] | what OpenSSH's client is configured to do for a host |
//! | [`ssh_target`] | what that makes of an address |
//! | [`proxy`] | the program that carries a connection, where the way is not direct |
//! | [`known_hosts`] | which servers are who they say they are |
//! | [`connection`] | one SSH connection on which nothing waits for ever |
//! | [`progress`] | whether its server is stuck |
//! | [`mod@connect`], [`mod@authenticate`] | making one, and logging in |
//! | [`credential_cache`] | nobody is asked twice |
//! | [`own_key`] | the key that `remote setup` makes |
//! | [`wire`] | SFTP on it: requests and replies |
//! | [`fault`] | what the server's no means |
//! | [`files`] | the calls that a repository needs, in few round trips |
//! | [`look`] | those that read folders and whole files |
//! | [`pool`] | several of them |
//! | [`storage`] | the repository |

pub(crate) mod authenticate;
pub(crate) mod connect;
pub(crate) mod connection;
pub(crate) mod credential_cache;
pub(crate) mod error;
pub(crate) mod fault;
pub(crate) mod files;
pub(crate) mod known_hosts;
pub(crate) mod look;
pub(crate) mod own_key;
pub(crate) mod pool;
pub(crate) mod progress;
pub(crate) mod proxy;
pub(crate) mod ssh_config;
pub(crate) mod ssh_context;
pub(crate) mod ssh_target;
pub(crate) mod storage;
pub(crate) mod target;
pub(crate) mod wire;

pub use error::Error;
pub(crate) use error::Result;
pub(crate) use ssh_context::SshTimeouts;
pub use ssh_context::{CONNECTIONS, Credentials, Secret, ShownKey, SshContext};
pub use storage::SftpStorage;
pub use target::SftpAddress;

pub(super) use authenticate::{Login, authenticate};
pub(super) use connect::connect;
pub(super) use connection::Connection;
pub(super) use fault::{SftpFault, SftpStatus};
pub(super) use files::SftpClient;
pub(super) use pool::Pool;
pub(super) use progress::TransferProgress;
pub(super) use ssh_target::SshTarget;
