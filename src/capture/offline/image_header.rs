//! Parses headers of image files without QEMU (pure).
//!
//! When QEMU opens an image, it opens every file that the header refers to. Headers are therefore parsed here first,
//! and the files are then opened explicitly or not at all ([`super::block_graph`]). Supported are qcow2
//! (`docs/interop/qcow2.txt` of QEMU), its first version, qed (`docs/interop/qed_spec.txt`) and vmdk. Images of other
//! formats refer to no other file.

use std::io;

use super::image_bytes::{HeaderBytes, ReadAt, broken};
use super::qcow2_end;
use crate::capture::images::Bitmap;

/// The size of the header that is read.
const HEADER_BYTES: usize = 64 << 10;
/// QEMU's limit for a bitmap directory.
const MAX_DIRECTORY_BYTES: u64 = 64 << 20;
/// QEMU's limit for the name of a backing file.
const MAX_BACKING_BYTES: usize = 1023;

/// The contents of an image's header.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Header {
    /// The size of the virtual disk; `None` if the start of the image does not contain it.
    pub(crate) capacity_bytes: Option<u64>,
    pub(crate) backing: Option<BackingName>,
    /// The external file with a qcow2 image's data.
    pub(crate) data_file: Option<String>,
    /// Whether the header refers to the files with its data (vmdk).
    pub(crate) has_extents: bool,
    /// Whether QEMU can keep bitmaps in the image.
    pub(crate) keeps_bitmaps: bool,
    /// Whether QEMU has marked the image as corrupt, and opens it read-only.
    pub(crate) is_corrupt: bool,
    /// Whether some of its data would be beyond its end, and reads as zeros (qcow2).
    pub(crate) is_cut_off: bool,
    /// The bitmaps in the image.
    pub bitmaps: Vec<Bitmap>,
}

/// The backing file according to a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BackingName {
    /// A path, a URL or a `json:` description.
    pub(crate) name: String,
    /// The format, if it is recorded.
    pub(crate) format: Option<String>,
}

/// Parses the header of an image of this format.
pub(crate) fn read(image: &dyn ReadAt, format: &str) -> io::Result<Header> {
    match format {
        "qcow2" => read_qcow2(image),
        "qcow" => read_qcow(image),
        "qed" => read_qed(image),
        "vmdk" => read_vmdk(image),
        _ => Ok(Header::default()),
    }
}

fn read_qcow2(image: &dyn ReadAt) -> io::Result<Header> {
    let bytes = HeaderBytes(image.read_at(0, HEADER_BYTES)?);
    let version = bytes.u32(4)?;
    if bytes.slice(0, 4)? != b"QFI\xfb" || !(2..=3).contains(&version) {
        return Err(broken("it is not a qcow2 image"));
    }
    let is_new = version >= 3;
    let incompatible = if is_new { bytes.u64(72)? } else { 0 };
    let autoclear = if is_new { bytes.u64(88)? } else { 0 };
    let has_data_file = incompatible & 4 != 0;
    let extensions = bytes.extensions(if is_new { bytes.u32(100)? as usize } else { 72 })?;
    let extension = |magic: u32| extensions.iter().find(|(kind, _)| *kind == magic).map(|(_, content)| *content);
    let text = |content: &[u8]| String::from_utf8_lossy(content).into_owned();
    let backing = backing_name(image, bytes.u64(8)?, bytes.u32(16)? as usize)?;
    // The bit is set if the program that last wrote the image supports bitmaps.
    let directory = extension(0x2385_2875).filter(|_| autoclear & 1 != 0);
    Ok(Header {
        capacity_bytes: Some(bytes.u64(24)?),
        backing: backing.map(|name| BackingName { name, format: extension(0xe279_2aca).map(text) }),
        data_file: has_data_file.then(|| extension(0x4441_5441).map(text).unwrap_or_default()),
        has_extents: false,
        keeps_bitmaps: is_new,
        is_corrupt: incompatible & 2 != 0,
        // The tables refer to offsets in the data file.
        is_cut_off: !has_data_file && qcow2_end::is_cut_off(image, &bytes),
        bitmaps: directory.map(|directory| read_bitmaps(image, directory)).transpose()?.unwrap_or_default(),
    })
}

