//! Copies the parts of a machine other than disks: firmware variables, TPM state, kernel and initial RAM disk of a
//! direct boot, and the other files that the definition references.
//!
//! The files are in folders that QEMU's or swtpm's user can write to, so they are opened by
//! [`crate::capture::parts::safe_path`] and read only up to a limit. A file that cannot be read never prevents a
//! backup: the capture is made without it, and the state records what is missing.
//!
//! | file | consequence if it is missing |
//! | --- | --- |
//! | firmware variables, TPM state, kernel, initrd | the machine is incomplete ([`MissingPart`]) |
//! | others ([`outside_files`](crate::capture::domain_xml::outside_files)) | the host or a package may have it ([`OutsideLeftOut`]) |

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::capture::domain_xml::definition::{Definition, DiskSource, Nvram};
use crate::capture::domain_xml::outside_files::{OutsideFile, outside_files};
use crate::capture::domain_xml::tpm::{self, StatePlace};
use crate::capture::error::{Error, Result};
use crate::capture::machine::Machine;
use crate::capture::offline::offline_changes;
use crate::capture::parts::network_file;
use crate::capture::parts::safe_path::{self, OpenFolder};
use crate::capture::state::{
    CaptureFile, CaptureState, CopiedFile, FileRole, MissingPart, OutsideCopy, OutsideLeftOut,
};

/// Firmware variables have at most 64 MiB (on AArch64), and qcow2 adds a little.
const LARGEST_NVRAM_BYTES: u64 = 128 << 20;
/// Larger files of a point would not be read back.
const LARGEST_BOOT_FILE_BYTES: u64 = 256 << 20;
/// swtpm's state has a few hundred kilobytes.
const LARGEST_TPM_FILE_BYTES: u64 = 64 << 20;
/// swtpm's state has three files.
const MOST_TPM_FILES: usize = 32;
/// The maximum size of a file that the definition references.
const LARGEST_OUTSIDE_FILE_BYTES: u64 = 64 << 20;
/// The maximum total size of these files, which are first copied to memory.
const MOST_OUTSIDE_BYTES: u64 = 512 << 20;

/// The folder of files that the definition references, in a capture and in a point.
pub(crate) const OUTSIDE_FOLDER: &str = "files/";

/// The circumstances that determine which files may be missing.
#[derive(Clone, Copy)]
struct Situation<'a> {
    machine: &'a Machine,
    is_running: bool,
}

/// A file to be copied or inspected.
struct CopyPart {
    role: FileRole,
    /// The name in the capture's folder.
    name: String,
    source: DiskSource,
    limit_bytes: u64,
}

/// Copies the files in the state's definition, which a restore uses, to the capture's folder. The state records which
/// files were copied and which could not be. The live definition is used where the other one leaves the choice to
/// libvirt.
pub(in crate::capture) fn copy_files(
    machine: &Machine,
    live: &Definition,
    is_running: bool,
    file: &CaptureFile,
    state: &mut CaptureState,
) {
    let stored = Definition::parse(&state.definition_xml);
    let definition = stored.as_ref().unwrap_or(live);
    let situation = Situation { machine, is_running };
    for part in parts(definition, live) {
        let copied = copy_part(machine, &part, &file.folder().join(&part.name));
        match copied {
            Err(error) if situation.is_not_made_yet(part.role, definition, &error) => {
                warn_not_made(state, part.role, Path::new(&part.source.address()));
            }
            copied => note(state, part.role, &part.name, Path::new(&part.source.address()), copied),
        }
    }
    copy_tpm(definition, situation, file, state);
    copy_outside(file, state);
}

/// Returns what a backup would lack, without copying anything: required parts, and other files.
pub(in crate::capture) fn missing_parts(
    machine: &Machine,
    live: &Definition,
    is_running: bool,
    xml: &str,
) -> (Vec<MissingPart>, Vec<OutsideLeftOut>) {
    let stored = Definition::parse(xml);
    let definition = stored.as_ref().unwrap_or(live);
    let situation = Situation { machine, is_running };
    let mut missing = Vec::new();
    let mut look = |role: FileRole, origin: PathBuf, looked: Result<()>| match looked {
        Err(error) if !situation.is_not_made_yet(role, definition, &error) => {
            missing.push(MissingPart { role, origin, reason: error.to_string() });
        }
        _ => {}
    };
    for part in parts(definition, live) {
        // Network storage is only accessed when the file is needed.
        if let Some(path) = part.source.path() {
            let looked = safe_path::open_file(path, part.role == FileRole::Nvram);
            look(part.role, path.clone(), looked.and_then(|file| size_of(file, path, part.limit_bytes).map(drop)));
        }
    }
    match tpm::state_place(definition, machine.uri(), machine.uuid()) {
        Some(StatePlace::File(path)) => {
            let looked = safe_path::open_file(&path, true);
            let sized = looked.and_then(|file| size_of(file, &path, LARGEST_TPM_FILE_BYTES).map(drop));
            look(FileRole::Tpm, path, sized);
        }
        Some(StatePlace::Folder(path)) => {
            let looked = OpenFolder::open(&path).map(drop);
            look(FileRole::Tpm, path, looked);
        }
        None => {}
    }
    let mut left_out = Vec::new();
    for OutsideFile { kind, path } in outside_files(xml).unwrap_or_default() {
        let looked = match kind.reason_not_stored() {
            None => safe_path::open_file(&path, false)
                .and_then(|file| size_of(file, &path, LARGEST_OUTSIDE_FILE_BYTES).map(drop))
                .map_err(|error| error.to_string()),
            Some(reason) => Err(reason.to_owned()),
        };
        if let Err(reason) = looked {
            left_out.push(OutsideLeftOut { part: kind.word().to_owned(), origin: path, reason });
        }
    }
    (missing, left_out)
}

