//! Screenshots of every page, with the data of real backups on fourteen nights: `make screenshots`. They are written to
//! `target/screenshots`. No page may be wider than its screen.

use std::fs;
use std::path::PathBuf;

use super::super::client::LIMIT;
use super::{Desk, desk};
use crate::support::browser::{DESKTOP, Look, PHONE};
use crate::support::{Disk, Env, Machine, Output, faketime, parts, wait_until};
use serde_json::json;

const MIB: u64 = 1 << 20;

/// The first backup was made this many nights ago.
const NIGHTS: u64 = 13;

fn folder() -> PathBuf {
    let folder = parts::cache_dir().parent().expect("the target folder").join("screenshots");
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// Returns bytes that hardly compress: every third byte is zero.
fn noise(seed: u64, length: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = |at: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        if at.is_multiple_of(3) { 0 } else { (state >> 32) as u8 }
    };
    (0..length).map(&mut next).collect()
}

/// Backs up these machines this many days ago.
fn back_up(env: &Env, days: u64, names: &[&str]) -> Output {
    let call = env.kvmb(["backup", "-r", &env.repo()]).args(names);
    let output = call.env("LD_PRELOAD", faketime::library()).env("FAKETIME", format!("-{days}d")).run();
    faketime::clear();
    output
}

/// Creates four machines and their history: on one night an image was missing, and one machine was skipped recently.
fn past<'e>(env: &'e Env) -> Vec<Machine<'e>> {
    let machine = |name: &str, sizes: &[u64]| {
        let disks = sizes.iter().map(|mib| Disk::qcow2(mib * MIB));
        disks.fold(env.machine(name), |machine, disk| machine.disk(disk)).define()
    };
    let machines =
        vec![machine("db1", &[16, 8]), machine("gitlab", &[24]), machine("mail", &[12]), machine("web1", &[8])];
    env.configure(&json!({
        "selected_vms": { "db*": true, "gitlab": true, "mail": true, "web*": true },
        "retention": { "local": { "keep_daily": 14, "keep_weekly": 8 } },
        "backup_freq": "30 2 * * *",
    }));
    env.kvmb(["init", "-r", &env.repo()]).run().assert_ok();
    for night in (0..=NIGHTS).rev() {
        for (at, machine) in machines.iter().enumerate() {
            // Some nights change more than others, and each changes different data.
            let (at, amount) = (at as u64, 1 + (night * 5 + at as u64 * 3) % 7);
            machine.write_bytes("vda", (night + at) % 4 * MIB, &noise(night * 4 + at, amount * MIB / 2));
        }
        let names = if night < 2 { &["gitlab", "mail", "web1"][..] } else { &["db1", "gitlab", "mail", "web1"] };
        let image = machines[2].image("vda").to_owned();
        let away = image.with_extension("away");
        if night == 4 {
            fs::rename(&image, &away).unwrap();
            back_up(env, night, names).assert_code(3);
            fs::rename(&away, &image).unwrap();
        } else {
            back_up(env, night, names).assert_ok();
        }
    }
    machines
}

/// Opens a page and takes its screenshots; fails if it is wider than its screen.
fn picture(desk: &Desk, name: &str, path: &str) {
    desk.open(path);
    for (end, look) in [("1280", DESKTOP), ("1280-dark", Look { is_dark: true, ..DESKTOP }), ("390", PHONE)] {
        desk.browser.set_look(look);
        let picture = desk.browser.screenshot();
        assert!(picture.starts_with(b"\x89PNG"), "{name}");
        fs::write(folder().join(format!("{name}-{end}.png")), picture).unwrap();
        assert_eq!(desk.browser.overflow(), 0, "{path} is too wide for {:?}", look.size);
    }
}

/// Takes a screenshot for the documentation.
fn small(desk: &Desk, name: &str, look: Look) {
    desk.browser.set_look(look);
    let picture = desk.browser.small_screenshot(if look.size == PHONE.size { 1.0 } else { 0.75 });
    assert!(picture.len() <= 120 << 10, "{name}: {} bytes", picture.len());
    fs::write(folder().join(format!("small-{name}.png")), picture).unwrap();
}

