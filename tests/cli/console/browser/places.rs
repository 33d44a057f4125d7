//! The wizard and the log in a browser, with and without scripts, and names that are wider than a phone.

use super::desk;
use crate::support::browser::{DESKTOP, Look, PHONE};
use crate::support::{Disk, Env};

const MIB: u64 = 1 << 20;

/// A name that would break a page which does not escape it, and that is wider than a phone.
const VM: &str = "kvmb-test-<img src=x onerror=alert(1)>-a-name-that-is-far-wider-than-a-telephone-ever-was";

/// Returns pages with the machine's name, and the log.
fn pages(id: &str, job: &str) -> Vec<String> {
    let machine = VM.replace('<', "%3C").replace('>', "%3E").replace(' ', "%20").replace('=', "%3D");
    vec![
        format!("/machines/{machine}"),
        format!("/points/{id}"),
        format!("/restore/{id}/review?where=disks"),
        format!("/jobs/{job}"),
        "/log".into(),
    ]
}

#[test]
fn pages_with_long_names_are_accessible_and_fit_a_phone() {
    let env = Env::new("looks");
    let machine = env.machine(VM).disk(Disk::qcow2(2 * MIB)).define();
    machine.write("vda", 0, MIB, 0x11);
    env.kvmb(["init", "-r", &env.repo()]).run().assert_ok();
    let point = env.kvmb(["backup", "-r", &env.repo(), "--", VM]).run().assert_ok().record_of("point");
    let job = env.kvmb(["jobs"]).run().assert_ok().record_of("job");
    let (id, job) = (point["point"].as_str().unwrap(), job["job"].as_str().unwrap());
    let desk = desk(&env, DESKTOP, &[]);
    let mut faults = Vec::new();
    for look in [DESKTOP, Look { is_dark: true, ..DESKTOP }, PHONE] {
        desk.browser.set_look(look);
        for page in pages(id, job) {
            desk.open(&page);
            assert_eq!(desk.browser.alert(), None, "{page}");
            assert!(desk.browser.overflow() <= 0, "{page} is {} pixels too wide", desk.browser.overflow());
            let found = desk.browser.accessibility_faults(look.is_dark);
            faults.extend(found.into_iter().map(|fault| format!("{page} {:?}: {fault}", look.size)));
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
    desk.end();
}

#[test]
fn wizard_and_log_work_without_scripts_on_a_phone() {
    let env = Env::new("no scripts");
    let machine = env.machine("kvmb-test-vm1").disk(Disk::qcow2(2 * MIB)).define();
    machine.write("vda", 0, MIB, 0x11);
    env.kvmb(["init", "-r", &env.repo()]).run().assert_ok();
    env.kvmb(["backup", "kvmb-test-vm1", "-r", &env.repo()]).run().assert_ok();
    let then = machine.models();
    machine.write("vda", 0, 2 * MIB, 0x55);
    let desk = desk(&env, Look { has_scripts: false, language: "fr", ..PHONE }, &[]);
    let browser = &desk.browser;
    desk.open("/restore");
    browser.click("Montrer ses points");
    browser.one("table.cal td a").click();
    browser.wait_for("Tous les jours");
    browser.one("table.stack th a").click();
    browser.one("input[name=where][value=place]").click();
    browser.click("Voir ce qui sera écrit");
    browser.wait_for("sera perdu");
    browser.one("#confirm").fill("kvmb-test-vm1");
    browser.click("Écraser kvmb-test-vm1");
    desk.wait_for_job_in("Code de retour", "terminé");
    then["vda"].assert_image_equals(machine.image("vda"), machine.format("vda"));

    desk.open("/log");
    browser.one("#q").fill("restore begins");
    browser.click("Appliquer");
    browser.wait_for("restore begins");
    assert!(!browser.text().contains("backup begins"), "{}", browser.text());
    desk.end();
}

#[test]
fn new_log_lines_appear_without_reloading() {
    let env = Env::new("live log");
    let desk = desk(&env, DESKTOP, &[]);
    desk.open("/log?q=release+begins");
    desk.browser.wait_for("No line matches.");
    desk.browser.script("window.same = true;");
    env.kvmb(["release", "kvmb-test-none"]).run().assert_ok();
    desk.browser.wait_for("release begins");
    assert_eq!(desk.browser.script("return window.same;"), true, "the page was not loaded again");
    desk.end();
}