fn read_bitmaps(image: &dyn ReadAt, extension: &[u8]) -> io::Result<Vec<Bitmap>> {
    let extension = HeaderBytes(extension.to_vec());
    let (count, size, offset) = (extension.u32(0)?, extension.u64(8)?, extension.u64(16)?);
    if size > MAX_DIRECTORY_BYTES {
        return Err(broken("its directory of bitmaps is too large"));
    }
    let directory = HeaderBytes(image.read_at(offset, size as usize)?);
    let (mut bitmaps, mut at) = (Vec::new(), 0);
    for _ in 0..count {
        let flags = directory.u32(at + 12)?;
        let (name_bytes, extra_bytes) = (directory.u16(at + 18)? as usize, directory.u32(at + 20)? as usize);
        let name = directory.slice(at + 24 + extra_bytes, name_bytes)?;
        let known = [(1, "in-use"), (2, "auto")];
        bitmaps.push(Bitmap {
            name: String::from_utf8_lossy(name).into_owned(),
            flags: known.into_iter().filter(|(bit, _)| flags & bit != 0).map(|(_, word)| word.to_owned()).collect(),
        });
        at += (24 + extra_bytes + name_bytes).next_multiple_of(8);
    }
    Ok(bitmaps)
}

fn read_qcow(image: &dyn ReadAt) -> io::Result<Header> {
    let bytes = HeaderBytes(image.read_at(0, 48)?);
    if bytes.slice(0, 4)? != b"QFI\xfb" || bytes.u32(4)? != 1 {
        return Err(broken("it is not a qcow image"));
    }
    let backing = backing_name(image, bytes.u64(8)?, bytes.u32(16)? as usize)?;
    Ok(Header {
        capacity_bytes: Some(bytes.u64(24)?),
        backing: backing.map(|name| BackingName { name, format: None }),
        ..Header::default()
    })
}

fn read_qed(image: &dyn ReadAt) -> io::Result<Header> {
    /// `QED_F_BACKING_FILE`, `QED_F_BACKING_FORMAT_NO_PROBE`
    const HAS_BACKING: u64 = 1;
    const BACKING_IS_RAW: u64 = 4;
    let bytes = HeaderBytes(image.read_at(0, 64)?);
    if bytes.slice(0, 4)? != b"QED\0" {
        return Err(broken("it is not a qed image"));
    }
    // The numbers of this format are little-endian.
    let features = bytes.u64(16)?.swap_bytes();
    let backing = match features & HAS_BACKING {
        0 => None,
        _ => backing_name(image, bytes.u32(56)?.swap_bytes().into(), bytes.u32(60)?.swap_bytes() as usize)?,
    };
    let format = (features & BACKING_IS_RAW != 0).then(|| "raw".to_owned());
    Ok(Header {
        capacity_bytes: Some(bytes.u64(48)?.swap_bytes()),
        backing: backing.map(|name| BackingName { name, format }),
        ..Header::default()
    })
}

