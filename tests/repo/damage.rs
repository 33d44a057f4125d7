//! The damage matrix: every kind of repository file, deleted, truncated or with one bit flipped. In each case, kvmb
//! reports it with exit code 4 and returns no wrong byte; unaffected points are intact.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::support::backups::{MIB, backup, images_of, init, names_in, new_folder, noise, text};
use crate::support::{Disk, DiskModel, Env, Output};
use kvmb::repo::{BlobKind, Password, Repository};
use kvmb::storage::LocalStorage;
use serde_json::Value;

/// What is done to a file.
#[derive(Debug, Clone, Copy)]
enum Harm {
    Delete,
    /// Keeps this percentage.
    Truncate(u64),
    /// Flips a bit at this percentage of the file's length; 100 is the last byte.
    Flip(u64),
}

const HARMS: [Harm; 6] =
    [Harm::Delete, Harm::Truncate(0), Harm::Truncate(60), Harm::Flip(0), Harm::Flip(50), Harm::Flip(100)];

impl Harm {
    fn apply(self, file: &Path) {
        let mut bytes = fs::read(file).expect("read");
        let at = |hundredths: u64| (bytes.len() as u64 * hundredths / 100) as usize;
        match self {
            Harm::Delete => return fs::remove_file(file).expect("remove"),
            Harm::Truncate(keep) => {
                let keep = at(keep);
                bytes.truncate(keep);
            }
            Harm::Flip(place) => {
                let place = at(place).min(bytes.len() - 1);
                bytes[place] ^= 0x10;
            }
        }
        fs::set_permissions(file, fs::Permissions::from_mode(0o600)).expect("chmod");
        fs::write(file, bytes).expect("write");
    }
}

/// The expected disks of a machine.
type Disks = BTreeMap<String, DiskModel>;

/// A repository with two points of `vm1` (which share most of their data) and one of `vm2` (which shares nothing).
struct Scene<'e> {
    env: &'e Env,
    /// Point → its machine and its disks.
    points: BTreeMap<String, (String, Disks)>,
    first: String,
    second: String,
    other: String,
    /// The files that each point added.
    files: BTreeMap<String, BTreeSet<PathBuf>>,
    tree_packs: BTreeSet<String>,
}

fn files_below(folder: &Path) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    for name in names_in(folder) {
        let path = folder.join(name);
        match path.is_dir() {
            true => files.extend(files_below(&path)),
            false => drop(files.insert(path)),
        }
    }
    files
}

impl<'e> Scene<'e> {
    fn new(env: &'e Env) -> Scene<'e> {
        let (vm1, vm2) = (
            env.machine("vm1").disk(Disk::qcow2(6 * MIB)).disk(Disk::raw(2 * MIB + 512)).define(),
            env.machine("vm2").disk(Disk::raw(2 * MIB)).define(),
        );
        vm1.write_bytes("vda", 0, &noise(1, 4 * MIB));
        vm1.write_bytes("vdb", 0, &noise(2, 2 * MIB + 512));
        vm2.write_bytes("vda", 0, &noise(3, 2 * MIB));
        let root = PathBuf::from(init(env));
        let (mut points, mut files) = (BTreeMap::new(), BTreeMap::new());
        let mut known = files_below(&root);
        let mut one = |machine: &crate::support::Machine| {
            let id = text(&backup(machine), "point").to_owned();
            let now = files_below(&root);
            files.insert(id.clone(), now.difference(&known).cloned().collect());
            known = now;
            points.insert(id.clone(), (machine.name().to_owned(), machine.models()));
            id
        };
        let first = one(&vm1);
        vm1.write_bytes("vda", MIB, &noise(4, MIB));
        let (second, other) = (one(&vm1), one(&vm2));
        let storage = Arc::new(LocalStorage::new(&root));
        let repo = Repository::open(storage, &Password::new(crate::support::PASSWORD.to_owned())).expect("open");
        let index = repo.load_index().expect("index");
        let tree_packs = index.blobs(BlobKind::Tree).map(|(_, place)| place.pack.to_string()).collect();
        Scene { env, points, first, second, other, files, tree_packs }
    }

    /// Returns the only file of a point in this folder of the repository.
    fn file(&self, point: &str, kind: &str, trees: bool) -> PathBuf {
        let root = PathBuf::from(self.env.repo());
        let of_kind = self.files[point].iter().filter(|path| path.starts_with(root.join(kind)));
        let mut found: Vec<&PathBuf> = of_kind
            .filter(|path| {
                let name = path.file_name().expect("a name").to_string_lossy().into_owned();
                kind != "data" || self.tree_packs.contains(&name) == trees
            })
            .collect();
        assert_eq!(found.len(), 1, "{kind} files of point {point}: {found:?}");
        found.remove(0).strip_prefix(root).expect("in the repository").to_owned()
    }

    /// Returns a damaged copy of the repository.
    fn harmed(&self, file: &Path, harm: Harm) -> Harmed<'_> {
        let copy = new_folder(self.env, "harmed").join("repo");
        self.env.program("cp").args(["-a", "--", &self.env.repo()]).arg(&copy).run().assert_ok();
        harm.apply(&copy.join(file));
        Harmed { scene: self, repo: copy.display().to_string(), case: format!("{} {harm:?}", file.display()) }
    }
}

