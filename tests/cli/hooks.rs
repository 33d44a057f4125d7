//! Hooks: the user's commands before and after a backup and each of its machines.

// A test panics if a result is not what it expects.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::support::{Call, Disk, Env, Output, process, wait_until};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// Returns a hook that records its environment and its input, and then runs `rest`.
fn noting(rest: &str) -> Value {
    let note = "{ echo \"hook=$KVMB_HOOK\"; env | grep ^KVMB_; sed 's/^/stdin=/'; echo end=; } >>notes";
    json!({"command": ["/bin/sh", "-c", format!("{note}; {rest}")]})
}

/// Returns the hooks' records, one map for each, in execution order.
fn notes(env: &Env) -> Vec<BTreeMap<String, String>> {
    let text = fs::read_to_string(env.path("notes")).unwrap_or_default();
    let blocks = text.split("end=\n").filter(|block| !block.is_empty());
    let map = |block: &str| {
        block
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    };
    blocks.map(map).collect()
}

fn hooks_of(env: &Env) -> Vec<String> {
    notes(env).iter().map(|note| note["hook"].clone()).collect()
}

/// Prepares two machines, a repository, and hooks.
fn prepared(name: &str, hooks: &Value) -> Env {
    let env = Env::new(name);
    for name in ["kvmb-test-a", "kvmb-test-b"] {
        env.machine(name).disk(Disk::qcow2(MIB)).define();
    }
    env.sh("kvmb init -r $R").run().assert_ok();
    env.configure(&json!({"repo": env.repo(), "selected_vms": {"kvmb-test-*": true}, "hooks": hooks}));
    env
}

fn backup(env: &Env) -> Call {
    env.kvmb(["backup"])
}

#[test]
fn hooks_run_around_run_and_machines_with_their_details() {
    let all = noting("true");
    let hooks = json!({"before_run": [all], "after_run": [all], "before_machine": [all], "after_machine": [all]});
    let env = prepared("around", &hooks);
    let password = fs::read_to_string(env.password_file()).unwrap();
    let output = backup(&env).env("KVMB_PASSWORD", password.trim()).run().assert_ok();
    let machine = ["before_machine", "after_machine"];
    assert_eq!(hooks_of(&env), [&["before_run"][..], &machine, &machine, &["after_run"]].concat());
    let notes = notes(&env);
    let run = &notes[0]["KVMB_RUN"];
    for note in &notes {
        assert_eq!((&note["KVMB_RUN"], note["KVMB_COMMAND"].as_str()), (run, "backup"));
        assert_eq!(note["KVMB_REPO"], env.repo());
        assert!(!note.contains_key("KVMB_PASSWORD"), "{note:?}");
    }
    for (at, point) in output.records_of("point").iter().enumerate() {
        let (before, after) = (&notes[1 + 2 * at], &notes[2 + 2 * at]);
        assert_eq!(before["KVMB_MACHINE"], point["machine"].as_str().unwrap());
        assert_eq!(before["KVMB_UUID"], point["uuid"].as_str().unwrap());
        assert_eq!(before["KVMB_CONNECT"], env.uri());
        assert_eq!(after["KVMB_MACHINE"], before["KVMB_MACHINE"]);
        assert_eq!(
            (after["KVMB_STATUS"].as_str(), after["KVMB_POINT"].as_str()),
            ("done", point["point"].as_str().unwrap())
        );
        assert_eq!(after["KVMB_STORED_BYTES"], point["disks"][0]["stored_bytes"].to_string());
        assert_eq!(serde_json::from_str::<Value>(&after["stdin"]).unwrap(), *point);
    }
    let last = &notes[5];
    assert_eq!((last["KVMB_STATUS"].as_str(), last["KVMB_EXIT_CODE"].as_str()), ("done", "0"));
    assert_eq!((last["KVMB_DONE"].as_str(), last["KVMB_FAILED"].as_str()), ("2", "0"));
    assert_eq!(last["KVMB_SUMMARY"], "2 machines were stored");
    // The output of a hook is not a record; a dry run runs no hooks.
    env.configure(&json!({"repo": env.repo(), "hooks": {"before_run": [{"command": ["echo", "hello"]}]}}));
    let output = env.kvmb(["backup", "kvmb-test-a"]).run().assert_ok().assert_stderr_has("hello");
    assert_eq!(output.records().len(), 1);
    let output = env.kvmb(["backup", "kvmb-test-a", "--dry-run"]).run().assert_ok();
    assert!(!output.stderr().contains("hello"), "{output}");
}

