//! Failures around a backup: a clear error with a hint, the correct exit code, an unaffected machine, nothing left
//! behind, and a next run that works.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::support::backups::{
    MIB, assert_restores_to, backup, caught_reading, init, names_in, new_folder, noise, text,
};
use crate::support::mount::ReadOnly;
use crate::support::{Disk, Env, Machine, Output};
use rustix::process::Signal;
use serde_json::{Value, json};

fn machine(env: &Env) -> Machine<'_> {
    let machine = env.machine("vm1").disk(Disk::qcow2(8 * MIB)).disk(Disk::raw(2 * MIB)).start_paused();
    machine.write_bytes("vda", MIB, &noise(1, 2 * MIB));
    machine.write_bytes("vdb", 0, &noise(2, MIB));
    machine
}

fn backup_to(env: &Env, repo: &str) -> Output {
    env.kvmb(["backup", "vm1", "-r", repo]).run()
}

/// Fails unless the run failed with this code and a hint, the machine is unaffected, and nothing is left behind.
#[track_caller]
fn assert_trouble(machine: &Machine, output: &Output, exit: i32, code: &str) {
    assert_eq!(output.code(), exit, "{output}");
    assert!(output.stderr().contains("kvmb: error: "), "{output}");
    assert!(output.stderr().contains("kvmb: hint: "), "{output}");
    if exit != 2 {
        assert_eq!(output.record_of("failure")["code"], code, "{output}");
    }
    assert_as_before(machine);
}

#[track_caller]
fn assert_as_before(machine: &Machine) {
    let env = machine.env();
    assert_eq!(machine.status(), "prelaunch");
    assert!(!machine.is_captured(), "a job is left");
    env.assert_nothing_left();
    assert_eq!(names_in(&env.path("tmp")), [""; 0]);
}

/// Fails unless the next run works.
#[track_caller]
fn assert_next_run_works(machine: &Machine) {
    let point = backup(machine);
    assert_restores_to(machine.env(), text(&point, "point"), &machine.models());
    assert_as_before(machine);
}

#[test]
fn wrong_missing_and_exposed_passwords_are_refused() {
    let env = Env::new("passwords");
    let machine = machine(&env);
    init(&env);
    let file = |name: &str, content: &str, mode: u32| {
        let path = env.path(name);
        fs::write(&path, content).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
        path
    };
    let with = |file: &Path| {
        let repo = env.repo();
        env.kvmb(["backup", "vm1", "-r", &repo, "--password-file"]).arg(file).run()
    };
    let wrong = file("wrong", "battery staple\n", 0o600);
    assert_trouble(&machine, &with(&wrong), 1, "wrong_password");
    for mode in [0o644, 0o604, 0o602] {
        let open = file(&format!("open-{mode:o}"), "correct horse\n", mode);
        let output = with(&open);
        assert_trouble(&machine, &output, 2, "usage");
        output.assert_stderr_has("chmod 600");
    }
    with(&file("empty", "\n", 0o600)).assert_code(2).assert_stderr_has("is empty");
    with(&env.path("missing")).assert_code(1).assert_stderr_has("missing");
    // No password, and no way to ask for it.
    let none = env.kvmb(["backup", "vm1", "-r", &env.repo()]).without_env("KVMB_PASSWORD_FILE").run();
    assert_trouble(&machine, &none, 2, "usage");
    none.assert_stderr_has("--password-file");
    // It is never shown.
    let output = backup_to(&env, "sftp://kvm:secret@host/backup");
    assert_eq!(output.code(), 2, "{output}");
    assert!(!output.to_string().replace("\"sftp://kvm:secret@host/backup\"", "").contains("secret"), "{output}");
    for command in ["/bin/false", "echo", "echo wrong; exit 3"] {
        let output = env
            .kvmb(["backup", "vm1", "-r", &env.repo()])
            .without_env("KVMB_PASSWORD_FILE")
            .env("KVMB_PASSWORD_COMMAND", command)
            .run();
        output.assert_code(1).assert_stderr_has("KVMB_PASSWORD_COMMAND");
    }
    assert_next_run_works(&machine);
}

