//! Opens captures: every disk of a machine, frozen at one instant and readable over NBD.

use super::chain::{self, Chain};
use super::guard;
use super::locked_repo::RepoView;
use super::{Error, Result};
use crate::capture::machine::Which;
use crate::capture::runtime::free_bytes;
use crate::capture::state::SkippedDisk;
use crate::capture::{
    self, CaptureState, Definition, DiskRequest, FreezeOptions, Machine, OpenRequest, RuntimeDirs, clear_leftovers,
    open_capture,
};
use crate::failpoint::{self, Failpoint};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// The scratch space that must be free at the start, unless the disks are smaller.
const SCRATCH_BYTES: u64 = 256 << 20;

/// The reason for leaving out a disk that the configuration excludes.
pub(crate) const EXCLUDED_BY_CONFIGURATION: &str = "excluded in the configuration (excluded_disks)";

#[derive(Debug, Clone)]
pub(crate) struct SnapshotRequest {
    /// Only these disks; `None` means all that can be backed up.
    pub(crate) disks: Option<Vec<String>>,
    pub(crate) exclude: Vec<String>,
    /// Disks that the configuration excludes. They are ignored if `disks` lists them or the machine does not have them.
    pub(crate) configured_exclude: Vec<String>,
    /// Whether to freeze the guest's file systems.
    pub(crate) freeze: FreezeOptions,
    /// How long the capture may stay open without being used.
    pub(crate) lease: Duration,
    /// The folder for data that the guest overwrites during the capture; `None` is the default folder.
    pub(crate) scratch: Option<PathBuf>,
    /// Whether the capture ends with this process, regardless of its lease.
    pub(crate) owned: bool,
    /// Files with the passphrases of encrypted images, by target. Used for stopped machines.
    pub(crate) luks_key_files: BTreeMap<String, PathBuf>,
}

/// Opens a capture. With a repository, it continues that repository's chain: a new checkpoint is made at the same
/// instant, and each disk exposes the changes since the last one if possible.
pub(crate) fn snapshot(
    runtime: &RuntimeDirs,
    machine: &Machine,
    request: &SnapshotRequest,
    open: Option<&RepoView>,
) -> Result<CaptureState> {
    let definition = machine.definition(Which::Live)?;
    let (disks, mut skipped) = choose(machine, &definition, request)?;
    if disks.is_empty() && definition.disks.iter().any(|disk| machine.skip_reason(disk).is_none()) {
        tracing::warn!("all disks of {} are excluded, so only its definition is backed up", machine.name());
    }
    // This comes first, because leftovers may fill the scratch space or include a checkpoint that was never committed.
    clear_leftovers(runtime, machine)?;
    let has_disks = !disks.is_empty();
    if machine.is_running()? {
        skipped.extend(machine.absent_disks(&definition)?);
        if has_disks {
            refuse_without_scratch(runtime, machine, &disks, request)?;
        }
    }
    let chain = match open.filter(|_| has_disks) {
        Some(open) => {
            let is_alive = |name: &str| machine.has_bitmap(name);
            chain::find(open, machine.uuid(), machine.name(), &machine.checkpoints()?, is_alive)?
        }
        None => None,
    };
    failpoint::hit(Failpoint::ParentFound);
    let now = chrono::Local::now().fixed_offset();
    let request = OpenRequest {
        disks: disks.into_iter().map(|disk| disk_request(disk, chain.as_ref(), open.is_some())).collect(),
        skipped,
        checkpoint: open.filter(|_| has_disks).map(|open| chain::checkpoint_name(open.repo.id(), now)),
        freeze: request.freeze,
        lease: request.lease,
        guard: guard::starter(),
        owned: request.owned,
        moving: false,
        repository: open.map(|open| open.repo.id().to_owned()),
        parent_point: chain.map(|chain| chain.point.id.to_string()),
        scratch_dir: request.scratch.clone(),
        luks_key_files: request.luks_key_files.clone(),
    };
    let state = open_capture(runtime, machine, &request)?;
    if has_disks {
        failpoint::hit(Failpoint::CaptureOpen);
    }
    Ok(state)
}

