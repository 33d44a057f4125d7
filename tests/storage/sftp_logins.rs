//! Logins to a real `sshd` - with every method and every type of host key - and the messages if one is refused.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::sshd::{SSH_PASSWORD, USER};
use crate::support::{Env, wait_until_it_listens};
use kvmb::storage::sftp::{self, Credentials, Secret, ShownKey, SshContext};
use kvmb::storage::{FileKind, Storage};

use crate::sftp::{NAME, server_error, ssh_context, storage_at, try_it};

/// Gives the same answer to every question, and records the questions.
#[derive(Debug, Default)]
struct Oracle {
    /// How many wrong answers it gives first.
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

fn with(ssh_context: &SshContext, oracle: &Arc<Oracle>) -> SshContext {
    SshContext { credentials: Arc::clone(oracle) as Arc<dyn Credentials>, ..ssh_context.clone() }
}

#[test]
fn key_login_asks_no_questions() {
    let env = Env::new("sftp-key");
    let sshd = env.sshd();
    sshd.trust_host_key();
    let oracle = Arc::new(Oracle::default());
    try_it(&sshd, &with(&ssh_context(&env), &oracle)).unwrap();
    assert_eq!(oracle.asked(), Vec::<String>::new());
}

#[test]
fn key_passphrase_is_asked_once_for_all_connections() {
    let env = Env::new("sftp-passphrase");
    let sshd = env.sshd();
    sshd.make_known("ed25519");
    sshd.authorize(&sshd.new_key("id_ed25519", "open sesame"));
    let oracle = Arc::new(Oracle { secret: Some("open sesame"), ..Oracle::default() });
    let storage = storage_at(&sshd.url("repo"), &with(&ssh_context(&env), &oracle));
    storage.create_layout().unwrap();
    std::thread::scope(|scope| {
        for number in 0..4 {
            let storage = &storage;
            scope.spawn(move || storage.write(FileKind::Pack, &format!("{number}{NAME}"), &vec![1; 1 << 20]).unwrap());
        }
    });
    assert_eq!(oracle.asked(), ["passphrase id_ed25519"]);

    let nobody = server_error(try_it(&sshd, &ssh_context(&env))).to_string();
    assert!(nobody.contains("id_ed25519 (it needs a passphrase, and none was given)"), "{nobody}");
    let wrong = Arc::new(Oracle { secret: Some("wrong"), ..Oracle::default() });
    let error = server_error(try_it(&sshd, &with(&ssh_context(&env), &wrong)));
    assert!(matches!(error, sftp::Error::Login { .. }) && !error.to_string().contains("wrong"), "{error}");
}

#[test]
fn agent_login_respects_identities_only() {
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
    wait_until_it_listens(&socket);
    let added = std::process::Command::new("ssh-add").arg("-q").arg(&key).env("SSH_AUTH_SOCK", &socket).status();
    assert!(added.unwrap().success());
    let with_agent = SshContext { agent_socket: Some(socket), ..ssh_context(&env) };
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
fn silent_agent_is_given_up_and_other_keys_are_tried() {
    let env = Env::new("sftp-silent-agent");
    let sshd = env.sshd();
    sshd.trust_host_key();
    let socket = env.path("run/agent");
    // The system accepts connections, but nobody answers.
    let _agent = UnixListener::bind(&socket).unwrap();
    let with_agent = SshContext { agent_socket: Some(socket.clone()), ..ssh_context(&env) };
    let config = env.path("home/.ssh/config");
    fs::write(&config, "ConnectTimeout 2\n").unwrap();
    let begun = Instant::now();
    try_it(&sshd, &with_agent).unwrap();
    assert!(begun.elapsed() > Duration::from_secs(1), "the agent was asked");
    fs::remove_file(env.path("home/.ssh/id_ed25519")).unwrap();
    let error = server_error(try_it(&sshd, &with_agent)).to_string();
    assert!(error.contains("the agent (it has not answered for 2 s)"), "{error}");

    // A program that must end does not wait for it.
    fs::write(&config, "ConnectTimeout 300\n").unwrap();
    // Nobody has connected to this socket before.
    fs::remove_file(&socket).unwrap();
    let agent = UnixListener::bind(&socket).unwrap();
    let begun = Instant::now();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| try_it(&sshd, &with_agent));
        let _asked = agent.accept().unwrap();
        with_agent.stop.store(true, Ordering::Relaxed);
        waiting.join().unwrap().unwrap_err();
    });
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    drop(agent);
    fs::remove_file(&socket).unwrap();
    let error = server_error(try_it(&sshd, &SshContext { agent_socket: Some(socket), ..ssh_context(&env) }));
    assert!(error.to_string().contains("the agent (No such file or directory"), "{error}");
}

