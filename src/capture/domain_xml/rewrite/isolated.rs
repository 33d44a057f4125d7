//! Isolates a machine for a drill: it can access nothing of this host except its disks, which are served over NBD, and
//! the sockets from which its consoles are read.
//!
//! The input is a copy made by [`super::rewrite_with_notes`]. Memory and processors are limited, the network link is
//! down, and screens and sound of the host are removed. A panic device and error policies are added, so that QEMU
//! reports crashes of the guest and errors of disks.

use std::collections::BTreeSet;
use std::path::Path;

use roxmltree::Node;

use super::Rewritten;
use super::splices::{Splices, children_named, element, path_text};
use crate::capture::domain_xml::definition::{Definition, Result, child, children, parse_document};
use crate::capture::domain_xml::xml::escape;

/// The debug port of SeaBIOS and OVMF.
const FIRMWARE_PORT: &str = "0x402";

/// The parameters of the isolated machine.
#[derive(Debug, Clone)]
pub struct Isolation<'a> {
    /// The disks that are served.
    pub disks: &'a BTreeSet<String>,
    /// The NBD socket, on which each disk is an export with its name.
    pub nbd: &'a Path,
    /// The socket for the output of serial ports and consoles.
    pub console: &'a Path,
    /// The socket for the output of the firmware.
    pub firmware: &'a Path,
    /// The path of the firmware variables, for a definition that leaves it to libvirt.
    pub nvram: &'a Path,
    /// The maximum memory.
    pub memory_bytes: u64,
    /// The maximum number of processors.
    pub vcpus: u32,
    /// Whether to emulate a machine that used KVM.
    pub is_emulated: bool,
}

/// Elements of a domain that configure the use of this host or what the machine can access.
const TAKEN_OUT: [&str; 21] = [
    "blkiotune",
    "bootloader",
    "commandline",
    "cputune",
    "currentMemory",
    "fibrechannel",
    "idmap",
    "keywrap",
    "launchSecurity",
    "maxMemory",
    "memoryBacking",
    "memtune",
    "numatune",
    "on_crash",
    "on_poweroff",
    "on_reboot",
    "override",
    "perf",
    "resource",
    "throttlegroups",
    "vcpus",
];

/// Devices that give access to the host or to its users.
const DEVICES_TAKEN_OUT: [&str; 16] = [
    "audio",
    "crypto",
    "filesystem",
    "graphics",
    "hostdev",
    "lease",
    "memory",
    "nvram",
    "parallel",
    "pstore",
    "redirdev",
    "redirfilter",
    "shmem",
    "smartcard",
    "sound",
    "vsock",
];

/// Converts the definition of a copy to that of an isolated machine.
pub fn isolate(xml: &str, isolation: &Isolation) -> Result<Rewritten> {
    let definition = Definition::parse(xml)?;
    let document = parse_document(xml)?;
    let domain = document.root_element();
    let mut isolated = Isolated { splices: Splices::new(xml), isolation, notes: Vec::new() };
    isolated.resources(domain, &definition);
    isolated.firmware(domain)?;
    if let Some(devices) = child(domain, "devices") {
        isolated.devices(domain, devices)?;
    }
    let xml = isolated.splices.apply();
    Definition::parse(&xml)?;
    Ok(Rewritten { xml, notes: isolated.notes })
}

struct Isolated<'i, 'x> {
    splices: Splices<'x>,
    isolation: &'i Isolation<'i>,
    notes: Vec<String>,
}

impl Isolated<'_, '_> {
    fn remove_all(&mut self, node: Node, name: &'static str) {
        children_named(node, name).into_iter().for_each(|node| self.splices.remove(node));
    }