/// The parts that are single files.
fn parts(definition: &Definition, live: &Definition) -> Vec<CopyPart> {
    let nvram = [definition, live].into_iter().find_map(|definition| definition.nvram.as_ref()?.source.clone());
    let file = |path: &Option<PathBuf>| path.clone().map(|path| DiskSource::File { path });
    let wanted = [
        (FileRole::Nvram, nvram, LARGEST_NVRAM_BYTES),
        (FileRole::Kernel, file(&definition.kernel), LARGEST_BOOT_FILE_BYTES),
        (FileRole::Initrd, file(&definition.initrd), LARGEST_BOOT_FILE_BYTES),
    ];
    let part = |(role, source, limit_bytes): (FileRole, Option<DiskSource>, u64)| {
        Some(CopyPart { role, name: role.as_str().to_owned(), source: source?, limit_bytes })
    };
    wanted.into_iter().filter_map(part).collect()
}

fn copy_part(machine: &Machine, part: &CopyPart, to: &Path) -> Result<()> {
    let source = machine.resolve(&part.source)?;
    match source.path() {
        Some(path) => {
            let opened = safe_path::open_file(path, part.role == FileRole::Nvram)?;
            copy(opened, path, to, part.limit_bytes).map(drop)
        }
        None => network_file::fetch(&source, &|secret| machine.secret_value(secret), to, part.limit_bytes),
    }
}

/// Copies the state files of an emulated TPM. Without them, a guest whose disk keys are sealed in the TPM cannot open
/// its disks.
fn copy_tpm(definition: &Definition, situation: Situation, file: &CaptureFile, state: &mut CaptureState) {
    let place = tpm::state_place(definition, &state.connect, &state.uuid);
    let is_not_made_yet = |error: &Error| situation.is_not_made_yet(FileRole::Tpm, definition, error);
    let copies = file.folder().join(tpm::FOLDER);
    if place.is_some()
        && let Err(error) = fs::create_dir_all(&copies)
    {
        return note(state, FileRole::Tpm, "", &copies, Err(Error::io("create", &copies)(error)));
    }
    let path = match place {
        None => return,
        Some(StatePlace::File(path)) => {
            let copied = safe_path::open_file(&path, true)
                .and_then(|source| copy(source, &path, &file.folder().join(tpm::SINGLE_FILE), LARGEST_TPM_FILE_BYTES));
            return match copied {
                Err(error) if is_not_made_yet(&error) => warn_not_made(state, FileRole::Tpm, &path),
                copied => note(state, FileRole::Tpm, tpm::SINGLE_FILE, &path, copied.map(drop)),
            };
        }
        Some(StatePlace::Folder(path)) => path,
    };
    let opened = OpenFolder::open(&path).and_then(|folder| Ok((tpm::state_files(&folder)?, folder)));
    let (names, folder) = match opened {
        Ok(opened) => opened,
        Err(error) if is_not_made_yet(&error) => return warn_not_made(state, FileRole::Tpm, &path),
        Err(error) => return note(state, FileRole::Tpm, "", &path, Err(error)),
    };
    if names.len() > MOST_TPM_FILES {
        let reason = format!("it has {} files, more than {MOST_TPM_FILES}", names.len());
        return note(state, FileRole::Tpm, "", &path, Err(Error::UnsafePath { path: path.clone(), reason }));
    }
    for name in names {
        let origin = path.join(&name);
        let source = folder.place(name.as_ref()).and_then(|place| place.open(false));
        let copied = source.and_then(|source| copy(source, &origin, &copies.join(&name), LARGEST_TPM_FILE_BYTES));
        note(state, FileRole::Tpm, &format!("{}{name}", tpm::FOLDER), &origin, copied.map(drop));
    }
}

