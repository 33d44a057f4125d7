//! What the storage layer knows about this host and its user: it reads no environment and asks nobody by itself.

use crate::storage::sftp::Secret;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// How many requests are on the way at once. Each may hold a pack in memory.
const CONNECTIONS: usize = 6;

/// How to reach servers over HTTP.
#[derive(Debug, Clone)]
pub struct HttpContext {
    /// A file with the certificates (PEM) that servers are verified by, instead of those of the system.
    pub ca_file: Option<PathBuf>,
    /// A file with the certificate and the private key (PEM) that this host shows.
    pub client_certificate: Option<PathBuf>,
    /// Who knows secrets.
    pub credentials: Arc<dyn HttpCredentials>,
    /// Raised when the program shall end: then nothing is waited for much longer.
    pub stop: Arc<AtomicBool>,
    /// How long to wait for what.
    pub timeouts: HttpTimeouts,
    /// The maximum number of requests at the same time.
    pub connections: usize,
    /// How to reach servers by proxies.
    pub proxies: HttpProxies,
}

impl Default for HttpContext {
    /// With the usual times, knowing no secret.
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

/// A variable that names a proxy.
#[derive(Clone)]
pub struct ProxyVariable {
    /// In the spelling in which it is set.
    pub name: String,
    /// The proxy's address.
    pub value: String,
}

/// Which proxies to use. They may hold passwords.
#[derive(Clone, Default)]
pub struct HttpProxies {
    /// For servers with TLS.
    pub https: Option<ProxyVariable>,
    /// For servers without.
    pub http: Option<ProxyVariable>,
    /// Names and endings of names of servers that are reached without one, with commas between them; `*` is all.
    pub exceptions: String,
}

impl fmt::Debug for HttpProxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpProxies").field("exceptions", &self.exceptions).finish_non_exhaustive()
    }
}

/// How long to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpTimeouts {
    /// For a connection to come about, with its TLS handshake; as long again for the address of a name.
    pub connect: Duration,
    /// For the next bytes in either direction. A server answers an upload when it is on its disk.
    pub silence: Duration,
    /// For the next bytes once the program shall end.
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

/// Who knows the secrets. The error is shown to the user as it is.
pub trait HttpCredentials: Send + Sync + fmt::Debug {
    /// The account and the password of a REST server; `user` is the account that the address names.
    fn login(&self, user: Option<&str>) -> Result<Option<(String, Secret)>, String>;

    /// The access key of an object storage.
    fn s3_keys(&self) -> Result<Option<S3Keys>, String> {
        Ok(None)
    }
}

/// Who asks an object storage.
#[derive(Debug, Clone)]
pub struct S3Keys {
    /// The key's name, which is no secret.
    pub access_key: String,
    /// What requests are signed with.
    pub secret_key: Secret,
    /// With keys that were lent for some hours.
    pub session_token: Option<Secret>,
}

/// Knows nothing.
#[derive(Debug, Clone, Copy)]
struct NoCredentials;

impl HttpCredentials for NoCredentials {
    fn login(&self, _user: Option<&str>) -> Result<Option<(String, Secret)>, String> {
        Ok(None)
    }
}
