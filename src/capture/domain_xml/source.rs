//! The location of a disk's content and of each layer below it: the `<source>` elements of domain XML (pure).

use std::path::PathBuf;

use roxmltree::Node;

use super::xml::{child, children, text_of};

/// The location of a disk's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskSource {
    /// A file.
    File {
        /// The image.
        path: PathBuf,
    },
    /// A block device of the host.
    Block {
        /// The device.
        path: PathBuf,
    },
    /// A folder that QEMU presents as a FAT file system.
    Dir {
        /// The folder.
        path: PathBuf,
    },
    /// Storage reached over the network.
    Network {
        /// `rbd`, `nbd`, `iscsi`, `https` …
        protocol: String,
        /// The name of the image on the server.
        name: Option<String>,
        /// The servers.
        hosts: Vec<Host>,
        /// Whether the connection is encrypted.
        tls: bool,
        /// Further options for opening it.
        options: Box<NetworkOptions>,
    },
    /// A volume of a libvirt storage pool.
    Volume {
        /// The pool.
        pool: String,
        /// The volume.
        volume: String,
    },
    /// An NVMe namespace of the host.
    Nvme {
        /// The PCI address and the namespace.
        address: String,
    },
    /// A vhost-user or vhost-vdpa backend: another process owns the disk.
    Vhost {
        /// The socket or device.
        path: PathBuf,
    },
    /// No medium.
    Empty,
    /// An unknown kind.
    Other {
        /// libvirt's word for the kind.
        kind: String,
    },
}

/// A server of a network source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    pub(crate) name: Option<String>,
    pub(crate) port: Option<u16>,
    /// `tcp`, `unix`, `rdma`.
    pub(crate) transport: Option<String>,
    /// The socket, if the transport is `unix`.
    pub(crate) socket: Option<PathBuf>,
}

/// The options of a network source besides its address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkOptions {
    /// The user and the secret for the login.
    pub auth: Option<Auth>,
    /// The snapshot of an `rbd` image.
    pub(crate) snapshot: Option<String>,
    /// The configuration file of `rbd`.
    pub(crate) config_file: Option<PathBuf>,
    /// The query of a URL.
    pub(crate) query: Option<String>,
    /// The name of an iSCSI initiator.
    pub(crate) initiator: Option<String>,
    /// Whether the server's certificate is checked.
    pub(crate) verify_certificate: Option<bool>,
    /// Cookies of a web server, `name=value`.
    pub(crate) cookies: Vec<String>,
    /// The user of `ssh` or `nfs`.
    pub(crate) user: Option<String>,
    /// The group of `nfs`.
    pub(crate) group: Option<String>,
    /// The file with the known host keys of `ssh`.
    pub(crate) known_hosts: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Auth {
    pub(crate) user: String,
    pub(crate) secret: Option<SecretRef>,
}

/// The reference to a libvirt secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretRef {
    /// The purpose of the secret.
    pub(crate) usage: SecretUsage,
    /// The UUID or the usage name.
    pub(crate) name: SecretName,
}

/// The purpose of a libvirt secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SecretUsage {
    Volume,
    Ceph,
    Iscsi,
    /// The state of an emulated TPM.
    Vtpm,
}

/// The name of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SecretName {
    Uuid(String),
    /// The text in its `<usage>`.
    Usage(String),
}

/// The encryption of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encryption {
    /// `luks`, `luks2`, `qcow` …
    pub format: String,
    /// `qemu`, or `librbd` if the storage itself decrypts.
    pub(crate) engine: Option<String>,
    pub(crate) secret: Option<SecretRef>,
}

/// The part of a file that is the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slice {
    pub(crate) offset_bytes: u64,
    pub(crate) size_bytes: u64,
}

/// One layer of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    pub source: DiskSource,
    pub(crate) format: Option<String>,
    /// The part of the source that is the layer; `None` for the whole source.
    pub(crate) slice: Option<Slice>,
    /// The encryption, if there is one.
    pub(crate) encryption: Option<Encryption>,
    /// The external raw file with a qcow2 image's data.
    pub(crate) data_file: Option<Box<Layer>>,
}

impl DiskSource {
    /// The local path, if there is one.
    pub fn path(&self) -> Option<&PathBuf> {
        match self {
            DiskSource::File { path } | DiskSource::Block { path } => Some(path),
            _ => None,
        }
    }

