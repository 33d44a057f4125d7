//! Repositories on a real `sshd`: the contract of the storage, and servers that fail.

// A test panics if a result is not what it expects.

use std::cell::Cell;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use crate::support::mount::ReadOnly;
use crate::support::proxy::Trouble;
use crate::support::sshd::{Sshd, USER};
use crate::support::{Env, wait_until};
use kvmb::storage::sftp::{self, SftpAddress, SftpStorage, SshContext};
use kvmb::storage::testing::{conformance, folder_conformance};
use kvmb::storage::{Error, FileAction, FileKind, LocalStorage, Storage};

pub(crate) const NAME: &str = "aa0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd";

/// Returns the SSH settings that kvmb would use in this environment.
pub(crate) fn ssh_context(env: &Env) -> SshContext {
    let mut ssh_context = SshContext::new("root");
    ssh_context.home = Some(env.path("home"));
    ssh_context.system_folder = env.path("etc-ssh");
    ssh_context
}

pub(crate) fn storage_at(url: &str, ssh_context: &SshContext) -> SftpStorage {
    SftpStorage::new(SftpAddress::parse(url).unwrap(), ssh_context).unwrap()
}

fn storage(env: &Env, sshd: &Sshd) -> SftpStorage {
    storage_at(&sshd.url("repo"), &ssh_context(env))
}

/// Tries to connect to the server.
pub(crate) fn try_it(sshd: &Sshd, ssh_context: &SshContext) -> kvmb::storage::Result<()> {
    storage_at(&sshd.url("repo"), ssh_context).create_layout()
}

/// Returns the server's complete error.
#[track_caller]
pub(crate) fn server_error(result: kvmb::storage::Result<()>) -> sftp::Error {
    match result {
        Err(Error::Server { source, .. }) => *source,
        other => panic!("not an error of the server: {other:?}"),
    }
}

#[test]
fn sftp_storage_conforms() {
    let env = Env::new("sftp-conforms");
    let sshd = env.sshd();
    sshd.trust_host_key();
    conformance(&storage(&env, &sshd));
}

#[test]
fn sftp_folder_conforms_and_is_readable_as_local_storage() {
    let env = Env::new("sftp-folder");
    let sshd = env.sshd();
    sshd.trust_host_key();
    let storage = storage_at(&sshd.url("deep/repo"), &ssh_context(&env));
    let root = sshd.home().join("deep/repo");
    folder_conformance(&storage, &root);
    storage.write(FileKind::Pack, NAME, b"x").unwrap();
    let local = LocalStorage::new(&root);
    assert_eq!(local.read(FileKind::Pack, NAME).unwrap(), b"x");
    assert_eq!(local.list(FileKind::Pack).unwrap().len(), storage.list(FileKind::Pack).unwrap().len());
    // The other notation of the address refers to the same place.
    let absolute =
        storage_at(&format!("sftp://{USER}@127.0.0.1:{}/{}", sshd.port(), root.display()), &ssh_context(&env));
    assert_eq!(absolute.read(FileKind::Pack, NAME).unwrap(), b"x");
}

#[test]
fn gated_upload_is_sent_piece_by_piece() {
    let env = Env::new("sftp-pace");
    let sshd = env.sshd();
    sshd.trust_host_key();
    let storage = storage(&env, &sshd);
    storage.create_layout().unwrap();
    let contents = vec![7; 3 << 20];
    let passed = AtomicU64::new(0);
    let arrived = || -> u64 {
        let files = fs::read_dir(sshd.home().join("repo/index")).unwrap();
        files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
    };
    let gate = |bytes: usize| {
        assert!(bytes < 256 << 10, "{bytes} at once");
        // Data that was let through must have arrived before the next piece may be sent.
        wait_until("the last piece has arrived", Duration::from_secs(60), || {
            arrived() >= passed.load(Ordering::Relaxed)
        });
        passed.fetch_add(bytes as u64, Ordering::Relaxed);
        true
    };
    storage.write_gated(FileKind::Index, NAME, &contents, &gate).unwrap();
    assert_eq!(passed.load(Ordering::Relaxed), contents.len() as u64);
    let stopped = storage.write_gated(FileKind::Snapshot, NAME, &contents, &|_| false);
    assert!(matches!(stopped, Err(Error::Interrupted)), "{stopped:?}");
    assert_eq!(fs::read_dir(sshd.home().join("repo/snapshots")).unwrap().count(), 0, "nothing is left of it");
    assert_eq!(storage.read(FileKind::Index, NAME).unwrap(), contents);
}

