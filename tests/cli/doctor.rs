//! `kvmb doctor` on real machines: it reports problems that would prevent a backup, with commands that fix them - and
//! those commands work.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::support::chains::{MIB, backup, init};
use crate::support::change::run;
use crate::support::{Disk, Env, FreezeMode, Output};
use serde_json::Value;

/// Returns the check with this name and target.
#[track_caller]
fn check(output: &Output, check: &str, target: &str) -> Value {
    let all = output.records_of("check");
    let found: Vec<&Value> = all.iter().filter(|c| c["check"] == check && c["target"] == target).collect();
    assert_eq!(found.len(), 1, "one check {check} of {target} was expected\n{output}");
    found[0].clone()
}

/// Fails unless the check has this status, and its detail and hint contain these texts.
#[track_caller]
fn assert_check(output: &Output, name: &str, target: &str, status: &str, detail: &str, hint: &str) {
    let check = check(output, name, target);
    assert_eq!(check["status"], status, "{check:#}");
    assert!(check["detail"].as_str().unwrap_or_default().contains(detail), "no {detail:?} in {check:#}");
    assert!(check["hint"].as_str().unwrap_or_default().contains(hint), "no {hint:?} in {check:#}");
}

fn doctor(env: &Env, args: &[&str]) -> Output {
    env.kvmb(["doctor"]).args(args).run()
}

#[test]
fn healthy_machine_only_warns_about_its_missing_agent() {
    let env = Env::new("doctor good");
    let machine = env.machine("vm").disk(Disk::qcow2(4 * MIB)).start_paused();
    let output = doctor(&env, &[]).assert_ok();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    for (name, words) in [
        ("connection", "qemu:///embed"),
        ("libvirt", "libvirt "),
        ("qemu", "QEMU "),
        ("programs", "qemu-storage-daemon"),
    ] {
        assert_check(&output, name, &host, "ok", words, "");
    }
    for name in ["job", "folders", "scratch"] {
        assert_check(&output, name, "vm", "ok", "", "");
    }
    assert_check(&output, "disk", "vm/vda", "ok", "only changes", "");
    assert_check(&output, "agent", "vm", "warning", "no guest agent channel", "virt-xml vm --add-device --channel");
    let warned = output.records_of("check").iter().filter(|check| check["status"] != "ok").count();
    assert_eq!(warned, 1, "{output}");
    assert!(!machine.is_captured() && machine.checkpoints().is_empty());
    env.assert_nothing_left();
    // A table lists the problems, and counts the other checks.
    let count = output.records_of("check").len() - 1;
    let table = doctor(&env, &["-o", "table"]).assert_ok();
    let summary = format!("\n\n1 warning; {count} checks ok (--all lists them)\n");
    assert!(table.stdout().ends_with(&summary) && !table.stdout().contains("only changes"), "{table}");
    let table = doctor(&env, &["-o", "table", "--all"]).assert_ok();
    let (problem, well) = (table.stdout().find("no guest agent"), table.stdout().find("only changes"));
    assert!(problem.expect("the problem") < well.expect("what is well"), "{table}");
}

#[test]
fn repositories_are_checked_without_asking_for_a_password() {
    let env = Env::new("doctor repositories");
    let own = env.path("data/repo").display().to_string();
    assert_check(&doctor(&env, &[]).assert_ok(), "repository", &own, "ok", "the first backup creates", "");
    let output = doctor(&env, &["-r", "/nowhere"]).assert_code(1);
    assert_check(&output, "repository", "/nowhere", "critical", "no repository in /nowhere", "kvmb init -r /nowhere");
    env.sh("kvmb init -r $R").run().assert_ok();
    let repo = env.repo();
    let output = doctor(&env, &["-r", &repo, "--copy-to", "/nowhere"]).assert_code(1);
    assert_check(&output, "repository", &repo, "ok", "can be opened", "");
    assert_check(&output, "copy", "/nowhere", "critical", "no repository in /nowhere", "");
    let output = env.kvmb(["doctor", "-r", &repo]).without_env("KVMB_PASSWORD_FILE").run().assert_ok();
    assert_check(&output, "repository", &repo, "ok", "no password was given", "");
    let wrong = env.kvmb(["doctor", "-r", &repo]).without_env("KVMB_PASSWORD_FILE").env("KVMB_PASSWORD", "x").run();
    assert_check(&wrong.assert_code(1), "repository", &repo, "critical", "password", "--password-file");
}

