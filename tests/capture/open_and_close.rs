//! Captures of real machines: opened, read, closed, and possible failures in between.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::lab::*;
use kvmb::capture::agent::{Consistency, FreezeMode};
use kvmb::capture::close::{clear_leftovers, drain_capture};
use kvmb::capture::domain_xml::rewrite::{Changes, NewDisk, NewDiskKind, rewrite};
use kvmb::capture::job::{JobDisk, JobRequest};
use kvmb::capture::machine::{MachineState, PausedReason, Which};
use kvmb::capture::offline::storage_daemon;
use kvmb::capture::state::{CaptureFile, CaptureMethod, FileRole, ReadMode};
use kvmb::capture::{
    CloseRequest, Definition, DiskRequest, Error, Hypervisor, LibvirtErrorKind, RuntimeDirs, close_capture,
    open_capture,
};

#[test]
fn running_machine_is_captured_at_one_instant() {
    let lab = Lab::new("instant");
    let vm = lab.running(&[Image::qcow2("vda", 32), Image::raw("vdb", 16)]);
    vm.qemu_io("vda", "write -P 0x11 0 8M");
    vm.qemu_io("vdb", "write -P 0x22 4M 4M");
    let state = lab.open(&vm, lab.request(&["vda", "vdb"])).unwrap();
    let job = state.job().unwrap();
    assert_eq!(state.consistency, Consistency::Crash);
    assert_eq!(job.freeze_note.as_deref(), Some("the machine has no guest agent channel"));
    vm.qemu_io("vda", "write -P 0x99 0 16M");
    vm.qemu_io("vdb", "write -P 0x99 0 16M");
    assert!(lab.read(&state, "vda") == pattern(32, &[(0, 8, 0x11)]));
    assert!(lab.read(&state, "vdb") == pattern(16, &[(4, 4, 0x22)]));
    assert_eq!(state.disks[0].capacity_bytes, 32 << 20);
    assert_eq!(state.disks[1].format, "raw");
    assert!(state.definition_xml.contains(vm.machine.name()));
    let closed = lab.close(&state, &CloseRequest::default());
    assert!(closed.ended);
    lab.assert_nothing_left(&vm);
}

#[test]
fn qcow2_changes_are_marked_and_raw_is_read_in_full_with_reason() {
    let lab = Lab::new("changed");
    let vm = lab.running(&[Image::qcow2("vda", 32), Image::raw("vdb", 16)]);
    vm.qemu_io("vda", "write -P 0x11 0 8M");
    let mut request = lab.request(&["vda", "vdb"]);
    request.checkpoint = Some("kvmb-test-1".into());
    let first = lab.open(&vm, request.clone()).unwrap();
    assert_eq!(first.checkpoint.as_deref(), Some("kvmb-test-1"));
    assert_eq!(first.checkpoint_disks, ["vda"]);
    assert!(!first.disks[1].has_new_bitmap);
    lab.commit(&first, "point-1");
    assert_eq!(lab.close(&first, &CloseRequest::default()).deleted_checkpoints, [""; 0]);
    assert_eq!(vm.machine.checkpoints().unwrap(), ["kvmb-test-1"]);

    vm.qemu_io("vda", "write -P 0x33 4M 1M");
    assert_eq!(vm.machine.usable_bitmaps("kvmb-test-1").unwrap()["vda"], 1 << 20);
    request.checkpoint = Some("kvmb-test-2".into());
    request.disks = vec![DiskRequest::since("vda", "kvmb-test-1"), DiskRequest::since("vdb", "kvmb-test-1")];
    let second = lab.open(&vm, request).unwrap();
    let vda = second.disk("vda").unwrap();
    assert_eq!(vda.read_mode, ReadMode::Changed);
    assert_eq!(vda.dirty_context.as_deref(), Some("qemu:dirty-bitmap:backup-vda"));
    assert_eq!(dirty(vda.dirty_context.as_deref().unwrap(), &vda.nbd_uri), [(4 << 20, 1 << 20)]);
    let vdb = second.disk("vdb").unwrap();
    assert_eq!(vdb.read_mode, ReadMode::Full);
    assert!(vdb.read_mode_reason.as_deref().unwrap().contains("kvmb-test-1"));
    lab.commit(&second, "point-2");
    let closed = lab.close(&second, &CloseRequest { chain: Some("kvmb-test-".into()), ..CloseRequest::default() });
    assert_eq!(closed.deleted_checkpoints, ["kvmb-test-1"]);
    assert_eq!(vm.machine.checkpoints().unwrap(), ["kvmb-test-2"]);
    lab.assert_nothing_left(&vm);
}

