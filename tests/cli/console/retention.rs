//! The page of the retention rules: a preview of unsaved rules, saving them with a review, and applying them.

use super::client::open;
use crate::support::{Disk, Env};

const MIB: u64 = 1 << 20;

fn points(env: &Env) -> usize {
    env.kvmb(["points", "-r", &env.repo()]).run().assert_ok().records_of("point").len()
}

#[test]
fn retention_rules_are_previewed_saved_and_applied() {
    let env = Env::new("console retention");
    let machine = env.machine("kvmb-test-vm1").disk(Disk::qcow2(8 * MIB)).define();
    env.kvmb(["init", "-r", &env.repo()]).run().assert_ok();
    for pattern in [0x11, 0x22, 0x33] {
        machine.write("vda", 0, 2 * MIB, pattern);
        env.kvmb(["backup", "kvmb-test-vm1", "-r", &env.repo()]).run().assert_ok();
    }
    let mut console = open(&env, &[]);
    let page = console.get("/retention").assert_status(200).assert_has("Without rules no point is removed.");
    assert!(!page.body.contains("action=\"/prune\""), "{}", page.body);
    // A form without rules is ignored: those of the configuration must not be applied instead.
    console.post("/prune", &[("repo", "local")]).assert_status(200);
    assert_eq!(points(&env), 3);

    let rules = [("repo", "local"), ("k.retention.local.keep_last", "1"), ("b.retention.local.keep_last", "")];
    let page = console.post("/retention/preview", &rules).assert_status(200);
    let page = page
        .assert_has("1 of 3 points are kept, 2 are removed")
        .assert_has("no rule keeps it")
        .assert_has("kvmb prune --keep-last=1");
    assert_eq!(page.body.matches("<b>goes</b>").count(), 2, "{}", page.body);
    let only: Vec<_> = rules.iter().copied().chain([("show", "goes")]).collect();
    let page = console.post("/retention/preview", &only).assert_has("2 of 3 points");
    assert!(!page.body.contains(">stays<"), "{}", page.body);
    assert_eq!(points(&env), 3, "a preview removes nothing");
    console.language = "fr";
    let page = console.post("/retention/preview", &rules).assert_has("1 points sur 3 restent, 2 partent");
    page.assert_has("aucune règle ne le garde").assert_has("Purger maintenant\u{a0}: supprimer 2 points");
    console.language = "en";
    let wrong = [("repo", "local"), ("k.retention.local.keep_daily", "many")];
    let page = console.post("/retention/preview", &wrong).assert_status(422).assert_has("value=\"many\"");
    assert!(page.body.contains("id=\"f-retention.local.keep_daily-e\""), "{}", page.body);

    // The rules are saved like every other key.
    let saved: Vec<_> = rules.iter().copied().chain([("back", "/retention")]).collect();
    let review = console.post("/settings/review", &saved).assert_status(200).assert_has("keep_last");
    let (words, sum) = (review.fields("word"), review.field("sha256"));
    let mut fields = vec![("sha256", sum.as_str()), ("back", "/retention")];
    fields.extend(words.iter().map(|word| ("word", word.as_str())));
    console.post("/settings/write", &fields).assert_status(200);
    console.get("/retention").assert_has("1 of 3 points are kept, 2 are removed");
    console.run_job("/prune", &rules, "done");
    assert_eq!(points(&env), 1);
    console.get("/retention?again=1").assert_has("1 of 1 points are kept, 0 are removed");
}