#[test]
fn disks_read_in_full_or_excluded_are_reported_with_working_hints() {
    let env = Env::new("doctor disks");
    let repo = init(&env);
    let machine = env
        .machine("vm")
        .disk(Disk::qcow2(4 * MIB))
        .disk(Disk::raw(MIB))
        .disk(Disk::qcow2(MIB).option("compat=0.10").file_name("it's old.qcow2"))
        .disk(Disk::raw(MIB).extra_xml("<shareable/>"))
        .devices_xml("<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>")
        .start_paused();
    let output = doctor(&env, &["vm"]).assert_ok();
    assert_check(&output, "disk", "vm/vda", "ok", "only changes", "");
    assert_check(
        &output,
        "disk",
        "vm/vdb",
        "warning",
        "a raw image cannot have a dirty bitmap",
        "qemu-img convert -f raw -O qcow2",
    );
    assert_check(&output, "disk", "vm/vdc", "warning", "version 2", "qemu-img amend -f qcow2 -o compat=1.1");
    assert_check(&output, "disk", "vm/vdd", "warning", "excluded: shared with other machines", "inside the guest");
    assert_check(&output, "disk", "vm/sda", "ok", "excluded: cdrom", "");

    machine.stop();
    let hint = check(&output, "disk", "vm/vdc")["hint"].as_str().expect("a hint").to_owned();
    let (_, command) = hint.split_once(": ").expect("a command");
    env.sh(command).run().assert_ok();
    assert_check(&doctor(&env, &["vm"]).assert_ok(), "disk", "vm/vdc", "ok", "only changes", "");
    machine.start_paused();
    backup(&machine, &repo);
    crate::support::chains::assert_changed(&backup(&machine, &repo), "vdc", 0);
}

#[test]
fn raw_disk_hint_adds_a_qcow2_data_file_image_with_bitmaps() {
    let env = Env::new("doctor data file");
    let repo = init(&env);
    let mut machine = env.machine("vm").disk(Disk::raw(4 * MIB).file_name("it's, raw.img")).define();
    machine.write("vda", MIB, MIB, 0x11);
    let hint = check(&doctor(&env, &["vm"]).assert_ok(), "disk", "vm/vda")["hint"].as_str().expect("a hint").to_owned();
    let (_, way) = hint.split_once("(libvirt 10.10 or later): ").expect("a second way");
    let (commands, change) = way.split_once("; then set ").expect("a change of the definition");
    env.sh(commands).run().assert_ok();
    let (driver, change) = change.split_once(" and ").expect("a driver and a source");
    let (source, _) = change.split_once(" in a ").expect("a source");
    let definition = machine.definition();
    let begin = definition.find("<driver name='qemu' type='raw'").expect("the driver");
    let end = begin + definition[begin..].find("<target").expect("the target");
    let file = env.path("changed.xml");
    fs::write(&file, format!("{}{driver}{source}{}", &definition[..begin], &definition[end..])).expect("write");
    env.virsh(&["define", &file.display().to_string()]);

    let model = machine.model("vda");
    let image = machine.image("vda").with_file_name("it's, raw.img.qcow2");
    machine.put_disk("vda", &image, "qcow2", model);
    machine.start_paused();
    assert_check(&doctor(&env, &["vm"]).assert_ok(), "disk", "vm/vda", "ok", "only changes are read, except", "");
    crate::support::chains::verified(&machine, &repo);
    machine.write("vda", 2 * MIB, 512, 0x22);
    let point = crate::support::chains::verified(&machine, &repo);
    crate::support::chains::assert_changed(&point, "vda", MIB);
}

