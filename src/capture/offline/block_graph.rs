//! The block graph of a disk: the nodes that QEMU opens for it, built explicitly as libvirt does (pure).
//!
//! ```text
//!   definition ──┐
//!                ├─ [`chain`] ─► layers, topmost first ─ [`build`] ─► nodes, each with all of its children specified
//!   headers ─────┘
//!
//!   format   {"driver":"qcow2", "file":…, "backing":…, "data-file":…}     one per layer, `backing` null in the last
//!     slice    {"driver":"raw", "offset":…, "size":…, "file":…}           if the definition has one
//!       storage  {"driver":"file", "filename":…} or another protocol
//! ```
//! The chain in the definition takes precedence over headers. Where it is incomplete, the chain is the one that libvirt
//! would detect. A data file that only a header refers to is opened by a second, unprivileged process and accessed
//! through it ([`Side`]). An image whose header refers to the files with its data is opened completely by that process
//! ([`Graph::is_unprivileged`]).

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::backing_string::{self, LayerPlace};
use super::image_header::{BackingName, Header};
use super::network_storage::network_options;
use crate::capture::domain_xml::definition::DefinedDisk;
use crate::capture::domain_xml::source::{DiskSource, Encryption, Layer, SecretRef, Slice};
use crate::capture::error::{Error, Result};

/// The maximum number of layers; QEMU's own limit is 200. More are assumed to be a loop.
const MAX_LAYERS: usize = 200;

/// The lookups that are needed to build a chain.
pub(crate) trait ImageLookup {
    /// Resolves a volume of a storage pool to a file or device. Returns other sources unchanged.
    fn resolve(&self, source: &DiskSource) -> Result<DiskSource>;

    /// Reads the header of an image.
    fn header(&self, place: &LayerPlace, format: &str, slice: Option<Slice>) -> Result<Header>;

    /// Whether a path leads to a block device.
    fn is_device(&self, path: &Path) -> bool;
}

/// A resolved layer of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) storage: LayerStorage,
    pub(crate) format: String,
    /// The part of the storage that is the layer.
    pub(crate) slice: Option<Slice>,
    /// The encryption, if there is one.
    pub(crate) encryption: Option<Encryption>,
    /// The image's header.
    pub(crate) header: Header,
    /// The external file with its data.
    pub(crate) data_file: Option<DataFile>,
}

/// The location of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LayerStorage {
    File(PathBuf),
    Device(PathBuf),
    /// Network storage from the definition.
    Network(DiskSource),
    /// Network storage from a header, as QEMU's options.
    Options(Map<String, Value>),
}

/// The external file with the data of a qcow2 image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DataFile {
    pub(crate) storage: LayerStorage,
    /// The part of the storage that is the data file.
    pub(crate) slice: Option<Slice>,
    /// Whether only the image's header refers to it, not the definition.
    pub(crate) is_of_header: bool,
}

/// The nodes of one disk.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Graph {
    /// The nodes, children before their parents.
    pub(crate) nodes: Vec<Value>,
    /// The name of the top node, which the guest sees.
    pub(crate) top: String,
    /// The secrets that nodes refer to, each with the name of its object.
    pub(crate) secrets: Vec<(String, SecretRef)>,
    /// The nodes that the unprivileged process opens for the disk.
    pub(crate) sides: Vec<Side>,
    /// Whether that process opens the whole disk.
    pub(crate) is_unprivileged: bool,
}

/// A node that the unprivileged process opens and exports under this name.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Side {
    /// The name of the node and of the export.
    pub(crate) name: String,
    pub(crate) node: Value,
}

impl LayerStorage {
    /// QEMU's driver, for network storage.
    pub(crate) fn protocol(&self) -> Option<&str> {
        match self {
            LayerStorage::Network(DiskSource::Network { protocol, .. }) => Some(protocol),
            LayerStorage::Options(options) => options.get("driver")?.as_str(),
            _ => None,
        }
    }

