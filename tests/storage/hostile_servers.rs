//! Servers that are connected but make no progress, or never finish: each connection is cut off in time, and retries
//! succeed where they can.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::sftp::{NAME, ssh_context, storage_at};
use crate::support::Env;
use crate::support::hostile_sftp::{Hostile, Mischief, kind};
use kvmb::storage::sftp::{self, SftpAddress, SftpStorage, SshContext};
use kvmb::storage::{Error, FileKind, RetryPolicy, RetryStorage, Storage};

/// How long a server may take here until it counts as stuck.
const PROGRESS: Duration = Duration::from_secs(2);

/// Far longer than that, even on a busy host: a call that takes longer has no time limit.
const BOUND: Duration = Duration::from_secs(40);

fn impatient(env: &Env) -> SshContext {
    let mut ssh_context = ssh_context(env);
    ssh_context.timeouts.progress = PROGRESS;
    // The server answers these at any time.
    ssh_context.timeouts.keep_alive = Duration::from_millis(500);
    ssh_context
}

fn storage(env: &Env, hostile: &Hostile) -> SftpStorage {
    storage_at(&hostile.url("repo"), &impatient(env))
}

/// Creates a folder on the server with a layout and one file of 300 kB, before any misbehaviour.
fn with_a_pack(env: &Env, hostile: &Hostile) -> Vec<u8> {
    let contents: Vec<u8> = (0..300_000u32).map(|byte| (byte % 251) as u8).collect();
    let storage = storage(env, hostile);
    storage.create_layout().unwrap();
    storage.write(FileKind::Pack, NAME, &contents).unwrap();
    contents
}

#[track_caller]
fn assert_stuck<T: std::fmt::Debug>(result: Result<T, Error>) {
    let error = result.expect_err("no server answers so");
    assert!(error.is_transient(), "another try may go well: {error:?}");
    let Error::Server { source, .. } = &error else { panic!("{error:?}") };
    assert!(matches!(**source, sftp::Error::Stuck { .. }), "{error:?}");
    assert!(error.to_string().contains("no progress"), "{error}");
}

#[track_caller]
fn within_bound<T>(work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let result = work();
    assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
    result
}

#[test]
fn server_answering_only_keep_alives_is_given_up() {
    let env = Env::new("sftp-mute");
    let hostile = Hostile::start(&env);
    with_a_pack(&env, &hostile);
    hostile.always(Mischief::Mute(kind::STAT));
    within_bound(|| assert_stuck(storage(&env, &hostile).size(FileKind::Pack, NAME)));
    hostile.always(Mischief::Mute(kind::READ));
    within_bound(|| assert_stuck(storage(&env, &hostile).read_range(FileKind::Pack, NAME, 0, 100_000)));
    hostile.always(Mischief::Mute(kind::READDIR));
    within_bound(|| assert_stuck(storage(&env, &hostile).list(FileKind::Snapshot)));
    // The server accepts the first megabytes, and then no more.
    hostile.always(Mischief::Mute(kind::WRITE));
    let pack = vec![5; 12 << 20];
    within_bound(|| assert_stuck(storage(&env, &hostile).write(FileKind::Pack, NAME, &pack)));
}

#[test]
fn trickling_bytes_do_not_count_as_progress() {
    let env = Env::new("sftp-trickle");
    let hostile = Hostile::start(&env);
    with_a_pack(&env, &hostile);
    let slow = Duration::from_millis(50);
    hostile.always(Mischief::Trickle(kind::READ, slow));
    within_bound(|| assert_stuck(storage(&env, &hostile).read_range(FileKind::Pack, NAME, 0, 100_000)));
    hostile.always(Mischief::OneByteReads(slow));
    within_bound(|| assert_stuck(storage(&env, &hostile).read_range(FileKind::Pack, NAME, 0, 100_000)));
    hostile.always(Mischief::EndlessFolder(1, Duration::from_secs(1)));
    within_bound(|| assert_stuck(storage(&env, &hostile).list(FileKind::Snapshot)));
}

#[test]
fn slow_but_progressing_server_is_waited_for() {
    let env = Env::new("sftp-slow");
    let hostile = Hostile::start(&env);
    let contents = with_a_pack(&env, &hostile);
    // Each response arrives in time, but all of them together do not.
    hostile.always(Mischief::Trickle(kind::STAT, Duration::from_millis(20)));
    let storage = storage(&env, &hostile);
    let begun = Instant::now();
    for _ in 0..6 {
        assert_eq!(storage.size(FileKind::Pack, NAME).unwrap(), 300_000);
    }
    assert!(begun.elapsed() > 2 * PROGRESS, "{:?}", begun.elapsed());
    assert_eq!(storage.read(FileKind::Pack, NAME).unwrap(), contents);
}

#[test]
fn slow_gated_upload_does_not_count_as_a_stuck_server() {
    let env = Env::new("sftp-own-pace");
    let hostile = Hostile::start(&env);
    let storage = storage(&env, &hostile);
    storage.create_layout().unwrap();
    let gate = |_| {
        thread::sleep(PROGRESS + Duration::from_secs(1));
        true
    };
    storage.write_gated(FileKind::Pack, NAME, &[5; 300_000], &gate).unwrap();
}

