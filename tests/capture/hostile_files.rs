//! Malicious files: planted by QEMU's user in place of firmware variables and TPM state, and a manifest that somebody
//! with write access to the repository has changed.

// A test panics if a result is not what it expects.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::backups::{MIB, backup, init, new_folder, noise, text};
use crate::support::storage::LoopDevice;
use crate::support::{Disk, Env, Machine, Output, PASSWORD, wait_until};
use kvmb::repo::{
    BlobKind, Content, Id, LockMode, Node, NodeKind, Password, Repository, Tree, Writer, WriterOptions, read_tree,
    write_tree,
};
use kvmb::storage::LocalStorage;
use rustix::fs::{CWD, Mode, mkfifoat};
use serde_json::{Value, json};

/// The id of an unprivileged user.
const QEMU: u32 = 65534;

const SECRET: &[u8] = b"root:SECRET-OF-THE-HOST";

/// Creates a folder that only root can write to, like the system's. It is removed when this is dropped.
fn roots_folder() -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("kvmb-test-").tempdir_in("/var/lib").unwrap();
    crate::support::set_mode(folder.path(), 0o755);
    folder
}

/// Creates a file of root that nobody else may read.
fn secret(env: &Env) -> PathBuf {
    let path = env.path("shadow");
    fs::write(&path, SECRET).unwrap();
    crate::support::set_mode(&path, 0o600);
    path
}

fn firmware(env: &Env) -> PathBuf {
    let path = env.path("code.fd");
    fs::write(&path, noise(1, 4096)).unwrap();
    path
}

/// Creates a machine that is off, with this file for firmware variables and data on its disk.
fn machine_with<'e>(env: &'e Env, variables: &Path, more: &str) -> Machine<'e> {
    let os = format!(
        "<loader readonly='yes' type='pflash'>{}</loader><nvram>{}</nvram>{more}",
        firmware(env).display(),
        variables.display()
    );
    let machine = env.machine("vm1").os_xml(&os).disk(Disk::qcow2(MIB)).define();
    machine.write("vda", 0, MIB / 2, 0x11);
    machine
}

/// Fails unless the machine's point was stored without this part and the run reported that. Returns the point's record.
#[track_caller]
fn assert_partial(env: &Env, output: Output, part: &str, why: &str) -> Value {
    let output = output.assert_code(3);
    let point = output.record_of("point");
    let left_out = point["left_out"].as_array().unwrap().clone();
    assert_eq!(left_out.len(), 1, "{point}");
    assert_eq!(left_out[0]["part"], part, "{point}");
    assert!(text(&left_out[0], "reason").contains(why), "{point}");
    let failure = output.record_of("failure");
    assert_eq!((&failure["code"], &failure["machine"]), (&json!("part_missing"), &json!("vm1")), "{output}");
    let listed = env.kvmb(["points", "-r", &env.repo()]).run().assert_ok().records();
    assert_eq!(listed.last().unwrap()["left_out"], point["left_out"]);
    point
}

/// Returns the files of a point, as listed by restic.
fn names_in(env: &Env, point: &Value) -> String {
    env.restic(env.repo()).call(["ls", text(point, "point")]).run().assert_ok().stdout().to_owned()
}

