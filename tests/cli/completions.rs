//! Completion in real shells on a real terminal: bash with bash-completion, zsh and fish, each with the files that
//! `make install` puts into the shell's default folders.

// A test panics if a result is not what it expects.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::pty::Pty;
use crate::support::{Disk, Env, Output, parts, wait_until};
use rustix::fs::{Mode, mkfifoat};

const MIB: u64 = 1 << 20;

/// Creates two machines, and points of them in the repository.
fn world(name: &str) -> Env {
    parts::require(&["bash", "zsh", "fish", "make"]);
    let env = Env::new(name);
    env.machine("web-1").disk(Disk::qcow2(MIB)).define();
    env.machine("db-1").disk(Disk::raw(MIB)).define();
    // Points are offered with seconds: two points of the same second would be one candidate.
    let script = "kvmb init -r $R -q && kvmb backup --all -r $R -q && sleep 1.1 && kvmb backup web-1 -r $R -q";
    env.sh(script).run().assert_ok();
    env
}

/// Installs the scripts below `share` of the environment.
fn install(env: &Env) -> String {
    let root = env.path("root");
    let program = format!("KVMB={}", env!("CARGO_BIN_EXE_kvmb"));
    let to = format!("DESTDIR={}", root.display());
    let source = env!("CARGO_MANIFEST_DIR");
    env.program("make").args(["-s", "-C", source, "install", &program, &to, "PREFIX=/usr"]).run().assert_ok();
    root.join("usr/share").display().to_string()
}

/// Types lines that are valid only after correct completion, and checks the output of the commands.
fn complete_and_run(mut shell: Pty) -> Output {
    let lines = [
        // Two words, and a name with a character at which bash splits words.
        ("kvmb verif\t-r repo web-1@la\t--quic\t\r", "VERIFIED"),
        // A name from libvirt.
        ("kvmb disks db\t\r", "CAPACITY"),
        // A disk of the point, followed by a path in the same word.
        ("kvmb restore -r repo web-1 --no-def\t--to vd\tdis\tx.qcow2 --dry\t\r", "would"),
    ];
    for (line, sign) in lines {
        let errors = |shell: &Pty| shell.screen().matches("kvmb: error").count();
        // The embedded libvirt sometimes probes QEMU again, which takes longer than the time limit of completion.
        let done = (0..8).any(|_| {
            let before = errors(&shell);
            shell.send(line);
            let answered = || shell.screen().contains(sign) || errors(&shell) > before;
            wait_until(&format!("an answer to {line:?}: {}", shell.screen()), Duration::from_secs(60), answered);
            shell.screen().contains(sign)
        });
        assert!(done, "{line:?} was not completed: {}", shell.screen());
    }
    assert!(shell.screen().contains("disks/x.qcow2"), "{}", shell.screen());
    shell.send("exit\r");
    shell.wait()
}

fn prepare_bash(env: &Env) {
    parts::require(&["bash"]);
    let share = install(env);
    let completion = Path::new("/usr/share/bash-completion/bash_completion");
    assert!(completion.exists(), "the tests need bash-completion; as root run: .ci/install-parts");
    let start = format!("export XDG_DATA_DIRS={share}:/usr/share\nsource {}\nPS1='$ '\n", completion.display());
    fs::write(env.path("home/.bashrc"), start).unwrap();
}

#[test]
fn bash_completes_commands_flags_machines_points_disks_and_paths() {
    let env = world("bash");
    prepare_bash(&env);
    complete_and_run(env.pty_of("bash", ["-i"])).assert_ok();
}

fn prepare_zsh(env: &Env) {
    parts::require(&["zsh"]);
    let share = install(env);
    let start = format!("fpath=({share}/zsh/site-functions $fpath)\nautoload -Uz compinit\ncompinit -u\nPS1='$ '\n");
    fs::write(env.path("home/.zshrc"), start).unwrap();
}

#[test]
fn zsh_completes_commands_flags_machines_points_disks_and_paths() {
    let env = world("zsh");
    prepare_zsh(&env);
    complete_and_run(env.pty_of("zsh", ["-i"])).assert_ok();
}

fn prepare_fish(env: &Env) -> String {
    parts::require(&["fish"]);
    let share = install(env);
    fs::create_dir_all(env.path("home/.config/fish")).unwrap();
    fs::write(env.path("home/.config/fish/config.fish"), "set -g fish_greeting\n").unwrap();
    share
}

#[test]
fn fish_completes_commands_flags_machines_points_disks_and_paths() {
    let env = world("fish");
    let share = prepare_fish(&env);
    complete_and_run(env.pty_of("env", [&format!("XDG_DATA_DIRS={share}:/usr/share"), "fish", "-i"])).assert_ok();
}

