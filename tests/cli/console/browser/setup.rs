//! The initial set-up as a person does it: the backup server, with a real `sshd`, the schedule and the retention rules.

use std::fs;

use super::super::client::{LIMIT, start_call};
use super::{desk, desk_of};
use crate::support::browser::DESKTOP;
use crate::support::host::Host;
use crate::support::sshd::{SSH_PASSWORD, USER};
use crate::support::{Disk, Env, wait_until};

const MIB: u64 = 1 << 20;
const VM: &str = "kvmb-test-vm1";

#[test]
fn new_backup_server_is_set_up_and_gets_a_copy_of_the_next_point() {
    let env = Env::new("browse server");
    let sshd = env.sshd();
    let machine = env.machine(VM).disk(Disk::qcow2(4 * MIB)).define();
    machine.write("vda", 0, MIB, 0x11);
    env.kvmb(["init", "-r", &env.repo()]).run().assert_ok();
    let desk = desk(&env, DESKTOP, &[]);
    let browser = &desk.browser;
    let field = |key: &str| browser.one(&format!("main input[name='k.{key}']:not([type=hidden])"));

    browser.click("Backup server");
    let folder = sshd.home().join("srv").display().to_string();
    let port = sshd.port().to_string();
    for (key, value) in
        [("backup_host", "127.0.0.1"), ("backup_user", USER), ("backup_path", &folder), ("ssh.port", &port)]
    {
        field(key).fill(value);
    }
    browser.click("Test connection");
    // The key is compared before anything is done on the server. First a wrong one is typed.
    let fingerprint = sshd.fingerprint("ed25519");
    browser.wait_for(&fingerprint);
    browser.one("#fingerprint").fill("SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
    browser.click("Compare and continue");
    browser.wait_for("not the fingerprint");
    assert!(!sshd.known_hosts().exists());
    browser.one("#fingerprint").fill(&fingerprint);
    browser.click("Compare and continue");
    browser.wait_for("A backup to this server would fail.");
    // The password is entered once; after that, a key logs in.
    browser.one("#ssh_password").fill("swordfihs");
    browser.click("Set up the key");
    browser.wait_for("refused the login");
    assert_eq!(browser.one("#ssh_password").property("value"), "");
    browser.one("#ssh_password").fill(SSH_PASSWORD);
    browser.click("Set up the key");
    browser.wait_for("This host logs in without a password.");
    assert!(!browser.text().contains(SSH_PASSWORD) && !browser.url().contains(SSH_PASSWORD));
    browser.click("Test connection");
    browser.wait_for("The server works, with a warning.");
    browser.click("Create the repository");
    browser.wait_for("the repository was created");
    browser.click("Backup server");
    browser.click("Test connection");
    browser.wait_for("A backup to this server would work.");
    browser.click("Save");
    browser.click("Write the file");
    browser.wait_for("Done.");

    desk.open(&format!("/machines/{VM}"));
    browser.click("Back up now");
    desk.wait_for_job("done");
    let url = format!("sftp://{USER}@127.0.0.1:{port}/{folder}");
    let copied = env.kvmb(["points", "-r", &url]).run().assert_ok();
    assert_eq!(copied.records_of("point").len(), 1, "{copied}");
    desk.end();
    env.assert_nothing_left();
}

#[test]
fn schedule_and_retention_pages_preview_their_effect() {
    let env = Env::new("browse schedule");
    let machine = env.machine(VM).disk(Disk::qcow2(MIB)).define();
    machine.write("vda", 0, MIB / 2, 0x11);
    env.kvmb(["init", "-r", &env.repo()]).run().assert_ok();
    for _ in 0..2 {
        env.kvmb(["backup", VM, "-r", &env.repo()]).run().assert_ok();
    }
    let desk = desk(&env, DESKTOP, &[]);
    let browser = &desk.browser;
    browser.click("Schedule");
    browser.click("Every hour");
    browser.wait_for("Every hour");
    browser.click("as in crontab(5)");
    browser.one("#minute").fill("60");
    browser.click("Show words and next runs");
    browser.wait_for("it goes from 0 to 59");
    assert_eq!(browser.one("#minute").property("value"), "60");
    browser.one("#minute").fill("30");
    browser.one("#hour").fill("2");
    browser.click("Show words and next runs");
    browser.wait_for("at 02:30");
    assert_eq!(browser.all("main li time").len(), 10);

    browser.click("Retention");
    browser.one("main input[name$='keep_last']:not([type=hidden])").fill("1");
    browser.click("Update the preview");
    browser.wait_for("1 of 2 points are kept, 1 are removed");
    desk.end();
    env.assert_nothing_left();
}

#[test]
fn schedule_is_installed_changed_and_removed() {
    let host = Host::new("browse install");
    let env = &host.env;
    env.machine(VM).disk(Disk::qcow2(MIB)).define();
    let console = start_call(host.program(&["kvmb", "ui", "--no-open", "--listen", "127.0.0.1:0"]));
    let desk = desk_of(console, env, DESKTOP);
    let browser = &desk.browser;
    browser.click("Schedule");
    browser.wait_for("no schedule installed");
    browser.click("as in crontab(5)");
    for (field, value) in [("minute", "30"), ("hour", "2"), ("weekday", "1-5")] {
        browser.one(&format!("#{field}")).fill(value);
    }
    browser.click("Show words and next runs");
    browser.wait_for("Monday to Friday at 02:30");
    // Select the user's crontab instead of systemd, which is the default.
    browser.one("main input[type=radio][name=place][value='']").click();
    browser.one("main input[name=machines][value=all]").click();
    browser.click("Install");
    wait_until("it is installed", LIMIT, || host.crontab().contains("30 2 * * 1-5 "));

    // The same place with another time: the new line replaces the old one.
    desk.open("/schedule?again=1");
    browser.wait_for("kvmb schedule remove");
    browser.click("Every hour");
    browser.click("Show words and next runs");
    browser.wait_for("Every hour");
    // Select the user's crontab instead of systemd, which is the default.
    browser.one("main input[type=radio][name=place][value='']").click();
    browser.one("main input[name=machines][value=all]").click();
    browser.click("Install");
    wait_until("it is replaced", LIMIT, || !host.crontab().contains("1-5"));
    assert_eq!(host.crontab().matches("--all").count(), 1, "{}", host.crontab());
    desk.open("/schedule?again=1");
    browser.click("Remove the schedule");
    wait_until("it is removed", LIMIT, || host.crontab().is_empty());
    assert_eq!(fs::read_dir(env.path("cron.d")).unwrap().count(), 0);
    desk.end();
}
