//! What a new user sees, on a terminal and without one.

use std::net::TcpListener;
use std::time::Duration;

use crate::support::{Disk, Env, wait_until};

const MIB: u64 = 1 << 20;

#[test]
fn fresh_host_has_no_backups_and_asks_for_no_password() {
    let env = Env::new("fresh host");
    let export = ["key", "export", "kvmb.key"];
    for command in [&["points"][..], &["verify", "--all"], &["prune"], &["restore", "vm1"], &export] {
        let output = env.kvmb(command).run().assert_code(1);
        let failure = output.record_of("failure");
        assert_eq!(
            (&failure["code"], &failure["error"]),
            (&"no_repository".into(), &"no backups on this host yet".into())
        );
        assert!(failure["hint"].as_str().unwrap().contains("kvmb backup NAME"), "{output}");
    }
    let status = env.kvmb(["status"]).run().assert_code(1);
    let check = status.record_of("check");
    assert_eq!((&check["check"], &check["detail"]), (&"repository".into(), &"no repository yet".into()));
    // The same on a terminal, where prompts are possible: the repository is checked first.
    for (command, words) in
        [("points", "no backups on this host yet"), ("points -r /nowhere", "no repository in /nowhere")]
    {
        let line = format!("unset KVMB_PASSWORD_FILE; exec kvmb {command}");
        let screen = env.pty_of("sh", ["-c", &line]).wait().assert_code(1);
        assert!(screen.stdout().contains(words) && !screen.stdout().contains("Password"), "{screen}");
    }
    // If its key exists, the repository was created and is not mounted, so it must not be treated as new.
    let data = env.path("data");
    std::fs::create_dir_all(&data).expect("mkdir");
    std::fs::write(data.join("repo.key"), "0".repeat(64) + "\n").expect("write");
    let output = env.kvmb(["points"]).run().assert_code(1);
    assert!(output.record_of("failure")["error"].as_str().unwrap().starts_with("no repository in "), "{output}");
}

#[test]
fn default_repository_that_is_not_mounted_is_not_created_again() {
    let env = Env::new("default unmounted");
    let _machine = env.machine("kvmb-test-vm1").disk(Disk::qcow2(MIB)).define();
    let backup = || env.kvmb(["backup", "kvmb-test-vm1"]).run();
    let point = backup().assert_ok().record_of("point");
    // The mount point is empty, or missing.
    let (folder, disk) = (env.path("data/repo"), env.path("disk"));
    std::fs::rename(&folder, &disk).expect("rename");
    for is_there in [true, false] {
        if is_there {
            std::fs::create_dir(&folder).expect("mkdir");
        }
        let failure = backup().assert_code(1).record_of("failure");
        assert_eq!(failure["code"], "no_repository", "{failure}");
        assert!(failure["hint"].as_str().unwrap().contains("mounted"), "{failure}");
        assert!(std::fs::read_dir(&folder).is_ok_and(|mut files| files.next().is_none()) == is_there);
        if is_there {
            std::fs::remove_dir(&folder).expect("rmdir");
        }
    }
    std::fs::rename(&disk, &folder).expect("rename");
    assert_eq!(backup().assert_ok().record_of("point")["parent"], point["point"]);
}

#[test]
fn refused_first_connection_fails_at_once_on_a_terminal() {
    let env = Env::new("refused");
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = listener.local_addr().expect("address").port();
    drop(listener);
    let screen = env.pty(["points", "-r", &format!("sftp://u@127.0.0.1:{port}//srv")]).wait().assert_code(1);
    assert!(screen.stdout().contains("Connection refused"), "{screen}");
    assert!(!screen.stdout().contains("gave up"), "it was tried only once: {screen}");
    // With the option, the connection is retried.
    let words = ["points", "--retry-for", "2s", "-r", &format!("sftp://u@127.0.0.1:{port}//srv")];
    let screen = env.pty(words).wait().assert_code(1);
    assert!(screen.stdout().contains("; gave up after "), "{screen}");
}

#[test]
fn empty_output_is_explained_on_standard_error() {
    let env = Env::new("nothing");
    let output = env.kvmb(["vms"]).run().assert_ok().assert_stderr_has("no machines on qemu:///embed");
    assert!(output.records().is_empty(), "{output}");
    env.kvmb(["doctor"]).run().assert_stderr_has("no machines on qemu:///embed");
    env.sh("kvmb init -r $R").run().assert_ok();
    let repo = env.repo();
    let output = env.kvmb(["points", "-r", &repo]).run().assert_ok();
    assert_eq!(
        output.stderr(),
        format!("kvmb: no points in {repo}\nkvmb: hint: run 'kvmb backup -r {repo} NAME' to make the first one\n")
    );
    env.kvmb(["verify", "--all", "-r", &repo]).run().assert_ok().assert_stderr_has("nothing to verify");
    for command in [&["vms", "-q"][..], &["points", "-q", "-r", &repo]] {
        assert_eq!(env.kvmb(command).run().assert_ok().stderr(), "");
    }
}

