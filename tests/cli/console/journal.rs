//! The log in the console: filters, pages, hostile lines, and live updates.

use std::time::Duration;

use super::client::open;
use crate::support::{Env, wait_until};

#[test]
fn log_page_is_filtered_followed_and_escaped() {
    let env = Env::new("log page");
    env.kvmb(["init", "-r", &env.repo()]).run().assert_ok();
    let hostile = "<script>alert(1)</script>\n2026-01-01 00:00:00,000 - INFO - [aaaaaaaa] forged";
    env.kvmb(["backup", hostile, "-r", &env.repo()]).run().assert_code(1);
    let console = open(&env, &[]);
    let page = console.get("/log").assert_status(200).assert_lacks("<script>alert").assert_lacks("[aaaaaaaa]</code>");
    let page = page.assert_has("&lt;script&gt;alert(1)").assert_has("backup begins").assert_has("init begins");
    assert!(page.body.contains("data-live=\"/log\""), "{}", page.body);
    let errors = console.get("/log?level=error").assert_status(200).assert_lacks("backup begins");
    errors.assert_has("&lt;script&gt;").assert_has("--level=error");
    let few = console.get("/log?q=INIT+BEGINS").assert_status(200).assert_lacks("backup begins");
    few.assert_has("init begins")
        .assert_has("kvmb log --all --grep=&#39;INIT BEGINS&#39; --follow".replace("&#39;", "'").as_str());
    let job = env.kvmb(["jobs"]).run().assert_ok().record_of("job")["job"].as_str().unwrap().to_owned();
    console.get(&format!("/log?job={job}")).assert_status(200).assert_lacks("init begins").assert_has("backup begins");
    console.get("/log?job=--help").assert_status(200).assert_has("has 8 hexadecimal digits");
    console.get("/log?q=no+such+line").assert_status(200).assert_has("No line matches.");
    for wrong in ["level=x", "page=0", "page=99999999999999999999", "q=%00%ff", "q=--help"] {
        console.get(&format!("/log?{wrong}")).assert_status(200);
    }
    let page = console.get(&format!("/jobs/{job}")).assert_status(200).assert_lacks("<script>alert");
    page.assert_has("It failed.").assert_has("backup begins").assert_has(&format!("/log?job={job}"));

    // A page shows a limited number of results: here the job has failed for many more machines.
    let printed = env.path("data/jobs").join(format!("{job}.records"));
    let failure = std::fs::read_to_string(&printed).unwrap();
    let others = (0..509).map(|number| failure.replace("no machine named", &format!("failure {number}:")));
    std::fs::write(&printed, others.chain([failure.clone()]).collect::<String>()).unwrap();
    let page = open(&env, &[]).get(&format!("/jobs/{job}")).assert_status(200);
    let page = page.assert_has("These are 500 of 510 results.").assert_has(&format!("kvmb jobs show {job}"));
    page.assert_has("failure 499:").assert_lacks("failure 500:");

    // Lines that are added while the page is open are sent, with the page's filter.
    let parts = std::thread::scope(|scope| {
        let reader = scope.spawn(|| console.events("/log?q=release+begins", Duration::from_secs(12)));
        wait_until("the stream is open", Duration::from_secs(60), || {
            env.kvmb(["release", "kvmb-test-none"]).run().assert_ok();
            reader.is_finished()
        });
        reader.join().unwrap()
    });
    assert!(parts.len() >= 2 && parts.iter().all(|part| part["id"] == "live-log"), "{parts:?}");
    let last = parts.last().unwrap()["html"].as_str().unwrap();
    assert!(last.contains("release begins") && !last.contains("backup begins"), "{last}");
}
