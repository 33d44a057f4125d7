//! The playbook of the documentation, run by the real `ansible-playbook`.

// A test panics if a result is not what it expects.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use crate::support::host::Host;
use crate::support::{Disk, parts};

const MIB: u64 = 1 << 20;

/// Runs the playbook, and returns the number of `ok`, `changed`, `failed`, `skipped` … tasks.
fn play(host: &Host, flags: &[&str]) -> BTreeMap<String, u32> {
    let env = &host.env;
    let (_, section) =
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/ansible.md")).split_once("# Ansible\n").unwrap();
    let (_, rest) = section.split_once("```yaml\n").unwrap();
    fs::write(env.path("kvmb.yml"), rest.split("```").next().unwrap()).unwrap();
    fs::write(env.path("hosts"), "[kvm_hosts]\nlocalhost ansible_connection=local\n").unwrap();
    let words = ["ansible-playbook", "--diff", "-i", "hosts", "kvmb.yml"];
    let variables = serde_json::json!({ "kvmb_repo": env.repo(), "kvmb_password_file": env.password_file() });
    let output = host
        .program(&words)
        .args(["-e", &variables.to_string()])
        .args(flags)
        .env("ANSIBLE_NOCOLOR", "1")
        .env("ANSIBLE_LOCALHOST_WARNING", "0")
        .limit(Duration::from_secs(240))
        .run();
    let output = output.assert_ok();
    let recap = output.stdout().lines().find_map(|line| line.strip_prefix("localhost ")).expect("a recap");
    let counts = recap.split_whitespace().filter_map(|word| word.split_once('='));
    let counts: BTreeMap<String, u32> = counts.map(|(word, count)| (word.to_owned(), count.parse().unwrap())).collect();
    assert_eq!((counts["failed"], counts["unreachable"], counts["ignored"]), (0, 0, 0), "{output}");
    counts
}

#[test]
fn documented_ansible_play_is_idempotent_and_restores_a_lost_machine() {
    parts::require(&["ansible-playbook"]);
    let host = Host::new("ansible");
    let env = &host.env;
    let machines = ["vm1", "web1"].map(|name| env.machine(name).disk(Disk::qcow2(16 * MIB)).start());
    for (machine, pattern) in machines.iter().zip([0x11, 0x22]) {
        machine.write("vda", 3 * MIB, 2 * MIB, pattern);
    }

    // A dry run changes nothing, and reports as far as possible what would be done.
    assert_eq!(play(&host, &["--check"])["changed"], 1);
    assert!(!env.path("repo").exists());

    assert_eq!(play(&host, &[])["changed"], 3, "the repository, the backup, the schedule");
    assert!(host.crontab().contains("backup"), "{}", host.crontab());
    for flags in [&[][..], &["--check"]] {
        assert_eq!(play(&host, flags)["changed"], 0);
    }
    assert_eq!(env.kvmb(["points", "-r", &env.repo()]).run().assert_ok().records_of("point").len(), 2);

    // One machine is lost with its disk.
    let lost = &machines[1];
    lost.stop();
    env.virsh(&["undefine", "--checkpoints-metadata", lost.name()]);
    let image = lost.image("vda");
    fs::remove_file(image).unwrap();
    assert_eq!(play(&host, &["--check"])["changed"], 1);
    assert!(!image.exists());
    assert_eq!(play(&host, &[])["changed"], 1);
    lost.assert_image_equals_model("vda");
    assert_eq!(play(&host, &[])["changed"], 0);
    env.restic(env.repo()).check();
}
