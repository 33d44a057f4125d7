//! Every record of every command matches its documentation in `src/record.rs`, which is parsed from the source.

// A test panics if a result is not what it expects.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use crate::support::host::Host;
use crate::support::{Disk, Env, Output};
use serde_json::{Map, Value, json};

const MIB: u64 = 1 << 20;

/// A field of a record in the source.
#[derive(Debug, Clone)]
struct Field {
    documentation: String,
    kind: String,
    /// Whether the field is always printed, possibly as null.
    always: bool,
}

type Fields = BTreeMap<String, Field>;

/// Returns the structs of `src/record.rs` and its submodules, and the variants of its enums (as `Source::File`), with
/// their fields.
fn documented() -> BTreeMap<String, Fields> {
    let record = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/record.rs"));
    let parts = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/record/parts.rs"));
    let outcome = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/record/outcome.rs"));
    let job = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/record/job.rs"));
    let filesystem = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/record/filesystem.rs"));
    let check = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/record/check.rs"));
    let usage = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/record/usage.rs"));
    let (mut structs, mut path, mut documentation, mut attributes) =
        (BTreeMap::new(), Vec::<String>::new(), String::new(), String::new());
    let types = |source: &'static str| source.lines().take_while(|line| !line.starts_with("impl "));
    for line in [record, check, parts, outcome, job, filesystem, usage].into_iter().flat_map(types) {
        let text = line.trim();
        let opened = |head: &str| text.strip_prefix(head).and_then(|rest| rest.strip_suffix(" {")).map(str::to_owned);
        if let Some(words) = text.strip_prefix("///") {
            documentation.push_str(words);
        } else if text.starts_with("#[") {
            attributes.push_str(text);
        } else if let Some(name) = opened("pub struct ").or_else(|| opened("pub enum ")).or_else(|| opened("")) {
            path.push(name);
            structs.insert(path.join("::"), Fields::new());
            documentation.clear();
            attributes.clear();
        } else if text.starts_with('}') {
            path.pop();
        } else if let Some((name, kind)) = text.strip_suffix(',').and_then(|field| field.split_once(": "))
            && let Some(fields) = structs.get_mut(&path.join("::"))
        {
            let name = name.trim_start_matches("pub ").to_owned();
            let always = !attributes.contains("skip_serializing_if") && !attributes.contains("flatten");
            fields
                .insert(name, Field { documentation: documentation.trim().to_owned(), kind: kind.to_owned(), always });
            documentation.clear();
            attributes.clear();
        } else {
            documentation.clear();
            attributes.clear();
        }
    }
    structs
}

/// Checks records and their parts against the documentation.
struct Judge {
    structs: BTreeMap<String, Fields>,
    seen: BTreeSet<(String, String)>,
}

impl Judge {
    fn record(&mut self, record: &Value) {
        let object = record.as_object().expect("an object");
        assert_eq!(object.keys().next().map(String::as_str), Some("type"), "{record}");
        let mut name = object["type"].as_str().expect("a type").to_owned();
        name[..1].make_ascii_uppercase();
        let fields: Map<String, Value> = object.clone().into_iter().skip(1).collect();
        self.object(&name, &fields);
    }

    fn object(&mut self, name: &str, object: &Map<String, Value>) {
        let fields = self.structs.get(name).unwrap_or_else(|| panic!("{name} is not documented")).clone();
        let own = fields.get("extra").map_or("", |field| &field.documentation);
        for (key, value) in object {
            match fields.get(key) {
                Some(field) => {
                    assert!(!field.documentation.is_empty(), "{name}.{key} has no words");
                    self.field(name, key, &field.kind, value);
                }
                // An action's own fields are documented in the text of `extra`.
                None => assert!(own.contains(&format!("`{key}`")), "{name}.{key} is not documented: {value}"),
            }
            self.seen.insert((name.to_owned(), key.clone()));
            units(key, value);
        }
        for (key, _) in fields.iter().filter(|(_, field)| field.always) {
            assert!(object.contains_key(key), "{name}.{key} is missing in {object:?}");
        }
    }

