//! Locks that are not removed automatically: errors name the lock, and `kvmb unlock` removes it.

use std::fs;
use std::path::Path;

use crate::support::{Disk, Env};

const MIB: u64 = 1 << 20;

#[test]
fn unreadable_lock_is_reported_and_removed_only_on_request() {
    let env = Env::new("unlock");
    let machine = env.machine("vm1").disk(Disk::raw(MIB)).define();
    let kvmb = |args: &[&str]| env.kvmb(args).args(["-r", &env.repo()]);
    kvmb(&["init"]).run().assert_ok();
    let name = "ab".repeat(32);
    let file = Path::new(&env.repo()).join("locks").join(&name);
    fs::write(&file, [0x5a; 200]).expect("write");

    let failure = kvmb(&["prune", "--keep-last", "1"]).run().assert_code(5).record_of("failure");
    assert_eq!(failure["code"], "busy", "{failure}");
    assert!(failure["error"].as_str().is_some_and(|error| error.contains(&name)), "{failure}");
    assert!(failure["hint"].as_str().is_some_and(|hint| hint.contains("--remove-all")), "{failure}");

    // As with restic, an unreadable lock is not considered stale.
    let kept = kvmb(&["unlock"]).run().assert_ok().record_of("action");
    assert_eq!((&kept["action"], &kept["changed"]), (&"unlock".into(), &false.into()), "{kept}");
    assert!(file.exists());
    let told = kvmb(&["unlock", "--remove-all", "--dry-run"]).run().assert_ok().record_of("action");
    assert_eq!((&told["changed"], file.exists()), (&true.into(), true), "{told}");
    let removed = kvmb(&["unlock", "--remove-all"]).run().assert_ok().record_of("action");
    assert_eq!((&removed["target"], file.exists()), (&name.clone().into(), false), "{removed}");
    kvmb(&["backup", machine.name()]).run().assert_ok();
}