#[test]
fn missing_and_version_1_repositories_are_refused() {
    let env = Env::new("version");
    let machine = machine(&env);
    assert_trouble(&machine, &backup_to(&env, &env.repo()), 1, "no_repository");
    assert!(!Path::new(&env.repo()).exists(), "a backup made a repository that nobody asked for");
    let folder = new_folder(&env, "empty").display().to_string();
    assert_trouble(&machine, &backup_to(&env, &folder), 1, "no_repository");
    let version_1 = env.repo_named("version-1");
    env.restic(&version_1).call(["init", "--repository-version", "1"]).run().assert_ok();
    for command in ["backup", "restore", "points"] {
        let mut args = vec![command, "-r", &version_1];
        args.extend((command != "points").then_some("vm1"));
        let output = env.kvmb(args).run();
        assert_trouble(&machine, &output, 1, "unsupported");
        output.assert_stderr_has("version 1").assert_stderr_has("upgrade_repo_v2");
    }
    // After restic's conversion, kvmb accepts it.
    env.restic(&version_1).call(["migrate", "upgrade_repo_v2"]).run().assert_ok();
    let point = backup_to(&env, &version_1).assert_ok().record_of("point");
    assert_eq!(point["machine"], "vm1");
    // The repository already exists.
    let action = env.kvmb(["init", "-r", &version_1]).run().assert_ok().record_of("action");
    assert_eq!(action["changed"], false, "{action}");
    init(&env);
    assert_next_run_works(&machine);
}

#[test]
fn read_only_repository_refuses_backups_but_can_be_read() {
    let env = Env::new("read-only");
    let machine = machine(&env);
    init(&env);
    let point = backup(&machine);
    {
        let _read_only = ReadOnly::make(&env.repo());
        let output = backup_to(&env, &env.repo());
        assert_trouble(&machine, &output, 1, "permission");
        output.assert_stderr_has("read-only");
        // Its points can be read nevertheless, as from any read-only medium.
        let verified = env.kvmb(["verify", "--all", "-r", &env.repo()]).run().assert_ok();
        verified.assert_stderr_has("without a lock");
        env.kvmb(["points", "-r", &env.repo()]).run().assert_ok();
        assert_restores_to(&env, text(&point, "point"), &machine.models());
    }
    assert_next_run_works(&machine);
}

#[test]
fn full_repository_fails_the_backup_and_keeps_old_points() {
    let env = Env::new("full repository");
    let machine = env.machine("vm1").disk(Disk::qcow2(64 * MIB)).start_paused();
    machine.write_bytes("vda", 0, &noise(1, MIB));
    let small = env.tmpfs("repo", 64 * MIB);
    init(&env);
    let good = backup(&machine);
    let before = machine.models();
    machine.write_bytes("vda", 0, &noise(2, 40 * MIB));
    small.fill_up_to(20 * MIB);
    let output = backup_to(&env, &env.repo());
    assert_trouble(&machine, &output, 1, "no_space");
    // There are no partial files; the existing point is intact, and there is no other.
    let mut folders = vec![Path::new(&env.repo()).to_owned()];
    while let Some(folder) = folders.pop() {
        for name in names_in(&folder) {
            assert!(!name.contains("-tmp-"), "{name} is left in {}", folder.display());
            folders.extend(Some(folder.join(name)).filter(|path| path.is_dir()));
        }
    }
    let points = env.kvmb(["points", "-r", &env.repo()]).run().assert_ok().records_of("point");
    assert_eq!(points.len(), 1);
    // Locks need space too; the same error is reported if there is none.
    small.fill_up_to(0);
    assert_trouble(&machine, &backup_to(&env, &env.repo()), 1, "no_space");
    fs::remove_file(small.path().join("filler")).expect("remove");
    assert_restores_to(&env, text(&good, "point"), &before);
    env.restic(env.repo()).call(["prune"]).run().assert_ok();
    assert_next_run_works(&machine);
    env.restic(env.repo()).check();
}

#[test]
fn full_scratch_space_fails_the_backup_but_no_guest_write() {
    let env = Env::new("scratch");
    let machine = env.machine("vm1").disk(Disk::qcow2(400 * MIB)).start_paused();
    for part in 0..4 {
        machine.write_bytes("vda", part * 100 * MIB, &noise(part, 60 * MIB));
    }
    init(&env);
    let scratch = env.tmpfs("small-scratch", 300 * MIB);
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let folder = scratch.path().display().to_string();
    let args = ["backup", "vm1", "-r", &env.repo(), "-q", "--full", "--scratch", &folder];

    // Too small from the start: nothing is started.
    scratch.fill_up_to(100 * MIB);
    let output = env.kvmb(args).run();
    assert_trouble(&machine, &output, 1, "no_space");
    output.assert_stderr_has("--scratch DIR");
    fs::remove_file(scratch.path().join("filler")).expect("remove");

    // The space runs out while the guest writes: the backup is aborted before the guest is affected.
    let running = caught_reading(&machine, env.kvmb(args));
    for part in 0..4 {
        machine.write_bytes("vda", part * 100 * MIB, &noise(10 + part, 60 * MIB));
    }
    running.signal(Signal::CONT);
    let output = running.wait();
    assert_trouble(&machine, &output, 1, "no_space");
    output.assert_stderr_has(&folder);
    assert_eq!(names_in(scratch.path()), [""; 0]);
    assert!(env.kvmb(["points", "-r", &env.repo()]).run().assert_ok().records().is_empty());
    // No write of the guest was lost.
    let point = env.kvmb(args).run().assert_ok().record_of("point");
    assert_restores_to(&env, text(&point, "point"), &machine.models());
    assert_as_before(&machine);
    machine.stop();
    machine.assert_image_equals_model("vda");
}

