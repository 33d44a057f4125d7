//! Output formats: tables, progress bars and prompts on a terminal; records and one-line errors everywhere else.

// A test panics if a result is not what it expects.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::support::call::Output;
use crate::support::{Disk, Env, PASSWORD};
use kvmb::cli::failure::Code;
use kvmb::cli::failure::exit_code::ExitCode;
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// From here on, kvmb does not know the password.
fn forget_the_password(env: &Env) {
    let program = env.path("bin/kvmb");
    let real = fs::read_link(&program).expect("a link");
    fs::remove_file(&program).expect("it was there");
    let script = format!("#!/bin/sh\nunset KVMB_PASSWORD_FILE\nexec '{}' \"$@\"\n", real.display());
    fs::write(&program, script).expect("write");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("chmod");
}

/// Removes cursor movements and colours from the output of a terminal.
fn plain(screen: &str) -> String {
    let mut text = String::new();
    let mut rest = screen.chars();
    while let Some(c) = rest.next() {
        match c {
            '\u{1b}' => {
                rest.find(|c| c.is_ascii_alphabetic());
            }
            '\r' => {}
            c => text.push(c),
        }
    }
    text
}

#[test]
fn point_records_have_totals_short_id_and_resolvable_times() {
    let env = Env::new("totals");
    env.machine("kvmb-test-vm1").disk(Disk::qcow2(MIB)).disk(Disk::raw(2 * MIB)).define();
    let backup = || env.sh("kvmb backup --all -r $R").run().assert_ok().record_of("point");
    env.sh("kvmb init -r $R").run().assert_ok();
    let (first, second) = (backup(), backup());
    for point in [&first, &second] {
        for field in ["read_bytes", "new_bytes", "stored_bytes"] {
            let sum: u64 = point["disks"].as_array().unwrap().iter().map(|disk| disk[field].as_u64().unwrap()).sum();
            assert_eq!(point[field], sum, "{field}: {point}");
        }
        assert!(point["point"].as_str().unwrap().starts_with(point["short_id"].as_str().unwrap()), "{point}");
        assert_eq!(point["short_id"].as_str().unwrap().len(), 8);
        let captured_at = point["captured_at"].as_str().unwrap();
        let fraction = captured_at.split_once('.').unwrap_or_else(|| panic!("no fraction: {captured_at}")).1;
        assert_eq!(fraction.find(['+', '-']), Some(3), "{captured_at}");
        // The time of a record identifies its point, although it is truncated.
        let name = format!("kvmb-test-vm1@{captured_at}");
        let verified = env.kvmb(["verify", "-r", &env.repo(), &name]).run().assert_ok().record_of("point");
        assert_eq!(verified["point"], point["point"]);
    }
    let latest = env.sh("kvmb points --latest -r $R").run().assert_ok().record_of("point");
    assert_eq!(latest["point"], second["point"]);
    // There is no such point: the error says which ones exist and how to name them.
    let missing = env.sh("kvmb verify kvmb-test-vm1@yesterday -r $R").run().assert_code(1);
    missing.assert_stderr_has("its oldest point is of ").assert_stderr_has("@yesterday, @2026-11-20");
    env.sh("kvmb verify kvmb-test-vm1@monday -r $R").run().assert_code(1).assert_stderr_has("MACHINE@latest");
    let near = env.sh("kvmb verify kvmb-test-vm2 -r $R").run().assert_code(1);
    near.assert_stderr_has("similar: kvmb-test-vm1");
    env.sh("kvmb verify kvmb-test-vm1@today -r $R").run().assert_ok();
    // Without a terminal there is no summary.
    assert!(!env.sh("kvmb backup --all -r $R").run().assert_ok().stdout().contains("backed up"));
    env.assert_nothing_left();
}

