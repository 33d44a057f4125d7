//! Repositories on a real `sshd`: the promises of the storage, every login, every host key, and servers that fail.

// A test stops at what it does not expect.

use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use crate::support::mount::ReadOnly;
use crate::support::proxy::Trouble;
use crate::support::sshd::{SSH_PASSWORD, Sshd, USER};
use crate::support::{Env, wait_until};
use kvmb::storage::sftp::{self, Credentials, Secret, SftpAddress, SftpStorage, ShownKey, SshContext};
use kvmb::storage::testing::{conformance, folder_conformance};
use kvmb::storage::{Error, FileAction, FileKind, LocalStorage, Storage};

pub(crate) const NAME: &str = "aa0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd";

/// What kvmb would tell the storage layer in this world.
pub(crate) fn access(env: &Env) -> SshContext {
    let mut access = SshContext::new("root");
    access.home = Some(env.path("home"));
    access.system_folder = env.path("etc-ssh");
    access
}

pub(crate) fn storage_at(url: &str, access: &SshContext) -> SftpStorage {
    SftpStorage::new(SftpAddress::parse(url).unwrap(), access).unwrap()
}

fn storage(env: &Env, sshd: &Sshd) -> SftpStorage {
    storage_at(&sshd.url("repo"), &access(env))
}

/// Whether this leads to the server.
fn try_it(sshd: &Sshd, access: &SshContext) -> kvmb::storage::Result<()> {
    storage_at(&sshd.url("repo"), access).create_layout()
}

/// The server's error, whole.
#[track_caller]
fn server_error(result: kvmb::storage::Result<()>) -> sftp::Error {
    match result {
        Err(Error::Server { source, .. }) => *source,
        other => panic!("not an error of the server: {other:?}"),
    }
}

/// Says the same to everything, and remembers what it was asked.
#[derive(Debug, Default)]
struct Oracle {
    /// What it said first, so often, before it thought better of it.
    typos: AtomicUsize,
    secret: Option<&'static str>,
    accepts: bool,
    asked: Mutex<Vec<String>>,
}