    fn field(&mut self, name: &str, key: &str, kind: &str, value: &Value) {
        let at = format!("{name}.{key} = {value}");
        let inner = |kind: &str, outer: &str| {
            kind.strip_prefix(outer).and_then(|rest| rest.strip_suffix('>')).map(str::to_owned)
        };
        if let Some(kind) = inner(kind, "Option<") {
            if !value.is_null() {
                self.field(name, key, &kind, value);
            }
            return;
        }
        if let Some(kind) = inner(kind, "Vec<") {
            let items = value.as_array().unwrap_or_else(|| panic!("{at} is no list"));
            return items.iter().for_each(|item| self.field(name, key, &kind, item));
        }
        match kind {
            "String" => assert!(value.is_string(), "{at}"),
            "bool" => assert!(value.is_boolean(), "{at}"),
            "u64" | "u32" | "usize" => assert!(value.is_u64(), "{at}"),
            "f64" => assert!(value.is_number(), "{at}"),
            "Time" => {
                let text = value.as_str().unwrap_or_else(|| panic!("{at} is no text"));
                chrono::DateTime::parse_from_rfc3339(text).unwrap_or_else(|error| panic!("{at}: {error}"));
            }
            "Value" => {}
            "Source" => {
                let object = value.as_object().unwrap_or_else(|| panic!("{at} is no object"));
                assert_eq!(object.keys().next().map(String::as_str), Some("type"), "{at}");
                let wanted = value["type"].as_str().expect("a type");
                let variants = self.structs.keys().filter_map(|name| name.strip_prefix("Source::"));
                let variant = variants.into_iter().find(|variant| variant.eq_ignore_ascii_case(wanted));
                // A variant without fields has no block.
                let fields = object.clone().into_iter().skip(1).collect();
                match variant.map(|variant| format!("Source::{variant}")) {
                    Some(variant) => self.object(&variant, &fields),
                    None => assert!(fields.is_empty() && ["none", "unknown"].contains(&wanted), "{at}"),
                }
            }
            part => {
                let object = value.as_object().unwrap_or_else(|| panic!("{at} is no object"));
                self.object(part, object);
            }
        }
    }
}

/// Checks the meaning of a name's suffix: `_bytes` is a number of bytes, `_at` a time with offset, `_seconds` a number.
fn units(key: &str, value: &Value) {
    if key.ends_with("_bytes") {
        assert!(value.is_u64() || value.is_null(), "{key}: {value}");
    }
    if key.ends_with("_seconds") {
        assert!(value.is_number(), "{key}: {value}");
    }
    if key.ends_with("_at") {
        assert!(chrono::DateTime::parse_from_rfc3339(value.as_str().expect("a time")).is_ok(), "{key}: {value}");
    }
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    assert!(key.chars().all(plain), "{key} is not snake_case");
}

#[test]
fn record_fields_are_documented_and_named_by_unit() {
    let structs = documented();
    for name in
        ["Machine", "Disk", "File", "Point", "PointDisk", "Copied", "Action", "Check", "Failure", "Source::Network"]
    {
        assert!(structs.get(name).is_some_and(|fields| fields.len() > 2), "{name} was not found: {structs:#?}");
    }
    for (name, fields) in &structs {
        for (key, field) in fields.iter().filter(|_| name.as_str() != "Record") {
            assert!(!field.documentation.is_empty(), "{name}.{key} has no words");
            if field.kind.contains("u64") {
                assert!(key.ends_with("_bytes"), "{name}.{key} is a size and does not say so");
            }
            if field.kind.contains("Time") {
                assert!(key.ends_with("_at"), "{name}.{key} is a time and does not say so");
            }
        }
    }
}

/// Returns the lines that are invalid by the schema that kvmb prints, according to another implementation.
fn schema_faults(env: &Env, lines: &[String]) -> Vec<String> {
    const SCRIPT: &str = "import json, sys, jsonschema
schema = json.loads(sys.argv[1])
jsonschema.Draft7Validator.check_schema(schema)
judge = jsonschema.Draft7Validator(schema)
for line in open('records.jsonl'):
    if not judge.is_valid(json.loads(line)):
        print(line, end='')";
    let schema = env.kvmb(["schema", "records"]).run().assert_ok();
    fs::write(env.path("records.jsonl"), lines.join("\n") + "\n").unwrap();
    let judged = env.program("/usr/bin/python3").args(["-c", SCRIPT, schema.stdout()]).run().assert_ok();
    judged.stdout().lines().map(str::to_owned).collect()
}