#[test]
fn sync_folder_and_repeated_create_layout_sync_server_folders() {
    let env = Env::new("sftp-sync");
    let log = env.path("sftp.log");
    let command = format!("/usr/lib/openssh/sftp-server -e -l VERBOSE 2>>{}", log.display());
    let sshd = env.sshd_with(&format!("ForceCommand {command}"));
    sshd.trust_host_key();
    let storage = storage(&env, &sshd);
    storage.create_layout().unwrap();
    // Returns the folders that the server has synced since the last call; it logs each sync when it is done.
    let seen = Cell::new(0);
    let synced = || -> Vec<String> {
        let text = fs::read_to_string(&log).unwrap();
        let new = text[seen.replace(text.len())..].lines().filter(|line| line.contains("fsync"));
        new.map(|line| line.split('"').nth(1).unwrap().to_owned()).collect()
    };
    assert_eq!(synced().last().unwrap(), "repo");
    for (kind, folders) in [(FileKind::Pack, vec!["repo/data/aa", "repo/data"]), (FileKind::Lock, vec!["repo/locks"])] {
        storage.write(kind, NAME, b"x").unwrap();
        synced();
        storage.sync_folder(kind, NAME).unwrap();
        assert_eq!(synced(), folders);
    }
    // Repeating `init` when everything exists syncs all of it again.
    storage.create_layout().unwrap();
    assert_eq!(synced(), [".", "repo"]);
}

#[test]
fn sftp_storage_conforms_in_a_chroot_without_a_shell() {
    let env = Env::new("sftp-chroot");
    let sshd = env.sshd_with("ChrootDirectory /mnt\nForceCommand internal-sftp\nAllowTcpForwarding no\nPermitTTY no");
    sshd.trust_host_key();
    let storage = storage_at(&format!("sftp://{USER}@127.0.0.1:{}//repo", sshd.port()), &ssh_context(&env));
    conformance(&storage);
    assert!(sshd.home().join("repo/data").is_dir());
}