#[test]
fn closing_an_uncommitted_capture_deletes_its_checkpoint() {
    let lab = Lab::new("rollback");
    let vm = lab.running(&[Image::qcow2("vda", 8)]);
    let mut request = lab.request(&["vda"]);
    request.checkpoint = Some("kvmb-test-1".into());
    let state = lab.open(&vm, request).unwrap();
    let closed = lab.close(&state, &CloseRequest { chain: Some("kvmb-test-".into()), ..CloseRequest::default() });
    assert_eq!(closed.deleted_checkpoints, ["kvmb-test-1"]);
    assert!(vm.machine.checkpoints().unwrap().is_empty());
    assert!(vm.bitmaps("vda").is_empty());
    lab.assert_nothing_left(&vm);
}

#[test]
fn close_succeeds_twice_and_after_the_machine_stopped_or_vanished() {
    let lab = Lab::new("twice");
    let vm = lab.running(&[Image::qcow2("vda", 8)]);
    let state = lab.open(&vm, lab.request(&["vda"])).unwrap();
    let file = CaptureFile::open(&lab.runtime, &state.id).unwrap();
    let drained = drain_capture(&lab.runtime, Some(&lab.hypervisor), &file).unwrap();
    assert!(drained.ended);
    let again = drain_capture(&lab.runtime, Some(&lab.hypervisor), &file).unwrap();
    assert!(!again.ended);
    drop(file);
    assert!(!lab.close(&state, &CloseRequest::default()).ended);
    assert!(matches!(CaptureFile::open(&lab.runtime, &state.id), Err(Error::NoSuchCapture { .. })));

    let mut request = lab.request(&["vda"]);
    request.checkpoint = Some("kvmb-test-1".into());
    let state = lab.open(&vm, request.clone()).unwrap();
    vm.kill();
    let closed = lab.close(&state, &CloseRequest::default());
    assert!(!closed.ended);
    // The machine is off: libvirt only has to delete the checkpoint's metadata, because its bitmap ended with QEMU.
    assert_eq!(closed.deleted_checkpoints, ["kvmb-test-1"]);
    assert_eq!(closed.pending_checkpoints, [""; 0]);
    vm.start();
    assert!(clear_leftovers(&lab.runtime, &vm.machine).unwrap().is_empty());
    assert!(vm.machine.checkpoints().unwrap().is_empty());

    let state = lab.open(&vm, request).unwrap();
    vm.kill();
    vm.machine.undefine(true).unwrap();
    let closed = lab.close(&state, &CloseRequest::default());
    assert!(closed.machine_gone);
    assert!(CaptureFile::open_all(&lab.runtime).unwrap().is_empty());
}

#[test]
fn live_capture_blocks_others_and_expired_capture_is_cleared() {
    let lab = Lab::new("lease");
    let vm = lab.running(&[Image::qcow2("vda", 8)]);
    let mut request = lab.request(&["vda"]);
    request.lease = Duration::from_secs(2);
    let first = lab.open(&vm, request.clone()).unwrap();
    match lab.open(&vm, request.clone()).unwrap_err() {
        Error::Held { capture, until, .. } => {
            assert_eq!(capture, first.id);
            assert!(until.is_some());
        }
        other => panic!("{other}"),
    }
    wait_until(|| first.is_expired());
    // An active reader keeps it open, even if the lease has expired.
    let reader = CaptureFile::open(&lab.runtime, vm.machine.name()).unwrap();
    reader.lock_shared().unwrap();
    assert!(matches!(lab.open(&vm, request.clone()), Err(Error::Held { until: None, .. })));
    assert!(matches!(
        close_capture(
            &lab.runtime,
            Some(&lab.hypervisor),
            CaptureFile::open(&lab.runtime, &first.id).unwrap(),
            &CloseRequest::default()
        ),
        Err(Error::Held { .. })
    ));
    drop(reader);
    let second = lab.open(&vm, request).unwrap();
    assert_ne!(first.id, second.id);
    assert_eq!(CaptureFile::open_all(&lab.runtime).unwrap().len(), 1);
    lab.close(&second, &CloseRequest::default());
    lab.assert_nothing_left(&vm);
}

