//! The metadata that libvirt keeps for a restored machine in addition to its definition.

use super::plan::drop_checkpoints;
use super::planned::PlannedDisk;
use crate::capture::{Hypervisor, Machine};
use crate::ops::Monitor;

/// What libvirt keeps beside a definition. The machine is whole already: what fails here is a warning.
pub(super) fn settle(defined: &Machine, autostart: Option<bool>, monitor: &dyn Monitor) {
    let name = defined.name();
    // A backup that finds no bitmap behind a checkpoint reads everything.
    match drop_checkpoints(defined) {
        Ok(others) => {
            for other in others {
                monitor.warn(&format!(
                    "{name} has the checkpoint {other} of another program, which no longer matches its images: virsh \
                     checkpoint-delete {name} {other} --metadata"
                ));
            }
        }
        Err(error) => monitor.warn(&format!("{name}: {error}; the next backup reads all data")),
    }
    let snapshots = defined.snapshots().unwrap_or_default();
    if !snapshots.is_empty() {
        let names = snapshots.join(", ");
        monitor.warn(&format!(
            "{name} has snapshots that its images no longer contain ({names}): virsh snapshot-delete {name} NAME \
             --metadata"
        ));
    }
    let autostart = autostart.filter(|wanted| defined.autostart().ok() != Some(*wanted));
    if let Some(error) = autostart.and_then(|wanted| defined.set_autostart(wanted).err()) {
        monitor.warn(&error.to_string());
    }
}

/// Has libvirt see the volumes that are files in folders of its own.
pub(super) fn refresh_pools(hypervisor: &Hypervisor, disks: &[PlannedDisk], monitor: &dyn Monitor) {
    for volume in disks.iter().filter_map(|disk| disk.volume.as_ref()) {
        if let Err(error) = hypervisor.refresh_pool(&volume.pool) {
            monitor.warn(&error.to_string());
        }
    }
}
