//! Tests of the test harness: its statements about machines, disks and guests are true, and it leaves nothing behind.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::support::guest::Ext4;
use crate::support::{Disk, DiskModel, Env, FreezeMode, process};

const MIB: u64 = 1 << 20;

#[test]
fn writes_to_a_paused_machine_match_the_model() {
    let env = Env::new("patterns");
    let machine =
        env.machine("kvmb-test-vm1").disk(Disk::qcow2(64 * MIB)).disk(Disk::raw(3 * MIB + 512)).start_paused();
    // Paused before its first instruction.
    assert_eq!(machine.status(), "prelaunch");

    machine.write("vda", 0, MIB, 0x11);
    machine.write("vda", 63 * MIB + 7, 1000, 0x22);
    machine.write_bytes("vda", 5 * MIB + 3, b"some words");
    machine.write("vda", 8 * MIB, 8 * MIB, 0x33);
    machine.zero("vda", 9 * MIB, MIB);
    machine.discard("vda", 11 * MIB, MIB);
    machine.write("vdb", 3 * MIB, 512, 0x44);
    let error = machine.try_write("vdb", 3 * MIB, 4096, 1).expect_err("past the end");
    assert!(error.contains("failed"), "{error}");

    machine.stop();
    assert_eq!(machine.status(), "off");
    machine.assert_image_equals_model("vda");
    machine.assert_image_equals_model("vdb");
    let image = fs::read(machine.image("vdb")).expect("read");
    assert_eq!(image[3 * MIB as usize..], [0x44; 512]);

    // Off: the same calls write to the image.
    machine.write("vda", 2 * MIB, MIB, 0x55);
    machine.assert_image_equals_model("vda");
}

#[test]
fn model_detects_a_single_wrong_byte() {
    let env = Env::new("one byte");
    let machine = env.machine("kvmb-test-vm1").disk(Disk::qcow2(4 * MIB)).define();
    machine.write("vda", MIB, MIB, 0x11);
    let mut wrong = machine.model("vda");
    wrong.write(MIB + 77, &[0x12]);
    let image = DiskModel::from_image(machine.image("vda"), "qcow2");
    assert_eq!(wrong.first_difference(&image), Some((MIB + 77, 0x12, 0x11)));
    assert_ne!(wrong.sha256(), image.sha256());
    assert!(machine.model("vda") == image);
}

#[test]
fn machine_and_image_names_may_have_special_characters() {
    let env = Env::new("names");
    let machine =
        env.machine("-kvmb test 'vm' \"é\" & <1>").disk(Disk::qcow2(MIB).file_name("-a b'c\"é&.qcow2")).start_paused();
    machine.write("vda", 0, 65536, 0x11);
    let disks = env.disks_of(machine.uuid());
    assert_eq!(disks[0].image, machine.image("vda"));
    machine.stop();
    machine.assert_image_equals_model("vda");
}

#[test]
fn a_machine_may_have_26_disks() {
    let env = Env::new("26 disks");
    let mut builder = env.machine("kvmb-test-vm1");
    for _ in 0..26 {
        builder = builder.disk(Disk::qcow2(MIB));
    }
    let machine = builder.start_paused();
    machine.write("vdz", 0, 65536, 0x11);
    machine.stop();
    machine.assert_image_equals_model("vdz");
    machine.assert_image_equals_model("vda");
}

#[test]
fn consistent_images_pass_the_instant_check_and_torn_ones_fail() {
    let env = Env::new("writer");
    let machine = env.machine("kvmb-test-vm1").disk(Disk::raw(8 * MIB)).disk(Disk::raw(8 * MIB)).start_paused();
    let copy = |name: &str, model: &DiskModel| {
        let path = env.path(name);
        fs::write(&path, model.read(0, model.capacity_bytes())).expect("write");
        path
    };
    let ((early, late, positions), log) = machine.while_writing(1, |writer| {
        writer.wait_for_more(50);
        let before = writer.position();
        let early = machine.models();
        let after = writer.position();
        writer.wait_for_more(50);
        (early, machine.models(), before..=after)
    });
    assert!(log.len() >= 100);
    let a1 = copy("a1", &early["vda"]);
    let b1 = copy("b1", &early["vdb"]);
    let b2 = copy("b2", &late["vdb"]);
    let (first, last) = log.assert_one_instant(&[("vda", &a1, "raw"), ("vdb", &b1, "raw")]);
    // The writer continues meanwhile, and may have been between a write and its entry in the log.
    assert!(first <= positions.end() + 1 && last >= *positions.start(), "{first} {last} {positions:?}");
    let torn = [("vda", a1.as_path(), "raw"), ("vdb", b2.as_path(), "raw")];
    let torn = catch_unwind(AssertUnwindSafe(|| log.assert_one_instant(&torn)));
    assert!(torn.is_err(), "disks of two moments passed for one");
}

#[test]
fn environment_is_cleaned_up_after_a_panic() {
    let folder = std::sync::Mutex::new(None);
    let panicked = catch_unwind(|| {
        let env = Env::new("left");
        *folder.lock().expect("lock") = Some(env.path(""));
        let machine = env.machine("kvmb-test-vm1").disk(Disk::qcow2(MIB)).disk(Disk::raw(MIB)).start_paused();
        let socket = env.path("tmp/nbd.sock");
        env.sh("qemu-nbd --fork -r -t -k \"$TMPDIR/nbd.sock\" --image-opts \
            \"driver=raw,force-share=on,file.driver=file,file.filename=$IMAGE\"")
            .env("IMAGE", machine.image("vdb"))
            .run()
            .assert_ok();
        assert!(socket.exists());
        assert!(env.leftovers().iter().any(|left| left.contains("qemu-nbd")));
        let _full = env.tmpfs("small", MIB);
        assert_eq!(process::of(&env.path("")).len(), 2);
        panic!("on purpose");
    });
    let message = panicked.expect_err("it panics");
    assert_eq!(message.downcast_ref::<&str>(), Some(&"on purpose"));
    let folder = folder.into_inner().expect("lock").expect("folder");
    assert!(!folder.exists());
    assert!(process::of(&folder).is_empty());
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    assert!(!mounts.contains(&folder.display().to_string()));
}

