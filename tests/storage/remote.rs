//! `kvmb remote`, and complete backups over SSH, with a real `sshd`.

// A test panics if a result is not what it expects.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use crate::support::sshd::{SSH_PASSWORD, Sshd, USER};
use crate::support::{Disk, Env, Output, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// Returns the names and statuses of the checks, in order.
fn statuses(output: &Output) -> Vec<(String, String)> {
    let word = |check: &Value, field: &str| check[field].as_str().unwrap().to_owned();
    output.records_of("check").iter().map(|check| (word(check, "check"), word(check, "status"))).collect()
}

fn check_of(output: &Output, name: &str) -> Value {
    let checks = output.records_of("check");
    checks.into_iter().find(|check| check["check"] == name).unwrap_or_else(|| panic!("no check {name}\n{output}"))
}

fn changes(output: &Output) -> Vec<bool> {
    output.records_of("action").iter().map(|action| action["changed"].as_bool().unwrap()).collect()
}

fn setup(env: &Env, sshd: &Sshd, more: &[&str]) -> crate::support::Call {
    let url = sshd.url("repo");
    env.kvmb(["remote", "setup", "-r", &url]).args(more)
}

#[test]
fn interactive_setup_installs_a_key_for_unattended_runs() {
    let env = Env::new("remote-setup");
    let sshd = env.sshd();
    let url = sshd.url("repo");
    let mut terminal = env.pty(["remote", "setup", "-r", &url]);
    terminal.expect(&sshd.fingerprint("ed25519"));
    terminal.expect("Does it match");
    terminal.send("y\r");
    terminal.expect(&format!("Password for {USER}@127.0.0.1"));
    terminal.send("swordfihs\r");
    terminal.expect("try again");
    terminal.send(&format!("{SSH_PASSWORD}\r"));
    let output = terminal.wait().assert_ok();
    assert!(!output.stdout().contains(SSH_PASSWORD), "{output}");

    let key = env.path("data/ssh/id_ed25519");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    let list = fs::read_to_string(sshd.authorized_keys()).unwrap();
    assert!(list.starts_with("restrict,command=\"internal-sftp\" ssh-ed25519 "), "{list}");

    let again = setup(&env, &sshd, &[]).run().assert_ok();
    assert_eq!(changes(&again), [false, false, false], "{again}");
    assert_eq!(fs::read_to_string(sshd.authorized_keys()).unwrap(), list);
    env.kvmb(["init", "-r", &url]).run().assert_ok();
    let test = env.kvmb(["remote", "test", "-r", &url]).run().assert_ok();
    assert!(statuses(&test).iter().all(|(_, status)| status == "ok"), "{test}");

    // The key permits SFTP and nothing else.
    let shell = Command::new("ssh")
        .args(["-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-i"])
        .arg(&key)
        .args(["-o", &format!("UserKnownHostsFile={}", sshd.known_hosts().display())])
        .args(["-p", &sshd.port().to_string(), &format!("{USER}@127.0.0.1"), "echo", "a shell"])
        .output()
        .unwrap();
    assert!(!String::from_utf8_lossy(&shell.stdout).contains("a shell"), "{shell:?}");
}

#[test]
fn wrong_passphrase_is_asked_again_and_an_empty_one_skips_the_key() {
    let env = Env::new("remote-passphrase");
    let sshd = env.sshd();
    sshd.make_known("ed25519");
    sshd.authorize(&sshd.new_key("id_ed25519", "open sesame"));
    let url = sshd.url("repo");
    let mut terminal = env.pty(["init", "-r", &url]);
    terminal.expect_hidden("Passphrase of the key", 1);
    terminal.send("open sesmae\r");
    terminal.expect("wrong password or passphrase; try again");
    terminal.expect_hidden("Passphrase of the key", 2);
    terminal.send("open sesame\r");
    let output = terminal.wait().assert_ok();
    assert!(output.stdout().contains("the repository was created"), "{output}");
    assert!(!output.stdout().contains("sesame") && !output.stdout().contains("Password for"), "{output}");

    let mut terminal = env.pty(["points", "-r", &url]);
    terminal.expect_hidden("Passphrase of the key", 1);
    terminal.send("\r");
    terminal.expect_hidden(&format!("Password for {USER}@127.0.0.1"), 1);
    terminal.send(&format!("{SSH_PASSWORD}\r"));
    let output = terminal.wait().assert_ok();
    assert!(!output.stdout().contains("try again"), "{output}");
}

#[test]
fn setup_works_without_a_terminal_and_as_a_dry_run() {
    let env = Env::new("remote-script");
    let sshd = env.sshd();
    let fingerprint = sshd.fingerprint("ed25519");
    let unknown = setup(&env, &sshd, &[]).run().assert_code(1);
    let failure = unknown.record_of("failure");
    assert_eq!(failure["code"], "host_key");
    let hint = failure["hint"].as_str().unwrap().to_owned();
    assert!(hint.contains(&format!("--accept-host-key {fingerprint}")), "{hint}");

    let accept = ["--accept-host-key", fingerprint.as_str()];
    let dry = setup(&env, &sshd, &accept).arg("--dry-run").run().assert_ok();
    assert_eq!(changes(&dry), [true, true, true], "{dry}");
    assert!(dry.records().iter().all(|record| record["dry_run"] == true), "{dry}");
    assert!(!sshd.known_hosts().exists() && !sshd.authorized_keys().exists());

    let wrong = ["--accept-host-key", "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"];
    setup(&env, &sshd, &wrong).env("KVMB_SSH_PASSWORD", SSH_PASSWORD).run().assert_code(1);
    assert!(!sshd.known_hosts().exists());

    // Login is impossible.
    let refused = setup(&env, &sshd, &accept).run().assert_code(1);
    assert_eq!(refused.record_of("failure")["code"], "login");
    assert!(sshd.known_hosts().exists());

    // An existing list of somebody else, without a newline at the end of its last line.
    fs::write(sshd.authorized_keys(), "# others\nssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA other@host").unwrap();
    let done = setup(&env, &sshd, &[]).env("KVMB_SSH_PASSWORD", SSH_PASSWORD).run().assert_ok();
    assert_eq!(changes(&done), [false, false, true], "{done}");
    let list = fs::read_to_string(sshd.authorized_keys()).unwrap();
    assert_eq!(list.lines().count(), 3, "{list}");
    assert!(list.starts_with("# others\nssh-ed25519 ") && list.contains("\nrestrict,"), "{list}");
    let dry = setup(&env, &sshd, &["-n"]).run().assert_ok();
    assert_eq!(changes(&dry), [false, false, false], "{dry}");
}

#[test]
fn setup_appends_its_key_at_the_end_of_authorized_keys() {
    let env = Env::new("remote-append");
    let log = env.path("sftp.log");
    let server = format!("/usr/lib/openssh/sftp-server -e -l DEBUG 2>>{}", log.display());
    let sshd = env.sshd_with(&format!("ForceCommand {server}"));
    sshd.make_known("ed25519");
    let others = "# others\nssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA other@host\n";
    fs::write(sshd.authorized_keys(), others).unwrap();
    setup(&env, &sshd, &[]).env("KVMB_SSH_PASSWORD", SSH_PASSWORD).run().assert_ok();
    assert!(fs::read_to_string(sshd.authorized_keys()).unwrap().starts_with(others));
    // This server seeks to the end itself, but logs the offset that was requested.
    let log = fs::read_to_string(&log).unwrap();
    let written: Vec<_> = log.lines().filter(|line| line.contains(": write ")).collect();
    assert!(written.len() == 1 && written[0].contains(&format!(" off {} ", others.len())), "{written:?}\n{log}");
}

#[test]
fn setup_fails_with_a_hint_if_authorized_keys_is_elsewhere() {
    let env = Env::new("remote-elsewhere");
    let sshd = env.sshd_with("AuthorizedKeysFile /etc/ssh/lists/%u");
    sshd.make_known("ed25519");
    let output = setup(&env, &sshd, &[]).env("KVMB_SSH_PASSWORD", SSH_PASSWORD).run().assert_code(1);
    let failure = output.record_of("failure");
    assert_eq!(failure["code"], "login");
    assert!(failure["hint"].as_str().unwrap().contains("restrict,command=\"internal-sftp\" ssh-ed25519 "), "{output}");
}

#[test]
fn ssh_password_is_read_from_every_source_and_never_printed() {
    let env = Env::new("remote-secrets");
    let sshd = env.sshd();
    sshd.make_known("ed25519");
    let url = sshd.url("repo");
    let file = env.path("ssh-password");
    fs::write(&file, format!("{SSH_PASSWORD}\n")).unwrap();
    let test = || env.kvmb(["remote", "test", "-vv", "-r", &url]);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let open = test().arg("--ssh-password-file").arg(&file).run().assert_code(1);
    assert!(check_of(&open, "login")["detail"].as_str().unwrap().contains("accessible to other users"), "{open}");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    for call in [
        test().arg("--ssh-password-file").arg(&file),
        test().env("KVMB_SSH_PASSWORD_FILE", &file),
        test().env("KVMB_SSH_PASSWORD_COMMAND", format!("cat {}", file.display())),
        test().env("KVMB_SSH_PASSWORD", SSH_PASSWORD),
    ] {
        let output = call.run().assert_ok();
        let login = check_of(&output, "login");
        assert_eq!(login["status"], "warning", "cron could not do that: {output}");
        assert!(login["hint"].as_str().unwrap().starts_with("kvmb remote setup "), "{output}");
        assert!(!output.stdout().contains(SSH_PASSWORD) && !output.stderr().contains(SSH_PASSWORD), "{output}");
    }
}

#[test]
fn remote_test_reports_the_failing_step_and_skips_the_rest() {
    let env = Env::new("remote-test");
    let sshd = env.sshd();
    let url = sshd.url("some/repo");
    let unknown = env.kvmb(["remote", "test", "-r", &url]).run().assert_code(1);
    let expected = ["ok", "critical", "unknown", "unknown", "unknown", "unknown", "unknown"];
    assert_eq!(statuses(&unknown).iter().map(|(_, status)| status.as_str()).collect::<Vec<_>>(), expected, "{unknown}");
    let hint = check_of(&unknown, "host_key")["hint"].as_str().unwrap().to_owned();
    let command = hint.split_once("kvmb remote test").unwrap().1;
    // The hint's command works unchanged.
    let accepted = env.sh(&format!("kvmb remote test {command}")).run().assert_code(1);
    assert_eq!(check_of(&accepted, "host_key")["status"], "ok", "{accepted}");
    assert_eq!(check_of(&accepted, "login")["status"], "critical", "{accepted}");

    sshd.trust_host_key();
    let missing = env.kvmb(["remote", "test", "-r", &url]).run().assert_ok();
    let path = check_of(&missing, "path");
    assert!(path["status"] == "warning" && path["hint"].as_str().unwrap().starts_with("kvmb init -r "), "{missing}");
    let speed = check_of(&missing, "speed");
    assert!(speed["upload_bytes_per_second"].as_u64().unwrap() > 1 << 20, "{missing}");
    assert_eq!(check_of(&missing, "clock")["status"], "ok");
    let long = env.kvmb(["remote", "test", "-r", &url, "--size", "40M"]).run().assert_ok();
    let speed = check_of(&long, "speed");
    assert!(speed["detail"].as_str().unwrap().starts_with("3 connections:"), "a pack on each: {long}");
    assert!(speed["download_bytes_per_second"].as_u64().unwrap() > 1 << 20, "{long}");
    let left: Vec<_> = fs::read_dir(sshd.home()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, [".ssh"], "nothing of the test may stay");

    sshd.stop();
    let gone = env.kvmb(["remote", "test", "-r", &url]).run().assert_code(1);
    assert_eq!(check_of(&gone, "reach")["status"], "critical", "{gone}");
    env.kvmb(["remote", "test", "-r", "/some/folder"]).run().assert_code(2);
}

#[test]
fn interrupted_speed_test_reports_no_speed_and_leaves_no_files() {
    let env = Env::new("remote-interrupted");
    let sshd = env.sshd();
    sshd.trust_host_key();
    // With such a latency, even a short test takes seconds.
    let proxy = sshd.behind(Duration::from_millis(200));
    let files = || fs::read_dir(sshd.home()).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    for (url, size, signal, code) in
        [(sshd.url("repo"), Some("2G"), Signal::INT, 130), (sshd.url_by(&proxy, "repo"), None, Signal::TERM, 143)]
    {
        let size = size.map(|size| ["--size", size]);
        let running = env.kvmb(["remote", "test", "-r", &url]).args(size.into_iter().flatten()).spawn();
        wait_until("it measures", Duration::from_secs(60), || {
            files().iter().any(|name| name.to_string_lossy().contains("-speed-"))
        });
        running.signal(signal);
        let output = running.wait().assert_code(code);
        let told: Vec<_> = statuses(&output).into_iter().map(|(step, _)| step).collect();
        assert_eq!(told, ["reach", "host_key", "login", "path", "space"], "{output}");
        assert_eq!(output.record_of("failure")["code"], "interrupted", "{output}");
        assert_eq!(files(), [".ssh"], "nothing of the test may stay");
    }
}

#[test]
fn sftp_backups_are_restored_and_shared_with_restic() {
    let env = Env::new("remote-whole");
    let sshd = env.sshd();
    sshd.trust_host_key();
    let url = sshd.url("repo");
    env.kvmb(["init", "-r", &url]).run().assert_ok();
    let machine = env.machine("vm").disk(Disk::qcow2(64 * MIB)).start_paused();
    machine.write("vda", MIB, 8 * MIB, 0x11);
    let first = env.kvmb(["backup", "vm", "-r", &url]).run().assert_ok();
    assert_eq!(first.record_of("point")["repo"], json!(url));
    machine.write("vda", 4 * MIB, MIB, 0x22);
    let second = env.kvmb(["backup", "vm", "-r", &url, "--verify"]).run().assert_ok();
    assert_eq!(second.record_of("point")["disks"][0]["read_mode"], "changed", "{second}");

    let restic = |args: &[&str]| {
        env.program("restic").args(sshd.restic_options()).args(["-q", "-r", &url]).args(args).run().assert_ok()
    };
    restic(&["check", "--read-data"]);
    let listed: Value = serde_json::from_str(restic(&["snapshots", "--json"]).stdout()).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 2);
    restic(&["backup", "/etc/hostname"]);

    env.kvmb(["verify", "--all", "-r", &url]).run().assert_ok();
    let into = env.path("restored");
    fs::create_dir(&into).unwrap();
    env.kvmb(["restore", "vm@latest", "-r", &url, "--no-define", "--format", "raw", "--into"])
        .arg(&into)
        .run()
        .assert_ok();
    let image =
        fs::read_dir(&into).unwrap().map(|e| e.unwrap().path()).find(|p| fs::metadata(p).unwrap().len() == 64 * MIB);
    let image = fs::read(image.expect("an image")).unwrap();
    let mib = |number: u64| &image[(number * MIB) as usize..((number + 1) * MIB) as usize];
    for number in 0..64 {
        let wanted = match number {
            4 => 0x22,
            1..=8 => 0x11,
            _ => 0,
        };
        assert!(mib(number).iter().all(|byte| *byte == wanted), "MiB {number}");
    }
    // Nothing is in the place where only a local repository would be.
    assert!(sshd.home().join("repo/snapshots").is_dir());
}

