//! Aborts a live restore: restores the old images, files and definition. Each step can be repeated after a crash.

use super::super::plan::existing;
use super::super::small_file::{SmallFile, place_of};
use super::data;
use super::state::LiveState;
use crate::capture::Hypervisor;
use crate::ops::{Error, Result};
use std::fs;

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
    state.disks.iter().try_for_each(data::bring_back)?;
    for replaced in &state.files {
        let planned = replaced.planned();
        match &replaced.copy {
            Some(copy) => {
                let bytes = fs::read(copy).map_err(Error::io("read", copy))?;
                let connect = || Ok(hypervisor.clone());
                SmallFile::create(&planned, bytes, true)?.place(&connect)?.keep();
            }
            None => data::remove(&place_of(&planned)?.anchored())?,
        }
    }
    Ok(())
}
