//! Small writes: a partly changed chunk is stored in pieces, and later changes add only pieces.

use crate::support::backups::noise;
use crate::support::chains::{
    MIB, assert_changed, assert_full, assert_restores, backup, backup_with, disk_of, finish, id_of, init, ours,
    verified,
};
use crate::support::{Disk, Env, Machine};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

const KIB: u64 = 1024;
const PIECE: u64 = 64 * KIB;

/// Creates a machine with twelve chunks of noise, followed by a short one.
fn machine(env: &Env) -> Machine<'_> {
    let machine = env.machine("vm1").disk(Disk::qcow2(12 * MIB + 100 * KIB)).start_paused();
    machine.write_bytes("vda", 0, &noise(1, 12 * MIB + 100 * KIB));
    machine
}

fn manifest(env: &Env, repo: &str, point: &Value) -> Value {
    let json = env.restic(repo).dump(id_of(point), "/vm1/point.json");
    serde_json::from_slice(&json).expect("point.json")
}

/// Backs up, and fails unless this much is new, these chunks are stored in pieces, and the point restores correctly.
#[track_caller]
fn night(machine: &Machine, repo: &str, new_bytes: u64, split: &str) -> Value {
    let point = verified(machine, repo);
    let disk = disk_of(&point, "vda");
    assert_eq!(disk["new_bytes"].as_u64(), Some(new_bytes), "{disk:#}");
    let manifest = manifest(machine.env(), repo, &point);
    let said = manifest["disks"][0].get("split_chunks").map_or("", |split| split.as_str().expect("a text"));
    assert_eq!(said, split);
    assert_eq!(manifest["version"], if split.is_empty() { 1 } else { 2 });
    point
}

#[test]
fn second_change_in_a_chunk_stores_only_its_pieces() {
    let env = Env::new("pieces");
    let (machine, repo) = (machine(&env), init(&env));
    night(&machine, &repo, 12 * MIB + 100 * KIB, "");

    machine.write_bytes("vda", 3 * MIB + 2 * PIECE, &noise(2, PIECE));
    assert_changed(&night(&machine, &repo, MIB, "3"), "vda", MIB);
    // One sector, and one that spans two pieces.
    machine.write_bytes("vda", 3 * MIB + 8 * PIECE + 512, &noise(3, 512));
    let third = night(&machine, &repo, PIECE, "3");
    assert_changed(&third, "vda", PIECE);
    assert!(disk_of(&third, "vda")["read_bytes"].as_u64() < Some(PIECE + 2 * MIB), "{third:#}");
    machine.write_bytes("vda", 3 * MIB + 5 * PIECE - 512, &noise(4, 1024));
    night(&machine, &repo, 2 * PIECE, "3");

    // The short chunk at the end has two pieces, the second of which has 36 KiB.
    machine.write_bytes("vda", 12 * MIB + PIECE, &noise(5, 512));
    night(&machine, &repo, 100 * KIB, "3,12");
    machine.write_bytes("vda", 12 * MIB + 100 * KIB - 512, &noise(6, 512));
    night(&machine, &repo, 36 * KIB, "3,12");

    // A full read finds the same pieces, and stores nothing.
    let full = backup_with(&machine, &repo, &["--full"]);
    assert_full(&full, "vda", "requested");
    assert_eq!(disk_of(&full, "vda")["new_bytes"], 0, "{full:#}");
    for checkpoint in ours(&machine) {
        env.virsh(&["checkpoint-delete", machine.uuid(), &checkpoint]);
    }
    let without_bitmap = backup(&machine, &repo);
    assert_eq!(disk_of(&without_bitmap, "vda")["read_mode"], "full", "{without_bitmap:#}");
    assert_eq!(disk_of(&without_bitmap, "vda")["new_bytes"], 0, "{without_bitmap:#}");
    assert_eq!(manifest(&env, &repo, &without_bitmap)["disks"][0]["split_chunks"], "3,12");

    // If more than half of a chunk changes at once, it is stored as a single blob again.
    machine.write_bytes("vda", 3 * MIB, &noise(7, 9 * PIECE));
    night(&machine, &repo, MIB, "12");

    // Every program reads the pieces: restic, an NBD client, and kvmb from a copy.
    let model = machine.model("vda");
    assert!(env.restic(&repo).dump("latest", "/vm1/vda/vda.raw") == model.read(0, model.capacity_bytes()));
    let image = env.path("served.raw");
    let served = env.kvmb(["serve", "-r", &repo, "--detach", "vm1@latest"]).run().assert_ok().record_of("disk");
    env.program("nbdcopy").arg(served["nbd"].as_str().expect("an address")).arg(&image).run().assert_ok();
    model.assert_image_equals(&image, "raw");
    env.kvmb(["release", "--all"]).run().assert_ok();
    let second = crate::support::chains::init_at(&env, "second");
    let copy = env.kvmb(["push", "--from-repo", &repo, "-r", &second, "vm1@latest"]).run().assert_ok();
    assert_restores(&env, &second, &copy.record_of("point"), &machine.models());

    // Data that pieces of older points need is kept.
    env.kvmb(["prune", "-r", &repo, "--keep-last", "2"]).run().assert_ok();
    env.restic(&repo).call(["prune", "--max-unused", "0"]).run().assert_ok();
    env.kvmb(["verify", "-r", &repo, "--all"]).run().assert_ok();
    finish(&env, &[&repo, &second]);
}

