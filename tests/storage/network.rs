//! Networks that are slow, cut connections, fall silent or corrupt data, between kvmb and a real `sshd`: no wrong byte
//! is stored, no point is lost, nothing hangs, and the machine is not affected.

// A test panics if a result is not what it expects.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::BOUND;
use crate::support::backups::noise;
use crate::support::chains::{MIB, assert_restores, id_of};
use crate::support::proxy::{Proxy, Trouble};
use crate::support::sshd::{Sshd, USER};
use crate::support::{Call, Disk, Env, Machine, wait_until};
use kvmb::repo::{LockMode, Password, Repository};
use kvmb::storage::sftp::{CONNECTIONS, SftpAddress, SftpStorage, SshContext};
use kvmb::storage::{FileKind, Storage};
use serde_json::Value;

/// A server with a repository, a network in front of it, and a machine with 32 MiB of incompressible data.
struct World<'e> {
    env: &'e Env,
    sshd: Sshd,
    proxy: Proxy,
    machine: Machine<'e>,
}

impl<'e> World<'e> {
    fn new(env: &'e Env) -> World<'e> {
        let sshd = env.sshd();
        sshd.trust_host_key();
        let proxy = sshd.behind(Duration::ZERO);
        // ssh's settings for timeouts.
        fs::write(env.path("home/.ssh/config"), "ConnectTimeout 10\nServerAliveInterval 2\nServerAliveCountMax 2\n")
            .unwrap();
        let machine = env.machine("vm").disk(Disk::qcow2(64 * MIB)).start_paused();
        machine.write_bytes("vda", MIB, &noise(1, 32 * MIB));
        let world = World { env, sshd, proxy, machine };
        world.kvmb(&["init"]).run().assert_ok();
        world
    }

    fn url(&self) -> String {
        self.sshd.url_by(&self.proxy, "repo")
    }

    /// Runs a command on the repository, through the network.
    fn kvmb(&self, args: &[&str]) -> Call {
        self.env.kvmb(args).args(["-r", &self.url()]).limit(BOUND)
    }

    /// Returns the repository's folder on the server.
    fn on_the_server(&self) -> String {
        self.sshd.home().join("repo").display().to_string()
    }

    /// Orders troubles of this kind from here on.
    fn trouble(&self, trouble: Trouble, seed: u64) {
        // One for each concurrent connection.
        self.proxy.order(&[trouble; CONNECTIONS], 1000..3 * MIB, seed);
    }

    fn backup(&self) -> Value {
        self.kvmb(&["backup", "vm", "--retry-for", "2m"]).run().assert_ok().record_of("point")
    }

    /// Fails unless the machine still runs, and nothing of a capture is left.
    fn assert_untouched(&self) {
        assert_eq!(self.machine.status(), "prelaunch", "as it was started");
        assert!(!self.machine.is_captured());
        self.env.assert_nothing_left();
    }

    /// Fails unless restic finds no errors in the repository, and a point of it equals the machine.
    fn assert_whole(&self, point: &Value) {
        self.env.restic(self.on_the_server()).check();
        assert_restores(self.env, &self.on_the_server(), point, &self.machine.models());
    }
}

/// Everything that kvmb does with a server, during troubles of one kind.
fn everything_survives(trouble: Trouble, seed: u64) {
    let env = Env::new("network");
    let world = World::new(&env);
    let mut happened = 0;
    let mut assert_there_was_trouble = || {
        let so_far = world.proxy.happened();
        assert!(so_far > happened, "the network was a good one");
        happened = so_far;
    };

    world.trouble(trouble, seed);
    let first = world.backup();
    assert_there_was_trouble();
    world.assert_untouched();
    world.assert_whole(&first);

    world.machine.write_bytes("vda", 8 * MIB, &noise(2, 12 * MIB));
    world.trouble(trouble, seed + 1);
    let second = world.backup();
    assert_eq!(second["disks"][0]["read_mode"], "changed", "the chain goes on: {second:#}");
    assert_there_was_trouble();
    world.assert_untouched();
    world.assert_whole(&second);

    world.trouble(trouble, seed + 2);
    world.kvmb(&["verify", "--all", "--retry-for", "2m"]).run().assert_ok();
    assert_there_was_trouble();

    world.trouble(trouble, seed + 3);
    assert_restores(&env, &world.url(), &second, &world.machine.models());
    assert_there_was_trouble();

    world.trouble(trouble, seed + 4);
    let copy = env.repo_named("copy");
    env.kvmb(["init", "-r", &copy]).run().assert_ok();
    let script = format!("kvmb points -r '{}' | kvmb push -r '{copy}'", world.url());
    env.sh(&script).limit(BOUND).run().assert_ok();
    assert_there_was_trouble();
    env.restic(copy.clone()).check();
    assert_eq!(env.restic(copy).snapshots().len(), 2);

    world.trouble(trouble, seed + 5);
    world.kvmb(&["prune", "--keep-last", "1", "--max-unused", "0%", "--retry-for", "2m"]).run().assert_ok();
    world.proxy.mend();
    let left = env.restic(world.on_the_server()).snapshots();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0]["id"], second["point"], "{left:#?}");
    world.assert_whole(&second);
}