/// Backs up a machine with an operating system on ext4, and a disk with another file system.
fn guest(env: &Env) {
    parts::require(&["mkfs.ext4"]);
    let script = "export PATH=$PATH:/usr/sbin:/sbin; mkdir -p tree/etc/ssh 'tree/etc/a b' other/data
        echo 'PRETTY_NAME=Test' > tree/etc/os-release; echo x > 'tree/etc/a b/file one'; ln -s etc tree/link
        echo y > tree/etc/hosts; printf '\\033' > \"$(printf 'tree/etc/bad\\033name')\"
        mkfs.ext4 -q -d tree image 8M; mkfs.ext4 -q -d other image2 8M";
    env.sh(script).run().assert_ok();
    let disks = ["image", "image2"].map(|image| Disk::existing(&env.path(image), "raw"));
    disks.into_iter().fold(env.machine("vm1"), |machine, disk| machine.disk(disk)).define();
    env.sh("kvmb init -r $R -q && kvmb backup vm1 -r $R -q").run().assert_ok();
}

#[test]
fn paths_inside_a_point_are_offered() {
    let env = Env::new("offers-paths");
    guest(&env);
    let repo = env.repo();
    let paths = |words: &[&str]| -> Vec<String> {
        // Flags are offered as well.
        offered(&env, words).0.into_iter().filter(|word| !word.starts_with('-')).collect()
    };
    let words = |word: &str| paths(&["kvmb", "files", "ls", "-r", &repo, "vm1", word]);
    assert_eq!(words(""), ["/", "vda:/", "vdb:/"]);
    assert_eq!(words("vd"), ["vda:/", "vdb:/"]);
    assert_eq!(words("/e"), ["/etc/"]);
    // Through a symbolic link as well; names with control characters are not offered.
    let below = |path: &str| ["a b/", "hosts", "os-release", "ssh/"].map(|name| format!("{path}{name}"));
    assert_eq!(words("/etc/"), below("/etc/"));
    assert_eq!(words("/link/"), below("/link/"));
    assert_eq!(words("/etc/a b/"), ["/etc/a b/file one"]);
    assert_eq!(words("vdb:/d"), ["vdb:/data/"]);
    assert_eq!(words("/no-such/x"), [""; 0]);
    for command in ["cat", "cp", "tar", "find"] {
        assert_eq!(paths(&["kvmb", "files", command, "-r", &repo, "vm1", "/etc/h"]), ["/etc/hosts"], "{command}");
    }
    assert_eq!(paths(&["kvmb", "files", "ls", "-r", &repo, "vm1", "--disk", "vdb", ""]), ["/", "vdb:/"]);
    // A named pipe for the password without a writer.
    let fifo = env.path("fifo");
    mkfifoat(rustix::fs::CWD, &fifo, Mode::RUSR | Mode::WUSR).unwrap();
    let fifo = fifo.display().to_string();
    let line = ["kvmb", "files", "ls", "-r", &repo, "--password-file", &fifo, "vm1", "/e"];
    assert_eq!(paths(&line), [""; 0]);
    env.assert_nothing_left();
}

/// Prints a file of the point. Tab completes all but the first letters of each name.
fn complete_a_path(mut shell: Pty, letters: &str, content: &str) {
    shell.send(&format!("kvmb files cat -r repo vm1 {letters}\t\r"));
    // The shell's own control sequences precede the first line.
    let printed = |screen: &str| screen.split(['\r', '\n']).any(|line| line == content);
    wait_until("the file, or an error", Duration::from_secs(60), || {
        printed(&shell.screen()) || shell.screen().contains("kvmb: error")
    });
    assert!(!shell.screen().contains("kvmb: error"), "{}", shell.screen());
    shell.send("exit\r");
    shell.wait().assert_ok();
}

#[test]
fn every_shell_completes_paths_inside_a_point() {
    let env = Env::new("paths-in-shells");
    guest(&env);
    prepare_bash(&env);
    complete_a_path(env.pty_of("bash", ["-i"]), "/et\ta\tf", "x");
    prepare_zsh(&env);
    complete_a_path(env.pty_of("zsh", ["-i"]), "/et\ta\tf", "x");
    let share = prepare_fish(&env);
    // fish quotes the word that it completes.
    complete_a_path(env.pty_of("env", [&format!("XDG_DATA_DIRS={share}:/usr/share"), "fish", "-i"]), "/et\tho", "y");
}

/// Returns the candidates for the last of these words.
fn offered(env: &Env, words: &[&str]) -> (Vec<String>, Output) {
    let index = (words.len() - 1).to_string();
    let call = env.kvmb(["--"]).args(words).env("KVMB_COMPLETE", "bash").env("_CLAP_IFS", "\n");
    let output = call.env("_CLAP_COMPLETE_INDEX", index).run().assert_ok();
    assert_eq!(output.stderr(), "", "{output}");
    (output.stdout().lines().map(str::to_owned).collect(), output)
}

#[test]
fn remote_repository_urls_are_offered() {
    let env = Env::new("offers-repositories");
    env.configure(&serde_json::json!({ "copy_to": "s3:https://s3.example.com/bucket/kvm" }));
    let words = |current: &str| offered(&env, &["kvmb", "points", "-r", current]).0;
    assert_eq!(words("s3:"), ["s3:https://s3.example.com/bucket/kvm", "s3:https://"]);
    assert_eq!(words("re"), ["rest:https://"]);
    assert!(words("/no-such").is_empty());
}