#[test]
fn backup_blockers_are_critical_and_set_the_exit_code() {
    let env = Env::new("doctor critical");
    let gone = env.machine("gone").disk(Disk::qcow2(MIB)).define();
    fs::remove_file(gone.image("vda")).expect("remove");
    env.machine("diskless").define();
    env.machine("sealed")
        .disk(Disk::qcow2(MIB).extra_xml(
            "<encryption format='luks'><secret type='passphrase' uuid='6f2a7c3e-0d6a-4b6e-9d1c-3f2f6c1e0a11'/>\
             </encryption>",
        ))
        .define();
    // Like a copy that was interrupted.
    let short = env.machine("short").disk(Disk::qcow2(MIB)).define();
    short.write("vda", 0, MIB, 0x11);
    let image = fs::OpenOptions::new().write(true).open(short.image("vda")).expect("open");
    image.set_len(MIB / 2).expect("cut off");
    let good = env.machine("good").disk(Disk::qcow2(MIB)).define();
    let output = doctor(&env, &[]).assert_code(1);
    assert_check(&output, "disk", "short/vda", "critical", "cut off", "qemu-img check");
    assert_check(&output, "disk", "gone/vda", "critical", "its image cannot be read", "domblklist gone");
    assert_check(&output, "machine", "diskless", "ok", "a backup stores its definition", "");
    assert_check(&output, "disk", "sealed/vda", "critical", "encrypted (luks)", "--luks-key-file vda=FILE");
    doctor(&env, &["good"]).assert_ok();
    // An unknown name is a failure.
    let output = doctor(&env, &["good", "nobody"]).assert_code(1);
    assert_eq!(output.record_of("failure")["code"], "not_found");

    // QEMU's user cannot enter the folder.
    let closed = env.path("closed");
    fs::create_dir(&closed).expect("mkdir");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).expect("chmod");
    let scratch = closed.join("scratch").display().to_string();
    let output = doctor(&env, &["good", "--scratch", &scratch]).assert_code(1);
    let words = format!("no access to {}", closed.display());
    assert_check(&output, "folders", "good", "critical", &words, "chmod o+x");
    good.start_paused();
    doctor(&env, &["good", "--scratch", &scratch]).assert_code(1);
    env.kvmb(["snapshot", "good", "--scratch", &scratch]).run().assert_code(1).assert_stderr_has("no access to");
    let hint = check(&output, "folders", "good")["hint"].as_str().expect("a hint").to_owned();
    env.sh(hint.split(';').next().expect("a command")).run().assert_ok();
    doctor(&env, &["good", "--scratch", &scratch]).assert_ok();

    // Not enough space.
    let small = env.tmpfs("small", MIB);
    small.fill_up_to(256 * 1024);
    let small = small.path().display().to_string();
    let output = doctor(&env, &["good", "--scratch", &small]).assert_code(1);
    assert_check(&output, "scratch", "good", "critical", "only 256.00 KiB free", "--scratch DIR");

    // QEMU's tools are missing.
    let output = env.kvmb_without(&["qemu-img", "qemu-nbd"], ["doctor", "good"]).run().assert_code(1);
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    assert_check(&output, "programs", &host, "critical", "qemu-img", "apt install qemu-utils");

    // Another hypervisor, and none.
    let output = doctor(&env, &["-c", "test:///default"]).assert_code(1);
    assert_check(
        &output,
        "connection",
        &host,
        "critical",
        "is not a QEMU hypervisor of this host",
        "run kvmb on the host",
    );
    let output = doctor(&env, &["-c", "qemu+unix:///system?socket=/nowhere"]).assert_code(1);
    assert_check(&output, "connection", &host, "critical", "/nowhere", "libvirtd");
}

#[test]
fn open_leftover_and_foreign_jobs_are_reported() {
    let env = Env::new("doctor jobs");
    let repo = init(&env);
    let machine = env.machine("vm").disk(Disk::qcow2(4 * MIB)).start_paused();
    env.kvmb(["snapshot", "vm"]).run().assert_ok();
    let output = doctor(&env, &["vm"]).assert_ok();
    assert_check(&output, "job", "vm", "warning", "is open until", "kvmb release vm");
    env.sh("kvmb release vm").run().assert_ok();

    let killed = crate::support::chains::stopped_at(&machine, &repo, "CaptureOpen", &[])
        .unwrap_or_else(|output| panic!("{output}"));
    killed.kill();
    killed.wait();
    let output = doctor(&env, &["vm"]).assert_ok();
    assert_check(&output, "job", "vm", "ok", "the next backup closes it", "");
    backup(&machine, &repo);

    let xml = env.path("foreign.xml");
    let socket = env.path("qmp/foreign.sock");
    fs::write(
        &xml,
        format!("<domainbackup mode='pull'><server transport='unix' socket='{}'/></domainbackup>", socket.display()),
    )
    .expect("write");
    env.virsh(&["backup-begin", "vm", &xml.display().to_string()]);
    let output = doctor(&env, &["vm"]).assert_ok();
    assert_check(&output, "job", "vm", "warning", "of another program", "virsh domjobabort vm");
    // The embedded libvirt of virsh may end before the job has ended, and leave behind a job that QEMU does not know.
    // Then the hint is given again, and works.
    crate::support::wait_until("the job is gone", Duration::from_secs(60), || {
        env.try_virsh(&["domjobabort", "vm"]);
        let job = check(&doctor(&env, &["vm"]).assert_ok(), "job", "vm");
        job["status"] == "ok" && job["detail"] == "no backup job running"
    });
    env.assert_nothing_left();
}