#[test]
fn full_server_disk_is_reported_and_leaves_no_partial_file() {
    let env = Env::new("sftp-full");
    let sshd = env.sshd();
    sshd.trust_host_key();
    let small = env.tmpfs("small", 8 << 20);
    let url = format!("sftp://{USER}@127.0.0.1:{}/{}/repo", sshd.port(), small.path().display());
    // The server's mount namespace is a copy made when it starts.
    sshd.stop();
    sshd.run();
    let storage = storage_at(&url, &ssh_context(&env));
    storage.create_layout().unwrap();
    assert!(storage.free_bytes().unwrap().unwrap() <= 8 << 20);
    let error = storage.write(FileKind::Pack, NAME, &vec![7; 12 << 20]).unwrap_err();
    assert!(matches!(error, Error::NoSpace { .. }) && !error.is_transient(), "{error:?}");
    let left: Vec<_> = fs::read_dir(small.path().join("repo/data/aa")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    storage.write(FileKind::Pack, NAME, &vec![7; 1 << 20]).unwrap();
}

#[test]
fn exhausted_quota_is_reported_despite_free_disk_space() {
    let env = Env::new("sftp-quota");
    let sshd = env.sshd();
    sshd.trust_host_key();
    let quota = env.quota("quota", 8 << 20);
    // The server's mount namespace is a copy made when it starts.
    sshd.stop();
    sshd.run();
    let repo = quota.path().join("repo");
    let remote = storage_at(&format!("sftp://{USER}@127.0.0.1:{}/{}", sshd.port(), repo.display()), &ssh_context(&env));
    let local = LocalStorage::new(&repo);
    remote.create_layout().unwrap();
    for storage in [&remote as &dyn Storage, &local] {
        let is_quota = |length: usize| {
            let error = storage.write(FileKind::Pack, NAME, &vec![7; length]).unwrap_err();
            let Error::NoSpace { source, .. } = &error else { panic!("{error:?}") };
            assert_eq!(source.kind(), std::io::ErrorKind::QuotaExceeded);
            assert!(error.to_string().starts_with("disk quota exceeded for ") && !error.is_transient(), "{error}");
            let left: Vec<_> =
                fs::read_dir(repo.join("data/aa")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert!(left.iter().all(|name| name == NAME), "{left:?}");
        };
        quota.limit(8 << 20);
        assert!(storage.free_bytes().unwrap().unwrap() > 64 << 20, "that of the disk");
        is_quota(12 << 20);
        storage.write(FileKind::Pack, NAME, &vec![7; 1 << 20]).unwrap();
        // Not a single byte more.
        quota.limit(1 << 20);
        is_quota(1);
        quota.limit(64 << 20);
        storage.write(FileKind::Pack, NAME, &vec![7; 12 << 20]).unwrap();
        storage.remove(FileKind::Pack, NAME).unwrap();
    }
}

#[test]
fn read_only_server_disk_is_reported() {
    let env = Env::new("sftp-read-only");
    let sshd = env.sshd();
    sshd.trust_host_key();
    storage(&env, &sshd).create_layout().unwrap();
    let _read_only = ReadOnly::make(&sshd.home().join("repo").display().to_string());
    sshd.stop();
    sshd.run();
    let error = storage(&env, &sshd).write(FileKind::Snapshot, NAME, b"x").unwrap_err();
    let Error::Io { action: FileAction::Write, source, .. } = &error else { panic!("{error:?}") };
    assert_eq!(source.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{error}");
}

#[test]
fn forbidden_removal_is_a_permanent_permission_error() {
    let env = Env::new("sftp-forbidden");
    let sshd = env.sshd_with("ForceCommand internal-sftp -P remove");
    sshd.trust_host_key();
    let storage = storage(&env, &sshd);
    storage.create_layout().unwrap();
    storage.write(FileKind::Snapshot, NAME, b"x").unwrap();
    let error = storage.remove(FileKind::Snapshot, NAME).unwrap_err();
    let Error::Io { action: FileAction::Remove, source, path } = &error else { panic!("{error:?}") };
    assert_eq!(source.kind(), std::io::ErrorKind::PermissionDenied);
    assert!(path.starts_with("sftp:") && !error.is_transient(), "{error}");
    assert_eq!(storage.read(FileKind::Snapshot, NAME).unwrap(), b"x");
}

#[test]
fn server_handles_are_closed_after_refused_requests() {
    let env = Env::new("sftp-closed");
    let (log, denied) = (env.path("sftp.log"), env.path("denied"));
    let command =
        format!("/usr/lib/openssh/sftp-server -e -l VERBOSE -P $(cat {}) 2>>{}", denied.display(), log.display());
    let sshd = env.sshd_with(&format!("ForceCommand {command}"));
    sshd.trust_host_key();
    let root = sshd.home().join("repo");
    LocalStorage::new(&root).create_layout().unwrap();
    // All operations after opening an existing file.
    for refused in ["read", "fstat", "readdir", "write", "remove"] {
        fs::write(&denied, refused).unwrap();
        fs::write(root.join("snapshots").join(NAME), vec![7; 300_000]).unwrap();
        fs::write(&log, "").unwrap();
        let storage = storage(&env, &sshd);
        let outcomes = [
            storage.read(FileKind::Snapshot, NAME).is_err(),
            storage.read_range(FileKind::Snapshot, NAME, 10, 200_000).is_err(),
            storage.read_range(FileKind::Snapshot, NAME, 10, 0).is_err(),
            storage.list(FileKind::Snapshot).is_err(),
            storage.write(FileKind::Index, NAME, b"x").is_err(),
            storage.remove(FileKind::Snapshot, NAME).is_err(),
        ];
        assert!(outcomes.contains(&true), "{refused} was not refused");
        let count = |word: &str| {
            let text = fs::read_to_string(&log).unwrap();
            text.lines().filter(|line| line.starts_with(word)).count()
        };
        // The last handle is closed together with the next request, and nobody waits for that.
        assert!(storage.size(FileKind::Config, "").unwrap_err().is_not_found());
        wait_until(&format!("all is closed with {refused} refused"), Duration::from_secs(60), || {
            count("close ") + count("closedir ") == count("open ") + count("opendir ")
        });
    }
}

#[test]
fn broken_connection_is_transient_and_reconnected_later() {
    let env = Env::new("sftp-broken");
    let sshd = env.sshd();
    sshd.trust_host_key();
    let storage = storage(&env, &sshd);
    storage.create_layout().unwrap();
    sshd.stop();
    let error = storage.write(FileKind::Pack, NAME, b"x").unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    let error = storage.size(FileKind::Pack, NAME).unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("cannot connect"), "{error:?}");
    sshd.run();
    storage.write(FileKind::Pack, NAME, b"x").unwrap();
    assert_eq!(storage.read(FileKind::Pack, NAME).unwrap(), b"x");
}

#[test]
fn connection_cut_during_setup_is_a_transient_error() {
    let env = Env::new("sftp-early-cut");
    let sshd = env.sshd();
    sshd.trust_host_key();
    let proxy = sshd.behind(Duration::ZERO);
    let mut cut = 0;
    // Twice in the handshake only, because a server blocks clients that repeatedly disconnect before the login; then
    // often, at the beginning of SFTP.
    for after in [600, 2400].into_iter().chain((3800..8000).step_by(100)) {
        proxy.order(&[Trouble::Cut], after..after + 1, 0);
        if let Err(error) = storage_at(&sshd.url_by(&proxy, "repo"), &ssh_context(&env)).create_layout() {
            assert!(error.is_transient(), "after {after} bytes: {error:?}");
            cut += 1;
        }
    }
    assert!(cut > 20 && proxy.happened() >= cut, "{cut} of {}", proxy.happened());
}

#[test]
fn server_without_sftp_is_reported() {
    let env = Env::new("sftp-none");
    let script = env.path("command");
    let sshd = env.sshd_with(&format!("ForceCommand sh {}", script.display()));
    sshd.trust_host_key();
    for command in ["exit 0", "exit 1", "echo no", "echo this server is for other things; sleep 1"] {
        fs::write(&script, command).unwrap();
        let error = server_error(try_it(&sshd, &ssh_context(&env)));
        assert!(matches!(error, sftp::Error::NoSftp { .. }) && !error.is_transient(), "{command}: {error:?}");
    }
}

#[test]
fn server_that_stops_offering_sftp_is_a_transient_error() {
    let env = Env::new("sftp-gone");
    let script = env.path("command");
    let sshd = env.sshd_with(&format!("ForceCommand sh {}", script.display()));
    sshd.trust_host_key();
    let works = "exec /usr/lib/openssh/sftp-server";
    fs::write(&script, works).unwrap();
    let storage = storage(&env, &sshd);
    storage.create_layout().unwrap();
    // The server restarts while a backup is running.
    fs::write(&script, "exit 1").unwrap();
    sshd.stop();
    sshd.run();
    for _ in 0..3 {
        let error = storage.list(FileKind::Key).unwrap_err();
        assert!(error.is_transient(), "{error:?}");
    }
    fs::write(&script, works).unwrap();
    assert_eq!(storage.list(FileKind::Key).unwrap(), []);
}

#[test]
fn silent_server_times_out_unless_it_resumes_in_time() {
    let env = Env::new("sftp-silent");
    let sshd = env.sshd();
    sshd.trust_host_key();
    let mut ssh_context = ssh_context(&env);
    ssh_context.timeouts.silence = Duration::from_secs(6);
    ssh_context.timeouts.keep_alive = Duration::from_secs(1);
    let storage = storage_at(&sshd.url("repo"), &ssh_context);
    storage.create_layout().unwrap();
    sshd.freeze(true);
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| storage.write(FileKind::Pack, NAME, &vec![5; 8 << 20]));
        std::thread::sleep(Duration::from_millis(1200));
        sshd.freeze(false);
        slow.join().unwrap().unwrap();
    });
    sshd.freeze(true);
    // Without the limit this would never end.
    let error = storage.write(FileKind::Pack, NAME, &vec![5; 8 << 20]).unwrap_err();
    assert!(
        matches!(&error, Error::Server { source, .. } if matches!(**source, sftp::Error::Silent { .. })),
        "{error:?}"
    );
    assert!(error.is_transient());
    sshd.freeze(false);
    storage.write(FileKind::Pack, NAME, b"x").unwrap();
}