#[test]
fn every_printed_record_matches_its_documentation() {
    let host = Host::new("records");
    let env = &host.env;
    env.machine("kvmb-test-vm1")
        .disk(Disk::qcow2(2 * MIB))
        .disk(Disk::raw(MIB))
        .devices_xml("<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>")
        .devices_xml(
            "<disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='nbd' name='none'>\
             <host name='localhost' port='1'/></source><target dev='vdz' bus='virtio'/></disk>",
        )
        .define();
    let running = env.machine("kvmb-test-vm2").disk(Disk::qcow2(2 * MIB)).disk(Disk::raw(MIB)).start_paused();
    running.write("vda", 0, MIB, 0x11);
    fs::create_dir(env.path("into")).unwrap();

    let mut judge = Judge { structs: documented(), seen: BTreeSet::new() };
    let mut kinds = BTreeMap::<String, usize>::new();
    let mut lines = Vec::new();
    let mut run = |script: &str, code: i32| -> Output {
        // These run in the private host.
        let call = match script.starts_with("kvmb schedule ") {
            true => host.program(&["/bin/sh", "-c", script]).env("R", env.repo()),
            false => env.sh(script),
        };
        let output = call.env("TZ", "Asia/Kolkata").run().assert_code(code);
        let records = output.records();
        assert!(!records.is_empty(), "{output}");
        for record in records {
            judge.record(&record);
            lines.push(record.to_string());
            *kinds.entry(record["type"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        output
    };
    run("kvmb doctor 'kvmb-test-*'", 0);
    run("kvmb init -r $R --dry-run", 0);
    run("kvmb init -r $R", 0);
    run("kvmb init -r $R", 0);
    run("kvmb vms", 0);
    run("kvmb disks 'kvmb-test-*'", 0);
    run("kvmb hash password", 0);
    run("kvmb disks kvmb-test-vm2 | kvmb hash", 0);
    run("kvmb backup --all --exclude-disk vdb --dry-run -r $R", 0);
    run("kvmb backup kvmb-test-vm1 -r $R", 1);
    let captured = run("kvmb snapshot kvmb-test-vm2 -r $R", 0);
    assert!(captured.records()[0]["captured_at"].as_str().unwrap().ends_with("+05:30"), "{captured}");
    run("kvmb snapshot kvmb-test-vm2 -r $R", 5);
    run("kvmb release --dry-run kvmb-test-vm2", 0);
    run("kvmb release kvmb-test-vm2", 0);
    run("kvmb release kvmb-test-vm2", 0);
    for _ in 0..2 {
        run("kvmb snapshot kvmb-test-vm2 -r $R | kvmb hash | kvmb push -r $R | kvmb release | kvmb verify -r $R", 0);
    }
    run("kvmb snapshot kvmb-test-vm2 -r $R", 0);
    run("kvmb release --all", 0);
    run("kvmb backup kvmb-test-vm2 --verify --exclude-disk vdb -r $R", 0);
    run("kvmb snapshot kvmb-test-vm2 | head -n 1 | kvmb push -r $R | kvmb release", 1);
    run("kvmb disks kvmb-test-vm2 | kvmb push -r $R", 1);
    run("kvmb points -r $R", 0);
    run("kvmb points nobody -r $R", 1);
    run("kvmb pin kvmb-test-vm2 -r $R", 0);
    run("kvmb points -r $R", 0);
    run("kvmb pin --undo --dry-run kvmb-test-vm2 -r $R", 0);
    run("kvmb prune -r $R --keep-last 2 --dry-run", 0);
    run("kvmb prune -r $R --keep-last 2 --max-unused 0%", 0);
    run("kvmb verify --all --quick -r $R", 0);
    run("kvmb serve kvmb-test-vm2 -r $R --detach | kvmb release", 0);
    run("kvmb restore kvmb-test-vm2 -r $R --as copy --into into --dry-run", 0);
    run("kvmb restore kvmb-test-vm2 -r $R --as copy --into into", 0);
    run("kvmb restore kvmb-test-vm2 -r $R --as copy2 --into into --no-define", 0);
    run("kvmb restore kvmb-test-vm2 -r $R --as copy2 --into into --no-define", 1);
    run("kvmb init -r other", 0);
    run("kvmb points kvmb-test-vm2 -r $R | kvmb push -r other", 0);
    run("kvmb points kvmb-test-vm2 -r $R | kvmb push -r other", 0);
    run("kvmb backup kvmb-test-vm2 -r $R --copy-to other --dry-run", 0);
    run("kvmb status -r $R --copy-to other", 1);
    run("kvmb status nobody kvmb-test-vm2 -r $R", 1);
    run("kvmb status --all-hosts -r $R", 0);
    run("kvmb stats -r $R", 0);
    run("kvmb key export exported -r $R", 0);
    run("echo more >more; chmod 600 more; kvmb key add -r $R --new-password-file more", 0);
    run("kvmb key add -r $R --new-password-file more", 0);
    for place in ["", "--system", "--systemd"] {
        run(&format!("kvmb schedule install -n --cron @daily -r $R --all {place}"), 0);
        let entered = run(&format!("kvmb schedule install --cron @daily -r $R --all {place}"), 0);
        run(&format!("kvmb schedule install --cron @daily -r $R --all --drill weekly {place}"), 0);
        let next = entered.records()[0]["next_runs"][0].as_str().unwrap().to_owned();
        assert!(next.ends_with("T00:00:00+05:30"), "{next}");
    }
    run("kvmb schedule show", 0);
    run("kvmb schedule describe '30 2 * * 1-5' --runs 2", 0);
    run("kvmb schedule remove -n", 0);
    run("kvmb schedule remove && kvmb schedule remove --system", 0);
    run("kvmb config show", 0);
    run("kvmb config check", 0);
    run("kvmb config set jobs=2 -n", 0);
    run("kvmb jobs", 0);
    run("kvmb log --json", 0);
    run("echo '{\"freez\": 1}' >wrong.json; kvmb config check --config wrong.json", 2);
    run("kvmb vms --config wrong.json", 2);
    run("kvmb vms </dev/null nobody", 1);
    run("kvmb push -r $R </dev/null", 2);
    let image = "mkdir -p g/etc; echo NAME=x >g/etc/os-release; ln -s os-release g/etc/link; export PATH=$PATH:/sbin; \
        mkfs.ext4 -q -L top -d g image 8M";
    env.sh(image).run().assert_ok();
    env.machine("kvmb-test-vm3").disk(Disk::existing(&env.path("image"), "raw")).define();
    run("kvmb backup kvmb-test-vm3 -r other", 0);
    run("kvmb files ls kvmb-test-vm3 -r other", 0);
    run("kvmb files find kvmb-test-vm3 / -r other", 0);
    run("kvmb files cp kvmb-test-vm3 /etc --to into -r other", 0);
    run("kvmb files ls kvmb-test-vm3 /nothing -r other", 1);
    // Damage: a corrupted pack.
    let pack = "p=$(find $R/data -type f -size +64c | sort | head -n 1); chmod u+w $p; printf bad | dd of=$p bs=1 \
        seek=40 conv=notrunc status=none";
    run(&format!("{pack}; kvmb verify --all -r $R"), 4);
    run("kvmb status -r $R", 4);

    let found: Vec<&str> = kinds.keys().map(String::as_str).collect();
    assert_eq!(
        found,
        [
            "action",
            "check",
            "disk",
            "failure",
            "file",
            "filesystem",
            "job",
            "log",
            "machine",
            "point",
            "setting",
            "usage"
        ]
    );
    let progress = env.kvmb(["verify", "--all", "-r", "other", "--progress", "jsonl"]).run().assert_ok();
    let progress: Vec<&str> = progress.stderr().lines().filter(|line| line.starts_with('{')).collect();
    assert!(progress.iter().any(|line| line.contains("\"type\":\"progress\"")), "{progress:?}");
    lines.extend(progress.into_iter().map(str::to_owned));
    assert_eq!(schema_faults(env, &lines), [""; 0]);
    // The schema refuses invalid records.
    for wrong in [
        r#"{"type":"file","path":"a","size_bytes":-1}"#,
        r#"{"type":"file","path":"a"}"#,
        r#"{"type":"comet","tail":true}"#,
        r#"{"type":"usage","repo":"r","hosts":"h","points":1,"capacity_bytes":1,"stored_bytes":1}"#,
        r#"{"path":"a","size_bytes":1}"#,
    ] {
        assert_eq!(schema_faults(env, &[wrong.to_owned()]), [wrong]);
    }

    // Every documented field is printed by some command; these need their own tests (of increments, audits and live
    // restores).
    let rare = [
        ("Point", "chain_damage"),
        ("Point", "damaged_points"),
        ("Point", "files"),
        ("Damage", "file"),
        ("Filesystem", "error"),
        ("Job", "bytes_per_second"),
        ("Job", "left_seconds"),
        ("Job", "steps"),
        ("LeftOut", "part"),
        ("LeftOut", "path"),
        ("RestoredTo", "live"),
        ("Usage", "growth_bytes_per_day"),
    ];
    for name in [
        "Machine",
        "Disk",
        "File",
        "Filesystem",
        "Point",
        "PointDisk",
        "LeftOut",
        "Action",
        "Check",
        "Setting",
        "Failure",
        "Job",
        "Log",
        "RestoredTo",
        "RestoredDisk",
        "Usage",
    ] {
        for key in judge.structs[name].keys().filter(|key| *key != "extra") {
            let known = judge.seen.contains(&(name.to_owned(), key.clone())) || rare.contains(&(name, key));
            assert!(known, "no command prints {name}.{key}");
        }
    }
    env.assert_nothing_left();
}

#[test]
fn record_checker_refuses_malformed_records() {
    let refuse = |record: Value| {
        let mut judge = Judge { structs: documented(), seen: BTreeSet::new() };
        let judged = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| judge.record(&record)));
        assert!(judged.is_err(), "{record} passed");
    };
    refuse(json!({"path": "a", "type": "file", "size_bytes": 1, "sha256": "00"}));
    refuse(json!({"type": "file", "path": "a", "size_bytes": "1", "sha256": "00"}));
    refuse(json!({"type": "file", "path": "a", "sha256": "00"}));
    refuse(json!({"type": "file", "path": "a", "size_bytes": 1, "sha256": "00", "colour": "red"}));
    refuse(json!({"type": "comet"}));
    let mut judge = Judge { structs: documented(), seen: BTreeSet::new() };
    judge.record(&json!({"type": "file", "path": "a", "size_bytes": 1, "sha256": "00"}));
}
