//! The restore wizard: single disks, errors at fields, and missing parts of the host with their fixes.

use super::client::{encoded, open};
use crate::support::{Disk, Env};

const MIB: u64 = 1 << 20;
const VM: &str = "kvmb-test-vm1";

#[test]
fn single_disks_are_restored_in_place_or_into_a_folder() {
    let env = Env::new("single disks");
    let machine = env.machine(VM).disk(Disk::qcow2(3 * MIB)).disk(Disk::raw(2 * MIB)).define();
    machine.write("vda", 0, MIB, 0x11);
    machine.write("vdb", 0, MIB, 0x22);
    env.kvmb(["init", "-r", &env.repo()]).run().assert_ok();
    env.kvmb(["backup", VM, "-r", &env.repo()]).run().assert_ok();
    let then = machine.models();
    let console = open(&env, &[]);
    let point = env.kvmb(["points", "-r", &env.repo()]).run().assert_ok().record_of("point");
    let id = point["point"].as_str().unwrap().to_owned();
    let (review, start) = (format!("/restore/{id}/review"), format!("/restore/{id}/start"));

    // Values are kept, and errors are shown at their fields.
    let page = console.get(&format!("{review}?where=disks")).assert_status(422);
    page.assert_has("Tick at least one disk.").assert_has("value=\"disks\" checked");
    let page = console.get(&format!("{review}?where=copy&as=&into=%2Ftmp")).assert_status(422);
    page.assert_has("id=\"f-as-e\"").assert_has("aria-invalid=\"true\"").assert_has("value=\"/tmp\"");
    console.get(&review).assert_status(422).assert_has("Choose where to restore to.");
    console.get(&format!("{review}?where=files&folder=")).assert_status(422).assert_has("id=\"f-folder-e\"");
    console.get(&format!("/restore/{}/where", "0".repeat(64))).assert_status(404);

    // Restore one disk in place: the other one keeps later changes.
    machine.write("vda", 0, 2 * MIB, 0x55);
    machine.write("vdb", 0, 2 * MIB, 0x66);
    let page = console.get(&format!("{review}?where=disks&disk=vdb")).assert_status(200);
    let page = page.assert_has(&format!("Overwrite disks of {VM}")).assert_has("--disk=vdb --overwrite -r");
    assert!(!page.body.contains(&machine.image("vda").display().to_string()), "{}", page.body);
    let fields = [("where", "disks"), ("disk", "vdb"), ("confirm", "vm")];
    let page = console.post(&start, &fields).assert_status(422).assert_has("This is not the name");
    assert_eq!((page.field("where"), page.field("disk")), ("disks".into(), "vdb".into()));
    assert!(!page.body.contains("value=\"vm\""), "a name is typed, not corrected: {}", page.body);
    let job = console.run_job(&start, &[("where", "disks"), ("disk", "vdb"), ("confirm", VM)], "done");
    job.assert_has("The definition of the machine is unchanged.").assert_lacks("Do it again");
    then["vdb"].assert_image_equals(machine.image("vdb"), machine.format("vdb"));
    machine.assert_image_equals_model("vda");

    // Restore to a folder in another format; nothing is overwritten, so no name has to be typed.
    let folder = env.path("rescue");
    std::fs::create_dir(&folder).unwrap();
    let into = folder.display().to_string();
    let fields = [("where", "disks"), ("disk", "vda"), ("disks_into", into.as_str()), ("format", "raw")];
    let query = format!("where=disks&disk=vda&disks_into={}&format=raw", encoded(&into));
    console.get(&format!("{review}?{query}")).assert_status(200).assert_lacks("id=\"confirm\"");
    let job = console.run_job(&start, &fields, "done").assert_has(&into);
    let image = job.body.split(&format!("{into}/")).nth(1).unwrap().split('<').next().unwrap().to_owned();
    then["vda"].assert_image_equals(&folder.join(image), "raw");
    // The second time, the image already exists.
    let page = console.get(&format!("{review}?{query}")).assert_status(422);
    page.assert_has("This cannot be restored.").assert_has("disks_into=");
    // Restored as files, with the definition and the next step.
    let files = env.path("files");
    std::fs::create_dir(&files).unwrap();
    let files = files.display().to_string();
    let job = console.run_job(&start, &[("where", "files"), ("folder", &files)], "done");
    job.assert_has(&format!("virsh define -- {files}/{VM}.xml"));
    console.running.interrupt();
    console.running.wait().assert_ok();
    env.assert_nothing_left();
}