#[test]
fn leftovers_of_a_killed_run_are_cleared() {
    let lab = Lab::new("killed");
    let vm = lab.running(&[Image::qcow2("vda", 8)]);
    let mut request = lab.request(&["vda"]);
    request.checkpoint = Some("kvmb-test-1".into());
    let state = lab.open(&vm, request.clone()).unwrap();
    // As if killed between the start of the job and the second write of the state.
    let path = lab.runtime.state_folder().join(&state.id).join("state.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\"phase\": \"open\"", "\"phase\": \"opening\"")).unwrap();
    let cleared = clear_leftovers(&lab.runtime, &vm.machine).unwrap();
    assert!(cleared[0].ended);
    assert_eq!(cleared[0].deleted_checkpoints, ["kvmb-test-1"]);
    lab.assert_nothing_left(&vm);

    // As if /run had been emptied: the job's owner is identified by its socket.
    let state = lab.open(&vm, lab.request(&["vda"])).unwrap();
    fs::remove_dir_all(lab.runtime.state_folder().join(&state.id)).unwrap();
    clear_leftovers(&lab.runtime, &vm.machine).unwrap();
    lab.assert_nothing_left(&vm);
}

#[test]
fn foreign_backup_job_is_left_running() {
    let lab = Lab::new("foreign");
    let vm = lab.running(&[Image::qcow2("vda", 8)]);
    let elsewhere = lab.qemu_folder("elsewhere");
    let foreign = JobRequest {
        socket: elsewhere.join("their.sock"),
        disks: vec![JobDisk { target: "vda".into(), scratch: elsewhere.join("their.qcow2"), parent: None }],
        ..JobRequest::default()
    };
    vm.machine.begin_backup(&foreign, never()).unwrap();
    let error = lab.open(&vm, lab.request(&["vda"])).unwrap_err();
    assert!(matches!(error, Error::ForeignJob { .. }), "{error}");
    assert!(error.is_busy());
    assert!(error.to_string().contains("their.sock"), "{error}");
    let job = vm.machine.running_backup().unwrap().unwrap();
    assert_eq!(job.disks, ["vda"]);
    assert!(vm.machine.end_backup().unwrap());
    assert!(!vm.machine.end_backup().unwrap());
}

#[test]
fn stopped_machine_is_served_until_its_lease_ends() {
    let lab = Lab::new("off");
    let vm = lab.off(&[Image::qcow2("vda", 32), Image::raw("vdb", 8)]);
    write_off(&vm.image("vda"), "qcow2", "write -P 0x11 1M 2M");
    write_off(&vm.image("vdb"), "raw", "write -P 0x22 0 1M");
    let state = lab.open(&vm, lab.request(&["vda", "vdb"])).unwrap();
    let reader = state.offline().unwrap();
    assert_eq!(state.consistency, Consistency::Offline);
    assert!(lab.read(&state, "vda") == pattern(32, &[(1, 2, 0x11)]));
    assert!(lab.read(&state, "vdb") == pattern(8, &[(0, 1, 0x22)]));
    assert!(vm.machine.start_paused().is_err());
    let servers: Vec<u32> =
        reader.servers.iter().flat_map(|server| storage_daemon::servers_on(&server.socket)).collect();
    // The daemon for both disks, and the `timeout` that guards it.
    assert_eq!(servers.len(), 2);
    assert!(lab.close(&state, &CloseRequest::default()).ended);
    lab.assert_nothing_left(&vm);

    let mut request = lab.request(&["vda"]);
    request.lease = Duration::from_secs(1);
    let state = lab.open(&vm, request.clone()).unwrap();
    let server = state.offline().unwrap().servers[0].clone();
    wait_until(|| !storage_daemon::is_ours(&server.process, &server.socket));
    let again = lab.open(&vm, request).unwrap();
    assert_ne!(again.id, state.id);
    lab.close(&again, &CloseRequest::default());
    vm.start();
}

