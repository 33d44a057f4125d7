//! Points over NBD: what other programs read from a served point equals a restore.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::backups::{MIB, backup, init, noise, text};
use crate::support::call::Running;
use crate::support::{Disk, DiskModel, Env, Machine, wait_until};
use kvmb::nbd::{Client, ClientOptions, Error, NbdUri};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);

/// Creates a machine with data and holes on a qcow2 disk, and a raw disk whose last chunk is short.
fn machine(env: &Env) -> Machine<'_> {
    let machine = env.machine("vm1").disk(Disk::qcow2(64 * MIB)).disk(Disk::raw(5 * MIB + 512)).start_paused();
    machine.write_bytes("vda", 3 * MIB + 512, &noise(1, 9 * MIB));
    machine.write_bytes("vda", 40 * MIB, &noise(2, 64 * 1024));
    machine.write_bytes("vdb", 4 * MIB, &noise(3, MIB + 512));
    machine
}

/// A server in the foreground, and its records.
struct Served {
    running: Running,
    disks: Vec<Value>,
}

fn serve(env: &Env, args: &[&str], count: usize) -> Served {
    let mut running = env.kvmb(["serve", "-r", &env.repo()]).args(args).spawn();
    wait_until("the point is served", LIMIT, || {
        assert!(!running.has_ended(), "{}", running.stderr_so_far());
        running.stdout_so_far().lines().count() >= count
    });
    let lines = running.stdout_so_far();
    let disks = lines.lines().map(|line| serde_json::from_str(line).expect("a record")).collect();
    Served { running, disks }
}

impl Served {
    fn uri(&self, disk: &str) -> String {
        let record = self.disks.iter().find(|record| record["disk"] == disk);
        text(record.unwrap_or_else(|| panic!("{disk} is not served")), "nbd").to_owned()
    }

    /// Ends the server with Ctrl-C.
    fn end(self) -> crate::support::Output {
        self.running.interrupt();
        self.running.wait()
    }
}

/// Copies an export with `nbdcopy`.
fn copied(env: &Env, uri: &str, name: &str) -> PathBuf {
    let image = env.path(name);
    env.program("nbdcopy").arg(uri).arg(&image).run().assert_ok();
    image
}

fn assert_copies(env: &Env, uri: &str, disk: &DiskModel) {
    let image = copied(env, uri, "copied.raw");
    disk.assert_image_equals(&image, "raw");
    fs::remove_file(image).expect("remove");
}

#[test]
fn nbd_clients_read_the_disks_of_the_point() {
    let env = Env::new("served");
    let machine = machine(&env);
    init(&env);
    let point = backup(&machine);
    let before = machine.models();
    // The machine changes; the point does not.
    machine.write("vda", 0, 16 * MIB, 0x55);
    let served = serve(&env, &["vm1@latest"], 2);
    for record in &served.disks {
        assert_eq!(record["point"], point["point"]);
        assert_eq!(record.get("served"), None, "only a detached server has a name");
    }
    for disk in ["vda", "vdb"] {
        assert_copies(&env, &served.uri(disk), &before[disk]);
    }
    // Holes are reported with chunk granularity.
    let map = env.program("nbdinfo").args(["--map", "--json", &served.uri("vda")]).run().assert_ok();
    let map: Value = serde_json::from_slice(&map.stdout).expect("a map");
    let extents: Vec<(u64, u64, &str)> = map
        .as_array()
        .expect("extents")
        .iter()
        .map(|extent| {
            let number = |key: &str| extent[key].as_u64().expect("a number");
            (number("offset") / MIB, number("length") / MIB, extent["description"].as_str().expect("words"))
        })
        .collect();
    let (hole, data) = ("hole,zero", "data");
    let expected = [(0, 3, hole), (3, 10, data), (13, 27, hole), (40, 1, data), (41, 23, hole)];
    assert_eq!(extents, expected);
    // Both exports are listed, with descriptions.
    let socket = served.uri("vda").replace("nbd+unix:///vda?", "nbd+unix://?");
    let list = env.program("nbdinfo").args(["--list", &socket]).run().assert_ok();
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    assert!(list.contains("export=\"vda\"") && list.contains("vdb of vm1"), "{list}");
    // With QEMU's own client.
    let raw = env.path("converted.raw");
    env.program("qemu-img").args(["convert", "-O", "raw", &served.uri("vda")]).arg(&raw).run().assert_ok();
    before["vda"].assert_image_equals(&raw, "raw");
    assert_eq!(served.end().code(), 0, "Ctrl-C is how it ends");
    env.assert_nothing_left();
}

