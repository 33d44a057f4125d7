//! The files that a definition references other than disks, kernels and firmware variables: loader, option ROMs, ACPI
//! tables, `fw_cfg` files … (pure).
//!
//! They are stored next to the definition, for hosts that lack them. Files that QEMU writes to, drives that only occur
//! in QEMU's arguments, and folders that the guest shares with the host are found too; a backup reports them as left
//! out.
//!
//! | element | reference |
//! | --- | --- |
//! | `<os>` | `<loader>`, `<nvram template=…>`, `<dtb>`, `<acpi><table>` |
//! | `<features><acpi>` | `<table>` |
//! | `<sysinfo type='fwcfg'>` | `<entry file=…>` |
//! | a device | `<rom file=…>`, `<script path=…>`; `<memory><source><path>`, `<pstore><path>`, `<filesystem><source dir=…>` |
//! | `<qemu:commandline>` | `-fw_cfg`, `-acpitable`, `-smbios`, `-bios`, `-kernel`, `-initrd`, `-dtb`, `romfile=`; `-drive` and its like |

use std::path::PathBuf;

use roxmltree::Node;

use super::definition::{Result, child, children, parse_document};

/// The purpose of a file for the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum OutsideKind {
    Loader,
    /// The template from which libvirt creates new firmware variables.
    NvramTemplate,
    DeviceTree,
    AcpiTable,
    /// A file that the guest reads through QEMU's `fw_cfg`.
    FwCfg,
    /// The ROM of a device.
    OptionRom,
    /// A script that sets up an interface.
    Script,
    Smbios,
    /// A kernel or RAM disk in an argument of QEMU.
    Argument,
    /// The file behind a memory device, which the guest writes to.
    Memory,
    /// The file that keeps the last messages of the guest's kernel.
    PersistentStore,
    /// A folder of the host that the guest mounts (virtiofs, 9p).
    SharedFolder,
    /// A drive in an argument of QEMU.
    Drive,
}

impl OutsideKind {
    /// The word for the kind in records.
    pub(crate) fn word(self) -> &'static str {
        match self {
            OutsideKind::Loader => "loader",
            OutsideKind::NvramTemplate => "nvram_template",
            OutsideKind::DeviceTree => "device_tree",
            OutsideKind::AcpiTable => "acpi_table",
            OutsideKind::FwCfg => "fw_cfg",
            OutsideKind::OptionRom => "option_rom",
            OutsideKind::Script => "script",
            OutsideKind::Smbios => "smbios",
            OutsideKind::Argument => "argument",
            OutsideKind::Memory => "memory_device",
            OutsideKind::PersistentStore => "persistent_store",
            OutsideKind::SharedFolder => "shared_folder",
            OutsideKind::Drive => "drive",
        }
    }

    /// The kind in words, for messages.
    pub(crate) fn words(self) -> &'static str {
        match self {
            OutsideKind::Loader => "loader",
            OutsideKind::NvramTemplate => "template of the firmware variables",
            OutsideKind::DeviceTree => "device tree",
            OutsideKind::AcpiTable => "ACPI table",
            OutsideKind::FwCfg => "fw_cfg file",
            OutsideKind::OptionRom => "option ROM",
            OutsideKind::Script => "script of an interface",
            OutsideKind::Smbios => "SMBIOS file",
            OutsideKind::Argument => "file of a QEMU argument",
            OutsideKind::Memory => "memory device",
            OutsideKind::PersistentStore => "persistent store",
            OutsideKind::SharedFolder => "shared folder",
            OutsideKind::Drive => "drive of a QEMU argument",
        }
    }

    /// Why a backup does not store such a file, or `None` if it does, because QEMU only reads it.
    pub(crate) fn reason_not_stored(self) -> Option<&'static str> {
        match self {
            OutsideKind::Memory | OutsideKind::PersistentStore | OutsideKind::Drive => {
                Some("it is not a disk of the definition, and the machine may write to it at any moment")
            }
            OutsideKind::SharedFolder => Some("it is a folder of the host, not a disk of the machine"),
            _ => None,
        }
    }
}

/// A file that a definition references.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OutsideFile {
    pub(crate) kind: OutsideKind,
    /// The path. For a drive, as spelled in the argument.
    pub(crate) path: PathBuf,
}

/// A place in a definition that references a file.
#[derive(Debug, Clone)]
pub(super) struct Mention<'a, 'i> {
    pub(super) kind: OutsideKind,
    pub(super) path: PathBuf,
    pub(super) place: MentionPlace<'a, 'i>,
}

