//! Machines without an operating system, captured by the test process: the embedded driver can open one root per
//! process, so all tests share one, and each has its own machines and folders. Patterns are written through QEMU's
//! block layer, by a private QMP socket.
//!
//! `KVMB_TEST_CONNECT=qemu:///system` runs the same tests against a daemon.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use kvmb::capture::agent::{FreezeMode, FreezeOptions};
use kvmb::capture::state::{CaptureFile, CaptureState};
use kvmb::capture::{
    CloseRequest, DiskRequest, Error, Hypervisor, Machine, OpenRequest, RuntimeDirs, close_capture, open_capture,
};

const MIB: usize = 1 << 20;

/// A test's folders in the shared root.
pub(crate) struct Lab {
    pub(crate) name: String,
    pub(crate) folder: PathBuf,
    pub(crate) hypervisor: Hypervisor,
    pub(crate) runtime: RuntimeDirs,
}

/// A disk image to be created.
pub(crate) struct Image {
    pub(crate) target: String,
    pub(crate) format: &'static str,
    pub(crate) size_mib: usize,
}

/// A machine, which is destroyed at the end of its test.
pub(crate) struct Vm {
    pub(crate) machine: Machine,
    pub(crate) folder: PathBuf,
    pub(crate) owned: bool,
}

impl Image {
    pub(crate) fn qcow2(target: &str, size_mib: usize) -> Image {
        Image { target: target.into(), format: "qcow2", size_mib }
    }

    pub(crate) fn raw(target: &str, size_mib: usize) -> Image {
        Image { target: target.into(), format: "raw", size_mib }
    }
}

/// Returns the root of this test process, after removing those of processes that have ended.
pub(crate) fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        const PREFIX: &str = "kvmb-test-capture-";
        for entry in fs::read_dir("/tmp").unwrap().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(pid) = name.strip_prefix(PREFIX)
                && !Path::new("/proc").join(pid).exists()
            {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let root = PathBuf::from(format!("/tmp/{PREFIX}{}", std::process::id()));
        fs::create_dir_all(root.join("etc")).unwrap();
        // virtlogd is not needed.
        fs::write(root.join("etc/qemu.conf"), "stdio_handler = \"file\"\n").unwrap();
        crate::support::libvirt::bring_capabilities(&root);
        root
    })
}

/// Returns the daemon to test against, if there is one.
pub(crate) fn connect() -> Option<String> {
    std::env::var("KVMB_TEST_CONNECT").ok()
}

/// Returns the connection URI of all labs.
pub(crate) fn uri() -> String {
    connect().unwrap_or_else(|| format!("qemu:///embed?root={}", root().display()))
}

impl Lab {
    pub(crate) fn new(name: &str) -> Lab {
        crate::support::processor::settle();
        let root = root();
        let folder = root.join(name);
        fs::create_dir_all(&folder).unwrap();
        Lab {
            name: name.into(),
            hypervisor: Hypervisor::open(Some(&uri())).unwrap(),
            runtime: RuntimeDirs::open_at(&folder.join("run")).unwrap().with_scratch_folder(folder.join("scratch")),
            folder,
        }
    }

    pub(crate) fn off(&self, images: &[Image]) -> Vm {
        self.named(&format!("kvmb-test-{}", self.name), images)
    }

    pub(crate) fn running(&self, images: &[Image]) -> Vm {
        let vm = self.off(images);
        vm.start();
        vm
    }

    pub(crate) fn named(&self, name: &str, images: &[Image]) -> Vm {
        let folder = self.qemu_folder("disks");
        let mut disks = String::new();
        for image in images {
            let path = folder.join(format!("{}.img", image.target));
            let _ = fs::remove_file(&path);
            let size = format!("{}M", image.size_mib);
            let created = Command::new("qemu-img")
                .args(["create", "-q", "-f", image.format])
                .arg(&path)
                .arg(size)
                .status()
                .unwrap();
            assert!(created.success());
            let bus = if image.target.starts_with("sd") { "scsi" } else { "virtio" };
            disks += &format!(
                "<disk type='file' device='disk'><driver name='qemu' type='{}' discard='unmap'/>\
                 <source file='{}'/><target dev='{}' bus='{bus}'/><serial>{}</serial></disk>",
                image.format,
                path.display(),
                image.target,
                image.target,
            );
        }
        let xml = format!(
            "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\
             <name>{}</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='pc'>hvm</type></os><devices>\
             <emulator>/usr/bin/qemu-system-x86_64</emulator>{disks}\
             <controller type='scsi' index='0' model='virtio-scsi'/>\
             <interface type='user'><model type='virtio'/></interface><serial type='pty'/></devices>\
             <qemu:commandline><qemu:arg value='-qmp'/>\
             <qemu:arg value='unix:{}/qmp,server=on,wait=off'/></qemu:commandline></domain>",
            escape(name),
            folder.display()
        );
        let machine = self.hypervisor.define(&xml).unwrap();
        crate::support::libvirt::keep_capabilities(root());
        Vm { machine, folder, owned: true }
    }

