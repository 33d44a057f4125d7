//! Differences between a restored machine and the original, reported before anything is written.

use super::planned::PlannedDisk;
use super::request::RestoreRequest;
use crate::capture::Definition;
use crate::ops::points::OpenPoint;

/// Differences of the images.
pub(super) fn of_images(point: &OpenPoint, definition: &Definition, disks: &[PlannedDisk]) -> Vec<String> {
    let mut notes = Vec::new();
    for planned in disks {
        let (name, path) = (&planned.disk, planned.path.display());
        let Some(described) = definition.disk(name) else { continue };
        let stored = point.manifest.disks.iter().find(|disk| disk.disk == *name);
        let (was, is) = (described.format.as_deref().unwrap_or("raw"), planned.format.name());
        if !matches!(was, "raw" | "qcow2") {
            notes.push(format!("disk {name} was a {was} image and is restored as {is}; the definition says so"));
        }
        if let Some(kind) = described.encryption.as_ref().map(|encryption| &encryption.format) {
            notes.push(format!(
                "disk {name} was encrypted ({kind}) and is restored without encryption; to encrypt it again: qemu-img \
                 convert --object secret,id=s,file=KEYFILE -f {is} -O \
                 qcow2 -o encrypt.format=luks,encrypt.key-secret=s {path} NEW"
            ));
        }
        let is_data_file = |layer: &&serde_json::Value| layer["is_data_file"] == true;
        let data_files = stored.map_or(0, |disk| disk.layers.iter().filter(is_data_file).count());
        let has_data_file = described.data_file.is_some() || data_files > 0;
        if has_data_file {
            notes.push(format!("disk {name} had an external data file and is restored as one image"));
        }
        let layers = stored.map_or(0, |disk| disk.layers.len()).max(described.backing.len() + 1);
        if layers > 1 && !has_data_file {
            notes.push(format!("disk {name} had a backing chain of {layers} images and is restored as one image"));
        }
    }
    notes
}

/// Differences of the machine as a whole.
pub(super) fn of_machine(point: &OpenPoint, is_live: bool, request: &RestoreRequest) -> Vec<String> {
    let manifest = &point.manifest;
    let mut notes = Vec::new();
    if is_live {
        notes.push(format!(
            "{} is restored with the definition it was running with; the persistent one lacks some disks of the point",
            manifest.machine
        ));
    }
    if !manifest.snapshots.is_empty() && request.as_name.is_none() {
        let names = manifest.snapshots.join(", ");
        notes.push(format!("the libvirt snapshots of {} are not restored: {names}", manifest.machine));
    }
    notes
}
