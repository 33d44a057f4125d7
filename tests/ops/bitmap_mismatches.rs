//! Dirty bitmaps that miss changes: an audit detects them, and affected chains are not trusted again.

use crate::support::chains::*;
use crate::support::change::run;
use crate::support::{Disk, Env};

#[test]
fn full_backup_finds_and_heals_changes_missed_by_the_bitmap() {
    let env = Env::new("full finds lies");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    let parent = backup(&machine, &repo);
    lie(&machine, &repo, &parent, 5 * MIB + 4096, 8192);
    machine.start_paused();
    // Usually undetected: the sample contains only the last chunk.
    machine.write("vda", 2 * MIB, 512, 0x77);
    let output = try_backup(&machine, &repo, &["--full"]).assert_code(4);
    let point = output.record_of("point");
    assert_full(&point, "vda", "requested");
    assert_full(&point, "vdb", "requested");
    let damage = point["chain_damage"].as_array().expect("damage");
    assert_eq!(damage.len(), 1, "{point:#}");
    assert_eq!(damage[0]["disk"], "vda");
    assert_eq!(damage[0]["offset_bytes"], 5 * MIB);
    assert_eq!(damage[0]["length_bytes"], MIB);
    assert_restores(&env, &repo, &point, &machine.models());
    // Fixed: the next point continues from the new one.
    machine.write("vda", 3 * MIB, 512, 0x78);
    let point = verified(&machine, &repo);
    assert_changed(&point, "vda", CHUNK);
    let output = try_backup(&machine, &repo, &["--full"]).assert_ok();
    assert!(output.record_of("point").get("chain_damage").is_none());
    finish(&env, &[&repo]);
}

#[test]
fn full_audit_finds_missed_changes_and_reads_in_full() {
    let env = Env::new("audit finds lies");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    let parent = backup(&machine, &repo);
    lie(&machine, &repo, &parent, 5 * MIB + 4096, 8192);
    machine.start_paused();
    let output = try_backup(&machine, &repo, &["--audit", "100%"]).assert_code(4);
    let point = output.record_of("point");
    assert_full(&point, "vda", "marked clean had changed");
    assert_eq!(point["chain_damage"][0]["offset_bytes"], 5 * MIB);
    assert_eq!(disk_of(&point, "vdb")["read_mode"], "changed");
    assert_eq!(disk_of(&point, "vdb")["read_bytes"], 4 * MIB, "everything that is not zero is audited");
    assert_restores(&env, &repo, &point, &machine.models());
    try_backup(&machine, &repo, &["--audit", "100%"]).assert_ok();
    finish(&env, &[&repo]);
}

#[test]
fn default_audit_reads_a_thousandth_of_unchanged_chunks() {
    let env = Env::new("audit by default");
    let repo = init(&env);
    let machine = env.machine("vm").disk(Disk::qcow2(600 * MIB)).start_paused();
    machine.write("vda", 0, 600 * MIB, 0x11);
    backup_with(&machine, &repo, &["--chunk-size", "512K"]);
    // Of 1,200 chunks. The last one is always in the sample, possibly by chance.
    for (args, least, most) in [(&["--audit", "0%"][..], 1, 1), (&[], 2, 3), (&["--audit", "1%"], 12, 13)] {
        let disk = disk_of(&backup_with(&machine, &repo, args), "vda");
        let chunks = disk["read_bytes"].as_u64().expect("read_bytes") / (512 << 10);
        assert!((least..=most).contains(&chunks), "{args:?}: {chunks} chunks were read");
    }
    finish(&env, &[&repo]);
}

#[test]
fn bitmap_found_wrong_is_never_trusted_again() {
    let env = Env::new("lies while off");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    let parent = backup(&machine, &repo);
    lie(&machine, &repo, &parent, 5 * MIB + 4096, 8192);
    // The machine is off, so the point that detects it creates no checkpoint.
    let point = try_backup(&machine, &repo, &["--full"]).assert_code(4).record_of("point");
    assert_restores(&env, &repo, &point, &machine.models());
    let point = backup_with(&machine, &repo, &["--audit", "0%"]);
    assert_restores(&env, &repo, &point, &machine.models());
    assert_full(&point, "vda", "found its dirty bitmap to be wrong");
    assert_changed(&point, "vdb", 0);
    assert_eq!(ours(&machine).len(), 1);
    machine.start_paused();
    machine.write("vda", MIB, 512, 0x44);
    let point = backup_with(&machine, &repo, &["--audit", "0%"]);
    assert_restores(&env, &repo, &point, &machine.models());
    assert_changed(&point, "vda", CHUNK);
    finish(&env, &[&repo]);
}

/// Changes the disk without the bitmap: writes while the machine is off, and clears the bitmap afterwards.
fn lie(machine: &crate::support::Machine, repo: &str, parent: &serde_json::Value, offset: u64, length: u64) {
    let checkpoint = checkpoint_in(machine.env(), repo, parent).expect("a checkpoint");
    machine.stop();
    machine.write("vda", offset, length, 0x99);
    run("qemu-img", &["bitmap", "--clear", &machine.image("vda").display().to_string(), &checkpoint]);
}

#[test]
fn full_every_reads_everything_when_due() {
    let env = Env::new("full every");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    backup(&machine, &repo);
    assert_changed(&backup_with(&machine, &repo, &["--full-every", "1d"]), "vda", 0);
    machine.write("vda", MIB, 512, 0x33);
    crate::support::wait_until("a second is over", std::time::Duration::from_secs(60), {
        let start = std::time::Instant::now();
        move || start.elapsed() > std::time::Duration::from_secs(1)
    });
    let point = backup_with(&machine, &repo, &["--full-every", "1s"]);
    assert_full(&point, "vda", "due for a full read");
    assert_restores(&env, &repo, &point, &machine.models());
    // The full read was due; the interval starts again.
    assert_changed(&backup_with(&machine, &repo, &["--full-every", "1d"]), "vda", 0);
    finish(&env, &[&repo]);
}
