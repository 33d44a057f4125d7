//! QEMU machines without an operating system, written to through their live block layer.
//!
//! A paused machine needs no guest: QEMU's `qemu-io` monitor command writes through the same block layer as a guest, so
//! dirty bitmaps and backup jobs see the writes. The commands go through a second monitor (see [`super::qmp`]), so that
//! a test can write *while* kvmb has libvirt open and reads.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};

use super::qmp::Qmp;
use super::{DiskModel, Env, Output, process, set_mode, wait_until};

/// Maximum size of a single write, below QEMU's limit for a request.
const LONGEST_WRITE: u64 = 64 << 20;

/// A disk to be created.
pub struct Disk {
    format: String,
    capacity_bytes: u64,
    /// An existing image, if there is one.
    image: Option<PathBuf>,
    folder: Option<PathBuf>,
    file_name: Option<String>,
    target: Option<String>,
    bus: String,
    options: Vec<String>,
    backing: Option<(PathBuf, String)>,
    driver: String,
    extra_xml: String,
    source_xml: String,
}

impl Disk {
    pub fn qcow2(capacity_bytes: u64) -> Disk {
        Disk::of("qcow2", capacity_bytes)
    }

    pub fn raw(capacity_bytes: u64) -> Disk {
        Disk::of("raw", capacity_bytes)
    }

    /// Uses an existing image.
    pub fn existing(path: &Path, format: &str) -> Disk {
        Disk { image: Some(path.to_owned()), ..Disk::of(format, 0) }
    }

    fn of(format: &str, capacity_bytes: u64) -> Disk {
        Disk {
            format: format.to_owned(),
            capacity_bytes,
            image: None,
            folder: None,
            file_name: None,
            target: None,
            bus: "virtio".to_owned(),
            options: Vec::new(),
            backing: None,
            driver: String::new(),
            extra_xml: String::new(),
            source_xml: String::new(),
        }
    }

    pub(super) fn format(&self) -> &str {
        &self.format
    }

    /// Sets its target; by default `vda`, `vdb` … in order.
    pub fn target(mut self, target: &str) -> Disk {
        self.target = Some(target.to_owned());
        self
    }

    /// Sets its bus; `virtio` by default.
    pub fn bus(mut self, bus: &str) -> Disk {
        self.bus = bus.to_owned();
        self
    }

    /// Sets the image's file name.
    pub fn file_name(mut self, name: &str) -> Disk {
        self.file_name = Some(name.to_owned());
        self
    }

    /// Sets the image's folder.
    pub fn folder(mut self, folder: &Path) -> Disk {
        self.folder = Some(folder.to_owned());
        self
    }

    /// Adds an option of `qemu-img create`, such as `compat=0.10` or `cluster_size=4k`.
    pub fn option(mut self, option: &str) -> Disk {
        self.options.push(option.to_owned());
        self
    }

    /// Sets its backing image.
    pub fn backing(mut self, path: &Path, format: &str) -> Disk {
        self.backing = Some((path.to_owned(), format.to_owned()));
        self
    }

    /// Sets attributes of `<driver>`, such as `error_policy='report'`.
    pub fn driver(mut self, attributes: &str) -> Disk {
        self.driver = attributes.to_owned();
        self
    }

    /// Sets elements inside `<source>`, such as `<dataStore>`.
    pub fn source_xml(mut self, xml: &str) -> Disk {
        self.source_xml = xml.to_owned();
        self
    }

    /// Sets elements inside `<disk>`, such as `<readonly/>`.
    pub fn extra_xml(mut self, xml: &str) -> Disk {
        self.extra_xml = xml.to_owned();
        self
    }
}

/// A machine to be created.
pub struct MachineBuilder<'e> {
    env: &'e Env,
    name: String,
    uuid: String,
    disks: Vec<Disk>,
    memory_mib: u32,
    os_xml: String,
    devices_xml: String,
}

