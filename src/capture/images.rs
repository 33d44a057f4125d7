//! Image files by their own words, as `qemu-img info` tells them. The format always comes from the definition or from
//! the layer above: nothing is probed.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use crate::bounded::{self, Group};

/// How long `qemu-img` may take: it reads or writes a few blocks.
const LIMIT: Duration = Duration::from_secs(60);

/// More layers than this are a loop.
const MAX_LAYERS: usize = 256;

/// Which file a layer of a disk is, and since when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageIdentity {
    /// Its path (or, for what has none, its address).
    pub path: String,
    /// Its format.
    pub format: String,
    /// The file system's number; 0 for what is no local file.
    pub device: u64,
    /// The file's number there (for a block device, the device's number).
    pub inode: u64,
    /// How long the file is.
    pub size_bytes: u64,
    /// When it was last written, in nanoseconds since 1970.
    pub modified_ns: i64,
    /// When the file was made, where the file system knows: a number there is given again after the file is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub born_ns: Option<i64>,
}

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageLayer {
    /// The file.
    pub path: PathBuf,
    /// Its format.
    pub format: String,
    /// What the guest sees.
    pub capacity_bytes: u64,
    /// Its bitmaps.
    pub bitmaps: Vec<Bitmap>,
    /// Whether it can keep bitmaps: qcow2 from version 3 on, without a raw data file.
    pub keeps_bitmaps: bool,
    /// Whether its data are in a raw file of their own.
    pub has_data_file: bool,
}

/// A bitmap in a qcow2 image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bitmap {
    /// Its name.
    pub name: String,
    /// Its flags: exactly `["auto"]` when it records and can be trusted.
    pub flags: Vec<String>,
}

impl Bitmap {
    /// Whether it recorded everything: it is switched on, and was closed properly.
    pub fn is_usable(&self) -> bool {
        self.flags == ["auto"]
    }

    /// Whether whoever had the image open last closed it properly.
    pub fn was_closed(&self) -> bool {
        self.flags.iter().all(|flag| flag != "in-use")
    }
}

/// Reads an image and every layer below it, topmost first. Works beside a running machine.
pub fn read_layers(path: &Path, format: &str) -> Result<Vec<ImageLayer>> {
    let mut layers: Vec<ImageLayer> = Vec::new();
    let mut next = Some((path.to_owned(), format.to_owned()));
    while let Some((path, format)) = next {
        if layers.len() == MAX_LAYERS {
            return Err(failed(&path, "its backing files form a loop".to_owned()));
        }
        let told = qemu_img_info(&path, &format)?;
        next = told.backing(&path)?;
        layers.push(told.into_layer(path, format));
    }
    Ok(layers)
}

/// How large the disk is that can be read at an NBD URI.
pub fn size_of_export(nbd_uri: &str) -> Result<u64> {
    Ok(qemu_img_info(Path::new(nbd_uri), "raw")?.virtual_size)
}

/// Which file this is now.
pub fn identify(path: &Path, format: &str) -> Result<ImageIdentity> {
    let found = fs::metadata(path).map_err(Error::io("look at", path))?;
    let block = found.file_type().is_block_device();
    Ok(ImageIdentity {
        path: path.to_string_lossy().into_owned(),
        format: format.to_owned(),
        device: found.dev(),
        inode: if block { found.rdev() } else { found.ino() },
        size_bytes: found.size(),
        modified_ns: found.mtime().saturating_mul(1_000_000_000).saturating_add(found.mtime_nsec()),
        born_ns: born_ns(&found),
    })
}

fn born_ns(found: &fs::Metadata) -> Option<i64> {
    let since = found.created().ok()?.duration_since(UNIX_EPOCH).ok()?;
    i64::try_from(since.as_nanos()).ok()
}

/// Puts a bitmap into a qcow2 image: from now on it records. QEMU's own image locks refuse it when anybody has the image open.
pub fn add_bitmap(path: &Path, name: &str) -> Result<()> {
    qemu_img_bitmap("--add", path, name)
}

/// Takes a bitmap out of a qcow2 image, whatever state it is in. Refused when anybody has the image open.
pub fn remove_bitmap(path: &Path, name: &str) -> Result<()> {
    qemu_img_bitmap("--remove", path, name)
}

fn qemu_img_bitmap(action: &str, path: &Path, name: &str) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command.args(["bitmap", action, "-f", "qcow2", "--"]).arg(path).arg(name);
    let output = run(command, path)?;
    if !output.status.success() {
        return Err(failed(path, String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(())
}

#[derive(Deserialize)]
struct ImageInfo {
    #[serde(rename = "virtual-size")]
    virtual_size: u64,
    #[serde(rename = "full-backing-filename")]
    full_backing: Option<String>,
    #[serde(rename = "backing-filename")]
    backing: Option<String>,
    #[serde(rename = "backing-filename-format")]
    backing_format: Option<String>,
    #[serde(rename = "format-specific")]
    specific: Option<Specific>,
}

#[derive(Deserialize)]
struct Specific {
    #[serde(default)]
    data: SpecificData,
}

#[derive(Deserialize, Default)]
struct SpecificData {
    compat: Option<String>,
    #[serde(rename = "data-file")]
    data_file: Option<String>,
    #[serde(default)]
    bitmaps: Vec<InfoBitmap>,
}

#[derive(Deserialize)]
struct InfoBitmap {
    name: String,
    flags: Vec<String>,
}

impl ImageInfo {
    /// The layer below: its path and format.
    fn backing(&self, path: &Path) -> Result<Option<(PathBuf, String)>> {
        let Some(backing) = self.full_backing.as_ref().or(self.backing.as_ref()) else {
            return Ok(None);
        };
        if !backing.starts_with('/') {
            // A network layer: nothing to look at, and only others can change it.
            return Ok(None);
        }
        let Some(format) = &self.backing_format else {
            return Err(failed(
                path,
                format!(
                    "it does not say which format its backing file {backing} has, and guessing would be unsafe; \
                     `qemu-img rebase -u -F FORMAT -b BACKING` writes it down"
                ),
            ));
        };
        Ok(Some((PathBuf::from(backing), format.clone())))
    }

    fn into_layer(self, path: PathBuf, format: String) -> ImageLayer {
        let data = self.specific.map(|specific| specific.data).unwrap_or_default();
        ImageLayer {
            path,
            capacity_bytes: self.virtual_size,
            keeps_bitmaps: format == "qcow2" && data.data_file.is_none() && data.compat.as_deref() != Some("0.10"),
            has_data_file: data.data_file.is_some(),
            format,
            bitmaps: data.bitmaps.into_iter().map(|bitmap| Bitmap { name: bitmap.name, flags: bitmap.flags }).collect(),
        }
    }
}

fn qemu_img_info(path: &Path, format: &str) -> Result<ImageInfo> {
    let mut command = Command::new("qemu-img");
    command.args(["info", "--force-share", "--output=json", "-f", format, "--"]).arg(path);
    let output = run(command, path)?;
    if !output.status.success() {
        return Err(failed(path, String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| failed(path, error.to_string()))
}

/// Storage may hang, and the program with it.
fn run(mut command: Command, path: &Path) -> Result<Output> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    bounded::output(command, Group::Own, LIMIT, &bounded::ending()).map_err(|error| match error.kind() {
        ErrorKind::TimedOut => Error::TimedOut { action: format!("look at {}", path.display()), limit: LIMIT },
        ErrorKind::Interrupted => Error::Interrupted,
        _ => failed(path, error.to_string()),
    })
}

fn failed(path: &Path, message: String) -> Error {
    Error::Program { program: "qemu-img", subject: path.display().to_string(), message }
}