    fn resources(&mut self, domain: Node, definition: &Definition) {
        for name in TAKEN_OUT {
            self.remove_all(domain, name);
        }
        let memory_kib = definition.memory_bytes.min(self.isolation.memory_bytes).div_ceil(1024);
        if let Some(memory) = child(domain, "memory") {
            self.splices.replace(memory.range(), format!("<memory unit='KiB'>{memory_kib}</memory>"));
        }
        let vcpus = definition.vcpus.clamp(1, self.isolation.vcpus.max(1));
        if let Some(vcpu) = child(domain, "vcpu") {
            self.splices.replace(vcpu.range(), element("vcpu", &vcpus.to_string()));
        }
        if definition.memory_bytes > self.isolation.memory_bytes || definition.vcpus > vcpus {
            self.notes.push(format!("memory is limited to {} MiB and processors to {vcpus}", memory_kib / 1024));
        }
        if let Some(cpu) = child(domain, "cpu") {
            match self.isolation.is_emulated {
                true => self.splices.replace(cpu.range(), "<cpu mode='maximum'/>".to_owned()),
                false => ["numa", "topology"].into_iter().for_each(|name| self.remove_all(cpu, name)),
            }
        }
        if self.isolation.is_emulated {
            self.splices.set_attribute(domain, "type", "qemu");
            if let Some(features) = child(domain, "features") {
                for name in ["hyperv", "kvm", "pvspinlock", "pmu", "ioapic"] {
                    self.remove_all(features, name);
                }
            }
            let timers = child(domain, "clock").into_iter().flat_map(|clock| children(clock, "timer"));
            for timer in timers {
                if matches!(timer.attribute("name"), Some("kvmclock" | "hypervclock" | "tsc")) {
                    self.splices.remove(timer);
                }
            }
        }
        for label in children(domain, "seclabel") {
            // A static label of the original would give the copy the original's access rights.
            if label.attribute("type") == Some("static") && label.attribute("model") != Some("dac") {
                self.splices.remove(label);
            }
        }
        self.splices.insert_last(
            domain,
            "<on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>preserve</on_crash>",
        );
    }

    fn firmware(&mut self, domain: Node) -> Result<()> {
        let Some(os) = child(domain, "os") else { return Ok(()) };
        let loader = child(os, "loader");
        let has_variables = os.attribute("firmware") == Some("efi")
            || loader.is_some_and(|loader| loader.attribute("type") == Some("pflash"));
        let is_stateless = loader.is_some_and(|loader| loader.attribute("stateless") == Some("yes"));
        if has_variables && !is_stateless && child(os, "nvram").is_none() {
            self.splices.insert_last(os, &element("nvram", path_text(self.isolation.nvram)?));
        }
        let boots: Vec<Node> = children(os, "boot").collect();
        let is_network = |boot: &&Node| boot.attribute("dev") == Some("network");
        if boots.iter().any(|boot| !is_network(&boot)) {
            boots.iter().filter(is_network).for_each(|boot| self.splices.remove(*boot));
        }
        Ok(())
    }

    fn devices(&mut self, domain: Node, devices: Node) -> Result<()> {
        for device in devices.children().filter(Node::is_element) {
            match device.tag_name().name() {
                "disk" => self.disk(device)?,
                "interface" => self.interface(device),
                "serial" | "console" => self.console(device)?,
                "channel" => self.channel(device),
                "video" => self.video(device),
                "rng" if child(device, "backend").is_some_and(|backend| backend.attribute("model") == Some("egd")) => {
                    self.splices.remove(device);
                }
                name if DEVICES_TAKEN_OUT.contains(&name) => self.splices.remove(device),
                _ => {}
            }
        }
        let kind = child(domain, "os").and_then(|os| child(os, "type"));
        let is_pc = matches!(kind.and_then(|kind| kind.attribute("arch")), None | Some("x86_64" | "i686"));
        let is_machine = |name: &str| {
            kind.and_then(|kind| kind.attribute("machine")).is_some_and(|machine| machine.starts_with(name))
        };
        if !children(devices, "serial").any(|serial| !is_debug_port(serial)) {
            let source = connected_to(self.isolation.console)?;
            self.splices.insert_last(devices, &format!("<serial type='unix'>{source}</serial>"));
        }
        if is_pc && !is_machine("microvm") {
            let source = connected_to(self.isolation.firmware)?;
            self.splices.insert_last(
                devices,
                &format!(
                    "<serial type='unix'>{source}<target type='isa-debug'><model name='isa-debugcon'/></target>\
                     <address type='isa' iobase='{FIRMWARE_PORT}'/></serial>"
                ),
            );
            if child(devices, "video").is_none() {
                self.splices.insert_last(devices, "<video><model type='vga'/></video>");
            }
            if !children(devices, "panic").any(|panic| panic.attribute("model").is_none_or(|model| model == "isa")) {
                self.splices.insert_last(devices, "<panic model='isa'/>");
            }
        }
        Ok(())
    }

