//! The session of a disk: how long one QEMU process has had it open.
//!
//! The data of a qcow2 image may be in a raw file beside it (`data_file`), which any program can write to, and no dirty
//! bitmap shows that. As long as QEMU has the disk open, its image locks keep other programs of QEMU's out. So
//! «changed since the parent point» is only believed when the same process has had the disk open since that point.

use std::fs;

use serde::{Deserialize, Serialize};

use super::process::{ServerProcess, start_ticks};

/// One opening of a disk by one QEMU process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DiskSession {
    /// The host's boot, since which process numbers and start times count.
    boot_id: String,
    process: ServerProcess,
    /// The number that libvirt gave the image when QEMU opened it (`<source index='…'>`). A process gets each number
    /// once, so a disk that was detached and attached again has another one.
    source_index: String,
}

impl DiskSession {
    /// Of an image that this process has open under that number; none when the process is gone.
    pub(super) fn new(pid: u32, source_index: String) -> Option<DiskSession> {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned();
        let process = ServerProcess { pid, started_ticks: start_ticks(pid)? };
        Some(DiskSession { boot_id, process, source_index })
    }
}
