//! Where a restore puts what is no disk: firmware variables, TPM state, kernel and initial RAM disk.
//!
//! The places come from the definition and from the user, never from the manifest.

use super::planned::PlannedFile;
use super::preconditions::refuse_without_folder;
use super::request::RestoreRequest;
use super::small_file;
use crate::capture::domain_xml::tpm;
use crate::capture::{Changes, Definition};
use crate::ops::manifest::{Manifest, ManifestFile, Role};
use crate::ops::{Error, Result};
use std::path::{Path, PathBuf};

/// What decides on their places.
pub(super) struct SmallFiles<'a> {
    pub(super) request: &'a RestoreRequest,
    pub(super) definition: &'a Definition,
    /// The machine's name and UUID from now on.
    pub(super) machine: &'a str,
    pub(super) uuid: &'a str,
    /// Whether libvirt gets the definition.
    pub(super) define: bool,
    /// The folder of the first image.
    pub(super) beside: Option<PathBuf>,
}

impl SmallFiles<'_> {
    /// The files that are written, and what becomes of the definition by that.
    pub(super) fn plan(&self, manifest: &Manifest) -> Result<(Vec<PlannedFile>, Changes)> {
        let (mut files, mut moved) = (Vec::new(), Changes::default());
        for file in &manifest.files {
            let Some(planned) = self.place(file)? else { continue };
            match file.role {
                Role::Tpm => {
                    let folder = planned.path.parent().filter(|folder| Some(*folder) != self.tpm_folder_before());
                    moved.tpm_state = folder.map(Path::to_owned);
                }
                Role::Nvram => moved.nvram = self.moved(file, &planned),
                Role::Kernel => moved.kernel = self.moved(file, &planned),
                Role::Initrd => moved.initrd = self.moved(file, &planned),
            }
            self.check(&planned)?;
            files.push(planned);
        }
        let has_variables = manifest.files.iter().any(|file| file.role == Role::Nvram);
        if let (Some(_), false, Some(original)) = (&self.request.as_name, has_variables, self.nvram()) {
            // libvirt makes new ones at the first start: those of the original are not shared.
            moved.nvram = Some(self.nvram_of_copy(original));
        }
        Ok((files, moved))
    }

    /// Where a file goes; none for one that is not written.
    fn place(&self, file: &ManifestFile) -> Result<Option<PlannedFile>> {
        let original = Path::new(&file.path);
        let into = self.request.into.as_deref();
        let (path, below) = match (file.role, into) {
            (Role::Tpm, _) => {
                let (folder, below) = self.tpm_folder()?;
                (folder.join(original.file_name().unwrap_or_default()), below)
            }
            (Role::Nvram, _) => match self.request.as_name.is_some() || into.is_some() {
                true => (self.nvram_of_copy(original), into),
                false => (original.to_owned(), None),
            },
            (Role::Kernel | Role::Initrd, Some(folder)) => {
                (folder.join(format!("{}-{}", self.machine, file.name)), Some(folder))
            }
            // A kernel that is still there is the host's; one that is gone is put back.
            (Role::Kernel | Role::Initrd, None) if original.exists() => return Ok(None),
            (Role::Kernel | Role::Initrd, None) => (original.to_owned(), None),
        };
        let (name, role, below) = (file.name.clone(), file.role, below.map(Path::to_owned));
        Ok(Some(PlannedFile { name, role, path, below }))
    }

    /// The new path of a file, where it is another one.
    fn moved(&self, file: &ManifestFile, planned: &PlannedFile) -> Option<PathBuf> {
        (planned.path != Path::new(&file.path)).then(|| planned.path.clone())
    }

    fn nvram(&self) -> Option<&Path> {
        self.definition.nvram.as_ref()?.path.as_deref()
    }

    /// The firmware variables of a machine that is not in its old place.
    fn nvram_of_copy(&self, original: &Path) -> PathBuf {
        let name = format!("{}_VARS.fd", self.machine);
        match &self.request.into {
            Some(folder) => folder.join(name),
            None => original.with_file_name(name),
        }
    }

    /// The folder of the TPM's state that the definition names, if it names one.
    fn tpm_folder_before(&self) -> Option<&Path> {
        self.definition.tpm.as_ref()?.state_path.as_deref()
    }

    /// Where a TPM's state goes, and the folder above that the user named: to where the definition or libvirt will look for
    /// it; without libvirt beside the images.
    fn tpm_folder(&self) -> Result<(PathBuf, Option<&Path>)> {
        let named = self.tpm_folder_before();
        let connect = self.request.connect.as_deref().filter(|_| self.define && named.is_none());
        let chosen = connect.and_then(|uri| tpm::state_folder(self.definition, uri, self.uuid));
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

    /// Refuses what must not be written over, and a place that cannot be trusted.
    fn check(&self, planned: &PlannedFile) -> Result<()> {
        if planned.role != Role::Tpm {
            refuse_without_folder(&planned.path)?;
        } else if !planned.path.parent().is_some_and(Path::exists) {
            return Ok(());
        }
        let is_there = small_file::place_of(planned)?.kind().is_some();
        match is_there && !self.request.overwrite {
            true => Err(Error::Exists { path: planned.path.clone() }),
            false => Ok(()),
        }
    }
}
