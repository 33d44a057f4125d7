//! The session of a disk: the time during which one QEMU process has it open.
//!
//! A qcow2 image may have its data in an external raw file (`data_file`). Any program can write to that file, and no
//! dirty bitmap tracks such writes. While QEMU has the disk open, its image locks exclude other programs that use
//! QEMU's block layer. Therefore "changed since the parent point" is only trusted if the same process has had the disk
//! open since that point.

use std::fs;

use serde::{Deserialize, Serialize};

use super::process::{ServerProcess, start_ticks};

/// A period during which one QEMU process has a disk open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DiskSession {
    /// The host's boot id. Process ids and start times are only unique within a boot.
    boot_id: String,
    process: ServerProcess,
    /// The index that libvirt assigned to the image when QEMU opened it (`<source index='…'>`). A process assigns each
    /// index once, so a disk that was detached and attached again has a different one.
    source_index: String,
}

impl DiskSession {
    /// The session of an image that this process has open with that index. `None` if the process is gone.
    pub(super) fn new(pid: u32, source_index: String) -> Option<DiskSession> {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned();
        let process = ServerProcess { pid, started_ticks: start_ticks(pid)? };
        Some(DiskSession { boot_id, process, source_index })
    }
}
