//! The common part of repositories over HTTP: a client for one server, with limits on every wait.
//!
//! | file | contents |
//! | --- | --- |
//! | [`http_context`] | the facts about the host and its user that this layer needs |
//! | [`error`] | the reasons why a server cannot be used |
//! | [`socket`] | a TCP or Unix socket on which every wait is limited |
//! | [`proxy`] | the proxy for a server |
//! | [`tls`] | trusted authorities, and this host's client certificate |
//! | [`client`] | requests and responses |
//! | [`files`] | files that are addressed by name |
//! | [`exclusive`] | exclusive creation of files on servers that allow overwriting |

pub(crate) mod client;
pub(crate) mod error;
pub(super) mod exclusive;
pub(super) mod files;
pub(crate) mod http_context;
pub(crate) mod proxy;
pub(crate) mod socket;
pub(crate) mod tls;

pub use error::{CertificateFlaw, Error};
pub use http_context::{HttpContext, HttpCredentials, HttpProxies, HttpTimeouts, ProxyVariable, S3Keys};

pub(super) use client::{Call, HttpClient, HttpResponse, Upload};
pub(super) use files::HttpFiles;
pub(super) use socket::ServerPlace;
