//! Unusual machines: without disks, or busy with a block job, with saved memory or with another program.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::backups::{MIB, backup, init, new_folder, noise, text};
use crate::support::{Disk, Env, Machine, Output, set_mode, wait_until, wait_until_it_listens};
use serde_json::{Value, json};

/// Creates a machine that boots from the network: firmware variables, an empty drive, and no disk.
fn router(env: &Env) -> Machine<'_> {
    let file = |name: &str, seed: u64| {
        let path = env.path(name);
        fs::write(&path, noise(seed, 4096)).unwrap();
        set_mode(&path, 0o644);
        path.display().to_string()
    };
    let (code, variables) = (file("code.fd", 1), file("router_VARS.fd", 2));
    env.machine("router")
        .os_xml(&format!("<loader readonly='yes' type='pflash'>{code}</loader><nvram>{variables}</nvram>"))
        .devices_xml("<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>")
        .define()
}

#[test]
fn machine_without_disks_is_backed_up_and_restored() {
    let env = Env::new("diskless");
    let repo = init(&env);
    let (router, web) = (router(&env), env.machine("web").disk(Disk::qcow2(MIB)).define());
    set_mode(web.image("vda"), 0o600);
    let definition = router.definition();
    let output = env.kvmb(["backup", "--all", "-r", &repo]).run().assert_ok();
    let points = output.records_of("point");
    let of = |name: &str| points.iter().find(|point| point["machine"] == name).unwrap();
    assert_eq!((of("router")["disks"].clone(), of("web")["disks"].as_array().unwrap().len()), (json!([]), 1));
    assert_eq!(of("router")["consistency"], "offline");
    let parts: Vec<&str> = of("router")["files"].as_array().unwrap().iter().map(|file| text(file, "part")).collect();
    assert_eq!(parts, ["nvram", "loader"]);
    assert_eq!(of("router")["left_out"][0]["disk"], "sda");
    env.assert_nothing_left();

    // Listed, verified, copied, and read by restic.
    let listed = env.kvmb(["points", "router", "-r", &repo]).run().assert_ok().record_of("point");
    assert_eq!(listed["files"], of("router")["files"]);
    let second = env.repo_named("second");
    env.kvmb(["init", "-r", &second]).run().assert_ok();
    let piped = env.sh("kvmb points router -r $R | kvmb push -r second | kvmb verify -r second").run().assert_ok();
    assert_eq!(piped.record_of("point")["verified"], "full");
    let restic = env.restic(env.repo());
    restic.check();
    let dump = |name: &str| restic.dump(text(of("router"), "point"), &format!("/router/{name}"));
    assert_eq!(dump("nvram"), noise(2, 4096));
    assert_eq!(dump("files/code.fd"), noise(1, 4096));

    // There is nothing to capture; a pipeline reports that and continues with the others.
    let action = env.kvmb(["snapshot", "router", "-r", &repo]).run().assert_ok().record_of("action");
    assert_eq!((&action["changed"], &action["target"]), (&json!(false), &json!("router")));
    let pipe = "kvmb snapshot router web -r $R | kvmb hash | kvmb push -r $R | kvmb release | kvmb verify -r $R";
    let output = env.sh(pipe).run().assert_ok();
    assert_eq!((output.record_of("point")["machine"].clone(), output.records_of("action").len()), (json!("web"), 1));
    let piped = env.sh("kvmb disks router | kvmb backup -r $R").run().assert_ok();
    assert_eq!(piped.record_of("point")["disks"], json!([]));

    // Running, and with every disk excluded on request.
    router.start_paused();
    let point = backup(&router);
    assert_eq!((&point["disks"], &point["consistency"]), (&json!([]), &json!("crash")));
    router.stop();
    let point = env.kvmb(["backup", "web", "--exclude-disk", "vda", "-r", &repo]).run().assert_ok().record_of("point");
    assert_eq!((&point["disks"], &point["left_out"][0]["reason"]), (&json!([]), &json!("excluded on request")));

    // Lost and restored.
    restore(&env, &["router"]).assert_code(1).assert_stderr_has("already exists");
    env.virsh(&["undefine", "--nvram", "router"]);
    restore(&env, &["router"]).assert_ok();
    assert_eq!(router.definition(), definition);
    assert_eq!(fs::read(env.path("router_VARS.fd")).unwrap(), noise(2, 4096));
    restore(&env, &["router", "--overwrite"]).assert_ok();
    restore(&env, &["router", "--no-define"]).assert_code(2).assert_stderr_has("--into DIR");
    let into = new_folder(&env, "into").display().to_string();
    restore(&env, &["router", "--no-define", "--into", &into]).assert_ok();
    assert!(fs::read_to_string(format!("{into}/router.xml")).unwrap().contains(&format!("{into}/router_VARS.fd")));
    restore(&env, &["router", "--as", "router2", "--into", &new_folder(&env, "copy").display().to_string()])
        .assert_ok();
    env.assert_nothing_left();
}