#[test]
fn changes_of_a_stopped_machine_are_read_from_its_image_bitmaps() {
    let lab = Lab::new("offchain");
    let vm = lab.running(&[Image::qcow2("vda", 16)]);
    let mut request = lab.request(&["vda"]);
    request.checkpoint = Some("kvmb-test-1".into());
    let first = lab.open(&vm, request.clone()).unwrap();
    lab.commit(&first, "point-1");
    lab.close(&first, &CloseRequest::default());
    vm.qemu_io("vda", "write -P 0x44 2M 1M");
    vm.stop();
    request.disks = vec![DiskRequest::since("vda", "kvmb-test-1")];
    let second = lab.open(&vm, request.clone()).unwrap();
    let vda = &second.disks[0];
    assert_eq!(second.checkpoint, None);
    assert_eq!(vda.read_mode, ReadMode::Changed);
    assert_eq!(dirty(vda.dirty_context.as_deref().unwrap(), &vda.nbd_uri), [(2 << 20, 1 << 20)]);
    lab.close(&second, &CloseRequest::default());

    // QEMU was killed, so the bitmap was not closed.
    vm.start();
    vm.kill();
    let third = lab.open(&vm, request.clone()).unwrap();
    assert_eq!(third.disks[0].read_mode, ReadMode::Full);
    assert!(third.disks[0].read_mode_reason.is_some());
    lab.close(&third, &CloseRequest::default());

    // Running again: the bitmap is invalid and the disk is read in full, but the checkpoint can still be deleted.
    vm.start();
    request.checkpoint = Some("kvmb-test-2".into());
    let fourth = lab.open(&vm, request).unwrap();
    assert_eq!(fourth.disks[0].read_mode, ReadMode::Full);
    lab.commit(&fourth, "point-4");
    let closed = lab.close(&fourth, &CloseRequest { chain: Some("kvmb-test-".into()), ..CloseRequest::default() });
    assert_eq!(closed.deleted_checkpoints, ["kvmb-test-1"]);
    assert_eq!(vm.machine.checkpoints().unwrap(), ["kvmb-test-2"]);
}

#[test]
fn checkpoint_with_a_missing_bitmap_is_deleted_from_every_disk() {
    let lab = Lab::new("heal");
    let vm = lab.running(&[Image::qcow2("vda", 8), Image::qcow2("vdb", 8), Image::qcow2("vdc", 8)]);
    let mut request = lab.request(&["vda", "vdb", "vdc"]);
    request.checkpoint = Some("kvmb-test-1".into());
    let state = lab.open(&vm, request).unwrap();
    lab.commit(&state, "point-1");
    lab.close(&state, &CloseRequest::default());
    vm.stop();
    let removed =
        Command::new("qemu-img").args(["bitmap", "--remove"]).arg(vm.image("vda")).arg("kvmb-test-1").status().unwrap();
    assert!(removed.success());
    vm.start();
    let usable = vm.machine.usable_bitmaps("kvmb-test-1").unwrap();
    assert!(!usable.contains_key("vda"), "{usable:?}");
    assert!(vm.machine.delete_checkpoint("kvmb-test-1").unwrap());
    assert!(!vm.machine.delete_checkpoint("kvmb-test-1").unwrap());
    vm.stop();
    for target in ["vda", "vdb", "vdc"] {
        assert!(vm.bitmaps(target).is_empty(), "{target}");
    }
}

#[test]
fn forgotten_checkpoint_is_redefined_and_used() {
    let lab = Lab::new("forgotten");
    let vm = lab.running(&[Image::qcow2("vda", 8)]);
    let mut request = lab.request(&["vda"]);
    request.checkpoint = Some("kvmb-test-1".into());
    let state = lab.open(&vm, request.clone()).unwrap();
    lab.commit(&state, "point-1");
    lab.close(&state, &CloseRequest::default());
    vm.stop();
    let xml = vm.machine.definition_xml(Which::Inactive, true).unwrap();
    vm.machine.undefine(true).unwrap();
    let vm = vm.redefined(&xml);
    vm.start();
    assert!(vm.machine.checkpoints().unwrap().is_empty());
    vm.qemu_io("vda", "write -P 0x55 0 64k");
    request.checkpoint = Some("kvmb-test-2".into());
    request.disks = vec![DiskRequest::since("vda", "kvmb-test-1")];
    let state = lab.open(&vm, request).unwrap();
    assert_eq!(state.disks[0].read_mode, ReadMode::Changed);
    lab.close(&state, &CloseRequest::default());
}