#[test]
fn missing_names_list_or_suggest_machines_only_on_a_terminal() {
    let env = Env::new("no names");
    env.machine("web 1").disk(Disk::qcow2(MIB)).define();
    env.machine("db1").disk(Disk::qcow2(MIB)).define();
    let screen = env.pty(["disks", "--json"]).wait().assert_ok();
    assert_eq!(screen.stdout().matches("\"type\":\"disk\"").count(), 2, "{screen}");
    let screen = env.pty(["backup"]).wait().assert_code(2);
    for words in ["  db1\r\n  web 1\r\n", "kvmb backup db1", "kvmb backup --all", "no machines given"] {
        assert!(screen.stdout().contains(words), "no {words:?}: {screen}");
    }
    for command in ["disks", "backup"] {
        env.kvmb([command]).run().assert_code(2).assert_stderr_has("standard input is empty");
    }
}

#[test]
fn running_without_a_command_lists_commands_in_groups() {
    let env = Env::new("overview");
    let output = env.kvmb::<&str>([]).run().assert_code(2);
    let mut last = 0;
    for head in ["Everyday commands:\n", "Repository commands:\n", "Set-up commands:\n", "Pipeline commands:\n"] {
        let at = output.stderr().find(head).unwrap_or_else(|| panic!("no {head}: {output}"));
        assert!(at > last, "{output}");
        last = at;
    }
    assert!(!output.stderr().contains('\u{1b}'), "{output}");
}

#[test]
fn hints_can_be_pasted_with_the_options_of_the_call() {
    let env = Env::new("pasted hints");
    env.sh("kvmb init -r \"$HOME/my backups\"").run().assert_ok();
    let repo = format!("{}/my backups", env.path("home").display());
    let output = env.kvmb(["points", "nobody", "-r", &repo]).run().assert_code(1);
    let hint = output.record_of("failure")["hint"].as_str().expect("a hint").to_owned();
    let command = hint.split_once("'kvmb ").and_then(|(_, rest)| rest.split_once("' to list")).expect("a command").0;
    env.sh(&format!("kvmb {command}")).limit(Duration::from_secs(30)).run().assert_ok();
}

#[test]
fn running_backup_is_reported_and_not_closed_by_release() {
    let env = Env::new("busy");
    let vm1 = env.machine("vm1").disk(Disk::qcow2(4 * MIB)).define();
    vm1.write("vda", 0, 4 * MIB, 0x11);
    env.sh("kvmb init -r $R").run().assert_ok();
    let repo = env.repo();
    let backup = env.kvmb(["backup", "vm1", "-r", &repo, "--limit-read", "100K"]).spawn();
    let has_state = |entry: std::fs::DirEntry| entry.path().join("state.json").exists();
    wait_until("a capture is open", Duration::from_secs(60), || {
        let entries = std::fs::read_dir(env.path("run/kvmb")).into_iter().flatten().flatten();
        entries.flat_map(|entry| std::fs::read_dir(entry.path())).flatten().flatten().any(has_state)
            || std::fs::read_dir(env.path("run/kvmb")).into_iter().flatten().flatten().any(has_state)
    });
    // The status shows it too, with its progress.
    wait_until("the state shows the progress", Duration::from_secs(60), || {
        let output = env.kvmb(["status", "vm1", "-r", &repo]).run();
        let check = output.records_of("check").into_iter().find(|check| check["check"] == "backup").unwrap();
        assert_eq!(check["running_pid"], backup.pid(), "{check}");
        assert_eq!((&check["running_began_at"].is_string(), &check["status"]), (&true, &"critical".into()));
        let detail = check["detail"].as_str().unwrap();
        assert!(detail.starts_with("never backed up; being backed up by process "), "{detail}");
        assert!(check.get("hint").is_none(), "nothing is to be done: {check}");
        check["running_total_bytes"].as_u64().unwrap() > 0 && detail.ends_with(" % read")
    });
    let words = format!("vm1 is being backed up by process {} since ", backup.pid());
    let output = env.kvmb(["release", "vm1"]).run().assert_code(5);
    let failure = output.record_of("failure");
    assert!(failure["error"].as_str().unwrap().starts_with(&words), "{output}");
    assert_eq!(failure["hint"], format!("wait for it to finish, or end it with 'kill {}'", backup.pid()));
    backup.interrupt();
    backup.wait().assert_code(130);
}

#[test]
fn missing_image_error_suggests_checking_the_mount() {
    let env = Env::new("missing image");
    let vm1 = env.machine("vm1").disk(Disk::qcow2(MIB)).define();
    env.sh("kvmb init -r $R").run().assert_ok();
    std::fs::remove_file(vm1.image("vda")).unwrap();
    let failure = env.kvmb(["backup", "vm1", "-r", &env.repo()]).run().assert_code(1).record_of("failure");
    assert_eq!(failure["code"], "not_found", "{failure}");
    assert!(failure["hint"].as_str().is_some_and(|hint| hint.contains("file system is mounted")), "{failure}");
}

#[test]
fn repository_path_that_is_a_file_is_refused_with_a_hint() {
    let env = Env::new("no folder");
    std::fs::write(env.path("a file"), "text").unwrap();
    for path in ["/dev/null".to_owned(), env.path("a file").display().to_string()] {
        let failure = env.kvmb(["points", "-r", &path]).run().assert_code(2).record_of("failure");
        assert!(failure["hint"].as_str().is_some_and(|hint| hint.contains("use a folder")), "{failure}");
    }
}
