//! A drill as a person sees it: started with the mouse, watched, and inspected. The guest's output is not interpreted
//! as HTML.

use super::{Desk, desk};
use crate::support::backups::{backup, init};
use crate::support::browser::{DESKTOP, Look, PHONE};
use crate::support::guest::{FAST_BOOT, copied_system};
use crate::support::{Disk, Env};

const VM: &str = "kvmb-test-vm1";

/// Fails unless the screen and the console of the last drill are shown.
fn assert_shown(desk: &Desk) {
    let browser = &desk.browser;
    let width = "return document.querySelector('.screen img').naturalWidth;";
    browser.one(".screen img");
    crate::support::wait_until("the screen is shown", super::LIMIT, || browser.script(width).as_u64() > Some(300));
    assert_eq!(browser.alert(), None);
    let console = browser.one("pre.tall").text();
    assert!(console.contains("<script>alert(1)</script>") && console.contains("Linux version"), "{console}");
    assert!(!browser.has("main script, main [onerror]"));
}

#[test]
fn drill_shows_the_guest_screen_and_console() {
    let env = Env::new("browser drill");
    // A kernel that writes its command line, which contains HTML, to the serial console.
    let words = "console=ttyS0 note=&lt;script&gt;alert(1)&lt;/script&gt; rdinit=/bin/busybox -- sleep 1000000";
    let machine = env
        .machine(VM)
        .memory_mib(256)
        .os_xml(&format!(
            "<kernel>{0}/vmlinuz</kernel><initrd>{0}/initramfs</initrd><cmdline>{FAST_BOOT} {words}</cmdline>",
            copied_system(&env).display()
        ))
        .devices_xml("<serial type='pty'><target port='0'/></serial>")
        .disk(Disk::qcow2(1 << 20))
        .define();
    init(&env);
    backup(&machine);
    let desk = desk(&env, DESKTOP, &[]);
    let browser = &desk.browser;
    desk.open(&format!("/machines/{VM}"));
    browser.one("main td a, main th a").click();
    browser.wait_for("Boots a copy of the machine from this point");
    browser.click("More options: memory, time, expectations");
    browser.one("#f-expect").fill("alert(1)");
    browser.click("Boot this point");
    desk.wait_for_job("done");
    browser.wait_for("the expected text appeared");
    assert_shown(&desk);
    // The overview links to the same page.
    desk.open("/");
    browser.wait_for("1 of 1 machines reached their goal");
    browser.one("#drills th a").click();
    browser.wait_for("Boot it again");
    assert_shown(&desk);
    let mut faults = Vec::new();
    for look in [DESKTOP, Look { is_dark: true, ..DESKTOP }, PHONE] {
        browser.set_look(look);
        faults.extend(browser.accessibility_faults(look.is_dark));
        assert!(browser.overflow() <= 0, "{} pixels too wide", browser.overflow());
    }
    assert!(faults.is_empty(), "{faults:#?}");
    desk.end();
    env.assert_nothing_left();
}
