//! Drills: points of healthy and broken guests, booted in isolation. Each result is reported correctly, and nothing
//! remains.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use super::copy::damage_largest_pack;
use kvmb::failpoint::Failpoint;
use serde_json::{Value, json};

use crate::support::backups::{backup, init, noise, stopped_at, text};
use crate::support::guest::{FAST_BOOT, copied_system, make_ext4};
use crate::support::machine::MachineBuilder;
use crate::support::{Call, Disk, Env, Machine, Output, process, wait_until};

/// Long enough for an emulated guest on a busy host.
const LONG: Duration = Duration::from_secs(120);

/// Creates a machine that boots the tests' kernel with this command line.
fn linux<'e>(env: &'e Env, name: &str, words: &str) -> MachineBuilder<'e> {
    let (system, disk) = (copied_system(env), env.disks().join(format!("{name}.img")));
    make_ext4(&disk, 96 << 20);
    env.machine(name)
        .memory_mib(256)
        .os_xml(&format!(
            "<kernel>{0}/vmlinuz</kernel><initrd>{0}/initramfs</initrd><cmdline>{FAST_BOOT} {words}</cmdline>",
            system.display()
        ))
        .disk(Disk::existing(&disk, "raw"))
}

const CONSOLE: &str = "<serial type='pty'><target port='0'/></serial>";
const CONSOLES: &str = "<serial type='pty'><target port='0'/></serial><serial type='pty'><target port='1'/></serial>";
const AGENT: &str = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>";

/// Returns everything on the host that a drill might leave behind: files, sockets, folders, processes, libvirt's
/// machines.
fn host(env: &Env) -> BTreeSet<String> {
    // The guard of a backup ends a moment after it.
    env.assert_nothing_left();
    let mut found = BTreeSet::new();
    for folder in ["run", "scratch", "libvirt", "tmp", "disks"] {
        files_below(&env.path(folder), &mut found);
    }
    for process in process::of(&env.path("")) {
        found.insert(format!("process {}", process.command_line));
    }
    for machine in env.virsh(&["list --all --name"]).lines() {
        found.insert(format!("machine {machine}"));
    }
    found
}

fn files_below(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = path.display().to_string();
        // libvirt's own files: QEMU's capabilities, and the number of the next machine.
        if name.contains("/cache/") || name.ends_with("driver.pid") || name.contains("/libvirt/run") {
            continue;
        }
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder {
            files_below(&path, found);
        }
        // libvirt creates the folders of its logs on demand.
        if !(is_folder && name.contains("/libvirt/log")) {
            found.insert(name);
        }
    }
}

fn drill(machine: &Machine, options: &[&str]) -> Call {
    let env = machine.env();
    env.kvmb(["drill", "-r", &env.repo(), "--json"]).args(options).args(["--", machine.name()]).limit(LONG)
}

/// Backs a machine up, boots the point, and compares the host before and after.
#[track_caller]
fn drilled(machine: &Machine, options: &[&str]) -> Output {
    let env = machine.env();
    init(env);
    backup(machine);
    let before = host(env);
    let output = drill(machine, options).run();
    assert_eq!(host(env), before, "{}", output.stderr());
    output
}

#[track_caller]
fn check_of(output: &Output, status: &str) -> Value {
    let check = output.record_of("check");
    assert_eq!((text(&check, "check"), text(&check, "status")), ("drill", status), "{check}");
    check
}

#[track_caller]
fn has(check: &Value, field: &str, words: &str) {
    assert!(text(check, field).contains(words), "{field}: {check}");
}

#[test]
fn guest_with_an_agent_reaches_the_check_rung_and_is_ok() {
    let env = Env::new("drill-agent");
    let machine = linux(&env, "kvmb-test-agent", "console=ttyS0").devices_xml(&format!("{CONSOLES}{AGENT}")).define();
    let output = drilled(&machine, &["--check", "cat /proc/cmdline; test -b /dev/vda"]).assert_ok();
    let check = check_of(&output, "ok");
    assert_eq!(text(&check, "rung"), "check", "{check}");
    for (earlier, later) in [("started", "console"), ("console", "agent"), ("agent", "check")] {
        let seconds = |rung: &str| check[format!("{rung}_seconds")].as_f64().unwrap();
        assert!(seconds(earlier) <= seconds(later), "{check}");
    }
    has(&check, "check_output", "console=ttyS0");
    assert_eq!(check["accelerated"], false, "{check}");
    let log = fs::read_to_string(text(&check, "log")).unwrap();
    assert!(log.contains("Linux version"), "{log}");
    let picture = fs::read(text(&check, "screenshot")).unwrap();
    assert!(picture.starts_with(b"\x89PNG"), "{:?}", &picture[..8]);
    // The original was not touched.
    assert_eq!(machine.status(), "off");
}