impl<'e> MachineBuilder<'e> {
    pub(super) fn new(env: &'e Env, name: &str) -> MachineBuilder<'e> {
        MachineBuilder {
            env,
            name: name.to_owned(),
            uuid: uuid::Uuid::new_v4().to_string(),
            disks: Vec::new(),
            memory_mib: 32,
            os_xml: String::new(),
            devices_xml: String::new(),
        }
    }

    pub fn disk(mut self, disk: Disk) -> Self {
        self.disks.push(disk);
        self
    }

    /// Sets its UUID; a new one by default.
    pub fn uuid(mut self, uuid: &str) -> Self {
        self.uuid = uuid.to_owned();
        self
    }

    /// Sets its memory; 32 MiB by default.
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// Adds elements inside `<os>`.
    pub fn os_xml(mut self, xml: &str) -> Self {
        self.os_xml.push_str(xml);
        self
    }

    /// Adds elements inside `<devices>`.
    pub fn devices_xml(mut self, xml: &str) -> Self {
        self.devices_xml.push_str(xml);
        self
    }

    /// Creates the images and the definition; the machine is off.
    pub fn define(self) -> Machine<'e> {
        self.make("define", None)
    }

    /// Creates the machine and starts it paused.
    pub fn start_paused(self) -> Machine<'e> {
        self.make_and_connect("define", Some("start --paused"))
    }

    /// Creates the machine and starts it.
    pub fn start(self) -> Machine<'e> {
        self.make_and_connect("define", Some("start"))
    }

    /// Starts a transient machine paused.
    pub fn start_transient(self) -> Machine<'e> {
        self.make_and_connect("create --paused", None)
    }

    fn make_and_connect(self, how: &str, then: Option<&str>) -> Machine<'e> {
        let machine = self.make(how, then);
        machine.connect();
        machine
    }

    /// Creates the machine with these virsh commands in a single call, because opening the embedded driver takes time.
    fn make(self, how: &str, then: Option<&str>) -> Machine<'e> {
        let number = self.env.machines.fetch_add(1, Ordering::Relaxed);
        let qmp_socket = self.env.path(format!("qmp/{number}.sock"));
        let mut images = BTreeMap::new();
        let mut models = BTreeMap::new();
        let mut disks_xml = String::new();
        for (disk, letter) in self.disks.iter().zip('a'..='z') {
            let target = disk.target.clone().unwrap_or_else(|| format!("vd{letter}"));
            let (image, model) = self.make_image(disk, &target);
            disks_xml.push_str(&disk_xml(disk, &target, &image));
            images.insert(target.clone(), (image, disk.format.clone()));
            models.insert(target, model);
        }
        let uuid = self.uuid;
        let xml = format!(
            "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\n\
             <name>{name}</name><uuid>{uuid}</uuid>\n\
             <memory unit='MiB'>{memory}</memory><vcpu>1</vcpu>\n\
             <os><type arch='x86_64' machine='q35'>hvm</type>{os}</os>\n\
             <features><acpi/></features>\n\
             <devices>\n<emulator>{emulator}</emulator>\n{disks_xml}{devices}\
             <controller type='usb' model='none'/><memballoon model='none'/>\n</devices>\n\
             <qemu:commandline><qemu:arg value='-qmp'/>\
             <qemu:arg value='unix:{socket},server=on,wait=off'/></qemu:commandline>\n</domain>\n",
            name = escaped(&self.name),
            memory = self.memory_mib,
            os = self.os_xml,
            emulator = super::parts::find("qemu-system-x86_64").expect("QEMU").display(),
            devices = self.devices_xml,
            socket = qmp_socket.display(),
        );
        let definition = self.env.path(format!("machine-{number}.xml"));
        fs::write(&definition, xml).expect("cannot write");
        let then = then.map_or(String::new(), |command| format!("; {command} {uuid}"));
        self.env.virsh(&[&format!("{how} '{}'{then}", definition.display())]);
        Machine {
            env: self.env,
            name: self.name,
            uuid,
            images,
            models: Mutex::new(models),
            monitor: Mutex::new(None),
            qmp_socket,
        }
    }

    pub(super) fn make_image(&self, disk: &Disk, target: &str) -> (PathBuf, DiskModel) {
        if let Some(image) = &disk.image {
            return (image.clone(), DiskModel::from_image(image, &disk.format));
        }
        let name = disk
            .file_name
            .clone()
            .unwrap_or_else(|| format!("{}-{target}.{}", self.name.replace('/', "_"), disk.format));
        let image = disk.folder.clone().unwrap_or_else(|| self.env.disks()).join(name);
        if disk.format == "raw" {
            // qemu-img would round the size up.
            fs::File::create(&image).and_then(|file| file.set_len(disk.capacity_bytes)).expect("cannot make the image");
            return (image, DiskModel::new(disk.capacity_bytes));
        }
        let mut command = Command::new("qemu-img");
        command.args(["create", "-q", "-f", &disk.format]);
        if !disk.options.is_empty() {
            command.args(["-o", &disk.options.join(",")]);
        }
        let mut model = DiskModel::new(disk.capacity_bytes);
        if let Some((path, format)) = &disk.backing {
            command.arg("-b").arg(path).args(["-F", format]);
            model = DiskModel::from_image(path, format);
            model.resize(disk.capacity_bytes);
        }
        command.arg("--").arg(&image).arg(disk.capacity_bytes.to_string());
        let output = command.output().expect("qemu-img");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (image, model)
    }
}