#[test]
fn split_chunk_that_becomes_zero_is_a_hole() {
    let env = Env::new("piece holes");
    let (machine, repo) = (machine(&env), init(&env));
    machine.zero("vda", 5 * MIB, MIB);
    backup(&machine, &repo);
    machine.write_bytes("vda", 5 * MIB + 3 * PIECE, &noise(2, PIECE));
    // The piece, and the zero piece.
    night(&machine, &repo, 2 * PIECE, "5");
    machine.write("vda", 5 * MIB + 3 * PIECE, PIECE, 0);
    night(&machine, &repo, 0, "");
    machine.write_bytes("vda", 5 * MIB + PIECE, &noise(3, PIECE));
    night(&machine, &repo, PIECE, "5");
    machine.zero("vda", 5 * MIB, MIB);
    night(&machine, &repo, 0, "");
    finish(&env, &[&repo]);
}

#[test]
fn disk_shrunk_inside_a_split_chunk_and_regrown_is_read_in_full() {
    let env = Env::new("cut pieces");
    let repo = init(&env);
    let machine = env.machine("vm1").disk(Disk::qcow2(4 * MIB)).start_paused();
    machine.write_bytes("vda", 0, &noise(1, 4 * MIB));
    backup(&machine, &repo);
    machine.write_bytes("vda", 3 * MIB + PIECE, &noise(2, PIECE));
    night(&machine, &repo, MIB, "3");
    // No bitmap records the lost pieces, and the chunk has one dirty piece.
    machine.resize("vda", 3 * MIB + 8 * PIECE);
    machine.resize("vda", 4 * MIB);
    machine.write_bytes("vda", 3 * MIB + PIECE, &noise(3, PIECE));
    // The audit's random sample might detect it, so it is disabled.
    let point = backup_with(&machine, &repo, &["--audit", "0%"]);
    assert_full(&point, "vda", "the disk was shrunk in between");
    assert_restores(&env, &repo, &point, &machine.models());
    finish(&env, &[&repo]);
}

#[test]
fn points_of_random_small_writes_are_correct() {
    let env = Env::new("small nights");
    let (machine, repo) = (machine(&env), init(&env));
    let mut random = StdRng::seed_from_u64(20_261_129);
    backup(&machine, &repo);
    let mut points = Vec::new();
    for night in 0..8 {
        if night == 4 {
            machine.resize("vda", 15 * MIB + 70 * KIB);
        }
        let capacity = machine.model("vda").capacity_bytes();
        for _ in 0..10 {
            // Most writes affect the same area.
            let end = if random.random_bool(0.7) { 2 * MIB } else { capacity };
            let offset = random.random_range(0..end / 512 - 1) * 512;
            let length = (random.random_range(1..400) * 512).min(capacity - offset);
            match random.random_range(0..8) {
                0 => machine.zero("vda", offset, length),
                1 => machine.write("vda", offset, length, 0),
                2 => machine.write("vda", offset, length, 0x5a),
                _ => machine.write_bytes("vda", offset, &noise(random.random(), length)),
            }
        }
        let point = verified(&machine, &repo);
        points.push((point, machine.models()));
    }
    let (first, disks) = &points[2];
    assert_restores(&env, &repo, first, disks);
    env.kvmb(["verify", "-r", &repo, "--all"]).run().assert_ok();
    finish(&env, &[&repo]);
}