    /// Creates a folder that QEMU's user can write to.
    pub(crate) fn qemu_folder(&self, name: &str) -> PathBuf {
        let folder = self.folder.join(name);
        fs::create_dir_all(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
        folder
    }

    pub(crate) fn request(&self, targets: &[&str]) -> OpenRequest {
        OpenRequest {
            disks: targets.iter().map(|target| DiskRequest::full(*target)).collect(),
            ..OpenRequest::default()
        }
    }

    pub(crate) fn open(&self, vm: &Vm, request: OpenRequest) -> Result<CaptureState, Error> {
        open_capture(&self.runtime, &vm.machine, &request)
    }

    pub(crate) fn commit(&self, state: &CaptureState, point: &str) {
        CaptureFile::open(&self.runtime, &state.id).unwrap().commit(point).unwrap();
    }

    pub(crate) fn close(&self, state: &CaptureState, request: &CloseRequest) -> kvmb::capture::ClosedCapture {
        let file = CaptureFile::open(&self.runtime, &state.id).unwrap();
        close_capture(&self.runtime, Some(&self.hypervisor), file, request).unwrap()
    }

    /// Reads the whole disk as a client sees it.
    pub(crate) fn read(&self, state: &CaptureState, target: &str) -> Vec<u8> {
        let copy = self.folder.join(format!("{target}.copy"));
        let uri = &state.disk(target).unwrap().nbd_uri;
        let output =
            Command::new("qemu-img").args(["convert", "-f", "raw", "-O", "raw", uri]).arg(&copy).output().unwrap();
        assert!(output.status.success(), "{uri}: {output:?}");
        fs::read(&copy).unwrap()
    }

    pub(crate) fn assert_nothing_left(&self, vm: &Vm) {
        assert_eq!(vm.machine.running_backup().unwrap(), None);
        assert!(CaptureFile::open_all(&self.runtime).unwrap().is_empty());
        for folder in [self.runtime.socket_folder(), self.runtime.scratch_folder()] {
            let left: Vec<_> = fs::read_dir(folder).into_iter().flatten().flatten().collect();
            assert!(left.is_empty(), "{left:?}");
        }
        let dirt: Vec<_> = fs::read_dir(self.runtime.state_folder())
            .unwrap()
            .flatten()
            .filter(|entry| !entry.file_name().to_string_lossy().starts_with("machine-"))
            .collect();
        assert!(dirt.is_empty(), "{dirt:?}");
    }
}

impl Vm {
    pub(crate) fn start(&self) {
        self.machine.start_paused().unwrap();
    }

    pub(crate) fn image(&self, target: &str) -> PathBuf {
        self.folder.join(format!("{target}.img"))
    }

    pub(crate) fn redefined(mut self, xml: &str) -> Vm {
        self.owned = false;
        let hypervisor = Hypervisor::open(Some(self.machine.uri())).unwrap();
        Vm { machine: hypervisor.define(xml).unwrap(), folder: self.folder.clone(), owned: true }
    }

    /// Ends QEMU as a guest's shutdown does: its images are closed properly.
    pub(crate) fn stop(&self) {
        self.monitor("quit", true);
        wait_until(|| !self.machine.is_running().unwrap());
    }

    pub(crate) fn kill(&self) {
        let pid = self.pid().unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        wait_until(|| !self.machine.is_running().unwrap());
    }

    /// Returns QEMU's process, found by its private socket. (libvirt XML-escapes the name in the pid file.)
    pub(crate) fn pid(&self) -> Option<rustix::process::Pid> {
        let socket = format!("unix:{}/qmp,", self.folder.display());
        let pids = fs::read_dir("/proc").ok()?.flatten();
        let pid = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(|pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            line.contains("qemu-system") && line.contains(&socket)
        });
        rustix::process::Pid::from_raw(pid?)
    }

    pub(crate) fn qemu_io(&self, target: &str, command: &str) {
        let blocks = self.monitor("info block", false);
        let mut device = None;
        let wanted = format!("/{target}.img ");
        let mut found = false;
        for line in blocks.lines() {
            if !line.starts_with(' ') {
                found = line.contains(&wanted);
            } else if let (true, Some(path)) = (found, line.trim().strip_prefix("Attached to:")) {
                device = Some(path.trim().to_owned());
            }
        }
        let device = device.unwrap_or_else(|| panic!("{target} is not in {blocks}"));
        let said = self.monitor(&format!("qemu-io -d {device} \"{command}\""), false);
        assert!(!said.contains("rror"), "{said}");
    }