/// The form of a reference.
#[derive(Debug, Clone)]
pub(super) enum MentionPlace<'a, 'i> {
    /// The text of an element.
    Text(Node<'a, 'i>),
    Attribute(Node<'a, 'i>, &'static str),
    /// The part of an argument of QEMU after this text.
    Argument(Node<'a, 'i>, &'static str),
}

/// Returns every file that a definition references, each once.
pub(crate) fn outside_files(xml: &str) -> Result<Vec<OutsideFile>> {
    let document = parse_document(xml)?;
    let mut files: Vec<OutsideFile> = Vec::new();
    for Mention { kind, path, .. } in mentions(document.root_element()) {
        if files.iter().all(|known| known.path != path) {
            files.push(OutsideFile { kind, path });
        }
    }
    Ok(files)
}

/// Returns every place that references a file.
pub(super) fn mentions<'a, 'i: 'a>(domain: Node<'a, 'i>) -> Vec<Mention<'a, 'i>> {
    let mut found = Vec::new();
    let mut text = |holder: Option<Node<'a, 'i>>, name: &'static str, kind| {
        for node in holder.into_iter().flat_map(|holder| children(holder, name)) {
            let path = node.text().unwrap_or_default().trim();
            // libvirt knows some loaders by a plain name instead of a path.
            if path.starts_with('/') {
                found.push(Mention { kind, path: path.into(), place: MentionPlace::Text(node) });
            }
        }
    };
    let os = child(domain, "os");
    text(os, "loader", OutsideKind::Loader);
    text(os, "dtb", OutsideKind::DeviceTree);
    for holder in [child(domain, "features"), os] {
        text(holder.and_then(|holder| child(holder, "acpi")), "table", OutsideKind::AcpiTable);
    }
    let devices: Vec<Node> = child(domain, "devices").into_iter().flat_map(|devices| devices.children()).collect();
    for device in &devices {
        match device.tag_name().name() {
            "memory" => text(child(*device, "source"), "path", OutsideKind::Memory),
            "pstore" => text(Some(*device), "path", OutsideKind::PersistentStore),
            _ => {}
        }
    }
    let mut attribute = |node: Option<Node<'a, 'i>>, name: &'static str, kind| {
        if let Some(path) = node.and_then(|node| node.attribute(name)).filter(|path| path.starts_with('/'))
            && let Some(node) = node
        {
            found.push(Mention { kind, path: path.into(), place: MentionPlace::Attribute(node, name) });
        }
    };
    attribute(os.and_then(|os| child(os, "nvram")), "template", OutsideKind::NvramTemplate);
    for entry in children(domain, "sysinfo").flat_map(|sysinfo| children(sysinfo, "entry")) {
        attribute(Some(entry), "file", OutsideKind::FwCfg);
    }
    for device in devices {
        attribute(child(device, "rom"), "file", OutsideKind::OptionRom);
        attribute(child(device, "script"), "path", OutsideKind::Script);
        if device.has_tag_name("filesystem") {
            attribute(child(device, "source"), "dir", OutsideKind::SharedFolder);
        }
    }
    for line in children(domain, "commandline") {
        let mut option = "";
        for argument in children(line, "arg") {
            let value = argument.attribute("value").unwrap_or_default();
            match value.strip_prefix('-') {
                Some(name) if !name.is_empty() => option = name.trim_start_matches('-'),
                _ => found.extend(in_argument(option, value, argument)),
            }
        }
    }
    found
}

/// Returns the file that is referenced in the value of an option.
fn in_argument<'a, 'i>(option: &str, value: &str, argument: Node<'a, 'i>) -> Option<Mention<'a, 'i>> {
    let named = |key: &'static str, kind| {
        let from = match value.starts_with(key) {
            true => Some(key.len()),
            false => value.find(&format!(",{key}")).map(|at| at + 1 + key.len()),
        };
        let path = unescaped(&value[from?..]);
        path.starts_with('/').then(|| Mention { kind, path: path.into(), place: MentionPlace::Argument(argument, key) })
    };
    let whole = |kind| {
        let place = MentionPlace::Argument(argument, "");
        value.starts_with('/').then(|| Mention { kind, path: value.into(), place })
    };
    let drive = |path: String| {
        (!path.is_empty()).then(|| Mention {
            kind: OutsideKind::Drive,
            path: path.into(),
            place: MentionPlace::Argument(argument, ""),
        })
    };
    match option {
        "fw_cfg" => named("file=", OutsideKind::FwCfg),
        "acpitable" => named("file=", OutsideKind::AcpiTable).or_else(|| named("data=", OutsideKind::AcpiTable)),
        "smbios" => named("file=", OutsideKind::Smbios),
        "device" => named("romfile=", OutsideKind::OptionRom),
        "bios" => whole(OutsideKind::Loader),
        "dtb" => whole(OutsideKind::DeviceTree),
        "kernel" | "initrd" => whole(OutsideKind::Argument),
        "drive" if ["if=pflash", "readonly=on"].iter().all(|word| value.contains(word)) => {
            named("file=", OutsideKind::Loader)
        }
        "drive" => drive(after(value, "file=")?),
        "blockdev" if value.starts_with('{') => {
            let options: serde_json::Value = serde_json::from_str(value).ok()?;
            let file = options.get("filename").or_else(|| options.get("file")?.get("filename"));
            drive(file?.as_str()?.to_owned())
        }
        "blockdev" => drive(after(value, "filename=")?),
        "hda" | "hdb" | "hdc" | "hdd" | "fda" | "fdb" | "sd" | "pflash" | "mtdblock" | "cdrom" => {
            drive(value.to_owned())
        }
        _ => None,
    }
}