#[test]
fn endless_listings_and_oversized_files_are_refused() {
    let env = Env::new("sftp-endless");
    let hostile = Hostile::start(&env);
    with_a_pack(&env, &hostile);
    hostile.always(Mischief::EndlessFolder(500, Duration::ZERO));
    let error = within_bound(|| storage(&env, &hostile).list(FileKind::Snapshot).unwrap_err());
    assert!(error.to_string().contains("never stops listing"), "{error:?}");

    hostile.always(Mischief::LongFiles(1 << 40));
    let storage = storage(&env, &hostile);
    for kind in FileKind::ALL {
        // The server reports that every name exists.
        let folder = if kind == FileKind::Config { String::new() } else { kind.folder().to_owned() };
        let path = hostile.home().join("repo").join(folder);
        fs::write(if kind == FileKind::Config { path.join("config") } else { path.join(NAME) }, "x").unwrap();
        if kind == FileKind::Pack {
            continue;
        }
        let error = within_bound(|| storage.read(kind, NAME).unwrap_err());
        assert!(matches!(error, Error::TooLong { .. }), "{kind}: {error:?}");
    }
}

#[test]
fn write_on_a_stuck_server_is_repeated_on_a_new_connection() {
    let env = Env::new("sftp-stuck-write");
    let hostile = Hostile::start(&env);
    with_a_pack(&env, &hostile);
    let policy = RetryPolicy { shortest_pause: Duration::from_millis(10), ..RetryPolicy::default() };
    for kind in [kind::WRITE, kind::EXTENDED, kind::CLOSE] {
        let storage = Arc::new(storage(&env, &hostile)) as Arc<dyn Storage>;
        let storage = RetryStorage::new(storage, policy, Arc::default());
        let before = hostile.happened();
        hostile.order(&[Mischief::Mute(kind)]);
        let (name, pack) = (format!("{kind:02x}{NAME}"), vec![kind; 12 << 20]);
        within_bound(|| storage.write(FileKind::Pack, &name, &pack).unwrap());
        assert_eq!(hostile.happened(), before + 1);
        assert!(storage.read(FileKind::Pack, &name).unwrap() == pack);
    }
}

#[test]
fn folder_sync_failure_is_an_error_unless_unsupported() {
    let env = Env::new("sftp-folder-sync");
    let hostile = Hostile::start(&env);
    with_a_pack(&env, &hostile);
    // How OpenSSH reports EIO, and errors that only the system's message identifies.
    for (status, words, is_error) in [
        (4, "Failure", true),
        (4, "Input/output error", true),
        (4, "Operation not supported", false),
        (5, "Bad message", false),
        (8, "Operation unsupported", false),
        (2, "No such file", false),
    ] {
        hostile.always(Mischief::FolderSync(status, words));
        let storage = storage(&env, &hostile);
        let answers = [
            storage.write(FileKind::Index, NAME, b"x"),
            storage.sync_folder(FileKind::Index, NAME),
            storage.remove(FileKind::Index, NAME),
            storage.create_layout(),
        ];
        for answer in answers {
            assert_eq!(answer.is_err(), is_error, "{words}: {answer:?}");
        }
    }
}

#[test]
fn progress_timeout_is_configurable() {
    let env = Env::new("sftp-configured");
    let hostile = Hostile::start(&env);
    let url = hostile.url("repo");
    env.kvmb(["init", "-r", &url]).run().assert_ok();
    hostile.always(Mischief::Mute(kind::READ));
    let config = env.path("config.json");
    fs::write(&config, r#"{"ssh": {"progress_timeout": "1s"}, "retry_for": "1s"}"#).unwrap();
    make_private(&config);
    let call = env.kvmb(["points", "-r", &url, "--config"]).args([&config]).limit(BOUND).run().assert_code(1);
    let stderr = call.stderr();
    assert!(stderr.contains("no progress") && stderr.contains("ssh.progress_timeout"), "{stderr}");
}

fn make_private(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn endless_banner_of_a_non_ssh_server_is_reported() {
    let env = Env::new("sftp-babble-early");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let talker = thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let line = b"220 this is a mail server\r\n".repeat(1000);
        // Until the connection is cut off.
        while client.write_all(&line).is_ok() {}
    });
    let target = SftpAddress::parse(&format!("sftp://keeper@127.0.0.1:{port}/repo")).unwrap();
    let storage = SftpStorage::new(target, &impatient(&env)).unwrap();
    let error = within_bound(|| storage.size(FileKind::Config, "").unwrap_err());
    assert!(error.to_string().contains("220 this is a mail server"), "{error}");
    talker.join().unwrap();
}

#[test]
fn text_of_a_server_that_closes_the_connection_is_reported_at_once() {
    let env = Env::new("sftp-turned-away");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // OpenSSH beyond MaxStartups, or with a penalty for this host.
    let doorkeeper = thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        client.write_all(b"Not allowed at this time\r\n").unwrap();
    });
    let target = SftpAddress::parse(&format!("sftp://keeper@127.0.0.1:{port}/repo")).unwrap();
    let storage = SftpStorage::new(target, &ssh_context(&env)).unwrap();
    let begun = Instant::now();
    let error = storage.size(FileKind::Config, "").unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(error.is_transient(), "{error:?}");
    assert_eq!(error.to_string(), format!("127.0.0.1:{port} refused the connection: Not allowed at this time"));
    doorkeeper.join().unwrap();
}
