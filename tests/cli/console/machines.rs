//! Machines in the console: which ones are selected and why, the options of a backup, hostile names.

use super::client::{LIMIT, encoded, open};
use crate::support::{Disk, Env, wait_until};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

fn config(env: &Env) -> Value {
    serde_json::from_str(&std::fs::read_to_string(env.config_file()).unwrap()).unwrap()
}

#[test]
fn selection_rules_are_previewed_applied_and_explained() {
    let env = Env::new("rules");
    for name in ["kvmb-test-web1", "kvmb-test-web2", "kvmb-test-db"] {
        env.machine(name).disk(Disk::qcow2(MIB)).disk(Disk::raw(MIB)).define();
    }
    let console = open(&env, &[]);
    console.get("/machines").assert_status(200).assert_has("There is no rule yet").assert_has("kvmb-test-db");

    // A preview changes nothing.
    let preview = console.post("/selection", &[("pattern", "kvmb-*-web?"), ("preview", "1")]).assert_status(303);
    let to = preview.header("location").split('#').next().unwrap().to_owned();
    let page = console.get(&to).assert_status(200).assert_has(": kvmb-test-web1, kvmb-test-web2</p>");
    page.assert_has("value=\"kvmb-*-web?\"");
    assert_eq!(config(&env), json!({}));
    console.get("/machines?pattern=nothing*").assert_status(200).assert_has("</code>: none");

    let add = |pattern: &str, set: &str| console.post("/selection", &[("pattern", pattern), ("set", set)]);
    console.write_reviewed(&add("kvmb-*-web?", "true").assert_status(200));
    console.write_reviewed(&add("kvmb-test-web2", "false").assert_status(200));
    let rules = json!({"kvmb-*-web?": true, "kvmb-test-web2": false});
    assert_eq!(config(&env)["selected_vms"], rules);
    let page = console.get("/machines?again=1").assert_status(200).assert_has("3 machines, 1 backed up");
    let page =
        page.assert_has("rule kvmb-test-web2: exclude, which takes precedence").assert_has("no rule includes it");
    page.assert_has("rule kvmb-*-web?: include");
    // The error of a pattern is shown at its field, which keeps the pattern.
    for wrong in ["a/b", "web[1"] {
        let page = add(wrong, "true").assert_status(422).assert_has("id=\"pattern-e\"").assert_has("aria-invalid");
        page.assert_has(&format!("value=\"{wrong}\""));
    }
    add("", "true").assert_status(422).assert_has("Tick a machine, or type a pattern.");
    console.write_reviewed(&console.post("/selection", &[("unset", "kvmb-test-web2")]).assert_status(200));
    assert_eq!(config(&env)["selected_vms"], json!({"kvmb-*-web?": true}));

    // The disks of one machine.
    let of = "kvmb-test-web1";
    let page = console.get(&format!("/machines/{of}?again=1")).assert_status(200);
    assert_eq!(page.fields("all"), ["vda", "vdb"]);
    let choose = |chosen: &[&str]| {
        let mut fields = vec![("of", of), ("all", "vda"), ("all", "vdb")];
        fields.extend(chosen.iter().map(|disk| ("d", *disk)));
        let review = console.post("/machines/disks", &fields).assert_status(200);
        assert_eq!(review.field("back"), format!("/machines/{of}"));
        console.write_reviewed(&review);
    };
    choose(&["vda"]);
    assert_eq!(config(&env)["excluded_disks"], json!({of: ["vdb"]}));
    let page = console.get(&format!("/machines/{of}?again=1")).assert_status(200);
    // The excluded disk can be ticked again.
    let page = page.assert_has("name=\"d\" value=\"vdb\">").assert_has("name=\"d\" value=\"vda\" checked>");
    page.assert_has("excluded_disks.kvmb-test-web1");
    console.get("/machines?again=1").assert_has("left out: excluded in the configuration (excluded_disks)");
    choose(&["vda", "vdb"]);
    assert_eq!(config(&env)["excluded_disks"], json!({}));
    env.configure(&json!({"excluded_disks": {"kvmb-*": ["vdb"]}}));
    let page = console.get(&format!("/machines/{of}?again=1")).assert_status(200);
    let page = page.assert_has("left out by the rule <code>kvmb-*</code>");
    assert_eq!(page.fields("all"), ["vda"], "that rule is for others, too");
}

