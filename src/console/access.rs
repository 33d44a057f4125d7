//! Access control, and the headers of every response.
//!
//! `Host` is checked before anything else, so that a foreign name that resolves to this host (DNS rebinding) never
//! reaches a page. Without a session, every path returns the page that explains how to open one.

use super::answers::redirect;
use super::html;
use super::language::Language;
use super::sessions::is_same;
use super::state::Console;
use super::visit::{Fields, Visit};
use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

/// Maximum size of a form.
const LARGEST_BODY_BYTES: usize = 64 << 10;

/// How much of a larger body is read before it is refused.
const MOST_DROPPED_BYTES: usize = 1 << 20;

/// How long a client may take to send its body.
const BODY_LIMIT: Duration = Duration::from_secs(10);

/// How long a page may take.
const PAGE_LIMIT: Duration = Duration::from_secs(180);

/// The cookie for the language.
const LANGUAGE_COOKIE: &str = "kvmb-language";

/// Wraps the pages in everything that decides who may see them.
pub(super) fn guarded(pages: Router, console: Arc<Console>) -> Router {
    pages
        .layer(middleware::from_fn_with_state(Arc::clone(&console), admit))
        // The layer that is added last handles a request first.
        .layer(middleware::from_fn_with_state(console, finish))
}

/// Refuses foreign hosts, and adds the headers to every response.
async fn finish(State(console): State<Arc<Console>>, request: Request, next: Next) -> Response {
    let is_ours = |host: &str| is_loopback_name(host, console.host());
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let is_ours = host.is_some_and(is_ours)
        && request.headers().get_all(header::HOST).iter().count() == 1
        && request.uri().authority().is_none_or(|authority| is_ours(authority.as_str()));
    let mut response = match is_ours {
        false => (StatusCode::MISDIRECTED_REQUEST, "This console answers on localhost only.\n").into_response(),
        true => match tokio::time::timeout(PAGE_LIMIT, next.run(request)).await {
            Ok(response) => response,
            Err(_) => StatusCode::GATEWAY_TIMEOUT.into_response(),
        },
    };
    let headers = response.headers_mut();
    let mut set = |name: HeaderName, value: &'static str| {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    };
    set(header::CONTENT_SECURITY_POLICY, POLICY.as_str());
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::X_FRAME_OPTIONS, "DENY");
    // Not "no-referrer", which would make browsers send forms with "Origin: null".
    set(header::REFERRER_POLICY, "same-origin");
    set(header::CACHE_CONTROL, "no-store");
    set(HeaderName::from_static("cross-origin-opener-policy"), "same-origin");
    set(HeaderName::from_static("cross-origin-resource-policy"), "same-origin");
    response
}

/// Allows only what the console itself serves. The one inline style is that of the login page, which cannot load a
/// style sheet.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let style = STANDARD.encode(Sha256::digest(html::LOGIN_STYLE));
    format!(
        "default-src 'none'; style-src 'self' 'sha256-{style}'; script-src 'self'; img-src 'self'; \
         connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    )
});

/// Whether a `Host` value, with or without a port, is a loopback name of this host, or the address `own` that the
/// console listens on.
fn is_loopback_name(host: &str, own: &str) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((name, port)) => (format!("[{name}]"), port.strip_prefix(':').or(port.is_empty().then_some("0"))),
        None => match host.split_once(':') {
            Some((name, port)) => (name.to_ascii_lowercase(), Some(port)),
            None => (host.to_ascii_lowercase(), Some("0")),
        },
    };
    let is_port = port.is_some_and(|port| port.parse::<u16>().is_ok() && port.bytes().all(|b| b.is_ascii_digit()));
    is_port && ["localhost", "127.0.0.1", "[::1]", own].contains(&name.as_str())
}

