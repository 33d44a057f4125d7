//! The page of the configuration: every key of the schema as a field, and changes with a diff.

use std::fs;

use super::client::start_call;
use crate::support::Env;
use serde_json::json;

#[test]
fn every_schema_key_is_a_described_form_field() {
    let env = Env::new("console settings");
    env.configure(&json!({ "//": "ours", "jobs": 2, "freeze": "required", "repo": "", "backup_host": "b.example.com",
        "backup_path": "/b" }));
    // Without $KVMB_REPO, which would take precedence.
    let mut console = start_call(env.kvmb(["ui", "--no-open", "--listen", "127.0.0.1:0"])).opened();
    let page = console.get("/settings").assert_status(200);
    let shown = env.kvmb(["config", "show"]).run().assert_ok();
    for setting in shown.records_of("setting") {
        let key = setting["key"].as_str().unwrap();
        if key != "$schema" {
            assert!(page.body.contains(&format!("id=\"f-{key}\"")), "no field for {key}");
        }
    }
    // The page's own texts for this kind of value, with the current value.
    let page = page
        .assert_has("Number of machines to back up at the same time.")
        .assert_has("<option value=\"required\" selected>");
    assert_eq!(
        (page.field("b.jobs"), page.field("b.repo"), page.field("b.verify")),
        ("2".into(), "\"\"".into(), String::new())
    );
    assert!(page.body.contains("<select id=\"f-verify\""), "{}", page.body);
    // Each key has a name in both languages.
    console.language = "fr";
    let french =
        console.get("/settings").assert_has("Machines en même temps").assert_has("Figer les systèmes de fichiers");
    assert!(!french.body.contains("id=\"others\"") && !french.body.contains("Number of"), "{}", french.body);
    console.language = "en";

    let changed = [
        ("k.jobs", "4"),
        ("b.jobs", "2"),
        ("k.freeze", ""),
        ("b.freeze", "required"),
        ("k.repo", "\"\""),
        ("b.repo", "\"\""),
        ("k.verify", "true"),
        ("b.verify", ""),
    ];
    let review = console.post("/settings/review", &changed).assert_status(200);
    let review = review.assert_has("3 keys of").assert_has("kvmb config set --unset=freeze -- jobs=4 verify=true");
    let (words, sum) = (review.fields("word"), review.field("sha256"));
    let mut fields = vec![("sha256", sum.as_str())];
    fields.extend(words.iter().map(|word| ("word", word.as_str())));
    assert!(fs::read_to_string(env.config_file()).unwrap().contains("required"), "nothing is written yet");
    console.post("/settings/write", &fields).assert_status(200).assert_has("Done.");
    let text = fs::read_to_string(env.config_file()).unwrap();
    assert!(text.contains("\"jobs\":4") || text.contains("\"jobs\": 4"), "{text}");
    assert!(text.contains("ours") && !text.contains("freeze"), "{text}");

    // Errors are shown at their fields and listed; the input is kept.
    let page = console.post("/settings/review", &[("k.limit_read", "200 MB"), ("b.limit_read", ""), ("k.jobs", "0")]);
    let page = page.assert_status(422).assert_has("Nothing was written.").assert_has("value=\"200 MB\"");
    assert!(page.body.contains("-e\""), "{}", page.body);
}
