//! The main tasks in the console: select, back up, watch, verify, restore; in English and French.

use std::time::Duration;

use super::client::{LIMIT, open};
use crate::support::{Disk, Env, wait_until};

const MIB: u64 = 1 << 20;
const VM: &str = "kvmb-test-vm1";

#[test]
fn machine_is_selected_backed_up_verified_and_restored() {
    let env = Env::new("journey");
    let machine = env.machine(VM).disk(Disk::qcow2(12 * MIB)).disk(Disk::raw(4 * MIB)).define();
    machine.write("vda", MIB, 3 * MIB, 0x11);
    machine.write("vdb", 0, MIB, 0x22);
    env.kvmb(["init", "-r", &env.repo()]).run().assert_ok();
    let console = open(&env, &[]);
    console.get("/").assert_status(200).assert_has("no restore point");

    // Select it: the change is shown first, and written exactly as shown.
    let review = console.post("/selection", &[("m", VM), ("set", "true")]).assert_status(200);
    let review = review.assert_has("added: ").assert_has("kvmb config set");
    let words = review.fields("word");
    let sum = review.field("sha256");
    let mut fields = vec![("sha256", sum.as_str()), ("back", "/machines")];
    fields.extend(words.iter().map(|word| ("word", word.as_str())));
    console.post("/settings/write", &fields).assert_status(200).assert_has("Done.");
    // A concurrent change is not overwritten.
    console.post("/settings/write", &fields).assert_status(422).assert_has("changed by someone else");
    let config = std::fs::read_to_string(env.config_file()).unwrap();
    assert!(config.contains(&format!("\"{VM}\": true")), "{config}");
    console.get("/machines?again=1").assert_status(200).assert_has("st ok");

    // Back it up, and view the point.
    let job = console.run_job("/backup", &[("m", VM)], "done");
    let id = job.body.split("/points/").nth(1).unwrap().split('"').next().unwrap().to_owned();
    console.get(&format!("/machines/{VM}?again=1")).assert_status(200).assert_has(&id);
    console.get(&format!("/points/{id}")).assert_status(200).assert_has("not verified").assert_has("vdb");
    console.get("/?again=1").assert_status(200).assert_has("Every machine has a restore point");
    console.get("/jobs").assert_status(200).assert_has(&format!("kvmb backup {VM}"));
    console.run_job("/points/verify", &[("p", &id)], "done");
    console.get("/restore?again=1").assert_status(200);
    console.get(&format!("/points/{id}")).assert_status(200).assert_has("verified");
    let pinned = console.post("/points/pin", &[("p", &id)]).assert_status(303);
    let id = pinned.header("location").trim_start_matches("/points/").to_owned();
    console.get(&format!("/points/{id}")).assert_status(200).assert_has("pinned");

    // Restore it in place: later changes are lost, and the name has to be typed.
    let (then, since) = (machine.models(), [("vda", 0x55), ("vdb", 0x66)]);
    since.iter().for_each(|(disk, pattern)| machine.write(disk, 0, 2 * MIB, *pattern));
    console.get(&format!("/restore?machine={VM}")).assert_status(200).assert_has(&id);
    console.get(&format!("/restore/{id}/where")).assert_status(200).assert_has("In its place");
    let review = console.get(&format!("/restore/{id}/review?where=place")).assert_status(200);
    let review = review.assert_has("is replaced").assert_has("will be lost").assert_has(&format!("Overwrite {VM}"));
    assert!(review.body.contains(&machine.image("vda").display().to_string()), "{}", review.body);
    let start = format!("/restore/{id}/start");
    console.post(&start, &[("where", "place")]).assert_status(422).assert_has("not the name");
    console.post(&start, &[("where", "place"), ("confirm", "vm1")]).assert_status(422);
    machine.assert_image_equals_model("vda");
    console.run_job(&start, &[("where", "place"), ("confirm", VM)], "done");
    for (target, model) in &then {
        model.assert_image_equals(machine.image(target), machine.format(target));
    }

    // Restore it beside the original, as another machine.
    let folder = env.path("copies");
    std::fs::create_dir(&folder).unwrap();
    let folder = folder.display().to_string();
    console.run_job(&start, &[("where", "copy"), ("as", "kvmb-test-copy"), ("into", &folder)], "done");
    console.get("/machines?again=1").assert_status(200).assert_has("kvmb-test-copy");
    let nowhere = [("where", "copy"), ("as", "kvmb-test-copy"), ("into", folder.as_str())];
    console.run_job(&start, &nowhere, "already exists");
    console.running.interrupt();
    console.running.wait().assert_ok();
    env.assert_nothing_left();
}