fn restore(env: &Env, args: &[&str]) -> Output {
    env.kvmb(["restore", "-r", &env.repo()]).args(args).run()
}

/// Fails unless a backup finds the machine busy, and returns the failure.
#[track_caller]
fn assert_busy(env: &Env, machine: &str, error: &str, hint: &str) -> Value {
    let failure = env.kvmb(["backup", machine, "-r", &env.repo()]).run().assert_code(5).record_of("failure");
    assert_eq!(failure["code"], "busy", "{failure}");
    assert!(text(&failure, "error").contains(error), "no {error:?} in {failure}");
    assert!(text(&failure, "hint").contains(hint), "no {hint:?} in {failure}");
    env.assert_nothing_left();
    failure
}

#[test]
fn excluding_all_disks_of_a_machine_causes_a_warning() {
    let env = Env::new("all excluded");
    let repo = init(&env);
    let machine = env.machine("vm").disk(Disk::qcow2(MIB)).define();
    let backup = |options: &[&str]| env.kvmb(["backup", "vm", "-r", &repo]).args(options).run().assert_ok();
    let warning = "all disks of vm are excluded";
    let output = backup(&["--exclude-disk", "vda"]).assert_stderr_has(warning);
    assert_eq!(output.record_of("point")["disks"], json!([]));
    machine.start_paused();
    backup(&["--exclude-disk", "vda"]).assert_stderr_has(warning);
    assert!(!backup(&[]).stderr().contains(warning));
    env.assert_nothing_left();
}

#[test]
fn transient_disk_of_a_running_machine_is_refused_with_a_hint() {
    let env = Env::new("transient disk");
    let repo = init(&env);
    let machine =
        env.machine("vm").disk(Disk::qcow2(MIB)).disk(Disk::qcow2(MIB).extra_xml("<transient/>")).start_paused();
    let output = env.kvmb(["backup", "vm", "--disk", "vdb", "-r", &repo]).run().assert_code(1);
    output.assert_stderr_has("disk vdb of vm is transient").assert_stderr_has("while the machine is off");
    backup(&machine);
    env.assert_nothing_left();
}

#[test]
fn block_job_makes_a_machine_busy_until_the_hint_is_followed() {
    let env = Env::new("block job");
    let repo = init(&env);
    let machine = env.machine("vm1").disk(Disk::qcow2(4 * MIB)).disk(Disk::qcow2(MIB)).start_paused();
    let other = env.machine("other").disk(Disk::qcow2(MIB)).define();
    machine.write("vda", 0, 2 * MIB, 0x11);
    let copy = env.disks().join("copy.qcow2").display().to_string();
    env.virsh(&["blockcopy", "vm1", "vda", "--dest", &copy, "--format", "qcow2", "--transient-job"]);
    wait_until("the copy is ready", Duration::from_secs(60), || {
        machine.qmp("query-block-jobs", json!({})).as_array().unwrap().iter().any(|job| job["ready"] == true)
    });
    let failure = assert_busy(&env, "vm1", "disk vda of vm1 has a block job (block copy, ready to pivot)", "--pivot");
    assert!(machine.checkpoints().is_empty());
    let check = env.kvmb(["doctor", "vm1"]).run().records_of("check").into_iter().find(|check| check["check"] == "job");
    assert!(text(&check.unwrap(), "detail").contains("block copy"));
    // The others continue, and a disk without a job can be backed up.
    let output = env.kvmb(["backup", "--all", "-r", &repo]).run().assert_code(3);
    assert_eq!(output.record_of("point")["machine"], other.name());
    env.kvmb(["backup", "vm1", "--exclude-disk", "vda", "-r", &repo]).run().assert_ok();
    // With the hint's command.
    let abort = text(&failure, "hint").split('\'').find(|command| command.ends_with("--abort")).unwrap().to_owned();
    env.sh(&abort).run().assert_ok();
    backup(&machine);
    env.assert_nothing_left();
}

/// A program that has an image open for writing, as QEMU does.
struct Writer(Child);

