//! Parses the backing file name in an image header: a path, a URL, `rbd:…`, `nbd:…` or a `json:` description (pure).
//!
//! The spellings that libvirt accepts are supported (`src/storage_file/storage_source_backingstore.c`). All others are
//! rejected, because QEMU would open files that kvmb has not checked.

use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};

use crate::capture::domain_xml::source::Slice;

/// The location of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LayerPlace {
    /// A file or a block device; which one is determined by inspecting it.
    Path(PathBuf),
    /// The options of a QEMU block driver.
    Network(Map<String, Value>),
}

/// The meaning of a layer's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) place: LayerPlace,
    /// The format, if the name specifies it.
    pub(crate) format: Option<String>,
    /// The part of the place that is the layer.
    pub(crate) slice: Option<Slice>,
}

/// The drivers of network storage.
const NETWORK_DRIVERS: [&str; 10] = ["nbd", "rbd", "http", "https", "ftp", "ftps", "ssh", "iscsi", "gluster", "nfs"];

/// Parses the name of a layer. `parent` is the folder of the image that contains the name, or `None` for an image on
/// the network. An error is the reason why the name is not supported.
pub(crate) fn parse(name: &str, parent: Option<&Path>) -> Result<Named, String> {
    if let Some(description) = name.strip_prefix("json:") {
        let value: Value = serde_json::from_str(description).map_err(|error| format!("it is not valid: {error}"))?;
        let Value::Object(options) = nested(value)? else {
            return Err("it describes nothing".to_owned());
        };
        return described(options, parent);
    }
    let plain = |place| Ok(Named { place, format: None, slice: None });
    for prefix in ["file:", "host_device:"] {
        if let Some(path) = name.strip_prefix(prefix) {
            return plain(local(path, parent)?);
        }
    }
    let end = name.find([':', '/']).filter(|at| name[*at..].starts_with(':'));
    let Some((scheme, rest)) = end.map(|at| (&name[..at], &name[at + 1..])) else {
        return plain(local(name, parent)?);
    };
    let options = match rest.strip_prefix("//") {
        Some(address) => of_url(scheme, address, name)?,
        None if scheme == "nbd" => of_nbd(rest)?,
        None if scheme == "rbd" => of_rbd(rest)?,
        None => return Err(format!("{scheme}: is not supported")),
    };
    plain(LayerPlace::Network(options))
}

fn local(path: &str, parent: Option<&Path>) -> Result<LayerPlace, String> {
    let path = Path::new(path);
    match (path.is_absolute(), parent) {
        (true, _) => Ok(LayerPlace::Path(path.to_owned())),
        // The path is not normalized: a link in the middle is followed as QEMU follows it.
        (false, Some(parent)) => Ok(LayerPlace::Path(parent.join(path))),
        (false, None) => Err("a relative path below an image on the network is not supported".to_owned()),
    }
}

/// Parses a `json:` description: a format on top of a protocol, or just a protocol.
fn described(mut options: Map<String, Value>, parent: Option<&Path>) -> Result<Named, String> {
    let driver = match options.remove("driver") {
        Some(Value::String(driver)) => Some(driver),
        None => None,
        Some(_) => return Err("its driver is not a name".to_owned()),
    };
    let text = |options: &Map<String, Value>, name: &str| options.get(name).and_then(Value::as_str).map(str::to_owned);
    match driver.as_deref() {
        Some("file" | "host_device" | "host_cdrom") => {
            let path = text(&options, "filename").ok_or("it does not name a file")?;
            let path = path.strip_prefix("file:").unwrap_or(&path);
            Ok(Named { place: local(path, parent)?, format: None, slice: None })
        }
        Some(network) if NETWORK_DRIVERS.contains(&network) => {
            if options.keys().any(|key| key.ends_with("-secret") || key == "tls-creds") {
                return Err("it needs a secret, which only the machine's definition can name".to_owned());
            }
            // In an older spelling, a single string contains everything.
            if let Some(name) = text(&options, "filename") {
                return parse(&name, parent);
            }
            let mut place = Map::from_iter([("driver".to_owned(), json!(network))]);
            place.extend(options);
            Ok(Named { place: LayerPlace::Network(place), format: None, slice: None })
        }
        format => {
            if options.contains_key("backing") {
                return Err("a backing file with another one in its description is not supported".to_owned());
            }
            let number = |name: &str| {
                let value = options.get(name)?;
                value.as_u64().or_else(|| value.as_str()?.parse().ok())
            };
            let slice = match (format, number("offset"), number("size")) {
                (Some("raw"), offset, Some(size)) => {
                    Some(Slice { offset_bytes: offset.unwrap_or(0), size_bytes: size })
                }
                (_, None, None) => None,
                _ => return Err("a part of a file without its size is not supported".to_owned()),
            };
            let below = match options.remove("file") {
                Some(Value::Object(file)) => described(file, parent)?,
                Some(Value::String(file)) => parse(&file, parent)?,
                _ => match text(&options, "filename") {
                    Some(file) => parse(&file, parent)?,
                    None => return Err("it does not name a file".to_owned()),
                },
            };
            if slice.is_some() && below.slice.is_some() {
                return Err("a part of a part is not supported".to_owned());
            }
            Ok(Named {
                place: below.place,
                format: format.map(str::to_owned).or(below.format),
                slice: slice.or(below.slice),
            })
        }
    }
}

