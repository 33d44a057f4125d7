//! Requests and responses.
//!
//! Connections are kept alive and reused. Redirects are not followed, because a server must not be able to send our
//! password elsewhere.

use super::error::{Error, Result};
use super::http_context::HttpContext;
use super::proxy::{self, proxy_for};
use super::socket::{ServerPlace, SocketConnector};
use super::tls;
use crate::storage::Gate;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use ureq::http::{HeaderMap, Request};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{ConnectProxyConnector, Connector, NativeTlsConnector};
use ureq::{Agent, SendBody};

/// The size of the pieces in which an upload is rate-limited.
const PIECE_BYTES: usize = 256 << 10;

/// The maximum length of an error body that is read.
const LONGEST_REASON_BYTES: u64 = 64 << 10;

/// A client of one server.
#[derive(Debug)]
pub(crate) struct HttpClient {
    agent: Agent,
    /// The server's name in messages: `host:port`, or the path of a socket.
    server: String,
    /// The name of its proxy in messages.
    proxy: Option<String>,
    silence: std::time::Duration,
    stop: Arc<AtomicBool>,
    /// The number of requests by method, for servers that charge for them.
    requests: Mutex<BTreeMap<&'static str, u64>>,
}

/// A request. The headers contain a secret.
pub(crate) struct Call<'a> {
    pub(crate) method: &'static str,
    pub(crate) url: &'a str,
    pub(crate) headers: &'a [(&'static str, String)],
    /// The maximum length of the body. Of a longer one, one byte more than this is read.
    pub(crate) longest_bytes: u64,
}

/// The body of a request.
#[derive(Clone, Copy)]
pub(crate) struct Upload<'a> {
    pub(crate) contents: &'a [u8],
    pub(crate) gate: Gate<'a>,
}

