//! A small Linux under software emulation, with the distribution's kernel and guest agent.
//!
//! It writes numbered files to an ext4 disk, and reports on its second serial port which of them are synced. `build`
//! creates kernel and initramfs once for all tests.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::{Disk, Env, Machine, Output, parts, set_mode, wait_until};

/// Kernel parameters that save a sixth of an emulated boot: no protection against attacks between processes, no
/// self-tests.
pub const FAST_BOOT: &str = "mitigations=off nokaslr cryptomgr.notests no_timer_check tsc=reliable";

/// How the guest agent reacts to a freeze request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreezeMode {
    /// It freezes the file systems.
    Normal,
    /// It first sleeps in its hook, without responding to other requests.
    Hangs {
        /// How long it sleeps.
        seconds: u32,
    },
    /// Its hook fails.
    Fails,
    /// It freezes the file systems, and another program thaws them at once.
    ThawedEarly,
    /// The machine has a channel for an agent, but no agent runs.
    NoAgent,
}

/// A running Linux guest.
pub struct LinuxGuest<'e> {
    machine: Machine<'e>,
    synced: PathBuf,
}

impl<'e> Deref for LinuxGuest<'e> {
    type Target = Machine<'e>;

    fn deref(&self) -> &Machine<'e> {
        &self.machine
    }
}

impl<'e> LinuxGuest<'e> {
    pub(super) fn boot(env: &'e Env, name: &str, freeze: FreezeMode, format: &str) -> LinuxGuest<'e> {
        let system = copied_system(env);
        let raw = env.disks().join("linux.img");
        make_ext4(&raw, 96 << 20);
        let disk = match format {
            "raw" => raw,
            _ => converted(&raw, format),
        };
        let mode = match freeze {
            FreezeMode::Normal => "kvmb.freeze=normal".to_owned(),
            FreezeMode::Hangs { seconds } => format!("kvmb.freeze=hang kvmb.seconds={seconds}"),
            FreezeMode::Fails => "kvmb.freeze=fail".to_owned(),
            FreezeMode::ThawedEarly => "kvmb.freeze=early".to_owned(),
            FreezeMode::NoAgent => "kvmb.freeze=no-agent".to_owned(),
        };
        let console = env.path("console.log");
        let synced = env.path("synced.log");
        let machine = env
            .machine(name)
            .memory_mib(256)
            .os_xml(&format!(
                "<kernel>{0}/vmlinuz</kernel><initrd>{0}/initramfs</initrd>\
                 <cmdline>console=ttyS0 quiet panic=1 {FAST_BOOT} {mode}</cmdline>",
                system.display()
            ))
            .devices_xml(&format!(
                "<serial type='file'><source path='{}'/><target port='0'/></serial>\
                 <serial type='file'><source path='{}'/><target port='1'/></serial>\
                 <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>",
                console.display(),
                synced.display()
            ))
            .disk(Disk::existing(&disk, format))
            .start();
        let guest = LinuxGuest { machine, synced };
        let limit = Duration::from_secs(120);
        wait_until("Linux writes its first file (see console.log)", limit, || guest.synced() > 0);
        if freeze != FreezeMode::NoAgent {
            wait_until("the guest agent responds", limit, || guest.ping());
        }
        guest
    }

    /// Whether the guest agent responds.
    pub fn ping(&self) -> bool {
        self.agent(r#"{"execute":"guest-ping"}"#).code() == 0
    }

    /// Sends a command to the guest agent, through libvirt.
    pub fn agent(&self, command: &str) -> Output {
        self.virsh_settled(&format!("qemu-agent-command {} '{command}'", self.uuid()))
    }

    /// Returns the number of the last file that the guest reported as synced. Every later capture must contain files 1
    /// to this one.
    pub fn synced(&self) -> u64 {
        let text = fs::read_to_string(&self.synced).unwrap_or_default();
        // The last line may be incomplete.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let last = whole.lines().rev().find_map(|line| line.trim().strip_prefix("synced "));
        last.and_then(|number| number.parse().ok()).unwrap_or(0)
    }

    /// Waits until the guest has synced this many more files, so that it is alive and not frozen.
    pub fn wait_for_more(&self, count: u64) {
        let wanted = self.synced() + count;
        wait_until("the guest goes on writing", Duration::from_secs(60), || self.synced() >= wanted);
    }
}

/// Converts an image to another format, and replaces the original.
fn converted(raw: &Path, format: &str) -> PathBuf {
    let image = raw.with_extension(format);
    super::change::run(
        "qemu-img",
        &["convert", "-f", "raw", "-O", format, &raw.display().to_string(), &image.display().to_string()],
    );
    fs::remove_file(raw).expect("cannot remove");
    image
}

/// A copy of a raw ext4 image for inspection.
pub struct Ext4 {
    image: tempfile::NamedTempFile,
    was_clean: bool,
}

impl Ext4 {
    /// Copies the image, checks whether its journal was empty, and lets `e2fsck` replay it and check the file system.
    pub fn open(image: &Path) -> Ext4 {
        parts::require(&["e2fsck", "debugfs", "dumpe2fs"]);
        let copy = tempfile::NamedTempFile::new().expect("cannot make a file");
        fs::copy(image, copy.path()).unwrap_or_else(|error| panic!("{}: {error}", image.display()));
        let header = run("dumpe2fs", &["-h"], copy.path());
        let was_clean = !header.contains("needs_recovery");
        // Replaying the journal is a change but not an error.
        let output = Command::new(parts::find("e2fsck").expect("e2fsck"))
            .args(["-f", "-p"])
            .arg(copy.path())
            .output()
            .expect("e2fsck");
        assert!(
            output.status.code().is_some_and(|code| code <= 1),
            "{}: the file system is damaged: {}",
            image.display(),
            String::from_utf8_lossy(&output.stdout)
        );
        Ext4 { image: copy, was_clean }
    }

    /// Whether the file system was frozen or unmounted, so that there was no journal to replay.
    pub fn was_clean(&self) -> bool {
        self.was_clean
    }

    /// Fails if a read-only check of the image finds an error.
    #[track_caller]
    pub fn assert_sound(image: &Path) {
        let output = Command::new(parts::find("e2fsck").expect("e2fsck")).arg("-fn").arg(image).output();
        let output = output.expect("e2fsck");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}: e2fsck -fn: {said}", image.display());
    }

    /// Returns the content of one of the guest's numbered files.
    pub fn numbered_file(&self, number: u64) -> String {
        run("debugfs", &["-R", &format!("cat /files/{number}")], self.image.path())
    }

    /// Fails unless files 1 to `last` exist and are complete.
    #[track_caller]
    pub fn assert_has_files(&self, last: u64) {
        assert_whole(last, |number| self.numbered_file(number));
    }
}

/// A file system of the guest, mounted on this host. It is unmounted when this is dropped.
pub struct Mounted {
    place: PathBuf,
}

impl Mounted {
    /// Mounts an image in a new folder beside it, through a loop device. This replays its journal.
    #[track_caller]
    pub fn mount(image: &Path) -> Mounted {
        let place = image.with_extension("mounted");
        fs::create_dir(&place).expect("cannot make a folder");
        let output = Command::new("mount").args(["-o", "loop"]).arg(image).arg(&place).output().expect("mount");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{} cannot be mounted (root and loop devices?): {said}", image.display());
        Mounted { place }
    }

