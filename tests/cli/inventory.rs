//! `kvmb vms` and `kvmb disks`: what libvirt reports, unchanged.

// A test panics if a result is not what it expects.

use crate::support::{Disk, Env, Output};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// A name with everything that could confuse a shell, an XML parser, a glob or an option parser.
const ODD: &str = "-kvmb test 'vm' \"é\" & <1> $HOME *";

/// Returns the record of the machine with this name.
fn named(output: &Output, name: &str) -> Value {
    let found = output.records().into_iter().find(|record| record["machine"] == name);
    found.unwrap_or_else(|| panic!("no {name}: {output}"))
}

#[test]
fn running_and_stopped_machines_are_listed() {
    let env = Env::new("vms");
    let running = env
        .machine("kvmb-test-web1")
        .memory_mib(48)
        .disk(Disk::qcow2(3 * MIB))
        .disk(Disk::raw(MIB + 512))
        .devices_xml("<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>")
        .start_paused();
    let off = env.machine("kvmb-test-web2").disk(Disk::qcow2(MIB)).define();
    let transient = env.machine("kvmb-test-gone").disk(Disk::raw(MIB)).start_transient();

    let all = env.kvmb(["vms"]).run().assert_ok();
    assert_eq!(
        named(&all, "kvmb-test-web1"),
        json!({
            "type": "machine", "connect": env.uri(), "machine": "kvmb-test-web1", "uuid": running.uuid(),
            "state": "paused", "persistent": true, "autostart": false, "memory_bytes": 48 * MIB, "vcpus": 1,
            "disks": ["vda", "vdb"], "agent": "disconnected",
        })
    );
    let record = named(&all, off.name());
    assert_eq!((&record["state"], &record["agent"]), (&json!("shut off"), &json!("none")));
    assert_eq!(named(&all, transient.name())["persistent"], false);
    assert_eq!(all.records().len(), 3);

    // By glob and by UUID; each machine once, however often it is named.
    let some = env.kvmb(["vms", "kvmb-*-web?", "kvmb-test-web1", running.uuid()]).run().assert_ok();
    let names: Vec<Value> = some.records().iter().map(|record| record["machine"].clone()).collect();
    assert_eq!(names, ["kvmb-test-web1", "kvmb-test-web2"]);

    // An unknown name is a separate failure; the others continue.
    let some = env.kvmb(["vms", "kvmb-test-web3", "nothing*", "kvmb-test-web1"]).run().assert_code(3);
    assert_eq!(some.records_of("machine").len(), 1);
    let failures = some.records_of("failure");
    assert_eq!(failures.len(), 2);
    assert_eq!(failures[0]["command"], "vms");
    assert_eq!(failures[0]["machine"], "kvmb-test-web3");
    assert_eq!(failures[0]["code"], "not_found");
    assert_eq!(failures[0]["connect"], env.uri());
    assert!(failures[0]["error"].as_str().unwrap().contains("kvmb-test-web1"), "no near name: {some}");
    assert_eq!(failures[0]["hint"], "run 'kvmb vms' to list the machines");
    some.assert_stderr_has("kvmb: error: no machine named 'kvmb-test-web3'")
        .assert_stderr_has("kvmb: hint: run 'kvmb vms' to list the machines");
    env.kvmb(["vms", "nothing"]).run().assert_code(1);

    // The three output formats, and a table for people.
    let jsonl = env.kvmb(["vms", "-o", "jsonl"]).run().assert_ok();
    assert_eq!(jsonl.records(), env.kvmb(["--json", "vms"]).run().assert_ok().records());
    let array = env.kvmb(["vms", "--output", "json"]).run().assert_ok();
    assert_eq!(serde_json::from_str::<Vec<Value>>(array.stdout()).unwrap(), jsonl.records());
    let table = env.kvmb(["vms", "-o", "table"]).run().assert_ok();
    let lines: Vec<&str> = table.stdout().lines().collect();
    assert_eq!(lines.len(), 4, "{table}");
    assert!(lines[0].contains("MACHINE") && lines[0].contains("STATE"), "{table}");
    let line = lines.iter().find(|line| line.contains("kvmb-test-web1")).expect("its line");
    for word in ["paused", "48.00 MiB", "vda vdb", "disconnected"] {
        assert!(line.contains(word), "no {word} in {line}");
    }
    // A failure in an array is a record like any other.
    let array = env.kvmb(["vms", "nothing", "-o", "json"]).run().assert_code(1);
    assert_eq!(serde_json::from_str::<Vec<Value>>(array.stdout()).unwrap()[0]["type"], "failure");
}

