//! Machines from the definitions in `xml/`, with everything that those refer to.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use kvmb::capture::domain_xml::definition::{Definition, Device, DiskSource};

use crate::support::backups::{MIB, noise};
use crate::support::change::run;
use crate::support::storage::LoopDevice;
use crate::support::{DiskModel, Env, set_mode};

/// A pool of images and a network to which definitions refer.
const POOL: &str = "<pool type='dir'><name>zoo</name><target><path>@POOL@</path></target></pool>";
const NETWORK: &str = "<network><name>zoo</name><bridge name='zoobr0' stp='off' delay='0'/></network>";

/// libvirt's default folder, which is in another place in the tests.
const LIBRARY: &str = "/var/lib/libvirt";

/// A machine of the zoo.
pub struct ZooMachine {
    /// Its file's name without the extension.
    pub file: String,
    /// Its libvirt name.
    pub name: String,
    pub uuid: String,
    /// The disks that a backup must include: target, image, format.
    pub disks: Vec<(String, PathBuf, String)>,
}

/// Machines and everything that they need.
pub struct Zoo<'e> {
    env: &'e Env,
    /// The machines, in the order of their files.
    pub machines: Vec<ZooMachine>,
    devices: Vec<LoopDevice>,
}

/// Returns the definitions whose file names begin with `kind`: name without extension, text.
pub fn definitions(kind: &str) -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ops/zoo/xml");
    let mut found: Vec<(String, String)> = fs::read_dir(&folder)
        .expect("definitions")
        .map(|entry| entry.expect("an entry").path())
        .filter_map(|path| {
            let name = path.file_stem()?.to_str()?.to_owned();
            name.starts_with(kind).then(|| (name, fs::read_to_string(&path).expect("a definition")))
        })
        .collect();
    found.sort();
    found
}