#[test]
fn planted_files_in_place_of_nvram_are_not_read() {
    let env = Env::new("planted");
    init(&env);
    let (secret, folder) = (secret(&env), env.path("nvram"));
    fs::create_dir(&folder).unwrap();
    let variables = folder.join("vm1_VARS.fd");
    let machine = machine_with(&env, &variables, "");
    let back_up = || {
        let began = Instant::now();
        let output = env.kvmb(["backup", "vm1", "-r", &env.repo()]).run();
        assert!(began.elapsed() < Duration::from_secs(30), "{output}");
        output
    };
    // The file does not exist, and libvirt has no template for it.
    assert_partial(&env, back_up(), "nvram", "No such file");
    // With a template, libvirt creates the file at the first start, so nothing is missing.
    let template = env.path("template.fd");
    fs::write(&template, noise(7, 4096)).unwrap();
    let without = machine.definition();
    let element = format!("<nvram template='{}'", template.display());
    env.define_xml(&without.replace("<nvram", &element));
    assert_eq!(back_up().assert_ok().record_of("point").get("left_out"), None);
    env.define_xml(&without);

    symlink(&secret, &variables).unwrap();
    let point = assert_partial(&env, back_up(), "nvram", "symbolic link");
    assert!(!names_in(&env, &point).contains("nvram"), "what the link named is in the point");
    fs::remove_file(&variables).unwrap();
    mkfifoat(CWD, &variables, Mode::from_raw_mode(0o666)).unwrap();
    assert_partial(&env, back_up(), "nvram", "named pipe");
    fs::remove_file(&variables).unwrap();
    // A folder instead of the file, and a file that is too large for firmware variables.
    fs::create_dir(&variables).unwrap();
    assert_partial(&env, back_up(), "nvram", "a folder");
    fs::remove_dir(&variables).unwrap();
    File::create(&variables).and_then(|file| file.set_len(1 << 40)).unwrap();
    assert_partial(&env, back_up(), "nvram", "1.00 TiB");
    fs::remove_file(&variables).unwrap();
    // A folder that is a symbolic link of QEMU's user, and a hard link in a folder of that user.
    fs::rename(&folder, env.path("elsewhere")).unwrap();
    let of_qemu = env.path("of-qemu");
    fs::create_dir(&of_qemu).unwrap();
    fs::hard_link(&secret, of_qemu.join("vm1_VARS.fd")).unwrap();
    symlink(&of_qemu, &folder).unwrap();
    std::os::unix::fs::lchown(&folder, Some(QEMU), None).unwrap();
    assert_partial(&env, back_up(), "nvram", "symbolic link");
    fs::remove_file(&folder).unwrap();
    fs::rename(&of_qemu, &folder).unwrap();
    chown(&folder, Some(QEMU), None).unwrap();
    assert_partial(&env, back_up(), "nvram", "hard link");
    fs::remove_file(&variables).unwrap();

    // A file that QEMU's user owns is stored.
    fs::write(&variables, noise(2, 4096)).unwrap();
    chown(&variables, Some(QEMU), None).unwrap();
    let point = back_up().assert_ok().record_of("point");
    assert_eq!(env.restic(env.repo()).dump(text(&point, "point"), "/vm1/nvram"), noise(2, 4096));
    machine.assert_image_equals_model("vda");
    env.restic(env.repo()).check();
    env.assert_nothing_left();
}

#[test]
fn point_from_a_pipe_reports_a_missing_kernel() {
    let env = Env::new("missing part");
    init(&env);
    let folder = env.path("nvram");
    fs::create_dir(&folder).unwrap();
    crate::support::set_mode(&folder, 0o777);
    let variables = folder.join("vm1_VARS.fd");
    fs::write(&variables, noise(2, 4096)).unwrap();
    let kernel = env.path("vmlinuz");
    let machine = machine_with(&env, &variables, &format!("<kernel>{}</kernel>", kernel.display()));
    // The kernel is missing. The other stages of the pipeline process the point.
    let pipe = "kvmb snapshot vm1 -r $R | kvmb push -r $R | kvmb release | kvmb verify -r $R";
    let output = env.sh(pipe).run();
    output.record_of("point");
    let point = assert_partial(&env, output, "kernel", "No such file");
    assert_eq!(point["verified"], "full");
    let status = env.kvmb(["status", "vm1", "-r", &env.repo()]).run();
    let check = status.records_of("check").into_iter().find(|check| check["check"] == "backup").unwrap();
    assert_eq!(check["status"], "warning", "{check}");
    assert!(text(&check, "detail").contains("lacks a part that the machine needs"), "{check}");
    // A copy lacks the same parts.
    env.kvmb(["init", "-r", &env.repo_named("second")]).run().assert_ok();
    let copied = env.sh("kvmb points -r $R | kvmb push -r second").run().assert_ok();
    assert_eq!(copied.record_of("point")["left_out"], point["left_out"]);
    // A restore warns about it, and restores the machine.
    let into = new_folder(&env, "into");
    let restore = |args: &[&str]| env.kvmb(["restore", "vm1", "-r", &env.repo(), "--into"]).arg(&into).args(args).run();
    restore(&["--as", "vm2"]).assert_ok().assert_stderr_has("the point does not contain the kernel of vm1");
    drop(machine);
    env.assert_nothing_left();
}

