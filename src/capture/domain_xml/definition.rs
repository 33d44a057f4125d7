//! A machine's definition, read from libvirt's domain XML.
//!
//! Pure: no libvirt, no file system. A definition from a repository may be hostile, so a document with a DTD or with
//! absurd nesting or size is refused, and a disk's target, which becomes a file name, must be a plain word.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use roxmltree::{Document, Node, ParsingOptions};

pub use super::source::DiskSource;
use super::source::{
    Backing, keeps_owner, read_backing, read_dac_label, read_encryption, read_layer, read_slice, read_source,
};
pub(crate) use super::source::{Encryption, Host, Layer, Slice};
use super::xml::text_of;
pub(crate) use super::xml::{child, children};

/// The maximum size of a definition. libvirt's own limit for a string in its protocol is 4 MiB.
const MAX_XML_BYTES: usize = 16 << 20;
/// The maximum depth. A definition nests about ten levels deep, and a backing chain adds one per layer (QEMU's limit is
/// 200).
const MAX_DEPTH: usize = 512;
/// The maximum number of nodes, far above the thousand or so of a large machine.
const MAX_NODES: u32 = 500_000;

/// Why a definition cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DefinitionError {
    /// Not well-formed, or contains a DTD.
    #[error("not valid XML: {0}")]
    Xml(String),
    /// Larger or deeper than any real definition.
    #[error("{0}")]
    Absurd(String),
    /// The document is not a domain definition.
    #[error("this is a <{0}>, not a <domain>")]
    NotADomain(String),
    /// A mandatory element is missing.
    #[error("the definition has no {0}")]
    Missing(&'static str),
    /// A value is invalid.
    #[error("{what} '{value}' is invalid")]
    BadValue {
        /// What the value is for.
        what: &'static str,
        /// The value.
        value: String,
    },
    /// Two disks have the same target.
    #[error("two disks have the target '{0}'")]
    DuplicateTarget(String),
    /// A change refers to a disk that does not exist.
    #[error("the definition has no disk '{0}'")]
    NoSuchDisk(String),
}

/// The result of reading a definition.
pub(crate) type Result<T> = std::result::Result<T, DefinitionError>;

/// The parts of a machine's definition that kvmb uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    /// The machine's name.
    pub name: String,
    /// The UUID, if it is set (libvirt always sets it).
    pub uuid: Option<String>,
    /// `kvm`, `qemu`, `test` …
    pub domain_type: String,
    /// A short title, if there is one.
    pub title: Option<String>,
    /// The maximum memory of the machine.
    pub memory_bytes: u64,
    /// The maximum number of virtual CPUs.
    pub vcpus: u32,
    /// Every disk, in the definition's order, including those that cannot be backed up.
    pub disks: Vec<DefinedDisk>,
    /// The firmware, if the definition specifies a file.
    pub(crate) loader: Option<PathBuf>,
    /// The UEFI variables.
    pub nvram: Option<Nvram>,
    /// An emulated TPM.
    pub tpm: Option<Tpm>,
    /// The kernel of a direct boot.
    pub kernel: Option<PathBuf>,
    /// The initial RAM disk of a direct boot.
    pub initrd: Option<PathBuf>,
    /// Whether there is a channel for the QEMU guest agent.
    pub has_agent_channel: bool,
    /// Whether the agent is connected. Only set in a live definition.
    pub agent_connected: bool,
    /// The user and group that QEMU runs as. Only set in a live definition.
    pub dac_owner: Option<(u32, u32)>,
    /// The same as spelled in the definition, which may use names instead of numbers.
    pub(crate) dac_label: Option<String>,
    /// The active security models, for example `dac`, `apparmor`, `selinux`.
    pub seclabel_models: Vec<String>,
}

/// The storage of UEFI variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nvram {
    /// The file, device or network storage; `None` if libvirt will choose a file at the first start.
    pub(crate) source: Option<DiskSource>,
    /// The format, `raw` by default.
    pub format: Option<String>,
    /// The template that the variables were created from.
    pub template: Option<PathBuf>,
}

impl Nvram {
    /// The local file or device, if it is one.
    pub fn path(&self) -> Option<&Path> {
        self.source.as_ref()?.path().map(PathBuf::as_path)
    }
}

/// A TPM device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tpm {
    /// `emulator` (its state is a folder of swtpm), `passthrough` or `external`.
    pub backend: String,
    /// `1.2` or `2.0`.
    pub version: Option<String>,
    /// The path of the emulator's state, if the definition sets it (libvirt 10.10).
    pub state_path: Option<PathBuf>,
    /// Whether that path is a single file or device instead of a folder.
    pub(crate) state_is_file: bool,
    /// Whether the state is encrypted with a libvirt secret.
    pub(crate) encrypted: bool,
}