#[test]
fn job_progress_is_streamed_and_job_is_cancelled() {
    let env = Env::new("progress");
    let machine = env.machine(VM).disk(Disk::qcow2(16 * MIB)).define();
    machine.write("vda", 0, 8 * MIB, 0x11);
    env.kvmb(["init", "-r", &env.repo()]).run().assert_ok();
    let console = open(&env, &[]);
    let page = console.post("/backup", &[("m", VM), ("limit_read", "128K")]).assert_status(303);
    let job = page.header("location").to_owned();
    wait_until("progress is shown", LIMIT, || console.get(&job).body.contains(&format!("{VM}/vda")));
    let page = console.get(&job).assert_has("<progress").assert_has("<noscript>").assert_has("kvmb jobs cancel");
    assert!(page.body.contains("data-live"), "{}", page.body);
    console.get("/").assert_has(&format!("kvmb backup --limit-read=128K {VM}"));
    let parts = console.events(&job, Duration::from_secs(4));
    assert!(parts.iter().all(|part| part["id"] == "live-job" || part["id"] == "live-count"), "{parts:?}");
    assert!(parts.len() >= 3, "the part changes as the job goes on: {parts:?}");
    console.post(&format!("{job}/cancel"), &[]).assert_status(303);
    wait_until("the job ends", LIMIT, || console.get(&job).body.contains("interrupted"));
    for path in ["/jobs/ffffffff", "/jobs/--help", "/jobs/..%2f..%2fx", "/points/none", "/machines/none"] {
        console.get(path).assert_status(404);
    }
}

#[test]
fn console_speaks_french_and_errors_appear_at_their_fields() {
    let env = Env::new("french");
    let mut console = open(&env, &[]);
    console.get("/").assert_has("lang=\"en\"");
    console.language = "fr-CA,fr;q=0.9,en;q=0.5";
    console.get("/").assert_status(200).assert_has("lang=\"fr\"").assert_has("Vue d’ensemble");
    let chosen = console.get("/language?to=en&back=%2Fjobs").assert_status(303);
    assert_eq!(chosen.header("location"), "/jobs");
    let session = console.cookie.clone();
    console.cookie = format!("{session}; {}", chosen.header("set-cookie").split(';').next().unwrap());
    console.get("/jobs").assert_has("lang=\"en\"").assert_has("No job is running");
    console.cookie = session;

    let page = console.post("/settings/review", &[("k.jobs", "900"), ("b.jobs", ""), ("k.lease", "6h")]);
    let page = page.assert_status(422).assert_has("aria-invalid=\"true\"").assert_has("value=\"900\"");
    assert!(page.body.contains("id=\"f-jobs-e\""), "{}", page.body);
    let page = console.post("/settings/review", &[("k.jobs", "3"), ("b.jobs", "")]).assert_status(200);
    page.assert_has("Écrire le fichier").assert_has("jobs=3");
    // Settings that run commands as root cannot be changed in a browser.
    let hook = ["hooks.after_run=[{\"command\":[\"id\"]}]", "password_command=id", "hooks={}", "-x=1"];
    for word in hook {
        console.post("/settings/write", &[("word", word), ("sha256", "")]).assert_status(303);
    }
    assert_eq!(std::fs::read_to_string(env.config_file()).unwrap(), "{}");
}

/// Returns the page faults of ended child processes: their number is not recorded, but this shows whether there were
/// any.
fn faults_of_ended_children(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.split_whitespace().nth(8).unwrap().parse().unwrap()
}

#[test]
fn idle_tabs_start_no_processes() {
    let env = Env::new("idle");
    env.machine(VM).disk(Disk::qcow2(MIB)).define();
    env.kvmb(["init", "-r", &env.repo()]).run().assert_ok();
    let console = open(&env, &[]);
    console.get("/").assert_status(200);
    console.get("/jobs").assert_status(200);
    let pid = console.running.pid();
    let before = faults_of_ended_children(pid);
    assert!(before > 0, "pages have asked commands");
    std::thread::scope(|scope| {
        for tab in 0..10 {
            let (console, page) = (&console, if tab % 2 == 0 { "/" } else { "/jobs" });
            scope.spawn(move || assert!(!console.events(page, Duration::from_secs(5)).is_empty()));
        }
    });
    assert_eq!(faults_of_ended_children(pid), before, "a command was started for an idle page");
    // A job that begins is noticed nevertheless.
    let events = std::thread::scope(|scope| {
        let events = scope.spawn(|| console.events("/jobs", Duration::from_secs(6)));
        env.kvmb(["backup", VM, "-r", &env.repo()]).run().assert_ok();
        events.join().unwrap()
    });
    assert!(events.len() >= 2, "{events:?}");
    console.running.interrupt();
    console.running.wait().assert_ok();
    env.assert_nothing_left();
}