pub(super) fn disk_xml(disk: &Disk, target: &str, image: &Path) -> String {
    format!(
        "<disk type='file' device='disk'><driver name='qemu' type='{format}' discard='unmap' {driver}/>\
         <source file='{image}'>{inside}</source><target dev='{target}' bus='{bus}'/>{extra}</disk>\n",
        format = disk.format,
        driver = disk.driver,
        image = escaped(image.to_str().expect("UTF-8")),
        bus = disk.bus,
        inside = disk.source_xml,
        extra = disk.extra_xml,
    )
}

/// Escapes text for XML.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;").replace('"', "&quot;")
}

/// The second monitor of a running machine.
struct Monitor {
    qmp: Qmp,
    /// Target → the device path for `qemu-io -d`.
    devices: BTreeMap<String, String>,
}

/// A machine, which ends with its [`Env`].
pub struct Machine<'e> {
    env: &'e Env,
    name: String,
    uuid: String,
    /// Target → image and format.
    images: BTreeMap<String, (PathBuf, String)>,
    models: Mutex<BTreeMap<String, DiskModel>>,
    monitor: Mutex<Option<Monitor>>,
    qmp_socket: PathBuf,
}

impl<'e> Machine<'e> {
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn uuid(&self) -> &str {
        &self.uuid
    }

