//! What repositories over HTTP have in common: one client per server, with limits on every wait.
//!
//! | file | what |
//! | --- | --- |
//! | [`http_context`] | what this layer knows about the host and its user |
//! | [`error`] | why a server cannot be used |
//! | [`socket`] | a TCP or Unix socket on which nothing waits for ever |
//! | [`proxy`] | the proxy that a server is reached by |
//! | [`tls`] | which servers are trusted, and the certificate that this host shows |
//! | [`client`] | requests and answers |
//! | [`files`] | files that are asked for by their names |
//! | [`exclusive`] | creating a file where the server lets everybody overwrite it |

pub(crate) mod client;
pub(crate) mod error;
pub(super) mod exclusive;
pub(super) mod files;
pub(crate) mod http_context;
pub(crate) mod proxy;
pub(crate) mod socket;
pub(crate) mod tls;

pub use error::Error;
pub use http_context::{HttpContext, HttpCredentials, HttpProxies, HttpTimeouts, ProxyVariable, S3Keys};

pub(super) use client::{Call, HttpClient, HttpResponse, Upload};
pub(super) use files::HttpFiles;
pub(super) use socket::ServerPlace;