impl<'e> Zoo<'e> {
    /// Defines all machines of a kind. Their images are as libvirt leaves them: owned by root, mode 0600.
    pub fn define(env: &'e Env, kind: &str) -> Zoo<'e> {
        let mut zoo = Zoo { env, machines: Vec::new(), devices: Vec::new() };
        fs::create_dir(env.path("pool")).expect("cannot make a folder");
        fs::create_dir(env.path("dev")).expect("cannot make a folder");
        set_mode(&env.path("pool"), 0o711);
        set_mode(&env.path("dev"), 0o755);
        // QEMU creates sockets beside the images.
        set_mode(&env.disks(), 0o777);
        let pool = POOL.replace("@POOL@", text(&env.path("pool")));
        let commands = [("pool-create", pool), ("net-create", NETWORK.to_owned())];
        for (command, xml) in commands {
            env.virsh(&[command, text(&zoo.write(command, &xml))]);
        }
        for (number, (file, xml)) in definitions(kind).into_iter().enumerate() {
            let number = format!("{:02}", number + 10);
            let xml = xml.replace("@DIR@", text(&env.disks())).replace("@DEV@", text(&env.path("dev")));
            zoo.add(file, &xml.replace("@N@", &number));
        }
        env.virsh(&["pool-refresh", "zoo"]);
        zoo
    }

    fn write(&self, name: &str, xml: &str) -> PathBuf {
        let path = self.env.path(format!("{name}.xml"));
        fs::write(&path, xml).expect("cannot write");
        path
    }

    fn add(&mut self, file: String, xml: &str) {
        let definition = Definition::parse(xml).unwrap_or_else(|error| panic!("{file}: {error}"));
        let mut disks = Vec::new();
        for disk in &definition.disks {
            let format = disk.format.clone().unwrap_or_else(|| "raw".into());
            let path = match &disk.source {
                DiskSource::File { path } | DiskSource::Block { path } => path.clone(),
                DiskSource::Volume { volume, .. } => self.env.path("pool").join(volume),
                _ => continue,
            };
            if path.starts_with("/dev") || text(&path).contains("gone") {
                continue;
            }
            self.make(&file, &path, &format, disk.backing.first().and_then(|below| below.source.path()));
            if matches!(disk.source, DiskSource::Block { .. }) {
                self.become_device(&path);
            }
            if disk.device == Device::Disk && disk.exclusion().is_none() {
                disks.push((disk.target.clone(), path, format));
            }
        }
        self.make_files(xml);
        let defined = self.env.try_virsh(&["define", "--validate", text(&self.write(&file, xml))]);
        assert_eq!(defined.code(), 0, "{file}: {}", defined.stderr());
        let uuids = self.env.virsh(&["list", "--all", "--uuid", "--name"]);
        let known = |line: &&str| line.split_once(' ').is_some_and(|(_, name)| name.trim() == definition.name);
        let uuid = uuids.lines().find(known).and_then(|line| line.split(' ').next()).expect("it is defined");
        let (name, uuid) = (definition.name, uuid.to_owned());
        self.machines.push(ZooMachine { file, name, uuid, disks });
    }

    /// Creates an image with some data, on top of a backing image if there is one.
    fn make(&self, file: &str, path: &Path, format: &str, below: Option<&PathBuf>) {
        let capacity = 2 * MIB;
        // A backing chain that only the image's header records.
        let below = below.cloned().or_else(|| text(path).contains("chain-top").then(|| self.env.disks().join("base")));
        if let Some(below) = &below {
            run("qemu-img", &["create", "-q", "-f", "qcow2", text(below), &capacity.to_string()]);
            run("qemu-io", &["-f", "qcow2", "-c", "write -P 0x77 1M 64k", text(below)]);
            run("qemu-img", &["create", "-q", "-f", format, "-b", text(below), "-F", "qcow2", text(path)]);
        } else {
            run("qemu-img", &["create", "-q", "-f", format, text(path), &capacity.to_string()]);
        }
        let source = self.env.path("noise");
        let seed = text(path).bytes().map(u64::from).sum::<u64>() + file.len() as u64;
        fs::write(&source, noise(seed, 128 << 10)).expect("cannot write");
        run("qemu-io", &["-f", format, "-c", &format!("write -s {} 192k 128k", text(&source)), text(path)]);
        set_mode(path, 0o600);
        if text(path).contains("own") || text(path).contains("ovirt") {
            // libvirt does not change the owner, so it must already be QEMU's user.
            run("chown", &["libvirt-qemu:kvm", text(path)]);
        }
    }

    /// Replaces a file with a symbolic link to a device with its content, as in volume groups.
    fn become_device(&mut self, path: &Path) {
        let behind = self.env.path(format!("behind-{}", self.devices.len()));
        fs::rename(path, &behind).expect("rename");
        fs::OpenOptions::new().write(true).open(&behind).and_then(|file| file.set_len(8 * MIB)).expect("grow");
        let device = LoopDevice::on(&behind);
        std::os::unix::fs::symlink(&device.path, path).expect("link");
        run("chown", &["libvirt-qemu:kvm", &device.path]);
        self.devices.push(device);
    }

    /// Creates all other files that a definition refers to below the folder of the images.
    fn make_files(&self, xml: &str) {
        let read = [".iso", ".ign", ".bin", ".rom", ".vfd", "vmlinuz-6.1", "initrd.img-6.1"];
        for path in xml.split(['\'', '>', '<', ',', '=']).filter(|word| word.starts_with(text(&self.env.disks()))) {
            if path.contains("gone") || Path::new(path).exists() {
                continue;
            }
            if read.iter().any(|end| path.ends_with(end)) {
                fs::write(path, content_of(path)).expect("cannot write");
            } else if let Some(name) = Path::new(path).file_name().and_then(|name| name.to_str())
                && (name.starts_with("OVMF") || name.contains("VARS"))
            {
                let kind = if name.contains("CODE") { "CODE" } else { "VARS" };
                let from = format!("/usr/share/OVMF/OVMF_{kind}_4M.fd");
                let format = if name.ends_with("qcow2") { "qcow2" } else { "raw" };
                run("qemu-img", &["convert", "-O", format, &from, path]);
            } else {
                continue;
            }
            set_mode(Path::new(path), 0o644);
        }
    }

    /// Starts machines with halted processors.
    #[track_caller]
    pub fn start(&self, names: &[&str]) {
        let commands: Vec<String> = names.iter().map(|name| format!("start --paused '{name}'")).collect();
        // If a command fails, virsh still executes the others.
        let output = self.env.try_virsh(&[&commands.join("; ")]);
        // libvirt starts QEMU as soon as swtpm's socket exists. On a busy host, swtpm may not listen on it yet.
        let errors = output.stderr().lines().filter(|line| line.starts_with("error:"));
        let (failed, reasons): (Vec<&str>, Vec<&str>) =
            errors.partition(|line| line.starts_with("error: Failed to start domain '"));
        let is_too_early = |reason: &&str| reason.contains("-swtpm.sock': Connection refused");
        if !failed.is_empty() && failed.len() == reasons.len() && reasons.iter().all(is_too_early) {
            let names: Vec<&str> = failed.iter().filter_map(|line| line.split('\'').nth(1)).collect();
            return self.start(&names);
        }
        assert!(output.code() == 0 && reasons.is_empty(), "{}", output.stderr());
    }

    /// Writes to every disk of a running machine, as its guest would.
    pub fn write_to(&self, machine: &ZooMachine, pattern: u8) {
        let answer = self.env.virsh(&["qemu-monitor-command", &machine.uuid, r#"{"execute":"query-block"}"#]);
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        let blocks = answer["return"].as_array().expect("a list").iter();
        let devices =
            blocks.filter(|block| block["inserted"]["ro"] == false).filter_map(|block| block["qdev"].as_str());
        // Flushed, because others read the image while QEMU has it open.
        let commands = devices.flat_map(|device| {
            [format!("write -P {pattern} 512k 64k"), "flush".to_owned()].map(|command| {
                format!("qemu-monitor-command {} --hmp 'qemu-io -d {device} \"{command}\"'", machine.uuid)
            })
        });
        self.env.virsh(&[&commands.collect::<Vec<_>>().join("; ")]);
    }

    /// Returns the content of its disks.
    pub fn models(&self, machine: &ZooMachine) -> BTreeMap<String, DiskModel> {
        let raw = self.env.path("model.raw");
        let model = |(disk, path, format): &(String, PathBuf, String)| {
            // Its QEMU has it open, but is idle.
            run("qemu-img", &["convert", "-U", "-f", format, "-O", "raw", text(path), text(&raw)]);
            (disk.clone(), DiskModel::from_image(&raw, "raw"))
        };
        machine.disks.iter().map(model).collect()
    }

    /// Returns its persistent definition, including secrets.
    pub fn definition(&self, machine: &ZooMachine) -> String {
        self.env.virsh(&["dumpxml", "--inactive", "--security-info", &machine.uuid])
    }

    /// Returns firmware variables and TPM state: path → content.
    pub fn small_files(&self, machine: &ZooMachine) -> BTreeMap<PathBuf, Vec<u8>> {
        let library = self.env.libvirt_root().join("lib");
        let mut files = Vec::new();
        let xml = self.definition(machine);
        if let Some(path) =
            Definition::parse(&xml).expect("XML").nvram.and_then(|nvram| nvram.path().map(Path::to_owned))
        {
            files.push(path.strip_prefix(LIBRARY).map_or(path.clone(), |below| library.join(below)));
        }
        for version in ["tpm1.2", "tpm2"] {
            let folder = library.join("swtpm").join(&machine.uuid).join(version);
            let names = fs::read_dir(folder).into_iter().flatten().flatten();
            files.extend(names.map(|name| name.path()).filter(|path| !text(path).contains(".lock")));
        }
        files.into_iter().filter_map(|path| fs::read(&path).ok().map(|bytes| (path, bytes))).collect()
    }
}

/// Returns content that QEMU accepts for this file.
fn content_of(path: &str) -> Vec<u8> {
    let mut bytes = noise(path.len() as u64, 8192);
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    if path.contains("vmlinuz") {
        // Four sectors of set-up code, the signature, version 2.12 of the boot protocol, and the highest address for an
        // initial RAM disk.
        put(0x1f1, &[4]);
        put(0x202, b"HdrS\x0c\x02");
        put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
    } else if path.ends_with("slic.bin") {
        put(0, b"SLIC");
        put(4, &8192_u32.to_le_bytes());
    }
    bytes
}

/// Returns a path as text.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}
