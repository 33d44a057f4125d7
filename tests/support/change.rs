//! Changes during a machine's life: disks are added, removed, resized and moved, its QEMU is restarted, and its
//! definition is rewritten.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::machine::{Machine, disk_xml};
use super::{Disk, DiskModel, process, wait_until};

impl Machine<'_> {
    /// Whether its QEMU runs.
    pub fn is_on(&self) -> bool {
        self.qemu_pid().is_some()
    }

    /// Writes zeros without unmapping clusters (`write -z`).
    #[track_caller]
    pub fn zero_keeping(&self, target: &str, offset: u64, length: u64) {
        self.io(target, &format!("write -z {offset} {length}"), "wrote ")
            .unwrap_or_else(|error| panic!("{target}: {error}"));
        self.change(target, |model| model.zero(offset, length));
    }

    /// Resizes a disk, live if the machine is on.
    #[track_caller]
    pub fn resize(&self, target: &str, capacity_bytes: u64) {
        self.try_resize(target, capacity_bytes).unwrap_or_else(|error| panic!("{target}: {error}"));
    }

    /// Resizes a disk, or returns why that was refused. The disk is then unchanged.
    pub fn try_resize(&self, target: &str, capacity_bytes: u64) -> Result<(), String> {
        if self.is_on() {
            let size = format!("{capacity_bytes}B");
            let output = self.env().try_virsh(&["blockresize", self.uuid(), target, &size]);
            if output.code() != 0 {
                return Err(output.stderr().to_owned());
            }
        } else {
            let size = capacity_bytes.to_string();
            let image = self.image(target).display().to_string();
            try_run("qemu-img", &["resize", "-q", "--shrink", "-f", self.format(target), &image, &size])?;
        }
        self.change(target, |model| model.resize(capacity_bytes));
        Ok(())
    }

    /// Attaches a disk, persistently and - if the machine is on - live. Without an operating system in the machine,
    /// only disks on a SCSI bus can be detached again.
    #[track_caller]
    pub fn attach(&mut self, target: &str, disk: Disk) {
        let disk = disk.target(target);
        let (image, model) = self.env().machine(self.name()).make_image(&disk, target);
        let xml = self.env().path(format!("plug-{target}.xml"));
        fs::write(&xml, disk_xml(&disk, target, &image)).expect("cannot write");
        let on = self.is_on();
        let live: &[&str] = if on { &["--live", "--config"] } else { &["--config"] };
        self.env().virsh(&[&["attach-device", self.uuid(), &xml.display().to_string()], live].concat());
        self.put_disk(target, &image, disk.format(), model);
        if on {
            self.reconnect();
        }
    }

    /// Detaches a disk, and keeps its image.
    #[track_caller]
    pub fn detach(&mut self, target: &str) {
        let on = self.is_on();
        let live: &[&str] = if on { &["--live", "--config"] } else { &["--config"] };
        self.env().virsh(&[&["detach-disk", self.uuid(), target], live].concat());
        self.drop_disk(target);
        if on {
            self.reconnect();
        }
    }

    /// Switches a disk to another image (an overlay or a copy) with the same content.
    pub fn moved_to(&mut self, target: &str, image: &Path) {
        let (format, model) = (self.format(target).to_owned(), self.model(target));
        self.put_disk(target, image, &format, model);
        if self.is_on() {
            self.reconnect();
        }
    }

    /// Updates the model from the image, for example after a crash. The machine must be off.
    pub fn believe_image(&self, target: &str) {
        let image = self.image(target).display().to_string();
        // A killed QEMU holds its image locks until its last thread has ended.
        wait_until("the image is free", Duration::from_secs(60), || {
            let info = Command::new("qemu-img").args(["info", "-f", self.format(target), &image]).output();
            info.expect("qemu-img").status.success()
        });
        let found = DiskModel::from_image(self.image(target), self.format(target));
        self.change(target, |model| *model = found);
    }

    /// Ends QEMU as a guest's shutdown does, without libvirt. No client may be reading from it, because QEMU would
    /// wait.
    pub fn quit(&self) {
        self.qmp("quit", serde_json::json!({}));
        self.disconnect();
        wait_until("QEMU is gone", Duration::from_secs(60), || !self.is_on());
    }

    /// Starts the machine after its QEMU has ended, once libvirt has noticed that.
    pub fn start_after_its_end(&self) {
        self.virsh_settled(&format!("start --paused {}", self.uuid())).assert_stderr_has("not running");
        self.connect();
    }

    /// Starts the machine, whether it was stopped or its QEMU has ended.
    #[track_caller]
    pub fn start_again(&self) {
        self.virsh_settled(&format!("start --paused {}", self.uuid()));
        assert!(self.is_on(), "{} does not start", self.name());
        self.connect();
    }

    /// Removes the definition with libvirt's checkpoint metadata, and defines a changed one. The machine must be off
    /// unless nothing changes.
    #[track_caller]
    pub fn redefine(&self, change: impl FnOnce(String) -> String) {
        let xml = change(self.definition());
        self.env().virsh(&["undefine", self.uuid(), "--checkpoints-metadata", "--snapshots-metadata"]);
        self.env().define_xml(&xml);
    }

    /// Starts the machine under its new name (see [`Machine::redefine`]).
    pub fn start_paused_as(&mut self, name: &str) {
        self.set_name(name);
        self.start_paused();
    }

    /// Returns the process ids of the test's processes other than QEMU: the servers of a capture.
    pub fn servers(&self) -> Vec<i32> {
        process::of(&self.env().path(""))
            .iter()
            .filter(|p| p.command_line.contains("qemu-nbd") || p.command_line.contains("qemu-storage-daemon"))
            .map(|p| p.pid)
            .collect()
    }
}

impl super::Env {
    /// Defines a machine from XML.
    #[track_caller]
    pub fn define_xml(&self, xml: &str) {
        let file = tempfile::NamedTempFile::new_in(self.path("tmp")).expect("a file");
        fs::write(file.path(), xml).expect("cannot write");
        self.virsh(&["define", &file.path().display().to_string()]);
    }
}

/// Returns the bitmaps in a qcow2 image.
pub fn bitmaps(image: &Path) -> Vec<String> {
    let output = run("qemu-img", &["info", "-U", "--output=json", "-f", "qcow2", &image.display().to_string()]);
    let info: serde_json::Value = serde_json::from_str(&output).expect("qemu-img's JSON");
    let list = info["format-specific"]["data"]["bitmaps"].as_array().cloned().unwrap_or_default();
    list.iter().map(|bitmap| bitmap["name"].as_str().expect("a name").to_owned()).collect()
}

/// Runs a program that must succeed, and returns its standard output.
#[track_caller]
pub fn run(program: &str, args: &[&str]) -> String {
    try_run(program, args).unwrap_or_else(|error| panic!("{error}"))
}

/// Runs a program, and returns its standard output or its error.
pub fn try_run(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    if !output.status.success() {
        return Err(format!("{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Copies an image into the same folder.
pub fn copy_image(image: &Path, name: &str) -> PathBuf {
    let copy = image.with_file_name(name);
    fs::copy(image, &copy).expect("cannot copy");
    copy
}