/// The kind of device that the guest sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// A hard disk.
    Disk,
    /// A CD or DVD drive.
    Cdrom,
    /// A floppy drive.
    Floppy,
    /// A SCSI device of the host, passed through.
    Lun,
}

/// One block device of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefinedDisk {
    /// The name in the definition, for example `vda`.
    pub target: String,
    /// The kind of device that the guest sees.
    pub device: Device,
    /// `virtio`, `scsi`, `sata` …
    pub bus: Option<String>,
    /// The serial number that the guest sees.
    pub serial: Option<String>,
    /// The location of the content.
    pub source: DiskSource,
    /// The image format; libvirt treats a missing one as `raw`.
    pub format: Option<String>,
    /// Whether the disk is read-only for the guest.
    pub(crate) read_only: bool,
    /// Whether other machines may use the disk at the same time.
    pub(crate) shareable: bool,
    /// Whether changes are discarded when the machine stops.
    pub(crate) transient: bool,
    /// The backing layers, nearest first, as far as the definition lists them (a live one lists all).
    pub backing: Vec<Layer>,
    /// Whether the definition states that there is nothing below these layers, or, if there are none, below the image.
    pub(crate) backing_is_complete: bool,
    /// The part of the source that is the image; `None` for the whole source.
    pub(crate) slice: Option<Slice>,
    /// The user and group in the label of its `<source>`, as spelled in the definition.
    pub(crate) dac_label: Option<String>,
    /// Whether libvirt does not manage owner and mode of the image (`<seclabel model='dac' relabel='no'/>`).
    pub(crate) keeps_owner: bool,
    /// The external raw file with a qcow2 image's data.
    pub data_file: Option<Layer>,
    /// The index of the image in the QEMU process that has it open. Only set in a live definition.
    pub(crate) source_index: Option<String>,
    /// libvirt's name of the device. Only set in a live definition, or if the user chose it.
    pub(crate) alias: Option<String>,
    /// The encryption, if there is one.
    pub encryption: Option<Encryption>,
    /// Whether the machine starts without the disk if its source is missing (`startupPolicy='optional'`).
    pub(crate) is_optional: bool,
}

impl Definition {
    /// Parses a definition.
    pub fn parse(xml: &str) -> Result<Definition> {
        let document = parse_document(xml)?;
        let domain = document.root_element();
        let os = child(domain, "os");
        let devices = child(domain, "devices");
        let mut disks = Vec::new();
        let mut targets = HashSet::new();
        for node in devices.into_iter().flat_map(|devices| children(devices, "disk")) {
            let disk = DefinedDisk::read(node)?;
            if !targets.insert(disk.target.clone()) {
                return Err(DefinitionError::DuplicateTarget(disk.target));
            }
            disks.push(disk);
        }
        let agent = devices
            .into_iter()
            .flat_map(|devices| children(devices, "channel"))
            .filter_map(|channel| child(channel, "target"))
            .find(|target| target.attribute("name") == Some("org.qemu.guest_agent.0"));
        let labels: Vec<_> = children(domain, "seclabel").collect();
        Ok(Definition {
            name: text_of(domain, "name").ok_or(DefinitionError::Missing("name"))?,
            uuid: text_of(domain, "uuid"),
            domain_type: domain.attribute("type").unwrap_or_default().to_owned(),
            title: text_of(domain, "title"),
            memory_bytes: memory_bytes(domain)?,
            vcpus: match text_of(domain, "vcpu") {
                None => 1,
                Some(text) => {
                    text.parse().map_err(|_| DefinitionError::BadValue { what: "the number of CPUs", value: text })?
                }
            },
            disks,
            loader: os.and_then(|os| text_of(os, "loader")).map(PathBuf::from),
            nvram: os.and_then(|os| child(os, "nvram")).map(read_nvram),
            tpm: devices.and_then(|devices| child(devices, "tpm")).map(read_tpm),
            kernel: os.and_then(|os| text_of(os, "kernel")).map(PathBuf::from),
            initrd: os.and_then(|os| text_of(os, "initrd")).map(PathBuf::from),
            has_agent_channel: agent.is_some(),
            agent_connected: agent.is_some_and(|target| target.attribute("state") == Some("connected")),
            dac_owner: labels
                .iter()
                .filter(|label| label.attribute("model") == Some("dac"))
                .find_map(|label| parse_owner(&text_of(*label, "label")?)),
            dac_label: read_dac_label(domain),
            seclabel_models: labels
                .iter()
                .filter(|label| label.attribute("type") != Some("none"))
                .filter_map(|label| label.attribute("model"))
                .map(str::to_owned)
                .collect(),
        })
    }