#[test]
fn capture_closes_when_its_scratch_file_system_is_full() {
    let lab = Lab::new("full");
    // QEMU has its own mount namespace from its start, and may not see later mounts.
    let scratch = Tmpfs::mount(&lab.folder.join("small"), "8m");
    let vm = lab.running(&[Image::qcow2("vda", 64)]);
    vm.qemu_io("vda", "write -P 0x11 0 48M");
    let mut request = lab.request(&["vda"]);
    request.scratch_dir = Some(scratch.0.clone());
    let state = lab.open(&vm, request).unwrap();
    // A write by the monitor fills the file system without pausing the machine, unlike a write of the guest.
    vm.qemu_io("vda", "write -P 0x22 0 32M");
    assert!(lab.close(&state, &CloseRequest::default()).ended);
    assert_eq!(vm.machine.state().unwrap(), MachineState::Paused(PausedReason::User));
    lab.assert_nothing_left(&vm);
}

#[test]
fn twenty_six_disks_are_captured_in_one_job() {
    let lab = Lab::new("many");
    let images: Vec<Image> = ('a'..='z').map(|letter| Image::qcow2(&format!("sd{letter}"), 2)).collect();
    let vm = lab.running(&images);
    vm.qemu_io("sdz", "write -P 0x77 1M 1M");
    let targets: Vec<String> = images.iter().map(|image| image.target.clone()).collect();
    let targets: Vec<&str> = targets.iter().map(String::as_str).collect();
    let mut request = lab.request(&targets);
    request.checkpoint = Some("kvmb-test-1".into());
    let state = lab.open(&vm, request).unwrap();
    assert_eq!(state.disks.len(), 26);
    assert_eq!(state.checkpoint_disks.len(), 26);
    assert!(lab.read(&state, "sdz") == pattern(2, &[(1, 1, 0x77)]));
    lab.close(&state, &CloseRequest::default());
    lab.assert_nothing_left(&vm);
}

#[test]
fn unrequested_disk_is_in_neither_job_nor_checkpoint() {
    let lab = Lab::new("subset");
    let vm = lab.running(&[Image::qcow2("vda", 8), Image::qcow2("vdb", 8)]);
    let mut request = lab.request(&["vdb"]);
    request.checkpoint = Some("kvmb-test-1".into());
    let state = lab.open(&vm, request).unwrap();
    assert_eq!(state.checkpoint_disks, ["vdb"]);
    assert_eq!(state.skipped[0].target, "vda");
    assert_eq!(state.skipped[0].reason, "not selected");
    let job = vm.machine.running_backup().unwrap().unwrap();
    assert_eq!(job.disks, ["vdb"]);
    lab.commit(&state, "point-1");
    lab.close(&state, &CloseRequest::default());
    let bitmaps = vm.machine.usable_bitmaps("kvmb-test-1").unwrap();
    assert_eq!(bitmaps.keys().collect::<Vec<_>>(), ["vdb"]);
}

#[test]
fn machines_with_odd_names_are_found_captured_and_released() {
    let lab = Lab::new("names");
    for name in [
        "kvmb-test with blanks",
        "kvmb-test-'quotes'-\"both\"",
        "kvmb-test-ü-机",
        "-kvmb-test-dash",
        "kvmb-test-<&>;$(x)",
        "kvmb-test-[a-z]*",
    ] {
        let vm = lab.named(name, &[Image::qcow2("vda", 4)]);
        vm.start();
        let found = lab.hypervisor.machines(&[name.to_owned()]).unwrap();
        assert_eq!(found.len(), 1, "{name}");
        assert_eq!(found[0].name(), name);
        let state = lab.open(&vm, lab.request(&["vda"])).unwrap();
        assert_eq!(state.machine, name);
        assert!(lab.read(&state, "vda") == pattern(4, &[]));
        lab.close(&state, &CloseRequest::default());
        lab.assert_nothing_left(&vm);
    }
}

#[test]
fn unknown_machine_name_error_lists_similar_names() {
    let lab = Lab::new("near");
    let vm = lab.named("kvmb-test-nearby", &[Image::qcow2("vda", 4)]);
    let error = lab.hypervisor.machines(&["kvmb-test-nearbx".into()]).unwrap_err();
    assert!(error.to_string().contains(vm.machine.name()), "{error}");
    assert!(error.is_not_found());
    assert!(lab.hypervisor.machines(&["kvmb-none-*".into()]).is_err());
    let found = lab.hypervisor.machines(&["kvmb-test-near*".into(), vm.machine.uuid().into()]);
    assert_eq!(found.unwrap().len(), 1);
}