/// Converts keys with dots, which are paths in objects and lists, to nested values.
fn nested(value: Value) -> Result<Value, String> {
    let Value::Object(flat) = value else { return Ok(value) };
    let mut root = Map::new();
    for (key, value) in flat {
        let mut at = &mut root;
        let mut steps = key.split('.').peekable();
        while let Some(step) = steps.next() {
            if steps.peek().is_none() {
                at.insert(step.to_owned(), nested(value)?);
                break;
            }
            let inner = at.entry(step.to_owned()).or_insert_with(|| json!({}));
            at = inner.as_object_mut().ok_or_else(|| format!("{step} is given twice"))?;
        }
    }
    Ok(with_lists(root))
}

/// Converts objects with the keys 0, 1, 2 … to lists.
fn with_lists(map: Map<String, Value>) -> Value {
    let inner = |value: Value| match value {
        Value::Object(map) => with_lists(map),
        other => other,
    };
    let is_list = !map.is_empty() && (0..map.len()).all(|at| map.contains_key(&at.to_string()));
    if is_list {
        let mut map = map;
        let items: Vec<Value> = (0..map.len()).filter_map(|at| map.remove(&at.to_string())).map(inner).collect();
        return Value::Array(items);
    }
    Value::Object(map.into_iter().map(|(key, value)| (key, inner(value))).collect())
}

/// Returns the options for a URL `scheme://address`.
fn of_url(scheme: &str, address: &str, whole: &str) -> Result<Map<String, Value>, String> {
    let (protocol, transport) = scheme.split_once('+').unwrap_or((scheme, "tcp"));
    if matches!(protocol, "http" | "https" | "ftp" | "ftps") && transport == "tcp" {
        return options(json!({ "driver": protocol, "url": whole }));
    }
    let (address, query) = address.split_once('?').unwrap_or((address, ""));
    let (login, path) = address.split_once('/').unwrap_or((address, ""));
    let (user, host) = match login.rsplit_once('@') {
        Some((user, host)) => (Some(decoded(user)), host),
        None => (None, login),
    };
    if user.as_deref().is_some_and(|user| user.contains(':')) {
        return Err("a password in a URL is not supported".to_owned());
    }
    let (host, port) = split_port(host)?;
    let path = decoded(path);
    let socket = query.split('&').find_map(|pair| pair.strip_prefix("socket=")).map(decoded);
    let server = |default_port: &str| match (transport, &socket) {
        ("unix", Some(socket)) => Ok(json!({ "type": "unix", "path": socket })),
        ("tcp", _) => Ok(json!({ "type": "inet", "host": host, "port": port.unwrap_or(default_port) })),
        _ => Err(format!("{scheme}:// is not supported")),
    };
    match protocol {
        "nbd" => options(match path.as_str() {
            "" => json!({ "driver": "nbd", "server": server("10809")? }),
            export => json!({ "driver": "nbd", "server": server("10809")?, "export": export }),
        }),
        "ssh" => {
            let server = json!({ "host": host, "port": port.unwrap_or("22") });
            let mut ssh = options(json!({ "driver": "ssh", "server": server, "path": format!("/{path}") }))?;
            ssh.extend(user.map(|user| ("user".to_owned(), json!(user))));
            Ok(ssh)
        }
        "iscsi" => {
            let (target, lun) = path.rsplit_once('/').ok_or("it does not name a unit")?;
            let lun: u32 = lun.parse().map_err(|_| "its unit is not a number")?;
            let portal = format!("{host}:{}", port.unwrap_or("3260"));
            options(json!({ "driver": "iscsi", "transport": "tcp", "portal": portal, "target": target, "lun": lun }))
        }
        "gluster" => {
            let (volume, image) = path.split_once('/').ok_or("it does not name a file")?;
            let servers = json!([server("24007")?]);
            options(json!({ "driver": "gluster", "volume": volume, "path": image, "server": servers }))
        }
        "nfs" => {
            let server = json!({ "type": "inet", "host": host });
            options(json!({ "driver": "nfs", "server": server, "path": format!("/{path}") }))
        }
        _ => Err(format!("{scheme}:// is not supported")),
    }
}

