//! A Linux that writes and syncs files while it is backed up: every point has a file system that mounts, has no errors,
//! and contains each file that was synced before the capture - whether the guest was frozen for it or not.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use crate::guard::guard_pid;
use crate::support::chains::*;
use crate::support::guest::{Ext4, Mounted};
use crate::support::{Env, FreezeMode, LinuxGuest, process};
use serde_json::Value;

#[test]
fn points_of_a_frozen_guest_are_cleanly_unmounted_file_systems() {
    let env = Env::new("frozen guest");
    let repo = init(&env);
    let guest = env.linux_guest_on_qcow2("linux", FreezeMode::Normal);
    let mut points = Vec::new();
    for round in 0..3 {
        guest.wait_for_more(3);
        // A frozen guest syncs nothing more: the point must contain exactly what it has reported so far.
        let run = stopped_at(&guest, &repo, "Frozen", &[]).unwrap_or_else(|output| panic!("{output}"));
        let synced = guest.synced();
        let point = go_on(run).assert_ok().record_of("point");
        assert_eq!(point["consistency"], "filesystem");
        assert_eq!(disk_of(&point, "vda")["read_mode"], if round == 0 { "full" } else { "changed" });
        points.push((point, synced));
        guest.wait_for_more(1);
    }
    for (point, synced) in &points {
        let image = restored(&env, &repo, point);
        // Without replaying the journal first.
        Ext4::assert_sound(&image);
        assert!(Ext4::open(&image).was_clean(), "its journal is not empty");
        Mounted::mount(&image).assert_has_files(*synced);
    }
    finish(&env, &[&repo]);
}

#[test]
fn points_of_an_unfrozen_guest_contain_all_synced_files() {
    let env = Env::new("guest without agent");
    let repo = init(&env);
    let guest = env.linux_guest_on_qcow2("linux", FreezeMode::NoAgent);
    let mut points = Vec::new();
    for round in 0..3 {
        guest.wait_for_more(3);
        let run = stopped_at(&guest, &repo, "CaptureNoted", &[]).unwrap_or_else(|output| panic!("{output}"));
        let synced = guest.synced();
        let point = go_on(run).assert_ok().record_of("point");
        assert_eq!(point["consistency"], "crash");
        assert_eq!(disk_of(&point, "vda")["read_mode"], if round == 0 { "full" } else { "changed" });
        points.push((point, synced));
    }
    // Data that is written while the backup reads is not in the point, but in the next one.
    let run = stopped_at(&guest, &repo, "CaptureOpen", &[]).unwrap_or_else(|output| panic!("{output}"));
    guest.wait_for_more(10);
    let held = go_on(run).assert_ok().record_of("point");
    points.push((held, points[2].1));
    let synced = guest.synced();
    points.push((backup(&guest, &repo), synced));
    for (point, synced) in &points {
        let image = restored(&env, &repo, point);
        // Mounting replays the journal; after that, there are no errors.
        Mounted::mount(&image).assert_has_files(*synced);
        Ext4::assert_sound(&image);
    }
    finish(&env, &[&repo]);
}

#[test]
fn guest_left_frozen_by_a_killed_run_is_thawed_by_the_guard_or_the_next_run() {
    let env = Env::new("killed while frozen");
    let repo = init(&env);
    let guest = env.linux_guest_on_qcow2("linux", FreezeMode::Normal);
    backup(&guest, &repo);
    for (step, is_guarded) in [("Frozen", true), ("Begun", true), ("Begun", false)] {
        guest.wait_for_more(2);
        let run = stopped_at(&guest, &repo, step, &[]).unwrap_or_else(|output| panic!("{output}"));
        assert_is_frozen(&guest);
        let guard = guard_pid(&env);
        if !is_guarded {
            process::kill(guard);
        }
        process::kill(run.pid());
        run.wait();
        match is_guarded {
            true => guest.wait_for_more(2),
            false => assert_is_frozen(&guest),
        }
        let point = backup(&guest, &repo);
        assert_eq!(point["consistency"], "filesystem");
        assert_eq!(disk_of(&point, "vda")["read_mode"], "changed");
        guest.wait_for_more(2);
        assert_eq!(ours(&guest).len(), 1);
    }
    // If the storage fails at the same moment, the run thaws the guest itself.
    for step in ["Frozen", "Begun"] {
        let run = stopped_at(&guest, &repo, step, &[]).unwrap_or_else(|output| panic!("{output}"));
        let read_only = crate::support::mount::ReadOnly::make(&repo);
        go_on(run).assert_code(1);
        drop(read_only);
        guest.wait_for_more(2);
        assert_eq!(ours(&guest).len(), 1);
    }
    let synced = guest.synced();
    let point = backup(&guest, &repo);
    assert_eq!(disk_of(&point, "vda")["read_mode"], "changed");
    Mounted::mount(&restored(&env, &repo, &point)).assert_has_files(synced);
    finish(&env, &[&repo]);
}

