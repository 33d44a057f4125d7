//! Removes arguments in `<qemu:commandline>` that would make a copy share a resource with the original.
//!
//! libvirt passes the arguments to QEMU unchanged. An option is removed with its value, and with it any device that
//! refers to it by its id.

use roxmltree::Node;

use super::splices::Splices;
use crate::capture::domain_xml::definition::children;

/// Options that always refer to a resource that two machines cannot share: a monitor, a port, a file that is written.
const ALWAYS: [&str; 22] = [
    "qmp",
    "qmp-pretty",
    "monitor",
    "serial",
    "parallel",
    "debugcon",
    "gdb",
    "s",
    "vnc",
    "spice",
    "pidfile",
    "D",
    "virtfs",
    "fsdev",
    "incoming",
    "hda",
    "hdb",
    "hdc",
    "hdd",
    "fda",
    "fdb",
    "sd",
];

/// Removes such options. Returns a sentence for each.
pub(super) fn take_out(splices: &mut Splices, line: Node) -> Vec<String> {
    let options = options_of(line);
    let mut gone: Vec<bool> = options.iter().map(Argument::claims_something).collect();
    loop {
        let ids: Vec<&str> = options.iter().zip(&gone).filter(|(_, gone)| **gone).filter_map(|(o, _)| o.id()).collect();
        let refers = |option: &Argument| ids.iter().any(|id| option.refers_to(id));
        let more: Vec<usize> = (0..options.len()).filter(|&at| !gone[at] && refers(&options[at])).collect();
        if more.is_empty() {
            break;
        }
        more.into_iter().for_each(|at| gone[at] = true);
    }
    let mut notes = Vec::new();
    for option in options.iter().zip(gone).filter(|(_, gone)| *gone).map(|(option, _)| option) {
        option.nodes.iter().for_each(|node| splices.remove(*node));
        notes.push(format!(
            "the copy does not have the QEMU argument '{}', which belongs to the original",
            option.text()
        ));
    }
    notes
}

/// An option of the command line, with its value.
struct Argument<'a, 'i> {
    nodes: Vec<Node<'a, 'i>>,
    name: &'a str,
    values: Vec<&'a str>,
}

fn options_of<'a, 'i: 'a>(line: Node<'a, 'i>) -> Vec<Argument<'a, 'i>> {
    let mut options: Vec<Argument> = Vec::new();
    for argument in children(line, "arg") {
        let value = argument.attribute("value").unwrap_or_default();
        match (value.strip_prefix('-'), options.last_mut()) {
            (None, Some(option)) => {
                option.nodes.push(argument);
                option.values.push(value);
            }
            (name, _) => {
                let name = name.unwrap_or(value).trim_start_matches('-');
                options.push(Argument { nodes: vec![argument], name, values: Vec::new() });
            }
        }
    }
    options
}

impl Argument<'_, '_> {
    fn text(&self) -> String {
        format!("-{} {}", self.name, self.values.join(" ")).trim_end().to_owned()
    }

    /// Whether two machines cannot both have the option.
    fn claims_something(&self) -> bool {
        let value = self.values.join(" ");
        let has = |words: &[&str]| words.iter().any(|word| value.contains(word));
        let is_read_only = has(&["readonly=on", "read-only=on", "readonly,", "media=cdrom", "\"read-only\":true"]);
        match self.name {
            name if ALWAYS.contains(&name) => true,
            "drive" | "blockdev" => has(&["file=", "filename", "dev"]) && !is_read_only,
            "pflash" | "mtdblock" => true,
            "chardev" => {
                !matches!(value.split(',').next(), Some("null" | "pty" | "spicevmc" | "ringbuf" | "vc" | "stdio"))
            }
            "netdev" | "nic" | "net" => {
                has(&["hostfwd", "listen=", "ifname=", "vhost-user", "local", "path=", "fd=", "smb="])
            }
            "device" => has(&["vfio-", "usb-host", "ivshmem", "host=", "guest-cid="]),
            "object" => has(&["mem-path=", "memory-backend-file", "input-linux", "vhost-vdpa"]),
            "mon" | "display" => has(&["=/", "unix:", "vnc="]),
            _ => false,
        }
    }

    fn id(&self) -> Option<&str> {
        let value = self.values.first()?;
        value.split(',').find_map(|part| part.strip_prefix("id=")).filter(|id| !id.is_empty())
    }

    /// Whether one of its parts is `something=ID`.
    fn refers_to(&self, id: &str) -> bool {
        let mut parts = self.values.iter().flat_map(|value| value.split(','));
        parts.any(|part| part.split_once('=').is_some_and(|(key, value)| key != "id" && value == id))
    }
}