#[test]
fn bitmaps_broken_by_a_crash_are_reported_until_cleared() {
    let env = Env::new("doctor bitmaps");
    let repo = init(&env);
    let machine = env.machine("vm").disk(Disk::qcow2(4 * MIB)).start_paused();
    machine.write("vda", 0, MIB, 0x11);
    backup(&machine, &repo);
    let none = |output: &Output| assert!(!output.stdout().contains("\"bitmap\""), "{output}");
    none(&doctor(&env, &["vm"]).assert_ok());
    // Created in this session, and lost with it.
    machine.kill();
    let output = doctor(&env, &["vm"]).assert_ok();
    assert_check(&output, "bitmap", "vm/vda", "warning", "kvmb-", "kvmb backup vm");
    machine.believe_image("vda");
    machine.start_after_its_end();
    let output = doctor(&env, &["vm"]).assert_ok();
    assert_check(&output, "bitmap", "vm/vda", "warning", "kvmb-", "kvmb backup vm");
    backup(&machine, &repo);
    none(&doctor(&env, &["vm"]).assert_ok());
    // Older than the session, and one of another tool: both are still in the image.
    env.virsh(&["checkpoint-create-as", "vm", "other-tool", "--diskspec", "vda"]);
    machine.stop();
    none(&doctor(&env, &["vm"]).assert_ok());
    machine.start_paused();
    machine.kill();
    machine.believe_image("vda");
    let output = doctor(&env, &["vm"]).assert_ok();
    let all = output.records_of("check");
    let foreign = all.iter().find(|check| check["detail"].as_str().is_some_and(|words| words.contains("other-tool")));
    let hint = foreign.expect("a check")["hint"].as_str().expect("a hint").to_owned();
    assert!(hint.starts_with("qemu-img bitmap --remove"), "{hint}");
    run("sh", &["-c", &hint]);
    machine.start_after_its_end();
    let output = doctor(&env, &["vm"]).assert_ok();
    let all = output.records_of("check");
    let foreign = all.iter().find(|check| check["detail"].as_str().is_some_and(|words| words.contains("other-tool")));
    let hint = foreign.expect("a check")["hint"].as_str().expect("a hint").to_owned();
    env.sh(&hint).run().assert_ok();
    backup(&machine, &repo);
    none(&doctor(&env, &["vm"]).assert_ok());
}

#[test]
fn local_key_is_reported_until_exported() {
    let env = Env::new("doctor key");
    env.machine("vm").disk(Disk::qcow2(MIB)).define();
    let home =
        |script: &str| env.sh(script).without_env("KVMB_PASSWORD_FILE").env("KVMB_DATA_DIR", env.path("data")).run();
    let repo = env.path("data/repo").display().to_string();
    let output = home("kvmb doctor").assert_ok();
    assert!(!output.stdout().contains("\"key\""), "{output}");
    home("kvmb backup vm").assert_ok();
    let output = home("kvmb doctor").assert_ok();
    assert_check(&output, "key", &repo, "warning", "only on this host", "kvmb key export");
    home("kvmb key export exported").assert_ok();
    assert_check(&home("kvmb doctor").assert_ok(), "key", &repo, "ok", "exported", "");
}

#[test]
fn guest_agent_is_reported_as_responding_hanging_or_unknown() {
    let env = Env::new("doctor agent");
    let guest = env.linux_guest_that("linux", FreezeMode::Hangs { seconds: 600 });
    let ask = || doctor(&env, &["linux"]).assert_ok();
    assert_check(&ask(), "agent", "linux", "ok", "responds", "");
    // It hangs in its hook.
    guest.agent(r#"{"execute":"guest-fsfreeze-freeze"}"#).assert_code(1);
    assert_check(&ask(), "agent", "linux", "warning", "does not respond", "systemctl restart qemu-guest-agent");
    guest.stop();
    assert_check(&ask(), "agent", "linux", "unknown", "only while the machine is running", "");
}

#[test]
fn agent_not_running_in_the_guest_is_reported() {
    let env = Env::new("doctor no agent");
    env.linux_guest_that("linux", FreezeMode::NoAgent);
    let output = doctor(&env, &["linux"]).assert_ok();
    assert_check(
        &output,
        "agent",
        "linux",
        "warning",
        "the guest agent is not running",
        "systemctl enable --now qemu-guest-agent",
    );
}
