//! The page of the backup server, with a real `sshd`: host key, password, test, copy.

use std::fs;
use std::time::Duration;

use super::client::{Console, LIMIT, Page, open, start_call};
use crate::support::sshd::{SSH_PASSWORD, Sshd, USER};
use crate::support::{Disk, Env, wait_until};
use serde_json::json;

const MIB: u64 = 1 << 20;

/// The fields of the server's address.
struct Address(Vec<(String, String)>);

impl Address {
    fn of(sshd: &Sshd, folder: &str) -> Address {
        let path = sshd.home().join(folder).display().to_string();
        let port = sshd.port().to_string();
        let values = [("backup_host", "127.0.0.1"), ("backup_user", USER), ("backup_path", &path), ("ssh.port", &port)];
        Address(values.iter().map(|(key, value)| (format!("k.{key}"), (*value).to_owned())).collect())
    }

    fn with<'a>(&'a self, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str())).chain(more.iter().copied()).collect()
    }
}

/// Returns the page after its test has ended.
#[track_caller]
fn tested(console: &Console) -> Page {
    wait_until("the test ends", Duration::from_secs(120), || !console.get("/server").body.contains("st run"));
    console.get("/server").assert_status(200)
}

#[track_caller]
fn test(console: &Console, address: &Address) -> Page {
    let page = console.post("/server/test", &address.with(&[])).assert_status(303);
    assert_eq!(page.header("location"), "/server");
    tested(console)
}

#[test]
fn backup_server_is_trusted_set_up_tested_saved_and_used() {
    let env = Env::new("server page");
    let sshd = env.sshd();
    let machine = env.machine("kvmb-test-vm1").disk(Disk::qcow2(8 * MIB)).define();
    machine.write("vda", 0, 2 * MIB, 0x11);
    env.kvmb(["init", "-r", &env.repo()]).run().assert_ok();
    env.configure(&json!({ "repo": env.repo() }));
    let console = start_call(env.kvmb(["ui", "--no-open", "--listen", "127.0.0.1:0"])).opened();
    let address = Address::of(&sshd, "srv");
    let url = format!("sftp://{USER}@127.0.0.1:{}/{}", sshd.port(), sshd.home().join("srv").display());

    // Errors in the address are shown at its fields.
    let page = console.post("/server/test", &[("k.backup_host", "a b"), ("k.backup_path", "srv")]).assert_status(422);
    let page = page.assert_has("This is not a host name.").assert_has("begins with /");
    assert!(page.body.contains("id=\"f-backup_host-e\"") && page.body.contains("value=\"a b\""), "{}", page.body);

    // The key is shown, and nothing is done until the user has compared it.
    let fingerprint = sshd.fingerprint("ed25519");
    let page = test(&console, &address).assert_has(&fingerprint).assert_has("confirm the host key");
    assert_eq!(page.body.matches("waiting").count(), 5, "{}", page.body);
    assert!(page.body.contains(&format!("kvmb remote test -r {url}")), "{}", page.body);
    let shown = ("shown", fingerprint.as_str());
    let wrong = "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    for (fields, words) in [
        (vec![shown, ("fingerprint", wrong)], "not the fingerprint"),
        (vec![shown, ("fingerprint", "")], "Enter the fingerprint"),
        (vec![("shown", wrong), ("fingerprint", wrong)], "another key now"),
        (vec![("shown", wrong), ("trust", "seen")], "another key now"),
    ] {
        let page = console.post("/server/trust", &address.with(&fields)).assert_status(422);
        page.assert_has("aria-invalid=\"true\"").assert_has(words);
        assert!(!sshd.known_hosts().exists());
    }
    console.post("/server/trust", &address.with(&[shown, ("fingerprint", &fingerprint)])).assert_status(303);
    let page = tested(&console).assert_has("would fail");
    assert!(!page.body.contains("/server/trust"), "the key is known now: {}", page.body);
    assert!(fs::read_to_string(sshd.known_hosts()).unwrap().contains(&sshd.host_key("ed25519")));

    // The password is used once, and not stored.
    let page = console.post("/server/setup", &address.with(&[("ssh_password", "swordfihs")])).assert_status(422);
    let page = page.assert_has("id=\"ssh_password-e\"").assert_has("refused the login");
    assert!(!page.body.contains("swordfihs"), "{}", page.body);
    assert!(!sshd.authorized_keys().exists());
    let page = console.post("/server/setup", &address.with(&[("ssh_password", SSH_PASSWORD)])).assert_status(200);
    let page =
        page.assert_has("Done.").assert_has("restrict,command=").assert_has(&format!("kvmb remote setup -r {url}"));
    assert!(!page.body.contains(SSH_PASSWORD) && !page.body.contains("/dev/stdin"), "{}", page.body);
    let list = fs::read_to_string(sshd.authorized_keys()).unwrap();
    assert!(list.starts_with("restrict,command=\"internal-sftp\" ssh-ed25519 "), "{list}");
    assert!(!console.get("/server").body.contains(SSH_PASSWORD));
    let kept = env.program("grep").args(["-rlF", SSH_PASSWORD]).args([env.path("data"), env.log_file()]).run();
    kept.assert_code(1);

    // The folder now exists without a repository, which is then created.
    let page = test(&console, &address).assert_has("Create the repository").assert_has("with a warning");
    assert!(page.body.contains("upload "), "{}", page.body);
    console.post("/server/init", &address.with(&[])).assert_status(200).assert_has("the repository was created");
    let page = test(&console, &address);
    assert!(page.body.contains("A backup to this server would work."), "{}", page.body);
    assert_eq!(page.body.matches("class=\"st ok\"").count(), 7, "{}", page.body);

    // Saved as it was tested, the server gets a copy of the next point.
    let before =
        [("b.backup_host", ""), ("b.backup_user", ""), ("b.backup_path", ""), ("b.ssh.port", ""), ("back", "/server")];
    let review = console.post("/settings/review", &address.with(&before)).assert_status(200).assert_has("added: ");
    let (words, sum) = (review.fields("word"), review.field("sha256"));
    let mut fields = vec![("sha256", sum.as_str()), ("back", "/server")];
    fields.extend(words.iter().map(|word| ("word", word.as_str())));
    console.post("/settings/write", &fields).assert_status(200).assert_has("href=\"/server\"");
    console.run_job("/backup", &[("m", "kvmb-test-vm1")], "done");
    let copied = env.kvmb(["points", "-r", &url]).run().assert_ok();
    assert_eq!(copied.records_of("point").len(), 1, "{copied}");
    env.kvmb(["verify", "--all", "-r", &url]).run().assert_ok();

    // Each repository has its own rules, and is named.
    let page = console.get("/retention?repo=remote").assert_status(200);
    page.assert_has(&url).assert_has("name=\"k.retention.remote.keep_daily\"");
    let log = fs::read_to_string(env.log_file()).unwrap();
    assert!(!log.contains(SSH_PASSWORD) && !log.contains("swordfihs"), "{log}");
}

