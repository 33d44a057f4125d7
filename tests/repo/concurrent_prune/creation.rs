//! Several runs create one repository concurrently, or die meanwhile: there is one master key, and no data is lost.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::support::backups::{MIB, names_in, noise, stopped_at};
use crate::support::call::Running;
use crate::support::{Call, Disk, Env, Output};
use kvmb::failpoint::Failpoint;
use rustix::process::Signal;

/// How many runs are started concurrently.
const RUNS: usize = 6;

/// A call that takes longer is waiting for a dead creator, which takes ten seconds.
const WAIT: Duration = Duration::from_secs(9);

fn all_at_once(calls: impl IntoIterator<Item = Call>) -> Vec<Output> {
    let running: Vec<Running> = calls.into_iter().map(Call::spawn).collect();
    running.into_iter().map(Running::wait).collect()
}

/// Fails unless exactly one `init` has created the repository, and the others report that it exists.
#[track_caller]
fn assert_one_creator(outputs: &[Output]) {
    let mut made = 0;
    for output in outputs {
        match output.code() {
            0 => made += usize::from(output.record_of("action")["changed"] == true),
            1 => assert_eq!(output.record_of("failure")["code"], "exists", "{output}"),
            _ => panic!("{output}"),
        }
    }
    assert_eq!(made, 1, "{}", outputs.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n\n"));
}

/// Fails unless the repository has one key and opens with kvmb and restic, and no partial file is left.
#[track_caller]
fn assert_one_master_key(env: &Env, folder: &Path, url: &str) {
    assert_eq!(names_in(&folder.join("keys")).len(), 1);
    let names = names_in(folder);
    assert!(names.iter().all(|name| !name.contains("tmp")), "{names:?}");
    env.kvmb(["points", "-r", url]).run().assert_ok();
    env.restic(folder.display().to_string()).check();
}

fn init_at_once(env: &Env, folder: &Path, url: &str) {
    let init = |_| env.kvmb(["init", "-r", url]);
    assert_one_creator(&all_at_once((0..RUNS).map(init)));
    assert_one_master_key(env, folder, url);
}

#[test]
fn concurrent_inits_create_one_repository() {
    let env = Env::new("inits");
    for round in 0..5 {
        let folder = env.path(format!("repo{round}"));
        init_at_once(&env, &folder, &folder.display().to_string());
    }
}

#[test]
fn concurrent_inits_without_hard_links_create_one_repository() {
    let env = Env::new("inits no links");
    for round in 0..5 {
        let folder = env.path(format!("repo{round}"));
        let init = |_| env.kvmb(["init", "-r"]).arg(&folder).env("KVMB_TEST_NO_LINKS", "1");
        assert_one_creator(&all_at_once((0..RUNS).map(init)));
        assert_one_master_key(&env, &folder, &folder.display().to_string());
    }
}

#[test]
fn concurrent_inits_over_sftp_create_one_repository() {
    let env = Env::new("inits sftp");
    let sshd = env.sshd();
    sshd.trust_host_key();
    for round in 0..3 {
        let name = format!("repo{round}");
        init_at_once(&env, &sshd.home().join(&name), &sshd.url(&name));
    }
}

#[test]
fn concurrent_first_backups_share_one_new_repository() {
    for no_links in [false, true] {
        let env = Env::new("first backups");
        let names = ["vm1", "vm2", "vm3"];
        for (seed, name) in (0..).zip(names) {
            env.machine(name).disk(Disk::raw(MIB)).define().write_bytes("vda", 0, &noise(seed, MIB));
        }
        let call = |arguments: &[&str]| {
            let call = env.kvmb(arguments).without_env("KVMB_PASSWORD_FILE");
            if no_links { call.env("KVMB_TEST_NO_LINKS", "1") } else { call }
        };
        let outputs = all_at_once(names.map(|name| call(&["backup", name])));
        let stored: Vec<&Output> = outputs.iter().filter(|output| output.code() == 0).collect();
        // The embedded driver admits one process at a time, for which the others wait.
        assert_eq!(stored.len(), names.len(), "{}", outputs[0]);
        let points = call(&["points"]).run().assert_ok().records_of("point");
        assert_eq!(points.len(), stored.len(), "a run said that its point is stored");
        call(&["verify", "vm1", "vm2", "vm3"]).run().assert_ok();
        assert_eq!(names_in(&env.path("data/repo/keys")).len(), 1);
        env.assert_nothing_left();
    }
}

/// Starts a call and stops it between config and key.
fn stopped_in_creation(call: Call) -> Running {
    stopped_at(call, Failpoint::ConfigCreated)
}

#[test]
fn init_killed_between_config_and_key_is_finished_by_the_next() {
    let env = Env::new("killed init");
    let (folder, url) = (env.path("repo"), env.repo());
    let init = || env.kvmb(["init", "-r", &url]);
    for finishers in [1, RUNS] {
        let running = stopped_in_creation(init());
        running.kill();
        running.wait();
        assert_eq!(names_in(&folder.join("keys")), [""; 0]);
        let dry = init().arg("--dry-run").run().assert_ok();
        assert!(dry.record_of("action")["reason"].as_str().unwrap().contains("interrupted"), "{dry}");
        if finishers == 1 {
            let failure = env.kvmb(["points", "-r", &url]).run().assert_code(1).record_of("failure");
            assert_eq!(failure["code"], "no_repository");
        }
        assert_one_creator(&all_at_once((0..finishers).map(|_| init())));
        assert_one_master_key(&env, &folder, &url);
        fs::remove_dir_all(&folder).unwrap();
    }
}

#[test]
fn init_killed_after_storing_its_key_is_complete() {
    let env = Env::new("killed init with key");
    let init = || env.kvmb(["init", "-r", &env.repo()]);
    let running = stopped_at(init(), Failpoint::KeyCreated);
    running.kill();
    running.wait();
    assert_eq!(init().run().assert_ok().record_of("action")["changed"], false);
    assert_one_master_key(&env, &env.path("repo"), &env.repo());
}

#[test]
fn first_backup_finishes_an_interrupted_repository_creation() {
    let env = Env::new("killed first backup");
    env.machine("vm1").disk(Disk::raw(MIB)).define();
    let backup = || env.kvmb(["backup", "vm1"]).without_env("KVMB_PASSWORD_FILE");
    let running = stopped_in_creation(backup());
    running.kill();
    running.wait();
    backup().run().assert_ok();
    assert_eq!(names_in(&env.path("data/repo/keys")).len(), 1);
    env.kvmb(["verify", "vm1"]).without_env("KVMB_PASSWORD_FILE").run().assert_ok();
}

#[test]
fn truncated_config_without_a_key_is_an_unfinished_init() {
    let env = Env::new("short config");
    let (folder, url) = (env.path("repo"), env.repo());
    for length in [0, 100] {
        env.kvmb(["init", "-r", &url]).run().assert_ok();
        let key = fs::read_dir(folder.join("keys")).unwrap().next().unwrap().unwrap();
        fs::remove_file(key.path()).unwrap();
        fs::File::options().write(true).open(folder.join("config")).unwrap().set_len(length).unwrap();
        let outputs = all_at_once((0..2).map(|_| env.kvmb(["init", "-r", &url])));
        assert_one_creator(&outputs);
        assert_one_master_key(&env, &folder, &url);
        fs::remove_dir_all(&folder).unwrap();
    }
}

#[test]
fn suspended_init_yields_to_the_init_that_took_over() {
    for sftp in [false, true] {
        let env = Env::new("sleeping creator");
        let sshd = sftp.then(|| env.sshd());
        sshd.iter().for_each(|sshd| sshd.trust_host_key());
        let folder = sshd.as_ref().map_or(env.path("repo"), |sshd| sshd.home().join("repo"));
        let url = sshd.as_ref().map_or(env.repo(), |sshd| sshd.url("repo"));
        let running = stopped_in_creation(env.kvmb(["init", "-r", &url]));
        let taken_over = env.kvmb(["init", "-r", &url]).run().assert_ok();
        assert!(taken_over.took > WAIT, "it did not wait: {taken_over}");
        running.signal(Signal::CONT);
        let late = running.wait().assert_code(1);
        assert_eq!(late.record_of("failure")["code"], "exists", "{late}");
        assert_one_master_key(&env, &folder, &url);
    }
}

#[test]
fn repository_with_lost_keys_is_damaged_and_not_initialised() {
    let env = Env::new("lost keys");
    let url = env.repo();
    env.kvmb(["init", "-r", &url]).run().assert_ok();
    env.machine("vm1").disk(Disk::raw(MIB)).define();
    env.kvmb(["backup", "vm1", "-r", &url]).run().assert_ok();
    let config = fs::read(env.path("repo/config")).unwrap();
    for key in fs::read_dir(env.path("repo/keys")).unwrap() {
        fs::remove_file(key.unwrap().path()).unwrap();
    }
    let output = env.kvmb(["init", "-r", &url]).run();
    assert_eq!(output.record_of("failure")["code"], "damage", "{output}");
    assert_eq!(fs::read(env.path("repo/config")).unwrap(), config, "it was not touched");
}

#[test]
fn old_unfinished_config_is_not_waited_for() {
    let env = Env::new("old config");
    let (folder, url) = (env.path("repo"), env.repo());
    for length in [0, 100, u64::MAX] {
        env.kvmb(["init", "-r", &url]).run().assert_ok();
        let key = fs::read_dir(folder.join("keys")).unwrap().next().unwrap().unwrap();
        fs::remove_file(key.path()).unwrap();
        let config = fs::File::options().write(true).open(folder.join("config")).unwrap();
        config.set_len(length.min(config.metadata().unwrap().len())).unwrap();
        config.set_modified(std::time::SystemTime::now() - Duration::from_secs(3600)).unwrap();
        for (arguments, code) in [(["points", "-r", &url], 1), (["init", "-r", &url], 0)] {
            let output = env.kvmb(arguments).run().assert_code(code);
            assert!(output.took < WAIT, "it waited: {output}");
        }
        assert_one_master_key(&env, &folder, &url);
        fs::remove_dir_all(&folder).unwrap();
    }
}

#[test]
fn old_truncated_config_beside_a_key_is_reported_at_once() {
    let env = Env::new("old short config");
    let url = env.repo();
    env.kvmb(["init", "-r", &url]).run().assert_ok();
    let config = fs::File::options().write(true).open(env.path("repo/config")).unwrap();
    config.set_len(10).unwrap();
    config.set_modified(std::time::SystemTime::now() - Duration::from_secs(3600)).unwrap();
    let output = env.kvmb(["init", "-r", &url]).run().assert_code(4);
    assert_eq!(output.record_of("failure")["code"], "damage", "{output}");
    assert!(output.took < WAIT, "it waited: {output}");
}