#[test]
fn server_memory_does_not_grow_with_connections() {
    let env = Env::new("servedmemory");
    // Each thread of nbdcopy reads 128 MiB of the disk.
    let places = (0..16).map(|place| place * 128 * MIB);
    let machine = env.machine("vm1").disk(Disk::qcow2(16 * 128 * MIB)).start_paused();
    places.for_each(|place| machine.write_bytes("vda", place, &noise(place, 12 * MIB)));
    init(&env);
    backup(&machine);
    let served = serve(&env, &["vm1@latest"], 1);
    let connections = ["--threads=16", "--connections=16"];
    env.program("nbdcopy").args(connections).args([&served.uri("vda"), "null:"]).run().assert_ok();
    let status = fs::read_to_string(format!("/proc/{}/status", served.running.pid())).expect("the server's status");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a field of the status");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1024
    };
    // 48 MiB of chunks, plus what is being read and sent. The program's own pages depend on the build.
    let peak = field("VmHWM:") - field("RssFile:");
    assert!(peak < 125, "{peak} MiB");
    assert_eq!(served.end().code(), 0);
}

#[test]
fn point_in_an_sftp_repository_is_served() {
    let env = Env::new("servedsftp");
    let sshd = env.sshd();
    sshd.trust_host_key();
    let machine = machine(&env);
    let repo = sshd.url("repo");
    env.kvmb(["init", "-r", &repo]).run().assert_ok();
    env.kvmb(["backup", "vm1", "-r", &repo]).run().assert_ok();
    let mut running = env.kvmb(["serve", "vm1", "-r", &repo]).spawn();
    wait_until("the point is served", LIMIT, || {
        assert!(!running.has_ended(), "{}", running.stderr_so_far());
        running.stdout_so_far().lines().count() >= 2
    });
    let first: Value = serde_json::from_str(running.stdout_so_far().lines().next().expect("a line")).expect("json");
    assert_copies(&env, text(&first, "nbd"), &machine.model("vda"));
    running.interrupt();
    assert_eq!(running.wait().code(), 0);
}

#[test]
fn damaged_chunk_is_a_read_error_for_its_range_only() {
    let env = Env::new("serveddamage");
    let machine = machine(&env);
    init(&env);
    backup(&machine);
    let largest = packs(&env.repo()).into_iter().max_by_key(|pack| pack.metadata().expect("stat").len());
    let pack = largest.expect("a pack");
    let mut bytes = fs::read(&pack).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::set_permissions(&pack, fs::Permissions::from_mode(0o600)).expect("chmod");
    fs::write(&pack, &bytes).expect("write");

    let served = serve(&env, &["vm1", "--disk", "vda"], 1);
    let uri: NbdUri = served.uri("vda").parse().expect("an NBD URI");
    let mut client = Client::connect(&uri, &ClientOptions::default()).expect("connect");
    let model = machine.model("vda");
    let mut broken = Vec::new();
    for chunk in 0..64 {
        let mut read = vec![0; MIB as usize];
        match client.read(chunk * MIB, &mut read) {
            Ok(()) => assert!(read == model.read(chunk * MIB, MIB), "chunk {chunk}"),
            Err(Error::Request { error: 5, message, .. }) => {
                assert!(message.contains("damaged"), "{message}");
                broken.push(chunk);
            }
            Err(other) => panic!("chunk {chunk}: {other}"),
        }
    }
    assert_eq!(broken.len(), 1, "one chunk was damaged: {broken:?}");
    drop(client);
    let ended = served.end();
    assert_eq!(ended.code(), 4);
    let said = ended.stderr();
    let first = broken[0] * MIB;
    assert!(said.contains(&format!("vm1/vda: bytes {first} to {} cannot be read", first + MIB)), "{said}");
}

#[test]
fn writes_to_a_writable_server_do_not_change_the_point() {
    let env = Env::new("servedwritable");
    let machine = machine(&env);
    init(&env);
    backup(&machine);
    let served = serve(&env, &["vm1", "--writable"], 2);
    let commands = [
        "write -P 0x77 4194816 300k",
        "read -P 0x77 4194816 300k",
        "write -P 0x78 14M 3000k",
        "write -z 40M 64k",
        "read -P 0 40M 64k",
        "discard 5M 1M",
        "flush",
    ];
    let args = commands.iter().flat_map(|command| ["-c", command]);
    env.program("qemu-io").args(["-f", "raw"]).args(args).arg(served.uri("vda")).run().assert_ok();
    let mut written = machine.model("vda");
    written.fill(4 * MIB + 512, 300 * 1024, 0x77);
    written.fill(14 * MIB, 3000 * 1024, 0x78);
    written.zero(40 * MIB, 64 * 1024);
    written.zero(5 * MIB, MIB);
    // Another client sees the writes, and the other disk is unaffected.
    assert_copies(&env, &served.uri("vda"), &written);
    assert_copies(&env, &served.uri("vdb"), &machine.model("vdb"));
    assert_eq!(served.end().code(), 0);
    let again = serve(&env, &["vm1"], 2);
    assert_copies(&env, &again.uri("vda"), &machine.model("vda"));
    let refused = env.program("qemu-io").args(["-f", "raw", "-c", "write 0 512", &again.uri("vda")]).run();
    assert_ne!(refused.code(), 0, "a point is read-only");
    assert_eq!(again.end().code(), 0);
}