    pub fn env(&self) -> &'e Env {
        self.env
    }

    /// Returns the sorted targets of its disks.
    pub fn targets(&self) -> Vec<String> {
        self.images.keys().cloned().collect()
    }

    /// Returns a disk's image.
    pub fn image(&self, target: &str) -> &Path {
        &self.images[target].0
    }

    /// Returns a disk's image format.
    pub fn format(&self, target: &str) -> &str {
        &self.images[target].1
    }

    /// Returns a copy of the model of a disk's current content.
    pub fn model(&self, target: &str) -> DiskModel {
        self.models.lock().expect("lock")[target].clone()
    }

    /// Returns copies of the models of all disks.
    pub fn models(&self) -> BTreeMap<String, DiskModel> {
        self.models.lock().expect("lock").clone()
    }

    /// Starts it with halted processors.
    pub fn start_paused(&self) {
        self.env.virsh(&["start", "--paused", &self.uuid]);
        self.connect();
    }

    pub fn start(&self) {
        self.env.virsh(&["start", &self.uuid]);
        self.connect();
    }

    /// Stops it with `virsh destroy`: QEMU closes its images.
    pub fn stop(&self) {
        self.monitor.lock().expect("lock").take();
        self.virsh_settled(&format!("destroy {}", self.uuid)).assert_ok();
    }

    /// Runs a virsh command that does not itself wait until libvirt has reconnected to the machine.
    ///
    /// A process that opens the embedded root connects to the running machines in the background. Most calls wait for
    /// that, but some do not: a `destroy` as the first call reports that the machine "is not running" (and kills it),
    /// and an agent command reports that the agent is "not connected".
    pub fn virsh_settled(&self, command: &str) -> Output {
        let settle = format!("qemu-monitor-command {} --hmp 'info status'", self.uuid);
        self.env.try_virsh(&[&format!("{settle}; {command}")])
    }

    /// Kills its QEMU (`kill -9`): a crash.
    pub fn kill(&self) {
        self.monitor.lock().expect("lock").take();
        let pid = self.qemu_pid().expect("the machine is off");
        process::kill(pid);
        // A killed QEMU may remain a zombie until init reaps it, which does not matter.
        wait_until("QEMU is gone", Duration::from_secs(60), || self.qemu_pid().is_none());
    }

    /// Returns the process id of its QEMU, if it is running.
    pub fn qemu_pid(&self) -> Option<i32> {
        let needle = format!("guest={}", self.name);
        let of_us = process::of(&self.env.path(""));
        of_us
            .iter()
            .find(|p| p.is("qemu-system-x86_64") && p.command_line.contains(&self.uuid))
            .or_else(|| of_us.iter().find(|p| p.command_line.contains(&needle)))
            .map(|p| p.pid)
    }

    /// Returns QEMU's word for its state: `paused`, `prelaunch` (started paused), `running`, `io-error` …; `off` if
    /// QEMU is not running.
    pub fn status(&self) -> String {
        if self.qemu_pid().is_none() {
            return "off".to_owned();
        }
        let status = self.qmp("query-status", json!({}));
        status["status"].as_str().expect("status").to_owned()
    }

    /// Returns its persistent definition.
    pub fn definition(&self) -> String {
        self.env.virsh(&["dumpxml", "--inactive", &self.uuid])
    }

    /// Returns its checkpoints. The embedded driver's are listed from its files, which is faster.
    pub fn checkpoints(&self) -> Vec<String> {
        if !self.env.has_libvirtd() {
            let folder = self.env.libvirt_root().join("lib/qemu/checkpoint").join(&self.name);
            let files = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.expect("an entry").path());
            // A file that is being written has another suffix.
            let name = |path: PathBuf| Some(path.file_name()?.to_str()?.strip_suffix(".xml")?.to_owned());
            let mut names: Vec<String> = files.filter_map(name).collect();
            names.sort();
            return names;
        }
        let names = self.env.virsh(&["checkpoint-list", "--name", &self.uuid]);
        names.lines().map(str::trim).filter(|n| !n.is_empty()).map(str::to_owned).collect()
    }

    /// Whether QEMU has a backup job or an export, so that a capture is open. Does not use libvirt.
    pub fn is_captured(&self) -> bool {
        ["query-jobs", "query-block-exports"].iter().any(|query| {
            let list = self.qmp(query, json!({}));
            list.as_array().is_some_and(|list| !list.is_empty())
        })
    }

    /// Runs a monitor command.
    pub fn qmp(&self, command: &str, arguments: Value) -> Value {
        self.with_monitor(|monitor| monitor.qmp.call(command, arguments))
    }

    /// Fills a range with one byte, live if the machine is on.
    #[track_caller]
    pub fn write(&self, target: &str, offset: u64, length: u64, pattern: u8) {
        self.try_write(target, offset, length, pattern).unwrap_or_else(|error| panic!("{target}: {error}"));
    }

    /// Like `write`, but returns QEMU's error. The model is then unchanged.
    pub fn try_write(&self, target: &str, offset: u64, length: u64, pattern: u8) -> Result<(), String> {
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let count = (end - at).min(LONGEST_WRITE);
            self.io(target, &format!("write -P {pattern} {at} {count}"), "wrote ")?;
            self.change(target, |model| model.fill(at, count, pattern));
            at += count;
        }
        Ok(())
    }

    /// Writes bytes, live if the machine is on.
    #[track_caller]
    pub fn write_bytes(&self, target: &str, offset: u64, bytes: &[u8]) {
        // The name contains the target because disks of one machine may be written concurrently.
        let source = self.qmp_socket.with_extension(format!("{target}.bytes"));
        fs::write(&source, bytes).expect("cannot write");
        set_mode(&source, 0o644);
        let command = format!("write -s {} {offset} {}", source.display(), bytes.len());
        self.io(target, &command, "wrote ").unwrap_or_else(|error| panic!("{target}: {error}"));
        self.change(target, |model| model.write(offset, bytes));
    }

    /// Flushes a disk.
    pub fn flush(&self, target: &str) {
        self.with_monitor(|monitor| {
            let line = format!("qemu-io -d {} flush", monitor.devices[target]);
            monitor.qmp.call("human-monitor-command", json!({"command-line": line}))
        });
    }

    /// Zeroes a range and unmaps its clusters (`write -z -u`).
    #[track_caller]
    pub fn zero(&self, target: &str, offset: u64, length: u64) {
        self.io(target, &format!("write -z -u {offset} {length}"), "wrote ")
            .unwrap_or_else(|error| panic!("{target}: {error}"));
        self.change(target, |model| model.zero(offset, length));
    }

    /// Discards a range, which must be aligned to 64 KiB, so that it reads as zero.
    #[track_caller]
    pub fn discard(&self, target: &str, offset: u64, length: u64) {
        assert!(self.try_discard(target, offset, length), "{target}: {length} bytes from {offset} are still there");
    }

    /// Discards a range if QEMU does so: a discard is only a hint, which QEMU ignores while a backup job runs. Returns
    /// whether the range now reads as zero.
    #[track_caller]
    pub fn try_discard(&self, target: &str, offset: u64, length: u64) -> bool {
        assert!(offset.is_multiple_of(65536) && length.is_multiple_of(65536), "only whole clusters go");
        let io = |command: &str, wanted: &str| self.io(target, &format!("{command} {offset} {length}"), wanted);
        io("discard", "discard ").unwrap_or_else(|error| panic!("{target}: {error}"));
        match io("read -P 0", "read ") {
            Ok(()) => {
                self.change(target, |model| model.zero(offset, length));
                true
            }
            Err(error) if error.contains("Pattern verification failed") => false,
            Err(error) => panic!("{target}: {error}"),
        }
    }

    /// Fails unless the image equals the model. The machine must be off (unless the image is raw).
    #[track_caller]
    pub fn assert_image_equals_model(&self, target: &str) {
        let (image, format) = &self.images[target];
        self.model(target).assert_image_equals(image, format);
    }

    /// Updates the model after a write that bypassed QEMU.
    pub fn change(&self, target: &str, change: impl FnOnce(&mut DiskModel)) {
        let mut models = self.models.lock().expect("lock");
        change(models.get_mut(target).expect("no such disk"));
    }

    /// Opens the second monitor. This is done directly after the start, because a restored copy of the machine would
    /// take over the socket, but not this connection.
    pub(super) fn connect(&self) {
        let mut qmp = Qmp::connect(&self.qmp_socket);
        let list = qmp.call("query-block", json!({}));
        let mut devices = BTreeMap::new();
        for block in list.as_array().expect("a list") {
            let file = block["inserted"]["image"]["filename"].as_str().unwrap_or_default();
            // During a live restore, each disk is an overlay next to its image.
            let is_disk =
                |target: &str, image: &Path| Path::new(file) == image || file.ends_with(&format!("-{target}.overlay"));
            let target = self.images.iter().find(|(target, (image, _))| is_disk(target, image));
            if let (Some((target, _)), Some(device)) = (target, block["qdev"].as_str()) {
                devices.insert(target.clone(), device.to_owned());
            }
        }
        *self.monitor.lock().expect("lock") = Some(Monitor { qmp, devices });
    }

    /// Reopens the second monitor, after a disk was added or removed or another program started the machine.
    pub fn reconnect(&self) {
        self.disconnect();
        self.connect();
    }

    /// Closes the second monitor, so that writes go to the images.
    pub fn disconnect(&self) {
        self.monitor.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
    }

    /// Records a new or changed disk.
    pub fn put_disk(&mut self, target: &str, image: &Path, format: &str, model: DiskModel) {
        self.images.insert(target.to_owned(), (image.to_owned(), format.to_owned()));
        self.models.lock().expect("lock").insert(target.to_owned(), model);
    }

    /// Records its new name.
    pub(super) fn set_name(&mut self, name: &str) {
        self.name = name.to_owned();
    }

    /// Removes a disk from the records.
    pub(super) fn drop_disk(&mut self, target: &str) {
        self.images.remove(target);
        self.models.lock().expect("lock").remove(target);
    }

    fn with_monitor<T>(&self, act: impl FnOnce(&mut Monitor) -> T) -> T {
        let mut monitor = self.monitor.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        act(monitor.as_mut().expect("the machine is off"))
    }

    /// Runs a `qemu-io` command: through the monitor if the machine is on, otherwise on its image.
    pub(super) fn io(&self, target: &str, command: &str, wanted: &str) -> Result<(), String> {
        if self.monitor.lock().expect("lock").is_none() {
            return self.io_on_image(target, command, wanted);
        }
        self.with_monitor(|monitor| {
            let device = monitor
                .devices
                .get(target)
                .unwrap_or_else(|| panic!("{}: no disk {target}; there are {:?}", self.name, monitor.devices));
            let line = format!("qemu-io -d {device} \"{command}\"");
            // The monitor returns nothing; the result of the command is in QEMU's log.
            let log = self.env.libvirt_root().join(format!("log/qemu/{}.log", self.name));
            let log = fs::File::open(&log).unwrap_or_else(|error| panic!("{}: {error}", log.display()));
            let start = log.metadata().expect("stat").len();
            monitor.qmp.call("human-monitor-command", json!({"command-line": line}));
            let mut said = vec![0; 4096];
            let count = log.read_at(&mut said, start).expect("read");
            judge(command, wanted, &String::from_utf8_lossy(&said[..count]))
        })
    }

    fn io_on_image(&self, target: &str, command: &str, wanted: &str) -> Result<(), String> {
        let (image, format) = &self.images[target];
        let output = Command::new("qemu-io")
            .args(["-d", "unmap", "-f", format, "-c", command])
            .arg(image)
            .output()
            .expect("qemu-io");
        let said = [output.stdout, output.stderr].concat();
        judge(command, wanted, &String::from_utf8_lossy(&said))
    }
}