#[test]
fn tpm_state_is_read_only_from_its_own_folder() {
    let env = Env::new("TPM planted");
    init(&env);
    let secret = secret(&env);
    let state = env.path("tpm-state");
    fs::create_dir(&state).unwrap();
    fs::write(state.join("tpm2-00.permall"), noise(3, 4096)).unwrap();
    let tpm = format!(
        "<tpm model='tpm-crb'><backend type='emulator' version='2.0'><source type='dir' path='{}'/></backend></tpm>",
        state.display()
    );
    env.machine("vm1").devices_xml(&tpm).disk(Disk::qcow2(MIB)).define();
    let back_up = || env.kvmb(["backup", "vm1", "-r", &env.repo()]).run();
    back_up().assert_ok();
    symlink(&secret, state.join("tpm2-00.volatilestate")).unwrap();
    let point = assert_partial(&env, back_up(), "tpm", "symbolic link");
    let names = names_in(&env, &point);
    assert!(names.contains("tpm/tpm2-00.permall") && !names.contains("volatilestate"), "{names}");
    fs::remove_file(state.join("tpm2-00.volatilestate")).unwrap();
    mkfifoat(CWD, state.join("tpm2-00.volatilestate"), Mode::from_raw_mode(0o666)).unwrap();
    assert_partial(&env, back_up(), "tpm", "named pipe");
    fs::rename(&state, env.path("moved")).unwrap();
    symlink(env.path("moved"), &state).unwrap();
    assert_partial(&env, back_up(), "tpm", "symbolic link");
    env.assert_nothing_left();
}

#[test]
fn links_made_by_root_are_followed() {
    let env = Env::new("root's links");
    init(&env);
    let folder = roots_folder();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("vmlinuz-6.1"), noise(4, 100_000)).unwrap();
    symlink("vmlinuz-6.1", at("vmlinuz")).unwrap();
    let file = at("vars.img");
    fs::write(&file, noise(5, MIB)).unwrap();
    let device = LoopDevice::on(&file);
    symlink(&device.path, at("vars")).unwrap();
    machine_with(&env, &at("vars"), &format!("<kernel>{}</kernel>", at("vmlinuz").display()));
    let point = backup_ok(&env);
    let dump = |name: &str| env.restic(env.repo()).dump(text(&point, "point"), &format!("/vm1/{name}"));
    assert_eq!(dump("kernel"), noise(4, 100_000));
    assert_eq!(dump("nvram"), noise(5, MIB), "of the device");
    // Restored onto the device, without replacing it.
    fs::write(&file, noise(6, MIB)).unwrap();
    env.kvmb(["restore", "vm1", "-r", &env.repo()]).run().assert_code(1);
    env.kvmb(["restore", "vm1", "-r", &env.repo(), "--overwrite"]).run().assert_ok();
    assert_eq!(fs::read(&file).unwrap(), noise(5, MIB));
    assert!(fs::symlink_metadata(at("vars")).unwrap().is_symlink());
    assert!(fs::metadata(at("vars")).unwrap().file_type().is_block_device());
    let definition = env.virsh(&["dumpxml", "--inactive", "vm1"]);
    assert!(definition.contains(&format!(">{}<", at("vars").display())), "{definition}");
    env.assert_nothing_left();
}

fn backup_ok(env: &Env) -> Value {
    let output = env.kvmb(["backup", "vm1", "-r", &env.repo()]).run().assert_ok();
    let point = output.record_of("point");
    assert_eq!(point.get("left_out"), None, "{point}");
    point
}

#[test]
fn restore_does_not_write_through_planted_links() {
    let env = Env::new("restore planted");
    init(&env);
    let (secret, folder) = (secret(&env), env.path("nvram"));
    fs::create_dir(&folder).unwrap();
    let variables = folder.join("vm1_VARS.fd");
    fs::write(&variables, noise(2, 4096)).unwrap();
    let machine = machine_with(&env, &variables, "");
    backup_ok(&env);
    chown(&folder, Some(QEMU), None).unwrap();
    let restore = || env.kvmb(["restore", "vm1", "-r", &env.repo(), "--overwrite"]).run();
    // The symbolic link is replaced; its target is unchanged.
    fs::remove_file(&variables).unwrap();
    symlink(&secret, &variables).unwrap();
    restore().assert_ok();
    assert_eq!(fs::read(&secret).unwrap(), SECRET);
    let found = fs::symlink_metadata(&variables).unwrap();
    assert!(found.is_file() && found.mode() & 0o7777 == 0o600, "{:o}", found.mode());
    assert_eq!(fs::read(&variables).unwrap(), noise(2, 4096));
    // A file of QEMU's user keeps owner and mode, but no setuid and setgid bits.
    chown(&variables, Some(QEMU), Some(QEMU)).unwrap();
    fs::set_permissions(&variables, fs::Permissions::from_mode(0o6755)).unwrap();
    restore().assert_ok();
    let found = fs::metadata(&variables).unwrap();
    assert_eq!((found.uid(), found.mode() & 0o7777), (QEMU, 0o755));
    // With a symbolic link on the path, nothing is written.
    fs::rename(&folder, env.path("elsewhere")).unwrap();
    symlink(env.path("elsewhere"), &folder).unwrap();
    std::os::unix::fs::lchown(&folder, Some(QEMU), None).unwrap();
    let before = fs::metadata(machine.image("vda")).unwrap().ino();
    restore().assert_code(1).assert_stderr_has("symbolic link");
    assert_eq!(fs::metadata(machine.image("vda")).unwrap().ino(), before);
    // The folder that the command line names may be anything.
    symlink(new_folder(&env, "real"), env.path("linked")).unwrap();
    std::os::unix::fs::lchown(env.path("linked"), Some(QEMU), None).unwrap();
    env.kvmb(["restore", "vm1", "-r", &env.repo(), "--as", "vm2", "--into"]).arg(env.path("linked")).run().assert_ok();
    assert_eq!(fs::read(env.path("linked/vm2_VARS.fd")).unwrap(), noise(2, 4096));
    env.assert_nothing_left();
}

