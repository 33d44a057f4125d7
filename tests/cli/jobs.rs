//! `kvmb jobs`: running and past jobs on this host, and progress for programs.

use std::time::Duration;

use crate::support::{Disk, Env, Machine, wait_until};
use rustix::process::Signal;
use serde_json::Value;

const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(60);

fn machine(env: &Env) -> Machine<'_> {
    let machine = env.machine("kvmb-test-vm1").disk(Disk::qcow2(16 * MIB)).start_paused();
    machine.write("vda", 0, 8 * MIB, 0x11);
    machine
}

fn jobs(env: &Env, args: &[&str]) -> Vec<Value> {
    env.kvmb(["jobs"]).args(args).run().assert_ok().records()
}

#[test]
fn job_is_listed_with_its_output_and_progress_records() {
    let env = Env::new("jobs");
    let _machine = machine(&env);
    assert!(jobs(&env, &[]).is_empty());
    env.kvmb(["backup", "kvmb-test-vm1", "-n", "-r", &env.repo()]).run().assert_ok();
    assert!(jobs(&env, &[]).is_empty(), "a dry run is no job");
    env.kvmb(["init", "-r", &env.repo()]).run().assert_ok();

    let call = env.kvmb(["backup", "kvmb-test-vm1", "--progress", "jsonl", "-r", &env.repo()]);
    let backup = call.run().assert_ok();
    let point = backup.record_of("point");
    let progress: Vec<Value> = backup
        .stderr()
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let last = progress.last().expect("progress");
    assert!(progress.iter().all(|record| record["type"] == "progress"), "{progress:?}");
    assert_eq!((&last["label"], &last["ended"]), (&"kvmb-test-vm1/vda".into(), &true.into()), "{last}");
    assert!(last["done_bytes"].as_u64() >= Some(8 * MIB), "{last}");
    assert!(!backup.stdout().contains("\"progress\""));

    let all = jobs(&env, &[]);
    let job = &all[0];
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(last["job"], job["job"]);
    for (key, value) in [("command", "backup"), ("status", "done"), ("user", "root"), ("origin", "shell")] {
        assert_eq!(job[key], value, "{job}");
    }
    assert_eq!(job["exit_code"], 0);
    assert_eq!(job["arguments"][1], "kvmb-test-vm1");
    assert!(job["done_bytes"].as_u64() >= Some(8 * MIB), "{job}");
    let shown = jobs(&env, &["show", &job["job"].as_str().unwrap()[..6]]);
    assert_eq!(shown, [job.clone(), point]);

    env.kvmb(["backup", "kvmb-test-none", "-r", &env.repo()]).run().assert_code(1);
    let failed = &jobs(&env, &["--limit", "1"])[0];
    assert_eq!((&failed["status"], &failed["failures"]), (&"failed".into(), &1.into()), "{failed}");
    assert!(failed["error"].as_str().unwrap().contains("kvmb-test-none"), "{failed}");
    let table = env.kvmb(["jobs", "-o", "table"]).run().assert_ok();
    assert!(table.stdout().contains("JOB") && table.stdout().contains("failed"), "{table}");
    env.kvmb(["jobs", "show", "ffffffffff"]).run().assert_code(1).assert_stderr_has("no job ffffffffff");
}

#[test]
fn running_job_is_cancelled_and_killed_job_is_lost() {
    let env = Env::new("cancel");
    let _machine = machine(&env);
    env.kvmb(["init", "-r", &env.repo()]).run().assert_ok();
    let begin = || {
        let call = env.kvmb(["backup", "kvmb-test-vm1", "--limit-read", "64K", "-r", &env.repo()]);
        let running = call.limit(LIMIT).spawn();
        let with_step = |job: &Value| job["total_bytes"].as_u64() > Some(0);
        wait_until("the job reads", LIMIT, || jobs(&env, &["--running"]).iter().any(with_step));
        (jobs(&env, &["--running"])[0]["job"].as_str().unwrap().to_owned(), running)
    };
    let (id, running) = begin();
    let cancel = |flags: &[&str]| env.kvmb(["jobs", "cancel", &id]).args(flags).run().assert_ok().record_of("action");
    assert_eq!(cancel(&["-n"])["dry_run"], true);
    assert_eq!(jobs(&env, &["show", &id])[0]["status"], "running");
    assert_eq!(cancel(&[])["changed"], true);
    running.wait().assert_code(130);
    assert_eq!(jobs(&env, &["show", &id])[0]["status"], "interrupted");
    assert_eq!(cancel(&[])["changed"], false);
    env.assert_nothing_left();

    let (id, running) = begin();
    running.kill();
    assert!(running.wait().ended_by(Signal::KILL));
    assert_eq!(jobs(&env, &["show", &id])[0]["status"], "lost");
    assert!(jobs(&env, &["--running"]).is_empty());
    env.kvmb(["jobs", "cancel", "ff00"]).run().assert_code(1).assert_stderr_has("no job ff00");
    env.kvmb(["jobs", "cancel"]).run().assert_code(2);
}

#[test]
fn follow_reports_job_start_and_end_and_stops_with_its_reader() {
    let env = Env::new("follow");
    let _machine = machine(&env);
    env.kvmb(["init", "-r", &env.repo()]).run().assert_ok();
    env.kvmb(["-o", "table", "jobs", "--follow"]).run().assert_code(2).assert_stderr_has("requires --json");
    let follower = env.kvmb(["--json", "jobs", "--follow"]).spawn();
    env.kvmb(["backup", "kvmb-test-vm1", "--limit-read", "4M", "-r", &env.repo()]).run().assert_ok();
    wait_until("the end is reported", LIMIT, || follower.stdout_so_far().contains("\"status\":\"done\""));
    follower.interrupt();
    let output = follower.wait();
    let states: Vec<Value> = output.records().iter().map(|job| job["status"].clone()).collect();
    assert!(states.len() > 2 && states[0] == "running" && states[states.len() - 1] == "done", "{states:?}");
    // A closed pipe is noticed even if nothing is written.
    let script = "kvmb --json jobs --follow | head -n 1";
    let piped = env.sh(script).run().assert_ok();
    assert_eq!(piped.records().len(), 1);
}
