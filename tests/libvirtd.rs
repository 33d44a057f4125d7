//! A real libvirtd that is killed: between backups, while a job is established, and after the point is stored. The machine
//! never suffers, and the next backup is right.

mod chains;
mod harness;

use chains::*;
use harness::{Env, Machine};

#[test]
fn killed_between_backups_it_costs_nothing() {
    let env = Env::with_libvirtd("libvirtd killed between");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    proven(&machine, &repo);
    env.kill_libvirtd();
    machine.write("vda", 0, 512, 0x33);
    let failure = try_backup(&machine, &repo, &[]).assert_code(1).record_of("failure");
    assert_eq!(failure["code"], "connection");
    assert!(failure["hint"].as_str().is_some_and(|hint| hint.contains("is libvirtd running")), "{failure}");
    env.start_libvirtd();
    assert_changed(&proven(&machine, &repo), "vda", CHUNK);
    // Down while the machine ends and begins: libvirt starts it anew, the bitmaps are in the images.
    machine.stop();
    env.kill_libvirtd();
    env.start_libvirtd();
    machine.start_paused();
    machine.write("vdb", MIB, 512, 0x44);
    let point = proven(&machine, &repo);
    assert_changed(&point, "vda", 0);
    assert_changed(&point, "vdb", CHUNK);
    assert_eq!(ours(&machine).len(), 1);
    finish(&env, &[&repo]);
}

#[test]
fn killed_while_a_job_is_established_it_costs_that_run_at_most() {
    let env = Env::with_libvirtd("libvirtd killed meanwhile");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    proven(&machine, &repo);

    // Gone when the last byte is read, and for longer than the run waits: no point, and no harm.
    machine.write("vda", 2 * MIB, 4 * MIB, 0x33);
    let run = stopped_at(&machine, &repo, "FirstChunk", &[]).unwrap_or_else(|output| panic!("{output}"));
    env.kill_libvirtd();
    let failure = go_on(run).assert_code(1).record_of("failure");
    assert_eq!(failure["code"], "connection");
    assert!(machine.is_captured(), "QEMU goes on with the job that nobody ended");
    env.start_libvirtd();
    let point = proven(&machine, &repo);
    assert_changed(&point, "vda", 4 * CHUNK);
    assert_as_usual(&machine);

    // Back before that: the run notices nothing.
    machine.write("vda", 2 * MIB, 4 * MIB, 0x44);
    let run = stopped_at(&machine, &repo, "FirstChunk", &[]).unwrap_or_else(|output| panic!("{output}"));
    env.kill_libvirtd();
    env.start_libvirtd();
    let point = go_on(run).assert_ok().record_of("point");
    assert_changed(&point, "vda", 4 * CHUNK);
    assert_restores(&env, &repo, &point, &machine.models());
    assert_as_usual(&machine);

    // Together with kvmb: whoever comes next ends the job that libvirtd finds again.
    machine.write("vda", 6 * MIB, 4 * MIB, 0x55);
    let run = stopped_at(&machine, &repo, "FirstChunk", &[]).unwrap_or_else(|output| panic!("{output}"));
    run.kill();
    run.wait();
    env.kill_libvirtd();
    env.start_libvirtd();
    let point = proven(&machine, &repo);
    assert_changed(&point, "vda", 4 * CHUNK);
    assert_as_usual(&machine);
    finish(&env, &[&repo]);
}

#[test]
fn killed_when_the_point_is_stored_its_checkpoint_is_settled_by_the_next_run() {
    let env = Env::with_libvirtd("libvirtd killed after");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    let first = proven(&machine, &repo);
    machine.write("vda", 2 * MIB, 4 * MIB, 0x33);
    let run = stopped_at(&machine, &repo, "CommitNoted", &[]).unwrap_or_else(|output| panic!("{output}"));
    env.kill_libvirtd();
    let output = go_on(run).assert_ok().assert_stderr_has("the next run clears it");
    let second = output.record_of("point");
    assert_eq!(second["parent"], first["point"]);
    env.start_libvirtd();
    assert_eq!(ours(&machine).len(), 2, "the superseded one is left, and no more");
    machine.write("vda", 0, 512, 0x44);
    let third = proven(&machine, &repo);
    assert_eq!(third["parent"], second["point"]);
    assert_changed(&third, "vda", CHUNK);
    assert_as_usual(&machine);
    finish(&env, &[&repo]);
}

/// One checkpoint, no job, and the machine as it was.
#[track_caller]
fn assert_as_usual(machine: &Machine) {
    assert_eq!(ours(machine).len(), 1);
    assert!(!machine.is_captured(), "a job is left");
    assert_eq!(machine.status(), "prelaunch");
}