#[test]
fn detached_server_ends_on_release_or_expired_lease() {
    let env = Env::new("serveddetached");
    let machine = machine(&env);
    init(&env);
    backup(&machine);
    // In a pipeline: hashed through the server, which then ends.
    let script = "kvmb disks vm1 >/dev/null; kvmb serve vm1 -r $REPO --detach | kvmb hash | kvmb release";
    let hashed = env.sh(script).env("REPO", env.repo()).run().assert_ok().records_of("disk");
    for record in &hashed {
        assert_eq!(text(record, "sha256"), machine.model(text(record, "disk")).sha256());
        assert!(text(record, "served").starts_with("s-"), "{record:#}");
    }
    assert_eq!(hashed.len(), 2);
    env.assert_nothing_left();

    // By the machine's name.
    let serve = |args: &[&str]| {
        let call = env.kvmb(["serve", "vm1", "-r", &env.repo(), "--detach"]).args(args);
        call.run().assert_ok().records_of("disk")
    };
    let served = serve(&[]);
    assert_copies(&env, text(&served[0], "nbd"), &machine.model("vda"));
    let socket = socket_of(&served[0]);
    assert_eq!(fs::metadata(&socket).expect("a socket").mode() & 0o777, 0o600);
    let released = env.kvmb(["release", "vm1"]).run().assert_ok().record_of("action");
    assert_eq!(released["changed"], true);
    assert!(!socket.exists());
    env.assert_nothing_left();

    // Without clients, until its lease expires.
    serve(&["--lease", "1s"]);
    wait_until("the lease is over", LIMIT, || env.leftovers().is_empty());
}

#[test]
fn socket_is_private_and_replaces_only_stale_sockets() {
    let env = Env::new("servedsocket");
    let machine = machine(&env);
    init(&env);
    backup(&machine);
    let path = env.path("vda.sock");
    let socket = path.display().to_string();
    let served = serve(&env, &["vm1", "--disk", "vda", "--socket", &socket, "--owner", "nobody:+65534"], 1);
    let found = fs::metadata(&path).expect("a socket");
    assert_eq!((found.uid(), found.mode() & 0o777), (65534, 0o600));
    let second = env.kvmb(["serve", "vm1", "-r", &env.repo(), "--socket", &socket]).run();
    assert_eq!(second.code(), 1, "the name is taken");
    assert_copies(&env, &served.uri("vda"), &machine.model("vda"));
    // The socket of a killed server is replaced.
    served.running.kill();
    served.running.wait();
    assert!(path.exists());
    let third = serve(&env, &["vm1", "--disk", "vda", "--socket", &socket], 1);
    assert_copies(&env, &third.uri("vda"), &machine.model("vda"));
    assert_eq!(third.end().code(), 0);
    assert!(!path.exists());
    // Any other existing file is kept.
    fs::write(&path, "mine").expect("write");
    assert_eq!(env.kvmb(["serve", "vm1", "-r", &env.repo(), "--socket", &socket]).run().code(), 1);
    assert_eq!(fs::read(&path).expect("read"), b"mine");
    let unknown = env.kvmb(["serve", "vm1", "-r", &env.repo(), "--disk", "vdz"]).run();
    assert_eq!(unknown.code(), 1);
    assert!(unknown.stderr().contains("it has vda, vdb"), "{}", unknown.stderr());
}

fn packs(repo: &str) -> Vec<PathBuf> {
    let folders = fs::read_dir(Path::new(repo).join("data")).expect("data").flatten();
    folders
        .flat_map(|folder| fs::read_dir(folder.path()).expect("a folder").flatten())
        .map(|file| file.path())
        .collect()
}

fn socket_of(record: &Value) -> PathBuf {
    text(record, "nbd").split_once("?socket=").expect("a socket").1.into()
}