/// Parses `nbd:HOST:PORT[:exportname=NAME]` and `nbd:unix:PATH[:exportname=NAME]`.
fn of_nbd(rest: &str) -> Result<Map<String, Value>, String> {
    let (address, export) = match rest.split_once(":exportname=") {
        Some((address, export)) => (address, Some(export)),
        None => (rest, None),
    };
    let server = match address.strip_prefix("unix:") {
        Some(path) => json!({ "type": "unix", "path": path }),
        None => {
            let (host, port) = split_port(address)?;
            json!({ "type": "inet", "host": host, "port": port.ok_or("it does not name a port")? })
        }
    };
    let mut nbd = options(json!({ "driver": "nbd", "server": server }))?;
    nbd.extend(export.map(|export| ("export".to_owned(), json!(export))));
    Ok(nbd)
}

/// Parses `rbd:POOL/IMAGE[@SNAPSHOT][:KEY=VALUE…]`, where a backslash escapes the next character.
fn of_rbd(rest: &str) -> Result<Map<String, Value>, String> {
    let mut parts = split_escaped(rest, ':').into_iter();
    let image = parts.next().unwrap_or_default();
    let (image, snapshot) = match image.split_once('@') {
        Some((image, snapshot)) => (image.to_owned(), Some(snapshot.to_owned())),
        None => (image, None),
    };
    let (pool, image) = image.split_once('/').ok_or("it does not name a pool")?;
    let mut rbd = options(json!({ "driver": "rbd", "pool": pool }))?;
    match image.split_once('/') {
        Some((namespace, image)) => rbd.extend(options(json!({ "namespace": namespace, "image": image }))?),
        None => rbd.extend(options(json!({ "image": image }))?),
    }
    rbd.extend(snapshot.map(|snapshot| ("snapshot".to_owned(), json!(snapshot))));
    for part in parts {
        let (key, value) = part.split_once('=').ok_or("one of its options has no value")?;
        match key {
            "id" => rbd.extend([("user".to_owned(), json!(value))]),
            "conf" => rbd.extend([("conf".to_owned(), json!(value))]),
            "mon_host" => {
                let servers = value.split([';', ',']).map(|address| {
                    let (host, port) = split_port(address)?;
                    Ok(json!({ "host": host, "port": port.unwrap_or("6789") }))
                });
                rbd.extend([("server".to_owned(), servers.collect::<Result<Value, String>>()?)]);
            }
            "auth_supported" | "auth_client_required" => {}
            _ => return Err(format!("its option {key} is not supported")),
        }
    }
    Ok(rbd)
}

fn split_escaped(text: &str, separator: char) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        let last = parts.len() - 1;
        match character {
            '\\' => parts[last].extend(characters.next()),
            found if found == separator => parts.push(String::new()),
            other => parts[last].push(other),
        }
    }
    parts
}

/// Parses `host`, `host:port` and `[::1]:port`.
fn split_port(address: &str) -> Result<(&str, Option<&str>), String> {
    let (host, port) = match address.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').ok_or("its address has no end")?;
            (host, rest.strip_prefix(':'))
        }
        None => match address.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (address, None),
        },
    };
    match port {
        Some(port) if port.parse::<u16>().is_err() => Err(format!("{port} is not a port number")),
        port => Ok((host, port)),
    }
}

fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

