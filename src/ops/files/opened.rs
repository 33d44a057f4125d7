//! The volumes of a point that `guestfish` opens: LUKS, RAID and all kinds of logical volumes. Each becomes a device
//! that can be read like a disk.
//!
//! | volume | name of the device |
//! | --- | --- |
//! | LUKS on `vda5` | `vda5_crypt`, as in Debian's installer |
//! | RAID | `md0`, `md-data`: the name of the array |
//! | a logical volume | `vg0-root`, as in `/dev/mapper` |

use super::guestfish::Guestfish;
use crate::capture::RuntimeDirs;
use crate::capture::runtime::SERVED_SOCKET;
use crate::filesystems::FsError;
use crate::filesystems::format::FilesystemFormat;
use crate::filesystems::volumes::VolumeInfo;
use crate::nbd::{Export, Exports, Server};
use crate::ops::serve::new_socket_folder;
use crate::ops::serve::socket::PrivateSocket;
use crate::ops::{Error, Result, Stop};
use crate::repo::Password;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

/// The size of reads. It is large because the cost of a request hardly depends on its size.
const PIECE_BYTES: u64 = 1 << 20;

/// The number of cached pieces.
const PIECES: usize = 16;

/// The maximum number of opened devices.
const MOST_DEVICES: usize = 256;

/// Returns the passphrase of the LUKS volume with this name, or `None` to leave it closed.
pub(crate) type AskPassphrase<'a> = &'a mut dyn FnMut(&str) -> Result<Option<Password>>;

/// A device in guestfish's virtual machine.
#[derive(Debug, Clone)]
pub(super) struct OpenedDevice {
    pub(super) name: String,
    pub(super) size_bytes: u64,
    path: String,
}

/// The opened devices.
pub(super) struct OpenedDevices {
    devices: Vec<OpenedDevice>,
    /// The names of the machine's disks, in the order in which they were added.
    disks: Vec<String>,
    /// The volumes that opening was attempted for.
    tried: BTreeSet<String>,
    pieces: VecDeque<Piece>,
    guestfish: Guestfish,
    // Dropped last, because the virtual machine reads from it.
    _server: DiskServer,
}

/// A piece of a device that was read.
struct Piece {
    device: usize,
    number: u64,
    bytes: Vec<u8>,
}

/// Whether guestfish may be able to open a volume.
pub(super) fn is_closed(volume: &VolumeInfo) -> bool {
    matches!(volume.format, FilesystemFormat::Luks | FilesystemFormat::Raid)
        || matches!(volume.problem, Some(FsError::Closed(_)))
}

impl OpenedDevices {
    /// Starts the virtual machine with these disks.
    pub(super) fn start(
        disks: &[(String, Arc<dyn Export>)],
        runtime: &RuntimeDirs,
        stop: &Stop,
    ) -> Result<OpenedDevices> {
        let mut guestfish = Guestfish::start(stop.flag())?;
        // The folder is removed when the machine has started. It is connected by then, and no other client may connect.
        let folder = new_socket_folder(runtime, &format!("s-{:08x}", rand::random::<u32>()))?;
        let socket = folder.path().join(SERVED_SOCKET);
        let names: Vec<String> = (0..disks.len()).map(|number| format!("disk{number}")).collect();
        let server = DiskServer::start(PrivateSocket::bind(&socket, None)?, &names, disks)?;
        guestfish.launch(&socket, &names)?;
        guestfish.ask("lvm-scan true")?;
        Ok(OpenedDevices {
            devices: Vec::new(),
            disks: disks.iter().map(|(name, _)| name.clone()).collect(),
            tried: BTreeSet::new(),
            pieces: VecDeque::new(),
            guestfish,
            _server: server,
        })
    }

    pub(super) fn devices(&self) -> &[OpenedDevice] {
        &self.devices
    }

    /// Opens those of these volumes that are closed. Returns whether there are new devices.
    pub(super) fn open(&mut self, volumes: &[VolumeInfo], ask: AskPassphrase<'_>) -> Result<bool> {
        let known = self.devices.len();
        let closed: Vec<&VolumeInfo> = volumes.iter().filter(|volume| is_closed(volume)).collect();
        for volume in closed.iter().filter(|volume| volume.format == FilesystemFormat::Luks) {
            self.open_luks(volume, ask)?;
        }
        if closed.iter().any(|volume| volume.format == FilesystemFormat::Raid) {
            self.add_arrays()?;
        }
        for volume in closed.iter().filter(|volume| volume.problem.is_some() && is_mapper_name(&volume.name)) {
            if self.tried.insert(volume.name.clone()) {
                self.add(volume.name.clone(), format!("/dev/mapper/{}", volume.name))?;
            }
        }
        Ok(self.devices.len() > known)
    }