#[test]
fn backup_waiting_for_a_lock_can_be_interrupted() {
    let env = Env::new("locked");
    let machine = machine(&env);
    init(&env);
    let storage = std::sync::Arc::new(kvmb::storage::LocalStorage::new(env.repo()));
    let password = kvmb::repo::Password::new(crate::support::PASSWORD.to_owned());
    let repo = kvmb::repo::Repository::open(storage, &password).expect("open");
    let held = repo.lock(kvmb::repo::LockMode::Exclusive, std::time::Duration::ZERO).expect("lock");
    // A waiting command has not started anything, and Ctrl-C ends it at once.
    let waiting = env.kvmb(["-vv", "backup", "vm1", "-r", &env.repo()]).spawn();
    crate::support::wait_until("it waits for the lock", std::time::Duration::from_secs(60), || {
        waiting.stderr_so_far().contains("waiting for the repository")
    });
    assert!(!machine.is_captured(), "the machine's disks are captured while nobody reads");
    waiting.interrupt();
    waiting.wait().assert_code(130);
    assert_as_before(&machine);
    held.release().expect("release");
    assert_next_run_works(&machine);
}

#[test]
fn unknown_machine_beside_a_known_one_is_not_found() {
    let env = Env::new("missing");
    let machine = machine(&env);
    init(&env);
    let output = env.kvmb(["backup", "vm1", "vm2", "-r", &env.repo()]).run();
    let codes: Vec<Value> = output.records_of("failure").iter().map(|failure| failure["code"].clone()).collect();
    assert_eq!(codes, ["not_found"], "{output}");
    assert_eq!((output.code(), &output.record_of("point")["machine"]), (3, &json!("vm1")), "{output}");
    assert_next_run_works(&machine);
}

#[test]
fn file_size_limit_fails_the_backup_with_a_hint() {
    let env = Env::new("file size");
    let machine = machine(&env);
    init(&env);
    // 1 MiB, in units of 512 bytes.
    let output = env.sh("ulimit -f 2048; exec kvmb backup vm1 -r \"$R\"").run();
    assert_trouble(&machine, &output, 1, "failed");
    output.assert_stderr_has("ulimit -f");
    assert_next_run_works(&machine);
}

#[test]
fn limit_of_open_files_is_no_damage_and_has_a_hint() {
    let env = Env::new("open files");
    let machine = machine(&env);
    init(&env);
    backup(&machine);
    // The limit is reached while the repository is read, or when the file systems are to be read.
    for files in [5, 6, 8] {
        let output = env.sh(&format!("ulimit -n {files}; exec kvmb files ls vm1@latest -r $R")).run();
        assert_eq!((output.code(), &output.record_of("failure")["code"]), (1, &json!("failed")), "{output}");
        output.assert_stderr_has("Too many open files").assert_stderr_has("ulimit -n");
    }
    assert_next_run_works(&machine);
}

#[test]
fn thread_limit_fails_the_push_with_a_hint_and_no_panic() {
    let env = Env::new("threads");
    let machine = machine(&env);
    init(&env);
    backup(&machine);
    // Root has no such limit, and it counts all processes of a user; this one has no others.
    let user = 200_000 + std::process::id();
    let limits = [1, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 100];
    let copy = |threads: u32| env.repo_named(&format!("copy-{threads}"));
    for threads in limits {
        env.kvmb(["init", "-r", &copy(threads)]).run().assert_ok();
    }
    env.sh(&format!("chown -R {user}:{user} . && chown 0 config.json && chmod 644 config.json")).run().assert_ok();
    let (mut done, mut refused) = (0, 0);
    for threads in limits {
        let limited = format!("setpriv --reuid={user} --regid={user} --clear-groups prlimit --nproc={threads} -- kvmb");
        let to = copy(threads);
        let output = env.sh(&format!("exec {limited} push vm1@latest --from-repo $R -r {to}")).run();
        assert!(!output.stderr().contains("panicked"), "{threads} threads: {output}");
        match output.code() {
            0 => done += 1,
            _ => {
                refused += 1;
                output.assert_code(1).assert_stderr_has("TasksMax=");
            }
        }
    }
    assert!(done > 0 && refused > 3, "{done} were done, and {refused} refused");
    env.kvmb(["verify", "--all", "-r", &copy(100)]).run().assert_ok();
}
