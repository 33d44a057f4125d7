//! Drills in the console: of a point, of a machine and of the overview's sample, with their results and output.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use super::client::{Console, encoded, open};
use crate::support::backups::{backup, init, text};
use crate::support::{Disk, Env};

const MIB: u64 = 1 << 20;
const VM: &str = "kvmb-test-vm1";

/// Returns the file that the last drill of the machine has kept.
fn kept(env: &Env, field: &str) -> PathBuf {
    let status = env.kvmb(["status", "-r", &env.repo(), "--json"]).run();
    let checks = status.records_of("check");
    let machine = checks.iter().find(|check| check["check"] == "backup" && check["target"] == VM).expect("a machine");
    text(machine, field).into()
}

/// Returns the pages of the console's drill jobs, newest last.
fn jobs(env: &Env) -> Vec<String> {
    let jobs = env.kvmb(["jobs", "--json"]).run().assert_ok().records_of("job");
    let drills = jobs.iter().filter(|job| job["command"] == "drill" && job["origin"] == "console");
    drills.map(|job| format!("/jobs/{}", text(job, "job"))).collect()
}

fn assert_screenshot(console: &Console, path: &str) {
    let picture = console.get(path).assert_status(200);
    assert_eq!((picture.header("content-type"), picture.header("x-content-type-options")), ("image/png", "nosniff"));
    assert!(picture.body.starts_with("\u{fffd}PNG\r\n"), "{:?}", picture.body.get(..20));
}

#[test]
fn failed_drill_is_shown_with_its_screenshot_and_console_log() {
    let env = Env::new("console drill");
    let console_xml = "<serial type='pty'><target port='0'/></serial>";
    let machine = env.machine(VM).disk(Disk::qcow2(8 * MIB)).devices_xml(console_xml).define();
    init(&env);
    let id = text(&backup(&machine), "point").to_owned();
    let mut console = open(&env, &[]);
    let page = console
        .get("/")
        .assert_status(200)
        .assert_has("drill.check must pass it")
        .assert_has("0 of 1 machines reached their goal");
    page.assert_has("kvmb drill --all --sample=3");
    let address = format!("/machines/{VM}/drill");
    console.get(&address).assert_status(200).assert_has("has ever been booted");
    for piece in ["screenshot", "console"] {
        console.get(&format!("{address}/{piece}")).assert_status(404);
    }
    let line = format!("kvmb drill -r {} {id}", env.repo());
    console.get(&format!("/points/{id}")).assert_status(200).assert_has(&line);

    // A drill of the point, until QEMU has started it.
    let fields = [("p", id.as_str()), ("until", "started"), ("memory", "512M"), ("timeout", "5m")];
    let job = console.run_job("/drill", &fields, "started after").assert_has("st ok");
    job.assert_has("drill --until=started --memory=512M --timeout=5m").assert_has("Do it again");
    // A drill of the machine, as far as it gets: there is no boot loader.
    let job = console.run_job("/drill", &[("m", VM)], "no disk has a boot loader");
    let job = job.assert_has("st crit").assert_has("Recovery time");
    let [earlier, of_job] = <[String; 2]>::try_from(jobs(&env)).expect("two drills");
    assert_screenshot(&console, &format!("{of_job}/drills/0/screenshot"));
    // The files of the earlier drill have been replaced by those of the later one.
    console.get(&earlier).assert_status(200).assert_has("There is no picture of the screen.");
    console.get(&format!("{earlier}/drills/0/screenshot")).assert_status(404);
    console.get(&format!("{of_job}/drills/1/screenshot")).assert_status(404);
    assert!(job.body.contains(&format!("{of_job}/drills/0/screenshot\"")), "{}", job.body);

    // Another drill may fix the problem; a backup does not.
    let page = console.get("/?again=1").assert_status(200).assert_has(&address).assert_has("no disk has a boot loader");
    page.assert_has("Boot the point again").assert_has("Look at its screen").assert_lacks("Back up now");
    let page = console.get(&format!("/machines/{VM}?again=1")).assert_status(200);
    page.assert_has("Last drill: ").assert_has(&format!("kvmb drill -- {VM}"));
    assert_screenshot(&console, &format!("{address}/screenshot"));
    // The guest's output is treated as text, and downloaded as a file.
    let log = kept(&env, "drill_log");
    fs::write(&log, b"\x1b[31m<script>alert(1)</script>\x07\xff\n").unwrap();
    let picture = kept(&env, "drill_screenshot");
    let drilled = fs::metadata(&picture).unwrap().modified().unwrap();
    fs::File::options().write(true).open(&log).unwrap().set_modified(drilled).unwrap();
    let page = console.get(&address).assert_status(200).assert_lacks("<script>alert").assert_lacks("\u{1b}");
    page.assert_has("\n&lt;script&gt;alert(1)&lt;/script&gt;".trim_start()).assert_has("role=\"region\"");
    let saved = console.get(&format!("{address}/console")).assert_status(200).assert_has("<script>alert(1)</script>");
    assert_eq!(saved.header("content-type"), "application/octet-stream");
    assert!(saved.header("content-disposition").starts_with("attachment"), "{saved:?}");
    console.language = "fr";
    let page = console.get(&address).assert_status(200).assert_has("aucun disque n’a de chargeur d’amorçage");
    page.assert_has("Temps de reprise").assert_has("Console série").assert_lacks("Serial console");
    console.language = "en";

    // No other file is served, neither one named by the address nor one that was replaced later.
    for path in [
        "/machines/..%2f..%2fetc%2fpasswd/drill/console",
        "/machines/none/drill/screenshot",
        "/jobs/ffffffff/drills/0/console",
        "/jobs/..%2f..%2f/drills/0/console",
        "/machines/none/drill",
    ] {
        console.get(path).assert_status(404);
    }
    console.get(&format!("{of_job}/drills/..%2f..%2fetc%2fpasswd/console")).assert_status(400);
    let secret = env.path("secret");
    fs::write(&secret, "\u{89}PNG\r\n\u{1a}\nsecret").unwrap();
    fs::remove_file(&log).unwrap();
    symlink(&secret, &log).unwrap();
    console.get(&format!("{address}/console")).assert_status(404);
    console.get(&address).assert_status(200).assert_lacks("secret");
    console.running.interrupt();
    console.running.wait().assert_ok();
    env.assert_nothing_left();
}