/// Admits requests that have a session and, if they change something, come from one of the console's own forms.
async fn admit(State(console): State<Arc<Console>>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let language = language(&parts.headers);
    let path = parts.uri.path().to_owned();
    let address = parts.uri.path_and_query().map_or_else(|| path.clone(), |address| address.as_str().to_owned());
    let query = Fields::parse(parts.uri.query().unwrap_or_default());
    let name = cookie_name(&console);
    let found = cookies(&parts.headers, &name).find_map(|cookie| {
        let token = console.sessions().form_token(cookie)?;
        Some((cookie.to_owned(), token))
    });
    let is_login = path == "/login";
    let form = match parts.method {
        Method::GET | Method::HEAD => Fields::default(),
        Method::POST => {
            if let Err(refusal) = is_own_form(&parts.headers) {
                return refuse(&console, language, StatusCode::FORBIDDEN, refusal);
            }
            if found.is_none() && !is_login {
                return login_page(&console, language, StatusCode::UNAUTHORIZED, None);
            }
            match read_form(body).await {
                Ok(form) => form,
                Err(status) => return refuse(&console, language, status, "the form could not be read"),
            }
        }
        _ => return refuse(&console, language, StatusCode::METHOD_NOT_ALLOWED, "only GET and POST are allowed"),
    };
    if is_login {
        let token = match parts.method {
            Method::GET => query.get("token"),
            // The user may have pasted the whole link.
            Method::POST => form.get("token").map(|text| text.rsplit_once("token=").map_or(text, |(_, token)| token)),
            _ => None,
        };
        let site = parts.headers.get("sec-fetch-site").and_then(|site| site.to_str().ok());
        let is_link_elsewhere = site.is_some_and(|site| ["cross-site", "same-site"].contains(&site));
        return log_in(&console, language, token.map(str::trim), is_link_elsewhere);
    }
    let Some((cookie, form_token)) = found else {
        return login_page(&console, language, StatusCode::UNAUTHORIZED, None);
    };
    console.touch();
    if parts.method == Method::POST {
        if !form.get("csrf").is_some_and(|token| is_same(token, &form_token)) {
            return refuse(&console, language, StatusCode::FORBIDDEN, "the form does not belong to this session");
        }
        if console.options.read_only && !changes_nothing(&path) {
            return refuse(&console, language, StatusCode::FORBIDDEN, "this console is read-only");
        }
    }
    if path == "/language" {
        return choose_language(&query);
    }
    parts.extensions.insert(Visit { console, language, form_token, path, address, query, form, cookie });
    next.run(Request::from_parts(parts, Body::empty())).await
}

fn language(headers: &HeaderMap) -> Language {
    let chosen = cookies(headers, LANGUAGE_COOKIE).find_map(Language::of_code);
    let accepted = || headers.get(header::ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    chosen.unwrap_or_else(|| Language::accepted(accepted()))
}

fn cookie_name(console: &Console) -> String {
    format!("kvmb-{}", console.instance)
}

fn cookies<'h>(headers: &'h HeaderMap, name: &'h str) -> impl Iterator<Item = &'h str> {
    let values = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let pairs = values.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.filter(move |(known, _)| *known == name).map(|(_, value)| value)
}

/// Whether a POST comes from a page of the console: browsers set headers for this that scripts cannot change.
fn is_own_form(headers: &HeaderMap) -> Result<(), &'static str> {
    let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let site = text(HeaderName::from_static("sec-fetch-site"));
    let origin = text(header::ORIGIN);
    if site.is_some_and(|site| site != "same-origin") {
        return Err("the form comes from another site");
    }
    let host = text(header::HOST).unwrap_or_default();
    if origin.is_some_and(|origin| origin.strip_prefix("http://") != Some(host)) {
        return Err("the form comes from another site");
    }
    if site.is_none() && origin.is_none() {
        return Err("the request does not state where its form comes from (Origin)");
    }
    let kind = text(header::CONTENT_TYPE).unwrap_or_default();
    match kind.split(';').next().map(str::trim) {
        Some("application/x-www-form-urlencoded") => Ok(()),
        _ => Err("only forms are accepted"),
    }
}

async fn read_form(body: Body) -> Result<Fields, StatusCode> {
    let read = tokio::time::timeout(BODY_LIMIT, read_body(body)).await;
    let bytes = read.map_err(|_| StatusCode::REQUEST_TIMEOUT)??;
    // A form that was cut would select less than the user did.
    Fields::parse_all(&String::from_utf8_lossy(&bytes)).ok_or(StatusCode::PAYLOAD_TOO_LARGE)
}

/// Reads a body. Reads and drops a part of the excess, because a client that is still sending does not read the
/// response.
async fn read_body(body: Body) -> Result<Vec<u8>, StatusCode> {
    let (mut body, mut bytes, mut count) = (body, Vec::new(), 0);
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let data = frame.map_err(|_| StatusCode::BAD_REQUEST)?.into_data().unwrap_or_default();
        count += data.len();
        if count > MOST_DROPPED_BYTES {
            break;
        }
        if count <= LARGEST_BODY_BYTES {
            bytes.extend_from_slice(&data);
        }
    }
    if count > LARGEST_BODY_BYTES { Err(StatusCode::PAYLOAD_TOO_LARGE) } else { Ok(bytes) }
}

