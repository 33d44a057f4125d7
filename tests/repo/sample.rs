//! Sampled verification covers the whole repository over time: damage is found within the number of runs that the share
//! implies, wherever it is and wherever the runs begin.

// A test panics if a result is not what it expects.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::support::backups::{MIB, backup, init, new_folder, noise, text};
use crate::support::{Disk, Env, Machine, Output, PASSWORD};
use kvmb::repo::{BlobKind, Id, Index, Password, Repository};
use kvmb::storage::LocalStorage;
use serde_json::{Value, json};

fn machine<'e>(env: &'e Env, name: &str, seed: u64) -> Machine<'e> {
    let machine = env.machine(name).disk(Disk::raw(8 * MIB)).define();
    machine.write_bytes("vda", 0, &noise(seed, 6 * MIB));
    machine
}

/// Returns the chunks of disks.
fn chunks(repo: &str) -> (Vec<Id>, Arc<Index>) {
    let repo = Repository::open(Arc::new(LocalStorage::new(repo)), &Password::new(PASSWORD.to_owned())).unwrap();
    let index = repo.load_index().unwrap();
    let chunks = index.blobs(BlobKind::Data).filter(|(_, place)| u64::from(place.raw_length) == MIB);
    (chunks.map(|(id, _)| id).collect(), index)
}