/// A repository with one fault.
struct Harmed<'s> {
    scene: &'s Scene<'s>,
    repo: String,
    case: String,
}

impl Harmed<'_> {
    /// Runs `verify --all`, and fails unless the exit code is 4 and exactly these points are affected. Returns their
    /// records.
    fn verify(&self, hit: &[&String]) -> BTreeMap<String, Value> {
        let output = self.scene.env.kvmb(["verify", "--all", "-r", &self.repo]).run();
        assert_eq!(output.code(), 4, "{}: {output}", self.case);
        let mut damaged = BTreeMap::new();
        for record in output.records_of("point") {
            let id = text(&record, "point").to_owned();
            let is_hit = record["verified"] == false;
            assert_eq!(is_hit, hit.contains(&&id), "{}: {record}\n{output}", self.case);
            assert_eq!(is_hit, record["damage"].as_array().is_some_and(|damage| !damage.is_empty()), "{record}");
            if is_hit {
                // On standard error too.
                assert!(output.stderr().contains(&id[..8]), "{}: {output}", self.case);
                damaged.insert(id, record);
            }
        }
        damaged
    }

    fn try_restore(&self, args: &[&str]) -> (PathBuf, Output) {
        let folder = new_folder(self.scene.env, "restored");
        let output = self
            .scene
            .env
            .kvmb(["restore", "--no-define", "--format", "raw", "-r", &self.repo, "--into"])
            .arg(&folder)
            .args(args)
            .run();
        (folder, output)
    }

    /// Fails unless restoring the point is refused with exit code 4, and nothing is written.
    fn assert_refused(&self, args: &[&str]) -> Value {
        let (folder, output) = self.try_restore(args);
        assert_eq!(output.code(), 4, "{}: {output}", self.case);
        assert_eq!(names_in(&folder), [""; 0], "{}", self.case);
        let failure = output.record_of("failure");
        assert_eq!(failure["code"], "damage", "{}", self.case);
        assert!(failure["hint"].is_string(), "{}", self.case);
        failure
    }

    /// Fails unless the point is restored byte for byte.
    fn assert_whole(&self, point: &str, args: &[&str]) {
        let (_, output) = self.try_restore(&[&[point], args].concat());
        assert_eq!(output.code(), 0, "{}: {output}", self.case);
        for (target, image) in images_of(&output.record_of("point")) {
            self.scene.points[point].1[&target].assert_image_equals(&image, "raw");
        }
    }
}

#[test]
fn damaged_config_or_key_is_reported_and_refused() {
    let env = Env::new("config and key");
    let scene = Scene::new(&env);
    let key = Path::new("keys").join(names_in(&Path::new(&env.repo()).join("keys")).remove(0));
    for file in [Path::new("config"), &key] {
        for harm in HARMS {
            let harmed = scene.harmed(file, harm);
            let output = env.kvmb(["verify", "--all", "-r", &harmed.repo]).run();
            assert_eq!(output.code(), 4, "{}: {output}", harmed.case);
            assert!(output.stderr().contains("from a copy"), "{}: no hint: {output}", harmed.case);
            assert_eq!(output.record_of("failure")["code"], "damage", "{}", harmed.case);
            harmed.assert_refused(&["vm1"]);
        }
    }
    let harmed = scene.harmed(&key, Harm::Delete);
    for command in [&["points"][..], &["backup", "vm1"]] {
        env.kvmb(command).args(["-r", &harmed.repo]).run().assert_code(4).assert_stderr_has("from a copy");
    }

    // With a second key, the first one is not needed.
    let second = env.path("second");
    fs::write(&second, "battery staple\n").expect("write");
    fs::set_permissions(&second, fs::Permissions::from_mode(0o600)).expect("chmod");
    env.kvmb(["key", "add", "-r", &env.repo(), "--new-password-file"]).arg(&second).run().assert_ok();
    let harmed = scene.harmed(&key, Harm::Flip(50));
    let verify = |password: &Path| env.kvmb(["verify", "--all", "-r", &harmed.repo, "--password-file"]).arg(password);
    verify(&second).run().assert_ok();
    // If only the first key is available, the error says that it is damaged, and not just that the password is wrong.
    verify(&env.password_file()).run().assert_code(1).assert_stderr_has("damaged: ");
    env.assert_nothing_left();
}