#[test]
fn output_flag_overrides_the_output_variable() {
    let env = Env::new("formats");
    env.machine("kvmb-test-vm1").disk(Disk::qcow2(MIB)).define();
    let first = |args: &[&str], variable: &str| {
        let call = env.kvmb([&["vms"], args].concat()).env("KVMB_OUTPUT", variable);
        call.run().assert_ok().stdout().chars().next().unwrap()
    };
    for (args, variable, begins) in [
        (&[][..], "", '{'),
        (&[], "table", 'M'),
        (&[], "json", '['),
        (&["--json"], "table", '{'),
        (&["--table"], "json", 'M'),
        (&["-o", "jsonl"], "table", '{'),
        (&["--table"], "", 'M'),
    ] {
        assert_eq!(first(args, variable), begins, "{args:?} {variable:?}");
    }
    env.kvmb(["vms"]).env("KVMB_OUTPUT", "yaml").run().assert_code(2).assert_stderr_has("invalid value 'yaml'");
    env.kvmb(["vms", "--json", "--table"]).run().assert_code(2);
    env.kvmb(["vms", "-o", "json", "--table"]).run().assert_code(2);
}

#[test]
fn terminals_get_tables_and_pipes_get_records() {
    let env = Env::new("tables");
    env.machine("kvmb-test-vm1").disk(Disk::qcow2(MIB)).define();
    env.sh("kvmb init -r $R && kvmb backup --all -r $R").run().assert_ok();
    let repo = env.repo();
    let into = env.path("into").display().to_string();
    fs::create_dir(&into).expect("a folder");
    let restored_to = format!("restored vda to {into}/");
    for (command, words) in [
        (vec!["vms"], ["MACHINE", "STATE", "kvmb-test-vm1", "shut off"]),
        (vec!["disks", "kvmb-test-vm1"], ["CAPACITY", "SOURCE", "vda", "1.00 MiB"]),
        (vec!["points", "-r", &repo], ["CAPTURED", "AGE", "kvmb-test-vm1", "offline"]),
        (vec!["verify", "--all", "-r", &repo], ["POINT", "VERIFIED", "kvmb-test-vm1", "full"]),
        (vec!["backup", "kvmb-test-vm1", "-r", &repo], ["READ MODE", "DURATION", "changed", "backed up 1 machine in "]),
        (
            vec!["restore", "kvmb-test-vm1", "-r", &repo, "--into", &into, "--no-define", "--overwrite"],
            [
                "restored vda to ",
                &restored_to,
                "restored the definition of kvmb-test-vm1 to ",
                "next step: virsh define ",
            ],
        ),
        (vec!["hash", "password"], ["SHA-256", "SIZE", "FILE", "password"]),
        (vec!["init", "-r", &repo], ["ACTION", "CHANGED", "no", "the repository already exists"]),
        (vec!["release", "kvmb-test-vm1"], ["ACTION", "REASON", "release", "no open capture"]),
    ] {
        let screen = env.pty(&command).wait().assert_ok();
        for word in words {
            assert!(screen.stdout().contains(word), "no {word:?}: {screen}");
        }
        assert!(!screen.stdout().contains("\"type\""), "{screen}");
        // The same table as with -o table; records in a pipeline.
        let table = env.kvmb(&command).args(["-o", "table"]).run().assert_ok();
        // A narrow terminal does not have space for all columns.
        let header = table.stdout().lines().next().expect("a header").to_owned();
        let text = plain(screen.stdout());
        let first = header.split_whitespace().next().expect("a head");
        // A progress bar may precede it.
        let shown = text.lines().find_map(|line| Some(&line[line.rfind(first)?..]));
        let shown: Vec<&str> = shown.unwrap_or_else(|| panic!("no header: {screen}")).split_whitespace().collect();
        assert!(shown.iter().all(|head| header.contains(head)), "{header}: {screen}");
        assert!(!env.kvmb(&command).run().assert_ok().records().is_empty());
        let screen = env.pty([command, vec!["--json"]].concat()).wait().assert_ok();
        // A progress bar may precede it.
        let text = plain(screen.stdout());
        let line = &text[text.find("{\"type\":").expect("a record")..];
        let record: Value = serde_json::from_str(line.trim()).expect("one record");
        assert!(record["type"].is_string());
    }
}