/// Flips a bit in the middle of a chunk.
fn harm(repo: &str, index: &Index, chunk: &Id) {
    let place = index.get(BlobKind::Data, chunk).unwrap();
    let pack = place.pack.to_string();
    let path = Path::new(repo).join("data").join(&pack[..2]).join(&pack);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let (at, mut byte) = (u64::from(place.offset + place.length / 2), [0]);
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

fn copy_of(env: &Env, repo: &str) -> String {
    let copy = new_folder(env, "harmed").join("repo").display().to_string();
    env.program("cp").args(["-a", "--", repo, &copy]).run().assert_ok();
    copy
}

fn rounds(env: &Env) -> Option<PathBuf> {
    let repositories = fs::read_dir(env.path("data/repositories")).into_iter().flatten().flatten();
    repositories.map(|repository| repository.path().join("rounds.json")).find(|file| file.exists())
}

/// Returns where the next run over a selection of points begins.
fn next(env: &Env, selection: &str) -> Option<String> {
    let all: Vec<Value> = serde_json::from_slice(&fs::read(rounds(env)?).unwrap()).unwrap();
    Some(text(all.iter().find(|one| one["selection"] == selection)?, "next").to_owned())
}

fn has_found(output: &Output) -> bool {
    assert!([0, 4].contains(&output.code()), "{output}");
    output.code() == 4
}

#[test]
fn sampled_verification_finds_damage_within_one_full_round() {
    let env = Env::new("rounds");
    let repo = init(&env);
    let vm1 = machine(&env, "vm1", 1);
    backup(&vm1);
    vm1.write_bytes("vda", MIB, &noise(5, MIB));
    backup(&vm1);
    backup(&machine(&env, "vm2", 2));
    let (chunks, index) = chunks(&repo);
    assert_eq!(chunks.len(), 13);
    let verify =
        |repo: &str, what: &[&str], share: &str| env.kvmb(["verify", "-r", repo, "--sample", share]).args(what).run();
    for (number, chunk) in chunks.iter().enumerate().step_by(3) {
        let harmed = copy_of(&env, &repo);
        harm(&harmed, &index, chunk);
        // It is found once in every three runs, and not in most of them.
        let found: Vec<bool> = (0..6).map(|_| has_found(&verify(&harmed, &["--all"], "34%"))).collect();
        assert!(found.windows(3).all(|runs| runs.contains(&true)), "chunk {number}: {found:?}");
        assert!(found.contains(&false), "chunk {number}: {found:?}");
    }
    // A changing share leaves no gap: 50 + 30 + 10 + 10 percent.
    let harmed = copy_of(&env, &repo);
    harm(&harmed, &index, &chunks[4]);
    let shares = ["50%", "30%", "10%", "10%"];
    assert!(shares.iter().any(|share| has_found(&verify(&harmed, &["--all"], share))), "there is a gap");
    // Points that are named have their own rounds.
    let before = next(&env, "--all").unwrap();
    let output = verify(&repo, &["vm2@latest", "vm1"], "25%").assert_ok();
    assert!(output.records_of("point").iter().all(|point| point["verified"] == "sample"), "{output}");
    let of_names = next(&env, "vm1 vm2@latest").unwrap();
    verify(&repo, &["vm1", "vm2@latest"], "25%").assert_ok();
    assert_ne!(next(&env, "vm1 vm2@latest").unwrap(), of_names);
    env.sh(&format!("kvmb points vm1 -r {repo} | kvmb verify -r {repo} --sample 25%")).run().assert_ok();
    let of_pipe = next(&env, "points of vm1").unwrap();
    // An incomplete run does not count.
    verify(&repo, &["vm1", "vm2@latest", "nothing"], "25%").assert_code(3);
    assert_eq!(next(&env, "nothing vm1 vm2@latest"), None);
    assert_eq!(next(&env, "--all").unwrap(), before);
    assert_eq!(next(&env, "points of vm1").unwrap(), of_pipe);
    let mode = fs::metadata(rounds(&env).unwrap()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // An unreadable state file starts a new round.
    fs::write(rounds(&env).unwrap(), "{").unwrap();
    verify(&repo, &["--all"], "5%").assert_ok();
    assert_ne!(next(&env, "--all"), None);
    env.assert_nothing_left();
}

#[test]
fn interrupted_sample_is_repeated() {
    let env = Env::new("interrupted");
    let sshd = env.sshd();
    sshd.trust_host_key();
    let url = sshd.url("repo");
    env.kvmb(["init", "-r", &url]).run().assert_ok();
    machine(&env, "vm1", 1);
    env.kvmb(["backup", "vm1", "-r", &url]).run().assert_ok();
    let verify = || env.kvmb(["verify", "--all", "-r", &url, "--sample", "60%"]);
    verify().run().assert_ok();
    let before = next(&env, "--all").unwrap();
    // A server that stops responding holds the run in the middle of the chunks.
    let mut running = verify().args(["-vv"]).spawn();
    crate::support::wait_until("it is connected", std::time::Duration::from_secs(60), || sshd.connections() > 0);
    sshd.freeze(true);
    assert!(!running.has_ended(), "it is too fast for this test");
    running.interrupt();
    sshd.freeze(false);
    running.wait().assert_code(130);
    assert_eq!(next(&env, "--all").unwrap(), before);
    // Half-open connections that were abandoned do not affect the server any more.
    sshd.stop();
    sshd.run();
    verify().run().assert_ok();
    assert_ne!(next(&env, "--all").unwrap(), before);
    env.assert_nothing_left();
}

#[test]
fn backup_with_verify_sample_checks_both_repositories() {
    let env = Env::new("backup");
    let repo = init(&env);
    let second = env.repo_named("second");
    env.kvmb(["init", "-r", &second]).run().assert_ok();
    let (_vm1, _vm2) = (machine(&env, "vm1", 1), machine(&env, "vm2", 2));
    let run = |args: &[&str]| env.kvmb(["backup", "vm1", "-r", &repo, "--copy-to", &second]).args(args).run();
    env.kvmb(["backup", "vm2", "-r", &repo]).run().assert_ok();
    let output = run(&["--verify-sample", "50%"]).assert_ok();
    let checks = output.records_of("check");
    assert_eq!(checks.iter().map(|check| text(check, "target")).collect::<Vec<_>>(), [&repo, &second]);
    assert!(checks.iter().all(|check| check["check"] == "sample" && check["status"] == "ok"), "{output}");
    assert!(text(&checks[0], "detail").starts_with("verified 50% of the chunks of 2 points"), "{output}");
    assert_eq!(output.records_of("point").len(), 2, "only the new ones");
    // Damage in data that this run did not write is found too.
    let of_vm2 = {
        let (chunks, index) = chunks(&repo);
        let (others, _) = self::chunks(&second);
        let chunk = *chunks.iter().find(|chunk| !others.contains(chunk)).unwrap();
        harm(&repo, &index, &chunk);
        chunk
    };
    env.configure(&json!({ "verify_sample": "50%" }));
    let found: Vec<Output> = (0..2).map(|_| run(&[])).filter(has_found).collect();
    let [output] = &found[..] else { panic!("it was found {} times in two runs", found.len()) };
    let damaged: Vec<Value> =
        output.records_of("point").into_iter().filter(|point| point["verified"] == false).collect();
    assert_eq!(damaged.len(), 1, "{output}");
    assert_eq!((&damaged[0]["machine"], &damaged[0]["damage"][0]["disk"]), (&json!("vm2"), &json!("vda")), "{of_vm2}");
    let checks = output.records_of("check");
    assert_eq!((&checks[0]["status"], &checks[1]["status"]), (&json!("critical"), &json!("ok")), "{output}");
    assert_eq!(output.records_of("point").len(), 3, "the new point, its copy, and the one that is hit");
    // A flag takes precedence over the configuration.
    assert_eq!(run(&["--verify-sample", "0%"]).assert_ok().records_of("check").len(), 0);
    // It is found in the second repository too.
    let (chunks, index) = chunks(&second);
    harm(&second, &index, &chunks[0]);
    let found = (0..2).map(|_| run(&[])).filter(|output| {
        let checks = output.records_of("check");
        has_found(output) && checks[1]["status"] == "critical"
    });
    assert_eq!(found.count(), 1);
    env.assert_nothing_left();
}