#[test]
fn password_login_works_and_failure_lists_the_tried_methods() {
    let env = Env::new("sftp-password");
    let sshd = env.sshd();
    sshd.make_known("ed25519");
    sshd.new_key("id_ed25519", "");
    let oracle = Arc::new(Oracle { secret: Some(SSH_PASSWORD), ..Oracle::default() });
    try_it(&sshd, &with(&ssh_context(&env), &oracle)).unwrap();
    assert_eq!(oracle.asked(), [format!("password {USER}@127.0.0.1")]);

    let wrong = Arc::new(Oracle { secret: Some("guess"), ..Oracle::default() });
    let error = server_error(try_it(&sshd, &with(&ssh_context(&env), &wrong)));
    let text = error.to_string();
    assert!(text.contains("id_ed25519, password; the server offers: publickey, password"), "{text}");
    assert!(!text.contains("guess") && !error.is_transient(), "{text}");
    let none = server_error(try_it(&sshd, &ssh_context(&env))).to_string();
    assert!(none.contains("password (none was given)"), "{none}");
}

#[test]
fn mistyped_password_is_asked_three_times_and_a_file_once() {
    for config in ["", "KbdInteractiveAuthentication yes\nPasswordAuthentication no"] {
        let env = Env::new("sftp-typo");
        let sshd = env.sshd_with(config);
        sshd.make_known("ed25519");
        for (typos, lets_in, asked) in [(1, true, 2), (2, true, 3), (9, false, 3)] {
            let person = Oracle { secret: Some(SSH_PASSWORD), typos: AtomicUsize::new(typos), ..Oracle::default() };
            let person = Arc::new(person);
            let result = try_it(&sshd, &with(&ssh_context(&env), &person));
            assert_eq!(result.is_ok(), lets_in, "{result:?}");
            assert_eq!(person.asked().len(), asked, "{:?}", person.asked());
        }
        let file = Arc::new(Oracle { secret: Some("wrong"), ..Oracle::default() });
        server_error(try_it(&sshd, &with(&ssh_context(&env), &file)));
        assert_eq!(file.asked().len(), 1);
    }
}

#[test]
fn mistyped_passphrase_is_asked_three_times() {
    let env = Env::new("sftp-passphrase-typo");
    let sshd = env.sshd();
    sshd.make_known("ed25519");
    let key = sshd.new_key("id_ed25519", "open sesame");
    sshd.authorize(&key);
    // Also for a key in the older format.
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
            try_it(&sshd, &with(&ssh_context(&env), &person)).unwrap();
            assert_eq!(person.asked().len(), asked, "{:?}", person.asked());
            assert!(person.asked().iter().all(|question| question.starts_with("passphrase id_")));
        }
        // Then for the password, the same number of times.
        let person = Oracle { secret: Some(SSH_PASSWORD), typos: AtomicUsize::new(9), ..Oracle::default() };
        let person = Arc::new(person);
        let refused = server_error(try_it(&sshd, &with(&ssh_context(&env), &person))).to_string();
        let asked = person.asked();
        let of_key = asked.iter().filter(|question| question.starts_with("passphrase")).count();
        assert_eq!((of_key, asked.len()), (3, 6), "{asked:?}");
        assert_eq!(refused.matches("(the passphrase does not open it)").count(), 1, "told once: {refused}");
    }
}

#[test]
fn keyboard_interactive_questions_are_answered() {
    let env = Env::new("sftp-questions");
    let sshd = env.sshd_with("KbdInteractiveAuthentication yes\nPasswordAuthentication no");
    sshd.make_known("ed25519");
    let oracle = Arc::new(Oracle { secret: Some(SSH_PASSWORD), ..Oracle::default() });
    let storage = storage_at(&sshd.url("repo"), &with(&ssh_context(&env), &oracle));
    storage.create_layout().unwrap();
    let asked = oracle.asked();
    assert!(asked.len() == 1 && asked[0].starts_with("answer") && asked[0].ends_with("true"), "{asked:?}");
    // Another connection asks no questions.
    sshd.stop();
    sshd.run();
    assert!(storage.size(FileKind::Config, "").unwrap_err().is_transient());
    assert!(storage.size(FileKind::Config, "").unwrap_err().is_not_found());
    assert_eq!(oracle.asked().len(), 1);
}

