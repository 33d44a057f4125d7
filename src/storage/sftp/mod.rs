//! Repositories on a server that is reachable only over SSH.
//!
//! | file | contents |
//! | --- | --- |
//! | [`address`] | the address, as restic reads it |
//! | [`ssh_context`] | the facts about the host and its user that this layer needs |
//! | [`mod@ssh_config`] | the options of OpenSSH's client for a host |
//! | [`ssh_target`] | the connection parameters that result from address and options |
//! | [`proxy`] | the program that carries a connection, if it is not direct |
//! | [`known_hosts`] | verification of host keys |
//! | [`connection`] | one SSH connection, on which every wait is limited |
//! | [`progress`] | detection of a server that is stuck |
//! | [`mod@connect`], [`mod@authenticate`] | setup of a connection, and the login |
//! | [`agent_relay`] | time limits for the ssh-agent |
//! | [`credential_cache`] | cached answers, so that nobody is asked twice |
//! | [`own_key`] | the key that `remote setup` generates |
//! | [`wire`] | SFTP: requests and replies |
//! | [`fault`] | refusals of the server |
//! | [`files`] | the calls that a repository needs, in few round trips |
//! | [`look`] | the calls that read folders and whole files |
//! | [`pool`] | several connections |
//! | [`storage`] | the repository |

pub(crate) mod address;
pub(crate) mod agent_relay;
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
pub(crate) mod wire;

pub use address::SftpAddress;
pub use error::Error;
pub(crate) use error::Result;
pub use proxy::ProxyProblem;
pub(crate) use ssh_context::SshTimeouts;
pub use ssh_context::{CONNECTIONS, Credentials, Secret, ShownKey, SshContext};
pub use storage::SftpStorage;

pub(super) use authenticate::{Login, authenticate};
pub(super) use connect::connect;
pub(super) use connection::Connection;
pub(super) use fault::{SftpFault, SftpStatus};
pub(super) use files::SftpClient;
pub(super) use pool::Pool;
pub(super) use progress::TransferProgress;
pub(super) use ssh_target::SshTarget;