    pub(crate) fn bitmaps(&self, target: &str) -> Vec<String> {
        let header = kvmb::capture::offline::image_lookup::read_header(&self.image(target), "qcow2").unwrap();
        header.bitmaps.iter().map(|bitmap| bitmap.name.clone()).collect()
    }

    /// Runs a human monitor command over the private QMP socket.
    pub(crate) fn monitor(&self, command: &str, ends: bool) -> String {
        let stream = crate::support::qmp::connect_when_it_listens(&self.folder.join("qmp"));
        let mut writer = stream.try_clone().unwrap();
        let mut lines = BufReader::new(stream).lines();
        lines.next().unwrap().unwrap();
        let mut ask = |request: serde_json::Value| -> Option<serde_json::Value> {
            writeln!(writer, "{request}").unwrap();
            loop {
                let line = lines.next()?.ok()?;
                let answer: serde_json::Value = serde_json::from_str(&line).unwrap();
                if answer.get("event").is_none() {
                    return Some(answer);
                }
            }
        };
        ask(serde_json::json!({"execute": "qmp_capabilities"})).unwrap();
        let answer = ask(serde_json::json!({
            "execute": "human-monitor-command",
            "arguments": {"command-line": command},
        }));
        match answer {
            Some(answer) => answer["return"].as_str().unwrap_or_default().to_owned(),
            None if ends => String::new(),
            None => panic!("QEMU ended during {command}"),
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        if self.machine.is_running().unwrap_or(false) {
            if let Some(pid) = self.pid() {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            let deadline = Instant::now() + Duration::from_secs(10);
            while self.machine.is_running().unwrap_or(false) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let _ = self.machine.undefine(true);
    }
}

/// A small file system, which is unmounted at the end.
pub(crate) struct Tmpfs(pub(crate) PathBuf);

impl Tmpfs {
    pub(crate) fn mount(at: &Path, size: &str) -> Tmpfs {
        fs::create_dir_all(at).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size},mode=0755"), "tmpfs"])
            .arg(at)
            .status()
            .unwrap();
        assert!(mounted.success());
        Tmpfs(at.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

pub(crate) fn never() -> FreezeOptions {
    FreezeOptions { mode: FreezeMode::Never, timeout: Duration::from_secs(1) }
}

/// Returns a disk of zeros with these ranges (start in MiB, length in MiB, byte).
pub(crate) fn pattern(size_mib: usize, parts: &[(usize, usize, u8)]) -> Vec<u8> {
    let mut bytes = vec![0; size_mib * MIB];
    for &(from, length, byte) in parts {
        bytes[from * MIB..(from + length) * MIB].fill(byte);
    }
    bytes
}

/// Returns the dirty ranges of an export, as `qemu-img map` sees them through the bitmap's meta context: "not data"
/// means dirty.
pub(crate) fn dirty(context: &str, uri: &str) -> Vec<(u64, u64)> {
    let (_, rest) = uri.split_once(":///").unwrap();
    let (export, socket) = rest.split_once("?socket=").unwrap();
    let image = format!(
        "driver=nbd,export={export},server.type=unix,server.path={},x-dirty-bitmap={context}",
        percent_encoding::percent_decode_str(socket).decode_utf8().unwrap()
    );
    let output = Command::new("qemu-img").args(["map", "--output=json", "--image-opts", &image]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let parts: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    parts
        .iter()
        .filter(|part| part["data"] == false)
        .map(|part| (part["start"].as_u64().unwrap(), part["length"].as_u64().unwrap()))
        .collect()
}

pub(crate) fn write_off(image: &Path, format: &str, command: &str) {
    let output = Command::new("qemu-io").args(["-f", format, "-c", command]).arg(image).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

pub(crate) fn qemu_img(arguments: &[&str], paths: &[&Path]) {
    let mut command = Command::new("qemu-img");
    command.args(arguments).args(paths);
    if paths.len() == 1 {
        command.arg("8M");
    }
    assert!(command.status().unwrap().success());
}

pub(crate) fn wait_until(mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "waited too long");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn mac_of(xml: &str) -> &str {
    xml.split_once("<mac address='").unwrap().1.split('\'').next().unwrap()
}

pub(crate) fn random_uuid() -> String {
    uuid::Uuid::new_v4().to_string()
}

pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