#[test]
fn damaged_snapshot_is_reported_and_other_points_are_whole() {
    let env = Env::new("snapshot");
    let scene = Scene::new(&env);
    let file = scene.file(&scene.second, "snapshots", false);
    for harm in HARMS {
        let harmed = scene.harmed(&file, harm);
        if let Harm::Delete = harm {
            harmed.assert_whole(&scene.first, &[]);
            // As if it had been removed: no point is affected.
            env.kvmb(["verify", "--all", "-r", &harmed.repo]).run().assert_ok();
            let (_, output) = harmed.try_restore(&[&scene.second]);
            output.assert_code(1).assert_stderr_has("no point");
            continue;
        }
        assert!(harmed.verify(&[]).is_empty());
        let failure = harmed.assert_refused(&["vm1@latest", "--no-cache"]);
        assert!(text(&failure, "error").contains(&scene.second), "{failure}");
    }
    // By its own id, and as the possibly newest point: an older point is not what was requested, unless by its own id.
    let harmed = scene.harmed(&file, Harm::Flip(50));
    for wanted in [&scene.second[..], &scene.second[..8], "vm1", "vm1@-0s"] {
        let failure = harmed.assert_refused(&[wanted, "--no-cache"]);
        assert!(text(&failure, "error").contains(&scene.second), "{wanted}: {failure}");
    }
    harmed.assert_whole(&scene.first, &[]);
    // This host has a cached copy of the file; a truncated one is noticed without being read.
    harmed.assert_whole(&scene.second, &[]);
    scene.harmed(&file, Harm::Truncate(60)).assert_refused(&["vm1@latest"]);
    let points = env.kvmb(["points", "--no-cache", "-r", &harmed.repo]).run().assert_code(4);
    assert_eq!(points.records_of("point").len(), 2);
    assert!(text(&points.record_of("failure"), "error").contains(&scene.second));
    env.assert_nothing_left();
}

#[test]
fn damaged_index_is_reported_unless_its_content_is_cached() {
    let env = Env::new("index");
    let scene = Scene::new(&env);
    let file = scene.file(&scene.first, "index", false);
    for harm in HARMS {
        let harmed = scene.harmed(&file, harm);
        harmed.verify(&[&scene.first, &scene.second]);
        harmed.assert_refused(&["vm1@latest", "--no-cache"]);
        harmed.assert_whole(&scene.other, &[]);
    }
    let harmed = scene.harmed(&file, Harm::Flip(50));
    harmed.assert_refused(&[&scene.first, "--no-cache"]);
    // This host has a cached copy of the file, if it has listed the repository since.
    env.kvmb(["points", "-r", &env.repo()]).run().assert_ok();
    harmed.assert_whole(&scene.first, &[]);
    // A truncated file is noticed without being read.
    scene.harmed(&file, Harm::Truncate(60)).assert_refused(&[&scene.first]);
    env.kvmb(["verify", &scene.other, "-r", &harmed.repo]).run().assert_ok();
    env.assert_nothing_left();
}

/// Returns the ranges of a record's damage: disk, first byte, length.
fn places(record: &Value) -> Vec<(String, u64, u64)> {
    let damage = record["damage"].as_array().expect("damage").iter();
    let hit = damage.filter(|place| place["disk"].is_string());
    hit.map(|place| {
        let number = |field: &str| place[field].as_u64().unwrap_or_else(|| panic!("no {field} in {place}"));
        (text(place, "disk").to_owned(), number("offset_bytes"), number("length_bytes"))
    })
    .collect()
}

