//! The page of the schedule, with the real crontab and systemd's files in a mount namespace.

use std::fs;

use super::client::{Console, start_call};
use crate::support::Disk;
use crate::support::host::Host;

fn console(host: &Host) -> Console {
    start_call(host.program(&["kvmb", "ui", "--no-open", "--listen", "127.0.0.1:0"])).opened()
}

#[test]
fn schedule_is_described_installed_changed_and_removed() {
    let host = Host::new("console schedule");
    let env = &host.env;
    env.machine("kvmb-test-vm1").disk(Disk::qcow2(1 << 20)).define();
    let mut console = console(&host);
    let page = console.get("/schedule").assert_status(200).assert_has("no schedule installed");
    let page = page.assert_has("Every night at 02:00");
    assert_eq!(page.body.matches("<li><time").count(), 10, "{}", page.body);
    let page = console.get("/schedule?rhythm=working&time=02%3A30").assert_status(200);
    let page = page.assert_has("Monday to Friday at 02:30").assert_has("3 d 0 h").assert_has("3 d 2 h");
    assert_eq!(page.field("cron"), "30 2 * * 1-5");

    // An error is shown at its field, in the language of the page, and the schedule cannot be installed.
    let wrong = "/schedule?rhythm=cron&minute=60&hour=2&day=*&month=*&weekday=*";
    let page = console.get(wrong).assert_status(200).assert_has("it goes from 0 to 59").assert_has("value=\"60\"");
    assert!(
        page.body.contains(
            "id=\"minute\" name=\"minute\" type=\"text\" value=\"60\" placeholder=\"*\" \
     autocomplete=\"off\" aria-invalid=\"true\""
        ),
        "{}",
        page.body
    );
    assert!(!page.body.contains("action=\"/schedule/install\""), "{}", page.body);
    console.language = "fr";
    console.get(wrong).assert_has("minute «\u{202f}60\u{202f}» non valable").assert_has("de 0 à 59");
    console.get("/schedule?cron=30%202%20*%20*%201-5").assert_has("Du lundi au vendredi à 02:30");
    console.language = "en";

    let cron = ("cron", "30 2 * * 1-5");
    // Without machines, or with an invalid option.
    console.post("/schedule/install", &[cron, ("place", "")]).assert_status(422).assert_has("no machines were given");
    let page = console.post(
        "/schedule/install",
        &[cron, ("place", "--system"), ("machines", "all"), ("random_delay", "soon"), ("verify", "1")],
    );
    let page = page.assert_status(422).assert_has("id=\"random_delay-e\"").assert_has("value=\"soon\"");
    assert!(page.body.contains("value=\"--system\" checked"), "{}", page.body);
    assert_eq!(host.crontab(), "");
    assert_eq!(fs::read_dir(env.path("cron.d")).unwrap().count(), 0);

    let all = [cron, ("place", ""), ("machines", "all"), ("verify", "1"), ("sample", "5%")];
    let dry: Vec<_> = all.iter().copied().chain([("dry", "1")]).collect();
    console.post("/schedule/install", &dry).assert_status(200).assert_has("would be installed");
    assert_eq!(host.crontab(), "");
    console.post("/schedule/install", &all).assert_status(200).assert_has("installed");
    let text = host.crontab();
    assert!(text.contains("30 2 * * 1-5 ") && text.contains("--all") && text.contains("--verify"), "{text}");
    let page =
        console.get("/schedule?again=1").assert_has("Monday to Friday at 02:30").assert_has("kvmb schedule remove");
    assert!(
        page.body.contains(" --verify &#39;--verify-sample=5%&#39; --all")
            || page.body.contains(" --verify '--verify-sample=5%' --all"),
        "{}",
        page.body
    );
    console.post("/schedule/install", &[cron, ("place", "--systemd"), ("machines", "all")]).assert_status(200);
    assert!(env.path("units/kvmb.timer").exists());
    console.post("/schedule/remove", &[("place", "--systemd")]).assert_status(200).assert_has("removed");
    assert!(!env.path("units/kvmb.timer").exists());

    // An installed drill is kept unless its field is cleared.
    let with = |drill: &'static str| [cron, ("place", ""), ("machines", "all"), ("drill", drill)];
    let page = console.post("/schedule/install", &with("often")).assert_status(422);
    page.assert_has("id=\"drill-e\"").assert_has("value=\"often\"");
    console.post("/schedule/install", &with("weekly")).assert_status(200);
    assert!(host.crontab().contains("\n30 4 * * sun "), "{}", host.crontab());
    let page = console.get("/schedule?again=1").assert_has("Every Sunday at 04:30").assert_has(" --sample 3");
    let page = page.assert_has("value=\"30 4 * * sun\"");
    assert_eq!(page.field("cron"), "30 2 * * 1-5");
    assert_eq!(page.body.matches("action=\"/schedule/remove\"").count(), 1, "{}", page.body);
    console.post("/schedule/install", &with("")).assert_status(200);
    assert!(!host.crontab().contains(" drill "), "{}", host.crontab());
    console.post("/schedule/remove", &[("place", "")]).assert_status(200);
    assert_eq!(host.crontab(), "");
}

#[test]
fn changed_schedule_keeps_the_machines_and_options_of_the_installed_one() {
    let host = Host::new("console schedule kept");
    host.env.machine("kvmb-test-vm1").disk(Disk::qcow2(1 << 20)).define();
    let install = ["kvmb", "schedule", "install", "--cron", "0 2 * * *", "--random-delay", "15m", "web*", "vm1", "--"];
    let options = ["--verify", "--limit-read=10M", "--full-every", "30d"];
    host.program(&[&install[..], &options[..]].concat()).run().assert_ok();
    let console = console(&host);
    let page = console.get("/schedule?cron=0%203%20*%20*%20*").assert_status(200).assert_has("as installed: web*, vm1");
    let page = page.assert_has("value=\"named\" checked").assert_has("name=\"verify\" value=\"1\" checked");
    let page = page.assert_has("name=\"place\" value=\"\" checked").assert_has("value=\"900s\"");
    page.assert_has("name=\"keep\" value=\"1\" checked").assert_has("--limit-read=10M --full-every 30d");
    let fields =
        [("cron", "0 3 * * *"), ("machines", "named"), ("verify", "1"), ("random_delay", "900s"), ("keep", "1")];
    console.post("/schedule/install", &fields).assert_status(200).assert_has("installed");
    let text = host.crontab().replace('\'', "");
    for kept in ["0 3 * * * ", "-i 0-900 ", " --verify --limit-read=10M --full-every 30d web* vm1 "] {
        assert!(text.contains(kept), "no {kept:?} in {text}");
    }
    // Somebody has removed it since the page was loaded.
    console.post("/schedule/remove", &[("place", "")]).assert_status(200);
    console.post("/schedule/install", &fields).assert_status(422).assert_has("no longer lists machines");
    assert_eq!(host.crontab(), "");
}