#[test]
fn guest_without_an_agent_is_ok_only_if_console_suffices() {
    let env = Env::new("drill-alone");
    // The machine has no serial port that the drill can read, so it adds one.
    let machine = linux(&env, "kvmb-test-alone", "console=ttyS0 kvmb.freeze=no-agent").define();
    let output = drilled(&machine, &["--timeout", "20s"]).assert_ok();
    let check = check_of(&output, "unknown");
    has(&check, "detail", "no agent answered");
    assert_eq!(text(&check, "rung"), "console", "{check}");
    let enough = drill(&machine, &["--until", "console"]).run().assert_ok();
    has(&check_of(&enough, "ok"), "detail", "the guest wrote to its console");
    // The configured request: the machine's name takes precedence over a glob, and an option over both.
    let expect = json!({"kvmb-test-*": "no such words", "kvmb-test-alone": "Linux version"});
    env.configure(&json!({"drill": {"until": "console", "expect": expect}}));
    let expected = drill(&machine, &[]).run().assert_ok();
    has(&check_of(&expected, "ok"), "detail", "the expected text appeared");
    let missing = drill(&machine, &["--expect", "no such words", "--timeout", "5s"]).run().assert_code(1);
    has(&check_of(&missing, "critical"), "detail", "the console did not show \"no such words\"");
}

#[test]
fn kernel_panic_is_critical_and_quoted() {
    let env = Env::new("drill-panic");
    let machine = linux(&env, "kvmb-test-panic", "console=ttyS0 rdinit=/none").devices_xml(CONSOLE).define();
    let output = drilled(&machine, &[]).assert_code(1);
    has(&check_of(&output, "critical"), "detail", "Kernel panic - not syncing");
    // What cron mails if records are discarded.
    output.assert_stderr_has("error: kvmb-test-panic: the drill failed: ");
}

#[test]
fn endless_guest_reboots_are_critical() {
    let env = Env::new("drill-loop");
    // It prints nothing on any console; only the restarts can be observed.
    let machine = linux(&env, "kvmb-test-loop", "quiet rdinit=/bin/busybox -- reboot -f").define();
    let check = check_of(&drilled(&machine, &[]).assert_code(1), "critical");
    has(&check, "detail", "keeps restarting");
    assert!(check["reboots"].as_u64() >= Some(3), "{check}");
}

#[test]
fn a_guest_that_shuts_down_is_critical() {
    let env = Env::new("drill-off");
    let machine = linux(&env, "kvmb-test-off", "console=ttyS0 rdinit=/bin/busybox -- poweroff -f").define();
    let check = check_of(&drilled(&machine, &[]).assert_code(1), "critical");
    has(&check, "detail", "the guest shut down");
}

#[test]
fn a_disk_without_a_boot_loader_is_critical() {
    let env = Env::new("drill-empty");
    let machine = env.machine("kvmb-test-empty").disk(Disk::qcow2(8 << 20)).define();
    let check = check_of(&drilled(&machine, &[]).assert_code(1), "critical");
    has(&check, "detail", "no disk has a boot loader");
    assert_eq!(text(&check, "rung"), "started", "{check}");
    // The result is recorded, and the next sample selects another machine.
    let status = env.kvmb(["status", "-r", &env.repo(), "--json"]).run();
    let known = status.records_of("check").into_iter().find(|known| known["check"] == "backup").unwrap();
    assert_eq!((text(&known, "drill_status"), text(&known, "drill_rung")), ("critical", "started"), "{known}");
    let other = env.machine("kvmb-test-other").disk(Disk::qcow2(8 << 20)).define();
    backup(&other);
    let sample = env.kvmb(["drill", "-r", &env.repo(), "--json", "--all", "--sample", "1", "--until", "started"]);
    assert_eq!(text(&check_of(&sample.run().assert_ok(), "ok"), "target"), other.name());
}

#[test]
fn hanging_guest_is_unknown_but_critical_with_until_agent() {
    let env = Env::new("drill-waits");
    let machine = linux(&env, "kvmb-test-waits", "console=ttyS0 rdinit=/bin/busybox -- sleep 1000000")
        .devices_xml(&format!("{CONSOLE}{AGENT}"))
        .define();
    let check = check_of(&drilled(&machine, &["--timeout", "15s"]).assert_ok(), "unknown");
    has(&check, "detail", "no agent answered in 15 s");
    let asked = drill(&machine, &["--timeout", "5s", "--until", "agent"]).run().assert_code(1);
    check_of(&asked, "critical");
}

#[test]
fn drill_boots_with_stored_firmware_variables_and_tpm_state() {
    let env = Env::new("drill-parts");
    let vars = env.disks().join("vars.fd");
    fs::copy("/usr/share/OVMF/OVMF_VARS_4M.fd", &vars).unwrap();
    let machine = env
        .machine("kvmb-test-parts")
        .memory_mib(256)
        .os_xml(&format!(
            "<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader><nvram>{}</nvram>",
            vars.display()
        ))
        .devices_xml(&format!("{CONSOLE}<tpm model='tpm-tis'><backend type='emulator' version='2.0'/></tpm>"))
        .disk(Disk::qcow2(8 << 20))
        // Its TPM has a state from here on.
        .start_paused();
    init(&env);
    let point = backup(&machine);
    let parts: Vec<&str> = point["files"].as_array().unwrap().iter().map(|file| text(file, "part")).collect();
    assert!(parts.contains(&"nvram") && parts.contains(&"tpm"), "{point}");
    machine.stop();
    let before = host(&env);
    let output = drill(&machine, &[]).run().assert_code(1);
    assert_eq!(host(&env), before);
    let check = check_of(&output, "critical");
    // It gets as far as possible with an empty disk.
    has(&check, "detail", "no disk has a boot loader");
    let log = fs::read_to_string(text(&check, "log")).unwrap();
    assert!(log.contains("BdsDxe"), "{log}");
}