    /// Fails unless files 1 to `last` exist and are complete.
    #[track_caller]
    pub fn assert_has_files(&self, last: u64) {
        let read = |number: u64| fs::read_to_string(self.place.join(format!("files/{number}"))).unwrap_or_default();
        assert_whole(last, read);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.place).output();
    }
}

#[track_caller]
fn assert_whole(last: u64, read: impl Fn(u64) -> String) {
    for number in 1..=last {
        let (wanted, content) = (format!("file {number}\n"), read(number));
        let whole = content.len() == 8192 && wanted.repeat(8192 / wanted.len() + 1).starts_with(&content);
        assert!(whole, "file {number} of {last} is missing or wrong: {content:.40?}");
    }
}

fn run(program: &str, args: &[&str], image: &Path) -> String {
    let output =
        Command::new(parts::find(program).expect("e2fsprogs")).args(args).arg(image).output().expect("e2fsprogs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Creates a raw image with an empty ext4.
pub fn make_ext4(image: &Path, size_bytes: u64) {
    parts::require(&["mkfs.ext4"]);
    fs::File::create(image).and_then(|file| file.set_len(size_bytes)).expect("cannot make the image");
    let output = Command::new(parts::find("mkfs.ext4").expect("mkfs.ext4"))
        .args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"])
        .arg(image)
        .output()
        .expect("mkfs.ext4");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Copies `vmlinuz` and `initramfs` and returns their folder. QEMU's user may not read the folder of the checkout, for
/// example below `/root`, and libvirt changes the owner of the files.
pub fn copied_system(env: &Env) -> PathBuf {
    let (prepared, folder) = (prepared_parts(), env.path("boot"));
    fs::create_dir_all(&folder).expect("cannot make a folder");
    set_mode(&folder, 0o755);
    for name in ["vmlinuz", "initramfs"] {
        fs::copy(prepared.join(name), folder.join(name)).expect("cannot copy");
        set_mode(&folder.join(name), 0o644);
    }
    folder
}

/// Returns the folder with `vmlinuz`, `initramfs` and the modules of the kernel, which are created on first use.
pub fn prepared_parts() -> PathBuf {
    let folder = parts::cache_dir().join("guest");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/guest/build");
    let output = Command::new(&script).arg(&folder).output().expect("the build script");
    assert!(
        output.status.success(),
        "cannot prepare the Linux guest; run this to see why: {} {}\n{}",
        script.display(),
        folder.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    folder
}
