//! Determines where a restore writes the small files: firmware variables, TPM state, kernel, initial RAM disk, and the
//! files that the definition references.
//!
//! The places come from the definition and from the user, never from the manifest.

use super::place::is_below_dev;
use super::planned::PlannedFile;
use super::preconditions::refuse_without_folder;
use super::request::RestoreRequest;
use super::small_file;
use crate::capture::domain_xml::definition::Nvram;
use crate::capture::domain_xml::tpm::{self, StatePlace};
use crate::capture::{Changes, Definition, DiskSource};
use crate::ops::manifest::{Manifest, ManifestFile, Role};
use crate::ops::{Error, Result};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The parameters that determine the places.
pub(super) struct SmallFiles<'a> {
    pub(super) request: &'a RestoreRequest,
    pub(super) definition: &'a Definition,
    /// The machine's new name and UUID.
    pub(super) machine: &'a str,
    pub(super) uuid: &'a str,
    /// Whether the machine is defined in libvirt.
    pub(super) define: bool,
    /// The folder of the first image.
    pub(super) beside: Option<PathBuf>,
}

impl SmallFiles<'_> {
    /// Returns the files to write, and the resulting changes of the definition.
    pub(super) fn plan(&self, manifest: &Manifest) -> Result<(Vec<PlannedFile>, Changes)> {
        let (mut files, mut moved) = (Vec::new(), Changes::default());
        for file in &manifest.files {
            let Some(planned) = self.place(file)? else { continue };
            match file.role {
                Role::Tpm => {
                    let state = if self.has_tpm_file() { Some(&*planned.path) } else { planned.path.parent() };
                    moved.tpm_state = state.filter(|state| Some(*state) != self.tpm_state_before()).map(Path::to_owned);
                }
                Role::Nvram if planned.network.is_none() => moved.nvram = self.moved(file, &planned),
                Role::Nvram => {}
                Role::Kernel => moved.kernel = self.moved(file, &planned),
                Role::Initrd => moved.initrd = self.moved(file, &planned),
            }
            self.check(&planned)?;
            files.push(planned);
        }
        let has_variables = manifest.files.iter().any(|file| file.role == Role::Nvram);
        if let (Some(_), false, Some(original)) =
            (&self.request.as_name, has_variables, self.nvram().and_then(Nvram::path))
        {
            // libvirt creates new variables at the first start; the original's are not shared.
            moved.nvram = Some(self.nvram_of_copy(original)?);
        }
        Ok((files, moved))
    }

    /// Plans the files that the definition references, to be written into a folder that the user specified. Returns the
    /// files to write and their new paths. Files that exist there with the same content are not written again.
    pub(super) fn plan_outside(
        &self,
        manifest: &Manifest,
        folder: &Path,
        read: &dyn Fn(&str) -> Result<Vec<u8>>,
    ) -> Result<(Vec<PlannedFile>, BTreeMap<PathBuf, PathBuf>)> {
        let (mut files, mut moved) = (Vec::new(), BTreeMap::new());
        for file in &manifest.outside_files {
            let path = folder.join(Path::new(&file.name).file_name().unwrap_or_default());
            let planned = PlannedFile {
                below: Some(folder.to_owned()),
                // Only root may change files that a machine is started with.
                mode: Some(file.mode & 0o755),
                ..PlannedFile::new(&file.name, path.clone())
            };
            if path != Path::new(&file.path) {
                moved.insert(PathBuf::from(&file.path), path.clone());
            }
            refuse_without_folder(&path)?;
            let place = small_file::place_of(&planned)?;
            let is_there_already = place.open(false).is_ok_and(|there| holds(there, &read(&file.name)));
            if !is_there_already {
                self.check(&planned)?;
                files.push(planned);
            }
        }
        Ok((files, moved))
    }

    /// Returns the place of a file, or `None` if the file is not written.
    fn place(&self, file: &ManifestFile) -> Result<Option<PlannedFile>> {
        let original = Path::new(&file.path);
        let into = self.request.into.as_deref();
        let at = |path: PathBuf, below: Option<&Path>| PlannedFile {
            below: below.map(Path::to_owned),
            ..PlannedFile::new(&file.name, path)
        };
        Ok(Some(match (file.role, into) {
            (Role::Tpm, _) if self.has_tpm_file() => {
                let (path, below) = self.tpm_file()?;
                let is_on_device = is_below_dev(&path);
                PlannedFile { is_on_device, ..at(path, below) }
            }
            (Role::Tpm, _) => {
                let (folder, below) = self.tpm_folder()?;
                let path = folder.join(original.file_name().unwrap_or_default());
                PlannedFile { makes_folder: true, ..at(path, below) }
            }
            (Role::Nvram, _) if self.request.as_name.is_some() || into.is_some() => {
                at(self.nvram_of_copy(original)?, into)
            }
            (Role::Nvram, _) => {
                let source = self.nvram().and_then(|nvram| nvram.source.clone());
                let is_block = matches!(source, Some(DiskSource::Block { .. }));
                let is_on_device = is_block || is_below_dev(original);
                let network = source.filter(|source| matches!(source, DiskSource::Network { .. }));
                PlannedFile { network, is_on_device, ..at(original.to_owned(), None) }
            }
            (Role::Kernel | Role::Initrd, Some(folder)) => {
                at(folder.join(format!("{}-{}", self.machine, file.name)), Some(folder))
            }
            // An existing kernel belongs to the host and is kept; a missing one is restored.
            (Role::Kernel | Role::Initrd, None) if original.exists() => return Ok(None),
            (Role::Kernel | Role::Initrd, None) => at(original.to_owned(), None),
        }))
    }

    /// The new path of a file, if it changed.
    fn moved(&self, file: &ManifestFile, planned: &PlannedFile) -> Option<PathBuf> {
        (planned.path != Path::new(&file.path)).then(|| planned.path.clone())
    }

    fn nvram(&self) -> Option<&Nvram> {
        self.definition.nvram.as_ref()
    }

    /// The firmware variables of a machine that is not restored to its old place.
    fn nvram_of_copy(&self, original: &Path) -> Result<PathBuf> {
        let name = format!("{}_VARS.fd", self.machine);
        match (&self.request.into, original.is_absolute() && !is_below_dev(original), &self.beside) {
            (Some(folder), ..) => Ok(folder.join(name)),
            (None, true, _) => Ok(original.with_file_name(name)),
            // The original variables were on a device or on the network.
            (None, false, Some(folder)) => Ok(folder.join(name)),
            (None, false, None) => Err(Error::NoFolder { path: name.into() }),
        }
    }

    /// Whether the TPM's state is a single file.
    fn has_tpm_file(&self) -> bool {
        self.definition.tpm.as_ref().is_some_and(|tpm| tpm.state_is_file)
    }

    /// Returns the file of the TPM's state, and the folder above it that the user specified.
    fn tpm_file(&self) -> Result<(PathBuf, Option<&Path>)> {
        let before = self.tpm_state_before().unwrap_or(Path::new("/"));
        let name = format!("{}.tpm", self.machine);
        match (self.request.into.as_deref(), &self.request.as_name, &self.beside) {
            (Some(into), ..) => Ok((into.join(name), Some(into))),
            (None, None, _) => Ok((before.to_owned(), None)),
            (None, Some(_), _) if !is_below_dev(before) => Ok((before.with_file_name(name), None)),
            (None, Some(_), Some(folder)) => Ok((folder.join(name), None)),
            (None, Some(_), None) => Err(Error::NoFolder { path: name.into() }),
        }
    }

    /// The path of the TPM's state in the definition, if it is set.
    fn tpm_state_before(&self) -> Option<&Path> {
        self.definition.tpm.as_ref()?.state_path.as_deref()
    }

    /// Returns the folder of the TPM's state, and the folder above it that the user specified. It is where the
    /// definition or libvirt expects the state, or next to the images if the machine is not defined.
    fn tpm_folder(&self) -> Result<(PathBuf, Option<&Path>)> {
        let named = self.tpm_state_before();
        let connect = self.request.connect.as_deref().filter(|_| self.define && named.is_none());
        let chosen = connect.and_then(|uri| match tpm::state_place(self.definition, uri, self.uuid)? {
            StatePlace::Folder(folder) | StatePlace::File(folder) => Some(folder),
        });
        let beside = format!("{}-tpm", self.machine);
        match (chosen, self.request.into.as_deref(), named) {
            (Some(folder), ..) => Ok((folder, None)),
            (None, Some(into), _) => Ok((into.join(beside), Some(into))),
            (None, None, Some(named)) if self.request.as_name.is_some() => Ok((named.with_file_name(beside), None)),
            (None, None, Some(named)) => Ok((named.to_owned(), None)),
            (None, None, None) => {
                let folder = self.beside.as_deref().ok_or_else(|| Error::NoFolder { path: PathBuf::from(&beside) })?;
                Ok((folder.join(beside), None))
            }
        }
    }

    /// Refuses a file that must not be overwritten, and a place that cannot be trusted.
    fn check(&self, planned: &PlannedFile) -> Result<()> {
        if planned.network.is_some() {
            // A file on network storage is assumed to exist.
            return match self.request.overwrite {
                true => Ok(()),
                false => Err(Error::Exists { path: planned.path.clone() }),
            };
        }
        if !planned.makes_folder {
            refuse_without_folder(&planned.path)?;
        } else if !planned.path.parent().is_some_and(Path::exists) {
            return Ok(());
        }
        let place = small_file::place_of(planned)?;
        if planned.is_on_device && !place.is_device() {
            return Err(Error::NoDeviceOfFile { name: planned.name.clone(), path: planned.path.clone() });
        }
        match place.kind().is_some() && !self.request.overwrite {
            true => Err(Error::Exists { path: planned.path.clone() }),
            false => Ok(()),
        }
    }
}

impl PlannedFile {
    /// A file with this target path.
    fn new(name: &str, path: PathBuf) -> PlannedFile {
        let name = name.to_owned();
        PlannedFile { name, path, below: None, network: None, is_on_device: false, makes_folder: false, mode: None }
    }
}

/// Whether a file has this content.
fn holds(file: File, bytes: &Result<Vec<u8>>) -> bool {
    let Ok(bytes) = bytes else { return false };
    let mut there = Vec::new();
    file.take(bytes.len() as u64 + 1).read_to_end(&mut there).is_ok() && there == *bytes
}