#[test]
fn stop_flag_ends_waiting_for_a_dead_server_but_allows_cleanup() {
    let env = Env::new("sftp-stop");
    let sshd = env.sshd();
    sshd.trust_host_key();
    let ssh_context = ssh_context(&env);
    let storage = storage_at(&sshd.url("repo"), &ssh_context);
    storage.create_layout().unwrap();
    ssh_context.stop.store(true, Ordering::Relaxed);
    storage.write(FileKind::Lock, NAME, b"x").unwrap();
    storage.remove(FileKind::Lock, NAME).unwrap();

    sshd.freeze(true);
    let begun = Instant::now();
    assert!(storage.size(FileKind::Lock, NAME).unwrap_err().is_transient());
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    // The other calls of an ending run notice that immediately: 20 times the first wait would take much longer.
    let begun = Instant::now();
    for _ in 0..20 {
        assert!(storage.remove(FileKind::Lock, NAME).is_err());
    }
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    sshd.freeze(false);
}

#[test]
fn stop_flag_releases_all_threads_waiting_for_a_connection() {
    let env = Env::new("sftp-waiters");
    let sshd = env.sshd();
    sshd.trust_host_key();
    let ssh_context = SshContext { connections: 1, ..ssh_context(&env) };
    let storage = Arc::new(storage_at(&sshd.url("repo"), &ssh_context));
    storage.create_layout().unwrap();
    sshd.freeze(true);
    let (tell, told) = mpsc::channel();
    for _ in 0..4 {
        let (storage, tell) = (Arc::clone(&storage), tell.clone());
        std::thread::spawn(move || tell.send(storage.size(FileKind::Lock, NAME).is_err()));
    }
    ssh_context.stop.store(true, Ordering::Relaxed);
    for _ in 0..4 {
        assert_eq!(told.recv_timeout(Duration::from_secs(20)), Ok(true));
    }
    sshd.freeze(false);
}