/// Parses a vmdk image: a text that lists extents, or a sparse extent that contains this text.
fn read_vmdk(image: &dyn ReadAt) -> io::Result<Header> {
    const SECTOR_BYTES: u64 = 512;
    let bytes = HeaderBytes(image.read_at(0, HEADER_BYTES)?);
    let (descriptor, has_extents) = match bytes.slice(0, 4)? {
        b"KDMV" => {
            let number = |at| bytes.u64(at).map(u64::swap_bytes);
            let (offset, length) = (number(28)?, number(36)?);
            let length_bytes = length.saturating_mul(SECTOR_BYTES).min(HEADER_BYTES as u64) as usize;
            let text = match offset {
                0 => Vec::new(),
                offset => image.read_at(offset.saturating_mul(SECTOR_BYTES), length_bytes)?,
            };
            // Without a capacity, the file only wraps its text.
            (text, number(12)? == 0)
        }
        b"COWD" => (Vec::new(), false),
        _ => (bytes.0.clone(), true),
    };
    let descriptor = String::from_utf8_lossy(&descriptor);
    let parent = descriptor.lines().find_map(|line| line.strip_prefix("parentFileNameHint=\"")?.split('"').next());
    Ok(Header {
        backing: parent.map(|name| BackingName { name: name.to_owned(), format: None }),
        has_extents,
        ..Header::default()
    })
}