#[test]
fn progress_bars_are_drawn_only_on_a_terminal() {
    let env = Env::new("bars");
    fs::File::create(env.path("big")).unwrap().set_len(1 << 30).unwrap();
    let pty = env.pty(["hash", "big"]);
    pty.expect("hashing big");
    pty.expect("/s");
    pty.expect(" left");
    let screen = pty.wait().assert_ok();
    assert!(screen.stdout().contains("1.00 GiB"), "{screen}");
    let quiet = env.pty(["-q", "hash", "big"]).wait().assert_ok();
    assert!(!quiet.stdout().contains("hashing"), "{quiet}");
    let piped = env.kvmb(["hash", "big"]).run().assert_ok();
    assert_eq!(piped.stderr(), "");
    assert_eq!(piped.records().len(), 1);
}

#[test]
fn progress_fits_the_terminal_and_is_erased_at_the_end() {
    let env = Env::new("progress width");
    fs::File::create(env.path("big")).unwrap().set_len(1 << 30).unwrap();
    for columns in [80, 160] {
        let script = format!("stty cols {columns}; exec kvmb hash big");
        let screen = env.pty_of("sh", ["-c", &script]).wait().assert_ok();
        // A line that replaces another one starts by erasing it.
        let erased = screen.stdout().replace("\u{1b}[2K", "\n");
        let drawn: Vec<String> = erased.split(['\r', '\n']).map(plain).collect();
        for line in drawn.iter().filter(|line| line.contains("hashing big")) {
            assert!(line.chars().count() <= columns, "{columns}: {line:?}");
        }
        let shown = drawn.iter().filter(|line| line.contains("hashing big")).count();
        assert!(shown > 0, "{columns}: {screen}");
        // Below the last bar is the result, and nothing of the progress.
        let last = drawn.iter().rposition(|line| line.contains("hashing big")).unwrap();
        assert!(drawn[last..].iter().any(|line| line.contains("1.00 GiB  big")), "{columns}: {drawn:#?}");
    }
}

#[test]
fn thread_limit_fails_a_prompt_and_a_completion_with_no_panic() {
    let env = Env::new("no threads");
    forget_the_password(&env);
    // The limit does not apply to root, and counts all processes of a user; this one has no others.
    let user = 400_000 + std::process::id();
    env.sh(&format!("chown -R {user}:{user} .")).run().assert_ok();
    let limited = format!("exec setpriv --reuid={user} --regid={user} --clear-groups prlimit --nproc=1 -- kvmb");
    let screen = env.pty_of("sh", ["-c", &format!("{limited} init -r repo")]).wait().assert_code(1);
    assert!(screen.stdout().contains("TasksMax="), "{screen}");
    assert!(!screen.stdout().contains("panicked"), "{screen}");
    let completion = env.sh(&format!("{limited} -- kvmb disks ''")).env("KVMB_COMPLETE", "bash");
    let offered = completion.env("_CLAP_COMPLETE_INDEX", "2").run();
    assert!(!offered.stderr().contains("panicked"), "{offered}");
}