#[test]
fn points_and_paths_on_a_server_are_offered() {
    let env = Env::new("offers-server");
    guest(&env);
    let sshd = env.sshd();
    sshd.trust_host_key();
    let repo = sshd.url("repo");
    env.kvmb(["init", "-r", &repo]).run().assert_ok();
    env.kvmb(["backup", "vm1", "-r", &repo]).run().assert_ok();
    for (line, expected) in [
        (&["kvmb", "points", "-r", &repo, "v"][..], "vm1"),
        (&["kvmb", "restore", "-r", &repo, "vm1@la"], "vm1@latest"),
        (&["kvmb", "files", "cat", "-r", &repo, "vm1", "/etc/h"], "/etc/hosts"),
    ] {
        // On a busy host, a look-up may exceed the time limit.
        let found = (0..8).map(|_| offered(&env, line).0).find(|found| !found.is_empty());
        assert_eq!(found.unwrap_or_default(), [expected], "{line:?}");
    }
    // A command that prints the login may prompt.
    env.configure(&serde_json::json!({ "ssh": { "password_command": "touch asked" } }));
    assert_eq!(offered(&env, &["kvmb", "points", "-r", &repo, "v"]).0, [""; 0]);
    assert!(!env.path("asked").exists());
}

#[test]
fn completions_match_the_argument_position() {
    let env = world("offers");
    let words = |words: &[&str]| offered(&env, words).0;
    // The embedded libvirt sometimes probes QEMU again, which takes longer than the time limit of completion; a normal
    // command waits.
    let from_libvirt = |line: &[&str]| -> Vec<String> {
        let tries = (0..8).map(|_| {
            env.kvmb(["vms"]).run().assert_ok();
            words(line)
        });
        tries.into_iter().find(|found| !found.is_empty()).unwrap_or_default()
    };
    let repo = env.repo();
    assert_eq!(from_libvirt(&["kvmb", "backup", "w"]), ["web-1"]);
    assert_eq!(words(&["kvmb", "points", "-r", &repo, "d"]), ["db-1"]);
    // Newest first.
    let moments = words(&["kvmb", "restore", "-r", &repo, "web-1@"]);
    assert_eq!(moments.len(), 3, "{moments:?}");
    assert_eq!(moments[0], "web-1@latest");
    assert!(moments[1] > moments[2] && moments[1].starts_with("web-1@20"), "{moments:?}");
    env.kvmb(["restore", "-r", &repo, &moments[2], "--no-define", "--into", "tmp", "-n"]).run().assert_ok();
    // Ids, once a part has been typed.
    let point = env.sh("kvmb points db-1 -r $R").run().record_of("point")["point"].as_str().unwrap()[..8].to_owned();
    assert_eq!(words(&["kvmb", "verify", "-r", &repo, &point[..5]]), [point]);
    assert_eq!(from_libvirt(&["kvmb", "backup", "db-1", "--disk", ""]), ["vda"]);
    assert_eq!(words(&["kvmb", "restore", "-r", &repo, "db-1", "--to", "v"]), ["vda="]);
    assert_eq!(words(&["kvmb", "-c", "qemu:///se"]), ["qemu:///session"]);
    assert_eq!(words(&["kvmb", "key", "e"]), ["export"]);
    env.kvmb(["snapshot", "db-1"]).run().assert_ok();
    assert_eq!(words(&["kvmb", "release", "d"]), ["db-1"]);
    env.kvmb(["release", "db-1"]).run().assert_ok();
    // The default repository, which does not exist yet.
    assert_eq!(words(&["kvmb", "restore", "w"]), [""; 0]);
    env.assert_nothing_left();
}

#[test]
fn completion_never_hangs_prompts_or_prints_errors() {
    let env = Env::new("patience");
    let fifo = env.path("fifo");
    mkfifoat(rustix::fs::CWD, &fifo, Mode::RUSR | Mode::WUSR).unwrap();
    let fifo = fifo.display().to_string();
    env.kvmb(["init", "-r", &env.repo()]).run().assert_ok();
    let repo = env.repo();
    let cases: [&[&str]; 5] = [
        // A named pipe for the password without a writer.
        &["kvmb", "points", "-r", &repo, "--password-file", &fifo, "x"],
        &["kvmb", "points", "-r", "sftp://nobody@192.0.2.1/backup", "x"],
        &["kvmb", "vms", "-c", "qemu+tcp://192.0.2.1/system", "x"],
        &["kvmb", "vms", "-c", "nonsense:///", "x"],
        &["kvmb", "nonsense", "x"],
    ];
    for words in cases {
        let start = Instant::now();
        let (found, _) = offered(&env, words);
        assert!(found.is_empty(), "{words:?}: {found:?}");
        assert!(start.elapsed() < Duration::from_secs(60), "{words:?} took {:?}", start.elapsed());
    }
    // Commands and flags need no look-up.
    assert_eq!(offered(&env, &["kvmb", "poi"]).0, ["points"]);
    // An unsupported shell gets neither candidates nor messages.
    let output = env.kvmb(["--", "kvmb", "x"]).env("KVMB_COMPLETE", "tcsh").run().assert_code(1);
    assert_eq!((output.stdout(), output.stderr()), ("", ""));
}