#[test]
fn sftp_commands_survive_cut_connections() {
    everything_survives(Trouble::Cut, 100);
}

#[test]
fn sftp_commands_survive_stalled_connections() {
    everything_survives(Trouble::Stall, 200);
}

#[test]
fn sftp_commands_survive_corruption_in_transit() {
    everything_survives(Trouble::Flip, 300);
}

#[test]
fn backup_survives_a_short_outage_and_gives_up_on_a_long_one() {
    let env = Env::new("network-outage");
    let world = World::new(&env);
    world.proxy.order(&[Trouble::Outage; 8], MIB..2 * MIB, 5);
    let running = world.kvmb(&["backup", "vm", "--retry-for", "2m"]).spawn();
    wait_until("the network is gone", Duration::from_secs(60), || world.proxy.is_broken());
    let tries_again = || running.stderr_so_far().contains("trying again");
    wait_until("kvmb waits for the network", Duration::from_secs(60), tries_again);
    world.proxy.mend();
    let first = running.wait().assert_ok().record_of("point");
    world.assert_untouched();
    world.assert_whole(&first);

    world.machine.write_bytes("vda", 8 * MIB, &noise(3, 24 * MIB));
    world.proxy.order(&[Trouble::Outage; 8], 3 * MIB..4 * MIB, 6);
    let output = world.kvmb(&["backup", "vm", "--retry-for", "3s"]).run().assert_code(1);
    assert_eq!(output.record_of("failure")["code"], "unreachable", "{output}");
    assert!(world.proxy.is_broken() && output.took < Duration::from_secs(120), "{output}");
    world.assert_untouched();
    env.restic(world.on_the_server()).call(["check", "--no-lock", "--read-data"]).run().assert_ok();

    world.proxy.mend();
    let second = world.backup();
    world.assert_untouched();
    world.assert_whole(&second);
    let points = world.kvmb(&["points"]).run().assert_ok().records_of("point");
    assert_eq!(points.iter().map(id_of).collect::<Vec<_>>(), [id_of(&first), id_of(&second)]);
}

#[test]
fn full_server_fails_the_backup_and_the_next_run_is_complete() {
    let env = Env::new("network-full");
    let sshd = env.sshd();
    sshd.trust_host_key();
    let disk = env.tmpfs("server-disk", 96 * MIB);
    // The server's mount namespace is a copy made when it starts.
    sshd.stop();
    sshd.run();
    let folder = disk.path().join("repo").display().to_string();
    let url = format!("sftp://{USER}@127.0.0.1:{}/{folder}", sshd.port());
    let machine = env.machine("vm").disk(Disk::qcow2(64 * MIB)).start_paused();
    machine.write_bytes("vda", 0, &noise(4, 48 * MIB));
    env.kvmb(["init", "-r", &url]).run().assert_ok();
    disk.fill_up_to(24 * MIB);
    let output = env.kvmb(["backup", "vm", "-r", &url]).limit(BOUND).run().assert_code(1);
    let failure = output.record_of("failure");
    assert_eq!(failure["code"], "no_space", "{output}");
    assert!(failure["hint"].is_string(), "{output}");
    assert!(machine.status() == "prelaunch" && !machine.is_captured());
    env.assert_nothing_left();
    let listed = env.sh(&format!("find '{folder}' -name '*-tmp-*'")).run().assert_ok();
    assert_eq!(listed.stdout(), "", "half files");

    disk.fill_up_to(80 * MIB);
    let point = env.kvmb(["backup", "vm", "-r", &url]).limit(BOUND).run().assert_ok().record_of("point");
    env.restic(folder.clone()).check();
    assert_restores(&env, &folder, &point, &machine.models());
}