#[test]
fn repository_in_a_folder_with_other_files_gets_a_subfolder() {
    let env = Env::new("remote-taken");
    let sshd = env.sshd();
    sshd.trust_host_key();
    let folder = sshd.home().join("backup");
    let old = folder.join("vm1/disk.qcow2");
    fs::create_dir_all(old.parent().unwrap()).unwrap();
    fs::write(&old, "of the forerunner").unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
    let configure = |folder: &std::path::Path| {
        env.configure(&json!({
            "backup_host": "127.0.0.1", "backup_user": USER, "backup_path": folder, "ssh": { "port": sshd.port() },
            "repo": env.repo(), "password_file": env.password_file(), "selected_vms": { "vm1": true },
        }));
        format!("sftp://{USER}@127.0.0.1:{}/{}", sshd.port(), folder.display())
    };
    let url = configure(&folder);
    let own = format!("{url}/kvmb");
    let path = |output: &Output| check_of(output, "path");

    let test = env.kvmb(["remote", "test"]).run().assert_ok();
    let detail = path(&test)["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("contains other files") && detail.contains("does not exist yet"), "{detail}");
    let init = || env.kvmb(["init", "-r", &url]).run().assert_ok();
    assert_eq!(init().assert_stderr_has(&own).record_of("action")["target"], own);
    assert_eq!(changes(&init()), [false]);
    let test = env.kvmb(["remote", "test"]).run().assert_ok();
    let detail = path(&test)["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("backup/kvmb contains a repository"), "{detail}");

    // Backups are copied there, and are found there under either address.
    env.machine("vm1").disk(Disk::qcow2(MIB)).start_paused();
    env.kvmb(["init"]).run().assert_ok();
    env.kvmb(["backup"]).run().assert_ok();
    for url in [&url, &own] {
        let point = env.kvmb(["points", "-r", url]).run().assert_ok().record_of("point");
        assert_eq!((&point["repo"], &point["machine"]), (&json!(own), &json!("vm1")));
    }
    // Under its own address it is also recognised as the server's, and not copied to itself.
    let output = env.kvmb(["backup", "-r", &own, "--dry-run"]).run().assert_ok();
    assert!(!output.record_of("action").as_object().unwrap().contains_key("copy_to"), "{output}");
    env.program("restic").args(sshd.restic_options()).args(["-q", "-r", &own, "check"]).run().assert_ok();
    assert_eq!(fs::read_to_string(&old).unwrap(), "of the forerunner");

    // An empty folder is the repository itself; the remains of a damaged one are not skipped.
    let empty = sshd.home().join("empty");
    let url = configure(&empty);
    assert_eq!(env.kvmb(["init", "-r", &url]).run().assert_ok().record_of("action")["target"], url);
    fs::remove_file(empty.join("config")).unwrap();
    let failure = env.kvmb(["points", "-r", &url]).run().assert_code(4).record_of("failure");
    assert!(failure["error"].as_str().unwrap().contains("/empty is missing"), "{failure}");
    // A local folder is accessible even if the server's address cannot be resolved.
    fs::write(env.path("home/.ssh/config"), b"\xff").unwrap();
    env.kvmb(["points"]).run().assert_ok();
    env.kvmb(["points", "-r", &url]).run().assert_code(2).assert_stderr_has(".ssh/config");
    fs::remove_file(env.path("home/.ssh/config")).unwrap();
    // An address outside of the configuration is used as it is.
    env.configure(&json!({}));
    let url = format!("sftp://{USER}@127.0.0.1:{}/{}", sshd.port(), folder.display());
    env.kvmb(["points", "-r", &url]).run().assert_code(1);
}

#[test]
fn missing_sftp_repository_has_a_hint_about_two_slashes() {
    let env = Env::new("remote-missing");
    let sshd = env.sshd();
    sshd.trust_host_key();
    let output = env.kvmb(["points", "-r", &sshd.url("srv/kvm")]).run().assert_code(1);
    let failure = output.record_of("failure");
    assert_eq!(failure["code"], "no_repository");
    assert!(failure["hint"].as_str().unwrap().contains("two slashes"), "{output}");
}

#[test]
fn ctrl_c_ends_a_command_with_an_unresponsive_server() {
    let env = Env::new("remote-dead");
    let sshd = env.sshd();
    sshd.trust_host_key();
    let url = sshd.url("repo");
    env.kvmb(["init", "-r", &url]).run().assert_ok();
    sshd.freeze(true);
    let running = env.kvmb(["points", "-r", &url]).spawn();
    std::thread::sleep(std::time::Duration::from_millis(1500));
    running.interrupt();
    let output = running.wait();
    sshd.freeze(false);
    assert_eq!(output.code(), 130, "{output}");
    assert!(output.took < std::time::Duration::from_secs(30), "{output}");
}

#[test]
fn speed_test_works_under_a_thread_limit() {
    let env = Env::new("remote-threads");
    let sshd = env.sshd();
    sshd.trust_host_key();
    // The limit does not apply to root, and counts all processes of a user. This user, whom ssh must know, has no
    // others.
    env.configure(&serde_json::json!({ "ssh": { "connections": 8 } }));
    env.sh("chown -R games: . && chown 0 config.json && chmod 644 config.json").run().assert_ok();
    let (mut measured, mut last) = (0, String::new());
    for threads in [2, 5, 6, 8, 10, 40] {
        let limited = format!("setpriv --reuid=games --regid=games --clear-groups prlimit --nproc={threads} -- kvmb");
        let output = env.sh(&format!("exec {limited} remote test --size 128M -r {}", sshd.url("kvm"))).run();
        assert!(!output.stderr().contains("panicked"), "{threads} threads: {output}");
        match output.code() {
            0 => measured += 1,
            _ => last = output.to_string(),
        }
    }
    assert!(measured > 0, "no limit was high enough: {last}");
}