/// A response.
#[derive(Debug)]
pub(crate) struct HttpResponse {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl HttpResponse {
    /// Returns whether the request succeeded.
    pub(crate) fn is_done(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Returns whether a reverse proxy rejected an upload because of its size: it explains that in HTML. The servers of
    /// repositories, which do not, use this status when their space is exhausted.
    pub(crate) fn is_size_limit_of_proxy(&self) -> bool {
        self.status == 413 && self.header("content-type").is_some_and(|kind| kind.starts_with("text/html"))
    }

    /// Returns the value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Returns the `Content-Length`, of a file that was not read.
    pub(crate) fn length(&self) -> Option<u64> {
        self.header("content-length")?.parse().ok()
    }
}

impl HttpClient {
    /// Creates a client of the server at `place`, which messages call `server`. Does not connect yet.
    pub(crate) fn new(server: &str, place: ServerPlace, context: &HttpContext) -> Result<HttpClient> {
        let timeouts = context.timeouts;
        let proxy = proxy_for(server, &place, &context.proxies)?;
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(Some(timeouts.connect))
            .timeout_connect(Some(timeouts.connect))
            .max_idle_connections(context.connections)
            .max_idle_connections_per_host(context.connections)
            .user_agent(concat!("kvmb/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .proxy(proxy.clone())
            .tls_config(tls::tls_config(context)?)
            .build();
        let sockets = SocketConnector { place, timeouts, stop: Arc::clone(&context.stop) };
        let connector = ().chain(ConnectProxyConnector::default()).chain(sockets).chain(NativeTlsConnector::default());
        Ok(HttpClient {
            agent: Agent::with_parts(config, connector, DefaultResolver::default()),
            server: server.to_owned(),
            proxy: proxy.as_ref().map(proxy::shown),
            silence: timeouts.silence,
            stop: Arc::clone(&context.stop),
            requests: Mutex::default(),
        })
    }

    /// Returns the server's name for messages.
    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    /// Returns whether the program is ending.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Sends a request and reads the response. Returns `None` if the gate stopped the upload.
    pub(crate) fn call(&self, call: &Call, upload: Option<Upload>) -> Result<Option<HttpResponse>> {
        *self.requests.lock().unwrap_or_else(PoisonError::into_inner).entry(call.method).or_default() += 1;
        let mut request = Request::builder().method(call.method).uri(call.url);
        for (name, value) in call.headers {
            request = request.header(*name, value);
        }
        let built = |error: ureq::http::Error| self.protocol(error.to_string());
        let ran = match upload {
            None => self.agent.run(request.body(()).map_err(built)?),
            Some(Upload { contents, gate }) => {
                let mut body = GatedBody { contents, sent: 0, gate, is_refused: false };
                let request = request.header("content-length", contents.len());
                let ran = self.agent.run(request.body(SendBody::from_reader(&mut body)).map_err(built)?);
                if body.is_refused {
                    return Ok(None);
                }
                ran
            }
        };
        let mut response = ran.map_err(|error| self.fault(error))?;
        let status = response.status().as_u16();
        let longest = if status < 300 { call.longest_bytes } else { call.longest_bytes.max(LONGEST_REASON_BYTES) };
        let mut body = Vec::new();
        let mut reader = response.body_mut().with_config().limit(u64::MAX).reader().take(longest.saturating_add(1));
        reader.read_to_end(&mut body).map_err(|error| self.fault(error.into()))?;
        Ok(Some(HttpResponse { status, headers: response.headers().clone(), body }))
    }

    /// Returns the error for an invalid response.
    pub(crate) fn protocol(&self, reason: impl Into<String>) -> Error {
        Error::Protocol { server: self.server.clone(), reason: reason.into() }
    }

    /// Converts an error of the library.
    fn fault(&self, error: ureq::Error) -> Error {
        let server = self.server.clone();
        match error {
            ureq::Error::HostNotFound => Error::Resolve { server: self.dialled(), is_temporary: false },
            ureq::Error::Timeout(ureq::Timeout::Resolve | ureq::Timeout::Connect) => {
                Error::Unreachable { server: self.dialled(), source: ErrorKind::TimedOut.into() }
            }
            ureq::Error::Timeout(_) => Error::Silent { server, after: self.silence },
            ureq::Error::NativeTls(error) => tls::explain(&server, &error.to_string()),
            ureq::Error::Io(error) => self.io_fault(server, error),
            ureq::Error::ConnectProxyFailed(reason) => {
                // "proxy server responded 407/407", or an error without a response.
                let status = reason.rsplit_once('/').and_then(|(_, status)| status.parse().ok());
                Error::Proxy { server, proxy: self.proxy.clone().unwrap_or_default(), status }
            }
            error @ (ureq::Error::ConnectionFailed | ureq::Error::Tls(_) | ureq::Error::TlsRequired) => {
                Error::Tls { server, reason: error.to_string() }
            }
            other => self.protocol(other.to_string()),
        }
    }

    /// Returns the name of the peer to connect to first, for messages.
    fn dialled(&self) -> String {
        match &self.proxy {
            Some(proxy) => format!("the proxy {proxy} of {}", self.server),
            None => self.server.clone(),
        }
    }

    fn io_fault(&self, server: String, error: io::Error) -> Error {
        let words = error.to_string();
        if words.contains("SSL routines") {
            return match tls::explain(&server, &words) {
                // Data that cannot be decrypted on an established connection was altered in transit.
                Error::Tls { reason, .. } if !reason.contains("wrong version number") => Error::Lost { server, reason },
                other => other,
            };
        }
        if words.contains("lookup address") {
            // The text of EAI_AGAIN: std has no error kind for it.
            let is_temporary = words.contains("Temporary failure");
            return Error::Resolve { server: self.dialled(), is_temporary };
        }
        match error.kind() {
            ErrorKind::ConnectionRefused
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::NetworkDown
            | ErrorKind::AddrNotAvailable
            | ErrorKind::NotFound
            | ErrorKind::PermissionDenied
            | ErrorKind::TimedOut => Error::Unreachable { server: self.dialled(), source: error },
            _ => Error::Lost { server, reason: words },
        }
    }
}

impl Drop for HttpClient {
    fn drop(&mut self) {
        let requests = self.requests.get_mut().unwrap_or_else(PoisonError::into_inner);
        if !requests.is_empty() {
            let counted: Vec<_> = requests.iter().map(|(method, count)| format!("{count} {method}")).collect();
            tracing::info!("requests to {}: {}", self.server, counted.join(", "));
        }
    }
}

/// The body of an upload, which the gate releases piece by piece.
struct GatedBody<'a> {
    contents: &'a [u8],
    sent: usize,
    gate: Gate<'a>,
    is_refused: bool,
}

impl Read for GatedBody<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = &self.contents[self.sent..];
        let length = left.len().min(buffer.len()).min(PIECE_BYTES);
        if length == 0 {
            return Ok(0);
        }
        // Before the last piece `gate(0)` is called as well, because the server then completes the file.
        let is_last = length == left.len();
        if !(self.gate)(length) || (is_last && !(self.gate)(0)) {
            self.is_refused = true;
            return Err(io::Error::other("refused"));
        }
        buffer[..length].copy_from_slice(&left[..length]);
        self.sent += length;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unavailable_resolver_is_transient_and_unknown_name_is_not() {
        let place = ServerPlace::Network { is_encrypted: true };
        let client = HttpClient::new("backup.example.com:8000", place, &HttpContext::default()).unwrap();
        for (reason, is_transient) in
            [("Temporary failure in name resolution", true), ("Name or service not known", false)]
        {
            let error = io::Error::other(format!("failed to lookup address information: {reason}"));
            let fault = client.fault(ureq::Error::Io(error));
            assert!(matches!(fault, Error::Resolve { .. }), "{fault}");
            assert_eq!(fault.is_transient(), is_transient, "{reason}");
        }
    }
}