    /// Returns the disk with this target.
    pub fn disk(&self, target: &str) -> Option<&DefinedDisk> {
        self.disks.iter().find(|disk| disk.target == target)
    }
}

impl DefinedDisk {
    /// Why this disk is not backed up, or `None` if it is.
    pub fn exclusion(&self) -> Option<&'static str> {
        match self.device {
            Device::Cdrom => return Some("cdrom"),
            Device::Floppy => return Some("floppy"),
            Device::Lun => return Some("passed-through device"),
            Device::Disk => {}
        }
        match &self.source {
            DiskSource::Empty => return Some("empty"),
            DiskSource::Dir { .. } => return Some("folder shown as a disk"),
            DiskSource::Nvme { .. } => return Some("passed-through device"),
            DiskSource::Vhost { .. } => return Some("disk of another process (vhost)"),
            DiskSource::Other { .. } => return Some("kind of disk that kvmb does not know"),
            DiskSource::File { .. }
            | DiskSource::Block { .. }
            | DiskSource::Network { .. }
            | DiskSource::Volume { .. } => {}
        }
        if self.transient {
            return Some("transient");
        }
        if self.shareable {
            return Some("shared with other machines");
        }
        if self.read_only {
            return Some("read-only");
        }
        None
    }

    /// The local path of the image or device, if there is one.
    pub fn path(&self) -> Option<&PathBuf> {
        self.source.path()
    }

    /// Whether QEMU can keep a dirty bitmap in the image, according to the definition.
    pub fn keeps_bitmaps(&self) -> bool {
        self.format.as_deref() == Some("qcow2") && !self.read_only
    }

    fn read(node: Node) -> Result<DefinedDisk> {
        let target = child(node, "target")
            .and_then(|target| target.attribute("dev"))
            .ok_or(DefinitionError::Missing("target of a disk"))?;
        check_target(target)?;
        let device = match node.attribute("device").unwrap_or("disk") {
            "disk" => Device::Disk,
            "cdrom" => Device::Cdrom,
            "floppy" => Device::Floppy,
            "lun" => Device::Lun,
            other => {
                return Err(DefinitionError::BadValue { what: "the kind of disk", value: other.to_owned() });
            }
        };
        let source_node = child(node, "source");
        let Backing { layers: backing, is_complete: backing_is_complete } = read_backing(node);
        Ok(DefinedDisk {
            target: target.to_owned(),
            device,
            bus: child(node, "target").and_then(|target| target.attribute("bus")).map(str::to_owned),
            serial: text_of(node, "serial"),
            source: read_source(node.attribute("type"), source_node),
            format: child(node, "driver").and_then(|driver| driver.attribute("type")).map(str::to_owned),
            read_only: child(node, "readonly").is_some(),
            shareable: child(node, "shareable").is_some(),
            transient: child(node, "transient").is_some(),
            backing,
            backing_is_complete,
            slice: read_slice(source_node),
            dac_label: source_node.and_then(read_dac_label),
            keeps_owner: source_node.is_some_and(keeps_owner),
            data_file: source_node.and_then(|source| child(source, "dataStore")).map(read_layer),
            source_index: source_node.and_then(|source| source.attribute("index")).map(str::to_owned),
            alias: child(node, "alias").and_then(|alias| alias.attribute("name")).map(str::to_owned),
            encryption: read_encryption(node),
            is_optional: source_node.and_then(|source| source.attribute("startupPolicy")) == Some("optional"),
        })
    }
}

/// Parses a document that must be a `<domain>`, within limits.
pub(crate) fn parse_document(xml: &str) -> Result<Document<'_>> {
    let document = parse_xml(xml)?;
    let root = document.root_element().tag_name().name();
    if root != "domain" {
        return Err(DefinitionError::NotADomain(root.to_owned()));
    }
    Ok(document)
}

/// Parses any XML document of libvirt, within limits.
pub(crate) fn parse_xml(xml: &str) -> Result<Document<'_>> {
    if xml.len() > MAX_XML_BYTES {
        return Err(DefinitionError::Absurd(format!("a definition of {} bytes is too large", xml.len())));
    }
    check_depth(xml)?;
    let options = ParsingOptions { allow_dtd: false, nodes_limit: MAX_NODES };
    Document::parse_with_options(xml, options).map_err(|error| DefinitionError::Xml(error.to_string()))
}