#[test]
fn expired_password_is_reported_with_the_questions_of_the_server() {
    let env = Env::new("sftp-expired");
    let sshd = env.sshd_with("KbdInteractiveAuthentication yes\nPasswordAuthentication no");
    sshd.make_known("ed25519");
    sshd.expire_password();
    let oracle = Arc::new(Oracle { secret: Some(SSH_PASSWORD), ..Oracle::default() });
    let error = server_error(try_it(&sshd, &with(&ssh_context(&env), &oracle))).to_string();
    assert!(error.contains("keyboard-interactive (the server asked: Password / "), "{error}");
    assert!(error.contains("change your password") && error.contains("/ New password"), "{error}");
    assert!(oracle.asked()[0].ends_with(" Password true"), "{:?}", oracle.asked());
}

#[test]
fn login_with_key_and_password_as_second_factor_succeeds() {
    let env = Env::new("sftp-two-factors");
    let sshd = env.sshd_with("AuthenticationMethods publickey,password");
    sshd.trust_host_key();
    let oracle = Arc::new(Oracle { secret: Some(SSH_PASSWORD), ..Oracle::default() });
    try_it(&sshd, &with(&ssh_context(&env), &oracle)).unwrap();
}

#[test]
fn ssh_config_host_user_and_key_are_used() {
    let env = Env::new("sftp-config");
    let sshd = env.sshd();
    sshd.make_known("ed25519");
    sshd.authorize(&sshd.new_key("special", ""));
    let config = format!(
        "Host vault\n HostName 127.0.0.1\n Port {}\n User {USER}\n IdentityFile ~/.ssh/special\n IdentitiesOnly yes\n",
        sshd.port()
    );
    fs::write(env.path("home/.ssh/config"), config).unwrap();
    storage_at("sftp:vault:repo", &ssh_context(&env)).create_layout().unwrap();
    assert!(sshd.home().join("repo/data").is_dir());
    // IPv6, known under its own address.
    let six = format!("[::1]:{} {}\n", sshd.port(), sshd.host_key("ed25519"));
    fs::write(sshd.known_hosts(), six).unwrap();
    // A longer interval than the system accepts for a socket.
    let config = "IdentityFile ~/.ssh/special\nServerAliveInterval 40000\n";
    fs::write(env.path("home/.ssh/config"), config).unwrap();
    storage_at(&format!("sftp://{USER}@[::1]:{}/six", sshd.port()), &ssh_context(&env)).create_layout().unwrap();
    assert!(sshd.home().join("six/data").is_dir());
}

#[test]
fn proxy_jump_and_proxy_command_reach_the_server() {
    let (env, gate_env) = (Env::new("sftp-behind"), Env::new("sftp-gate"));
    let (sshd, gate) = (env.sshd(), gate_env.sshd());
    sshd.trust_host_key();
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
        let storage = storage_at(&format!("sftp:vault:{folder}"), &ssh_context(&env));
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
    // The proxy host refuses the login: the error says which host refused.
    fs::remove_file(gate.authorized_keys()).unwrap();
    let error = server_error(storage_at("sftp:vault:refused", &ssh_context(&env)).create_layout());
    assert!(error.to_string().contains("Permission denied") && !error.is_transient(), "{error}");
    // It has another host key: the error is reported at once, with the command that shows more.
    fs::write(sshd.known_hosts(), format!("[127.0.0.1]:{} {}\n", gate.port(), sshd.host_key("ed25519"))).unwrap();
    let failed = env.kvmb(["points", "-r", "sftp:vault:repo"]).run().assert_code(1);
    let failure = failed.record_of("failure");
    assert_eq!(failure["code"], "host_key", "{failed}");
    assert!(failure["hint"].as_str().unwrap().contains("'ssh vault'"), "{failed}");
    assert!(!failed.stderr().contains("trying again"), "{failed}");
    let tested = env.kvmb(["remote", "test", "-r", "sftp:vault:repo"]).run().assert_code(1);
    let reach = tested.records_of("check").into_iter().find(|check| check["check"] == "reach").unwrap();
    assert_eq!(reach["status"], "critical", "{tested}");
    gate.stop();
    let error = server_error(storage_at("sftp:vault:stopped", &ssh_context(&env)).create_layout());
    assert!(error.to_string().contains("the proxy says: "), "{error}");
}