#[test]
fn password_is_prompted_only_on_a_terminal_and_never_shown() {
    let env = Env::new("password");
    forget_the_password(&env);
    let repo = env.repo();
    // A new password is asked for twice, until both are the same.
    let mut pty = env.pty(["init", "-r", &repo]);
    for (question, times, answer) in
        [("Password for", 1, PASSWORD), ("Again", 1, "another"), ("Password for", 2, PASSWORD), ("Again", 2, PASSWORD)]
    {
        pty.expect_hidden(question, times);
        pty.send(&format!("{answer}\r"));
    }
    let screen = pty.wait().assert_ok();
    assert!(screen.stdout().contains("The passwords differ"), "{screen}");
    assert!(screen.stdout().contains("the repository was created"), "{screen}");
    assert!(!screen.stdout().contains(PASSWORD), "{screen}");

    let mut pty = env.pty(["points", "-r", &repo]);
    pty.expect_hidden("Password for", 1);
    // After a typing error, the password may be tried again, as with ssh.
    pty.send("wrong\r");
    pty.expect_hidden("Password for", 2);
    pty.expect("try again");
    pty.send(&format!("{PASSWORD}\r"));
    pty.wait().assert_ok();
    let mut pty = env.pty(["points", "-r", &repo]);
    for times in 1..=3 {
        pty.expect_hidden("Password for", times);
        pty.send("wrong\r");
    }
    let screen = pty.wait().assert_code(1);
    assert!(screen.stdout().contains("kvmb: error: ") && screen.stdout().contains("kvmb: hint: "), "{screen}");

    let mut pty = env.pty(["key", "add", "-r", &repo]);
    for (question, answer) in [("Password for", PASSWORD), ("New password", "second"), ("Again", "second")] {
        pty.expect_hidden(question, 1);
        pty.send(&format!("{answer}\r"));
    }
    pty.wait().assert_ok();
    env.kvmb(["points", "-r", &repo]).env("KVMB_PASSWORD", "second").run().assert_ok();
    // Read as restic does: everything, without surrounding white space.
    env.kvmb(["points", "-r", &repo]).env("KVMB_PASSWORD_COMMAND", "printf '\\n second \\n'").run().assert_ok();
    let two_lines = env.kvmb(["points", "-r", &repo]).env("KVMB_PASSWORD_COMMAND", "printf 'second\\nthird\\n'");
    assert_eq!(two_lines.run().assert_code(1).record_of("failure")["code"], "wrong_password");

    // A command with endless output does not exhaust the memory.
    let endless = env.kvmb(["points", "-r", &repo]).env("KVMB_PASSWORD_COMMAND", "yes").run().assert_code(1);
    endless.assert_stderr_has("$KVMB_PASSWORD_COMMAND printed too much");

    // Nobody can be asked, or the user does not want to be asked.
    let output = env.kvmb(["points", "-r", &repo]).run().assert_code(2);
    assert_eq!(output.record_of("failure")["code"], "usage");
    output.assert_stderr_has("kvmb: hint: use --password-file FILE");
    let screen = env.pty(["-q", "points", "-r", &repo]).wait().assert_code(2);
    assert!(!screen.stdout().contains("Password for"), "{screen}");
    // Ctrl-C at the prompt.
    let mut pty = env.pty(["points", "-r", &repo]);
    pty.expect_hidden("Password for", 1);
    pty.send("\u{3}");
    pty.wait().assert_code(130);
    // An empty variable counts as unset; a world-readable file is refused.
    env.kvmb(["points", "-r", &repo, "--password-file", ""]).env("KVMB_PASSWORD", "second").run().assert_ok();
    fs::write(env.path("open"), "second\n").unwrap();
    fs::set_permissions(env.path("open"), fs::Permissions::from_mode(0o644)).unwrap();
    env.kvmb(["points", "-r", &repo, "--password-file", "open"])
        .run()
        .assert_code(2)
        .assert_stderr_has("chmod 600 'open'");
}

#[test]
fn second_repository_is_located_before_its_password_prompt() {
    let env = Env::new("second password");
    env.machine("kvmb-test-vm1").disk(Disk::qcow2(MIB)).define();
    env.sh("kvmb init -r $R").run().assert_ok();
    let (second, password) = (env.repo_named("second"), env.password_file().display().to_string());
    forget_the_password(&env);
    let repo = env.repo();
    let backup = ["backup", "kvmb-test-vm1", "-r", &repo, "--copy-to", &second];
    let questions = |screen: &Output| screen.stdout().matches("[hidden]").count();
    let mut pty = env.pty(backup);
    pty.expect_hidden(&format!("Password for {repo}"), 1);
    pty.send(&format!("{PASSWORD}\r"));
    let screen = pty.wait().assert_code(3);
    assert_eq!(questions(&screen), 1, "{screen}");
    assert!(plain(screen.stdout()).contains("no repository in"), "{screen}");
    env.kvmb(["init", "-r", &second, "--password-file", &password]).run().assert_ok();
    let mut pty = env.pty(backup);
    for repo in [&repo, &second] {
        pty.expect_hidden(&format!("Password for {repo}"), 1);
        pty.send(&format!("{PASSWORD}\r"));
    }
    let screen = pty.wait().assert_ok();
    assert_eq!(questions(&screen), 2, "{screen}");
    let copies = env.kvmb(["points", "-r", &second, "--password-file", &password]).run().assert_ok();
    assert_eq!(copies.records_of("point").len(), 2, "{copies}");
}

