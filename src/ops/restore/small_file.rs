//! Writes firmware variables, TPM state, kernel, initrd and other small files to their places.
//!
//! libvirt gives the folders of these files to the users that QEMU and swtpm run as, who could put links there.
//! Therefore [`crate::capture::parts::safe_path`] opens each folder on the path, and the folder is held open until the
//! restore is over instead of being looked up again.

use super::planned::PlannedFile;
use super::target::{Destination, Looks, PartialFile, Placed};
use crate::capture::parts::safe_path::{self, OpenFolder, ResolvedPath};
use crate::capture::{self, DiskSource, Hypervisor};
use crate::ops::{Error, Result};
use std::ffi::OsString;
use std::fs::File;
use std::io::{ErrorKind, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A small file that is complete but not in its place yet.
pub(super) enum SmallFile {
    /// Written to a temporary file next to its place.
    Beside { temporary: PartialFile, at: Destination, overwrite: bool, looks: Looks },
    /// To be written to a device, which is large enough.
    Device { device: File, bytes: Vec<u8>, at: Destination },
    /// To be written to network storage.
    Network { source: DiskSource, bytes: Vec<u8> },
}

impl SmallFile {
    /// Writes a file of a point to a temporary file next to its place.
    pub(super) fn create(file: &PlannedFile, bytes: Vec<u8>, overwrite: bool) -> Result<SmallFile> {
        if let Some(source) = &file.network {
            return Ok(SmallFile::Network { source: source.clone(), bytes });
        }
        let place = place_of(file)?;
        let at = Destination::anchored(&place);
        if !place.is_device() {
            refuse_device(&place)?;
            let looks = file.mode.map_or(Looks::OfReplaced, Looks::Mode);
            return SmallFile::beside(at, &bytes, overwrite, looks);
        }
        let mut device = place.open_device()?;
        let size_bytes = device.seek(SeekFrom::End(0)).map_err(Error::io("size", &at.path))?;
        if size_bytes < bytes.len() as u64 {
            let reason = format!("it has {size_bytes} bytes and {} has {}", file.name, bytes.len());
            return Err(Error::BadTarget { disk: file.name.clone(), path: at.path, reason });
        }
        Ok(SmallFile::Device { device, bytes, at })
    }

    /// Writes a file that only its owner may read, next to its place, in a folder that nobody else can write to.
    pub(super) fn create_private(path: &Path, bytes: &[u8], overwrite: bool) -> Result<SmallFile> {
        SmallFile::beside(Destination::new(path), bytes, overwrite, Looks::Private)
    }

    fn beside(at: Destination, bytes: &[u8], overwrite: bool, looks: Looks) -> Result<SmallFile> {
        let mut temporary = PartialFile::create(&at)?;
        let file = temporary.file();
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(Error::io("write", &at.path))?;
        Ok(SmallFile::Beside { temporary, at, overwrite, looks })
    }

    /// Moves the file to its place. Files on network storage are written by this hypervisor.
    pub(super) fn place(self, connect: &dyn Fn() -> capture::Result<Hypervisor>) -> Result<Placed> {
        match self {
            SmallFile::Network { source, bytes } => {
                connect()?.write_network_file(&source, &bytes)?;
                Ok(Placed::in_place(Destination::new(Path::new(&source.address()))))
            }
            SmallFile::Beside { temporary, at, overwrite, looks } => Placed::put(temporary, at, overwrite, looks),
            SmallFile::Device { device, bytes, at } => {
                let written = device.write_all_at(&bytes, 0).and_then(|()| device.sync_all());
                written.map_err(Error::io("write", &at.path))?;
                Ok(Placed::in_place(at))
            }
        }
    }
}

/// Returns the place of a small file. A path that the user specified is trusted, including its links; a path from the
/// definition is trusted only as far as it leads through folders that only root can change.
pub(super) fn place_of(file: &PlannedFile) -> Result<ResolvedPath> {
    let Some(below) = &file.below else {
        return Ok(safe_path::place_for_writing(&file.path)?);
    };
    let mut folder = OpenFolder::open_named(below)?;
    let mut names = names_below(&file.path, below);
    let name = names.pop().unwrap_or_default();
    for name in names {
        let missing = || Error::NoFolder { path: folder.path().join(&name) };
        folder = folder.subfolder(&name)?.ok_or_else(missing)?;
    }
    Ok(folder.place(&name)?)
}

fn names_below(path: &Path, below: &Path) -> Vec<OsString> {
    let rest = path.strip_prefix(below).unwrap_or(path);
    rest.components().map(|component| component.as_os_str().to_owned()).collect()
}

/// Refuses to write to or replace a device that QEMU's user could have put there.
fn refuse_device(place: &ResolvedPath) -> Result<()> {
    use std::os::unix::fs::FileTypeExt;
    match place.kind() {
        Some(kind) if kind.is_block_device() || kind.is_char_device() => {
            let reason = "it is a device in a folder that users other than root can write to".to_owned();
            Err(crate::capture::Error::UnsafePath { path: place.path(), reason }.into())
        }
        _ => Ok(()),
    }
}

/// Folders created for a TPM's state. They are removed unless they are kept.
pub(super) struct NewFolders(Vec<(OpenFolder, OsString)>);

impl NewFolders {
    /// Creates the missing folders as libvirt does: swtpm's user may traverse all of them and owns the last one.
    pub(super) fn create(files: &[PlannedFile]) -> Result<NewFolders> {
        let mut made = NewFolders(Vec::new());
        for file in files.iter().filter(|file| file.makes_folder) {
            let wanted = file.path.parent().unwrap_or(Path::new("/"));
            let (mut folder, mut missing) = nearest(wanted, file.below.as_deref())?;
            while !missing.is_empty() {
                let name = missing.remove(0);
                let mode = if missing.is_empty() { 0o700 } else { 0o711 };
                let new = folder.create(&name, mode)?;
                made.0.push((folder, name));
                folder = new;
            }
        }
        Ok(made)
    }

    pub(super) fn keep(mut self) {
        self.0.clear();
    }
}

/// Returns the nearest existing folder on the path, and the names that are missing below it.
fn nearest(wanted: &Path, below: Option<&Path>) -> Result<(OpenFolder, Vec<OsString>)> {
    if let Some(below) = below {
        let mut folder = OpenFolder::open_named(below)?;
        let mut names = names_below(wanted, below);
        while let Some(name) = names.first() {
            let Some(next) = folder.subfolder(name)? else { break };
            folder = next;
            names.remove(0);
        }
        return Ok((folder, names));
    }
    let mut missing = Vec::new();
    for ancestor in wanted.ancestors() {
        match OpenFolder::open(ancestor) {
            Ok(folder) => return Ok((folder, missing)),
            Err(crate::capture::Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                missing.splice(0..0, ancestor.file_name().map(OsString::from));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(Error::NoFolder { path: wanted.to_owned() })
}

impl Drop for NewFolders {
    fn drop(&mut self) {
        // The files in them were removed before. Folders that are not empty contain files of others and stay.
        for (folder, name) in self.0.iter().rev() {
            let _ = folder.remove_folder(name);
        }
    }
}