#[test]
fn running_machine_is_backed_up_but_never_overwritten() {
    let env = Env::new("running");
    let machine = env.machine(VM).disk(Disk::qcow2(4 * MIB)).start_paused();
    machine.write("vda", 0, MIB, 0x11);
    env.kvmb(["init", "-r", &env.repo()]).run().assert_ok();
    let console = open(&env, &[]);
    console.run_job("/backup", &[("m", VM)], "done");
    let then = machine.models();
    machine.write("vda", MIB, MIB, 0x22);
    console.run_job("/backup", &[("m", VM), ("verify", "yes")], "done").assert_has("verified");
    let points = env.kvmb(["points", "-r", &env.repo()]).run().assert_ok().records_of("point");
    let older = points[0]["point"].as_str().unwrap().to_owned();
    assert_eq!(points[1]["disks"][0]["read_mode"], "changed");
    console.get(&format!("/points/{}", points[1]["point"].as_str().unwrap())).assert_has("only changes");
    let refused = console.get(&format!("/restore/{older}/review?where=place")).assert_status(422);
    refused.assert_has("in use by a running machine").assert_lacks("id=\"confirm\"");
    // What the page refuses, submitting the form refuses as well.
    let start = format!("/restore/{older}/start");
    console.run_job(&start, &[("where", "place"), ("confirm", VM)], "failed").assert_has("in use by a running machine");
    let into = env.path("beside");
    std::fs::create_dir(&into).unwrap();
    let into = into.display().to_string();
    let fields = [("where", "copy"), ("as", "kvmb-test-copy"), ("into", into.as_str())];
    console.run_job(&start, &fields, "done").assert_has("kvmb-test-copy");
    let copies: Vec<_> = std::fs::read_dir(&into).unwrap().flatten().map(|entry| entry.path()).collect();
    assert_eq!(copies.len(), 1, "{copies:?}");
    then["vda"].assert_image_equals(&copies[0], "qcow2");
    machine.stop();
    machine.assert_image_equals_model("vda");
}

#[test]
fn missing_medium_can_be_dropped_on_the_review_page() {
    let env = Env::new("missing medium");
    let medium = env.disks().join("setup.iso");
    std::fs::write(&medium, vec![0; 4096]).unwrap();
    let drive = format!(
        "<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='{}'/>\
         <target dev='sda' bus='sata'/><readonly/></disk>",
        medium.display()
    );
    let machine = env.machine(VM).disk(Disk::qcow2(2 * MIB)).devices_xml(&drive).define();
    machine.write("vda", 0, MIB, 0x11);
    env.kvmb(["init", "-r", &env.repo()]).run().assert_ok();
    env.kvmb(["backup", VM, "-r", &env.repo()]).run().assert_ok();
    std::fs::remove_file(&medium).unwrap();
    let console = open(&env, &[]);
    let point = env.kvmb(["points", "-r", &env.repo()]).run().assert_ok().record_of("point");
    let id = point["point"].as_str().unwrap().to_owned();
    let into = env.path("copies");
    std::fs::create_dir(&into).unwrap();
    let into = into.display().to_string();
    let query = format!("where=copy&as=kvmb-test-copy&into={}", encoded(&into));
    let page = console.get(&format!("/restore/{id}/review?{query}")).assert_status(200);
    let page = page.assert_has("setup.iso of drive sda").assert_has("name=\"drop_missing_media\"");
    page.assert_has("Fix it here");
    let page = console.get(&format!("/restore/{id}/review?{query}&drop_missing_media=1")).assert_status(200);
    let page = page.assert_lacks("not on this host").assert_has("name=\"drop_missing_media\" value=\"1\" checked");
    page.assert_has("--drop-missing-media");
    let fields = [("where", "copy"), ("as", "kvmb-test-copy"), ("into", &into), ("drop_missing_media", "1")];
    let job = console.run_job(&format!("/restore/{id}/start"), &fields, "done");
    job.assert_has("virsh start -- kvmb-test-copy").assert_has("Next step");
    console.get("/machines/kvmb-test-copy?again=1").assert_status(200).assert_has("Back up now");
}