#[test]
fn drill_requests_need_a_valid_target_session_and_write_access() {
    let env = Env::new("console drills");
    let machine = env.machine(VM).disk(Disk::qcow2(MIB)).define();
    init(&env);
    backup(&machine);
    let console = open(&env, &["--read-only"]);
    for path in ["/".to_owned(), format!("/machines/{VM}"), format!("/machines/{VM}/drill")] {
        let page = console.get(&path).assert_status(200).assert_lacks("action=\"/drill\"");
        page.assert_has("kvmb drill ");
    }
    console.post("/drill", &[("m", VM)]).assert_status(403);
    let token = console.get("/jobs").field("csrf");
    console.running.interrupt();
    console.running.wait().assert_ok();

    let console = open(&env, &[]);
    let origin = format!("http://{}", console.host());
    console.post_raw("/drill", &format!("csrf={token}&m={VM}"), &origin).assert_status(403);
    console.post_raw("/drill", &format!("m={VM}"), &origin).assert_status(403);
    console.get("/drill").assert_status(405);
    for (field, value) in [("m", "none"), ("m", "--all"), ("p", "ffffffff"), ("p", "--all"), ("x", "y")] {
        console.post("/drill", &[(field, value)]).assert_status(404);
    }
    // A value that looks like an option remains a value.
    let wrong = console.post("/drill", &[("m", VM), ("memory", "--all")]).assert_status(422);
    wrong.assert_has("Not started").assert_has("--memory=--all");
    assert!(
        env.kvmb(["jobs", "--json"]).run().assert_ok().records_of("job").iter().all(|job| job["command"] != "drill")
    );
    let job = console.run_job("/drill", &[("sample", "9"), ("until", "started")], "started after");
    job.assert_has("--all --sample=3").assert_lacks(&encoded("--sample=9"));
    console.running.interrupt();
    console.running.wait().assert_ok();
    env.assert_nothing_left();
}
