//! The file browser of a point: with the mouse, without scripts on a phone, and with names that contain HTML.

use std::fs;
use std::path::Path;

use super::super::client::{LIMIT, encoded};
use super::super::files::{HOSTILE, backed_up};
use super::{Desk, desk};
use crate::support::backups::new_folder;
use crate::support::browser::{DESKTOP, Look, PHONE};
use crate::support::{Env, wait_until};
use serde_json::json;

/// Makes the browser save downloads in this folder.
fn save_into(desk: &Desk, folder: &Path) {
    let wanted = json!({ "behavior": "allow", "downloadPath": folder });
    desk.browser.devtools("Page.setDownloadBehavior", &wanted);
}

#[test]
fn files_are_browsed_downloaded_and_copied_with_a_mouse() {
    let env = Env::new("mouse files");
    let id = backed_up(&env);
    let desk = desk(&env, DESKTOP, &[]);
    let (browser, saved) = (&desk.browser, new_folder(&env, "saved"));
    save_into(&desk, &saved);
    desk.open(&format!("/restore/{id}/where"));
    browser.one("input[name=where][value=single]").click();
    browser.click("Review what will be written");
    browser.wait_for("File systems");
    for folder in ["etc", "conf.d"] {
        browser.click(folder);
    }
    browser.wait_for("2 in /etc/conf.d");
    browser.one("button[name=file][value='%2Fetc%2Fconf.d%2Fa.conf']").click();
    wait_until("the file is saved", LIMIT, || fs::read(saved.join("a.conf")).is_ok_and(|bytes| bytes == b"a=1\n"));
    // The page remains open. The ticked files are downloaded as an archive, and copied into a folder of this host.
    browser.one("input[name=f][value='%2Fetc%2Fconf.d%2Fa.conf']").click();
    browser.click("Download as .tar");
    let archive = saved.join("kvmb-test-vm1-a.conf.tar");
    wait_until("the archive is saved", LIMIT, || archive.exists());
    let list = env.program("tar").arg("-tf").arg(&archive).run().assert_ok();
    assert_eq!(list.stdout(), "etc/conf.d/a.conf\n");
    let to = new_folder(&env, "to");
    browser.one("#f-to").fill(&to.display().to_string());
    browser.click("Copy into this folder");
    desk.wait_for_job("done");
    assert_eq!(fs::read(to.join("a.conf")).unwrap(), b"a=1\n");
    desk.end();
}

#[test]
fn french_phone_without_scripts_finds_and_downloads_a_file() {
    let env = Env::new("phone files");
    let id = backed_up(&env);
    let desk = desk(&env, Look { has_scripts: false, language: "fr", ..PHONE }, &[]);
    let (browser, saved) = (&desk.browser, new_folder(&env, "saved"));
    save_into(&desk, &saved);
    desk.open(&format!("/points/{id}"));
    browser.click("Parcourir les fichiers");
    browser.one("#find").fill("fstab");
    browser.click("Montrer");
    browser.wait_for("1 trouvés dans /");
    assert_eq!(browser.overflow(), 0);
    browser.one("button[name=file]").click();
    wait_until("the file is saved", LIMIT, || fs::read(saved.join("fstab")).is_ok_and(|bytes| !bytes.is_empty()));
    desk.end();
}

#[test]
fn hostile_file_names_are_text_accessible_and_fit_a_phone() {
    let env = Env::new("hostile files");
    let id = backed_up(&env);
    let desk = desk(&env, DESKTOP, &[]);
    let browser = &desk.browser;
    let mut faults = Vec::new();
    for look in [DESKTOP, Look { is_dark: true, ..DESKTOP }, PHONE] {
        browser.set_look(look);
        for query in ["part=vda&path=/hostile", "path=/hostile/%3Cb%3Efolder", "path=/hostile&find=t"] {
            desk.open(&format!("/points/{id}/files?{query}"));
            assert_eq!(browser.alert(), None, "{query}");
            assert!(!browser.has("img, script:not([src='/console.js']), [onerror], main i, main bdi b"), "{query}");
            assert!(browser.overflow() <= 0, "{query} is {} pixels too wide", browser.overflow());
            let found = browser.accessibility_faults(look.is_dark);
            faults.extend(found.into_iter().map(|fault| format!("{query} {:?}: {fault}", look.size)));
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
    // The name of a downloaded file cannot contain a path or a header.
    let saved = new_folder(&env, "saved");
    save_into(&desk, &saved);
    desk.open(&format!("/points/{id}/files?part=vda&path=/hostile"));
    let path = encoded(&encoded(&format!("/hostile/{}", HOSTILE[2]))).replace("%25", "%");
    browser.one(&format!("button[name=file][value='{path}']")).click();
    wait_until("the file is saved", LIMIT, || fs::read(saved.join("--to=x")).is_ok_and(|bytes| bytes == b"text\n"));
    desk.end();
}
