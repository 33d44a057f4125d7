//! Mounted points: their files equal those of a restore, and nothing of the mount remains.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::backups::{MIB, backup, init, names_in, new_folder, noise, text};
use crate::support::call::Running;
use crate::support::{Disk, Env, Machine, wait_until};

const LIMIT: Duration = Duration::from_secs(60);

fn machine(env: &Env) -> Machine<'_> {
    let machine = env.machine("vm1").disk(Disk::qcow2(64 * MIB)).disk(Disk::raw(5 * MIB + 512)).start_paused();
    machine.write_bytes("vda", 3 * MIB + 512, &noise(1, 9 * MIB));
    machine.write_bytes("vdb", 4 * MIB, &noise(3, MIB + 512));
    machine
}

fn is_mounted(folder: &Path) -> bool {
    let name = folder.to_str().expect("UTF-8").replace(' ', "\\040");
    fs::read_to_string("/proc/self/mountinfo").expect("a list").contains(&format!(" {name} "))
}

fn mount(env: &Env, folder: &Path, args: &[&str]) -> Running {
    let mut running = env.kvmb(["mount", "-r", &env.repo(), "--disks", "vm1"]).arg(folder).args(args).spawn();
    wait_until("the point is mounted", LIMIT, || {
        assert!(!running.has_ended(), "{}", running.stderr_so_far());
        !running.stdout_so_far().is_empty()
    });
    running
}

fn image(folder: &Path, disk: &str) -> PathBuf {
    folder.join(disk).join(format!("{disk}.raw"))
}

#[test]
fn mounted_disks_match_the_point_and_are_read_only() {
    let env = Env::new("mounted point");
    let machine = machine(&env);
    init(&env);
    let point = backup(&machine);
    let before = machine.models();
    machine.write("vda", 0, 16 * MIB, 0x55);
    let folder = new_folder(&env, "a folder");
    let running = mount(&env, &folder, &[]);
    let record: serde_json::Value = serde_json::from_str(running.stdout_so_far().trim()).expect("a record");
    assert_eq!((&record["action"], &record["point"]), (&"mount".into(), &point["point"]));
    assert_eq!(record["files"][1], image(&folder, "vdb").to_str().expect("UTF-8"));
    for disk in ["vda", "vdb"] {
        before[disk].assert_image_equals(&image(&folder, disk), "raw");
    }
    let refused = fs::File::options().write(true).open(image(&folder, "vda")).expect_err("written to a point");
    assert_eq!(refused.raw_os_error(), Some(rustix::io::Errno::ACCESS.raw_os_error()), "{refused}");
    // Ctrl-C unmounts.
    running.interrupt();
    running.wait();
    assert!(!is_mounted(&folder.join("vda")) && names_in(&folder).is_empty());
    env.assert_nothing_left();
}

#[test]
fn unmount_or_release_ends_the_mount_server() {
    let env = Env::new("unmounted point");
    let machine = machine(&env);
    init(&env);
    backup(&machine);
    let folder = new_folder(&env, "mnt");
    let running = mount(&env, &folder, &["--disk", "vdb"]);
    assert_eq!(names_in(&folder), ["vdb"]);
    env.program("fusermount3").arg("-u").arg(folder.join("vdb")).run().assert_ok();
    running.wait().assert_ok();
    assert!(names_in(&folder).is_empty());
    // If killed, the mount is removed too.
    let running = mount(&env, &folder, &["--disk", "vdb"]);
    running.kill();
    running.wait();
    wait_until("the disk is unmounted", LIMIT, || !is_mounted(&folder.join("vdb")));
    fs::remove_dir(folder.join("vdb")).expect("an empty folder");
    // In the background, the command returns when the files are readable; release unmounts even if a file is open.
    let action = env.kvmb(["mount", "-r", &env.repo(), "--disks", "--detach", "vm1"]).arg(&folder).run();
    let action = action.assert_ok().record_of("action");
    let open = fs::File::open(image(&folder, "vda")).expect("a mounted disk");
    env.kvmb(["release", text(&action, "served")]).run().assert_ok();
    assert!(!is_mounted(&folder.join("vda")) && names_in(&folder).is_empty());
    drop(open);
    env.assert_nothing_left();
}

#[test]
fn failed_mount_reports_the_reason_and_leaves_nothing() {
    let env = Env::new("no mount");
    let machine = machine(&env);
    init(&env);
    backup(&machine);
    let folder = new_folder(&env, "mnt");
    fs::write(folder.join("a file"), "").expect("written");
    let call = |args: &[&str]| env.kvmb(["mount", "-r", &env.repo(), "--disks", "vm1"]).arg(&folder).args(args);
    let failure = call(&[]).run().assert_code(1).record_of("failure");
    assert_eq!(failure["code"], "exists", "{failure}");
    fs::remove_file(folder.join("a file")).expect("removed");
    let failure = call(&["--disk", "vdz"]).run().assert_code(1).record_of("failure");
    assert!(text(&failure, "error").contains("it has vda, vdb"), "{failure}");
    // On a host without FUSE, nbdfuse fails with a message.
    let programs = new_folder(&env, "programs");
    fs::write(programs.join("nbdfuse"), "#!/bin/sh\necho 'fuse: device not found' >&2\nexit 1\n").expect("written");
    crate::support::set_mode(&programs.join("nbdfuse"), 0o755);
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").expect("PATH"));
    let failure = call(&[]).env("PATH", path).run().assert_code(1).record_of("failure");
    assert!(text(&failure, "error").contains("fuse: device not found"), "{failure}");
    assert!(names_in(&folder).is_empty());
    env.assert_nothing_left();
}