fn options(value: Value) -> Result<Map<String, Value>, String> {
    match value {
        Value::Object(map) => Ok(map),
        _ => Err("it describes nothing".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> Named {
        Named { place: LayerPlace::Path(name.into()), format: None, slice: None }
    }

    #[test]
    fn file_paths_are_parsed_in_every_supported_spelling() {
        let folder = Path::new("/images");
        let parse = |name| parse(name, Some(folder)).unwrap();
        assert_eq!(parse("/a/base.raw"), path("/a/base.raw"));
        assert_eq!(parse("base.raw"), path("/images/base.raw"));
        assert_eq!(parse("../b:c/base.raw"), path("/images/../b:c/base.raw"));
        assert_eq!(parse("file:/a/base.raw"), path("/a/base.raw"));
        assert_eq!(parse("file:base.raw"), path("/images/base.raw"));
        let raw = Named { format: Some("raw".into()), ..path("/a/b") };
        assert_eq!(parse(r#"json:{"driver":"raw","file":{"driver":"file","filename":"/a/b"}}"#), raw);
        assert_eq!(parse(r#"json:{"driver":"raw","file.driver":"file","file.filename":"/a/b"}"#), raw);
        assert_eq!(parse(r#"json:{"file":{"driver":"file","filename":"/a/b"}}"#), path("/a/b"));
        assert_eq!(parse(r#"json:{"driver":"file","filename":"b"}"#), path("/images/b"));
        assert_eq!(parse(r#"json:{"driver":"host_device","filename":"/dev/vg/a"}"#), path("/dev/vg/a"));
        let slice = Some(Slice { offset_bytes: 1 << 20, size_bytes: 4 << 20 });
        let part =
            r#"json:{"driver":"raw","offset":"1048576","size":4194304,"file":{"driver":"file","filename":"/a/b"}}"#;
        assert_eq!(parse(part), Named { slice, ..raw });
        assert!(super::parse("base.raw", None).is_err());
    }

    #[test]
    fn network_storage_is_parsed_into_driver_options() {
        let check = |name: &str, wanted: Value| match parse(name, None).unwrap().place {
            LayerPlace::Network(options) => assert_eq!(Value::Object(options), wanted, "{name}"),
            other => panic!("{name}: {other:?}"),
        };
        let inet = |host: &str, port: &str| json!({ "type": "inet", "host": host, "port": port });
        let unix = json!({ "driver": "nbd", "server": { "type": "unix", "path": "/run/a b" }, "export": "x" });
        check("nbd://h/x", json!({ "driver": "nbd", "server": inet("h", "10809"), "export": "x" }));
        check("nbd+unix:///x?socket=/run/a%20b", unix.clone());
        check("nbd:unix:/run/a b:exportname=x", unix);
        check("nbd:[::1]:10810", json!({ "driver": "nbd", "server": inet("::1", "10810") }));
        check("https://h/a.iso?x=1", json!({ "driver": "https", "url": "https://h/a.iso?x=1" }));
        check(
            r"rbd:pool/image@s:id=admin:mon_host=a\:6789\;b:auth_supported=cephx\;none",
            json!({ "driver": "rbd", "pool": "pool", "image": "image", "snapshot": "s", "user": "admin",
                    "server": [{ "host": "a", "port": "6789" }, { "host": "b", "port": "6789" }] }),
        );
        check(
            "iscsi://h:3261/iqn.2016-04.com.example:t/1",
            json!({ "driver": "iscsi", "transport": "tcp", "portal": "h:3261", "target": "iqn.2016-04.com.example:t",
                    "lun": 1 }),
        );
        check(
            r#"json:{"driver":"gluster","volume":"v","path":"a","server.0.type":"inet","server.0.host":"h","server.0.port":"24007"}"#,
            json!({ "driver": "gluster", "volume": "v", "path": "a", "server": [inet("h", "24007")] }),
        );
        let raw = parse(r#"json:{"driver":"raw","file":{"driver":"nbd","host":"h"}}"#, None).unwrap();
        assert_eq!(raw.format.as_deref(), Some("raw"));
    }

    #[test]
    fn unsupported_backing_strings_are_refused() {
        for name in [
            "fat:/etc",
            "blkdebug:x:/a",
            "json:[]",
            "json:{",
            r#"json:{"driver":"qcow2"}"#,
            r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"/a"},"backing":{"driver":"file","filename":"/b"}}"#,
            r#"json:{"driver":"rbd","pool":"p","image":"i","key-secret":"s"}"#,
            r#"json:{"driver":"raw","offset":512,"file":{"driver":"file","filename":"/a"}}"#,
            "rbd:pool/image:key=AQ",
            "ssh://user:word@h/a",
            "nbd://h:port/x",
        ] {
            assert!(parse(name, Some(Path::new("/"))).is_err(), "{name}");
        }
    }
}
