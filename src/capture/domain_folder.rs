//! The folder that libvirt keeps for a running machine.

use crate::capture::link::embedded_root;
use crate::capture::machine::Machine;
use std::fs;
use std::path::{Path, PathBuf};

/// `…/lib/qemu/domain-<id>-<name>`, where libvirt shortens long names.
pub(super) fn domain_folder(machine: &Machine) -> Option<PathBuf> {
    let library = match embedded_root(machine.uri()) {
        Some(root) => root.join("lib/qemu"),
        None if machine.uri().ends_with("/session") => std::env::home_dir()?.join(".config/libvirt/qemu/lib"),
        None => PathBuf::from("/var/lib/libvirt/qemu"),
    };
    let prefix = format!("domain-{}-", machine.id()?);
    fs::read_dir(library)
        .ok()?
        .filter_map(std::result::Result::ok)
        .find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
}

/// Whether a folder is one that libvirt keeps.
pub(super) fn is_domain_folder(folder: &Path) -> bool {
    folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with("domain-"))
}