    /// Reads a disk of the point over NBD. An error stops the machine.
    fn disk(&mut self, disk: Node) -> Result<()> {
        let target = child(disk, "target").and_then(|target| target.attribute("dev")).unwrap_or_default();
        if !self.isolation.disks.contains(target) {
            return Ok(());
        }
        self.splices.set_attribute(disk, "type", "network");
        for name in ["rawio", "sgio", "snapshot"] {
            self.splices.drop_attribute(disk, name);
        }
        for name in ["iotune", "mirror", "transient", "shareable", "backenddomain", "backingStore", "throttlefilters"] {
            self.remove_all(disk, name);
        }
        let socket = escape(path_text(self.isolation.nbd)?);
        let source = format!(
            "<source protocol='nbd' name='{}'><host transport='unix' socket='{socket}'/></source>",
            escape(target)
        );
        let old = child(disk, "driver");
        let kept: String = ["queues", "iothread", "iommu", "ats", "packed"]
            .into_iter()
            .filter_map(|name| old?.attribute_node(name))
            .map(|attribute| format!(" {}", &self.splices.xml[attribute.range()]))
            .collect();
        let driver =
            format!("<driver name='qemu' type='raw' cache='unsafe' error_policy='stop' rerror_policy='stop'{kept}/>");
        match (old, child(disk, "source")) {
            (Some(old), Some(place)) => {
                self.splices.replace(old.range(), driver);
                self.splices.replace(place.range(), source);
            }
            (Some(old), None) => self.splices.replace(old.range(), driver + &source),
            (None, Some(place)) => self.splices.replace(place.range(), driver + &source),
            (None, None) => self.splices.insert_first(disk, &(driver + &source)),
        }
        Ok(())
    }

    /// Keeps the network device, with its link down.
    fn interface(&mut self, interface: Node) {
        let kept = self.kept(interface, &["mac", "model", "address"]);
        self.splices
            .replace(interface.range(), format!("<interface type='user'>{kept}<link state='down'/></interface>"));
    }

    /// Redirects the output of the guest to the console socket.
    fn console(&mut self, device: Node) -> Result<()> {
        let name = device.tag_name().name();
        let kind = child(device, "target").and_then(|target| target.attribute("type"));
        // A console that duplicates the serial port is removed; libvirt adds it again.
        let is_port = name == "console" && matches!(kind, None | Some("serial"));
        if is_port || is_debug_port(device) {
            self.splices.remove(device);
            return Ok(());
        }
        let source = connected_to(self.isolation.console)?;
        let kept = self.kept(device, &["target", "address"]);
        self.splices.replace(device.range(), format!("<{name} type='unix'>{source}{kept}</{name}>"));
        Ok(())
    }

    fn channel(&mut self, channel: Node) {
        let target = child(channel, "target");
        if target.and_then(|target| target.attribute("name")) != Some("org.qemu.guest_agent.0") {
            return self.splices.remove(channel);
        }
        let kept = self.kept(channel, &["target", "address"]);
        self.splices.replace(channel.range(), format!("<channel type='unix'>{kept}</channel>"));
    }

    /// Selects a video model that every QEMU supports.
    fn video(&mut self, video: Node) {
        let model = child(video, "model");
        let kind = match model.and_then(|model| model.attribute("type")) {
            Some("qxl") | None => "vga",
            Some(kind) => kind,
        };
        if model.is_some_and(|model| model.attribute("type") == Some("qxl") && model.attribute("primary") == Some("no"))
        {
            return self.splices.remove(video);
        }
        let address = self.kept(video, &["address"]);
        self.splices.replace(video.range(), format!("<video><model type='{}'/>{address}</video>", escape(kind)));
    }

    fn kept(&self, node: Node, names: &[&str]) -> String {
        let kept = names.iter().filter_map(|name| child(node, name));
        kept.map(|node| &self.splices.xml[node.range()]).collect()
    }
}

/// Whether a serial port is the firmware's debug port.
fn is_debug_port(serial: Node) -> bool {
    child(serial, "target").is_some_and(|target| target.attribute("type") == Some("isa-debug"))
}

/// The source of a device that connects to a listening socket.
fn connected_to(socket: &Path) -> Result<String> {
    Ok(format!("<source mode='connect' path='{}'/>", escape(path_text(socket)?)))
}
