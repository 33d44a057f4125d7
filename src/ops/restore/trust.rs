//! Compares `point.json` with the definition before anything is planned from it.
//!
//! Anyone who can write to the repository controls the manifests, and kvmb restores as root. So a manifest may choose
//! neither a place on the host nor another machine: its disks must be in the definition, its files must have the paths
//! in the definition, and its name and UUID must be those of the definition.
//! ([`Manifest::parse`](crate::ops::manifest::Manifest::parse) has checked what can be checked without the definition:
//! sizes, and names that lead elsewhere.)

use super::request::RestoreRequest;
use crate::capture::connection::nvram_folder;
use crate::capture::domain_xml::definition::{Definition, Device};
use crate::capture::domain_xml::outside_files::outside_files;
use crate::capture::domain_xml::tpm;
use crate::ops::manifest::{Manifest, ManifestDisk, ManifestFile, Role};
use crate::ops::points::OpenPoint;
use crate::ops::{Error, Result};
use std::collections::BTreeSet;
use std::path::{Component, Path};

/// Refuses a point whose manifest does not match its definition, as far as the request uses it.
pub(super) fn check(point: &OpenPoint, xml: &str, definition: &Definition, request: &RestoreRequest) -> Result<()> {
    let found = misfit(&point.manifest, definition, request);
    let reason = match found.or_else(|| request.with_files.as_ref().and_then(|_| misfit_outside(point, xml))) {
        Some(reason) => reason,
        None => match point.manifest.files.iter().find(|file| !has_its_size(point, file)) {
            Some(file) => format!("the file {:?} has another size than the one in the point", file.name),
            None => return Ok(()),
        },
    };
    Err(Error::UntrustedPoint { point: point.id.to_string(), reason })
}

/// A file must be one that the definition references. The user chooses where it is written.
fn misfit_outside(point: &OpenPoint, xml: &str) -> Option<String> {
    let known = outside_files(xml).unwrap_or_default();
    let mut seen = BTreeSet::new();
    for file in &point.manifest.outside_files {
        if known.iter().all(|known| known.path != Path::new(&file.path)) {
            return Some(format!("the definition does not mention the file {:?}", file.path));
        }
        if !seen.insert(&file.name) {
            return Some(format!("the file {:?} is described twice", file.name));
        }
    }
    None
}

fn has_its_size(point: &OpenPoint, file: &ManifestFile) -> bool {
    // A missing file is reported when it is read.
    point.files.get(&file.name).is_none_or(|(size_bytes, _)| *size_bytes == file.size_bytes)
}

fn misfit(manifest: &Manifest, definition: &Definition, request: &RestoreRequest) -> Option<String> {
    let uuid = uuid::Uuid::parse_str(&manifest.uuid).ok();
    if uuid.is_none() {
        return Some(format!("{:?} is not a UUID", manifest.uuid));
    }
    let theirs = definition.uuid.as_deref().map(|uuid| uuid::Uuid::parse_str(uuid).ok());
    if theirs.is_some_and(|theirs| theirs != uuid) {
        let theirs = definition.uuid.as_deref().unwrap_or_default();
        return Some(format!("the UUID is {:?}, and {theirs:?} in the definition", manifest.uuid));
    }
    if manifest.machine != definition.name {
        return Some(format!("the machine is {:?}, and {:?} in the definition", manifest.machine, definition.name));
    }
    let mut seen = BTreeSet::new();
    let is_wanted = |disk: &&ManifestDisk| request.only_disks.is_empty() || request.only_disks.contains(&disk.disk);
    for disk in manifest.disks.iter().filter(is_wanted) {
        if definition.disk(&disk.disk).is_none_or(|known| known.device != Device::Disk) {
            return Some(format!("{:?} is not a disk of the definition", disk.disk));
        }
        if !seen.insert(&disk.disk) {
            return Some(format!("the disk {:?} is described twice", disk.disk));
        }
    }
    let mut seen = BTreeSet::new();
    for file in &manifest.files {
        if !is_of(definition, &manifest.uuid, file, request) {
            return Some(format!("{:?} is not where the definition has the file {:?}", file.path, file.name));
        }
        if !seen.insert(&file.name) {
            return Some(format!("the file {:?} is described twice", file.name));
        }
    }
    None
}

