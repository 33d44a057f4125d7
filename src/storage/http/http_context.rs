//! What the storage layer needs to know about this host and its user. It does not read the environment or prompt
//! itself.

use crate::storage::sftp::Secret;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// The default maximum number of parallel requests. Each may hold a pack in memory.
const CONNECTIONS: usize = 6;

/// How to reach servers over HTTP.
#[derive(Debug, Clone)]
pub struct HttpContext {
    /// A file with the CA certificates (PEM) to verify servers with, instead of those of the system.
    pub ca_file: Option<PathBuf>,
    /// A file with the client certificate and private key (PEM) of this host.
    pub client_certificate: Option<PathBuf>,
    /// The source of secrets.
    pub credentials: Arc<dyn HttpCredentials>,
    /// Set when the program is ending: then timeouts are short.
    pub stop: Arc<AtomicBool>,
    /// The timeouts.
    pub timeouts: HttpTimeouts,
    /// The maximum number of parallel requests.
    pub connections: usize,
    /// The proxies to use.
    pub proxies: HttpProxies,
}

impl Default for HttpContext {
    /// Returns a context with the usual timeouts, and without credentials.
    fn default() -> HttpContext {
        HttpContext {
            ca_file: None,
            client_certificate: None,
            credentials: Arc::new(NoCredentials),
            stop: Arc::default(),
            timeouts: HttpTimeouts::default(),
            connections: CONNECTIONS,
            proxies: HttpProxies::default(),
        }
    }
}

/// An environment variable that names a proxy.
#[derive(Clone)]
pub struct ProxyVariable {
    /// The name in the spelling that is set.
    pub name: String,
    /// The proxy's address.
    pub value: String,
}

/// The proxies to use. They may contain passwords.
#[derive(Clone, Default)]
pub struct HttpProxies {
    /// The proxy for servers with TLS.
    pub https: Option<ProxyVariable>,
    /// The proxy for servers without TLS.
    pub http: Option<ProxyVariable>,
    /// Names and domain suffixes of servers that are reached without a proxy, separated by commas; `*` matches all.
    pub exceptions: String,
}

impl fmt::Debug for HttpProxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpProxies").field("exceptions", &self.exceptions).finish_non_exhaustive()
    }
}

/// Timeouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpTimeouts {
    /// For establishing a connection, including the TLS handshake; and again for resolving the name.
    pub connect: Duration,
    /// For the next bytes in either direction. A server responds to an upload when the file is on its disk.
    pub silence: Duration,
    /// For the next bytes when the program is ending.
    pub ending: Duration,
}

impl Default for HttpTimeouts {
    fn default() -> Self {
        HttpTimeouts {
            connect: Duration::from_secs(20),
            silence: Duration::from_secs(120),
            ending: Duration::from_secs(3),
        }
    }
}

/// Provides secrets. The error is shown to the user as it is.
pub trait HttpCredentials: Send + Sync + fmt::Debug {
    /// Returns the account and password of a REST server. `user` is the account in the address.
    fn login(&self, user: Option<&str>) -> Result<Option<(String, Secret)>, String>;

    /// Returns the access key of an object storage.
    fn s3_keys(&self) -> Result<Option<S3Keys>, String> {
        Ok(None)
    }
}

/// The access key of an object storage.
#[derive(Debug, Clone)]
pub struct S3Keys {
    /// The name of the key, which is not secret.
    pub access_key: String,
    /// The key that requests are signed with.
    pub secret_key: Secret,
    /// The token of temporary credentials.
    pub session_token: Option<Secret>,
}

/// Provides no secrets.
#[derive(Debug, Clone, Copy)]
struct NoCredentials;

impl HttpCredentials for NoCredentials {
    fn login(&self, _user: Option<&str>) -> Result<Option<(String, Secret)>, String> {
        Ok(None)
    }
}
