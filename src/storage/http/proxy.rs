//! Selects the proxy for a server, by the same environment variables as curl, restic and others.

use super::error::{Error, Result};
use super::http_context::HttpProxies;
use super::socket::ServerPlace;
use std::net::IpAddr;
use ureq::http::uri::Authority;
use ureq::{Proxy, ProxyProtocol};

/// Returns the proxy for a server, `host:port`, or `None` if it is reached directly.
pub(super) fn proxy_for(server: &str, place: &ServerPlace, proxies: &HttpProxies) -> Result<Option<Proxy>> {
    let variable = match place {
        ServerPlace::Unix(_) => return Ok(None),
        ServerPlace::Network { is_encrypted: true } => &proxies.https,
        ServerPlace::Network { is_encrypted: false } => &proxies.http,
    };
    let default_port = if *place == (ServerPlace::Network { is_encrypted: true }) { 443 } else { 80 };
    let Some(variable) = variable.as_ref().filter(|_| !is_exception(server, default_port, &proxies.exceptions)) else {
        return Ok(None);
    };
    let bad = |reason| Error::BadProxy { variable: variable.name.clone(), reason };
    let proxy = Proxy::new(&variable.value).map_err(|_| bad("it is not http://HOST:PORT"))?;
    match proxy.protocol() {
        ProxyProtocol::Http | ProxyProtocol::Https => Ok(Some(proxy)),
        _ => Err(bad("SOCKS proxies are not supported")),
    }
}

/// Returns whether one of the exceptions, separated by commas, covers a server.
fn is_exception(server: &str, default_port: u16, exceptions: &str) -> bool {
    let Ok(authority) = server.parse::<Authority>() else { return false };
    let (host, port) = (bare_host(authority.host()), authority.port_u16().unwrap_or(default_port));
    let exceptions = exceptions.split([',', ' ']).filter(|exception| !exception.is_empty());
    exceptions.map(str::to_ascii_lowercase).any(|exception| excepts(&exception, &host, port))
}

/// Returns whether an exception covers a server. As in curl and Go, a name covers its subdomains, and an address may
/// have a prefix length; as in Go, it may be restricted to a port.
fn excepts(exception: &str, host: &str, port: u16) -> bool {
    if exception == "*" {
        return true;
    }
    if let Some((network, length)) = exception.split_once('/') {
        let (network, address) = (bare_host(network).parse::<IpAddr>(), host.parse::<IpAddr>());
        return matches!((network, length.parse(), address), (Ok(network), Ok(length), Ok(address))
            if in_network(network, length, address));
    }
    let (name, wanted_port) = match exception.rsplit_once(':') {
        Some((name, number)) if !name.contains(':') || name.ends_with(']') => match number.parse::<u16>() {
            Ok(number) => (name, Some(number)),
            Err(_) => return false,
        },
        _ => (exception, None),
    };
    if wanted_port.is_some_and(|wanted| wanted != port) {
        return false;
    }
    let is_beginning = name.ends_with('.') && name.starts_with(|c: char| c.is_ascii_digit());
    if let Some(beginning) = name.strip_suffix('*').or(is_beginning.then_some(name)) {
        return host.starts_with(beginning);
    }
    let name = bare_host(name);
    if let (Ok(named), Ok(address)) = (name.parse::<IpAddr>(), host.parse::<IpAddr>()) {
        return named == address;
    }
    let domain = name.trim_start_matches('*').trim_start_matches('.');
    let is_below = host.strip_suffix(domain).is_some_and(|above| above.ends_with('.'));
    !domain.is_empty() && (is_below || host == domain)
}

/// Returns a host in lower case, without the brackets of an IPv6 address and the dot at the end of a complete name.
fn bare_host(host: &str) -> String {
    host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase()
}

fn in_network(network: IpAddr, length: u32, address: IpAddr) -> bool {
    let is_same = |all_bits: u32, difference: u128| {
        length <= all_bits && difference.checked_shr(all_bits - length).unwrap_or_default() == 0
    };
    match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => is_same(32, (network.to_bits() ^ address.to_bits()).into()),
        (IpAddr::V6(network), IpAddr::V6(address)) => is_same(128, network.to_bits() ^ address.to_bits()),
        _ => false,
    }
}