impl Oracle {
    fn ask(&self, question: String) -> Result<Option<Secret>, String> {
        self.asked.lock().unwrap().push(question);
        if self.typos.load(Ordering::Relaxed) > 0 {
            return Ok(Some(Secret::new("a typo".to_owned())));
        }
        Ok(self.secret.map(|secret| Secret::new(secret.to_owned())))
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Credentials for Oracle {
    fn password(&self, account: &str) -> Result<Option<Secret>, String> {
        self.ask(format!("password {account}"))
    }

    fn passphrase(&self, key_file: &Path) -> Result<Option<Secret>, String> {
        self.ask(format!("passphrase {}", key_file.file_name().unwrap().display()))
    }

    fn answer(&self, account: &str, question: &str, hidden: bool) -> Result<Option<Secret>, String> {
        self.ask(format!("answer {account} {question} {hidden}"))
    }

    fn was_wrong(&self) -> bool {
        self.typos.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    fn accepts(&self, key: &ShownKey) -> Result<bool, String> {
        self.asked.lock().unwrap().push(format!("key {} {}", key.algorithm, key.fingerprint));
        Ok(self.accepts)
    }
}

fn with(access: &SshContext, oracle: &Arc<Oracle>) -> SshContext {
    SshContext { credentials: Arc::clone(oracle) as Arc<dyn Credentials>, ..access.clone() }
}

#[test]
fn sftp_conforms() {
    let env = Env::new("sftp-conforms");
    let sshd = env.sshd();
    sshd.befriend();
    conformance(&storage(&env, &sshd));
}

#[test]
fn a_folder_of_a_server_keeps_what_folders_promise_and_is_one_that_is_local_there() {
    let env = Env::new("sftp-folder");
    let sshd = env.sshd();
    sshd.befriend();
    let storage = storage_at(&sshd.url("deep/repo"), &access(&env));
    let root = sshd.home().join("deep/repo");
    folder_conformance(&storage, &root);
    storage.write(FileKind::Pack, NAME, b"x").unwrap();
    let local = LocalStorage::new(&root);
    assert_eq!(local.read(FileKind::Pack, NAME).unwrap(), b"x");
    assert_eq!(local.list(FileKind::Pack).unwrap().len(), storage.list(FileKind::Pack).unwrap().len());
    // The other way to write an address leads to the same place.
    let absolute = storage_at(&format!("sftp://{USER}@127.0.0.1:{}/{}", sshd.port(), root.display()), &access(&env));
    assert_eq!(absolute.read(FileKind::Pack, NAME).unwrap(), b"x");
}

#[test]
fn an_upload_at_a_pace_goes_out_piece_by_piece() {
    let env = Env::new("sftp-pace");
    let sshd = env.sshd();
    sshd.befriend();
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
        // What was let through is there before the next piece may go.
        wait_until("the last piece has arrived", Duration::from_secs(20), || {
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
fn what_the_server_has_not_confirmed_is_put_on_its_disk_when_it_is_asked_for_again() {
    let env = Env::new("sftp-sync");
    let log = env.path("sftp.log");
    let command = format!("/usr/lib/openssh/sftp-server -e -l VERBOSE 2>>{}", log.display());
    let sshd = env.sshd_with(&format!("ForceCommand {command}"));
    sshd.befriend();
    let storage = storage(&env, &sshd);
    storage.create_layout().unwrap();
    // The folders that the server has synced since it was last looked at; it writes its log when it does a thing.
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
    // A retry of `init` that finds everything made puts all of it on the disk all the same.
    storage.create_layout().unwrap();
    assert_eq!(synced(), [".", "repo"]);
}

#[test]
fn it_works_in_a_chroot_with_a_forced_command_and_no_shell() {
    let env = Env::new("sftp-chroot");
    let sshd = env.sshd_with("ChrootDirectory /mnt\nForceCommand internal-sftp\nAllowTcpForwarding no\nPermitTTY no");
    sshd.befriend();
    let storage = storage_at(&format!("sftp://{USER}@127.0.0.1:{}//repo", sshd.port()), &access(&env));
    conformance(&storage);
    assert!(sshd.home().join("repo/data").is_dir());
}

#[test]
fn a_full_disk_says_so_and_leaves_nothing_half() {
    let env = Env::new("sftp-full");
    let sshd = env.sshd();
    sshd.befriend();
    let small = env.tmpfs("small", 8 << 20);
    let url = format!("sftp://{USER}@127.0.0.1:{}/{}/repo", sshd.port(), small.path().display());
    // The server looks at the world as it was when it started.
    sshd.stop();
    sshd.run();
    let storage = storage_at(&url, &access(&env));
    storage.create_layout().unwrap();
    assert!(storage.free_bytes().unwrap().unwrap() <= 8 << 20);
    let error = storage.write(FileKind::Pack, NAME, &vec![7; 12 << 20]).unwrap_err();
    assert!(matches!(error, Error::NoSpace { .. }) && !error.is_transient(), "{error:?}");
    let left: Vec<_> = fs::read_dir(small.path().join("repo/data/aa")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    storage.write(FileKind::Pack, NAME, &vec![7; 1 << 20]).unwrap();
}

#[test]
fn a_quota_that_is_used_up_says_so_although_the_disk_has_room() {
    let env = Env::new("sftp-quota");
    let sshd = env.sshd();
    sshd.befriend();
    let quota = env.quota("quota", 8 << 20);
    // The server looks at the world as it was when it started.
    sshd.stop();
    sshd.run();
    let repo = quota.path().join("repo");
    let remote = storage_at(&format!("sftp://{USER}@127.0.0.1:{}/{}", sshd.port(), repo.display()), &access(&env));
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
        // Not even a byte more.
        quota.limit(1 << 20);
        is_quota(1);
        quota.limit(64 << 20);
        storage.write(FileKind::Pack, NAME, &vec![7; 12 << 20]).unwrap();
        storage.remove(FileKind::Pack, NAME).unwrap();
    }
}

#[test]
fn a_disk_that_the_server_can_only_read_says_so() {
    let env = Env::new("sftp-read-only");
    let sshd = env.sshd();
    sshd.befriend();
    storage(&env, &sshd).create_layout().unwrap();
    let _read_only = ReadOnly::make(&sshd.home().join("repo").display().to_string());
    sshd.stop();
    sshd.run();
    let error = storage(&env, &sshd).write(FileKind::Snapshot, NAME, b"x").unwrap_err();
    let Error::Io { action: FileAction::Write, source, .. } = &error else { panic!("{error:?}") };
    assert_eq!(source.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{error}");
}

#[test]
fn what_the_server_forbids_is_a_lasting_error_that_says_what() {
    let env = Env::new("sftp-forbidden");
    let sshd = env.sshd_with("ForceCommand internal-sftp -P remove");
    sshd.befriend();
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
fn what_the_server_opened_is_closed_also_when_it_then_refuses() {
    let env = Env::new("sftp-closed");
    let (log, denied) = (env.path("sftp.log"), env.path("denied"));
    let command =
        format!("/usr/lib/openssh/sftp-server -e -l VERBOSE -P $(cat {}) 2>>{}", denied.display(), log.display());
    let sshd = env.sshd_with(&format!("ForceCommand {command}"));
    sshd.befriend();
    let root = sshd.home().join("repo");
    LocalStorage::new(&root).create_layout().unwrap();
    // Everything that comes after the opening of what is there.
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
        // Nobody waits for the last one.
        wait_until(&format!("all is closed with {refused} refused"), Duration::from_secs(10), || {
            count("close ") + count("closedir ") == count("open ") + count("opendir ")
        });
    }
}

#[test]
fn a_key_lets_in_without_a_question() {
    let env = Env::new("sftp-key");
    let sshd = env.sshd();
    sshd.befriend();
    let oracle = Arc::new(Oracle::default());
    try_it(&sshd, &with(&access(&env), &oracle)).unwrap();
    assert_eq!(oracle.asked(), Vec::<String>::new());
}

#[test]
fn a_key_with_a_passphrase_is_opened_once_for_all_connections() {
    let env = Env::new("sftp-passphrase");
    let sshd = env.sshd();
    sshd.make_known("ed25519");
    sshd.authorize(&sshd.new_key("id_ed25519", "open sesame"));
    let oracle = Arc::new(Oracle { secret: Some("open sesame"), ..Oracle::default() });
    let storage = storage_at(&sshd.url("repo"), &with(&access(&env), &oracle));
    storage.create_layout().unwrap();
    std::thread::scope(|scope| {
        for number in 0..4 {
            let storage = &storage;
            scope.spawn(move || storage.write(FileKind::Pack, &format!("{number}{NAME}"), &vec![1; 1 << 20]).unwrap());
        }
    });
    assert_eq!(oracle.asked(), ["passphrase id_ed25519"]);

    let nobody = server_error(try_it(&sshd, &access(&env))).to_string();
    assert!(nobody.contains("id_ed25519 (it wants a passphrase, and none was given)"), "{nobody}");
    let wrong = Arc::new(Oracle { secret: Some("wrong"), ..Oracle::default() });
    let error = server_error(try_it(&sshd, &with(&access(&env), &wrong)));
    assert!(matches!(error, sftp::Error::Login { .. }) && !error.to_string().contains("wrong"), "{error}");
}

#[test]
fn the_agent_lets_in_and_only_with_its_configured_keys_where_that_is_wanted() {
    let env = Env::new("sftp-agent");
    let sshd = env.sshd();
    sshd.make_known("ed25519");
    let key = sshd.new_key("spare", "");
    sshd.authorize(&key);
    let socket = env.path("run/agent");
    let mut agent = std::process::Command::new("ssh-agent")
        .arg("-D")
        .arg("-a")
        .arg(&socket)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the agent listens", Duration::from_secs(10), || socket.exists());
    let added = std::process::Command::new("ssh-add").arg("-q").arg(&key).env("SSH_AUTH_SOCK", &socket).status();
    assert!(added.unwrap().success());
    let with_agent = SshContext { agent_socket: Some(socket), ..access(&env) };
    let lets_in = try_it(&sshd, &with_agent);
    fs::write(env.path("home/.ssh/config"), "IdentitiesOnly yes\n").unwrap();
    let other_keys = try_it(&sshd, &with_agent);
    fs::write(env.path("home/.ssh/config"), "IdentitiesOnly yes\nIdentityFile ~/.ssh/spare.pub\n").unwrap();
    let configured = try_it(&sshd, &with_agent);
    agent.kill().unwrap();
    agent.wait().unwrap();
    lets_in.unwrap();
    assert!(matches!(server_error(other_keys), sftp::Error::Login { .. }));
    configured.unwrap();
}

#[test]
fn a_password_lets_in_and_a_wrong_one_is_told_with_what_was_tried() {
    let env = Env::new("sftp-password");
    let sshd = env.sshd();
    sshd.make_known("ed25519");
    sshd.new_key("id_ed25519", "");
    let oracle = Arc::new(Oracle { secret: Some(SSH_PASSWORD), ..Oracle::default() });
    try_it(&sshd, &with(&access(&env), &oracle)).unwrap();
    assert_eq!(oracle.asked(), [format!("password {USER}@127.0.0.1")]);

    let wrong = Arc::new(Oracle { secret: Some("guess"), ..Oracle::default() });
    let error = server_error(try_it(&sshd, &with(&access(&env), &wrong)));
    let text = error.to_string();
    assert!(text.contains("id_ed25519, password; the server offers: publickey, password"), "{text}");
    assert!(!text.contains("guess") && !error.is_transient(), "{text}");
    let none = server_error(try_it(&sshd, &access(&env))).to_string();
    assert!(none.contains("password (none was given)"), "{none}");
}

#[test]
fn who_mistypes_is_asked_three_times_and_a_file_once() {
    for config in ["", "KbdInteractiveAuthentication yes\nPasswordAuthentication no"] {
        let env = Env::new("sftp-typo");
        let sshd = env.sshd_with(config);
        sshd.make_known("ed25519");
        for (typos, lets_in, asked) in [(1, true, 2), (2, true, 3), (9, false, 3)] {
            let person = Oracle { secret: Some(SSH_PASSWORD), typos: AtomicUsize::new(typos), ..Oracle::default() };
            let person = Arc::new(person);
            let result = try_it(&sshd, &with(&access(&env), &person));
            assert_eq!(result.is_ok(), lets_in, "{result:?}");
            assert_eq!(person.asked().len(), asked, "{:?}", person.asked());
        }
        let file = Arc::new(Oracle { secret: Some("wrong"), ..Oracle::default() });
        server_error(try_it(&sshd, &with(&access(&env), &file)));
        assert_eq!(file.asked().len(), 1);
    }
}

#[test]
fn who_mistypes_a_passphrase_is_asked_three_times_too() {
    let env = Env::new("sftp-passphrase-typo");
    let sshd = env.sshd();
    sshd.make_known("ed25519");
    let key = sshd.new_key("id_ed25519", "open sesame");
    sshd.authorize(&key);
    // Also of a key in the older format.
    for rewritten in [false, true] {
        if rewritten {
            let pem = ["-q", "-p", "-m", "PEM", "-P", "open sesame", "-N", "open sesame", "-f"];
            fs::remove_file(&key).unwrap();
            fs::remove_file(key.with_extension("pub")).unwrap();
            let key = env.path("home/.ssh/id_rsa");
            let keygen =
                |args: &[&str]| std::process::Command::new("ssh-keygen").args(args).arg(&key).output().unwrap();
            assert!(keygen(&["-q", "-t", "rsa", "-N", "open sesame", "-f"]).status.success());
            assert!(keygen(&pem).status.success());
            assert!(fs::read_to_string(&key).unwrap().contains("DEK-Info"));
            sshd.authorize(&key);
        }
        for (typos, asked) in [(0, 1), (1, 2), (2, 3)] {
            let person = Oracle { secret: Some("open sesame"), typos: AtomicUsize::new(typos), ..Oracle::default() };
            let person = Arc::new(person);
            try_it(&sshd, &with(&access(&env), &person)).unwrap();
            assert_eq!(person.asked().len(), asked, "{:?}", person.asked());
            assert!(person.asked().iter().all(|question| question.starts_with("passphrase id_")));
        }
        // Then for the password, as often.
        let person = Oracle { secret: Some(SSH_PASSWORD), typos: AtomicUsize::new(9), ..Oracle::default() };
        let person = Arc::new(person);
        let refused = server_error(try_it(&sshd, &with(&access(&env), &person))).to_string();
        let asked = person.asked();
        let of_key = asked.iter().filter(|question| question.starts_with("passphrase")).count();
        assert_eq!((of_key, asked.len()), (3, 6), "{asked:?}");
        assert_eq!(refused.matches("(the passphrase does not open it)").count(), 1, "told once: {refused}");
    }
}

#[test]
fn the_servers_questions_are_answered() {
    let env = Env::new("sftp-questions");
    let sshd = env.sshd_with("KbdInteractiveAuthentication yes\nPasswordAuthentication no");
    sshd.make_known("ed25519");
    let oracle = Arc::new(Oracle { secret: Some(SSH_PASSWORD), ..Oracle::default() });
    let storage = storage_at(&sshd.url("repo"), &with(&access(&env), &oracle));
    storage.create_layout().unwrap();
    let asked = oracle.asked();
    assert!(asked.len() == 1 && asked[0].starts_with("answer") && asked[0].ends_with("true"), "{asked:?}");
    // A further connection asks nobody.
    sshd.stop();
    sshd.run();
    assert!(storage.size(FileKind::Config, "").unwrap_err().is_transient());
    assert!(storage.size(FileKind::Config, "").unwrap_err().is_not_found());
    assert_eq!(oracle.asked().len(), 1);
}

#[test]
fn a_second_factor_after_the_key_is_asked_for() {
    let env = Env::new("sftp-two-factors");
    let sshd = env.sshd_with("AuthenticationMethods publickey,password");
    sshd.befriend();
    let oracle = Arc::new(Oracle { secret: Some(SSH_PASSWORD), ..Oracle::default() });
    try_it(&sshd, &with(&access(&env), &oracle)).unwrap();
}

#[test]
fn ssh_config_names_the_server_the_user_and_the_key() {
    let env = Env::new("sftp-config");
    let sshd = env.sshd();
    sshd.make_known("ed25519");
    sshd.authorize(&sshd.new_key("special", ""));
    let config = format!(
        "Host vault\n HostName 127.0.0.1\n Port {}\n User {USER}\n IdentityFile ~/.ssh/special\n IdentitiesOnly yes\n",
        sshd.port()
    );
    fs::write(env.path("home/.ssh/config"), config).unwrap();
    storage_at("sftp:vault:repo", &access(&env)).create_layout().unwrap();
    assert!(sshd.home().join("repo/data").is_dir());
    // IPv6, known under its own name.
    let six = format!("[::1]:{} {}\n", sshd.port(), sshd.host_key("ed25519"));
    fs::write(sshd.known_hosts(), six).unwrap();
    // A longer interval than the system takes for a socket.
    let config = "IdentityFile ~/.ssh/special\nServerAliveInterval 40000\n";
    fs::write(env.path("home/.ssh/config"), config).unwrap();
    storage_at(&format!("sftp://{USER}@[::1]:{}/six", sshd.port()), &access(&env)).create_layout().unwrap();
    assert!(sshd.home().join("six/data").is_dir());
}

#[test]
fn a_server_behind_another_is_reached_by_a_jump_and_by_a_command() {
    let (env, gate_env) = (Env::new("sftp-behind"), Env::new("sftp-gate"));
    let (sshd, gate) = (env.sshd(), gate_env.sshd());
    sshd.befriend();
    gate.authorize(&env.path("home/.ssh/id_ed25519"));
    let ssh = env.path("home/.ssh").display().to_string();
    let gate_line = format!("[127.0.0.1]:{} {}\n", gate.port(), gate.host_key("ed25519"));
    let known = fs::read_to_string(sshd.known_hosts()).unwrap();
    fs::write(sshd.known_hosts(), known + &gate_line).unwrap();
    let configure = |way: &str| {
        let config = format!(
            "Host vault\n HostName 127.0.0.1\n Port {}\n User {USER}\n {way}\nHost gate\n HostName 127.0.0.1\n Port \
             {}\n User {USER}\n IdentityFile {ssh}/id_ed25519\n UserKnownHostsFile {ssh}/known_hosts\n",
            sshd.port(),
            gate.port()
        );
        fs::write(env.path("home/.ssh/config"), config).unwrap();
    };
    let tunnels = || gate.log().matches("Accepted publickey").count();
    let command = format!("ProxyCommand ssh -F {ssh}/config -o BatchMode=yes -W %h:%p gate");
    for (way, folder) in [("ProxyJump gate", "jump"), (command.as_str(), "command")] {
        configure(way);
        let before = tunnels();
        let storage = storage_at(&format!("sftp:vault:{folder}"), &access(&env));
        storage.create_layout().unwrap();
        storage.write(FileKind::Pack, &"ab".repeat(32), &vec![7; 3 << 20]).unwrap();
        assert_eq!(storage.read(FileKind::Pack, &"ab".repeat(32)).unwrap().len(), 3 << 20);
        assert!(tunnels() > before, "{way}: {}", gate.log());
        assert!(sshd.home().join(folder).join("data").is_dir());
        drop(storage);
        env.assert_nothing_left();
    }
    configure("ProxyJump gate");
    env.kvmb(["init", "-r", "sftp:vault:repo"]).run().assert_ok();
    // The host between does not let us in: it is said who did not.
    fs::remove_file(gate.authorized_keys()).unwrap();
    let error = server_error(storage_at("sftp:vault:refused", &access(&env)).create_layout());
    assert!(
        error.to_string().contains("the proxy says: ") && error.to_string().contains("Permission denied"),
        "{error}"
    );
    gate.stop();
    let error = server_error(storage_at("sftp:vault:stopped", &access(&env)).create_layout());
    assert!(error.to_string().contains("the proxy says: "), "{error}");
}

#[test]
fn an_unknown_server_is_refused_before_anything_is_said_and_noted_when_accepted() {
    let env = Env::new("sftp-unknown");
    let sshd = env.sshd();
    sshd.authorize(&sshd.new_key("id_ed25519", ""));
    let suspicious = Arc::new(Oracle { secret: Some(SSH_PASSWORD), ..Oracle::default() });
    let error = server_error(try_it(&sshd, &with(&access(&env), &suspicious)));
    let sftp::Error::HostKeyUnknown { fingerprint, .. } = &error else { panic!("{error:?}") };
    assert_eq!(*fingerprint, sshd.fingerprint("ed25519"));
    assert_eq!(suspicious.asked(), [format!("key ssh-ed25519 {fingerprint}")], "no secret may be asked for");
    assert!(!sshd.known_hosts().exists() && !error.is_transient());

    let trusting = Arc::new(Oracle { accepts: true, ..Oracle::default() });
    try_it(&sshd, &with(&access(&env), &trusting)).unwrap();
    let line = format!("[127.0.0.1]:{} {}\n", sshd.port(), sshd.host_key("ed25519"));
    assert_eq!(fs::read_to_string(sshd.known_hosts()).unwrap(), line);
    try_it(&sshd, &access(&env)).unwrap();

    // As Debian's ssh_config wants it.
    fs::remove_file(sshd.known_hosts()).unwrap();
    fs::create_dir_all(env.path("etc-ssh")).unwrap();
    fs::write(env.path("etc-ssh/ssh_config"), "Host *\n    HashKnownHosts yes\n").unwrap();
    try_it(&sshd, &with(&access(&env), &trusting)).unwrap();
    let text = fs::read_to_string(sshd.known_hosts()).unwrap();
    assert!(text.starts_with("|1|") && !text.contains("127.0.0.1"), "{text}");
    let found = std::process::Command::new("ssh-keygen")
        .args(["-F", &format!("[127.0.0.1]:{}", sshd.port()), "-f"])
        .arg(sshd.known_hosts())
        .output()
        .unwrap();
    assert!(found.status.success(), "{found:?}");
    try_it(&sshd, &access(&env)).unwrap();
}

#[test]
fn a_changed_key_is_refused_whatever_anybody_says() {
    let env = Env::new("sftp-changed");
    let sshd = env.sshd();
    sshd.authorize(&sshd.new_key("id_ed25519", ""));
    let other = fs::read_to_string(env.path("home/.ssh/id_ed25519.pub")).unwrap();
    fs::write(sshd.known_hosts(), format!("# mine\n[127.0.0.1]:{} {other}", sshd.port())).unwrap();
    let trusting = Arc::new(Oracle { accepts: true, secret: Some(SSH_PASSWORD), ..Oracle::default() });
    let error = server_error(try_it(&sshd, &with(&access(&env), &trusting)));
    assert!(matches!(error, sftp::Error::HostKeyChanged { line: 2, .. }), "{error:?}");
    assert!(error.to_string().contains("HAS CHANGED") && !error.is_transient());
    assert_eq!(trusting.asked(), Vec::<String>::new());
}

#[test]
fn a_revoked_key_is_refused_even_where_it_is_known() {
    let env = Env::new("sftp-revoked");
    let sshd = env.sshd();
    sshd.befriend();
    let known = fs::read_to_string(sshd.known_hosts()).unwrap();
    fs::write(sshd.known_hosts(), format!("{known}@revoked * {}\n", sshd.host_key("ed25519"))).unwrap();
    let error = server_error(try_it(&sshd, &access(&env)));
    assert!(matches!(error, sftp::Error::HostKeyRevoked { line: 2, .. }), "{error:?}");
}

#[test]
fn a_server_is_known_by_any_of_its_keys_by_a_hashed_name_and_by_the_systems_file() {
    let env = Env::new("sftp-known");
    let sshd = env.sshd();
    sshd.authorize(&sshd.new_key("id_ed25519", ""));
    for kind in crate::support::sshd::HOST_KEYS {
        sshd.make_known(kind);
        try_it(&sshd, &access(&env)).unwrap_or_else(|error| panic!("{kind}: {error}"));
    }
    let hashed =
        std::process::Command::new("ssh-keygen").args(["-q", "-H", "-f"]).arg(sshd.known_hosts()).output().unwrap();
    assert!(hashed.status.success());
    let text = fs::read_to_string(sshd.known_hosts()).unwrap();
    assert!(text.starts_with("|1|"), "{text}");
    try_it(&sshd, &access(&env)).unwrap();

    fs::create_dir_all(env.path("etc-ssh")).unwrap();
    fs::rename(sshd.known_hosts(), env.path("etc-ssh/ssh_known_hosts")).unwrap();
    try_it(&sshd, &access(&env)).unwrap();

    let authority = format!("@cert-authority * {}\n", sshd.host_key("ed25519"));
    fs::write(env.path("etc-ssh/ssh_known_hosts"), authority).unwrap();
    let error = server_error(try_it(&sshd, &access(&env))).to_string();
    assert!(error.contains("kvmb does not read host certificates"), "{error}");
}

#[test]
fn a_connection_that_broke_is_an_error_that_passes_and_the_next_call_connects_anew() {
    let env = Env::new("sftp-broken");
    let sshd = env.sshd();
    sshd.befriend();
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
fn a_connection_that_is_cut_wherever_it_begins_is_an_error_that_passes() {
    let env = Env::new("sftp-early-cut");
    let sshd = env.sshd();
    sshd.befriend();
    let proxy = sshd.behind(Duration::ZERO);
    let mut cut = 0;
    // Twice in the handshake, for a server shuts out who leaves before the login again and again; then, as SFTP begins,
    // often.
    for after in [600, 2400].into_iter().chain((3800..8000).step_by(100)) {
        proxy.order(&[Trouble::Cut], after..after + 1, 0);
        if let Err(error) = storage_at(&sshd.url_by(&proxy, "repo"), &access(&env)).create_layout() {
            assert!(error.is_transient(), "after {after} bytes: {error:?}");
            cut += 1;
        }
    }
    assert!(cut > 20 && proxy.happened() >= cut, "{cut} of {}", proxy.happened());
}

#[test]
fn a_server_without_sftp_is_told_as_that() {
    let env = Env::new("sftp-none");
    let script = env.path("command");
    let sshd = env.sshd_with(&format!("ForceCommand sh {}", script.display()));
    sshd.befriend();
    for command in ["exit 0", "exit 1", "echo no", "echo this server is for other things; sleep 1"] {
        fs::write(&script, command).unwrap();
        let error = server_error(try_it(&sshd, &access(&env)));
        assert!(matches!(error, sftp::Error::NoSftp { .. }) && !error.is_transient(), "{command}: {error:?}");
    }
}

#[test]
fn a_server_that_falls_silent_is_given_up_and_one_that_wakes_up_in_time_is_not() {
    let env = Env::new("sftp-silent");
    let sshd = env.sshd();
    sshd.befriend();
    let mut access = access(&env);
    access.patience.silence = Duration::from_secs(3);
    access.patience.keep_alive = Duration::from_secs(1);
    let storage = storage_at(&sshd.url("repo"), &access);
    storage.create_layout().unwrap();
    sshd.freeze(true);
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| storage.write(FileKind::Pack, NAME, &vec![5; 8 << 20]));
        std::thread::sleep(Duration::from_millis(1200));
        sshd.freeze(false);
        slow.join().unwrap().unwrap();
    });
    sshd.freeze(true);
    let begun = Instant::now();
    let error = storage.write(FileKind::Pack, NAME, &vec![5; 8 << 20]).unwrap_err();
    assert!(
        matches!(&error, Error::Server { source, .. } if matches!(**source, sftp::Error::Silent { .. })),
        "{error:?}"
    );
    assert!(error.is_transient() && begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    sshd.freeze(false);
    storage.write(FileKind::Pack, NAME, b"x").unwrap();
}

#[test]
fn a_raised_stop_flag_ends_the_waiting_for_a_dead_server_but_not_the_cleaning_up_on_a_living_one() {
    let env = Env::new("sftp-stop");
    let sshd = env.sshd();
    sshd.befriend();
    let access = access(&env);
    let storage = storage_at(&sshd.url("repo"), &access);
    storage.create_layout().unwrap();
    access.stop.store(true, Ordering::Relaxed);
    storage.write(FileKind::Lock, NAME, b"x").unwrap();
    storage.remove(FileKind::Lock, NAME).unwrap();

    sshd.freeze(true);
    let begun = Instant::now();
    assert!(storage.size(FileKind::Lock, NAME).unwrap_err().is_transient());
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    // The others of a run that ends find that out at once.
    let begun = Instant::now();
    for _ in 0..20 {
        assert!(storage.remove(FileKind::Lock, NAME).is_err());
    }
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    sshd.freeze(false);
}

#[test]
fn when_a_dead_server_is_given_up_nobody_waits_on_for_its_connections() {
    let env = Env::new("sftp-waiters");
    let sshd = env.sshd();
    sshd.befriend();
    let access = SshContext { connections: 1, ..access(&env) };
    let storage = Arc::new(storage_at(&sshd.url("repo"), &access));
    storage.create_layout().unwrap();
    sshd.freeze(true);
    let (tell, told) = mpsc::channel();
    for _ in 0..4 {
        let (storage, tell) = (Arc::clone(&storage), tell.clone());
        std::thread::spawn(move || tell.send(storage.size(FileKind::Lock, NAME).is_err()));
    }
    access.stop.store(true, Ordering::Relaxed);
    for _ in 0..4 {
        assert_eq!(told.recv_timeout(Duration::from_secs(20)), Ok(true));
    }
    sshd.freeze(false);
}

#[test]
fn a_server_that_answers_what_nobody_asked_is_cut_off() {
    let env = Env::new("sftp-babble");
    // It says its version, and then without end that request 2^32-1 is done.
    let reply = r"\0\0\0\21\145\377\377\377\377\0\0\0\0\0\0\0\0\0\0\0\0";
    let script = env.path("babble");
    fs::write(&script, format!(r"printf '\0\0\0\5\2\0\0\0\3'; while printf '{reply}'; do :; done")).unwrap();
    let sshd = env.sshd_with(&format!("ForceCommand sh {}", script.display()));
    sshd.befriend();
    let storage = storage(&env, &sshd);
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || tell.send(storage.size(FileKind::Config, "")));
    let answer = told.recv_timeout(Duration::from_secs(20)).expect("it listens on");
    let error = server_error(answer.map(drop));
    assert!(matches!(error, sftp::Error::Lost { .. }) && error.to_string().contains("no SFTP"), "{error}");
}

#[test]
fn there_are_no_more_connections_than_allowed() {
    let env = Env::new("sftp-pool");
    let sshd = env.sshd();
    sshd.befriend();
    let storage = storage_at(&sshd.url("repo"), &SshContext { connections: 3, ..access(&env) });
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