#[test]
fn exhausted_quota_fails_the_backup_and_the_next_run_is_complete() {
    let env = Env::new("network-quota");
    let sshd = env.sshd();
    sshd.trust_host_key();
    let quota = env.quota("limited-disk", 24 * MIB);
    sshd.stop();
    sshd.run();
    let machine = env.machine("vm").disk(Disk::qcow2(64 * MIB)).start_paused();
    machine.write_bytes("vda", 0, &noise(5, 48 * MIB));
    let [local, server] = ["local", "server"].map(|name| quota.path().join(name).display().to_string());
    for (folder, repo, enough) in [
        (&local, local.clone(), 96 * MIB),
        (&server, format!("sftp://{USER}@127.0.0.1:{}/{server}", sshd.port()), 192 * MIB),
    ] {
        env.kvmb(["init", "-r", &repo]).run().assert_ok();
        let output = env.kvmb(["backup", "vm", "-r", &repo]).limit(BOUND).run().assert_code(1);
        let failure = output.record_of("failure");
        assert_eq!(failure["code"], "no_space", "{output}");
        assert!(failure["error"].as_str().unwrap().contains("disk quota exceeded"), "{output}");
        assert!(failure["hint"].is_string(), "{output}");
        assert!(machine.status() == "prelaunch" && !machine.is_captured());
        env.assert_nothing_left();
        let listed = env.sh(&format!("find '{folder}' -name '*-tmp-*'")).run().assert_ok();
        assert_eq!(listed.stdout(), "", "half files");

        quota.limit(enough);
        let point = env.kvmb(["backup", "vm", "-r", &repo]).limit(BOUND).run().assert_ok().record_of("point");
        env.restic(folder.clone()).check();
        assert_restores(&env, folder, &point, &machine.models());
        quota.limit(72 * MIB);
    }
}

const NAME: &str = "aa0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd";

/// Creates an empty repository on a server with this delay in each direction.
fn far_away(env: &Env, delay: Duration) -> (Sshd, Proxy, SftpStorage) {
    let sshd = env.sshd();
    sshd.trust_host_key();
    let proxy = sshd.behind(delay);
    let mut ssh_context = SshContext::new("root");
    ssh_context.home = Some(env.path("home"));
    let storage = SftpStorage::new(SftpAddress::parse(&sshd.url_by(&proxy, "repo")).unwrap(), &ssh_context).unwrap();
    storage.create_layout().unwrap();
    (sshd, proxy, storage)
}

#[test]
fn concurrent_reads_over_high_latency_share_a_free_connection() {
    let env = Env::new("network-pool");
    let (_sshd, _proxy, storage) = far_away(&env, Duration::from_secs(1));
    storage.write(FileKind::Lock, NAME, b"short").unwrap();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| assert_eq!(storage.read(FileKind::Lock, NAME).unwrap(), b"short"));
        }
    });
    // Two reads are four round trips of 2 s; a connection alone takes more than ten.
    assert!(begun.elapsed() < Duration::from_secs(18), "{:?}", begun.elapsed());
}