fn disk_request(disk: String, chain: Option<&Chain>, is_chained: bool) -> DiskRequest {
    let full = |reason: String| DiskRequest { full_reason: Some(reason), ..DiskRequest::full(&disk) };
    let Some(chain) = chain else {
        return match is_chained {
            true => full("first backup of the machine in this repository".into()),
            false => DiskRequest::full(disk),
        };
    };
    match chain.manifest.disks.iter().find(|known| known.disk == disk) {
        Some(_) if chain.distrusted.contains_key(&disk) => {
            full(format!("point {} found its dirty bitmap to be wrong", chain.distrusted[&disk]))
        }
        Some(known) if known.in_checkpoint => {
            DiskRequest { parent_image: known.images(), ..DiskRequest::since(disk, &chain.checkpoint) }
        }
        Some(_) => full("no dirty bitmap from the parent point".into()),
        None => full("not in the parent point".into()),
    }
}

/// Whether a machine has no disk to capture. A backup then contains only its definition.
pub(crate) fn is_without_disks(machine: &Machine, request: &SnapshotRequest) -> Result<bool> {
    let definition = machine.definition(Which::Live)?;
    Ok(choose(machine, &definition, request)?.0.is_empty())
}

/// Returns the disks to capture, and the others with the reason why not. No disk at all is accepted if none of the
/// machine's disks can be backed up, or if all are excluded on request. If the machine has disks that can be backed up
/// but none was selected, it is an error.
pub(crate) fn choose(
    machine: &Machine,
    definition: &Definition,
    request: &SnapshotRequest,
) -> Result<(Vec<String>, Vec<SkippedDisk>)> {
    let named = request.disks.iter().flatten().chain(&request.exclude).chain(request.luks_key_files.keys());
    for name in named {
        if definition.disk(name).is_none() {
            return Err(Error::NoSuchDisk { subject: format!("machine {}", machine.name()), disk: name.clone() });
        }
    }
    let (mut chosen, mut skipped, mut is_any_possible) = (Vec::new(), Vec::new(), false);
    for disk in &definition.disks {
        let asked = request.disks.as_ref().is_none_or(|names| names.contains(&disk.target));
        let own_reason = machine.skip_reason(disk);
        is_any_possible |= own_reason.is_none();
        let reason = match (own_reason, asked, request.exclude.contains(&disk.target)) {
            // A requested disk that cannot be captured is kept in the list, so that the capture reports the error.
            (Some(_), true, _) if request.disks.is_some() => None,
            (Some(reason), ..) => Some(reason),
            (None, false, _) => Some("not requested".to_owned()),
            (None, true, true) => Some("excluded on request".to_owned()),
            (None, true, false) if request.disks.is_none() && request.configured_exclude.contains(&disk.target) => {
                Some(EXCLUDED_BY_CONFIGURATION.to_owned())
            }
            (None, true, false) => None,
        };
        match reason {
            Some(reason) => skipped.push(machine.skipped(disk, reason)),
            None => chosen.push(disk.target.clone()),
        }
    }
    // The machine has disks that can be backed up, but the input records select none: records were probably lost.
    if chosen.is_empty() && is_any_possible && request.disks.as_ref().is_some_and(Vec::is_empty) {
        return Err(capture::Error::NothingToCapture { machine: machine.name().to_owned() }.into());
    }
    Ok((chosen, skipped))
}

/// The free scratch space required to capture disks of this total size while their machine runs.
pub(crate) fn scratch_needed(capacity_bytes: u64) -> u64 {
    capacity_bytes.saturating_add(capacity_bytes / 100).min(SCRATCH_BYTES)
}

/// Refuses a capture without enough scratch space: if the scratch files' file system fills up, the guest is paused.
fn refuse_without_scratch(
    runtime: &RuntimeDirs,
    machine: &Machine,
    disks: &[String],
    request: &SnapshotRequest,
) -> Result<()> {
    let capacity: u64 =
        disks.iter().filter_map(|disk| machine.disk_info(disk).ok()).map(|info| info.capacity_bytes).sum();
    let wanted_bytes = scratch_needed(capacity);
    let folder = request.scratch.clone().unwrap_or_else(|| runtime.scratch_folder().to_owned());
    let existing = folder.ancestors().find(|folder| folder.exists()).unwrap_or(&folder);
    let free_bytes = free_bytes(existing)?;
    if free_bytes < wanted_bytes {
        return Err(Error::NoScratchRoom { path: folder, free_bytes, wanted_bytes });
    }
    Ok(())
}
