//! The parts of a machine that a point contains in addition to disks, and those that it lacks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A file of the host that is in a point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PointFile {
    /// Its role in the machine: `nvram` (firmware variables), `tpm` (state of an emulated TPM), `kernel`, `initrd`; or
    /// a file that the definition mentions: `loader`, `nvram_template`, `option_rom`, `acpi_table`, `fw_cfg`,
    /// `device_tree`, `smbios`, `script`, `argument` (of QEMU's command line). `restore --with-files` restores those.
    pub part: String,
    /// Its path on the host.
    pub path: String,
    /// Its size.
    pub size_bytes: u64,
}

/// A part of a machine that is not in its point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeftOut {
    /// The disk's target name, if it is a disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
    /// Another part of the machine. The machine needs `nvram` (firmware variables), `tpm`, `kernel` and `initrd`: if
    /// one of them is missing, a `failure` with the code `part_missing` follows the record of the new point, and the
    /// exit code is 3. The others may exist on the host to restore to: the words of `part` in `files`, `memory_device`,
    /// `persistent_store`, `shared_folder` (virtiofs, 9p), and `drive` (of QEMU's command line).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<String>,
    /// The file, device or folder of that part; the image or medium of a disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Why it is missing.
    pub reason: String,
}

impl LeftOut {
    /// Returns whether the machine needs this part.
    pub fn is_required(&self) -> bool {
        matches!(self.part.as_deref(), Some("nvram" | "tpm" | "kernel" | "initrd"))
    }
}