/// Copies the other files that the definition references.
fn copy_outside(file: &CaptureFile, state: &mut CaptureState) {
    let files = outside_files(&state.definition_xml).unwrap_or_default();
    let folder = file.folder().join(OUTSIDE_FOLDER);
    let mut copied_bytes = 0;
    for OutsideFile { kind, path } in files {
        let part = kind.word().to_owned();
        let copied = match kind.reason_not_stored() {
            Some(reason) => Err(reason.to_owned()),
            None => {
                let name = name_of_copy(&path, &state.outside);
                let limit_bytes = LARGEST_OUTSIDE_FILE_BYTES.min(MOST_OUTSIDE_BYTES - copied_bytes);
                copy_one_outside(&path, &folder, &name, limit_bytes)
                    .map(|(size_bytes, mode)| {
                        copied_bytes += size_bytes;
                        let name = format!("{OUTSIDE_FOLDER}{name}");
                        OutsideCopy { part: part.clone(), name, origin: path.clone(), mode }
                    })
                    .map_err(|error| error.to_string())
            }
        };
        match copied {
            Ok(copy) => state.outside.push(copy),
            Err(reason) => {
                tracing::debug!(
                    "{}: captured without the {} {}: {reason}",
                    state.machine,
                    kind.words(),
                    path.display()
                );
                state.outside_left_out.push(OutsideLeftOut { part, origin: path, reason });
            }
        }
    }
}

/// Copies a file and returns its size and permissions.
fn copy_one_outside(path: &Path, folder: &Path, name: &str, limit_bytes: u64) -> Result<(u64, u32)> {
    let source = safe_path::open_file(path, false)?;
    let mode = source.metadata().map_err(Error::io("access", path))?.mode() & 0o777;
    fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    Ok((copy(source, path, &folder.join(name), limit_bytes)?, mode))
}

/// Returns a name that no other copy has.
fn name_of_copy(path: &Path, others: &[OutsideCopy]) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let is_taken = |name: &str| others.iter().any(|copy| copy.name == format!("{OUTSIDE_FOLDER}{name}"));
    let numbered = (2..).map(|number| format!("{number}-{name}"));
    std::iter::once(name.clone()).chain(numbered).find(|name| !is_taken(name)).unwrap_or(name)
}

impl Situation<'_> {
    /// Whether a file is missing because the machine was never started and libvirt creates it at the first start.
    fn is_not_made_yet(&self, role: FileRole, definition: &Definition, error: &Error) -> bool {
        let is_missing = matches!(error, Error::Io { source, .. } if source.kind() == ErrorKind::NotFound);
        let is_made = match role {
            FileRole::Nvram => definition.nvram.as_ref().is_some_and(|nvram| has_template(nvram, definition)),
            FileRole::Tpm => true,
            FileRole::Kernel | FileRole::Initrd => false,
        };
        is_missing
            && is_made
            && !self.is_running
            && !offline_changes::was_ever_started(self.machine.uri(), self.machine.name(), self.machine.uuid())
    }
}

/// Whether libvirt can create variables: from a template, or for firmware that it selects or knows.
fn has_template(nvram: &Nvram, definition: &Definition) -> bool {
    match (&nvram.template, &definition.loader) {
        (Some(template), _) => template.exists(),
        (None, Some(loader)) => loader.starts_with("/usr"),
        (None, None) => true,
    }
}

/// Warns about a missing file. There is no evidence that the machine ran here, but it may have run on another host.
fn warn_not_made(state: &CaptureState, role: FileRole, origin: &Path) {
    tracing::warn!(
        "the point of {} has no {}: {} does not exist, and libvirt creates it at the next start; if the machine ran \
         elsewhere before, copy the file from there",
        state.machine,
        role.words(),
        origin.display()
    );
}

fn note(state: &mut CaptureState, role: FileRole, name: &str, origin: &Path, copied: Result<()>) {
    let origin = origin.to_owned();
    match copied {
        Ok(()) => state.copies.push(CopiedFile { role, name: name.to_owned(), origin }),
        Err(error) => {
            let reason = error.to_string();
            tracing::debug!("{}: captured without its {}: {reason}", state.machine, role.words());
            state.missing.push(MissingPart { role, origin, reason });
        }
    }
}

/// Returns the size of an open file or device, which for a device can only be determined by seeking. Refuses one that
/// is larger than the limit.
fn size_of(mut source: File, origin: &Path, limit_bytes: u64) -> Result<(File, u64)> {
    let size_bytes = source.seek(SeekFrom::End(0)).map_err(Error::io("size", origin))?;
    if size_bytes > limit_bytes {
        return Err(too_large(origin, size_bytes, limit_bytes));
    }
    source.rewind().map_err(Error::io("read", origin))?;
    Ok((source, size_bytes))
}

fn too_large(origin: &Path, size_bytes: u64, limit_bytes: u64) -> Error {
    Error::TooLarge { path: origin.to_owned(), size_bytes, limit_bytes }
}

/// Copies an open file to a new private file and returns its size. Refuses one that is larger than the limit.
fn copy(source: File, origin: &Path, copy: &Path, limit_bytes: u64) -> Result<u64> {
    let (source, _) = size_of(source, origin, limit_bytes)?;
    let copied = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(copy)
        // The file may have grown since its size was read.
        .and_then(|mut copy| io::copy(&mut source.take(limit_bytes + 1), &mut copy))
        .map_err(Error::io("copy", origin));
    let refused = match copied {
        Ok(copied_bytes) if copied_bytes > limit_bytes => too_large(origin, copied_bytes, limit_bytes),
        Ok(copied_bytes) => return Ok(copied_bytes),
        Err(error) => error,
    };
    // An incomplete copy is removed.
    let _ = fs::remove_file(copy);
    Err(refused)
}