#[test]
fn tpm_state_restore_refuses_a_planted_link() {
    let env = Env::new("restore TPM planted");
    init(&env);
    let above = env.path("swtpm");
    let state = above.join("vm1/tpm2");
    fs::create_dir_all(&state).unwrap();
    fs::write(state.join("tpm2-00.permall"), noise(3, 4096)).unwrap();
    let tpm = format!(
        "<tpm model='tpm-crb'><backend type='emulator' version='2.0'><source type='dir' path='{}'/></backend></tpm>",
        state.display()
    );
    env.machine("vm1").devices_xml(&tpm).disk(Disk::qcow2(MIB)).define();
    backup_ok(&env);
    let restore = || env.kvmb(["restore", "vm1", "-r", &env.repo(), "--overwrite"]).run();
    // The folder of the state is recreated; a symbolic link of another user on the path is refused.
    fs::remove_dir_all(above.join("vm1")).unwrap();
    restore().assert_ok();
    assert_eq!(fs::read(state.join("tpm2-00.permall")).unwrap(), noise(3, 4096));
    assert_eq!(fs::metadata(&state).unwrap().mode() & 0o777, 0o700);
    fs::remove_dir_all(above.join("vm1")).unwrap();
    let victim = new_folder(&env, "victim");
    symlink(&victim, above.join("vm1")).unwrap();
    std::os::unix::fs::lchown(above.join("vm1"), Some(QEMU), None).unwrap();
    restore().assert_code(1).assert_stderr_has("symbolic link");
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
    env.assert_nothing_left();
}

// --- a changed manifest

/// Stores a point with a changed manifest, and returns its id.
fn tampered(env: &Env, point: &str, change: impl FnOnce(&mut Value)) -> String {
    let repo = Repository::open(Arc::new(LocalStorage::new(env.repo())), &Password::new(PASSWORD.to_owned())).unwrap();
    let index = repo.load_index().unwrap();
    let id: Id = point.parse().unwrap();
    let mut snapshot = repo.snapshots().unwrap().snapshots.into_iter().find(|stored| stored.id == id).unwrap().snapshot;
    let root = read_tree(&repo, &index, &snapshot.tree).unwrap();
    let (machine, folder) = folder_of(&root);
    let mut nodes = read_tree(&repo, &index, &folder).unwrap().nodes;
    let manifest = nodes.iter_mut().find(|node| node.name == "point.json").unwrap();
    let NodeKind::File { content, .. } = &manifest.kind else { panic!("point.json is no file") };
    let bytes: Vec<u8> = content.iter().flat_map(|id| repo.read_blob(&index, &id).unwrap()).collect();
    let mut json: Value = serde_json::from_slice(&bytes).unwrap();
    change(&mut json);
    let bytes = serde_json::to_vec(&json).unwrap();
    let permit = repo.lock(LockMode::Shared, std::time::Duration::ZERO).unwrap().permit();
    let writer = Writer::new(&repo, index, WriterOptions::default(), &permit);
    let blob = writer.put(BlobKind::Data, &bytes).unwrap().id;
    *manifest = Node::file("point.json", snapshot.time, bytes.len() as u64, Content::from_iter([blob]));
    let folder = write_tree(&writer, &nodes).unwrap();
    snapshot.tree = write_tree(&writer, &[Node::dir(machine, snapshot.time, folder)]).unwrap();
    writer.finish().unwrap();
    repo.save_snapshot(&snapshot, &permit).unwrap().to_string()
}

fn folder_of(root: &Tree) -> (String, Id) {
    let NodeKind::Dir { subtree } = root.nodes[0].kind else { panic!("no folder") };
    (root.nodes[0].name.to_str().unwrap().to_owned(), subtree)
}