#[test]
fn writes_beyond_a_small_tmpfs_fail_with_no_space() {
    let env = Env::new("full");
    let full = env.tmpfs("small", 4 * MIB);
    full.fill_up_to(MIB);
    let image = full.path().join("disk.raw");
    let machine = env.machine("kvmb-test-vm1").disk(Disk::raw(4 * MIB).folder(full.path())).start_paused();
    assert_eq!(machine.image("vda").file_name(), image.with_file_name("kvmb-test-vm1-vda.raw").file_name());
    let error = machine.try_write("vda", 0, 3 * MIB, 0x11).expect_err("no room");
    assert!(error.contains("No space left"), "{error}");
}

#[test]
fn restic_works_in_the_test_environment() {
    let env = Env::new("restic");
    let restic = env.restic(env.repo());
    restic.init();
    assert!(restic.snapshots().is_empty());
    fs::create_dir(env.path("data")).expect("mkdir");
    fs::write(env.path("data/file"), "words").expect("write");
    restic.backup(&env.path("data"));
    let path = env.path("data/file").display().to_string();
    assert!(restic.ls("latest").contains(&path));
    assert_eq!(restic.dump("latest", &path), b"words");
    let sum = env.program("sha256sum").arg(&path).run().assert_ok();
    assert!(sum.stdout().starts_with(&restic.dump_sha256("latest", &path)));
    restic.check();
}

#[test]
fn key_derivation_is_cheap_only_in_tests() {
    let env = Env::new("keys");
    let cost = |call: crate::support::Call, repo: &str| {
        call.args(["init", "-r", repo]).run().assert_ok();
        let files = fs::read_dir(env.path(repo).join("keys")).expect("keys");
        let key = files.map(|file| fs::read(file.expect("a file").path()).expect("a key")).next().expect("a key");
        let key: serde_json::Value = serde_json::from_slice(&key).expect("JSON");
        ["N", "r", "p"].map(|name| key[name].as_u64().expect("a number"))
    };
    let kvmb = || env.kvmb([""; 0]);
    assert_eq!(cost(kvmb(), "cheap"), [1 << 4, 8, 3]);
    // The parameters for users.
    for (repo, call) in
        [("unset", kvmb().without_env("KVMB_TEST_QUICK_KEYS")), ("zero", kvmb().env("KVMB_TEST_QUICK_KEYS", "0"))]
    {
        assert_eq!(cost(call, repo), [1 << 15, 8, 3]);
        env.restic(env.repo_named(repo)).check();
    }
}

#[test]
fn shell_pipe_reports_records_exit_code_and_timeout() {
    let env = Env::new("pipe");
    let output = env
        .sh("cat; echo oops >&2; exit 3")
        .stdin("{\"type\":\"machine\",\"machine\":\"vm1\"}\n")
        .run()
        .assert_code(3)
        .assert_stderr_has("oops");
    assert_eq!(output.record_of("machine")["machine"], "vm1");
    let bad = env.sh("echo '{\"machine\":1,\"type\":\"x\"}'").run();
    assert!(catch_unwind(AssertUnwindSafe(|| bad.records())).is_err(), "type is not first");
    let slow = env.sh("sleep 100 | sleep 100").limit(Duration::from_millis(200));
    assert!(catch_unwind(AssertUnwindSafe(|| slow.run())).is_err());
    env.assert_nothing_left();
}

#[test]
fn linux_guest_writes_freezes_and_survives_a_kill() {
    let env = Env::new("linux");
    let guest = env.linux_guest("kvmb-test-guest");
    guest.wait_for_more(3);
    guest.virsh_settled(&format!("domfsfreeze {}", guest.uuid())).assert_ok();
    let frozen = guest.synced();
    let frozen_image = Ext4::open(guest.image("vda"));
    assert!(frozen_image.was_clean(), "frozen, and its journal is not empty");
    frozen_image.assert_has_files(frozen);
    guest.virsh_settled(&format!("domfsthaw {}", guest.uuid())).assert_ok();
    guest.wait_for_more(3);
    guest.kill();
    let synced = guest.synced();
    let crashed = Ext4::open(guest.image("vda"));
    assert!(!crashed.was_clean(), "killed, and its journal is empty");
    crashed.assert_has_files(synced);
}

#[test]
fn guest_agent_can_be_made_to_hang_in_freeze() {
    let env = Env::new("hang");
    let guest = env.linux_guest_that("kvmb-test-guest", FreezeMode::Hangs { seconds: 3 });
    let start = Instant::now();
    guest.virsh_settled(&format!("domfsfreeze {}", guest.uuid())).assert_ok();
    assert!(start.elapsed() >= Duration::from_secs(3), "it froze at once");
    // After the hook's sleep, the agent froze the guest after all; a thaw makes it continue.
    guest.virsh_settled(&format!("domfsthaw {}", guest.uuid())).assert_ok();
    guest.wait_for_more(3);
}

#[test]
fn guest_without_an_agent_does_not_answer_ping() {
    let env = Env::new("silent");
    let guest = env.linux_guest_that("kvmb-test-guest", FreezeMode::NoAgent);
    assert!(!guest.ping());
    guest.wait_for_more(3);
}