#[test]
fn nvram_is_copied_and_image_layers_are_identified() {
    let lab = Lab::new("nvram");
    let vm = lab.off(&[Image::qcow2("vda", 8)]);
    let variables = vm.folder.join("vars.fd");
    let code = vm.folder.join("code.fd");
    fs::write(&variables, b"the variables").unwrap();
    fs::write(&code, b"the code").unwrap();
    let overlay = vm.folder.join("overlay.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"], &[&vm.image("vda"), &overlay]);
    let xml = vm.machine.definition_xml(Which::Inactive, true).unwrap();
    let firmware = format!(
        "<loader readonly='yes' type='pflash'>{}</loader><nvram>{}</nvram></os>",
        code.display(),
        variables.display()
    );
    let xml = xml
        .replace("</os>", &firmware)
        .replace("<devices>", "<features><acpi/></features><devices>")
        .replace("vda.img", "overlay.qcow2");
    let vm = vm.redefined(&xml);
    let state = lab.open(&vm, lab.request(&["vda"])).unwrap();
    let copy = state.copies.iter().find(|copy| copy.role == FileRole::Nvram).unwrap();
    assert_eq!(copy.origin, variables);
    let file = CaptureFile::open(&lab.runtime, &state.id).unwrap();
    let copied = file.folder().join(&copy.name);
    assert_eq!(fs::read(&copied).unwrap(), b"the variables");
    assert_eq!(fs::metadata(&copied).unwrap().permissions().mode() & 0o777, 0o600);
    drop(file);
    let image = &state.disks[0].image;
    assert_eq!(image.len(), 2);
    assert_eq!(image[1].path, vm.image("vda").to_string_lossy());
    assert_eq!(image[1].inode, fs::metadata(vm.image("vda")).unwrap().ino());
    lab.close(&state, &CloseRequest::default());
}

#[test]
fn backing_file_of_unknown_format_is_refused() {
    let lab = Lab::new("probing");
    let vm = lab.off(&[Image::qcow2("vda", 8)]);
    let overlay = vm.folder.join("overlay.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"], &[&vm.image("vda"), &overlay]);
    // An old image, which does not record the format of its backing file.
    let header = fs::read(&overlay).unwrap();
    let at = header.windows(4).position(|bytes| bytes == [0xe2, 0x79, 0x2a, 0xca]).unwrap();
    let mut header = header;
    header[at..at + 4].copy_from_slice(&[0x11, 0x22, 0x33, 0x44]);
    fs::write(&overlay, header).unwrap();
    let xml = vm.machine.definition_xml(Which::Inactive, true).unwrap();
    let vm = vm.redefined(&xml.replace("vda.img", "overlay.qcow2"));
    let error = lab.open(&vm, lab.request(&["vda"])).unwrap_err();
    assert!(matches!(error, Error::NoBackingFormat { .. }), "{error}");
    lab.assert_nothing_left(&vm);
}

#[test]
fn missing_image_fails_only_its_own_disk() {
    let lab = Lab::new("missing");
    let vm = lab.off(&[Image::qcow2("vda", 8), Image::raw("vdb", 8)]);
    fs::remove_file(vm.image("vda")).unwrap();
    assert!(vm.machine.disk_info("vda").is_err());
    assert_eq!(vm.machine.disk_info("vdb").unwrap().capacity_bytes, 8 << 20);
    assert!(lab.open(&vm, lab.request(&["vda"])).is_err());
    assert!(matches!(lab.open(&vm, lab.request(&["vdx"])), Err(Error::DiskNotCapturable { .. })));
    lab.assert_nothing_left(&vm);
}

#[test]
fn failed_required_freeze_leaves_no_capture_or_checkpoint() {
    let lab = Lab::new("freeze");
    let vm = lab.running(&[Image::qcow2("vda", 8)]);
    let mut request = lab.request(&["vda"]);
    request.checkpoint = Some("kvmb-test-1".into());
    request.freeze.mode = FreezeMode::Required;
    assert!(matches!(lab.open(&vm, request), Err(Error::FreezeFailed { .. })));
    assert!(vm.machine.checkpoints().unwrap().is_empty());
    lab.assert_nothing_left(&vm);
}