#[test]
fn manifest_contradicting_its_definition_is_refused_before_writing() {
    let env = Env::new("tampered");
    init(&env);
    let variables = env.path("vars.fd");
    fs::write(&variables, noise(2, 4096)).unwrap();
    let machine = machine_with(&env, &variables, "");
    let point = text(&backup(&machine), "point").to_owned();
    let other = env.machine("other").disk(Disk::qcow2(MIB)).define();
    env.virsh(&["undefine", "vm1", "--checkpoints-metadata", "--keep-nvram"]);
    fs::remove_file(&variables).unwrap();
    fs::remove_file(machine.image("vda")).unwrap();
    let cron = env.path("cron.d");
    fs::create_dir(&cron).unwrap();
    let job = cron.join("job").display().to_string();
    let files = || -> Vec<PathBuf> {
        let folders = [env.disks(), cron.clone(), env.path("")];
        let mut files: Vec<PathBuf> = folders
            .iter()
            .flat_map(|folder| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()))
            .collect();
        files.sort();
        files
    };
    let before = files();
    type Change<'a> = Box<dyn FnOnce(&mut Value) + 'a>;
    let set =
        |pointer: &'static str, value: Value| -> Change { Box::new(move |m| *m.pointer_mut(pointer).unwrap() = value) };
    let cases: Vec<(Change, &str)> = vec![
        (set("/files/0/path", job.clone().into()), "is not where the definition has"),
        (set("/files/0/path", "../../etc/passwd".into()), "is not where the definition has"),
        (set("/files/0/name", "../nvram".into()), "has an invalid file name"),
        (set("/files/0/size_bytes", 1.into()), "has another size"),
        (set("/files/0/role", "kernel".into()), "is not where the definition has"),
        (Box::new(|m| m["files"].as_array_mut().unwrap().push(m_file(&job))), "is not where the definition has"),
        (set("/uuid", "not a uuid".into()), "is not a UUID"),
        (set("/uuid", other.uuid().into()), "in the definition"),
        (set("/machine", "other".into()), "in the definition"),
        (set("/machine", "../vm1".into()), "has an invalid machine name"),
        (set("/disks/0/disk", "vdz".into()), "is not a disk of the definition"),
        (set("/disks/0/disk", "../vda".into()), "has an invalid description of disk"),
        (set("/disks/0/chunk_bytes", 12345.into()), "has an invalid description of disk"),
        (set("/disks/0/capacity_bytes", (1u64 << 61).into()), "has an invalid description of disk"),
        (set("/disks/0/capacity_bytes", (2 * MIB).into()), "the manifest says"),
        (set("/checkpoint", "../x; rm".into()), "has an invalid checkpoint name"),
    ];
    for (change, why) in cases {
        let id = tampered(&env, &point, change);
        for args in [vec!["--overwrite"], vec!["--dry-run"], vec!["--no-define", "--overwrite"]] {
            let output = env.kvmb(["restore", &id, "-r", &env.repo()]).args(args).run().assert_code(4);
            assert!(output.stderr().contains(why), "{why}: {output}");
        }
        assert_eq!(files(), before, "{why}");
    }
    // The format is taken from the definition.
    let id = tampered(&env, &point, |m| m["disks"][0]["format"] = "raw".into());
    env.kvmb(["restore", &id, "-r", &env.repo()]).run().assert_ok();
    machine.assert_image_equals_model("vda");
    assert_eq!(fs::read(&variables).unwrap(), noise(2, 4096));
    env.assert_nothing_left();
}

fn m_file(path: &str) -> Value {
    json!({ "name": "initrd", "role": "initrd", "path": path, "size_bytes": 1 })
}

/// Returns the owner of a process's files in /proc: its user, or root if it cannot be dumped.
fn owner_of(pid: u32) -> u32 {
    std::fs::metadata(format!("/proc/{pid}/environ")).unwrap().uid()
}

#[test]
fn kvmb_is_not_dumpable_and_has_a_zero_core_limit() {
    let as_nobody = |program: &[&str]| {
        std::process::Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            // The program may be in a folder that other users cannot enter.
            .args(["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"])
            .args(program)
            .env("HOME", "/nonexistent")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap()
    };
    let is = |pid: u32, name: &str| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name)
    };
    let mut other = as_nobody(&["cat"]);
    // This command waits for records.
    let mut kvmb = as_nobody(&[env!("CARGO_BIN_EXE_kvmb"), "hash"]);
    let limit = std::time::Duration::from_secs(20);
    wait_until("another program runs", limit, || is(other.id(), "cat"));
    wait_until("kvmb runs", limit, || is(kvmb.id(), "kvmb") && owner_of(kvmb.id()) == 0);
    assert_eq!(owner_of(other.id()), 65534, "what this test looks at means something");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", kvmb.id())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    for child in [&mut other, &mut kvmb] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