fn backing_name(image: &dyn ReadAt, offset: u64, length: usize) -> io::Result<Option<String>> {
    if offset == 0 || length == 0 {
        return Ok(None);
    }
    if length > MAX_BACKING_BYTES {
        return Err(broken("the name of its backing file is too long"));
    }
    let name = image.read_at(offset, length)?;
    if name.len() < length {
        return Err(broken("its header is truncated"));
    }
    Ok(Some(String::from_utf8_lossy(&name).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    impl ReadAt for Vec<u8> {
        fn read_at(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
            let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.len());
            Ok(self[from..from.saturating_add(length).min(self.len())].to_vec())
        }
    }

    /// Creates an image with `qemu-img`.
    fn made(arguments: &[&str]) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-u"])
            .args(arguments)
            .arg(&image)
            .arg("4M")
            .current_dir(folder.path())
            .status();
        assert!(made.unwrap().success());
        std::fs::read(image).unwrap()
    }

    #[test]
    fn headers_written_by_qemu_img_are_parsed() {
        let plain = read(&made(&["-f", "qcow2"]), "qcow2").unwrap();
        assert_eq!(plain, Header { capacity_bytes: Some(4 << 20), keeps_bitmaps: true, ..Header::default() });
        let old = read(&made(&["-f", "qcow2", "-o", "compat=0.10"]), "qcow2").unwrap();
        assert!(!old.keeps_bitmaps && old.capacity_bytes == Some(4 << 20));
        let backing = |name: &str, format: Option<&str>| {
            Some(BackingName { name: name.to_owned(), format: format.map(str::to_owned) })
        };
        let above = read(&made(&["-f", "qcow2", "-b", "/a/b.raw", "-F", "raw"]), "qcow2").unwrap();
        assert_eq!(above.backing, backing("/a/b.raw", Some("raw")));
        let qed = read(&made(&["-f", "qed", "-b", "/a/b.raw", "-F", "raw"]), "qed").unwrap();
        assert_eq!((qed.capacity_bytes, qed.backing), (Some(4 << 20), backing("/a/b.raw", Some("raw"))));
        let qcow = read(&made(&["-f", "qcow", "-b", "b", "-F", "raw"]), "qcow").unwrap();
        assert_eq!((qcow.capacity_bytes, qcow.backing), (Some(4 << 20), backing("b", None)));
    }

    #[test]
    fn bitmaps_and_data_files_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        let qemu_img = |arguments: &[&str]| {
            let done = Command::new("qemu-img").args(arguments).current_dir(folder.path()).status();
            assert!(done.unwrap().success(), "{arguments:?}");
        };
        qemu_img(&["create", "-q", "-f", "qcow2", "image", "4M"]);
        qemu_img(&["bitmap", "--add", "image", "one"]);
        qemu_img(&["bitmap", "--add", "--disable", "image", "another-bitmap"]);
        let header = read(&std::fs::read(&image).unwrap(), "qcow2").unwrap();
        let flags = |name: &str| header.bitmaps.iter().find(|bitmap| bitmap.name == name).unwrap().flags.clone();
        assert_eq!(header.bitmaps.len(), 2);
        assert_eq!((flags("one"), flags("another-bitmap")), (vec!["auto".to_owned()], vec![]));
        qemu_img(&["create", "-q", "-f", "qcow2", "-o", "data_file=data.raw", "image", "4M"]);
        let header = read(&std::fs::read(&image).unwrap(), "qcow2").unwrap();
        assert_eq!((header.data_file.as_deref(), header.keeps_bitmaps), (Some("data.raw"), true));
    }

    #[test]
    fn vmdk_extents_and_parents_are_found() {
        let of =
            |subformat: &str| read(&made(&["-f", "vmdk", "-o", &format!("subformat={subformat}")]), "vmdk").unwrap();
        assert!(of("monolithicFlat").has_extents && of("twoGbMaxExtentSparse").has_extents);
        assert_eq!(of("monolithicSparse"), Header::default());
        let child = b"# Disk DescriptorFile\nparentFileNameHint=\"/a/base.vmdk\"\n".to_vec();
        let backing = BackingName { name: "/a/base.vmdk".into(), format: None };
        assert_eq!(read(&child, "vmdk").unwrap().backing, Some(backing));
    }

    #[test]
    fn truncated_headers_and_other_formats_are_errors() {
        let image = made(&["-f", "qcow2", "-b", "/a/b.raw", "-F", "raw"]);
        for length in [0, 4, 60, 103] {
            assert!(read(&image[..length].to_vec(), "qcow2").is_err(), "{length}");
        }
        for format in ["qcow2", "qcow", "qed"] {
            assert!(read(&vec![0; 4096], format).is_err(), "{format}");
        }
    }

    fn run_on(program: &str, arguments: &[&str], image: &std::path::Path) {
        let ran = Command::new(program).args(arguments).arg(image).status();
        assert!(ran.unwrap().success(), "{program} {arguments:?}");
    }

    fn is_cut_off(image: &[u8]) -> bool {
        read(&image.to_vec(), "qcow2").unwrap().is_cut_off
    }

    #[test]
    fn only_truncated_images_are_reported_as_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        let options = ["compat=1.1", "compat=0.10", "cluster_size=512", "cluster_size=2M", "extended_l2=on"];
        let more = ["refcount_bits=1", "refcount_bits=64", "preallocation=metadata", "lazy_refcounts=on"];
        for option in options.into_iter().chain(more) {
            let _ = std::fs::remove_file(&image);
            let qcow2 = ["create", "-q", "-f", "qcow2", "-o", option];
            let made = Command::new("qemu-img").args(qcow2).arg(&image).arg("8M").status();
            assert!(made.unwrap().success(), "{option}");
            assert!(!is_cut_off(&std::fs::read(&image).unwrap()), "{option}: empty");
            let write =
                ["-f", "qcow2", "-c", "write -q -P 1 0 64k", "-c", "write -q -P 2 6M 1M", "-c", "write -q -z 2M 1M"];
            run_on("qemu-io", &write, &image);
            let bytes = std::fs::read(&image).unwrap();
            assert!(!is_cut_off(&bytes), "{option}");
            assert!(is_cut_off(&bytes[..bytes.len() / 2]), "{option}: half");
        }
    }

    #[test]
    fn counted_but_unreferenced_cluster_is_not_reported_as_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        let made = Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&image).arg("8M").status();
        assert!(made.unwrap().success());
        run_on("qemu-io", &["-f", "qcow2", "-c", "write -q -P 1 0 1M"], &image);
        let mut bytes = std::fs::read(&image).unwrap();
        // The third cluster has 16-bit reference counts. The first entry of the refcount table refers to it.
        let counts = u64::from_be_bytes(bytes[0x10000..0x10008].try_into().unwrap()) as usize;
        let behind = bytes.len().div_ceil(0x10000) + 3;
        bytes[counts + behind * 2 + 1] = 1;
        assert!(!is_cut_off(&bytes));
        assert!(is_cut_off(&bytes[..bytes.len() - 0x20000]));
    }
}