#[test]
fn damaged_data_pack_affects_only_the_points_that_use_it() {
    let env = Env::new("data");
    let scene = Scene::new(&env);
    // The pack of the second backup contains the mebibyte at 1 MiB of vda, the manifest and the definition.
    let file = scene.file(&scene.second, "data", false);
    for harm in HARMS {
        let harmed = scene.harmed(&file, harm);
        if let Harm::Flip(100) = harm {
            // The length of the pack's header, which is not needed if there is an index; restic needs it.
            env.kvmb(["verify", "--all", "-r", &harmed.repo]).run().assert_ok();
            harmed.assert_whole(&scene.second, &[]);
            continue;
        }
        let damaged = harmed.verify(&[&scene.second]);
        harmed.assert_refused(&["vm1@latest"]);
        harmed.assert_whole(&scene.first, &[]);
        let record = &damaged[&scene.second];
        let name = file.file_name().expect("a name").to_string_lossy();
        assert!(record["damage"].to_string().contains(&*name), "the pack is not named: {record}");
        if let Harm::Flip(_) = harm {
            assert_eq!(places(record), [("vda".to_owned(), MIB, MIB)], "{harm:?}");
            // The other disk can be restored, and so can the first point.
            harmed.assert_whole(&scene.second, &["--disk", "vdb"]);
            let failure = harmed.assert_refused(&[&scene.second, "--disk", "vda"]);
            let range = format!("disk vda, bytes {MIB} to {}", 2 * MIB);
            assert!(text(&failure, "error").contains(&range), "{failure}");
        }
    }

    // The pack of the first backup is shared by both points. The first point loses its manifest too; for the second
    // one, the affected ranges are known.
    let file = scene.file(&scene.first, "data", false);
    let harmed = scene.harmed(&file, Harm::Truncate(20));
    let damaged = harmed.verify(&[&scene.first, &scene.second]);
    let hit = places(&damaged[&scene.second]);
    assert!(hit.contains(&("vdb".to_owned(), 0, 2 * MIB + 512)), "{hit:?}");
    assert!(
        hit.iter().all(|(disk, offset, length)| disk != "vda" || offset + length <= MIB || *offset >= 2 * MIB),
        "{hit:?}"
    );
    harmed.assert_whole(&scene.other, &[]);
    for depth in ["--quick", "--sample=100%"] {
        let output = env.kvmb(["verify", "--all", depth, "-r", &harmed.repo]).run().assert_code(4);
        assert_eq!(output.records_of("point").iter().filter(|point| point["verified"] == false).count(), 2, "{output}");
    }
    env.assert_nothing_left();
}

#[test]
fn damaged_tree_pack_affects_only_the_points_that_use_it() {
    let env = Env::new("trees");
    let scene = Scene::new(&env);
    let file = scene.file(&scene.second, "data", true);
    for harm in HARMS {
        let harmed = scene.harmed(&file, harm);
        if let Harm::Flip(100) = harm {
            env.kvmb(["verify", "--all", "-r", &harmed.repo]).run().assert_ok();
            harmed.assert_whole(&scene.second, &[]);
            continue;
        }
        let damaged = harmed.verify(&[&scene.second]);
        harmed.assert_refused(&[&scene.second]);
        harmed.assert_whole(&scene.first, &[]);
        if let Harm::Flip(0) = harm {
            // The folder of vda comes first, and only that disk of the machine is lost.
            assert_eq!(places(&damaged[&scene.second]), [("vda".to_owned(), 0, 6 * MIB)]);
            harmed.assert_whole(&scene.second, &["--disk", "vdb"]);
        }
    }
    env.assert_nothing_left();
}

#[test]
fn flipped_bit_in_any_byte_of_a_blob_is_detected() {
    let env = Env::new("bits");
    let machine = env.machine("vm1").disk(Disk::raw(512)).define();
    machine.write_bytes("vda", 0, &noise(1, 512));
    let root = PathBuf::from(init(&env));
    backup(&machine);
    let repo =
        Repository::open(Arc::new(LocalStorage::new(&root)), &Password::new(crate::support::PASSWORD.to_owned()));
    let repo = repo.expect("open");
    let index = repo.load_index().expect("index");
    let wanted = kvmb::repo::Id::hash(&noise(1, 512));
    let place = index.get(BlobKind::Data, &wanted).expect("the disk's only chunk");
    let name = place.pack.to_string();
    let file = root.join("data").join(&name[..2]).join(&name);
    let whole = fs::read(&file).expect("read");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("chmod");
    for byte in place.offset..place.offset + place.length {
        let mut bytes = whole.clone();
        bytes[byte as usize] ^= 1 << (byte % 8);
        fs::write(&file, &bytes).expect("write");
        assert!(repo.read_blob(&index, &wanted).is_err(), "byte {byte} was changed, and nobody noticed");
    }
    fs::write(&file, &whole).expect("write");
    assert!(repo.read_blob(&index, &wanted).expect("whole") == noise(1, 512));
}