#[test]
fn unknown_host_key_is_refused_and_saved_only_when_accepted() {
    let env = Env::new("sftp-unknown");
    let sshd = env.sshd();
    sshd.authorize(&sshd.new_key("id_ed25519", ""));
    let suspicious = Arc::new(Oracle { secret: Some(SSH_PASSWORD), ..Oracle::default() });
    let error = server_error(try_it(&sshd, &with(&ssh_context(&env), &suspicious)));
    let sftp::Error::HostKeyUnknown { fingerprint, .. } = &error else { panic!("{error:?}") };
    assert_eq!(*fingerprint, sshd.fingerprint("ed25519"));
    assert_eq!(suspicious.asked(), [format!("key ssh-ed25519 {fingerprint}")], "no secret may be asked for");
    assert!(!sshd.known_hosts().exists() && !error.is_transient());

    let trusting = Arc::new(Oracle { accepts: true, ..Oracle::default() });
    try_it(&sshd, &with(&ssh_context(&env), &trusting)).unwrap();
    let line = format!("[127.0.0.1]:{} {}\n", sshd.port(), sshd.host_key("ed25519"));
    assert_eq!(fs::read_to_string(sshd.known_hosts()).unwrap(), line);
    try_it(&sshd, &ssh_context(&env)).unwrap();

    // As in Debian's ssh_config.
    fs::remove_file(sshd.known_hosts()).unwrap();
    fs::create_dir_all(env.path("etc-ssh")).unwrap();
    fs::write(env.path("etc-ssh/ssh_config"), "Host *\n    HashKnownHosts yes\n").unwrap();
    try_it(&sshd, &with(&ssh_context(&env), &trusting)).unwrap();
    let text = fs::read_to_string(sshd.known_hosts()).unwrap();
    assert!(text.starts_with("|1|") && !text.contains("127.0.0.1"), "{text}");
    let found = std::process::Command::new("ssh-keygen")
        .args(["-F", &format!("[127.0.0.1]:{}", sshd.port()), "-f"])
        .arg(sshd.known_hosts())
        .output()
        .unwrap();
    assert!(found.status.success(), "{found:?}");
    try_it(&sshd, &ssh_context(&env)).unwrap();
}

#[test]
fn server_at_another_port_is_known_by_its_name_alone() {
    let env = Env::new("sftp-port");
    let sshd = env.sshd();
    sshd.authorize(&sshd.new_key("id_ed25519", ""));
    // The type of this key is not the one that is preferred.
    fs::write(sshd.known_hosts(), format!("127.0.0.1 {}\n", sshd.host_key("rsa"))).unwrap();
    try_it(&sshd, &ssh_context(&env)).unwrap();
    let other = fs::read_to_string(env.path("home/.ssh/id_ed25519.pub")).unwrap();
    fs::write(sshd.known_hosts(), format!("127.0.0.1 {other}")).unwrap();
    let error = server_error(try_it(&sshd, &ssh_context(&env)));
    assert!(matches!(error, sftp::Error::HostKeyUnknown { .. }), "{error:?}");
}

#[test]
fn known_hosts_file_may_have_a_space_in_its_name() {
    let env = Env::new("sftp-space");
    let sshd = env.sshd();
    sshd.authorize(&sshd.new_key("id_ed25519", ""));
    let known = env.path("home/my known hosts");
    let config = format!("UserKnownHostsFile \"{}\"\n", known.display());
    fs::write(env.path("home/.ssh/config"), config).unwrap();
    let trusting = Arc::new(Oracle { accepts: true, ..Oracle::default() });
    try_it(&sshd, &with(&ssh_context(&env), &trusting)).unwrap();
    assert!(fs::read_to_string(known).unwrap().contains(&sshd.host_key("ed25519")));
    try_it(&sshd, &ssh_context(&env)).unwrap();
}