    /// The address, for messages and comparisons.
    pub(crate) fn address(&self) -> String {
        match self {
            DiskSource::File { path }
            | DiskSource::Block { path }
            | DiskSource::Dir { path }
            | DiskSource::Vhost { path } => path.to_string_lossy().into_owned(),
            DiskSource::Network { protocol, name, .. } => format!("{protocol}:{}", name.as_deref().unwrap_or_default()),
            DiskSource::Volume { pool, volume } => format!("volume:{pool}/{volume}"),
            DiskSource::Nvme { address } => address.clone(),
            DiskSource::Empty | DiskSource::Other { .. } => self.kind().to_owned(),
        }
    }

    /// Whether a secret is needed to open the source.
    pub(crate) fn needs_secret(&self) -> bool {
        matches!(self, DiskSource::Network { options, .. } if options.auth.is_some())
    }

    /// libvirt's word for the kind.
    pub(crate) fn kind(&self) -> &str {
        match self {
            DiskSource::File { .. } => "file",
            DiskSource::Block { .. } => "block",
            DiskSource::Dir { .. } => "dir",
            DiskSource::Network { .. } => "network",
            DiskSource::Volume { .. } => "volume",
            DiskSource::Nvme { .. } => "nvme",
            DiskSource::Vhost { .. } => "vhost",
            DiskSource::Empty => "empty",
            DiskSource::Other { kind } => kind,
        }
    }
}

pub(crate) fn read_source(kind: Option<&str>, source: Option<Node>) -> DiskSource {
    let attribute = |name: &str| source.and_then(|source| source.attribute(name));
    let path = |name: &str| attribute(name).map(PathBuf::from);
    match kind.unwrap_or("file") {
        "file" => path("file").map_or(DiskSource::Empty, |path| DiskSource::File { path }),
        "block" => path("dev").map_or(DiskSource::Empty, |path| DiskSource::Block { path }),
        "dir" => path("dir").map_or(DiskSource::Empty, |path| DiskSource::Dir { path }),
        "volume" => match (attribute("pool"), attribute("volume")) {
            (Some(pool), Some(volume)) => DiskSource::Volume { pool: pool.to_owned(), volume: volume.to_owned() },
            _ => DiskSource::Empty,
        },
        "network" => match attribute("protocol") {
            None => DiskSource::Empty,
            Some(protocol) => DiskSource::Network {
                protocol: protocol.to_owned(),
                name: attribute("name").map(str::to_owned),
                hosts: source.into_iter().flat_map(|source| children(source, "host")).map(read_host).collect(),
                tls: attribute("tls") == Some("yes"),
                options: Box::new(source.map(read_network_options).unwrap_or_default()),
            },
        },
        "nvme" => DiskSource::Nvme { address: nvme_address(source) },
        "vhostuser" => DiskSource::Vhost { path: path("path").unwrap_or_default() },
        "vhostvdpa" => DiskSource::Vhost { path: path("dev").unwrap_or_default() },
        other => DiskSource::Other { kind: other.to_owned() },
    }
}

fn nvme_address(source: Option<Node>) -> String {
    let Some(source) = source else {
        return String::new();
    };
    let part = |name: &str| {
        child(source, "address").and_then(|address| address.attribute(name)).unwrap_or("?").trim_start_matches("0x")
    };
    format!(
        "{}:{}:{}.{} namespace {}",
        part("domain"),
        part("bus"),
        part("slot"),
        part("function"),
        source.attribute("namespace").unwrap_or("?")
    )
}

fn read_host(node: Node) -> Host {
    Host {
        name: node.attribute("name").map(str::to_owned),
        port: node.attribute("port").and_then(|port| port.parse().ok()),
        transport: node.attribute("transport").map(str::to_owned),
        socket: node.attribute("socket").map(PathBuf::from),
    }
}