#[test]
fn changed_host_key_is_reported_and_cannot_be_trusted() {
    let env = Env::new("server changed");
    let sshd = env.sshd();
    sshd.trust_host_key();
    let other = fs::read_to_string(sshd.new_key("other", "").with_extension("pub")).unwrap();
    let key: Vec<&str> = other.split_whitespace().take(2).collect();
    fs::write(sshd.known_hosts(), format!("[127.0.0.1]:{} {}\n", sshd.port(), key.join(" "))).unwrap();
    let mut console = open(&env, &[]);
    let address = Address::of(&sshd, "srv");
    let page =
        test(&console, &address).assert_has("HAS CHANGED").assert_has("would fail").assert_has("<code>ssh-keygen -R ");
    assert!(!page.body.contains("/server/trust"), "{}", page.body);
    let fingerprint = sshd.fingerprint("ed25519");
    console.post("/server/trust", &address.with(&[("shown", &fingerprint), ("trust", "seen")])).assert_status(422);
    console.language = "fr";
    console.get("/server").assert_has("A CHANGÉ").assert_has("échouerait");
    // The stream of the page sends the same part.
    let parts = console.events("/server", Duration::from_secs(2));
    assert!(parts.iter().any(|part| part["id"] == "live-test"), "{parts:?}");
    // An unreachable server, and a test that replaces another.
    sshd.stop();
    console.language = "en";
    console.post("/server/test", &address.with(&[])).assert_status(303);
    console.post("/server/test", &address.with(&[])).assert_status(303);
    wait_until("it is reported", LIMIT, || console.get("/server").body.contains("cannot connect to"));
    let read_only = open(&env, &["--read-only"]);
    let page = read_only.get("/server").assert_status(200);
    assert!(!page.body.contains("action=\"/server/setup\""), "{}", page.body);
    for path in ["/server/test", "/server/trust", "/server/setup", "/server/init"] {
        read_only.post(path, &address.with(&[("ssh_password", SSH_PASSWORD)])).assert_status(403);
    }
}