#[test]
fn changed_host_key_is_always_refused() {
    let env = Env::new("sftp-changed");
    let sshd = env.sshd();
    sshd.authorize(&sshd.new_key("id_ed25519", ""));
    let other = fs::read_to_string(env.path("home/.ssh/id_ed25519.pub")).unwrap();
    fs::write(sshd.known_hosts(), format!("# mine\n[127.0.0.1]:{} {other}", sshd.port())).unwrap();
    let trusting = Arc::new(Oracle { accepts: true, secret: Some(SSH_PASSWORD), ..Oracle::default() });
    let error = server_error(try_it(&sshd, &with(&ssh_context(&env), &trusting)));
    assert!(matches!(error, sftp::Error::HostKeyChanged { line: 2, .. }), "{error:?}");
    assert!(error.to_string().contains("HAS CHANGED") && !error.is_transient());
    assert_eq!(trusting.asked(), Vec::<String>::new());
}

#[test]
fn revoked_host_key_is_refused_even_if_known() {
    let env = Env::new("sftp-revoked");
    let sshd = env.sshd();
    sshd.trust_host_key();
    let known = fs::read_to_string(sshd.known_hosts()).unwrap();
    fs::write(sshd.known_hosts(), format!("{known}@revoked * {}\n", sshd.host_key("ed25519"))).unwrap();
    let error = server_error(try_it(&sshd, &ssh_context(&env)));
    assert!(matches!(error, sftp::Error::HostKeyRevoked { line: 2, .. }), "{error:?}");
}

#[test]
fn host_key_of_any_type_is_found_hashed_or_in_the_system_file() {
    let env = Env::new("sftp-known");
    let sshd = env.sshd();
    sshd.authorize(&sshd.new_key("id_ed25519", ""));
    for kind in crate::support::sshd::HOST_KEYS {
        sshd.make_known(kind);
        try_it(&sshd, &ssh_context(&env)).unwrap_or_else(|error| panic!("{kind}: {error}"));
    }
    let hashed =
        std::process::Command::new("ssh-keygen").args(["-q", "-H", "-f"]).arg(sshd.known_hosts()).output().unwrap();
    assert!(hashed.status.success());
    let text = fs::read_to_string(sshd.known_hosts()).unwrap();
    assert!(text.starts_with("|1|"), "{text}");
    try_it(&sshd, &ssh_context(&env)).unwrap();

    fs::create_dir_all(env.path("etc-ssh")).unwrap();
    fs::rename(sshd.known_hosts(), env.path("etc-ssh/ssh_known_hosts")).unwrap();
    try_it(&sshd, &ssh_context(&env)).unwrap();

    let authority = format!("@cert-authority * {}\n", sshd.host_key("ed25519"));
    fs::write(env.path("etc-ssh/ssh_known_hosts"), authority).unwrap();
    let error = server_error(try_it(&sshd, &ssh_context(&env))).to_string();
    assert!(error.contains("kvmb does not read host certificates"), "{error}");
}

fn ssh_keygen<A: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = A>) {
    assert!(std::process::Command::new("ssh-keygen").arg("-q").args(args).status().unwrap().success());
}

#[test]
fn key_certificate_is_accepted_by_a_server_that_trusts_its_authority() {
    let env = Env::new("sftp-certificate");
    let authority = env.path("authority").display().to_string();
    let sshd = env.sshd_with(&format!("TrustedUserCAKeys {authority}.pub"));
    sshd.make_known("ed25519");
    ssh_keygen(["-t", "ed25519", "-N", "", "-f", &authority]);
    let config = env.path("home/.ssh/config");
    for kind in ["ed25519", "ecdsa", "rsa"] {
        let key = env.path(format!("home/.ssh/id_{kind}")).display().to_string();
        ssh_keygen(["-t", kind, "-N", "", "-f", &key]);
        let alone = server_error(try_it(&sshd, &ssh_context(&env)));
        assert!(matches!(alone, sftp::Error::Login { .. }), "{kind}: {alone}");
        ssh_keygen(["-s", &authority, "-I", "test", "-n", USER, &format!("{key}.pub")]);
        try_it(&sshd, &ssh_context(&env)).unwrap_or_else(|error| panic!("{kind}: {error}"));

        let elsewhere = env.path(format!("{kind}-cert.pub"));
        fs::rename(format!("{key}-cert.pub"), &elsewhere).unwrap();
        fs::write(&config, format!("CertificateFile {}\n", elsewhere.display())).unwrap();
        try_it(&sshd, &ssh_context(&env)).unwrap_or_else(|error| panic!("{kind} elsewhere: {error}"));
        fs::remove_file(&config).unwrap();
        fs::remove_file(&key).unwrap();
    }
}