#[test]
fn screenshots_of_every_page_fit_the_screen() {
    let env = Env::new("pictures");
    let machines = past(&env);
    env.kvmb(["verify", "web1@latest", "gitlab@latest", "mail@latest", "-r", &env.repo()]).run().assert_ok();
    env.kvmb(["prune", "-r", &env.repo()]).run().assert_ok();
    env.kvmb(["drill", "gitlab", "-r", &env.repo()]).run().assert_code(1);
    env.kvmb(["drill", "mail", "--until", "started", "-r", &env.repo()]).run().assert_ok();
    let points = env.kvmb(["points", "gitlab", "-r", &env.repo(), "--json"]).run().assert_ok().records_of("point");
    let point = points.last().unwrap()["point"].as_str().unwrap().to_owned();
    let desk = desk(&env, DESKTOP, &[]);
    let restore = format!("/restore/{point}");
    let review = format!("{restore}/review?where=copy&as=gitlab-copy&into={}", env.path("disks").display());
    for (name, path) in [
        ("overview", "/"),
        ("jobs", "/jobs"),
        ("machines", "/machines"),
        ("machine", "/machines/gitlab"),
        ("drill", "/machines/gitlab/drill"),
        ("point", &format!("/points/{point}")),
        ("restore", "/restore?machine=gitlab"),
        ("restore-where", &format!("{restore}/where")),
        ("restore-review", &review),
        ("restore-live", &format!("{restore}/review?where=live&format=qcow2")),
        ("server", "/server"),
        ("schedule", "/schedule"),
        ("retention", "/retention"),
        ("settings", "/settings"),
        ("doctor", "/doctor"),
    ] {
        picture(&desk, name, path);
    }
    desk.open(&review);
    small(&desk, "restore", DESKTOP);
    // The strip and the plots show the history.
    desk.open("/");
    assert_eq!((desk.browser.all("#machines .strip").len(), desk.browser.all("figure.plot").len()), (4, 3));
    let mail = "//tr[th/a[.='mail']]//*[name()='svg'][@class='strip']";
    let label = desk.browser.script(&format!(
        "return document.evaluate(\"{mail}\", document, null, 9).singleNodeValue.getAttribute('aria-label');"
    ));
    assert_eq!(label, "14 nights: 13 stored, 0 with a warning, 1 failed");
    desk.browser.wait_for("overdue by");
    small(&desk, "overview", DESKTOP);
    small(&desk, "telephone", PHONE);
    desk.browser.set_look(DESKTOP);
    desk.browser.script("document.querySelector('.plots').parentElement.scrollIntoView();");
    small(&desk, "plots", Look { is_dark: true, ..DESKTOP });
    // A running job.
    machines[1].write("vda", 0, 20 * MIB, 0x77);
    let running = env.kvmb(["backup", "gitlab", "--full", "--limit-read", "256K", "-r", &env.repo()]).spawn();
    let job = || env.kvmb(["jobs", "--running", "--json"]).run().assert_ok().records();
    wait_until("the job reads", LIMIT, || job().first().is_some_and(|job| job["done_bytes"].as_u64() > Some(MIB)));
    let job = format!("/jobs/{}", job()[0]["job"].as_str().unwrap());
    picture(&desk, "job", &job);
    small(&desk, "job", DESKTOP);
    desk.end();
    running.interrupt();
    running.wait().assert_code(130);
}

#[test]
fn screenshot_of_the_file_browser_fits_the_screen() {
    let env = Env::new("pictures of files");
    let script = "export PATH=$PATH:/usr/sbin:/sbin; mkdir -p tree/etc tree/srv/data/minutes tree/srv/data/templates
        cd tree; printf 'PRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\\n' > etc/os-release; cd srv/data
        head -c 48213 /dev/zero > budget-2026.ods; head -c 1204882 /dev/zero > annual-report.pdf
        head -c 3311 /dev/zero > todo.md; head -c 8400123 /dev/zero > dump.sql.gz; ln -s annual-report.pdf latest.pdf
        find . -exec touch -h -d '2026-11-20 14:30:05 UTC' {} +; touch -d '2026-11-23 08:12:44 UTC' todo.md dump.sql.gz
        cd ../../..; mkfs.ext4 -q -L root -d tree image 64M";
    env.sh(script).run().assert_ok();
    env.machine("gitlab").disk(Disk::existing(&env.path("image"), "raw")).define();
    env.kvmb(["init", "-r", &env.repo()]).run().assert_ok();
    let stored = env.kvmb(["backup", "gitlab", "-r", &env.repo()]).run().assert_ok().record_of("point");
    let path = format!("/points/{}/files?path=/srv/data", stored["point"].as_str().unwrap());
    let desk = desk(&env, DESKTOP, &[]);
    picture(&desk, "files", &path);
    desk.browser.wait_for("annual-report.pdf");
    small(&desk, "files", DESKTOP);
    desk.end();
}