/// Returns a proxy's name for messages, without its password.
pub(super) fn shown(proxy: &Proxy) -> String {
    format!("{}:{}", proxy.host(), proxy.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::http::ProxyVariable;

    fn variable(name: &str, value: &str) -> Option<ProxyVariable> {
        Some(ProxyVariable { name: name.to_owned(), value: value.to_owned() })
    }

    fn proxies() -> HttpProxies {
        HttpProxies {
            https: variable("HTTPS_PROXY", "http://joe:secret@proxy:3128"),
            http: variable("HTTP_PROXY", "plain:8080"),
            exceptions: "localhost, *.lan,backup.example".to_owned(),
        }
    }

    #[test]
    fn proxy_is_chosen_by_scheme_except_for_excluded_servers() {
        let of = |server: &str, is_encrypted| {
            let proxy = proxy_for(server, &ServerPlace::Network { is_encrypted }, &proxies()).unwrap();
            proxy.map(|proxy| shown(&proxy))
        };
        assert_eq!(of("host:8000", true).unwrap(), "proxy:3128");
        assert_eq!(of("host", false).unwrap(), "plain:8080");
        for exception in ["localhost:8000", "nas.lan", "backup.example:443"] {
            assert_eq!((of(exception, true), of(exception, false)), (None, None), "{exception}");
        }
        assert!(of("example", true).is_some() && of("notbackup.example", true).is_some());
        let socket = ServerPlace::Unix("/run/rest.socket".into());
        assert!(proxy_for("/run/rest.socket", &socket, &proxies()).unwrap().is_none());
    }

    #[test]
    fn exceptions_are_those_of_curl_and_restic() {
        let table = [
            ("corp.lan", "nas.corp.lan:8000", true),
            ("corp.lan", "corp.lan", true),
            (".corp.lan", "nas.corp.lan", true),
            ("*.corp.lan", "NAS.Corp.LAN.", true),
            ("corp.lan", "notcorp.lan", false),
            ("nas.corp.lan", "corp.lan", false),
            ("10.0.0.0/8", "10.20.30.40:8000", true),
            ("10.0.0.0/8,192.168.0.0/16", "192.168.7.1", true),
            ("192.168.7.0/25", "192.168.7.128", false),
            ("0.0.0.0/0", "192.168.7.128", true),
            ("10.0.0.0/33", "10.0.0.0", false),
            ("10.0.0.0/8", "ten.example", false),
            ("fd00::/8", "[fd12::1]:8000", true),
            ("fd00::/8", "[fe80::1]:8000", false),
            ("::1", "[::1]:8000", true),
            ("[::1]:8000", "[::1]:8000", true),
            ("192.168.7.1", "192.168.7.1:9000", true),
            ("192.168.7.1", "192.168.7.10", false),
            ("192.168.", "192.168.7.1", true),
            ("192.168.*", "192.168.7.1", true),
            ("nas:8000", "nas:8000", true),
            ("nas:8000", "nas:9000", false),
            ("nas:443", "nas", true),
            ("a b", "b", true),
            ("*", "anything", true),
            ("", "anything", false),
            (".", "anything", false),
        ];
        for (exceptions, server, wanted) in table {
            assert_eq!(is_exception(server, 443, exceptions), wanted, "{exceptions} {server}");
        }
    }

    #[test]
    fn unusable_proxy_is_refused_without_showing_its_password() {
        for address in ["socks5://joe:secret@proxy:1080", "joe:secret@", "ftp://joe:secret@proxy"] {
            let proxies = HttpProxies { https: variable("all_proxy", address), ..HttpProxies::default() };
            let error = proxy_for("host", &ServerPlace::Network { is_encrypted: true }, &proxies).unwrap_err();
            let words = error.to_string();
            assert!(words.contains("all_proxy") && !words.contains("secret"), "{words}");
            let plain = proxy_for("host", &ServerPlace::Network { is_encrypted: false }, &proxies);
            assert!(plain.unwrap().is_none());
        }
    }
}
