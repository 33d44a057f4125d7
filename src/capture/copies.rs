//! What belongs to the moment of a capture and is no disk: firmware variables, TPM state, kernel and initial RAM disk of a
//! direct boot.
//!
//! The files are where QEMU's or swtpm's user can write, so they are opened as [`super::safe_path`] does, and no more than a
//! limit is read. A file that cannot be had never costs the machine its backup: the disks are captured without it, and the
//! state says what is missing ([`MissingPart`]).

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::error::{Error, Result};
use super::safe_path::{self, OpenFolder};
use super::state::{CaptureFile, CaptureKind, CaptureState, CopiedFile, FileRole, MissingPart};
use crate::capture::domain_xml::definition::Definition;
use crate::capture::domain_xml::tpm;

/// Firmware variables have 64 MiB at most (those of AArch64), and qcow2 adds a little.
const LARGEST_NVRAM_BYTES: u64 = 128 << 20;
/// Larger files of a point are not read back.
const LARGEST_BOOT_FILE_BYTES: u64 = 256 << 20;
/// swtpm's state has some hundred kilobytes.
const LARGEST_TPM_FILE_BYTES: u64 = 64 << 20;
/// swtpm has three files of state.
const MOST_TPM_FILES: usize = 32;

/// Copies the files that the definition in the state names - it is the one that a restore goes by - into the capture's folder,
/// and notes in the state what was copied and what could not be. The live definition is asked where that one leaves the choice
/// to libvirt.
pub(super) fn copy_files(live: &Definition, file: &CaptureFile, state: &mut CaptureState) {
    let stored = Definition::parse(&state.definition_xml);
    let definition = stored.as_ref().unwrap_or(live);
    let nvram = [definition, live].into_iter().find_map(|definition| definition.nvram.as_ref()?.path.as_deref());
    let wanted = [
        (FileRole::Nvram, nvram, LARGEST_NVRAM_BYTES),
        (FileRole::Kernel, definition.kernel.as_deref(), LARGEST_BOOT_FILE_BYTES),
        (FileRole::Initrd, definition.initrd.as_deref(), LARGEST_BOOT_FILE_BYTES),
    ];
    for (role, origin, limit_bytes) in wanted {
        let Some(origin) = origin else { continue };
        let source = safe_path::open_file(origin, role == FileRole::Nvram);
        let copied = source.and_then(|source| copy(source, origin, &file.folder().join(role.as_str()), limit_bytes));
        match copied {
            // libvirt makes the variables' file at the first start.
            Err(error) if role == FileRole::Nvram && is_not_there_yet(&error, state) => {
                tracing::debug!("{} has no firmware variables yet", state.machine);
            }
            copied => note(state, role, role.as_str(), origin, copied),
        }
    }
    copy_tpm(definition, file, state);
}

/// The state of an emulated TPM, file by file: without it a guest that sealed its keys there does not open its disks.
fn copy_tpm(definition: &Definition, file: &CaptureFile, state: &mut CaptureState) {
    let Some(path) = tpm::state_folder(definition, &state.connect, &state.uuid) else {
        return;
    };
    let opened = OpenFolder::open(&path).and_then(|folder| Ok((tpm::state_files(&folder)?, folder)));
    let (names, folder) = match opened {
        Ok(opened) => opened,
        // swtpm makes it at the first start.
        Err(error) if is_not_there_yet(&error, state) => return,
        Err(error) => return note(state, FileRole::Tpm, "", &path, Err(error)),
    };
    if names.len() > MOST_TPM_FILES {
        let reason = format!("it has {} files, more than {MOST_TPM_FILES}", names.len());
        return note(state, FileRole::Tpm, "", &path, Err(Error::UnsafePath { path: path.clone(), reason }));
    }
    let copies = file.folder().join(tpm::FOLDER);
    if let Err(error) = fs::create_dir_all(&copies) {
        return note(state, FileRole::Tpm, "", &path, Err(Error::io("create", copies)(error)));
    }
    for name in names {
        let origin = path.join(&name);
        let source = folder.place(name.as_ref()).and_then(|place| place.open(false));
        let copied = source.and_then(|source| copy(source, &origin, &copies.join(&name), LARGEST_TPM_FILE_BYTES));
        note(state, FileRole::Tpm, &format!("{}{name}", tpm::FOLDER), &origin, copied);
    }
}

/// Whether a file is missing because libvirt makes it when the machine, which is off, is first started.
fn is_not_there_yet(error: &Error, state: &CaptureState) -> bool {
    let is_missing = matches!(error, Error::Io { source, .. } if source.kind() == ErrorKind::NotFound);
    is_missing && state.kind != CaptureKind::Job
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

/// Copies what is open for reading into a new private file; one that is larger than the limit is refused.
fn copy(mut source: File, origin: &Path, copy: &Path, limit_bytes: u64) -> Result<()> {
    let too_large = |size_bytes: u64| Error::UnsafePath {
        path: origin.to_owned(),
        reason: format!("it has {size_bytes} bytes, and at most {limit_bytes} are stored"),
    };
    // A device says how large it is nowhere else.
    let size_bytes = source.seek(SeekFrom::End(0)).map_err(Error::io("size", origin))?;
    if size_bytes > limit_bytes {
        return Err(too_large(size_bytes));
    }
    source.rewind().map_err(Error::io("read", origin))?;
    let copied = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(copy)
        // It may have grown since.
        .and_then(|mut copy| io::copy(&mut source.take(limit_bytes + 1), &mut copy))
        .map_err(Error::io("copy", origin));
    let refused = match copied {
        Ok(copied_bytes) if copied_bytes > limit_bytes => too_large(copied_bytes),
        Ok(_) => return Ok(()),
        Err(error) => error,
    };
    // A part of it is no copy.
    let _ = fs::remove_file(copy);
    Err(refused)
}
