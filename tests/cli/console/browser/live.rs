//! Pages that update themselves, and jobs that do not depend on the console: cancelling, two tabs, a killed console.

use super::super::client::LIMIT;
use super::{Desk, WATCH, desk, seen};
use crate::support::browser::DESKTOP;
use crate::support::{Disk, Env, Machine, wait_until};
use rustix::process::Signal;

const MIB: u64 = 1 << 20;
const VM: &str = "kvmb-test-vm1";

fn prepared(env: &Env) -> Machine<'_> {
    let machine = env.machine(VM).disk(Disk::qcow2(16 * MIB)).define();
    machine.write("vda", 0, 12 * MIB, 0x11);
    env.configure(&serde_json::json!({ "selected_vms": { VM: true } }));
    env.kvmb(["init", "-r", &env.repo()]).run().assert_ok();
    machine
}

/// Starts a slow backup, and waits until its page shows it.
fn slow_backup(desk: &Desk, limit: &str) -> String {
    desk.open("/machines");
    desk.browser.one(&format!("input[name=m][value='{VM}']")).click();
    desk.browser.one("[name=limit_read]").fill(limit);
    desk.browser.click("Back up now");
    desk.browser.wait_for(&format!("{VM}/vda"));
    desk.browser.url()
}

#[test]
fn cancelled_job_is_shown_as_interrupted_in_both_tabs() {
    let env = Env::new("tabs");
    let _machine = prepared(&env);
    let desk = desk(&env, DESKTOP, &[]);
    let browser = &desk.browser;
    browser.wait_for("1 of 1 machines has no restore point");
    let job = slow_backup(&desk, "128K");
    browser.script(WATCH);
    let first = browser.tabs().remove(0);
    let second = browser.new_tab();
    desk.open("/");
    // The overview shows the running job with a link to it.
    browser.wait_for(&format!("kvmb backup --limit-read=128K {VM}"));
    browser.one("#live-note a").click();
    browser.wait_for("Cancel does what Ctrl-C does");
    assert_eq!(browser.url(), job);
    browser.click("Cancel");
    browser.wait_for("Exit code");
    assert_eq!(browser.one("#live-job [role=status]").text(), "interrupted");
    // The other tab was in the background meanwhile; it shows the end as soon as it is in front.
    browser.go_to_tab(&first);
    browser.wait_for("Exit code");
    assert_eq!(browser.one("#live-job [role=status]").text(), "interrupted");
    assert!(seen(browser).is_sorted());
    browser.go_to_tab(&second);
    browser.click("Jobs");
    browser.wait_for("No job is running");
    desk.end();
    env.assert_nothing_left();
}

#[test]
fn backup_continues_after_the_console_is_killed() {
    let env = Env::new("killed");
    let machine = prepared(&env);
    let desk = desk(&env, DESKTOP, &[]);
    let job = slow_backup(&desk, "2M");
    let id = job.rsplit('/').next().unwrap().to_owned();
    desk.console.running.signal(Signal::KILL);
    let Desk { console, browser } = desk;
    console.running.wait().assert_code(137);
    let state = || env.kvmb(["jobs", "show", &id, "--json"]).run().assert_ok().records_of("job")[0]["status"].clone();
    assert_eq!(state(), "running");
    // The open page remains unchanged, without errors.
    browser.wait_for(VM);
    browser.end(&format!("http://127.0.0.1:{}/", console.port));
    wait_until("the backup ends", LIMIT, || state() != "running");
    assert_eq!(state(), "done");
    let then = machine.models();
    // Another console knows the job and its point.
    let desk = super::desk(&env, DESKTOP, &[]);
    desk.browser.wait_for("Every machine has a restore point");
    desk.open(&format!("/jobs/{id}"));
    desk.wait_for_job("done");
    desk.end();
    let folder = env.path("restored");
    std::fs::create_dir(&folder).unwrap();
    let latest = format!("{VM}@latest");
    let restore = ["restore", &latest, "--no-define", "--format", "raw", "-r", &env.repo(), "--into"];
    env.kvmb(restore).arg(&folder).run().assert_ok();
    let image = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let image = image.into_iter().find(|path| path.extension().is_some_and(|end| end == "raw")).unwrap();
    then["vda"].assert_image_equals(&image, "raw");
    env.assert_nothing_left();
}

#[test]
fn damage_is_shown_on_the_overview() {
    let env = Env::new("damaged");
    let _machine = prepared(&env);
    env.kvmb(["backup", VM, "-r", &env.repo()]).run().assert_ok();
    let desk = desk(&env, DESKTOP, &[]);
    let browser = &desk.browser;
    browser.wait_for("Every machine has a restore point");
    // The server's disk is damaged: every pack has one wrong byte.
    for folder in std::fs::read_dir(env.path("repo/data")).unwrap().map(|entry| entry.unwrap().path()) {
        for pack in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            let mut bytes = std::fs::read(&pack).unwrap();
            bytes[40] ^= 1;
            crate::support::set_mode(&pack, 0o600);
            std::fs::write(&pack, bytes).unwrap();
        }
    }
    desk.open(&format!("/machines/{VM}"));
    browser.one("main table a").click();
    browser.one("form[action='/points/verify'] button").click();
    desk.wait_for_job("damage");
    browser.click("Overview");
    browser.wait_for("1 of 1 needs attention");
    assert_eq!(browser.one(".problems .st").text(), "damaged");
    assert_eq!(browser.one("#machines .st").text(), "damaged");
    desk.end();
}