    /// The local path, if there is one.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            LayerStorage::File(path) | LayerStorage::Device(path) => Some(path),
            LayerStorage::Network(_) | LayerStorage::Options(_) => None,
        }
    }

    /// The address, for messages and comparisons.
    pub(crate) fn address(&self) -> String {
        match self {
            LayerStorage::File(path) | LayerStorage::Device(path) => path.to_string_lossy().into_owned(),
            LayerStorage::Network(source) => source.address(),
            LayerStorage::Options(options) => Value::Object(options.clone()).to_string(),
        }
    }
}

impl Found {
    /// The local files of the layer.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.storage.path().into_iter().chain(self.data_file.iter().filter_map(|data| data.storage.path()))
    }
}

/// Returns the layers of a disk, topmost first.
pub(crate) fn chain(disk: &DefinedDisk, look: &dyn ImageLookup) -> Result<Vec<Found>> {
    let top = Layer {
        source: disk.source.clone(),
        format: Some(disk.format.clone().unwrap_or_else(|| "raw".to_owned())),
        slice: disk.slice,
        encryption: disk.encryption.clone(),
        data_file: disk.data_file.clone().map(Box::new),
    };
    let mut found: Vec<Found> = Vec::new();
    for layer in std::iter::once(&top).chain(&disk.backing) {
        let recorded = found.last().and_then(|above: &Found| above.header.backing.as_ref()?.format.clone());
        let Some(format) = layer.format.clone().or(recorded) else {
            return Err(Error::UnsupportedImage {
                image: layer.source.address(),
                reason: "the definition does not specify its format".to_owned(),
            });
        };
        found.push(of_definition(layer, format, disk.backing_is_complete, look)?);
    }
    if disk.backing_is_complete {
        return Ok(found);
    }
    while let Some(next) = found.last().map(|above| detected(above, look)).transpose()?.flatten() {
        if found.len() == MAX_LAYERS {
            let image = top.source.address();
            return Err(Error::UnsupportedImage { image, reason: "its backing files form a loop".to_owned() });
        }
        found.push(next);
    }
    Ok(found)
}

fn of_definition(layer: &Layer, format: String, chain_is_complete: bool, look: &dyn ImageLookup) -> Result<Found> {
    let storage = storage_of(&layer.source, look)?;
    let header = match &storage {
        LayerStorage::Network(source) if chain_is_complete && source.needs_secret() => Header::default(),
        storage => header_of(storage, &format, layer.slice, look)?,
    };
    let data_file = match (&layer.data_file, &header.data_file) {
        (Some(data), _) => {
            let storage = storage_of(&data.source, look)?;
            Some(DataFile { storage, slice: data.slice, is_of_header: false })
        }
        (None, Some(name)) => Some(data_file_of_header(&storage, name, look)?),
        (None, None) => None,
    };
    Ok(Found { storage, format, slice: layer.slice, encryption: layer.encryption.clone(), header, data_file })
}

/// Returns the backing layer according to an image's header.
fn detected(above: &Found, look: &dyn ImageLookup) -> Result<Option<Found>> {
    let Some(BackingName { name, format: recorded }) = &above.header.backing else {
        return Ok(None);
    };
    let named = backing_string::parse(name, above.storage.path().and_then(Path::parent)).map_err(|reason| {
        let image = above.storage.address();
        Error::UnsupportedImage { image, reason: format!("its backing file {name} cannot be opened: {reason}") }
    })?;
    let Some(format) = recorded.clone().or(named.format) else {
        return Err(Error::NoBackingFormat {
            image: above.storage.address(),
            format: above.format.clone(),
            backing: name.clone(),
        });
    };
    let storage = storage_at(named.place, look);
    let header = header_of(&storage, &format, named.slice, look)?;
    let data_file = match &header.data_file {
        Some(name) => Some(data_file_of_header(&storage, name, look)?),
        None => None,
    };
    Ok(Some(Found { storage, format, slice: named.slice, encryption: None, header, data_file }))
}

fn storage_of(source: &DiskSource, look: &dyn ImageLookup) -> Result<LayerStorage> {
    match look.resolve(source)? {
        DiskSource::File { path } | DiskSource::Block { path } => Ok(storage_at(LayerPlace::Path(path), look)),
        network @ DiskSource::Network { .. } => Ok(LayerStorage::Network(network)),
        other => Err(Error::UnsupportedImage {
            image: other.address(),
            reason: format!("a disk of kind {} can be read only while the machine runs", other.kind()),
        }),
    }
}

