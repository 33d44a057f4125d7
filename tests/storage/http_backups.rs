//! Complete backups to REST servers and buckets: over bad networks, with damage on the server, and concurrent with a
//! prune.

// A test panics if a result is not what it expects.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::backups::noise;
use crate::support::chains::{MIB, assert_restores};
use crate::support::http_server::{Certificates, HttpServer};
use crate::support::proxy::{Proxy, Trouble};
use crate::support::{Call, Disk, Env, Machine, Output};
use crate::with_keys;
use serde_json::Value;

/// The number of concurrent connections of kvmb.
const CONNECTIONS: usize = 6;
/// Each silent connection costs a timeout, and one upload may meet all of them.
const SILENT_CONNECTIONS: usize = 3;
/// How long kvmb waits for a silent network.
const SILENCE: &str = "2s";

/// A server with a repository, a network in front of it, and a machine.
struct World<'e> {
    env: &'e Env,
    server: HttpServer,
    proxy: Proxy,
    url: String,
    machine: Machine<'e>,
}

impl<'e> World<'e> {
    /// Creates the environment. `url` builds the repository's address from the network's port.
    fn new(env: &'e Env, server: HttpServer, http: Value, url: impl FnOnce(u16) -> String) -> World<'e> {
        let proxy = Proxy::start(server.port(), Duration::ZERO);
        env.configure(&serde_json::json!({ "http": http }));
        let machine = env.machine("vm").disk(Disk::qcow2(32 * MIB)).start_paused();
        machine.write_bytes("vda", MIB, &noise(1, 12 * MIB));
        let url = url(proxy.port());
        let world = World { env, server, proxy, url, machine };
        world.kvmb(&["init"]).run().assert_ok();
        world
    }

    /// A REST server with TLS, so that data cannot be changed in transit.
    fn of_rest(env: &'e Env) -> World<'e> {
        let certificates = Certificates::make(env);
        let file = |name: &str| certificates.file(name).display().to_string();
        let server = HttpServer::rclone(env, "server", ["--cert", &file("server.pem"), "--key", &file("server.key")]);
        let http = serde_json::json!({ "ca_file": file("ca.pem"), "timeout": SILENCE });
        World::new(env, server, http, |port| format!("rest:https://127.0.0.1:{port}/repo/"))
    }

    /// A bucket without TLS.
    fn of_s3(env: &'e Env) -> World<'e> {
        let server = HttpServer::rclone_s3(env, "server");
        let http = serde_json::json!({ "timeout": SILENCE });
        World::new(env, server, http, |port| format!("s3:http://127.0.0.1:{port}/bucket/repo"))
    }

    fn kvmb(&self, args: &[&str]) -> Call {
        with_keys(self.env.kvmb(args).args(["-r", &self.url]))
    }

    /// Returns the repository's folder on the server.
    fn on_the_server(&self) -> String {
        let folder = if self.url.starts_with("s3:") { "bucket/repo" } else { "repo" };
        self.server.folder().join(folder).display().to_string()
    }

    /// Runs a command during network troubles, and returns the number of troubles that occurred.
    fn in_trouble(&self, trouble: Trouble, seed: u64, args: &[&str]) -> (Output, usize) {
        let before = self.proxy.happened();
        // After the handshake, in which every trouble is fatal.
        let connections = if trouble == Trouble::Stall { SILENT_CONNECTIONS } else { CONNECTIONS };
        self.proxy.order(&vec![trouble; connections], 16_000..MIB, seed);
        let output = self.kvmb(args).args(["--retry-for", "2m"]).run();
        (output, self.proxy.happened() - before)
    }

    fn assert_whole(&self, point: &Value) {
        self.env.restic(self.on_the_server()).check();
        assert_restores(self.env, &self.on_the_server(), point, &self.machine.models());
    }
}

/// A backup, an incremental one, a verification and a prune, each during troubles.
fn backups_survive(world: &World, trouble: Trouble, seed: u64) {
    let mut happened = 0;
    let mut in_trouble = |seed: u64, args: &[&str]| {
        let (output, times) = world.in_trouble(trouble, seed, args);
        happened += times;
        output.assert_ok()
    };
    in_trouble(seed, &["backup", "vm"]);
    world.machine.write_bytes("vda", 8 * MIB, &noise(2, 6 * MIB));
    let second = in_trouble(seed + 1, &["backup", "vm"]).record_of("point");
    assert_eq!(second["disks"][0]["read_mode"], "changed", "the chain goes on: {second:#}");
    world.assert_whole(&second);
    in_trouble(seed + 2, &["verify", "--all"]);
    in_trouble(seed + 3, &["prune", "--keep-last", "1", "--max-unused", "0%"]);
    assert!(happened >= 3, "the network was a good one: {happened}");
    assert!(world.machine.status() == "prelaunch" && !world.machine.is_captured());
    let left = world.env.restic(world.on_the_server()).snapshots();
    assert!(left.len() == 1 && left[0]["id"] == second["point"], "{left:#?}");
    world.assert_whole(&second);
    world.env.assert_nothing_left();
}

#[test]
fn rest_backups_survive_cut_connections() {
    let env = Env::new("rest-cut");
    backups_survive(&World::of_rest(&env), Trouble::Cut, 100);
}

#[test]
fn rest_backups_survive_stalled_connections() {
    let env = Env::new("rest-stall");
    backups_survive(&World::of_rest(&env), Trouble::Stall, 200);
}

#[test]
fn rest_backups_survive_corruption_in_transit() {
    let env = Env::new("rest-flip");
    backups_survive(&World::of_rest(&env), Trouble::Flip, 300);
}

#[test]
fn s3_backups_survive_cut_connections() {
    let env = Env::new("s3-cut");
    backups_survive(&World::of_s3(&env), Trouble::Cut, 400);
}

#[test]
fn s3_backups_survive_corruption_in_transit() {
    std::thread::scope(|scope| {
        for seed in [600, 700, 800] {
            scope.spawn(move || {
                let env = Env::new(&format!("s3-flip-{seed}"));
                backups_survive(&World::of_s3(&env), Trouble::Flip, seed);
            });
        }
    });
}

#[test]
fn s3_backups_survive_stalled_connections() {
    let env = Env::new("s3-stall");
    backups_survive(&World::of_s3(&env), Trouble::Stall, 500);
}

#[test]
fn concurrent_backups_and_a_prune_share_a_bucket() {
    let env = Env::new("s3-together");
    let world = World::of_s3(&env);
    let other = env.machine("other").disk(Disk::qcow2(16 * MIB)).start_paused();
    other.write_bytes("vda", 0, &noise(5, 4 * MIB));
    let mut last = Vec::new();
    for round in 0..2 {
        for machine in [&world.machine, &other] {
            machine.write_bytes("vda", 2 * MIB, &noise(10 + round, 2 * MIB));
        }
        // A command that finds the repository locked waits, and at worst gives up without damage.
        let running = [
            world.kvmb(&["backup", "vm"]).spawn(),
            world.kvmb(&["backup", "other"]).spawn(),
            world.kvmb(&["prune", "--keep-last", "1", "--max-unused", "0%"]).spawn(),
        ];
        for output in running.map(|running| running.wait()) {
            let is_busy = output.records_of("failure").iter().all(|failure| failure["code"] == "busy");
            assert!(output.code() == 0 || is_busy, "{output}");
        }
        last = ["vm", "other"].map(|name| world.kvmb(&["backup", name]).run().assert_ok().record_of("point")).to_vec();
    }
    world.kvmb(&["prune", "--keep-last", "1", "--max-unused", "0%"]).run().assert_ok();
    world.kvmb(&["verify", "--all"]).run().assert_ok();
    env.restic(world.on_the_server()).check();
    for (point, machine) in last.iter().zip([&world.machine, &other]) {
        assert_restores(&env, &world.on_the_server(), point, &machine.models());
    }
    let points = world.kvmb(&["points"]).run().assert_ok().records_of("point");
    let machines: BTreeSet<&str> = points.iter().filter_map(|point| point["machine"].as_str()).collect();
    assert_eq!((points.len(), machines), (2, BTreeSet::from(["other", "vm"])), "{points:#?}");
}

/// What happens to a file on the server.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Harm {
    Delete,
    Truncate,
    Flip,
}

impl Harm {
    fn apply(self, file: &Path) {
        let mut bytes = fs::read(file).unwrap();
        match self {
            Harm::Delete => return fs::remove_file(file).unwrap(),
            Harm::Truncate => bytes.truncate(bytes.len() * 6 / 10),
            Harm::Flip => {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 0x10;
            }
        }
        fs::remove_file(file).unwrap();
        fs::write(file, bytes).unwrap();
    }
}

/// Returns the largest or the smallest file below a folder.
fn file_below(folder: &Path, largest: bool) -> PathBuf {
    if folder.is_file() {
        return folder.to_owned();
    }
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { files.push((path.metadata().unwrap().len(), path)) }
        }
    }
    files.sort();
    let chosen = if largest { files.pop() } else { files.into_iter().next() };
    chosen.unwrap().1
}

