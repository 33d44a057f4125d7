//! From an empty repository to a restored machine, with mouse and keyboard.

use super::{WATCH, desk, seen};
use crate::support::browser::{DESKTOP, key};
use crate::support::{Disk, Env};

const MIB: u64 = 1 << 20;
const VM: &str = "kvmb-test-vm1";

#[test]
fn user_selects_backs_up_and_restores_a_machine() {
    let env = Env::new("browse");
    let machine = env.machine(VM).disk(Disk::qcow2(12 * MIB)).define();
    machine.write("vda", MIB, 10 * MIB, 0x11);
    env.kvmb(["init", "-r", &env.repo()]).run().assert_ok();
    let desk = desk(&env, DESKTOP, &[]);
    let browser = &desk.browser;

    // Select it: the change is shown before it is written.
    browser.click("Machines");
    browser.one(&format!("input[name=m][value='{VM}']")).click();
    browser.click("Select for backups");
    browser.wait_for(&format!("+    \"{VM}\": true"));
    browser.click("Write the file");
    browser.wait_for("Done.");

    // Back it up, and watch the page update.
    desk.open("/machines");
    browser.one(&format!("input[name=m][value='{VM}']")).click();
    browser.one("#limit").fill("1M");
    browser.click("Back up now");
    browser.one("#live-job progress");
    browser.script(WATCH);
    desk.wait_for_job("done");
    // Reloading the page would have reset this variable.
    let seen = seen(browser);
    assert!(seen.len() > 2 && seen.is_sorted(), "the progress moves: {seen:?}");

    // Restore it in place: later changes are lost.
    let then = machine.models();
    machine.write("vda", 0, 2 * MIB, 0x55);
    browser.click("Restore");
    browser.click("Show its points");
    browser.one("td a, th a").click();
    browser.click("In its place");
    browser.click("Review what will be written");
    browser.wait_for("will be lost");
    let overwrite = format!("Overwrite {VM}");
    // The name has to be typed: first a wrong one, then the right one with the keyboard alone.
    browser.one("#confirm").fill("vm1");
    browser.click(&overwrite);
    browser.wait_for("This is not the name of the machine.");
    machine.assert_image_equals_model("vda");
    browser.one("#confirm").click();
    browser.type_text(VM);
    browser.press(&[key::ENTER]);
    desk.wait_for_job("done");
    for (target, model) in &then {
        model.assert_image_equals(machine.image(target), machine.format(target));
    }
    desk.end();
    env.assert_nothing_left();
}
