//! A live restore as a person does it: through the wizard, watched, cancelled, and continued to its end.

use std::fs;

use super::super::client::LIMIT;
use super::{WATCH, desk, seen};
use crate::support::backups::{MIB, backup, init, noise};
use crate::support::browser::{DESKTOP, PHONE};
use crate::support::{Disk, Env, wait_until};
use serde_json::Value;

const VM: &str = "kvmb-test-vm1";

#[test]
fn live_restore_is_cancelled_continued_and_completed() {
    let env = Env::new("browser live");
    let machine = env.machine(VM).disk(Disk::qcow2(24 * MIB)).define();
    machine.write_bytes("vda", MIB, &noise(1, 16 * MIB));
    init(&env);
    backup(&machine);
    let then = machine.models();
    machine.write("vda", 0, 4 * MIB, 0x55);
    let desk = desk(&env, DESKTOP, &[]);
    let browser = &desk.browser;
    desk.open(&format!("/restore?machine={VM}"));
    browser.one("main td a, main th a").click();
    browser.click("In its place, running at once");
    // On a slow machine, the restore must be cancelled before everything is copied.
    browser.one("#f-limit_read").fill("256K");
    browser.click("Review what will be written");
    browser.wait_for("runs while its data is copied");
    browser.one("#confirm").fill(VM);
    browser.click(&format!("Overwrite and start {VM}"));
    browser.one("#live-job progress");
    browser.script(WATCH);
    browser.wait_for(&format!("{VM} runs while its data is copied"));
    assert!(machine.qemu_pid().is_some(), "it does not run");
    wait_until("the progress moves", LIMIT, || seen(browser).len() > 2);
    assert!(seen(browser).is_sorted(), "{:?}", seen(browser));
    let mut faults = browser.accessibility_faults(false);
    browser.wait_for(&format!("Cancel stops only the copying: {VM} keeps running"));
    browser.click("Cancel");
    browser.wait_for("Exit code");
    assert_eq!(browser.one("#live-job [role=status]").text(), "interrupted");

    // The overview and the page of the restore show it.
    desk.open("/");
    browser.wait_for("it still reads from the repository");
    browser.click("Abort, or read what happens");
    browser.wait_for("Abort the restore");
    faults.extend(browser.accessibility_faults(false));
    browser.set_look(PHONE);
    faults.extend(browser.accessibility_faults(false));
    assert!(browser.overflow() <= 0, "{} pixels too wide", browser.overflow());
    assert!(faults.is_empty(), "{faults:#?}");
    browser.set_look(DESKTOP);
    // At the requested rate, the rest would take a minute.
    let path = env.path(format!("data/live-restores/{}.json", machine.uuid()));
    let mut state: Value = serde_json::from_slice(&fs::read(&path).expect("read")).expect("JSON");
    state["limit_read"] = Value::Null;
    fs::write(&path, state.to_string()).expect("write");
    browser.click("Continue the restore");
    desk.wait_for_job("done");
    browser.wait_for("all data is on the disks of this host");
    assert!(machine.qemu_pid().is_some(), "it does not run");
    machine.stop();
    then["vda"].assert_image_equals(machine.image("vda"), machine.format("vda"));
    desk.end();
    env.assert_nothing_left();
}
