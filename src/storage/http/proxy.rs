//! Selects the proxy for a server, by the same environment variables as curl, restic and others.

use super::error::{Error, Result};
use super::http_context::HttpProxies;
use super::socket::ServerPlace;
use ureq::http::Uri;
use ureq::{Proxy, ProxyProtocol};

/// Returns the proxy for a server, `host:port`, or `None` if it is reached directly.
pub(super) fn proxy_for(server: &str, place: &ServerPlace, proxies: &HttpProxies) -> Result<Option<Proxy>> {
    let variable = match place {
        ServerPlace::Unix(_) => return Ok(None),
        ServerPlace::Network { is_encrypted: true } => &proxies.https,
        ServerPlace::Network { is_encrypted: false } => &proxies.http,
    };
    let Some(variable) = variable.as_ref().filter(|_| !is_exception(server, proxies)) else { return Ok(None) };
    let bad = |reason| Error::BadProxy { variable: variable.name.clone(), reason };
    let proxy = Proxy::new(&variable.value).map_err(|_| bad("it is not http://HOST:PORT"))?;
    match proxy.protocol() {
        ProxyProtocol::Http | ProxyProtocol::Https => Ok(Some(proxy)),
        _ => Err(bad("SOCKS proxies are not supported")),
    }
}

fn is_exception(server: &str, proxies: &HttpProxies) -> bool {
    let exceptions = proxies.exceptions.split(',').map(str::trim).filter(|exception| !exception.is_empty());
    let list = exceptions.fold(Proxy::builder(ProxyProtocol::Http), |list, exception| list.no_proxy(exception));
    let server = format!("http://{server}/").parse::<Uri>();
    list.build().is_ok_and(|list| server.is_ok_and(|server| list.is_no_proxy(&server)))
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
