//! The location of an emulated TPM's state (`src/qemu/qemu_conf.c` and `src/qemu/qemu_tpm.c` of libvirt), and its
//! files.
//!
//! swtpm replaces a state file atomically, so the copy of a file of a running machine is consistent.

use std::path::PathBuf;

use super::definition::{Definition, Tpm};
use crate::capture::error::Result;
use crate::capture::link::embedded_root;
use crate::capture::parts::safe_path::OpenFolder;

/// The prefix of the names of copied state files, in a capture and in a point.
pub(crate) const FOLDER: &str = "tpm/";

/// The name of the copy if the state is a single file.
pub(crate) const SINGLE_FILE: &str = "tpm/state";

/// The location of an emulated TPM's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StatePlace {
    /// A folder with files.
    Folder(PathBuf),
    /// A single file or block device.
    File(PathBuf),
}

/// Returns the location of a machine's TPM state: the path in the definition, or the folder that the driver behind
/// `uri` chooses by the UUID. `None` without an emulated TPM.
pub(crate) fn state_place(definition: &Definition, uri: &str, uuid: &str) -> Option<StatePlace> {
    let tpm = definition.tpm.as_ref().filter(|tpm| tpm.backend == "emulator")?;
    Some(match &tpm.state_path {
        Some(path) if tpm.state_is_file => StatePlace::File(path.clone()),
        Some(path) => StatePlace::Folder(path.clone()),
        None => StatePlace::Folder(storage(uri)?.join(uuid.to_ascii_lowercase()).join(version_folder(tpm))),
    })
}

/// Returns the names of a TPM's state files. Entries that are not files are included, and fail when they are opened.
pub(crate) fn state_files(folder: &OpenFolder) -> Result<Vec<String>> {
    let names = folder.names()?.into_iter().filter_map(|name| name.into_string().ok());
    // swtpm's lock is a hidden file.
    Ok(names.filter(|name| !name.starts_with('.')).collect())
}

fn storage(uri: &str) -> Option<PathBuf> {
    if let Some(root) = embedded_root(uri) {
        return Some(root.join("lib/swtpm"));
    }
    if !uri.ends_with("/session") {
        return Some("/var/lib/libvirt/swtpm".into());
    }
    let configuration = std::env::var_os("XDG_CONFIG_HOME").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let configuration = configuration.or_else(|| Some(std::env::home_dir()?.join(".config")));
    Some(configuration?.join("libvirt/qemu/swtpm"))
}

/// The name of the state folder for this TPM version.
pub(crate) fn version_folder(tpm: &Tpm) -> &'static str {
    match tpm.version.as_deref() {
        Some("1.2") => "tpm1.2",
        _ => "tpm2",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tpm_state_path_depends_on_driver_and_backend() {
        let folder = |backend: &str, uri: &str| {
            let xml = format!(
                "<domain type='qemu'><name>a</name><uuid>C7A5FDBD-EDAF-9455-926A-D65C16DB1809</uuid><devices>\
                 <tpm model='tpm-crb'>{backend}</tpm></devices></domain>"
            );
            let definition = Definition::parse(&xml).unwrap();
            match state_place(&definition, uri, "C7A5FDBD-EDAF-9455-926A-D65C16DB1809")? {
                StatePlace::Folder(path) => Some(path.to_string_lossy().into_owned()),
                StatePlace::File(path) => Some(format!("file {}", path.display())),
            }
        };
        let emulated = "<backend type='emulator' version='2.0'/>";
        let uuid = "c7a5fdbd-edaf-9455-926a-d65c16db1809";
        assert_eq!(folder(emulated, "qemu:///system"), Some(format!("/var/lib/libvirt/swtpm/{uuid}/tpm2")));
        assert_eq!(folder(emulated, "qemu:///embed?root=/r%20t"), Some(format!("/r t/lib/swtpm/{uuid}/tpm2")));
        let old = "<backend type='emulator' version='1.2'/>";
        assert_eq!(folder(old, "qemu:///system"), Some(format!("/var/lib/libvirt/swtpm/{uuid}/tpm1.2")));
        let placed = "<backend type='emulator'><source type='dir' path='/tpm/a'/></backend>";
        assert_eq!(folder(placed, "qemu:///system"), Some("/tpm/a".into()));
        let file = "<backend type='emulator'><source type='file' path='/tpm/a.bin'/></backend>";
        assert_eq!(folder(file, "qemu:///system"), Some("file /tpm/a.bin".into()));
        assert_eq!(folder("<backend type='passthrough'/>", "qemu:///system"), None);
    }
}