    fn open_luks(&mut self, volume: &VolumeInfo, ask: AskPassphrase<'_>) -> Result<()> {
        let Some(device) = self.path_of(volume) else { return Ok(()) };
        if !self.tried.insert(volume.name.clone()) {
            return Ok(());
        }
        let Some(key) = ask(&volume.name)? else { return Ok(()) };
        let mapped = format!("crypt{}", self.tried.len());
        if let Err(message) = self.guestfish.open_luks(&device, &mapped, key.as_bytes())? {
            return Err(not_opened(volume.name.clone(), message));
        }
        self.add(format!("{}_crypt", volume.name), format!("/dev/mapper/{mapped}"))?;
        // Activates logical volumes that are on the opened volume.
        self.guestfish.ask("lvm-scan true")?;
        Ok(())
    }

    /// Adds the arrays that the virtual machine has assembled.
    fn add_arrays(&mut self) -> Result<()> {
        let list = self.guestfish.ask("list-md-devices")?;
        for path in list.lines().filter(|path| path.strip_prefix("/dev/").is_some_and(is_mapper_name)) {
            if !self.tried.insert(path.to_owned()) {
                continue;
            }
            let details = self.guestfish.try_ask(&format!("md-detail {path}"))?.unwrap_or_default();
            let name = array_name(&details).unwrap_or_else(|| path.trim_start_matches("/dev/").to_owned());
            self.add(name, path.to_owned())?;
        }
        Ok(())
    }

    /// Adds a device if it exists.
    fn add(&mut self, mut name: String, path: String) -> Result<()> {
        let size = self.guestfish.try_ask(&format!("blockdev-getsize64 {path}"))?;
        let Some(size_bytes) = size.and_then(|size| size.trim().parse().ok()) else { return Ok(()) };
        let is_taken =
            |name: &String| self.devices.iter().any(|device| device.name == *name) || self.disks.contains(name);
        if self.devices.len() >= MOST_DEVICES {
            return Ok(());
        }
        while is_taken(&name) {
            name.push('_');
        }
        self.devices.push(OpenedDevice { name, size_bytes, path });
        Ok(())
    }

    /// The path of a volume in the virtual machine. `None` for a partition of an opened device, which has no device
    /// node there.
    fn path_of(&self, volume: &VolumeInfo) -> Option<String> {
        let disk = self.disks.iter().position(|name| *name == volume.disk).map(drive_path);
        let device = || Some(self.devices.iter().find(|device| device.name == volume.disk)?.path.clone());
        match volume.partition {
            Some(partition) => disk.map(|disk| format!("{disk}{partition}")),
            None => disk.or_else(device).or_else(|| {
                // A logical volume.
                is_mapper_name(&volume.name).then(|| format!("/dev/mapper/{}", volume.name))
            }),
        }
    }

    /// Reads bytes of a device into a buffer.
    pub(super) fn read(&mut self, device: usize, offset: u64, buffer: &mut [u8]) -> std::result::Result<(), String> {
        let size = self.devices.get(device).ok_or("there is no such device")?.size_bytes;
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > size) {
            return Err("the device ends before that".to_owned());
        }
        let mut filled = 0;
        while filled < buffer.len() {
            let at = offset + filled as u64;
            let begin = (at % PIECE_BYTES) as usize;
            let bytes = self.piece(device, at / PIECE_BYTES).map_err(|error| error.to_string())?;
            let length = (bytes.len() - begin).min(buffer.len() - filled);
            buffer[filled..filled + length].copy_from_slice(&bytes[begin..begin + length]);
            filled += length;
        }
        Ok(())
    }

    fn piece(&mut self, device: usize, number: u64) -> Result<&[u8]> {
        let known = self.pieces.iter().position(|piece| piece.device == device && piece.number == number);
        let piece = match known.and_then(|known| self.pieces.remove(known)) {
            Some(piece) => piece,
            None => {
                let OpenedDevice { path, size_bytes, .. } = &self.devices[device];
                let offset = number * PIECE_BYTES;
                let length = PIECE_BYTES.min(size_bytes - offset) as usize;
                Piece { device, number, bytes: self.guestfish.read(path, offset, length)? }
            }
        };
        self.pieces.truncate(PIECES - 1);
        self.pieces.push_front(piece);
        Ok(&self.pieces[0].bytes)
    }
}