fn storage_at(place: LayerPlace, look: &dyn ImageLookup) -> LayerStorage {
    match place {
        LayerPlace::Path(path) if look.is_device(&path) => LayerStorage::Device(path),
        LayerPlace::Path(path) => LayerStorage::File(path),
        LayerPlace::Network(options) => LayerStorage::Options(options),
    }
}

fn header_of(storage: &LayerStorage, format: &str, slice: Option<Slice>, look: &dyn ImageLookup) -> Result<Header> {
    if let LayerStorage::Network(source) = storage
        && source.needs_secret()
        && format != "raw"
    {
        let reason = "what is below it cannot be looked up with a secret; end its chain in the definition \
                      (<backingStore/>), or back the machine up while it runs";
        return Err(Error::UnsupportedImage { image: storage.address(), reason: reason.to_owned() });
    }
    let place = match storage {
        LayerStorage::File(path) | LayerStorage::Device(path) => LayerPlace::Path(path.clone()),
        LayerStorage::Options(options) => LayerPlace::Network(options.clone()),
        LayerStorage::Network(source) => LayerPlace::Network(network_options(source, "", &mut Vec::new())?),
    };
    look.header(&place, format, slice)
}

fn data_file_of_header(image: &LayerStorage, name: &str, look: &dyn ImageLookup) -> Result<DataFile> {
    let named = backing_string::parse(name, image.path().and_then(Path::parent)).map_err(|reason| {
        let image = image.address();
        Error::UnsupportedImage { image, reason: format!("its data file {name} cannot be opened: {reason}") }
    })?;
    Ok(DataFile { storage: storage_at(named.place, look), slice: named.slice, is_of_header: true })
}

/// Builds the nodes of a disk, with names that begin with `prefix`. `side_socket` is the socket of the unprivileged
/// process.
pub(crate) fn build(prefix: &str, layers: &[Found], side_socket: &Path) -> Result<Graph> {
    let mut graph = Graph { is_unprivileged: layers.iter().any(|layer| layer.header.has_extents), ..Graph::default() };
    let mut below = Value::Null;
    for (at, layer) in layers.iter().enumerate().rev() {
        let name = format!("{prefix}-{at}");
        let mut file = graph.add_storage(&name, &layer.storage, layer.encryption.as_ref())?;
        let is_raw = layer.format == "raw";
        if let Some(slice) = layer.slice {
            file = graph.add_slice(&name, &file, slice);
        }
        let mut node = Map::from_iter([("driver".to_owned(), json!(driver_of(&layer.format)))]);
        node.insert("file".to_owned(), json!(file));
        let secret = layer.encryption.as_ref().filter(|found| found.engine.as_deref() != Some("librbd"));
        if let Some(encryption) = secret {
            graph.add_encryption(&name, &mut node, layer, encryption)?;
        }
        if let Some(data) = &layer.data_file {
            let data = graph.add_data_file(&name, data, side_socket)?;
            node.insert("data-file".to_owned(), json!(data));
        }
        if has_backing(&layer.format) {
            node.insert("backing".to_owned(), std::mem::take(&mut below));
        } else if !below.is_null() {
            return Err(Error::UnsupportedImage {
                image: layer.storage.address(),
                reason: format!("an image of format {} has no backing file", layer.format),
            });
        }
        let is_the_storage = is_raw && secret.is_none();
        let top = if is_the_storage { file } else { graph.add(format!("{name}-format"), node) };
        below = json!(top);
        graph.top = top;
    }
    Ok(graph)
}

/// QEMU's driver for libvirt's name of a format.
fn driver_of(format: &str) -> &str {
    match format {
        "ploop" => "parallels",
        "iso" => "raw",
        other => other,
    }
}

fn has_backing(format: &str) -> bool {
    matches!(format, "qcow2" | "qcow" | "qed" | "vmdk")
}

