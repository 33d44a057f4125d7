//! Image files: the identity of a layer, and the bitmaps in an image.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::bounded::{self, Group};
use crate::capture::error::{Error, Result};
use crate::capture::holders;

/// The time limit for `qemu-img`, which only reads or writes a few blocks.
const LIMIT: Duration = Duration::from_secs(60);

/// The identity of the file behind a layer of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageIdentity {
    /// The path, or the address if there is no path.
    pub path: String,
    pub(crate) format: String,
    /// The device number of the file system; 0 for anything but a local file.
    pub(crate) device: u64,
    /// The inode number; for a block device, its device number.
    pub inode: u64,
    /// The size of the file.
    pub(crate) size_bytes: u64,
    /// The modification time, in nanoseconds since 1970.
    pub(crate) modified_ns: i64,
    /// The creation time, if the file system records it: inode numbers are reused after a file is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) born_ns: Option<i64>,
    /// Whether it is the data file of the layer before it, and thus changes whenever the guest writes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) is_data_file: bool,
}

/// A change of a layer by kvmb itself that left the guest's data as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OwnChange {
    pub(crate) before: ImageIdentity,
    pub(crate) after: ImageIdentity,
}

/// The owner and permissions of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageOwner {
    pub(crate) user: u32,
    pub(crate) group: u32,
    /// The permissions: the lower nine bits of the mode.
    pub(crate) mode: u32,
}

/// Returns the current owner of an image, or `None` if it is not a regular file.
pub(crate) fn owner_of(path: &Path) -> Option<ImageOwner> {
    let found = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    Some(ImageOwner { user: found.uid(), group: found.gid(), mode: found.mode() & 0o777 })
}

/// Returns why an image and its layers are not those of the parent point. `None` if they are, even if the guest has
/// written to the image since, or kvmb has deleted bitmaps in the layers.
pub(crate) fn mismatch(now: &[ImageIdentity], own: &[OwnChange], then: &[ImageIdentity]) -> Option<String> {
    let (Some(top_now), Some(top_then)) = (now.first(), then.first()) else {
        return Some("the parent point does not record its image".into());
    };
    let is_reborn = matches!((top_now.born_ns, top_then.born_ns), (Some(now), Some(then)) if now != then);
    if (&top_now.path, top_now.inode) != (&top_then.path, top_then.inode) || is_reborn {
        return Some(format!("the image is not the one of the parent point ({})", top_then.path));
    }
    let below = |layers: &[ImageIdentity]| -> Vec<(PathBuf, u64, u64, i64)> {
        let identity = |(at, layer): (usize, &ImageIdentity)| {
            // The guest writes to the data file of the top image, so its size and time change.
            let is_written = at == 0 && layer.is_data_file;
            let (size_bytes, modified_ns) = if is_written { (0, 0) } else { (layer.size_bytes, layer.modified_ns) };
            (plain(&layer.path), layer.inode, size_bytes, modified_ns)
        };
        layers[1..].iter().enumerate().map(identity).collect()
    };
    let after_own = |layer: &ImageIdentity| {
        let change = own.iter().find(|change| change.before == *layer);
        change.map_or(layer, |change| &change.after).clone()
    };
    let then: Vec<_> = then.iter().map(after_own).collect();
    (below(now) != below(&then)).then(|| "a backing file has changed since the parent point".into())
}

/// Removes `.` from a path: libvirt and kvmb join the relative names of a backing chain differently.
fn plain(path: &str) -> PathBuf {
    match path.starts_with('/') {
        true => Path::new(path).components().collect(),
        false => path.into(),
    }
}

/// A bitmap in a qcow2 image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bitmap {
    pub name: String,
    /// Its flags: exactly `["auto"]` if it is enabled and consistent.
    pub(crate) flags: Vec<String>,
}

impl Bitmap {
    /// Whether it has recorded all changes: it is enabled and was closed properly.
    pub(crate) fn is_usable(&self) -> bool {
        self.flags == ["auto"]
    }

    /// Whether the last process that had the image open closed the bitmap properly.
    pub(crate) fn was_closed(&self) -> bool {
        self.flags.iter().all(|flag| flag != "in-use")
    }
}

/// Returns the size of the disk at an NBD URI.
pub(crate) fn size_of_export(nbd_uri: &str) -> Result<u64> {
    Ok(qemu_img_info(Command::new("qemu-img"), nbd_uri, Some("raw"), nbd_uri)?.virtual_size)
}

