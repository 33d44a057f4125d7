//! Converts network storage in a definition to options of QEMU's block drivers (pure). The names are those in
//! `qapi/block-core.json`.

use serde_json::{Map, Value, json};

use crate::capture::domain_xml::source::{DiskSource, Host, SecretRef};
use crate::capture::error::{Error, Result};

/// Returns the options of a network source. The secrets that they refer to are added to the list, named after `node`,
/// the name of the future node.
pub(crate) fn network_options(
    source: &DiskSource,
    node: &str,
    secrets: &mut Vec<(String, SecretRef)>,
) -> Result<Map<String, Value>> {
    let DiskSource::Network { protocol, name, hosts, tls, options } = source else {
        return Err(unsupported(source, "it is not on the network"));
    };
    if *tls {
        return Err(unsupported(source, "a network disk behind TLS can be read only while the machine runs"));
    }
    if !options.cookies.is_empty() {
        return Err(unsupported(source, "a network disk with cookies can be read only while the machine runs"));
    }
    let name = name.as_deref().unwrap_or_default();
    let host = hosts.first();
    let secret = options.auth.as_ref().and_then(|auth| auth.secret.clone()).map(|secret| {
        let object = format!("{node}-auth");
        secrets.push((object.clone(), secret));
        object
    });
    let login = options.auth.as_ref().map(|auth| auth.user.as_str());
    let mut network = Map::from_iter([("driver".to_owned(), json!(protocol))]);
    let mut set = |key: &str, value: Value| {
        if !value.is_null() {
            network.insert(key.to_owned(), value);
        }
    };
    match protocol.as_str() {
        "nbd" => {
            set("server", address(host, 10809));
            set("export", if name.is_empty() { Value::Null } else { json!(name) });
        }
        "rbd" => {
            let (pool, image) = name.split_once('/').ok_or_else(|| unsupported(source, "it does not name a pool"))?;
            let (namespace, image) = match image.split_once('/') {
                Some((namespace, image)) => (json!(namespace), image),
                None => (Value::Null, image),
            };
            set("pool", json!(pool));
            set("namespace", namespace);
            set("image", json!(image));
            set("snapshot", json!(options.snapshot));
            set("conf", json!(options.config_file));
            set("user", json!(login));
            if let Some(secret) = secret {
                set("auth-client-required", json!(["cephx", "none"]));
                set("key-secret", json!(secret));
            }
            let servers = hosts.iter().map(|host| {
                json!({ "host": host.name.clone().unwrap_or_default(), "port": host.port.unwrap_or(6789).to_string() })
            });
            set("server", if hosts.is_empty() { Value::Null } else { servers.collect() });
        }
        "http" | "https" | "ftp" | "ftps" => {
            let query = options.query.as_ref().map(|query| format!("?{query}")).unwrap_or_default();
            let (host, path) = (authority(host), name.trim_start_matches('/'));
            set("url", json!(format!("{protocol}://{host}/{path}{query}")));
            set("sslverify", if protocol.ends_with('s') { json!(options.verify_certificate) } else { Value::Null });
            set("username", json!(login));
            set("password-secret", json!(secret));
        }
        "iscsi" => {
            let (target, lun) = name.rsplit_once('/').unwrap_or((name, "0"));
            let lun: u32 = lun.parse().map_err(|_| unsupported(source, "its unit is not a number"))?;
            let is_iser = host.is_some_and(|host| host.transport.as_deref() == Some("rdma"));
            let portal = Host { port: host.and_then(|host| host.port).or(Some(3260)), ..first_of(host) };
            set("transport", json!(if is_iser { "iser" } else { "tcp" }));
            set("portal", json!(authority(Some(&portal))));
            set("target", json!(target));
            set("lun", json!(lun));
            set("user", json!(login));
            set("password-secret", json!(secret));
            set("initiator-name", json!(options.initiator));
        }
        "gluster" => {
            let (volume, path) = name
                .trim_start_matches('/')
                .split_once('/')
                .ok_or_else(|| unsupported(source, "it does not name a file of its volume"))?;
            let servers: Value = hosts.iter().map(|host| address(Some(host), 24007)).collect();
            set("volume", json!(volume));
            set("path", json!(path));
            set("server", servers);
        }
        "ssh" => {
            let port = host.and_then(|host| host.port).unwrap_or(22).to_string();
            set("server", json!({ "host": first_of(host).name.unwrap_or_default(), "port": port }));
            set("path", json!(name));
            set("user", json!(options.user.as_deref().or(login)));
        }
        "nfs" => {
            let number = |text: &Option<String>| {
                text.as_deref().and_then(|text| text.trim_start_matches('+').parse::<u32>().ok())
            };
            set("server", json!({ "type": "inet", "host": first_of(host).name.unwrap_or_default() }));
            set("path", json!(format!("/{}", name.trim_start_matches('/'))));
            set("user", json!(number(&options.user)));
            set("group", json!(number(&options.group)));
        }
        other => {
            let reason = format!("network storage of kind {other} can be read only while the machine runs");
            return Err(unsupported(source, &reason));
        }
    }
    Ok(network)
}

fn first_of(host: Option<&Host>) -> Host {
    host.cloned().unwrap_or(Host { name: None, port: None, transport: None, socket: None })
}

fn address(host: Option<&Host>, default_port: u16) -> Value {
    let host = first_of(host);
    match (host.transport.as_deref(), host.socket) {
        (Some("unix"), Some(socket)) => json!({ "type": "unix", "path": socket }),
        _ => json!({
            "type": "inet",
            "host": host.name.unwrap_or_default(),
            "port": host.port.unwrap_or(default_port).to_string(),
        }),
    }
}

fn authority(host: Option<&Host>) -> String {
    let host = first_of(host);
    let name = host.name.unwrap_or_default();
    let name = if name.contains(':') { format!("[{name}]") } else { name };
    match host.port {
        Some(port) => format!("{name}:{port}"),
        None => name,
    }
}

fn unsupported(source: &DiskSource, reason: &str) -> Error {
    Error::UnsupportedImage { image: source.address(), reason: reason.to_owned() }
}