#[test]
fn failing_before_machine_hook_skips_only_that_machine() {
    let fails_for_a = noting("[ \"$KVMB_MACHINE\" != kvmb-test-a ]");
    let only = |when: &str| json!({"command": noting("true")["command"], "when": when});
    let hooks = json!({"before_machine": [fails_for_a], "after_machine": [only("failed")], "after_run": [only("done"),
        only("failed")]});
    let env = prepared("machine", &hooks);
    let output = backup(&env).run().assert_code(3);
    let failure = output.record_of("failure");
    assert_eq!((&failure["machine"], &failure["code"]), (&json!("kvmb-test-a"), &json!("hook")));
    assert_eq!(output.record_of("point")["machine"], "kvmb-test-b");
    assert_eq!(hooks_of(&env), ["before_machine", "after_machine", "before_machine", "after_run"]);
    let notes = notes(&env);
    assert_eq!((notes[1]["KVMB_STATUS"].as_str(), notes[1]["KVMB_CODE"].as_str()), ("failed", "hook"));
    assert!(notes[1]["KVMB_ERROR"].contains("failed: exit status: 1"), "{notes:?}");
    assert_eq!(notes[3]["KVMB_STATUS"], "partial");
    assert!(notes[3]["KVMB_SUMMARY"].starts_with("1 machine was stored, 1 failed: kvmb-test-a: the hook"), "{notes:?}");
    env.assert_nothing_left();
}

#[test]
fn failing_before_run_hook_ends_the_run_and_is_reported() {
    let env = prepared(
        "run",
        &json!({"before_run": [noting("exit 7")], "before_machine": [noting("true")], "after_run": [noting("exit 1")]}),
    );
    let output = backup(&env).run().assert_code(1);
    assert_eq!(output.records().len(), 1);
    assert_eq!(output.record_of("failure")["code"], "hook");
    assert_eq!(hooks_of(&env), ["before_run", "after_run"]);
    assert_eq!(notes(&env)[1]["KVMB_STATUS"], "failed");
    // A hook that fails afterwards changes nothing, and is reported.
    output.assert_stderr_has("kvmb: warning: the hook after_run");
    assert!(env.kvmb(["points"]).run().assert_ok().records().is_empty());
    // The hooks afterwards also learn about a run that cannot start.
    env.configure(&json!({"repo": env.repo_named("none"), "hooks": {"after_run": [noting("true")]}}));
    env.kvmb(["backup", "kvmb-test-a"]).run().assert_code(1);
    assert_eq!(notes(&env)[2]["KVMB_STATUS"], "failed");
    env.configure(&json!({"repo": env.repo(), "hooks": {"before_run": [{"command": ["/no/such/program"]}]}}));
    env.kvmb(["backup", "kvmb-test-a"]).run().assert_code(1).assert_stderr_has("cannot be started");
}

#[test]
fn timed_out_or_interrupted_hooks_are_ended_with_all_processes() {
    let stubborn = "trap '' TERM; sleep 301 & sleep 302 & wait; wait";
    let hook = json!({"command": ["sh", "-c", "sleep 303 & sleep 304"], "timeout": "1s"});
    let env = prepared("timeout", &json!({"before_machine": [hook]}));
    let began = Instant::now();
    let output = env.kvmb(["backup", "kvmb-test-a"]).run().assert_code(1);
    output.assert_stderr_has("was stopped after 1 s");
    assert!(began.elapsed() < Duration::from_secs(100));
    let sleepers = || process::of(&env.path("")).into_iter().filter(|program| program.is("sleep")).count();
    wait_until("all of it has ended", Duration::from_secs(60), || sleepers() == 0);
    // A hook that ignores SIGTERM is killed; Ctrl-C ends a hook that has time left.
    env.configure(
        &json!({"repo": env.repo(), "hooks": {"before_run": [{"command": ["sh", "-c", stubborn], "timeout": "1s"}]}}),
    );
    env.kvmb(["backup", "kvmb-test-a"]).run().assert_code(1);
    wait_until("all of it has ended", Duration::from_secs(60), || sleepers() == 0);
    env.configure(&json!({"repo": env.repo(), "hooks": {"before_run": [{"command": ["sleep", "305"],
        "timeout": "1h"}], "after_run": [noting("true")]}}));
    let running = env.kvmb(["backup", "kvmb-test-a"]).spawn();
    wait_until("the hook runs", Duration::from_secs(60), || sleepers() == 1);
    running.interrupt();
    running.wait().assert_code(130);
    assert_eq!(sleepers(), 0);
    assert_eq!(notes(&env)[0]["KVMB_STATUS"], "interrupted");
    env.assert_nothing_left();
}