#[test]
fn drill_ignores_missing_host_networks_and_devices() {
    let env = Env::new("drill-host");
    let folder = env.path("shared");
    fs::create_dir(&folder).unwrap();
    let machine = env
        .machine("kvmb-test-host")
        .devices_xml(&format!(
            "<interface type='network'><source network='no-such-network'/><model type='virtio'/></interface>\
             <interface type='bridge'><source bridge='no-such-bridge'/><model type='e1000e'/></interface>\
             <hostdev mode='subsystem' type='pci' managed='yes'><source>\
             <address domain='0x0000' bus='0x41' slot='0x00' function='0x0'/></source></hostdev>\
             <filesystem type='mount'><source dir='{}'/><target dir='shared'/></filesystem>\
             <graphics type='vnc' port='5999'/>",
            folder.display()
        ))
        .disk(Disk::qcow2(8 << 20))
        .define();
    let check = check_of(&drilled(&machine, &[]).assert_code(1), "critical");
    has(&check, "detail", "no disk has a boot loader");
}

#[test]
fn a_damaged_chunk_that_the_guest_reads_is_critical() {
    let env = Env::new("drill-damage");
    // The firmware searches for a boot loader in the only non-zero chunk.
    let machine = env.machine("kvmb-test-damage").disk(Disk::qcow2(8 << 20)).start_paused();
    machine.write_bytes("vda", 0, &noise(1, 1 << 20));
    let repo = init(&env);
    backup(&machine);
    damage_largest_pack(&repo);
    let check = check_of(&drill(&machine, &[]).run().assert_code(1), "critical");
    has(&check, "detail", "the point is damaged: vda");
    env.assert_nothing_left();
}

#[test]
fn leftovers_of_a_killed_drill_are_removed_by_the_next_drill() {
    let env = Env::new("drill-killed");
    let machine = linux(&env, "kvmb-test-killed", "console=ttyS0 rdinit=/bin/busybox -- sleep 1000000").define();
    init(&env);
    backup(&machine);
    let before = host(&env);
    for step in Failpoint::DRILL {
        let running = stopped_at(drill(&machine, &["--until", "started"]), step);
        running.kill();
        running.wait();
        drill(&machine, &["--until", "started"]).run().assert_ok();
        assert_eq!(host(&env), before, "{step:?}");
    }
}

#[test]
fn leftovers_of_a_killed_drill_are_removed_by_release_all() {
    let env = Env::new("drill-release");
    let machine = env.machine("kvmb-test-release").disk(Disk::qcow2(8 << 20)).define();
    init(&env);
    backup(&machine);
    let before = host(&env);
    let running = stopped_at(drill(&machine, &["--until", "started"]), Failpoint::DrillRuns);
    let release = |options: &[&str]| {
        env.kvmb(["release", "--all", "--json"]).args(options).run().assert_ok().records_of("action")
    };
    // A running drill is left alone.
    assert!(release(&[]).is_empty());
    running.kill();
    running.wait();
    let files = || {
        let mut found = BTreeSet::new();
        files_below(&env.path("run"), &mut found);
        found
    };
    let left = files();
    assert!(left.iter().any(|file| file.contains("drill-")), "{left:?}");
    let would = release(&["--dry-run"]);
    assert_eq!((would.len(), &would[0]["changed"], &would[0]["dry_run"]), (1, &true.into(), &true.into()), "{would:?}");
    assert_eq!(files(), left);
    let done = release(&[]);
    assert_eq!((done.len(), text(&done[0], "reason")), (1, "the leftovers of a killed drill were removed"), "{done:?}");
    assert_eq!(done[0]["target"], would[0]["target"]);
    assert_eq!(host(&env), before);
    assert!(release(&[]).is_empty());
}

#[test]
fn interrupted_drill_leaves_nothing_behind() {
    let env = Env::new("drill-ctrl-c");
    let machine = linux(&env, "kvmb-test-ctrl-c", "console=ttyS0 rdinit=/bin/busybox -- sleep 1000000").define();
    init(&env);
    backup(&machine);
    let before = host(&env);
    let running = drill(&machine, &[]).spawn();
    let runs = || process::of(&env.path("")).iter().any(|it| it.command_line.contains("kvmb-drill-"));
    wait_until("its QEMU runs", Duration::from_secs(60), runs);
    running.interrupt();
    running.wait().assert_code(130);
    assert_eq!(host(&env), before);
}
