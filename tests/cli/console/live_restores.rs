//! Live restores in the console: the wizard, and unfinished restores.

use super::client::{LIMIT, open};
use crate::support::backups::{MIB, backup, init, noise, text};
use crate::support::{Disk, Env, wait_until};

const VM: &str = "kvmb-test-vm1";

#[test]
fn killed_live_restore_is_shown_and_can_be_aborted() {
    let env = Env::new("console live");
    let machine = env.machine(VM).disk(Disk::qcow2(24 * MIB)).define();
    machine.write_bytes("vda", MIB, &noise(1, 16 * MIB));
    init(&env);
    let id = text(&backup(&machine), "point").to_owned();
    machine.write("vda", 0, 2 * MIB, 0x55);
    let before = machine.models();
    let console = open(&env, &[]);
    let address = format!("/live-restores/{VM}");
    console.get("/").assert_status(200).assert_lacks(&address);
    console.get(&address).assert_status(404);
    for way in ["continue", "abort"] {
        console.post(&format!("{address}/{way}"), &[("confirm", VM)]).assert_status(404);
    }

    // The wizard shows what it would do, and errors at their fields.
    let review = format!("/restore/{id}/review?where=live&start=1");
    let page = console.get(&format!("{review}&limit_read=1M")).assert_status(200);
    let page =
        page.assert_has("--overwrite --live --limit-read=1M -r").assert_lacks("--start").assert_lacks("--format");
    let page = page.assert_has(&format!("Overwrite and start {VM}")).assert_has("will be lost");
    page.assert_has(&format!("kvmb restore --continue -- {VM}")).assert_has("id=\"confirm\"");
    let page = console.get(&format!("{review}&limit_read=x")).assert_status(422);
    page.assert_has("id=\"f-limit_read-e\"").assert_has("value=\"live\" checked");
    let start = format!("/restore/{id}/start");
    console.post(&start, &[("where", "live"), ("confirm", "vm1")]).assert_status(422).assert_has("not the name");

    // A restore that was killed.
    let restore = env.kvmb(["restore", VM, "-r", &env.repo(), "--overwrite", "--live", "--limit-read", "256K"]).spawn();
    wait_until("the machine runs", LIMIT, || restore.stderr_so_far().contains("is running after"));
    restore.kill();
    restore.wait();
    let page = console.get("/?again=1").assert_status(200).assert_has("Continue the restore").assert_has(&address);
    page.assert_has("it still reads from the repository");
    console
        .get(&format!("/machines/{VM}?again=1"))
        .assert_status(200)
        .assert_has("Continue the restore")
        .assert_has(&address);
    let page = console.get(&address).assert_status(200).assert_has("Abort the restore");
    page.assert_has(&format!("kvmb restore --abort -- {VM}"));
    let abort = format!("{address}/abort");
    console.post(&abort, &[]).assert_status(422).assert_has("This is not the name of the machine.");
    console.post(&abort, &[("confirm", "vm1")]).assert_status(422);
    // It cannot be aborted while the machine runs.
    console.run_job(&abort, &[("confirm", VM)], "failed");
    assert!(machine.qemu_pid().is_some(), "it does not run");
    machine.stop();
    console.run_job(&abort, &[("confirm", VM)], "done").assert_has("are back");
    before["vda"].assert_image_equals(machine.image("vda"), machine.format("vda"));
    console.get(&address).assert_status(404);
    console.get("/?again=1").assert_status(200).assert_lacks(&address);
    console.running.interrupt();
    console.running.wait().assert_ok();
    env.assert_nothing_left();
}
