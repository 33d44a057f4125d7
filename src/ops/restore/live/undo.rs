//! Aborts a live restore: restores the old images, files and definition. Each step can be repeated after a crash.

use super::super::plan::existing;
use super::super::small_file::{SmallFile, place_of};
use super::state::{LiveDisk, LiveState};
use crate::atomic_file;
use crate::capture::Hypervisor;
use crate::ops::{Error, Result};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// Restores what the live restore replaced. The machine must be off.
pub(super) fn undo(hypervisor: &Hypervisor, state: &LiveState) -> Result<()> {
    if let Some(machine) = existing(hypervisor, &state.uuid)?
        && machine.is_running()?
    {
        return Err(Error::MachineRunning { machine: state.machine.clone() });
    }
    // The definition comes first, so that no machine starts on disks that are changing.
    match (&state.previous_definition, existing(hypervisor, &state.uuid)?) {
        (Some(definition), _) => drop(hypervisor.define(definition)?),
        (None, Some(machine)) => machine.undefine(false)?,
        (None, None) => {}
    }
    state.disks.iter().try_for_each(bring_back)?;
    for replaced in &state.files {
        let planned = replaced.planned();
        match &replaced.copy {
            Some(copy) => {
                let bytes = fs::read(copy).map_err(Error::io("read", copy))?;
                let connect = || Ok(hypervisor.clone());
                SmallFile::create(&planned, bytes, true)?.place(&connect)?.keep();
            }
            None => remove(&place_of(&planned)?.anchored(), &replaced.path)?,
        }
    }
    Ok(())
}

fn bring_back(disk: &LiveDisk) -> Result<()> {
    match (disk.had_image, disk.aside.exists()) {
        (true, true) => fs::rename(&disk.aside, &disk.path).map_err(Error::io("replace", &disk.path))?,
        // The image was not replaced yet, or is restored already.
        (true, false) => return Ok(()),
        (false, _) => remove(&disk.path, &disk.path)?,
    }
    let folder = disk.path.parent().unwrap_or(Path::new("/"));
    atomic_file::sync_folder(folder).map_err(Error::io("sync the folder of", &disk.path))
}

fn remove(reach: &Path, path: &Path) -> Result<()> {
    match fs::remove_file(reach) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}