#[test]
fn chunks_missing_from_the_index_are_stored_again_and_reported() {
    let env = Env::new("lost data");
    init(&env);
    let machine = env.machine("vm").disk(Disk::qcow2(64 * MIB)).start_paused();
    let bystander = env.machine("bystander").disk(Disk::raw(MIB)).define();
    machine.write_bytes("vda", 0, &noise(1, 40 * MIB));
    bystander.write_bytes("vda", 0, &noise(2, MIB));
    let (first, second) = (backup(&machine), backup(&machine));
    backup(&bystander);
    // A pack is lost, and a repair removes it from the index.
    let packs = names_in(&env.path("repo/data")).into_iter().flat_map(|fan| {
        let fan = env.path("repo/data").join(fan);
        names_in(&fan).into_iter().map(move |name| fan.join(name)).collect::<Vec<_>>()
    });
    let largest = packs.max_by_key(|pack| fs::metadata(pack).unwrap().len()).unwrap();
    fs::remove_file(largest).unwrap();
    env.restic(env.repo()).call(["rebuild-index"]).run().assert_ok();

    machine.write("vda", 50 * MIB, 65536, 0x33);
    let output = env.kvmb(["backup", "vm", "-r", &env.repo()]).run().assert_code(4);
    let point = output.record_of("point");
    assert_eq!(point["disks"][0]["read_mode"], "changed", "{output}");
    let named: BTreeSet<&str> =
        point["damaged_points"].as_array().unwrap().iter().map(|damaged| text(damaged, "point")).collect();
    assert_eq!(named, BTreeSet::from([text(&first, "point"), text(&second, "point")]), "{output}");
    assert_eq!(point["damaged_points"][0]["disks"], serde_json::json!(["vda"]), "{output}");
    let failure = output.record_of("failure");
    assert_eq!((text(&failure, "code"), text(&failure, "machine")), ("damage", "vm"), "{output}");
    env.kvmb(["verify", "vm@latest", "-r", &env.repo()]).run().assert_ok();
    crate::support::backups::assert_restores_to(&env, text(&point, "point"), &machine.models());

    // Nothing is missing any more.
    machine.write("vda", 51 * MIB, 65536, 0x34);
    let next = backup(&machine);
    assert!(next.get("damaged_points").is_none(), "{next}");
    env.restic(env.repo()).check();
    env.assert_nothing_left();
}

#[test]
fn parent_with_lost_trees_is_reported_and_the_new_point_is_whole() {
    for running in [true, false] {
        let env = Env::new("lost trees");
        init(&env);
        let built = env.machine("vm").disk(Disk::qcow2(8 * MIB));
        let machine = if running { built.start_paused() } else { built.define() };
        machine.write_bytes("vda", 0, &noise(1, 4 * MIB));
        let first = backup(&machine);
        machine.write_bytes("vda", 0, &noise(2, MIB));
        let second = backup(&machine);
        let root = PathBuf::from(env.repo());
        let storage = Arc::new(LocalStorage::new(&root));
        let repo = Repository::open(storage, &Password::new(crate::support::PASSWORD.to_owned())).expect("open");
        let tree = repo.snapshot(&text(&second, "point").parse().unwrap()).unwrap().tree;
        let pack = repo.load_index().unwrap().get(BlobKind::Tree, &tree).unwrap().pack.to_string();
        fs::remove_file(root.join("data").join(&pack[..2]).join(&pack)).unwrap();

        machine.write_bytes("vda", 6 * MIB, &noise(3, MIB));
        let output = env.kvmb(["backup", "vm", "-r", &env.repo()]).run().assert_code(4);
        let point = output.record_of("point");
        let named: Vec<&str> =
            point["damaged_points"].as_array().unwrap().iter().map(|damaged| text(damaged, "point")).collect();
        assert_eq!(named, [text(&second, "point")], "{output}");
        assert_eq!(text(&output.record_of("failure"), "code"), "damage", "{output}");
        for point in [&first, &point] {
            env.kvmb(["verify", text(point, "point"), "-r", &env.repo()]).run().assert_ok();
        }
        crate::support::backups::assert_restores_to(&env, text(&point, "point"), &machine.models());
        let next = backup(&machine);
        assert!(next.get("damaged_points").is_none(), "{next}");
        env.assert_nothing_left();
    }
}