#[test]
fn backup_options_are_form_fields_with_their_errors() {
    let env = Env::new("backup options");
    let machine = env.machine("kvmb-test-vm1").disk(Disk::qcow2(4 * MIB)).disk(Disk::raw(MIB)).define();
    machine.write("vda", 0, 3 * MIB, 0x11);
    env.kvmb(["init", "-r", &env.repo()]).run().assert_ok();
    let console = open(&env, &[]);
    let post = |fields: &[(&str, &str)]| console.post("/backup", fields);
    let page = post(&[("m", "kvmb-test-vm1"), ("limit_read", "fast"), ("jobs", "2")]).assert_status(422);
    let page = page.assert_has("id=\"limit-e\"").assert_has("value=\"fast\"").assert_has("<details open>");
    page.assert_has("value=\"kvmb-test-vm1\" checked").assert_has("name=\"jobs\" class=\"w-m mono\"");
    post(&[("m", "kvmb-test-vm1"), ("of", "kvmb-test-vm1"), ("chunk_size", "3M")])
        .assert_status(422)
        .assert_has("id=\"f-chunk_size-e\"");
    post(&[]).assert_status(422).assert_has("Tick at least one machine.");
    let dry = [("m", "kvmb-test-vm1"), ("dry_run", "1"), ("exclude_disk", "vdb")];
    post(&dry).assert_status(200).assert_has("would be changed").assert_has("--exclude-disk=vdb");
    assert!(env.kvmb(["points", "-r", &env.repo()]).run().assert_ok().records().is_empty());

    let fields =
        [("m", "kvmb-test-vm1"), ("full", "1"), ("verify", "yes"), ("freeze", "never"), ("exclude_disk", "vdb")];
    let job = console.run_job("/backup", &fields, "done").assert_has("Everything was done.");
    let job = job.assert_has("kvmb backup --full --verify --freeze=never --exclude-disk=vdb");
    job.assert_has("kvmb backup ends: done");
    let point = env.kvmb(["points", "-r", &env.repo()]).run().assert_ok().record_of("point");
    assert_eq!((&point["verified"], &point["left_out"][0]["disk"]), (&json!("full"), &json!("vdb")));

    // A form that is submitted twice starts one job.
    let slow = [("m", "kvmb-test-vm1"), ("full", "1"), ("limit_read", "64K")];
    let first = post(&slow).assert_status(303).header("location").to_owned();
    assert_eq!(post(&slow).assert_status(303).header("location"), first);
    console.get("/machines").assert_has("--limit-read=64K");
    console.post(&format!("{first}/cancel"), &[]).assert_status(303);
    wait_until("it ends", LIMIT, || console.get(&first).body.contains("It was interrupted, and has cleaned up."));
    // Once it has ended, the same can be started again, also with a button.
    let again = console.post(&format!("{first}/again"), &[]).assert_status(303).header("location").to_owned();
    assert_ne!(again, first);
    console.post(&format!("{again}/cancel"), &[]).assert_status(303);
    wait_until("it ends", LIMIT, || console.get(&again).body.contains("It was interrupted"));
    console.get("/jobs?state=interrupted").assert_status(200).assert_has("--limit-read=64K").assert_lacks("--verify");
    console.get("/jobs?q=--verify").assert_status(200).assert_has("--verify --freeze=never");
}

#[test]
fn machines_with_hostile_names_work_and_are_escaped() {
    let env = Env::new("hostile names");
    let long = format!("kvmb-test-{}", "n".repeat(190));
    let names = ["-kvmb-test 'a' <b onclick=x>\"&", "kvmb-test-é ☃ #?%2e", "kvmb-test-a=b[1]", &long];
    for name in names {
        env.machine(name).disk(Disk::qcow2(MIB)).define();
    }
    env.kvmb(["init", "-r", &env.repo()]).run().assert_ok();
    let console = open(&env, &[]);
    let list = console.get("/machines").assert_status(200);
    assert_eq!(list.fields("m"), {
        let mut all = names.to_vec();
        all.sort_unstable();
        all
    });
    for name in names {
        let page = format!("/machines/{}", encoded(name));
        console.get(&page).assert_status(200).assert_lacks("<b onclick").assert_has("Back up now");
        let job = console.run_job("/backup", &[("m", name), ("of", name)], "done").assert_lacks("<b onclick");
        let id = job.body.split("/points/").nth(1).unwrap().split('"').next().unwrap().to_owned();
        console.get(&page).assert_status(200);
        console.get(&format!("/points/{id}")).assert_status(200).assert_lacks("<b onclick");
        let review = console.post("/selection", &[("m", name), ("set", "true")]).assert_status(200);
        console.write_reviewed(&review);
        assert_eq!(config(&env)["selected_vms"][name], true, "{name}");
        let chosen = console.get(&format!("/restore?again=1&machine={}", encoded(name))).assert_status(200);
        chosen.assert_has(&id).assert_lacks("<b onclick");
        let place =
            format!("/restore/{id}/review?where=copy&into={}", encoded(&env.path("disks").display().to_string()));
        console.get(&format!("{place}&as={}", encoded("kvmb-test-copy"))).assert_status(200).assert_lacks("<b onclick");
    }
    console.get("/log").assert_status(200).assert_has("&lt;b onclick=x&gt;").assert_lacks("<b onclick");
}

#[test]
fn pages_with_filters_are_not_reloaded_without_scripts() {
    let env = Env::new("no reload");
    let _machine = env.machine("kvmb-test-vm1").disk(Disk::qcow2(MIB)).define();
    let console = open(&env, &[]);
    let refresh = "http-equiv=\"refresh\"";
    for path in ["/", "/machines", "/jobs", "/log"] {
        let page = console.get(path).assert_status(200).assert_has("data-live");
        assert!(!page.body.contains(refresh), "{path} discards what is typed");
    }
    console.get("/machines/kvmb-test-vm1").assert_status(200).assert_has(refresh);
}

#[test]
fn read_only_console_refuses_machine_point_and_restore_forms() {
    let env = Env::new("read only forms");
    let _machine = env.machine("kvmb-test-vm1").disk(Disk::qcow2(MIB)).define();
    let console = open(&env, &["--read-only"]);
    let id = "0".repeat(64);
    let start = format!("/restore/{id}/start");
    let forms = ["/machines/disks", "/points/copy", "/points/pin", "/points/verify", "/jobs/5f0c2a9e/again", &start];
    for form in forms {
        console.post(form, &[("of", "kvmb-test-vm1"), ("p", &id)]).assert_status(403).assert_has("read-only");
        // The address does not work as a link.
        console.get(form).assert_status(405);
    }
    // A preview changes nothing.
    let page = console.get("/machines?pattern=kvmb-*").assert_status(200).assert_has("</code>: kvmb-test-vm1");
    page.assert_has("form method=\"get\" action=\"/machines\"").assert_lacks("Add: include");
    console.get("/log").assert_status(200);
}
