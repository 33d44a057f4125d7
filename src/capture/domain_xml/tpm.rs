//! Where libvirt keeps the state of an emulated TPM (`src/qemu/qemu_conf.c`, `src/qemu/qemu_tpm.c`), and its files.
//!
//! swtpm replaces a file of its state as a whole, so a copy of a running machine's is one moment's.

use std::path::PathBuf;

use super::definition::{Definition, Tpm};
use crate::capture::error::Result;
use crate::capture::link::embedded_root;
use crate::capture::parts::safe_path::OpenFolder;

/// What the names of copied state files begin with, in a capture and in a point.
pub(crate) const FOLDER: &str = "tpm/";

/// The name of the copy of a state that is one file.
pub(crate) const SINGLE_FILE: &str = "tpm/state";

/// Where the state of an emulated TPM is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StatePlace {
    /// A folder of files.
    Folder(PathBuf),
    /// One file or block device.
    File(PathBuf),
}

/// Where a machine's TPM state is; none without an emulated TPM. The place that the definition names, or the folder
/// that the driver behind `uri` chooses for the UUID.
pub(crate) fn state_place(definition: &Definition, uri: &str, uuid: &str) -> Option<StatePlace> {
    let tpm = definition.tpm.as_ref().filter(|tpm| tpm.backend == "emulator")?;
    Some(match &tpm.state_path {
        Some(path) if tpm.state_is_file => StatePlace::File(path.clone()),
        Some(path) => StatePlace::Folder(path.clone()),
        None => StatePlace::Folder(storage(uri)?.join(uuid.to_ascii_lowercase()).join(version_folder(tpm))),
    })
}

/// The names of a TPM's state files. What has such a name and is no file is named too: whoever opens it finds out.
pub(crate) fn state_files(folder: &OpenFolder) -> Result<Vec<String>> {
    let names = folder.names()?.into_iter().filter_map(|name| name.into_string().ok());
    // A hidden file is swtpm's lock.
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

/// The name of the folder of this version's state.
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
    fn the_state_is_where_each_driver_keeps_it() {
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
