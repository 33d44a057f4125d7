//! The interpretation of the observations of a machine (pure).

use crate::capture::machine::{MachineState, PausedReason};
use crate::record::{Damage, plain_text};

/// How often a guest may restart itself: installations and updates do so once or twice.
const MOST_REBOOTS: u32 = 2;

/// The maximum length of a quotation from the console.
const LONGEST_LINE_CHARS: usize = 200;

/// How far a machine got. Each rung implies the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rung {
    /// QEMU runs the machine.
    Started,
    /// The guest wrote to its console, or drew on its screen and read its disks.
    Console,
    /// The guest agent answers.
    Agent,
    /// The check command succeeded.
    Check,
}

impl Rung {
    /// The word in records.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Rung::Started => "started",
            Rung::Console => "console",
            Rung::Agent => "agent",
            Rung::Check => "check",
        }
    }
}

/// What was observed of a machine at one moment.
#[derive(Debug, Clone)]
pub(super) struct Observation<'a> {
    pub(super) state: MachineState,
    /// How often the guest restarted.
    pub(super) reboots: u32,
    /// The output of the guest's consoles.
    pub(super) console: &'a str,
    /// The output of the firmware on its own port.
    pub(super) firmware: &'a str,
    /// The parts of the point that could not be read.
    pub(super) damage: &'a [Damage],
}

/// Returns why the machine will not get further, or `None` if it still may.
pub(super) fn failure(seen: &Observation) -> Option<String> {
    let damage = seen.damage.first().map(|damage| {
        let disk = damage.disk.as_deref().unwrap_or("a disk");
        format!("the point is damaged: {disk}: {}", damage.error)
    });
    match &seen.state {
        MachineState::Paused(PausedReason::IoError) => {
            return Some(damage.map_or("a disk failed".to_owned(), |words| format!("a disk failed: {words}")));
        }
        MachineState::Crashed => return Some(format!("the guest crashed{}", quoted(panic_line(seen.console)))),
        MachineState::Off => return Some(format!("the guest shut down{}", quoted(last_line(seen.console)))),
        _ => {}
    }
    if let Some(line) = panic_line(seen.console) {
        return Some(format!("the kernel of the guest panicked{}", quoted(Some(line))));
    }
    if seen.reboots > MOST_REBOOTS {
        return Some(format!("the guest keeps restarting: {} times so far", seen.reboots));
    }
    if has_no_boot_loader(seen) {
        return Some("no disk has a boot loader".to_owned());
    }
    damage
}

/// Whether the text has more than the messages of firmware and boot loaders.
pub(super) fn is_of_a_guest(console: &str) -> bool {
    const OF_FIRMWARE: [&str; 6] = ["BdsDxe", "SeaBIOS", "iPXE", "Booting from", "UEFI", "Machine UUID"];
    plain_lines(console).any(|line| {
        line.chars().filter(|c| c.is_alphanumeric()).count() > 3
            && !OF_FIRMWARE.iter().any(|known| line.starts_with(known))
    })
}

/// Whether a text is on the console, ignoring colour codes.
pub(super) fn has_text(console: &str, wanted: &str) -> bool {
    console.contains(wanted) || plain_text(console).contains(wanted)
}

fn has_no_boot_loader(seen: &Observation) -> bool {
    seen.firmware.contains("No bootable device")
        || seen.console.contains("No bootable option or device was found")
        || seen.console.contains("UEFI Interactive Shell")
}

fn panic_line(console: &str) -> Option<String> {
    plain_lines(console).find(|line| line.contains("Kernel panic - not syncing"))
}

fn last_line(console: &str) -> Option<String> {
    plain_lines(console).filter(|line| !line.trim().is_empty()).last()
}

fn quoted(line: Option<String>) -> String {
    line.map_or(String::new(), |line| {
        let line: String = line.trim().chars().take(LONGEST_LINE_CHARS).collect();
        format!(": '{line}'")
    })
}

fn plain_lines(console: &str) -> impl Iterator<Item = String> {
    plain_text(console).lines().map(str::to_owned).collect::<Vec<_>>().into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen<'a>(state: MachineState, console: &'a str) -> Observation<'a> {
        Observation { state, reboots: 0, console, firmware: "", damage: &[] }
    }

    #[test]
    fn running_guest_is_not_a_failure() {
        assert_eq!(failure(&seen(MachineState::Running, "login: ")), None);
        let rebooted = Observation { reboots: 2, ..seen(MachineState::Running, "") };
        assert_eq!(failure(&rebooted), None);
    }

    #[test]
    fn each_failure_is_named_by_its_cause() {
        let panic = "[    1.2] Kernel panic - not syncing: VFS: Unable to mount root fs\r\n[ 1.3] CPU: 0\r\n";
        let words = |observation: Observation| failure(&observation).unwrap();
        let line = "'[    1.2] Kernel panic - not syncing: VFS: Unable to mount root fs'";
        assert_eq!(words(seen(MachineState::Running, panic)), format!("the kernel of the guest panicked: {line}"));
        assert_eq!(words(seen(MachineState::Crashed, panic)), format!("the guest crashed: {line}"));
        assert_eq!(words(seen(MachineState::Off, "bye\r\n\r\n")), "the guest shut down: 'bye'");
        assert_eq!(words(seen(MachineState::Paused(PausedReason::IoError), "")), "a disk failed");
        let loops = Observation { reboots: 3, ..seen(MachineState::Running, "") };
        assert_eq!(words(loops), "the guest keeps restarting: 3 times so far");
        let bios = Observation { firmware: "No bootable device.\n", ..seen(MachineState::Running, "") };
        assert_eq!(words(bios), "no disk has a boot loader");
        let uefi = "\u{1b}[2JBdsDxe: No bootable option or device was found.\r\n";
        assert_eq!(words(seen(MachineState::Running, uefi)), "no disk has a boot loader");
        let damage = Damage {
            disk: Some("vda".into()),
            offset_bytes: None,
            length_bytes: None,
            file: None,
            error: "gone".into(),
        };
        let damage = std::slice::from_ref(&damage);
        let damaged = Observation { damage, ..seen(MachineState::Paused(PausedReason::IoError), "") };
        assert_eq!(words(damaged), "a disk failed: the point is damaged: vda: gone");
        let unnoticed = Observation { damage, ..seen(MachineState::Running, "") };
        assert_eq!(words(unnoticed), "the point is damaged: vda: gone");
    }

    #[test]
    fn firmware_output_does_not_count_as_guest_output() {
        assert!(!is_of_a_guest("\u{1b}[2J\u{1b}[01;01HBdsDxe: loading Boot0001 \"UEFI Misc Device\"\r\n \r\n"));
        assert!(!is_of_a_guest("SeaBIOS (version 1.16)\r\nBooting from Hard Disk...\r\n"));
        assert!(is_of_a_guest("[    0.000000] Linux version 6.1.0\r\n"));
        assert!(is_of_a_guest("BdsDxe: starting\r\n\u{1b}[1mWelcome\u{1b}[0m"));
        assert!(!is_of_a_guest(""));
    }

    #[test]
    fn expected_text_is_found_despite_colour_codes() {
        assert!(has_text("vm1 \u{1b}[32mlog\u{1b}[0min: ", "vm1 login:"));
        assert!(!has_text("vm1", "vm2"));
    }
}
