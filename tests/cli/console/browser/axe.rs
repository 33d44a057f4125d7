//! Every page follows the accessibility rules and fits the screen: light and dark, on a desktop and on a phone.

use super::{Desk, desk};
use crate::support::browser::{DESKTOP, Look, PHONE};
use crate::support::{Disk, Env};
use serde_json::json;

const MIB: u64 = 1 << 20;
const VM: &str = "kvmb-test-vm1";

/// An image without a text alternative, grey text on grey, and a block that is wider than every screen.
const PLANT: &str = "const main = document.querySelector('main');
    const [image, text, block] = ['img', 'p', 'div'].map((name) => main.appendChild(document.createElement(name)));
    image.src = '/icon.svg';
    text.textContent = 'hard to read';
    text.style.color = '#777';
    text.style.backgroundColor = '#888';
    block.style.width = '2000px';
    block.textContent = 'wide';";

/// Adds the violations of the current page, with four combinations of size and colours.
fn check(desk: &Desk, what: &str, faults: &mut Vec<String>) {
    for look in [DESKTOP, PHONE] {
        for is_dark in [false, true] {
            desk.browser.set_look(Look { is_dark, ..look });
            let colours = if is_dark { "dark" } else { "light" };
            let found = desk.browser.accessibility_faults(is_dark);
            faults.extend(found.iter().map(|fault| format!("{what} {:?} {colours}: {fault}", look.size)));
        }
        let overflow = desk.browser.overflow();
        if overflow > 0 {
            faults.push(format!("{what} {:?}: the page is {overflow} pixels too wide", look.size));
        }
    }
}

#[test]
fn every_page_is_accessible_and_fits_the_screen() {
    let env = Env::new("axe");
    let machine = env.machine(VM).disk(Disk::qcow2(4 * MIB)).disk(Disk::raw(MIB)).define();
    machine.write("vda", 0, MIB, 0x11);
    let name = "kvmb-test-a-machine-with-a-name-that-is-much-longer-than-a-telephone-is-wide";
    env.machine(name).disk(Disk::qcow2(MIB)).define();
    let selected = json!({ "kvmb-test-*": true });
    env.configure(&json!({ "selected_vms": selected }));
    let repo = env.repo();
    env.kvmb(["init", "-r", &repo]).run().assert_ok();
    let backup = env.kvmb(["backup", VM, "-r", &repo, "--json"]).run().assert_ok();
    let point = backup.record_of("point")["point"].as_str().unwrap().to_owned();
    let job = env.kvmb(["jobs", "--json"]).run().assert_ok().records_of("job")[0]["job"].as_str().unwrap().to_owned();
    env.kvmb(["drill", VM, "--until", "started", "-r", &repo]).run().assert_ok();
    let desk = desk(&env, DESKTOP, &[]);
    let mut faults = Vec::new();
    let restore = format!("/restore/{point}");
    for path in [
        "/",
        "/machines",
        &format!("/machines/{VM}"),
        &format!("/machines/{name}"),
        &format!("/machines/{VM}/drill"),
        &format!("/points/{point}"),
        "/restore",
        &format!("/restore?machine={VM}"),
        &format!("{restore}/where"),
        &format!("{restore}/review?where=place"),
        &format!("{restore}/review?where=live&format=qcow2"),
        &format!("{restore}/review?where=copy&as=kvmb-test-copy&into=/nowhere"),
        "/jobs",
        &format!("/jobs/{job}"),
        "/schedule",
        "/retention",
        "/settings",
        "/doctor",
        "/nothing",
    ] {
        desk.open(path);
        check(&desk, path, &mut faults);
    }
    // Pages that only a form leads to: a change before it is written, and an error at its field.
    for (value, title) in [("3", "jobs=3"), ("900", "900")] {
        desk.open("/settings");
        desk.browser.one("#f-jobs").fill(value);
        desk.browser.one("main form button[type=submit]").click();
        desk.browser.wait_for(title);
        check(&desk, &format!("/settings/review of {value}"), &mut faults);
    }
    let server = json!({ "selected_vms": selected, "backup_host": "127.0.0.1", "backup_path": "/srv/backups" });
    env.configure(&server);
    desk.open("/server");
    desk.browser.wait_for("Test connection");
    check(&desk, "/server", &mut faults);
    // The page without a session.
    desk.open("/");
    desk.browser.set_look(DESKTOP);
    desk.browser.click("End session");
    desk.browser.wait_for("Open the console with its link");
    check(&desk, "/login", &mut faults);
    // The check itself detects violations.
    let mut planted = Vec::new();
    desk.browser.script(PLANT);
    check(&desk, "planted", &mut planted);
    for fault in ["image-alt", "color-contrast", "pixels too wide"] {
        assert!(planted.iter().any(|found| found.contains(fault)), "{fault} is not found: {planted:?}");
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
    desk.end();
}