/// Opens a session. `is_link_elsewhere` says whether the link was on a page of another site, for example in a terminal
/// in the browser: a redirect would then continue the navigation of that site, without the new cookie.
fn log_in(console: &Arc<Console>, language: Language, token: Option<&str>, is_link_elsewhere: bool) -> Response {
    let Some(token) = token else {
        return login_page(console, language, StatusCode::UNAUTHORIZED, None);
    };
    let Some(cookie) = console.sessions().open(token) else {
        tracing::warn!("console: a link that is not valid was opened");
        let message = language
            .say("This link is invalid or has already been used.", "Ce lien n’est pas valable, ou a déjà servi.");
        return login_page(console, language, StatusCode::UNAUTHORIZED, Some(message));
    };
    tracing::info!("console: a session was opened");
    console.touch();
    let cookie = format!("{}={cookie}; Path=/; HttpOnly; SameSite=Strict", cookie_name(console));
    let answer = if is_link_elsewhere { html::entered(language).into_response() } else { redirect("/") };
    ([(header::SET_COOKIE, cookie)], answer).into_response()
}

fn choose_language(query: &Fields) -> Response {
    let chosen = query.get("to").and_then(Language::of_code).unwrap_or(Language::English);
    let cookie = format!("{LANGUAGE_COOKIE}={}; Path=/; Max-Age=31536000; HttpOnly; SameSite=Strict", chosen.code());
    let back = query.get("back").filter(|back| is_local(back)).unwrap_or("/");
    ([(header::SET_COOKIE, cookie)], redirect(back)).into_response()
}

/// Whether a form changes nothing: it ends the session, or downloads files of a point.
fn changes_nothing(path: &str) -> bool {
    let is_download = path.strip_prefix("/points/").and_then(|rest| rest.strip_suffix("/download"));
    path == "/logout" || is_download.is_some_and(|id| !id.contains('/'))
}

/// Whether a link refers to a page of the console.
fn is_local(link: &str) -> bool {
    let has_authority = link.starts_with("//") || link.contains(['\\', '\r', '\n', '\t']);
    link.starts_with('/') && !has_authority && link.parse::<Uri>().is_ok_and(|uri| uri.authority().is_none())
}

fn login_page(console: &Console, language: Language, status: StatusCode, message: Option<&str>) -> Response {
    (status, html::login(console, language, message)).into_response()
}

fn refuse(console: &Console, language: Language, status: StatusCode, reason: &str) -> Response {
    tracing::warn!("console: refused a request: {reason}");
    (status, html::refusal(console, language, status, reason)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_host_names_are_accepted() {
        for host in ["localhost", "LOCALHOST:8420", "127.0.0.1:1", "[::1]", "[::1]:65535"] {
            assert!(is_loopback_name(host, "localhost"), "{host}");
        }
        assert!(is_loopback_name("127.0.0.3:8420", "127.0.0.3"));
        for host in [
            "",
            "evil.example.com",
            "localhost.evil.example.com",
            "127.0.0.1.evil.example.com:80",
            "localhost:",
            "localhost:x",
            "localhost:+80",
            "localhost:80@evil.example.com",
            "[::1]x",
            "[::2]",
            "127.0.0.2",
            "0.0.0.0:80",
        ] {
            assert!(!is_loopback_name(host, "127.0.0.3"), "{host}");
        }
    }

    #[test]
    fn only_downloads_and_logout_count_as_read_only() {
        assert!(changes_nothing("/logout") && changes_nothing("/points/0123abcd/download"));
        for path in ["/backup", "/points/verify", "/points/x/copy-files", "/points/x/y/download", "/download", ""] {
            assert!(!changes_nothing(path), "{path}");
        }
    }

    #[test]
    fn only_local_links_are_followed() {
        for link in ["/", "/machines/vm1?day=2026-11-20", "/a%20b"] {
            assert!(is_local(link), "{link}");
        }
        for link in ["", "//evil.example.com", "/\\evil.example.com", "https://evil.example.com", "a", "/\r\nX: y"] {
            assert!(!is_local(link), "{link}");
        }
    }
}