#[test]
fn restore_without_arguments_guides_through_lists() {
    let env = Env::new("lists");
    let vm1 = env.machine("kvmb-test-vm1").disk(Disk::qcow2(MIB)).define();
    vm1.write("vda", 0, 65536, 0x11);
    env.machine("kvmb-test-vm2").disk(Disk::raw(MIB)).define();
    env.sh("kvmb init -r $R && kvmb backup --all -r $R").run().assert_ok();
    vm1.write("vda", 0, 65536, 0x22);
    let repo = env.repo();

    // After "no", nothing is done.
    let lead = |answer: &str| {
        let mut pty = env.pty(["restore", "-r", &repo]);
        pty.expect("Machine");
        pty.send("vm1\r");
        pty.expect("Point");
        pty.send("\r");
        pty.expect("next to the original");
        pty.send("\r");
        pty.expect("New name");
        pty.send("\r");
        pty.expect("Folder for the images");
        pty.send(&"\u{7f}".repeat("/var/lib/libvirt/images".len()));
        pty.send(&format!("{}\r", env.disks().display()));
        pty.expect("Start the machine after the restore?");
        pty.send("n\r");
        pty.expect("would be created, 1.00 MiB");
        pty.expect("would be defined");
        pty.expect("Continue?");
        pty.send(&format!("{answer}\r"));
        pty.wait()
    };
    let screen = lead("n").assert_code(1);
    assert!(screen.stdout().contains("nothing was done"), "{screen}");
    env.try_virsh(&["domid", "kvmb-test-vm1-restored"]).assert_code(1);
    let screen = lead("y").assert_ok();
    // It prints the equivalent command line, which works.
    let text = plain(screen.stdout());
    let line =
        text.split("to run this without questions: ").nth(1).expect("the command").lines().next().unwrap().to_owned();
    assert!(line.contains("--as kvmb-test-vm1-restored --into "), "{line}");
    let restored = env.disks_of("kvmb-test-vm1-restored");
    let mut model = vm1.model("vda");
    model.fill(0, 65536, 0x11);
    model.assert_image_equals(&restored[0].image, "qcow2");
    env.sh(&line).run().assert_code(1).assert_stderr_has("already exists");

    // In place.
    let mut pty = env.pty(["restore", "-r", &repo]);
    pty.expect("Machine");
    pty.send("vm1\r");
    pty.expect("Point");
    pty.send("\r");
    pty.expect("next to the original");
    pty.expect("to its original place (replaces the existing machine)");
    pty.send("\u{1b}[B\r");
    pty.expect("Start the machine after the restore?");
    pty.send("\r");
    pty.expect("would be replaced");
    pty.expect("Continue?");
    pty.send("y\r");
    let screen = pty.wait().assert_ok();
    assert!(plain(screen.stdout()).contains("--overwrite"), "{screen}");
    model.assert_image_equals(vm1.image("vda"), "qcow2");

    // There are no prompts without a terminal or with --quiet.
    env.kvmb(["restore", "-r", &repo]).run().assert_code(2);
    let screen = env.pty(["-q", "restore", "-r", &repo]).wait().assert_code(2);
    assert!(screen.stdout().contains("no point given"), "{screen}");
    // A command at the beginning of a pipeline does not wait for records from the terminal.
    let screen = env.pty(["push", "-r", &repo]).wait().assert_code(2);
    assert!(screen.stdout().contains("kvmb: hint: "), "{screen}");
}