#[test]
fn damage_on_a_server_is_found_and_not_restored() {
    let env = Env::new("http-damage");
    let machine = env.machine("vm").disk(Disk::qcow2(8 * MIB)).define();
    machine.write_bytes("vda", 0, &noise(1, 3 * MIB));
    let whole = env.repo();
    env.kvmb(["init", "-r", &whole]).run().assert_ok();
    env.kvmb(["backup", "vm", "-r", &whole]).run().assert_ok();
    // A pack of chunks, one of trees, and the small files. A missing snapshot cannot be noticed.
    let places = ["data", "trees", "index", "snapshots", "keys", "config"];
    let mut cases = Vec::new();
    for folder in places {
        for harm in [Harm::Delete, Harm::Truncate, Harm::Flip] {
            if (folder, harm) == ("snapshots", Harm::Delete) {
                continue;
            }
            let name = format!("case-{}", cases.len());
            let copy = env.path("server").join(&name);
            fs::create_dir_all(env.path("server")).unwrap();
            env.program("cp").args(["-a", "--", &whole]).arg(&copy).run().assert_ok();
            let (below, largest) = if folder == "trees" { ("data", false) } else { (folder, true) };
            harm.apply(&file_below(&copy.join(below), largest));
            cases.push((name, folder, harm));
        }
    }
    // The servers cache lists of files, so the copies must exist before they start.
    let rest = HttpServer::rclone(&env, "server", [""; 0]);
    let s3 = HttpServer::rclone_s3(&env, "server");
    let one = |name: &str, folder: &str, harm: Harm, url: &str| {
        let what = format!("{folder} {harm:?} at {url}");
        let kvmb = |args: &[&str]| with_keys(env.kvmb(args).args(["-r", url, "--no-cache"])).run();
        let verified = kvmb(&["verify", "--all"]);
        assert_eq!(verified.code(), 4, "{what}: {verified}");
        let target = env.path(format!("restored-{name}-{}", url.starts_with("s3:")));
        fs::create_dir(&target).unwrap();
        let restored = kvmb(&["restore", "vm@latest", "--no-define", "--into", &target.display().to_string()]);
        assert_ne!(restored.code(), 0, "{what}: {restored}");
        let images: Vec<_> = fs::read_dir(&target).unwrap().collect();
        assert!(images.is_empty(), "{what}: {images:?}");
    };
    std::thread::scope(|scope| {
        for cases in cases.chunks(cases.len().div_ceil(4)) {
            let (one, rest, s3) = (&one, &rest, &s3);
            scope.spawn(move || {
                for (number, (name, folder, harm)) in cases.iter().enumerate() {
                    // Every other case uses the other protocol; the damage is the same.
                    match number % 2 {
                        0 => one(name, folder, *harm, &rest.rest_url(name)),
                        _ => one(name, folder, *harm, &s3.s3_url(name)),
                    }
                }
            });
        }
    });
}