#[test]
fn libvirt_accepts_a_rewritten_definition_with_all_changes() {
    let lab = Lab::new("rewrite");
    let vm = lab.running(&[Image::qcow2("vda", 8), Image::raw("vdb", 8)]);
    let target = vm.folder.join("it's <new> & ü.img");
    qemu_img(&["create", "-q", "-f", "raw"], &[&target]);
    for which in [Which::Live, Which::Inactive] {
        let xml = vm.machine.definition_xml(which, true).unwrap();
        let name = format!("kvmb-test-rewritten <&'\"> {which:?}");
        let uuid = random_uuid();
        let changes = Changes {
            name: Some(name.clone()),
            uuid: Some(uuid.clone()),
            new_macs: true,
            disks: [(
                "vda".to_owned(),
                NewDisk { path: target.clone(), kind: NewDiskKind::File, format: "raw".into() },
            )]
            .into(),
            drop_disks: ["vdb".to_owned()].into(),
            ..Changes::default()
        };
        let rewritten = rewrite(&xml, &changes).unwrap();
        let machine = lab.hypervisor.define(&rewritten).unwrap();
        assert_eq!(machine.name(), name);
        assert_eq!(machine.uuid(), uuid);
        let now = machine.definition(Which::Inactive).unwrap();
        assert_eq!(now.disk("vda").unwrap().path(), Some(&target));
        assert_eq!(now.disk("vda").unwrap().format.as_deref(), Some("raw"));
        assert!(now.disk("vdb").is_none());
        let before = vm.machine.definition_xml(Which::Inactive, true).unwrap();
        let after = machine.definition_xml(Which::Inactive, true).unwrap();
        assert_ne!(mac_of(&before), mac_of(&after));
        assert!(mac_of(&after).starts_with("52:54:00:"));
        machine.undefine(true).unwrap();
    }
}

#[test]
fn libvirt_accepts_every_rewritten_disk_type() {
    let lab = Lab::new("kinds");
    let kinds = [
        "<disk type='block' device='disk'><driver name='qemu' type='raw' cache='none' io='native'/>\
         <source dev='/dev/vg/x'/><target dev='vda' bus='virtio'/></disk>",
        "<disk type='network' device='disk'><driver name='qemu' type='raw'/><auth username='admin'>\
         <secret type='ceph' usage='x'/></auth><source protocol='rbd' name='p/i'><host name='m' port='6789'/></source>\
         <target dev='vda' bus='virtio'/></disk>",
        "<disk type='network' device='disk'><driver name='qemu' type='qcow2'/><source protocol='https' name='x.qcow2'>\
         <host name='h' port='443'/><ssl verify='yes'/></source><target dev='vda' bus='virtio'/></disk>",
        "<disk type='volume' device='disk'><driver name='qemu' type='qcow2'/><source pool='default' volume='v'/>\
         <target dev='vda' bus='virtio'/></disk>",
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2' discard_no_unref='on' discard='unmap'>\
         <metadata_cache><max_size unit='bytes'>65536</max_size></metadata_cache></driver><source file='/x.qcow2'>\
         <encryption format='luks'><secret type='passphrase' uuid='6a3ae1a4-4a4a-4c52-8d1b-3f6a6f6d3e2a'/></encryption>\
         </source><backingStore type='file'><format type='qcow2'/><source file='/base.qcow2'/></backingStore>\
         <target dev='vda' bus='virtio'/></disk>",
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/x.qcow2' \
         startupPolicy='optional'>\
         <dataStore type='file'><format type='raw'/><source file='/x.raw'/></dataStore></source>\
         <target dev='vda' bus='virtio'/></disk>",
        "<disk type='nvme' device='disk'><driver name='qemu' type='raw'/><source type='pci' managed='yes' \
         namespace='1'>\
         <address domain='0x0000' bus='0x01' slot='0x00' function='0x0'/></source><target dev='vda' bus='virtio'/>\
         </disk>",
    ];
    for kind in kinds {
        let xml = format!(
            "<domain type='qemu'><name>kvmb-test-kinds</name><memory unit='MiB'>32</memory>\
             <os><type arch='x86_64' machine='pc'>hvm</type></os><devices>\
             <emulator>/usr/bin/qemu-system-x86_64</emulator>{kind}</devices></domain>"
        );
        let machine = lab.hypervisor.define(&xml).unwrap_or_else(|error| panic!("{kind}: {error}"));
        let xml = machine.definition_xml(Which::Inactive, true).unwrap();
        machine.undefine(true).unwrap();
        for (kind, format) in [(NewDiskKind::File, "qcow2"), (NewDiskKind::Block, "raw")] {
            let new = NewDisk { path: "/new".into(), kind, format: format.into() };
            let changes = Changes { disks: [("vda".to_owned(), new)].into(), ..Changes::default() };
            let rewritten = rewrite(&xml, &changes).unwrap();
            let machine = lab.hypervisor.define(&rewritten).unwrap_or_else(|error| panic!("{rewritten}: {error}"));
            let now = machine.definition(Which::Inactive).unwrap();
            assert_eq!(now.disks[0].path(), Some(&PathBuf::from("/new")));
            machine.undefine(true).unwrap();
        }
    }
}

