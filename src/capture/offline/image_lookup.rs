//! Reads image headers on this host for the block graph of a disk.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::OFlags;
use serde_json::{Map, Value, json};

use super::backing_string::LayerPlace;
use super::block_graph::{self, Found, ImageLookup};
use super::image_bytes::ReadAt;
use super::image_header::{self, BackingName, Header};
use super::qemu_user::{Privilege, QemuUser};
use crate::bounded::{self, Group};
use crate::capture::domain_xml::definition::{DefinedDisk, Definition};
use crate::capture::domain_xml::source::{DiskSource, Slice};
use crate::capture::error::{Error, LibvirtErrorKind, Result};
use crate::capture::images;
use crate::capture::machine::Machine;

/// The time limit for `qemu-img` to report whether it has a driver.
const DRIVER_LIMIT: Duration = Duration::from_secs(10);

/// Inspects images for a machine, as its QEMU's user if root may not.
pub(crate) struct HostImages<'a> {
    pub(crate) machine: &'a Machine,
    pub(crate) user: QemuUser,
}

impl ImageLookup for HostImages<'_> {
    fn resolve(&self, source: &DiskSource) -> Result<DiskSource> {
        self.machine.resolve(source)
    }

    fn header(&self, place: &LayerPlace, format: &str, slice: Option<Slice>) -> Result<Header> {
        match place {
            LayerPlace::Path(path) => local_header(path, format, slice, self.user),
            // Raw images do not refer to other files.
            LayerPlace::Network(_) if format == "raw" => Ok(Header::default()),
            LayerPlace::Network(options) => network_header(options, format, slice, self.user),
        }
    }

    fn is_device(&self, path: &Path) -> bool {
        fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device())
    }
}

/// Reads the header of an image on this host.
pub fn read_header(path: &Path, format: &str) -> Result<Header> {
    local_header(path, format, None, QemuUser::ourselves())
}

fn local_header(path: &Path, format: &str, slice: Option<Slice>, user: QemuUser) -> Result<Header> {
    let offset_bytes = slice.map_or(0, |slice| slice.offset_bytes);
    let read = |image: &dyn ReadAt| image_header::read(&ImageWithin { image, offset_bytes }, format);
    let header = match open(path) {
        Ok(file) => read(&file),
        // Network storage may deny access to root.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => read(&AsUser { path, user }),
        Err(error) => Err(error),
    };
    header.map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => {
            Error::DamagedImage { image: path.display().to_string(), reason: format!("{error} ({format})") }
        }
        _ => Error::io("open", path)(error),
    })
}

fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path)?;
    let kind = file.metadata()?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(io::Error::other("it is neither a file nor a block device"));
    }
    Ok(file)
}

impl ReadAt for File {
    fn read_at(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let (mut bytes, mut filled) = (vec![0; length], 0);
        while filled < length {
            match FileExt::read_at(self, &mut bytes[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }
}

/// An image that starts at an offset in a file.
struct ImageWithin<'a> {
    image: &'a dyn ReadAt,
    offset_bytes: u64,
}

impl ReadAt for ImageWithin<'_> {
    fn read_at(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        self.image.read_at(offset.saturating_add(self.offset_bytes), length)
    }
}

/// A file that is read as another user.
struct AsUser<'a> {
    path: &'a Path,
    user: QemuUser,
}

impl ReadAt for AsUser<'_> {
    fn read_at(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut input = std::ffi::OsString::from("if=");
        input.push(self.path);
        let mut command = as_user(self.user, "dd");
        command.arg(input).args([format!("skip={offset}"), format!("count={length}")]);
        let output = command.args(["iflag=skip_bytes,count_bytes,fullblock", "bs=64K", "status=none"]).output()?;
        if !output.status.success() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(output.stdout)
    }
}

fn as_user(user: QemuUser, program: &str) -> Command {
    let mut words = user.launcher(Privilege::ReadAll);
    words.push(program.to_owned());
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).stdin(Stdio::null()).current_dir("/").env("LC_ALL", "C");
    command
}

/// Reads the header of an image on the network with QEMU, which opens it without its backing file.
fn network_header(options: &Map<String, Value>, format: &str, slice: Option<Slice>, user: QemuUser) -> Result<Header> {
    let mut file = Value::Object(options.clone());
    if let Some(slice) = slice {
        file = json!({ "driver": "raw", "offset": slice.offset_bytes, "size": slice.size_bytes, "file": file });
    }
    let mut image = json!({ "driver": format, "file": file });
    if matches!(format, "qcow2" | "qcow" | "qed" | "vmdk") {
        image["backing"] = Value::Null;
    }
    let address = Value::Object(options.clone()).to_string();
    let info = images::qemu_img_info(as_user(user, "qemu-img"), &format!("json:{image}"), None, &address)?;
    if info.data_file().is_some() {
        let reason = "an image on the network with a data file can be read only while the machine runs".to_owned();
        return Err(Error::UnsupportedImage { image: address, reason });
    }
    Ok(Header {
        capacity_bytes: Some(info.virtual_size),
        backing: info.backing.map(|name| BackingName { name, format: info.backing_format }),
        ..Header::default()
    })
}

/// Whether QEMU lacks a driver of this name, because distributions package drivers separately. Nothing is opened: an
/// existing driver reports that its options are missing. The name may come from the header of an image, so invalid
/// names are not passed on.
pub(crate) fn is_unknown_to_qemu(driver: &str) -> bool {
    if !driver.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-_".contains(&byte)) {
        return false;
    }
    let mut command = Command::new("qemu-img");
    command.args(["info", "--image-opts", &format!("driver={driver}")]).stderr(Stdio::piped());
    let output = bounded::output(command, Group::Own, DRIVER_LIMIT, &bounded::ending());
    output.is_ok_and(|output| String::from_utf8_lossy(&output.stderr).contains("Unknown driver"))
}

impl Machine {
    /// Resolves a volume of a storage pool to its file or device.
    pub(crate) fn resolve(&self, source: &DiskSource) -> Result<DiskSource> {
        let DiskSource::Volume { pool, volume } = source else {
            return Ok(source.clone());
        };
        let action = || format!("look up volume {volume} of storage pool {pool}");
        let (wanted, name) = (pool.clone(), volume.clone());
        let found = self.call(action, move |domain| crate::capture::connection::volume_path(domain, &wanted, &name));
        let path = found.map_err(|error| match error.meaning() {
            LibvirtErrorKind::InvalidState => Error::PoolNotRunning { pool: pool.clone(), volume: volume.clone() },
            _ => error,
        })?;
        let is_block = fs::metadata(&path).is_ok_and(|found| found.file_type().is_block_device());
        Ok(if is_block { DiskSource::Block { path } } else { DiskSource::File { path } })
    }

    /// Returns the files and devices of this host that a disk's image depends on: its backing files, and data files.
    pub(crate) fn paths_below(&self, definition: &Definition, disk: &DefinedDisk) -> Result<Vec<PathBuf>> {
        let user = QemuUser::of(self, definition, std::iter::once(disk))?;
        let layers = block_graph::chain(disk, &HostImages { machine: self, user })?;
        let image = layers.first().and_then(|top| top.storage.path());
        Ok(layers.iter().flat_map(Found::paths).filter(|path| Some(*path) != image).map(PathBuf::from).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_driver_is_distinguished_from_missing_options() {
        assert!(is_unknown_to_qemu("sheepdog"), "QEMU has had none for it since version 6.0");
        assert!(!is_unknown_to_qemu("nbd") && !is_unknown_to_qemu("file"));
        assert!(!is_unknown_to_qemu("sheepdog,x-option=1"), "an option was passed on");
    }
}