/// Checks the depth before parsing, because the parser is recursive.
fn check_depth(xml: &str) -> Result<()> {
    let mut depth = 0usize;
    let mut rest = xml;
    while let Some(open) = rest.find('<') {
        rest = &rest[open..];
        let length = if rest.starts_with("<!--") {
            after(rest, 4, "-->")
        } else if rest.starts_with("<![CDATA[") {
            after(rest, 9, "]]>")
        } else if rest.starts_with("<?") {
            after(rest, 2, "?>")
        } else {
            let length = tag_length(rest);
            let tag = &rest[..length];
            if tag.starts_with("</") {
                depth = depth.saturating_sub(1);
            } else if !tag.ends_with("/>") {
                depth += 1;
            }
            length
        };
        if depth > MAX_DEPTH {
            return Err(DefinitionError::Absurd(format!("nested more than {MAX_DEPTH} levels deep")));
        }
        rest = &rest[length..];
    }
    Ok(())
}

/// Returns the offset after the first `end` at or after `from`, or the length of the text if there is none.
fn after(text: &str, from: usize, end: &str) -> usize {
    text[from..].find(end).map_or(text.len(), |at| from + at + end.len())
}

/// The length of the tag at the start of `text`. A `>` inside a quoted value does not end it.
fn tag_length(text: &str) -> usize {
    let mut quote = None;
    for (at, byte) in text.bytes().enumerate() {
        match quote {
            Some(open) if byte == open => quote = None,
            Some(_) => {}
            None if byte == b'"' || byte == b'\'' => quote = Some(byte),
            None if byte == b'>' => return at + 1,
            None => {}
        }
    }
    text.len()
}

/// Checks that a target is a plain word, because it becomes a file name and the name of an NBD export.
fn check_target(target: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b':');
    let first_is_letter = target.starts_with(|first: char| first.is_ascii_alphabetic());
    if first_is_letter && target.len() <= 32 && target.bytes().all(plain) {
        Ok(())
    } else {
        Err(DefinitionError::BadValue { what: "the disk target", value: target.to_owned() })
    }
}

fn memory_bytes(domain: Node) -> Result<u64> {
    let Some(node) = child(domain, "memory") else {
        return Ok(0);
    };
    let text = node.text().unwrap_or_default().trim();
    let bad = || DefinitionError::BadValue { what: "the memory size", value: text.to_owned() };
    let number: u64 = text.parse().map_err(|_| bad())?;
    let unit: u64 = match node.attribute("unit").unwrap_or("KiB") {
        "b" | "bytes" => 1,
        "KB" => 1_000,
        "k" | "K" | "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "M" | "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "G" | "GiB" => 1 << 30,
        "TB" => 1_000_000_000_000,
        "T" | "TiB" => 1 << 40,
        _ => return Err(bad()),
    };
    number.checked_mul(unit).ok_or_else(bad)
}

fn read_nvram(node: Node) -> Nvram {
    let own_text = node.text().map(str::trim).filter(|text| !text.is_empty());
    let source = match (own_text, child(node, "source")) {
        (Some(path), _) => Some(DiskSource::File { path: path.into() }),
        (None, source) => source.map(|source| read_source(node.attribute("type"), Some(source))),
    };
    Nvram {
        source: source.filter(|source| *source != DiskSource::Empty),
        format: node.attribute("format").map(str::to_owned),
        template: node.attribute("template").map(PathBuf::from),
    }
}

fn read_tpm(node: Node) -> Tpm {
    let backend = child(node, "backend");
    let source = backend.and_then(|backend| child(backend, "source"));
    Tpm {
        backend: backend.and_then(|backend| backend.attribute("type")).unwrap_or("unknown").to_owned(),
        version: backend.and_then(|backend| backend.attribute("version")).map(str::to_owned),
        state_path: source.and_then(|source| source.attribute("path")).map(PathBuf::from),
        state_is_file: source.and_then(|source| source.attribute("type")) == Some("file"),
        encrypted: backend.is_some_and(|backend| child(backend, "encryption").is_some()),
    }
}

/// Parses `+64055:+64055`. Names are not looked up here, so they are `None`.
pub(crate) fn parse_owner(label: &str) -> Option<(u32, u32)> {
    let (user, group) = label.split_once(':')?;
    let number = |text: &str| text.strip_prefix('+').unwrap_or(text).parse().ok();
    Some((number(user)?, number(group)?))
}