/// Whether the definition has this file at this path.
fn is_of(definition: &Definition, uuid: &str, file: &ManifestFile, request: &RestoreRequest) -> bool {
    let path = Path::new(&file.path);
    let (name, known) = match file.role {
        Role::Nvram => match definition.nvram.as_ref().and_then(|nvram| nvram.source.as_ref()) {
            None => return file.name == "nvram" && is_libvirts_choice(definition, path, request),
            Some(source) => return file.name == "nvram" && file.path == source.address(),
        },
        Role::Kernel => ("kernel", definition.kernel.as_deref()),
        Role::Initrd => ("initrd", definition.initrd.as_deref()),
        Role::Tpm => return is_tpm_state(definition, uuid, file),
    };
    file.name == name && known == Some(path)
}

/// Older versions of libvirt write the path that they choose to the live definition only.
fn is_libvirts_choice(definition: &Definition, path: &Path, request: &RestoreRequest) -> bool {
    let of_this_user = match rustix::process::geteuid().is_root() {
        true => "qemu:///system",
        false => "qemu:///session",
    };
    let folder = nvram_folder(request.connect.as_deref().unwrap_or(of_this_user));
    let extension =
        path.file_name().and_then(|name| name.to_str()?.strip_prefix(&*definition.name)?.strip_prefix("_VARS."));
    path.parent().is_some_and(|parent| Some(parent) == folder.as_deref())
        && extension.is_some_and(|extension| ["fd", "qcow2", "json"].contains(&extension))
}