#[test]
fn machine_names_are_never_run_as_commands() {
    let env = Env::new("names");
    let name = "kvmb-test-$(touch pwned) `touch pwned`; touch pwned";
    env.machine(name).disk(Disk::qcow2(MIB)).define();
    env.sh("kvmb init -r $R").run().assert_ok();
    env.configure(
        &json!({"repo": env.repo(), "hooks": {"before_machine": [noting("true")], "after_machine": [noting("true")]}}),
    );
    env.kvmb(["backup", "--all"]).run().assert_ok();
    assert!(notes(&env).iter().all(|note| note["KVMB_MACHINE"] == name), "{:?}", notes(&env));
    assert!(!env.path("pwned").exists());
}

/// Returns the hooks of the documentation, with its servers replaced by the test's.
fn example(replacements: &[(&str, String)]) -> Value {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/hooks.md")).unwrap();
    let (_, section) = page.split_once("# Hooks").expect("a section");
    let (_, block) = section.split_once("```json\n").expect("an example");
    let mut block = block.split("```").next().unwrap().to_owned();
    for (theirs, ours) in replacements {
        assert!(block.contains(theirs), "{theirs} is not in the example");
        block = block.replace(theirs, ours);
    }
    serde_json::from_str::<Value>(&block).expect("JSON")["hooks"].clone()
}

/// Starts a server for one connection.
fn serve<T: Send + 'static>(talk: impl Fn(TcpStream) -> T + Send + 'static) -> (String, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (address, thread::spawn(move || talk(listener.accept().unwrap().0)))
}

/// Receives one request, and returns its head and body.
fn http(mut stream: TcpStream) -> (String, String) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
        head.push_str(&line);
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    stream.write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").unwrap();
    (head, String::from_utf8(body).unwrap())
}

/// Receives one message, and returns what the client sent.
fn smtp(mut stream: TcpStream) -> String {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut said, mut in_letter) = (String::new(), false);
    stream.write_all(b"220 test ESMTP\r\n").unwrap();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap() == 0 {
            return said;
        }
        said.push_str(&line);
        let command = line.trim().to_uppercase();
        let answer = match (in_letter, command.as_str()) {
            (true, ".") => {
                in_letter = false;
                "250 taken"
            }
            (true, _) => continue,
            (_, "DATA") => {
                in_letter = true;
                "354 go on"
            }
            (_, "QUIT") => {
                stream.write_all(b"221 bye\r\n").unwrap();
                return said;
            }
            _ => "250 test",
        };
        stream.write_all(format!("{answer}\r\n").as_bytes()).unwrap();
    }
}

#[test]
fn example_mail_and_webhook_hooks_reach_their_servers() {
    let (web, request) = serve(http);
    let (mail, letter) = serve(smtp);
    let hooks = example(&[
        ("https://hooks.example.com", format!("http://{web}")),
        ("smtp://mail.example.com", format!("smtp://{mail}")),
    ]);
    let env = Env::new("examples");
    env.machine("kvmb-test-a").disk(Disk::qcow2(MIB)).define();
    env.sh("kvmb init -r $R").run().assert_ok();
    env.configure(&json!({"repo": env.repo(), "hooks": hooks}));
    let output: Output = env.kvmb(["backup", "kvmb-test-a", "nobody"]).run().assert_code(3);
    let (head, body) = request.join().unwrap();
    assert!(head.starts_with("POST /kvmb HTTP/1.1"), "{head}");
    assert!(head.to_lowercase().contains("content-type: application/json"), "{head}");
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), output.record_of("point"));
    let letter = letter.join().unwrap();
    assert!(letter.contains("RCPT TO:<ops@example.com>"), "{letter}");
    assert!(letter.contains("\r\nSubject: kvmb: partial\r\n"), "{letter}");
    assert!(letter.contains("1 machine was stored, 1 failed: nobody: "), "{letter}");
}