impl Writer {
    fn of(env: &Env, image: &std::path::Path) -> Writer {
        let socket = env.path("holder.sock");
        let mut command = Command::new("qemu-nbd");
        command.args(["--persistent", "--format=qcow2", "--socket"]).args([&socket, image]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("qemu-nbd");
        wait_until_it_listens(&socket);
        Writer(child)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn image_open_in_another_program_makes_the_machine_busy() {
    let env = Env::new("image held");
    init(&env);
    let machine = env.machine("vm1").disk(Disk::qcow2(MIB)).define();
    set_mode(machine.image("vda"), 0o600);
    let writer = Writer::of(&env, machine.image("vda"));
    let pid = writer.0.id().to_string();
    let failure = {
        let output = env.kvmb(["backup", "vm1", "-r", &env.repo()]).run().assert_code(5);
        output.record_of("failure")
    };
    assert_eq!(failure["code"], "busy", "{failure}");
    assert!(text(&failure, "error").contains(&format!("qemu-nbd (process {pid})")), "{failure}");
    let then = format!("kill {pid}; then: kvmb backup -r {} vm1", env.repo());
    assert!(text(&failure, "hint").contains(&then), "{failure}");
    drop(writer);
    backup(&machine);
    // Another machine that runs from it.
    let thief = env.machine("thief").disk(Disk::existing(machine.image("vda"), "qcow2")).start_paused();
    let pid = thief.qemu_pid().unwrap();
    assert_busy(
        &env,
        "vm1",
        &format!("(process {pid})"),
        &format!("shut down the machine that uses it ('ps -fp {pid}'"),
    );
    thief.stop();
    backup(&machine);
    env.assert_nothing_left();
}

#[test]
fn machine_renamed_while_off_keeps_its_chain() {
    let env = Env::new("renamed");
    let repo = init(&env);
    let mut machine = env.machine("vm1").disk(Disk::qcow2(8 * MIB)).define();
    set_mode(machine.image("vda"), 0o600);
    machine.write("vda", 0, 4 * MIB, 0x11);
    let first = backup(&machine);
    machine.redefine(|xml| xml.replace("<name>vm1</name>", "<name>vm2</name>"));
    let off = env.kvmb(["backup", "vm2", "-r", &repo]).run().assert_ok().record_of("point");
    assert_eq!((&off["parent"], &off["disks"][0]["read_mode"]), (&first["point"], &json!("changed")));
    machine.start_paused_as("vm2");
    machine.write("vda", 0, 512, 0x22);
    let running = env.kvmb(["backup", "vm2", "-r", &repo]).run().assert_ok().record_of("point");
    assert_eq!((&running["parent"], &running["disks"][0]["read_mode"]), (&off["point"], &json!("changed")));
    env.kvmb(["verify", "vm1", "vm2", "-r", &repo]).run().assert_ok();
    env.assert_nothing_left();
}

#[test]
fn point_of_a_renamed_machine_is_restored_only_under_the_new_name() {
    let env = Env::new("renamed back");
    let repo = init(&env);
    let machine = env.machine("vm1").disk(Disk::qcow2(8 * MIB)).define();
    machine.write("vda", 0, 4 * MIB, 0x11);
    let first = text(&backup(&machine), "point").to_owned();
    let then = machine.models();
    machine.redefine(|xml| xml.replace("<name>vm1</name>", "<name>vm2</name>"));
    let uuid = env.virsh(&["domuuid", "vm2"]);
    machine.write("vda", 0, MIB, 0x22);
    let since = machine.models();

    // Under its old name it would be a second machine with the same UUID: refused, in a dry run as well.
    for dry in [&["--overwrite"][..], &["--overwrite", "--dry-run"]] {
        let refused = env.kvmb(["restore", &first, "-r", &repo]).args(dry).run().assert_code(1);
        let refused = refused.assert_stderr_has("vm1 is now named vm2").assert_stderr_has("--as vm2 --overwrite");
        assert_eq!(refused.record_of("failure")["code"], "exists");
    }
    since["vda"].assert_image_equals(machine.image("vda"), machine.format("vda"));

    env.kvmb(["restore", &first, "-r", &repo, "--as", "vm2"]).run().assert_code(1).assert_stderr_has("already exists");
    env.kvmb(["restore", &first, "-r", &repo, "--as", "vm2", "--overwrite"]).run().assert_ok();
    then["vda"].assert_image_equals(machine.image("vda"), machine.format("vda"));
    assert_eq!(env.virsh(&["domuuid", "vm2"]), uuid);
    let definition = env.virsh(&["dumpxml", "--inactive", "vm2"]);
    assert!(definition.contains("<name>vm2</name>"), "{definition}");
    env.assert_nothing_left();
}

#[test]
fn missing_driver_is_reported_for_the_disk_that_needs_it() {
    let env = Env::new("no driver");
    let repo = init(&env);
    let rbd = "<disk type='network' device='disk'><driver name='qemu' type='raw'/>\
               <source protocol='rbd' name='pool/volume'><host name='localhost' port='6789'/></source>\
               <target dev='vdb' bus='virtio'/></disk>";
    let _machine = env.machine("vm1").disk(Disk::qcow2(MIB)).devices_xml(rbd).define();
    // The driver may be installed here.
    let daemon = env.path("bin/qemu-storage-daemon");
    fs::write(&daemon, "#!/bin/sh\necho \"qemu-storage-daemon: Unknown driver 'rbd'\" >&2\nexit 1\n").unwrap();
    set_mode(&daemon, 0o755);
    let failure = env.kvmb(["backup", "vm1", "-r", &repo]).run().assert_code(1).record_of("failure");
    assert!(text(&failure, "error").starts_with("rbd:pool/volume: QEMU has no driver for it"), "{failure}");
    env.assert_nothing_left();
}
