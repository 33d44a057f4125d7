//! Small changes of a repository, killed at every step: pinning a point, adding a key, exporting a key. Existing data
//! is kept, and the next attempt completes the change.

use std::fs;

use crate::support::backups::{MIB, backup, init, names_in, noise, stopped_at, text};
use crate::support::{Call, Disk, Env, PASSWORD, set_mode};
use kvmb::failpoint::Failpoint;

fn killed_at(call: Call, step: Failpoint) {
    let running = stopped_at(call, step);
    running.kill();
    running.wait();
}

#[test]
fn killed_key_add_or_export_can_be_repeated() {
    let env = Env::new("keys");
    let repo = init(&env);
    let password = |name: &str| {
        let file = env.path(name);
        fs::write(&file, format!("the password {name}\n")).unwrap();
        set_mode(&file, 0o600);
        file.display().to_string()
    };
    for (step, is_added) in [(Failpoint::LockTaken, false), (Failpoint::KeyAdded, true)] {
        let new = password(&step.name());
        let add = || env.kvmb(["key", "add", "-r", &repo, "--new-password-file", &new]);
        killed_at(add(), step);
        env.kvmb(["points", "-r", &repo]).run().assert_ok();
        let opened = env.kvmb(["points", "-r", &repo, "--password-file", &new]).run();
        assert_eq!(opened.code() == 0, is_added, "{opened}");
        assert_eq!(add().run().assert_ok().record_of("action")["changed"], !is_added);
        env.kvmb(["points", "-r", &repo, "--password-file", &new]).run().assert_ok();
        env.kvmb(["unlock", "-r", &repo]).run().assert_ok();
    }
    assert_eq!(names_in(&env.path("repo/keys")).len(), 3);

    let exported = env.path("exported");
    let export = || env.kvmb(["key", "export", "-r", &repo]).arg(&exported);
    killed_at(export(), Failpoint::KeyExported);
    assert_eq!(fs::read_to_string(&exported).unwrap(), format!("{PASSWORD}\n"));
    assert_eq!(export().run().assert_ok().record_of("action")["changed"], false, "it is finished");
    // Another existing file is not replaced.
    fs::write(&exported, "something else\n").unwrap();
    let failure = export().run().assert_code(1).record_of("failure");
    assert_eq!(failure["code"], "exists", "{failure}");
    assert_eq!(fs::read_to_string(&exported).unwrap(), "something else\n");
}

#[test]
fn killed_pin_keeps_the_point_and_can_be_repeated() {
    let env = Env::new("pins");
    let repo = init(&env);
    let machine = env.machine("vm1").disk(Disk::raw(MIB)).define();
    machine.write_bytes("vda", 0, &noise(1, MIB));
    let point = backup(&machine);
    let id = text(&point, "point");
    for (step, snapshots) in [(Failpoint::LockTaken, 1), (Failpoint::PinStored, 2)] {
        killed_at(env.kvmb(["pin", id, "-r", &repo]), step);
        assert_eq!(names_in(&env.path("repo/snapshots")).len(), snapshots, "{step:?}");
        env.kvmb(["verify", "vm1", "-r", &repo]).run().assert_ok();
    }
    env.kvmb(["pin", id, "-r", &repo]).run().assert_ok();
    let points = env.kvmb(["points", "-r", &repo]).run().assert_ok().records_of("point");
    assert!(!points.is_empty() && points.iter().all(|point| point["pinned"] == true), "{points:#?}");
}