#[test]
fn unsolicited_sftp_replies_end_the_connection() {
    let env = Env::new("sftp-babble");
    // It sends its version, and then endlessly reports that request 2^32-1 is done.
    let reply = r"\0\0\0\21\145\377\377\377\377\0\0\0\0\0\0\0\0\0\0\0\0";
    let script = env.path("babble");
    fs::write(&script, format!(r"printf '\0\0\0\5\2\0\0\0\3'; while printf '{reply}'; do :; done")).unwrap();
    let sshd = env.sshd_with(&format!("ForceCommand sh {}", script.display()));
    sshd.trust_host_key();
    let storage = storage(&env, &sshd);
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || tell.send(storage.size(FileKind::Config, "")));
    let answer = told.recv_timeout(Duration::from_secs(20)).expect("it listens on");
    let error = server_error(answer.map(drop));
    assert!(matches!(error, sftp::Error::Lost { .. }) && error.to_string().contains("does not speak SFTP"), "{error}");
}

#[test]
fn connection_limit_is_respected() {
    let env = Env::new("sftp-pool");
    let sshd = env.sshd();
    sshd.trust_host_key();
    let storage = storage_at(&sshd.url("repo"), &SshContext { connections: 3, ..ssh_context(&env) });
    storage.create_layout().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let storage = &storage;
            scope.spawn(move || {
                for number in 0..4 {
                    let name = format!("{thread}{number}{NAME}");
                    storage.write(FileKind::Pack, &name, &vec![thread; 1 << 20]).unwrap();
                }
            });
        }
    });
    assert_eq!(storage.list(FileKind::Pack).unwrap().len(), 32);
    let logins = sshd.log().matches("Starting session: subsystem 'sftp'").count();
    assert!((2..=3).contains(&logins), "{logins}");
}