#[test]
fn interactive_restore_fails_after_three_wrong_passwords() {
    let env = Env::new("lists-password");
    env.kvmb(["init", "-r", &env.repo()]).run().assert_ok();
    forget_the_password(&env);
    let mut pty = env.pty(["restore", "-r", &env.repo()]);
    for times in 1..=3 {
        pty.expect_hidden("Password for", times);
        pty.send("wrong\r");
    }
    let screen = plain(pty.wait().assert_code(1).stdout());
    let repo = env.repo();
    assert_eq!(screen.matches(&format!("kvmb: wrong password for the repository in {repo}; try again")).count(), 2);
    assert!(screen.contains(&format!("kvmb: error: wrong password for the repository in {repo}")), "{screen}");
    assert!(screen.contains("kvmb: hint: use --password-file FILE to provide the right password"), "{screen}");
    assert!(!screen.contains("Machine"), "nothing more is asked: {screen}");
}

#[test]
fn restore_needs_only_the_repository_and_its_key() {
    let lost = Env::new("lost");
    let data = |env: &Env| env.path("data").display().to_string();
    let vm1 = lost.machine("kvmb-test-vm1").disk(Disk::qcow2(MIB)).define();
    vm1.write("vda", 0, 65536, 0x11);
    let script = "unset KVMB_PASSWORD_FILE; kvmb backup kvmb-test-vm1 -q && kvmb key export exported -q";
    lost.sh(script).env("KVMB_DATA_DIR", data(&lost)).run().assert_ok();

    // Another host that never ran kvmb gets only the repository and its key.
    let fresh = Env::new("fresh");
    lost.program("cp").args([lost.path("data/repo"), fresh.path("rescued")]).arg("-r").run().assert_ok();
    fs::copy(lost.path("exported"), fresh.path("key")).unwrap();
    let kvmb = |args: &[&str]| fresh.kvmb(args).without_env("KVMB_PASSWORD_FILE").env("KVMB_DATA_DIR", data(&fresh));
    let repo = ["-r", "rescued", "--password-file", "key"];
    kvmb(&[&["points"], &repo[..]].concat()).run().assert_ok().record_of("point");
    let disks = fresh.disks().display().to_string();
    let restore = ["restore", "kvmb-test-vm1", "--as", "back", "--into", &disks];
    kvmb(&[&restore, &repo[..]].concat()).run().assert_ok();
    let model = vm1.model("vda");
    model.assert_image_equals(&fresh.disks_of("back")[0].image, "qcow2");

    // With prompts only, and without libvirt.
    forget_the_password(&fresh);
    let nowhere = format!("KVMB_DATA_DIR={}", data(&fresh));
    let mut pty = fresh.pty_of("env", [&nowhere, "kvmb", "-c", "nonsense:///", "restore"]);
    pty.expect("Repository");
    pty.send(&format!("{}\r", fresh.path("rescued").display()));
    pty.expect_hidden("Password for", 1);
    // A typing error in the dialog, too.
    pty.send("wrong\r");
    pty.expect("wrong password for the repository");
    pty.expect_hidden("Password for", 2);
    pty.send(&fs::read_to_string(fresh.path("key")).unwrap().replace('\n', "\r"));
    pty.expect("kvmb-test-vm1  1 point, latest");
    pty.send("\r");
    pty.expect("Point");
    pty.send("\r");
    pty.expect("libvirt is not available");
    pty.send("\r");
    pty.expect("Folder for the images");
    pty.send(&"\u{7f}".repeat("/var/lib/libvirt/images".len()));
    pty.send(&format!("{}\r", fresh.path("tmp").display()));
    pty.expect("the definition would be written");
    pty.expect("Continue?");
    pty.send("y\r");
    let screen = plain(pty.wait().assert_ok().stdout());
    assert!(screen.contains("--no-define"), "{screen}");
    let image = fs::read_dir(fresh.path("tmp")).unwrap().map(|entry| entry.unwrap().path());
    let image: Vec<_> = image.filter(|path| path.extension().is_some_and(|kind| kind == "qcow2")).collect();
    model.assert_image_equals(&image[0], "qcow2");
}