#[test]
fn every_disk_type_is_reported_with_size_or_skip_reason() {
    let env = Env::new("disks");
    let block = "<disk type='block' device='disk'><driver name='qemu' type='raw'/>\
        <source dev='/dev/kvmb-test-none'/><target dev='vdb' bus='virtio'/></disk>";
    let lun = "<disk type='block' device='lun'><driver name='qemu' type='raw'/>\
        <source dev='/dev/kvmb-test-none'/><target dev='sdb' bus='scsi'/></disk><controller type='scsi' \
        model='virtio-scsi'/>";
    let network = "<disk type='network' device='disk'><driver name='qemu' type='raw'/>\
        <source protocol='nbd' name='export'><host name='::1' port='10810'/></source><target dev='vdc' bus='virtio'/>\
        </disk>";
    let volume = "<disk type='volume' device='disk'><driver name='qemu' type='qcow2'/>\
        <source pool='pool' volume='volume'/><target dev='vdd' bus='virtio'/></disk>";
    let folder = "<disk type='dir' device='floppy'><driver name='qemu' type='fat'/>\
        <source dir='/tmp'/><target dev='fda' bus='fdc'/><readonly/></disk>";
    let cdrom = "<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>";
    let machine = env
        .machine("kvmb-test-vm1")
        .disk(Disk::qcow2(5 * MIB).file_name("an 'odd' \"name\" é.qcow2"))
        .disk(Disk::raw(MIB).target("vde").extra_xml("<transient/>"))
        .disk(Disk::raw(MIB).target("vdf").extra_xml("<shareable/>"))
        .disk(Disk::raw(MIB).target("vdg").extra_xml("<readonly/>"))
        .disk(Disk::raw(2 * MIB + 512).target("vdh"))
        .devices_xml(&[block, lun, network, volume, folder, cdrom].concat())
        .define();
    machine.write("vdh", 0, MIB, 0x11);

    let output = env.kvmb(["disks", "kvmb-test-vm1"]).run().assert_ok();
    let disk = |target: &str| {
        let found = output.records().into_iter().find(|record| record["disk"] == target);
        found.unwrap_or_else(|| panic!("no {target}: {output}"))
    };
    let vda = disk("vda");
    let path = machine.image("vda").to_str().unwrap();
    for (key, value) in [
        ("machine", json!("kvmb-test-vm1")),
        ("uuid", json!(machine.uuid())),
        ("connect", json!(env.uri())),
        ("state", json!("shut off")),
        ("source", json!({"type": "file", "path": path})),
        ("path", json!(path)),
        ("format", json!("qcow2")),
        ("bus", json!("virtio")),
        ("capacity_bytes", json!(5 * MIB)),
        ("included", json!(true)),
        ("skip_reason", Value::Null),
    ] {
        assert_eq!(vda[key], value, "{key}");
    }
    let vdh = disk("vdh");
    assert_eq!(vdh["capacity_bytes"], 2 * MIB + 512);
    let allocated = vdh["allocated_bytes"].as_u64().unwrap();
    assert!((MIB..2 * MIB).contains(&allocated), "{allocated} bytes for 1 MiB of data");

    for (target, reason) in [
        ("sda", "cdrom"),
        ("fda", "floppy"),
        ("sdb", "passed-through device"),
        ("vde", "transient"),
        ("vdf", "shared with other machines"),
        ("vdg", "read-only"),
    ] {
        let disk = disk(target);
        assert_eq!((&disk["included"], &disk["skip_reason"]), (&json!(false), &json!(reason)), "{target}");
    }
    assert_eq!(disk("sda")["source"], json!({"type": "none"}));
    assert_eq!(disk("fda")["source"], json!({"type": "dir", "path": "/tmp"}));
    assert_eq!(disk("vdb")["source"], json!({"type": "block", "path": "/dev/kvmb-test-none"}));
    assert_eq!(disk("vdb")["capacity_bytes"], Value::Null, "a device that is not there has no size");
    assert_eq!(
        disk("vdc")["source"],
        json!({"type": "network", "protocol": "nbd", "name": "export", "hosts": ["[::1]:10810"]})
    );
    assert_eq!(disk("vdd")["source"], json!({"type": "volume", "pool": "pool", "volume": "volume"}));
    for target in ["vdb", "vdc", "vdd"] {
        assert_eq!(disk(target)["included"], true, "{target}");
    }
    assert_eq!(output.records().len(), 11);

    // The same with input from `vms`; other records are passed on.
    let piped = env.sh("kvmb vms kvmb-test-vm1 | kvmb disks").run().assert_ok();
    assert_eq!(piped.records(), output.records());
    let foreign = "{\"type\":\"comet\",\"tail\":[1]}\n";
    let passed = env.kvmb(["disks"]).stdin(foreign).run().assert_ok();
    assert_eq!(passed.stdout(), foreign);

    let table = env.kvmb(["disks", "kvmb-test-vm1", "-o", "table"]).run().assert_ok();
    for words in ["excluded: cdrom", "nbd:export", "pool/volume", "5.00 MiB", path] {
        assert!(table.stdout().contains(words), "no {words:?}: {table}");
    }
    // Nothing here can be captured, which is a failure of this machine, named or in a pipeline.
    let output = env.sh("kvmb disks kvmb-test-vm1 | grep '\"cdrom\"' | kvmb snapshot").run().assert_code(1);
    assert_eq!(output.record_of("failure")["code"], "no_disks");
}