fn read_network_options(source: Node) -> NetworkOptions {
    let named = |element: &str, attribute: &str| {
        child(source, element).and_then(|element| element.attribute(attribute)).map(str::to_owned)
    };
    let auth = child(source, "auth").or_else(|| source.parent().and_then(|disk| child(disk, "auth")));
    let usage = match source.attribute("protocol") {
        Some("iscsi") => SecretUsage::Iscsi,
        _ => SecretUsage::Ceph,
    };
    NetworkOptions {
        auth: auth.map(|auth| Auth {
            user: auth.attribute("username").unwrap_or_default().to_owned(),
            secret: child(auth, "secret").and_then(|secret| read_secret(secret, usage)),
        }),
        snapshot: named("snapshot", "name"),
        config_file: named("config", "file").map(PathBuf::from),
        query: source.attribute("query").map(str::to_owned),
        initiator: child(source, "initiator")
            .and_then(|initiator| child(initiator, "iqn"))
            .and_then(|iqn| iqn.attribute("name"))
            .map(str::to_owned),
        verify_certificate: named("ssl", "verify").map(|verify| verify == "yes"),
        cookies: child(source, "cookies")
            .into_iter()
            .flat_map(|cookies| children(cookies, "cookie"))
            .filter_map(|cookie| Some(format!("{}={}", cookie.attribute("name")?, cookie.text()?.trim())))
            .collect(),
        user: named("identity", "user").or_else(|| named("identity", "username")),
        group: named("identity", "group"),
        known_hosts: named("knownHosts", "path").map(PathBuf::from),
    }
}

fn read_secret(secret: Node, usage: SecretUsage) -> Option<SecretRef> {
    let name = match (secret.attribute("uuid"), secret.attribute("usage")) {
        (Some(uuid), _) => SecretName::Uuid(uuid.to_owned()),
        (None, Some(usage)) => SecretName::Usage(usage.to_owned()),
        (None, None) => return None,
    };
    Some(SecretRef { usage, name })
}

/// Reads the encryption of an image from its `<source>` or, in older definitions, from the `<disk>`.
pub(crate) fn read_encryption(holder: Node) -> Option<Encryption> {
    let places = [child(holder, "source"), Some(holder)];
    let encryption = places.into_iter().flatten().find_map(|place| child(place, "encryption"))?;
    Some(Encryption {
        format: encryption.attribute("format").unwrap_or("unknown").to_owned(),
        engine: encryption.attribute("engine").map(str::to_owned),
        secret: child(encryption, "secret").and_then(|secret| read_secret(secret, SecretUsage::Volume)),
    })
}

/// Reads which part of a `<source>` is the image.
pub(crate) fn read_slice(source: Option<Node>) -> Option<Slice> {
    let slices = child(source?, "slices")?;
    let slice = children(slices, "slice").find(|slice| slice.attribute("type").unwrap_or("storage") == "storage")?;
    let number = |name: &str| slice.attribute(name).and_then(|text| text.parse().ok());
    Some(Slice { offset_bytes: number("offset")?, size_bytes: number("size")? })
}

/// The backing layers of a disk's image in a definition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Backing {
    /// The layers, nearest first.
    pub(crate) layers: Vec<Layer>,
    /// Whether the definition states that there is nothing below the last layer.
    pub(crate) is_complete: bool,
}

/// Reads nested `<backingStore>` elements. An empty one states that there are no more layers.
pub(crate) fn read_backing(disk: Node) -> Backing {
    let mut backing = Backing::default();
    let mut next = child(disk, "backingStore");
    while let Some(store) = next {
        if child(store, "source").is_none() {
            backing.is_complete = true;
            break;
        }
        backing.layers.push(read_layer(store));
        next = child(store, "backingStore");
    }
    backing
}

pub(crate) fn read_layer(node: Node) -> Layer {
    let source = child(node, "source");
    Layer {
        source: read_source(node.attribute("type"), source),
        format: child(node, "format").and_then(|format| format.attribute("type")).map(str::to_owned),
        slice: read_slice(source),
        encryption: read_encryption(node),
        data_file: source.and_then(|source| child(source, "dataStore")).map(|store| Box::new(read_layer(store))),
    }
}

/// Whether libvirt does not manage owner and mode of the image.
pub(super) fn keeps_owner(source: Node) -> bool {
    let mut labels =
        children(source, "seclabel").filter(|label| matches!(label.attribute("model"), None | Some("dac")));
    labels.any(|label| label.attribute("relabel") == Some("no"))
}

/// Reads the user and group in the DAC label of a `<disk>` or `<domain>`, as `user:group`.
pub(crate) fn read_dac_label(holder: Node) -> Option<String> {
    let mut labels = children(holder, "seclabel").filter(|label| label.attribute("model") == Some("dac"));
    labels.find_map(|label| text_of(label, "label"))
}