#[test]
fn errors_are_one_line_with_an_optional_hint() {
    let env = Env::new("errors");
    for (arguments, code, message, hint) in [
        (vec!["vms", "none"], 1, "kvmb: error: no machine named 'none'", Some("run 'kvmb vms' to list the machines")),
        (
            vec!["points", "-r", "/nowhere"],
            1,
            "kvmb: error: ",
            Some(
                "check the address and whether its file system is mounted, or create a repository there with 'kvmb \
                 init -r /nowhere'",
            ),
        ),
        (
            vec!["hash", "nothing"],
            1,
            "kvmb: error: cannot read nothing: No such file or directory",
            Some("check the path, and that its file system is mounted"),
        ),
        (vec!["hash", "--nonsense"], 2, "kvmb: error: unexpected argument '--nonsense'", None),
        (vec!["vsm"], 2, "kvmb: error: unrecognized subcommand 'vsm'", None),
        (vec!["points", "-r", "sftp://me:secret@host/x"], 2, "kvmb: error: ", None),
    ] {
        let output = env.kvmb(&arguments).run().assert_code(code).assert_stderr_has(message);
        assert!(output.stderr().starts_with("kvmb: error: "), "{output}");
        if let Some(hint) = hint {
            assert_eq!(output.stderr().lines().nth(1), Some(format!("kvmb: hint: {hint}").as_str()), "{output}");
            assert_eq!(output.record_of("failure")["hint"], hint);
        }
        assert!(!(output.stdout().to_owned() + output.stderr()).contains("secret"), "{output}");
    }
    env.kvmb::<&str>([]).run().assert_code(2).assert_stderr_has("Usage: kvmb");
    let version = env.kvmb(["--version"]).run().assert_ok();
    assert_eq!(version.stdout(), format!("kvmb {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn exit_and_error_codes_are_complete_unique_and_in_the_help() {
    let env = Env::new("codes");
    let help = env.kvmb(["--help"]).run().assert_ok();
    let (_, list) = help.stdout().split_once("Exit status:\n").expect("a list");
    let listed: Vec<(u8, String)> = list
        .lines()
        .map(|line| line.trim().split_once(' ').expect("a code and words"))
        .map(|(code, words)| (code.parse().expect("a number"), words.trim().to_owned()))
        .collect();
    assert_eq!(listed, ExitCode::ALL.map(|(code, words)| (code as u8, words.to_owned())));

    // Both lists have every variant of their enum exactly once, according to the source.
    for (source, name, count) in [
        (
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/cli/failure/exit_code.rs")),
            "pub enum ExitCode {",
            ExitCode::ALL.len(),
        ),
        (
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/cli/failure/code.rs")),
            "pub enum Code {",
            Code::ALL.len(),
        ),
    ] {
        let (_, body) = source.split_once(name).expect("the enum");
        let (body, _) = body.split_once("\n}").expect("its end");
        assert_eq!(body.lines().filter(|line| line.ends_with(',')).count(), count, "{name}");
    }
    let mut words = Code::ALL.map(|(code, word, _)| (code.word(), word)).to_vec();
    assert!(words.iter().all(|(a, b)| a == b), "{words:?}");
    words.sort_unstable();
    words.dedup();
    assert_eq!(words.len(), Code::ALL.len(), "a word stands for two things");
}

#[test]
fn colour_is_off_in_pipes_unless_requested() {
    let env = Env::new("colour");
    let call = |flags: &[&str]| {
        let output = env.kvmb(["points", "-r", "/nowhere"]).args(flags).run().assert_code(1);
        output.stderr().contains("\u{1b}[31merror:\u{1b}[0m")
    };
    assert!(!call(&[]) && !call(&["--color", "never"]));
    assert!(call(&["--color", "always"]));
    let forced = env.kvmb(["points", "-r", "/nowhere"]).env("NO_COLOR", "").env("CLICOLOR_FORCE", "1").run();
    forced.assert_code(1).assert_stderr_has("\u{1b}[31merror:");
    // The log of a run on standard error, too.
    let output = env.kvmb(["-vv", "points", "-r", "/nowhere"]).run().assert_code(1);
    assert!(!output.stderr().contains('\u{1b}'), "{output}");
    let table = env.kvmb(["doctor", "--all", "-o", "table", "--color", "always"]).run();
    assert!(table.stdout().starts_with("\u{1b}[1mCHECK\u{1b}[0m"), "{table}");
}