impl Graph {
    fn add(&mut self, name: String, mut node: Map<String, Value>) -> String {
        node.insert("node-name".to_owned(), json!(name));
        node.insert("read-only".to_owned(), json!(true));
        self.nodes.push(Value::Object(node));
        name
    }

    fn add_storage(&mut self, name: &str, storage: &LayerStorage, encryption: Option<&Encryption>) -> Result<String> {
        let name = format!("{name}-storage");
        let mut node = options_of(storage, &name, &mut self.secrets)?;
        if let Some(encryption) = encryption.filter(|found| found.engine.as_deref() == Some("librbd")) {
            let secret = self.add_secret(&format!("{name}-key"), storage, encryption)?;
            node.insert("encrypt".to_owned(), json!({ "format": encryption.format, "key-secret": secret }));
        }
        Ok(self.add(name, node))
    }

    fn add_slice(&mut self, name: &str, file: &str, slice: Slice) -> String {
        let node = json!({ "driver": "raw", "offset": slice.offset_bytes, "size": slice.size_bytes, "file": file });
        self.add(format!("{name}-slice"), node.as_object().cloned().unwrap_or_default())
    }

    fn add_secret(&mut self, name: &str, storage: &LayerStorage, encryption: &Encryption) -> Result<String> {
        let Some(secret) = &encryption.secret else {
            return Err(Error::UnsupportedImage {
                image: storage.address(),
                reason: format!("it is encrypted ({}), and the definition names no secret", encryption.format),
            });
        };
        self.secrets.push((name.to_owned(), secret.clone()));
        Ok(name.to_owned())
    }

    fn add_encryption(
        &mut self,
        name: &str,
        node: &mut Map<String, Value>,
        layer: &Found,
        encryption: &Encryption,
    ) -> Result<()> {
        let secret = self.add_secret(&format!("{name}-key"), &layer.storage, encryption)?;
        let qcow_format = match encryption.format.as_str() {
            "luks" | "luks2" | "luks-any" => "luks",
            _ => "aes",
        };
        match (layer.format.as_str(), qcow_format) {
            ("raw", "luks") => {
                node.insert("driver".to_owned(), json!("luks"));
                node.insert("key-secret".to_owned(), json!(secret));
            }
            ("qcow2", format) => {
                node.insert("encrypt".to_owned(), json!({ "format": format, "key-secret": secret }));
            }
            ("qcow", "aes") => {
                node.insert("encrypt".to_owned(), json!({ "format": "aes", "key-secret": secret }));
            }
            (format, _) => {
                return Err(Error::UnsupportedImage {
                    image: layer.storage.address(),
                    reason: format!("encryption {} of an image of format {format} is not supported", encryption.format),
                });
            }
        }
        Ok(())
    }

    fn add_data_file(&mut self, name: &str, data: &DataFile, side_socket: &Path) -> Result<String> {
        let name = format!("{name}-data");
        let mut node = options_of(&data.storage, &name, &mut self.secrets)?;
        if data.is_of_header && !self.is_unprivileged {
            node.insert("node-name".to_owned(), json!(name));
            node.insert("read-only".to_owned(), json!(true));
            self.sides.push(Side { name: name.clone(), node: Value::Object(node) });
            let server = json!({ "type": "unix", "path": side_socket });
            let through = json!({ "driver": "nbd", "server": server, "export": name });
            node = through.as_object().cloned().unwrap_or_default();
        }
        let file = self.add(name.clone(), node);
        Ok(match data.slice {
            Some(slice) => self.add_slice(&name, &file, slice),
            None => file,
        })
    }
}

fn options_of(
    storage: &LayerStorage,
    name: &str,
    secrets: &mut Vec<(String, SecretRef)>,
) -> Result<Map<String, Value>> {
    let local = |driver: &str, path: &Path| {
        Map::from_iter([("driver".to_owned(), json!(driver)), ("filename".to_owned(), json!(path))])
    };
    match storage {
        LayerStorage::File(path) => Ok(local("file", path)),
        LayerStorage::Device(path) => Ok(local("host_device", path)),
        LayerStorage::Options(options) => Ok(options.clone()),
        LayerStorage::Network(source) => network_options(source, name, secrets),
    }
}

#[cfg(test)]
mod tests;