/// Returns why a LUKS volume did not open, based on cryptsetup(8), whose exit codes are "2 no permission (bad
/// passphrase)" and "3 out of memory". If the virtual machine runs out of memory, cryptsetup is killed by a signal.
fn not_opened(volume: String, message: String) -> Error {
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    if says(&["exited with status 2", "No key available", "line end or a zero byte"]) {
        Error::WrongPassphrase { volume, message }
    } else if says(&["exited with status 3", "available memory", "killed by signal"]) {
        Error::TooLittleMemory { volume, message }
    } else {
        Error::VolumeNotOpened { volume, message }
    }
}

/// The device name of a disk by its number, as Linux assigns it: `sda` to `sdz`, then `sdaa`.
fn drive_path(number: usize) -> String {
    let (mut letters, mut rest) = (Vec::new(), number + 1);
    while rest > 0 {
        letters.push(b'a' + ((rest - 1) % 26) as u8);
        rest = (rest - 1) / 26;
    }
    letters.reverse();
    format!("/dev/sd{}", String::from_utf8_lossy(&letters))
}

/// Whether a name is valid in `/dev/mapper` and needs no quoting in a command.
fn is_mapper_name(name: &str) -> bool {
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "+_.-".contains(character);
    !name.is_empty() && name.len() <= 255 && name != "control" && !name.starts_with('.') && name.chars().all(is_plain)
}

/// The name of an array, from `mdadm`'s "name:HOST:NAME": `/dev/md0` for a number, otherwise `/dev/md/NAME`.
fn array_name(details: &str) -> Option<String> {
    let name = details.lines().find_map(|line| line.strip_prefix("name:"))?.trim();
    let name = name.rsplit_once(':').map_or(name, |(_, name)| name);
    if !is_mapper_name(name) {
        return None;
    }
    let is_number = name.bytes().all(|byte| byte.is_ascii_digit());
    Some(if is_number { format!("md{name}") } else { format!("md-{}", name.replace('-', "--")) })
}

/// Serves the disks of a point on a socket, in a thread.
struct DiskServer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl DiskServer {
    fn start(socket: PrivateSocket, names: &[String], disks: &[(String, Arc<dyn Export>)]) -> Result<DiskServer> {
        let mut exports = Exports::default();
        for (name, (_, export)) in names.iter().zip(disks) {
            exports.insert(name, Arc::clone(export));
        }
        let stop = Arc::new(AtomicBool::new(false));
        let server = Server::new(exports, Arc::clone(&stop));
        let path = socket.path().to_owned();
        let run = move || {
            if let Err(error) = server.run(socket.listener(), || true) {
                tracing::warn!("the disks of the point are not served: {error}");
            }
        };
        let thread = thread::Builder::new().name("guestfish-disks".to_owned()).spawn(run);
        let thread = thread.map_err(Error::io("listen on", &path))?;
        Ok(DiskServer { stop, thread: Some(thread) })
    }
}

impl Drop for DiskServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic was reported by the thread itself.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drive_paths_follow_linux_naming() {
        for (number, path) in
            [(0, "/dev/sda"), (25, "/dev/sdz"), (26, "/dev/sdaa"), (701, "/dev/sdzz"), (702, "/dev/sdaaa")]
        {
            assert_eq!(drive_path(number), path);
        }
    }

    #[test]
    fn array_is_named_by_its_metadata() {
        assert_eq!(array_name("level: raid1\nname: host:0\n").as_deref(), Some("md0"));
        assert_eq!(array_name("name: (none):my-data\ndevname: x\n").as_deref(), Some("md-my--data"));
        for wrong in ["", "level: raid1\n", "name: host:a b\n", "name: host:../x\n", "name: host:\n"] {
            assert_eq!(array_name(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn wrong_passphrase_is_distinguished_from_other_unlock_failures() {
        let of = |said: &str| not_opened("vda5".to_owned(), format!("cryptsetup_open: {said}"));
        let wrong = of("cryptsetup exited with status 2: No key available with this passphrase.");
        assert!(matches!(wrong, Error::WrongPassphrase { .. }), "{wrong}");
        for said in [
            "cryptsetup exited with status 3: Not enough available memory",
            "external command 'cryptsetup' killed by signal -7",
        ] {
            assert!(matches!(of(said), Error::TooLittleMemory { .. }), "{said}");
        }
        let other = of("cryptsetup exited with status 1: Device /dev/sda1 is not a valid LUKS device.");
        assert!(matches!(other, Error::VolumeNotOpened { .. }), "{other}");
    }

    #[test]
    fn mapper_names_with_shell_or_path_characters_are_refused() {
        for wrong in ["", "a b", "a;b", "a\nb", "../sda", "a/b", "\"", "control", "|x", &"x".repeat(256)] {
            assert!(!is_mapper_name(wrong), "{wrong}");
        }
        assert!(is_mapper_name("my--vg-root_1+x.y"));
    }
}