#[test]
fn pending_thaw_or_unknown_state_file_does_not_block_captures() {
    let lab = Lab::new("thaw");
    let vm = lab.running(&[Image::qcow2("vda", 4)]);
    let state = lab.open(&vm, lab.request(&["vda"])).unwrap();
    let file = CaptureFile::open(&lab.runtime, &state.id).unwrap();
    let mut changed = file.load().unwrap();
    let CaptureMethod::Job(job) = &mut changed.method else { panic!("a running machine has a job") };
    job.thaw_due = true;
    file.save(&changed).unwrap();
    drop(file);
    assert!(lab.close(&state, &CloseRequest::default()).ended);
    lab.assert_nothing_left(&vm);

    let odd = lab.runtime.state_folder().join("c-00000000");
    fs::create_dir(&odd).unwrap();
    fs::write(odd.join("state.json"), "{\"version\": 99}").unwrap();
    let state = lab.open(&vm, lab.request(&["vda"])).unwrap();
    let error = CaptureFile::open(&lab.runtime, "c-00000000").unwrap().load().unwrap_err();
    assert!(matches!(error, Error::BadState { .. }), "{error}");
    fs::remove_dir_all(odd).unwrap();
    lab.close(&state, &CloseRequest::default());
}

#[test]
fn test_driver_is_listed_and_its_capture_is_refused() {
    let hypervisor = Hypervisor::open(Some("test:///default")).unwrap();
    assert!(!hypervisor.is_local());
    let machines = hypervisor.machines(&[]).unwrap();
    assert_eq!(machines[0].name(), "test");
    let machine = hypervisor.machine("test").unwrap();
    assert_eq!(machine.state().unwrap(), MachineState::Running);
    let definition: Definition = machine.definition(Which::Live).unwrap();
    assert_eq!(definition.domain_type, "test");
    assert!(machine.info().unwrap().max_memory_bytes > 0);
    let lab = Lab::new("testdriver");
    let error = open_capture(&lab.runtime, &machine, &lab.request(&["vda"])).unwrap_err();
    assert!(matches!(error, Error::NotLocal { .. }), "{error}");
}

#[test]
fn unreachable_hypervisor_is_a_connection_error() {
    let error = Hypervisor::open(Some("qemu+unix:///system?socket=/nonexistent")).unwrap_err();
    assert_eq!(error.meaning(), LibvirtErrorKind::NoConnection, "{error:?}");
}

#[test]
fn state_folder_that_is_a_link_or_foreign_owned_is_refused() {
    let lab = Lab::new("folders");
    let real = lab.folder.join("real");
    fs::create_dir(&real).unwrap();
    let link = lab.folder.join("link");
    std::os::unix::fs::symlink(&real, &link).unwrap();
    assert!(matches!(RuntimeDirs::open_at(&link), Err(Error::UnsafeFolder { .. })));
    std::os::unix::fs::chown(&real, Some(12345), None).unwrap();
    assert!(matches!(RuntimeDirs::open_at(&real), Err(Error::UnsafeFolder { .. })));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(lab.runtime.state_folder()), 0o700);
    assert_eq!(mode(lab.runtime.socket_folder()), 0o711);
}

#[test]
fn overlong_socket_path_is_refused_before_any_job_starts() {
    let lab = Lab::new("long");
    let vm = lab.running(&[Image::qcow2("vda", 4)]);
    let runtime = RuntimeDirs::open_at(&lab.folder.join("x".repeat(80))).unwrap();
    let error = open_capture(&runtime, &vm.machine, &lab.request(&["vda"])).unwrap_err();
    assert!(matches!(error, Error::SocketPathTooLong { .. }), "{error}");
    assert!(vm.machine.running_backup().unwrap().is_none());
}