fn judge(command: &str, wanted: &str, said: &str) -> Result<(), String> {
    if said.lines().any(|line| line.starts_with(wanted)) && !said.contains("failed") {
        return Ok(());
    }
    Err(format!("{command}: {}", said.trim()))
}

/// A disk of any machine's definition.
#[derive(Debug, Clone)]
pub struct DefinedDisk {
    pub target: String,
    pub image: PathBuf,
    pub format: String,
}

impl Env {
    /// Returns the file-backed disks of a machine from its definition; it may have been created by kvmb.
    pub fn disks_of(&self, machine: &str) -> Vec<DefinedDisk> {
        let xml = self.virsh(&["dumpxml", "--inactive", "--domain", machine]);
        let document = roxmltree::Document::parse(&xml).expect("libvirt's XML");
        let disks = document.descendants().filter(|node| node.has_tag_name("disk"));
        disks
            .filter_map(|disk| {
                let child = |name: &str, attribute: &str| {
                    let child = disk.children().find(|child| child.has_tag_name(name))?;
                    child.attribute(attribute).map(str::to_owned)
                };
                Some(DefinedDisk {
                    target: child("target", "dev")?,
                    image: child("source", "file")?.into(),
                    format: child("driver", "type")?,
                })
            })
            .collect()
    }
}