/// Returns the value after a key in an argument, at any position.
fn after(value: &str, key: &str) -> Option<String> {
    value.find(key).map(|at| unescaped(&value[at + key.len()..]))
}

/// Returns the value up to the next comma. A doubled comma is part of the value.
fn unescaped(text: &str) -> String {
    let mut value = String::new();
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character == ',' && characters.next_if_eq(&',').is_none() {
            break;
        }
        value.push(character);
    }
    value
}

/// Escapes a path for use as a value in an argument.
pub(super) fn escaped(path: &str) -> String {
    path.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outside_files_are_found_in_every_element_that_references_them() {
        let xml = "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>a</name>\
            <os><loader>/fw/code.fd</loader><nvram template='/fw/vars.fd'>/v/a.fd</nvram><dtb>/fw/a.dtb</dtb><acpi>\
            <table type='slic'>/t/slic</table></acpi></os>\
            <features><acpi><table type='rawset'>/t/raw</table></acpi></features>\
            <sysinfo type='fwcfg'><entry name='opt/a' file='/f/a'/><entry name='opt/b'>text</entry></sysinfo>\
            <devices><interface type='ethernet'><script path='/s/up'/><rom file='/r/net.rom'/></interface>\
            <hostdev mode='subsystem'><rom bar='off' file='/r/gpu.rom'/></hostdev>\
            <memory model='nvdimm'><source><path>/m/nvdimm</path></source></memory>\
            <pstore backend='acpi-erst'><path>/p/erst</path></pstore>\
            <filesystem type='mount'><source dir='/srv'/><target dir='share'/></filesystem>\
            <filesystem type='mount'><source socket='/run/virtiofsd'/><target dir='b'/></filesystem></devices>\
            <qemu:commandline><qemu:arg value='-fw_cfg'/><qemu:arg value='name=opt/c,file=/f/c,,d'/>\
            <qemu:arg value='-acpitable'/><qemu:arg value='sig=MSDM,file=/t/msdm'/>\
            <qemu:arg value='-device'/><qemu:arg value='e1000,romfile=/r/e.rom,id=x'/>\
            <qemu:arg value='-bios'/><qemu:arg value='bios.bin'/>\
            <qemu:arg value='-drive'/><qemu:arg value='if=pflash,format=raw,readonly=on,file=/fw/x.fd'/>\
            <qemu:arg value='-drive'/><qemu:arg value='id=d,if=none,file=/d/x.img,format=raw'/>\
            <qemu:arg value='-blockdev'/><qemu:arg value='{\"driver\":\"raw\",\"file\":{\"filename\":\"/d/y\"}}'/>\
            <qemu:arg value='-hdb'/><qemu:arg value='/d/z'/></qemu:commandline></domain>";
        let found = outside_files(xml).unwrap();
        let found: Vec<(&str, &str)> =
            found.iter().map(|file| (file.kind.word(), file.path.to_str().unwrap())).collect();
        let expected = [
            ("loader", "/fw/code.fd"),
            ("device_tree", "/fw/a.dtb"),
            ("acpi_table", "/t/raw"),
            ("acpi_table", "/t/slic"),
            ("memory_device", "/m/nvdimm"),
            ("persistent_store", "/p/erst"),
            ("nvram_template", "/fw/vars.fd"),
            ("fw_cfg", "/f/a"),
            ("option_rom", "/r/net.rom"),
            ("script", "/s/up"),
            ("option_rom", "/r/gpu.rom"),
            ("shared_folder", "/srv"),
            ("fw_cfg", "/f/c,d"),
            ("acpi_table", "/t/msdm"),
            ("option_rom", "/r/e.rom"),
            ("loader", "/fw/x.fd"),
            ("drive", "/d/x.img"),
            ("drive", "/d/y"),
            ("drive", "/d/z"),
        ];
        assert_eq!(found, expected);
    }
}