/// The folder must be the one in the definition. If there is none, libvirt chooses it by the UUID, below a folder of
/// its own that only the host knows.
fn is_tpm_state(definition: &Definition, uuid: &str, file: &ManifestFile) -> bool {
    let path = Path::new(&file.path);
    let Some(state) = definition.tpm.as_ref().filter(|tpm| tpm.backend == "emulator") else { return false };
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return false;
    };
    if let (Some(known), true) = (&state.state_path, state.state_is_file) {
        return path == known && file.name == tpm::SINGLE_FILE;
    }
    let is_plain = path.is_absolute() && path.components().all(|component| component != Component::ParentDir);
    let is_its_folder = match &state.state_path {
        Some(known) => folder == known,
        None => folder.ends_with(Path::new(&uuid.to_ascii_lowercase()).join(tpm::version_folder(state))),
    };
    is_plain && is_its_folder && !name.starts_with('.') && file.name == format!("{}{name}", tpm::FOLDER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const UUID: &str = "c7a5fdbd-edaf-9455-926a-d65c16db1809";

    fn definition(nvram: &str) -> Definition {
        let xml = format!(
            "<domain type='kvm'><name>vm1</name><uuid>{UUID}</uuid>\
             <os><kernel>/boot/vmlinuz</kernel>{nvram}</os><devices>\
             <disk type='file' device='disk'><source file='/images/a'/><target dev='vda'/></disk>\
             <disk type='file' device='cdrom'><target dev='sda'/></disk>\
             <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm></devices></domain>"
        );
        Definition::parse(&xml).unwrap()
    }

    fn file(role: &str, name: &str, path: &str) -> Value {
        json!({ "name": name, "role": role, "path": path, "size_bytes": 1 })
    }

    const NVRAM: &str = "<nvram>/nvram/vm1.fd</nvram>";

    fn misfit_of(nvram: &str, only_disks: &[&str], change: impl FnOnce(&mut Value)) -> Option<String> {
        let disk = |name: &str| {
            json!({
                "disk": name, "capacity_bytes": 1 << 20, "chunk_bytes": 1 << 20, "format": "raw",
                "source": { "type": "none" }, "read_mode": "full", "read_bytes": 0, "new_bytes": 0, "stored_bytes": 0,
            })
        };
        let tpm = format!("/var/lib/libvirt/swtpm/{UUID}/tpm2/tpm2-00.permall");
        let mut manifest = json!({
            "version": 1, "program": "kvmb", "machine": "vm1", "uuid": UUID, "host": "h", "connect": "",
            "captured_at": "2026-11-20T12:00:00+01:00", "consistency": "crash", "duration_seconds": 0.0,
            "disks": [disk("vda")],
            "files": [
                file("nvram", "nvram", "/nvram/vm1.fd"), file("kernel", "kernel", "/boot/vmlinuz"),
                file("tpm", "tpm/tpm2-00.permall", &tpm),
            ],
        });
        change(&mut manifest);
        let only_disks = only_disks.iter().map(|disk| (*disk).to_owned()).collect();
        let request = RestoreRequest { only_disks, ..RestoreRequest::default() };
        misfit(&serde_json::from_value(manifest).unwrap(), &definition(nvram), &request)
    }

    #[test]
    fn manifest_that_contradicts_the_definition_is_refused() {
        assert_eq!(misfit_of(NVRAM, &[], |_| {}), None);
        assert_eq!(misfit_of(NVRAM, &[], |m| m["uuid"] = UUID.to_uppercase().into()), None);
        // A disk that is not requested does not matter, for example one that was attached to the running machine only.
        let another = |m: &mut Value| {
            let mut disk = m["disks"][0].clone();
            disk["disk"] = "vdz".into();
            m["disks"].as_array_mut().unwrap().push(disk);
        };
        assert_eq!(misfit_of(NVRAM, &["vda"], another), None);
        assert!(misfit_of(NVRAM, &[], another).is_some());
        type ManifestChange<'a> = &'a dyn Fn(&mut Value);
        let put = |at: usize, file: Value| move |m: &mut Value| m["files"][at] = file.clone();
        let tpm = |path: &str| put(2, file("tpm", "tpm/tpm2-00.permall", path));
        let cases: [(ManifestChange, &str); 13] = [
            (&|m| m["uuid"] = "not one".into(), "is not a UUID"),
            (&|m| m["uuid"] = UUID.replace('c', "d").into(), "in the definition"),
            (&|m| m["machine"] = "vm2".into(), "in the definition"),
            (&|m| m["disks"][0]["disk"] = "vdb".into(), "is not a disk of the definition"),
            (&|m| m["disks"][0]["disk"] = "sda".into(), "is not a disk of the definition"),
            (&|m| m["disks"] = json!([m["disks"][0], m["disks"][0]]), "described twice"),
            (&put(0, file("nvram", "nvram", "/etc/cron.d/job")), "is not where"),
            (&put(0, file("nvram", "domain.xml", "/nvram/vm1.fd")), "is not where"),
            (&put(1, file("initrd", "initrd", "/boot/initrd")), "is not where"),
            (&put(1, file("nvram", "nvram", "/nvram/vm1.fd")), "described twice"),
            (&tpm("/etc/tpm2-00.permall"), "is not where"),
            (&tpm(&format!("/etc/../swtpm/{UUID}/tpm2/tpm2-00.permall")), "is not where"),
            (&tpm(&format!("/swtpm/{UUID}/tpm2/another")), "is not where"),
        ];
        for (change, expected) in cases {
            let reason = misfit_of(NVRAM, &[], change).expect("it passed");
            assert!(reason.contains(expected), "{reason}");
        }
    }

    #[test]
    fn default_nvram_path_must_be_the_one_libvirt_chooses() {
        // The tests run as root.
        let at = |path: &'static str| misfit_of("", &[], move |m| m["files"][0] = file("nvram", "nvram", path));
        assert_eq!(at("/var/lib/libvirt/qemu/nvram/vm1_VARS.fd"), None);
        for path in ["/nvram/vm1.fd", "/var/lib/libvirt/qemu/nvram/vm2_VARS.fd", "/etc/vm1_VARS.fd", "vm1_VARS.fd"] {
            assert!(at(path).is_some(), "{path}");
        }
    }
}