#[test]
fn point_of_a_guest_that_was_thawed_too_early_is_crash_consistent() {
    let env = Env::new("thawed early");
    let repo = init(&env);
    let guest = env.linux_guest_on_qcow2("linux", FreezeMode::ThawedEarly);
    for (mode, code) in [("auto", 0), ("required", 1)] {
        let args = ["--freeze", mode];
        let run = stopped_at(&guest, &repo, "Frozen", &args).unwrap_or_else(|output| panic!("{output}"));
        // Long before the capture, as when Windows ends a freeze after ten seconds.
        guest.wait_for_more(1);
        let output = go_on(run).assert_code(code).assert_stderr_has("thawed too early");
        match code {
            0 => assert_eq!(output.record_of("point")["consistency"], "crash"),
            _ => assert_eq!(output.record_of("failure")["code"], "freeze"),
        }
        guest.wait_for_more(1);
        assert_eq!(ours(&guest).len(), 1, "only the checkpoint of the stored point is kept");
    }
    finish(&env, &[&repo]);
}

#[test]
fn guest_stopped_by_full_scratch_space_resumes_after_the_backup() {
    let env = Env::new("stopped by scratch");
    let repo = init(&env);
    let guest = env.linux_guest_on_qcow2("linux", FreezeMode::NoAgent);
    guest.wait_for_more(3);
    let scratch = env.tmpfs("small-scratch", 200 * MIB);
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let folder = scratch.path().display().to_string();
    // Once the run is killed, and there is free space again before the next run; once it continues and gives up.
    for is_killed in [true, false] {
        let run = stopped_at(&guest, &repo, "CaptureOpen", &["--scratch", &folder]).unwrap_or_else(|o| panic!("{o}"));
        scratch.fill_up_to(0);
        crate::support::wait_until("the guest is stopped by the full scratch space", Duration::from_secs(60), || {
            guest.status() == "io-error"
        });
        if is_killed {
            process::kill(run.pid());
            run.wait();
            fs::remove_file(scratch.path().join("filler")).expect("remove");
            let synced = guest.synced();
            let point = backup(&guest, &repo);
            Mounted::mount(&restored(&env, &repo, &point)).assert_has_files(synced);
        } else {
            crate::support::wait_until("the guard has noticed it", Duration::from_secs(60), || {
                env.sh("grep -q no_space run/kvmb/c-*/guard.json").run().code() == 0
            });
            let output = go_on(run).assert_code(1);
            assert_eq!(output.record_of("failure")["code"], "no_space", "{output}");
        }
        assert_eq!(guest.status(), "running");
        guest.wait_for_more(3);
    }
    let synced = guest.synced();
    let point = backup(&guest, &repo);
    assert_eq!(disk_of(&point, "vda")["read_mode"], "changed");
    Mounted::mount(&restored(&env, &repo, &point)).assert_has_files(synced);
    finish(&env, &[&repo]);
}

#[track_caller]
fn assert_is_frozen(guest: &LinuxGuest) {
    let before = guest.synced();
    thread::sleep(Duration::from_secs(1));
    assert_eq!(guest.synced(), before, "the guest is not frozen: this test shows nothing");
}

/// Restores the disk of a point as a raw image.
fn restored(env: &Env, repo: &str, point: &Value) -> PathBuf {
    let folder = env.path(format!("restored-{}", id_of(point)));
    fs::create_dir(&folder).expect("a folder");
    let restored = env
        .kvmb(["restore", "-r", repo, "--format", "raw", "--no-define", "--into"])
        .arg(&folder)
        .args(["--", id_of(point)])
        .run()
        .assert_ok()
        .record_of("point");
    restored["restored_to"]["disks"][0]["path"].as_str().expect("a path").into()
}
