//! Users without scripts, English, a mouse or a wide screen.

use super::desk;
use crate::support::browser::{DESKTOP, Look, PHONE, key};
use crate::support::{Disk, Env};

const MIB: u64 = 1 << 20;
const VM: &str = "kvmb-test-vm1";

fn prepared(env: &Env) {
    let machine = env.machine(VM).disk(Disk::qcow2(8 * MIB)).define();
    machine.write("vda", 0, 4 * MIB, 0x11);
    env.configure(&serde_json::json!({ "selected_vms": { VM: true } }));
    env.kvmb(["init", "-r", &env.repo()]).run().assert_ok();
}

#[test]
fn backup_and_filters_work_without_scripts() {
    let env = Env::new("plain");
    prepared(&env);
    let desk = desk(&env, Look { has_scripts: false, ..DESKTOP }, &[]);
    let browser = &desk.browser;
    browser.click("Machines");
    browser.one(&format!("input[name=m][value='{VM}']")).click();
    browser.click("Back up now");
    // The page reloads itself until the job has ended.
    desk.wait_for_job("done");
    assert!(!browser.has(".cmd button"), "no script has run");
    browser.click("Overview");
    browser.one("#q").fill("nothing like this");
    browser.click("Apply");
    browser.wait_for("No machine matches.");
    browser.one("#q").fill("VM1");
    browser.click("Apply");
    browser.wait_for("1 of 1 machines");
    browser.click("Newest point");
    assert!(browser.url().ends_with("/?q=VM1&sort=newest"), "{}", browser.url());
    browser.click("Refresh");
    assert!(browser.url().ends_with("/?q=VM1&sort=newest&again=1"), "{}", browser.url());
    desk.end();
}

#[test]
fn french_pages_are_french_and_language_choice_persists() {
    let env = Env::new("francais");
    prepared(&env);
    env.kvmb(["backup", VM, "-r", &env.repo()]).run().assert_ok();
    let desk = desk(&env, Look { language: "fr", ..DESKTOP }, &[]);
    let browser = &desk.browser;
    browser.wait_for("Chaque machine a un point de restauration.");
    browser.wait_for("1 machine sur 1");
    for (link, title) in [
        ("Machines", "Machines"),
        ("Restaurer", "Restaurer une machine"),
        ("Tâches", "Tâches"),
        ("Planification", "Planification"),
        ("Rétention", "Rétention"),
        ("Diagnostic", "Diagnostic"),
    ] {
        browser.click(link);
        browser.wait_for(title);
        assert_eq!(browser.one("html").property("lang"), "fr");
        // Numbers and units follow the rules of the language.
        let text = browser.text();
        assert!(!text.contains("KiB") && !text.contains("MiB"), "{text}");
    }
    browser.click("English");
    browser.wait_for("End session");
    browser.reload();
    assert_eq!(browser.one("html").property("lang"), "en");
    desk.end();
}

#[test]
fn keyboard_reaches_every_control_with_visible_focus() {
    let env = Env::new("keyboard");
    prepared(&env);
    env.kvmb(["backup", VM, "-r", &env.repo()]).run().assert_ok();
    let desk = desk(&env, DESKTOP, &[]);
    let browser = &desk.browser;
    browser.wait_for("Every machine has a restore point");
    let focused = || browser.script("return document.activeElement.textContent.trim();").as_str().unwrap().to_owned();
    browser.press(&[key::TAB]);
    assert_eq!(focused(), "Skip to content");
    browser.press(&[key::ENTER, key::TAB]);
    assert!(browser.script("return document.querySelector('main').contains(document.activeElement);") == true);
    // Every focusable element is visible, and none traps the focus.
    desk.open("/machines");
    let (mut stops, mut has_chosen) = (Vec::new(), false);
    loop {
        browser.press(&[key::TAB]);
        let stop = browser.script(
            "const element = document.activeElement;
             if (element === document.body) return null;
             const style = getComputedStyle(element);
             const box = element.getBoundingClientRect();
             const name = element.name + ' ' + (element.value ?? '') + ' ' + element.textContent.trim().slice(0, 40);
             return { name, isSeen: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2
                                    && box.width > 0 && box.height > 0 };",
        );
        let Some(name) = stop["name"].as_str() else { break };
        assert_eq!(stop["isSeen"], true, "the focus is not seen on {name:?} after {stops:?}");
        assert!(!stops.contains(&name.to_owned()) || stops.len() < 60, "the focus never ends: {stops:?}");
        if name.starts_with(&format!("m {VM}")) {
            browser.press(&[key::SPACE]);
            has_chosen = true;
        }
        stops.push(name.to_owned());
        if has_chosen && name.contains("Back up now") {
            browser.press(&[key::ENTER]);
            break;
        }
    }
    assert!(stops.len() > 15, "{stops:?}");
    desk.wait_for_job("done");
    desk.end();
}

#[test]
fn phone_menu_opens_and_pages_fit_narrow_screens() {
    let env = Env::new("phone");
    prepared(&env);
    env.kvmb(["backup", VM, "-r", &env.repo()]).run().assert_ok();
    let desk = desk(&env, PHONE, &[]);
    let browser = &desk.browser;
    browser.wait_for("Every machine has a restore point");
    assert!(!browser.one("#nav a[href='/jobs']").is_shown());
    browser.click("Menu");
    assert!(browser.one("#nav a[href='/jobs']").is_shown());
    browser.press(&[key::ESCAPE]);
    assert!(!browser.one("#nav a[href='/jobs']").is_shown());
    browser.click("Menu");
    browser.click("Jobs");
    browser.wait_for("Running and past jobs");
    assert_eq!(browser.overflow(), 0);
    // At 400 % zoom, a desktop has 320 pixels left.
    for path in ["/", "/machines", "/settings", "/schedule", "/retention"] {
        browser.set_look(Look { size: (320, 256), ..DESKTOP });
        desk.open(path);
        assert_eq!(browser.overflow(), 0, "{path}");
    }
    desk.end();
}