#[test]
fn file_operations_take_few_round_trips() {
    let env = Env::new("network-turns");
    let (_sshd, proxy, storage) = far_away(&env, Duration::from_millis(100));
    let contents = vec![5; 300_000];
    // Creates the folder.
    storage.write(FileKind::Pack, NAME, &contents).unwrap();
    // A busy host splits messages and then counts more turns than there were waits, but never fewer.
    let turns = |what: &str, wanted: u64, call: &dyn Fn(&str)| {
        let measured = ["bb", "cc", "dd"].map(|folder| {
            let name = format!("{folder}{}", &NAME[2..]);
            // The server must be the last to send: after long responses, the client may announce that its window is
            // open again.
            assert!(storage.size(FileKind::Config, "").unwrap_err().is_not_found());
            let before = proxy.turns();
            call(&name);
            proxy.turns() - before
        });
        assert_eq!(measured.iter().min(), Some(&wanted), "{what}: {measured:?}");
    };
    turns("write into a new folder", 6, &|name| storage.write(FileKind::Pack, name, &contents).unwrap());
    // The file that was read is closed together with the next request.
    turns("write", 3, &|name| storage.write(FileKind::Pack, name, &contents).unwrap());
    turns("read_range", 2, &|name| drop(storage.read_range(FileKind::Pack, name, 10, 200_000).unwrap()));
    turns("read", 3, &|name| drop(storage.read(FileKind::Pack, name).unwrap()));
    for folder in ["bb", "cc", "dd"] {
        storage.write(FileKind::Lock, &format!("{folder}{}", &NAME[2..]), &contents[..100]).unwrap();
    }
    turns("write a lock", 2, &|name| storage.write(FileKind::Lock, name, &contents[..100]).unwrap());
    turns("read a short one", 2, &|name| assert!(storage.read(FileKind::Lock, name).unwrap() == contents[..100]));
    turns("remove a lock", 1, &|name| storage.remove(FileKind::Lock, name).unwrap());
    turns("list", 2, &|_| drop(storage.list(FileKind::Index).unwrap()));
    let kinds = [FileKind::Key, FileKind::Lock, FileKind::Snapshot, FileKind::Index];
    turns("list several", 2, &|_| drop(storage.list_several(&kinds).unwrap()));
    turns("size", 1, &|name| assert_eq!(storage.size(FileKind::Pack, name).unwrap(), contents.len() as u64));
    turns("remove", 2, &|name| storage.remove(FileKind::Pack, name).unwrap());
    storage.remove(FileKind::Pack, NAME).unwrap();
    assert!(storage.read_range(FileKind::Pack, NAME, 0, 1).unwrap_err().is_not_found());
}

#[test]
fn unchanged_repository_opens_in_few_round_trips() {
    let env = Env::new("network-opening");
    let (_sshd, proxy, storage) = far_away(&env, Duration::from_millis(100));
    let address = storage.url();
    let (password, cache) = (Password::new("swordfish".to_owned()), env.path("cache"));
    Repository::create(Arc::new(storage), &password).unwrap();
    let run = |only_reads: bool| {
        let mut ssh_context = SshContext::new("root");
        (ssh_context.home, ssh_context.connections) = (Some(env.path("home")), 1);
        let storage = SftpStorage::new(SftpAddress::parse(&address).unwrap(), &ssh_context).unwrap();
        // Logs in.
        storage.size(FileKind::Config, "").unwrap();
        let mut before = proxy.turns();
        let mut turns = || {
            let now = proxy.turns();
            now - std::mem::replace(&mut before, now)
        };
        let repo = Repository::open_with(Arc::new(storage), &password, None, Some(&cache)).unwrap();
        let repo = repo.cached_in(&cache);
        let open = turns();
        let (lock, lock_turns) = match only_reads {
            true => (repo.lock_and_list_snapshots().unwrap().0, turns()),
            false => (repo.lock(LockMode::Shared, Duration::ZERO).unwrap(), turns()),
        };
        if !only_reads {
            repo.storage().list_several(&[FileKind::Index, FileKind::Snapshot]).unwrap();
        }
        let lists = turns();
        lock.release().unwrap();
        [open, lock_turns, lists, turns()]
    };
    // The first run's reads are cached for the others.
    run(false);
    // As above: a busy host counts more turns, but never fewer.
    let fewest = |only_reads| -> Vec<u64> {
        let runs = [(); 3].map(|()| run(only_reads));
        (0..4).map(|stage| runs.iter().map(|run| run[stage]).min().unwrap()).collect()
    };
    // The config with the lists of keys and locks; the lock and the check for others; index and snapshots; the end.
    assert_eq!(fewest(false), [2, 4, 2, 1]);
    // A reader lists the snapshots together with the check for other locks.
    assert_eq!(fewest(true), [2, 4, 0, 1]);
}