/// Returns the current identity of a file.
pub(crate) fn identify(path: &Path, format: &str) -> Result<ImageIdentity> {
    let found = fs::metadata(path).map_err(Error::io("access", path))?;
    let block = found.file_type().is_block_device();
    Ok(ImageIdentity {
        path: path.to_string_lossy().into_owned(),
        format: format.to_owned(),
        device: found.dev(),
        inode: if block { found.rdev() } else { found.ino() },
        size_bytes: found.size(),
        modified_ns: found.mtime().saturating_mul(1_000_000_000).saturating_add(found.mtime_nsec()),
        born_ns: born_ns(&found),
        is_data_file: false,
    })
}

fn born_ns(found: &fs::Metadata) -> Option<i64> {
    let since = found.created().ok()?.duration_since(UNIX_EPOCH).ok()?;
    i64::try_from(since.as_nanos()).ok()
}

/// Adds a bitmap to a qcow2 image, which records changes from then on. QEMU's image locks make this fail if the image
/// is open.
pub(crate) fn add_bitmap(path: &Path, name: &str) -> Result<()> {
    qemu_img_bitmap("--add", path, name, None)
}

/// Removes a bitmap, even a broken one, from a qcow2 image. This fails if the image is open.
///
/// `data_bytes` is the size of an image whose data is in an external file.
pub(crate) fn remove_bitmap(path: &Path, name: &str, data_bytes: Option<u64>) -> Result<()> {
    qemu_img_bitmap("--remove", path, name, data_bytes)
}

/// Opens the image without its backing file and data file, which its header may name wrongly.
fn qemu_img_bitmap(action: &str, path: &Path, name: &str, data_bytes: Option<u64>) -> Result<()> {
    let is_device = fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device());
    // Not every file system has image locks, and they do not protect a device.
    let writers = holders::writers_of(std::iter::once(path));
    if let Some(writer) = writers.iter().find(|writer| is_device || writer.locks_files()) {
        return Err(failed(path, format!("it is open for writing in {writer}")));
    }
    let driver = if is_device { "host_device" } else { "file" };
    let mut image = json!({ "driver": "qcow2", "file": { "driver": driver, "filename": path }, "backing": null });
    if let Some(size) = data_bytes {
        image["data-file"] = json!({ "driver": "null-co", "size": size });
    }
    let mut command = Command::new("qemu-img");
    command.args(["bitmap", action, "--"]).arg(format!("json:{image}")).arg(name);
    let output = run(command, path)?;
    if !output.status.success() {
        return Err(failed(path, String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(())
}

/// The output of `qemu-img info` for an image.
#[derive(Deserialize)]
pub(super) struct Info {
    /// The size of the virtual disk.
    #[serde(rename = "virtual-size")]
    pub(super) virtual_size: u64,
    /// The backing file, as spelled in the header.
    #[serde(rename = "backing-filename")]
    pub(super) backing: Option<String>,
    /// The format of the backing file, if it is recorded.
    #[serde(rename = "backing-filename-format")]
    pub(super) backing_format: Option<String>,
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
    #[serde(rename = "data-file")]
    data_file: Option<String>,
}

impl Info {
    /// The external data file.
    pub(super) fn data_file(&self) -> Option<&str> {
        self.specific.as_ref()?.data.data_file.as_deref()
    }
}

/// Runs a `qemu-img info` on an image. Messages name the image `subject`.
pub(super) fn qemu_img_info(mut qemu_img: Command, image: &str, format: Option<&str>, subject: &str) -> Result<Info> {
    let subject = Path::new(subject);
    qemu_img.args(["info", "--force-share", "--output=json"]);
    if let Some(format) = format {
        qemu_img.args(["-f", format]);
    }
    qemu_img.arg("--").arg(image);
    let output = run(qemu_img, subject)?;
    if !output.status.success() {
        return Err(failed(subject, String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| failed(subject, error.to_string()))
}

/// Storage may hang, and the program with it, so there is a time limit.
fn run(mut command: Command, path: &Path) -> Result<Output> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    bounded::output(command, Group::Own, LIMIT, &bounded::ending()).map_err(|error| match error.kind() {
        ErrorKind::TimedOut => Error::TimedOut { action: format!("access {}", path.display()), limit: LIMIT },
        ErrorKind::Interrupted => Error::Interrupted,
        _ => Error::NotStarted { program: "qemu-img", source: error },
    })
}

fn failed(path: &Path, message: String) -> Error {
    Error::Program { program: "qemu-img", subject: path.display().to_string(), message }
}
