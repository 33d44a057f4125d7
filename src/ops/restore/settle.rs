//! The metadata that libvirt keeps for a restored machine in addition to its definition.

use super::plan::drop_checkpoints;
use super::planned::PlannedDisk;
use crate::capture::{Hypervisor, Machine};
use crate::ops::Monitor;

/// Updates what libvirt keeps besides the definition. The machine is complete already, so failures are only warnings.
pub(super) fn settle(defined: &Machine, autostart: Option<bool>, monitor: &dyn Monitor) {
    let name = defined.name();
    // A backup that finds no bitmap for a checkpoint reads the disks in full.
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

/// Refreshes the storage pools, so that libvirt finds the new volumes that are files in their folders.
pub(super) fn refresh_pools(hypervisor: &Hypervisor, disks: &[PlannedDisk], monitor: &dyn Monitor) {
    for volume in disks.iter().filter_map(|disk| disk.volume.as_ref()) {
        if let Err(error) = hypervisor.refresh_pool(&volume.pool) {
            monitor.warn(&error.to_string());
        }
    }
}