#[test]
fn odd_machine_names_are_matched_exactly() {
    let env = Env::new("odd names");
    let odd = env.machine(ODD).disk(Disk::qcow2(MIB)).define();
    let help = env.machine("--help").disk(Disk::raw(MIB)).define();
    let glob = env.machine("web[1]").define();
    let matched = env.machine("web1").define();

    let output = env.kvmb(["vms", "--", ODD, "--help"]).run().assert_ok();
    let uuids: Vec<Value> = output.records().iter().map(|record| record["uuid"].clone()).collect();
    assert_eq!(uuids, [odd.uuid(), help.uuid()]);
    assert_eq!(named(&output, ODD)["machine"], ODD);
    assert!(env.kvmb(["vms", "--help"]).run().assert_ok().stdout().contains("Usage: kvmb vms"));

    // A name that looks like a glob refers to the machine with exactly that name, if there is one.
    let output = env.kvmb(["vms", "web[1]"]).run().assert_ok();
    assert_eq!(output.record_of("machine")["uuid"], glob.uuid());
    let output = env.kvmb(["vms", "we[b]1"]).run().assert_ok();
    assert_eq!(output.record_of("machine")["uuid"], matched.uuid());

    // In a pipeline, by UUID.
    let disks = env.sh("kvmb vms | kvmb disks").run().assert_ok();
    let found = disks.records().into_iter().find(|record| record["machine"] == ODD).expect("its disk");
    assert_eq!(found["path"], odd.image("vda").to_str().unwrap());
}

#[test]
fn hostile_names_cannot_control_the_terminal() {
    let env = Env::new("hostile");
    // DEL, CSI as a single character, and a change of the writing direction: XML allows them all.
    let hostile = "kvmb-test-\u{7f}\u{9b}2J\u{202e}gnp.exe";
    let machine = env.machine(hostile).define();
    for format in ["table", "jsonl", "json"] {
        for arguments in [vec!["vms", "-o", format], vec!["vms", "-o", format, "--", "kvmb\u{1b}[2J\u{9b}31m"]] {
            let output = env.kvmb(&arguments).run();
            let said = output.stdout().to_owned() + output.stderr();
            assert!(!said.is_empty());
            let steering = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
            assert!(!said.contains(steering), "{arguments:?}: {said:?}");
        }
    }
    // In JSON, the name is unchanged.
    assert_eq!(env.kvmb(["vms"]).run().assert_ok().record_of("machine")["machine"], hostile);
    assert_eq!(env.kvmb(["vms", hostile]).run().assert_ok().record_of("machine")["uuid"], machine.uuid());
}

#[test]
fn test_driver_is_listed_but_not_captured() {
    let env = Env::new("test driver");
    let output = env.kvmb(["-c", "test:///default", "vms"]).run().assert_ok();
    let machine = output.record_of("machine");
    assert_eq!((&machine["machine"], &machine["connect"]), (&json!("test"), &json!("test:///default")));
    assert_eq!(machine["state"], "running");
    env.kvmb(["-c", "test:///default", "disks", "test"]).run().assert_ok();
    let output = env.kvmb(["-c", "test:///default", "snapshot", "test"]).run().assert_code(1);
    let failure = output.record_of("failure");
    assert!(["unsupported", "no_disks"].contains(&failure["code"].as_str().unwrap()), "{output}");
    env.assert_nothing_left();
}

#[test]
fn unreachable_libvirt_is_reported_as_a_connection_failure() {
    let env = Env::new("unreachable");
    let nowhere = format!("qemu+unix:///system?socket={}", env.path("no-libvirt").display());
    for (uri, code) in [(nowhere.as_str(), "connection"), ("nonsense:///", "connection")] {
        for command in [vec!["vms"], vec!["disks", "vm1"], vec!["snapshot", "vm1"], vec!["backup", "vm1"]] {
            let output = env.kvmb(["-c", uri]).args(&command).run().assert_code(1);
            let failure = output.record_of("failure");
            assert_eq!((&failure["command"], &failure["code"]), (&json!(command[0]), &json!(code)), "{output}");
            assert!(failure["hint"].as_str().unwrap().contains("libvirtd"), "{output}");
            assert!(output.stderr().starts_with("kvmb: error: "), "{output}");
        }
    }
    // The records of a pipeline name their connection, which may not be available any more.
    let gone = json!({"type": "machine", "connect": nowhere, "machine": "vm1", "uuid": "1", "state": "running",
        "persistent": true, "autostart": null, "memory_bytes": 1, "vcpus": 1, "disks": [], "agent": "none"});
    let output = env.kvmb(["disks"]).stdin(format!("{gone}\n")).run().assert_code(1);
    assert_eq!(output.record_of("failure")["machine"], "vm1");
    env.assert_nothing_left();
}
