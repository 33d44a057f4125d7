//! `kvmb restore` without arguments: each answer is checked immediately, and lines can be edited.

use crate::support::screen::shown;
use crate::support::{Disk, Env};
use std::fs;

const MIB: u64 = 1 << 20;

#[test]
fn wrong_answers_are_asked_again_and_other_answers_kept() {
    let env = Env::new("dialog");
    let vm1 = env.machine("kvmb-test-vm1").disk(Disk::qcow2(MIB)).define();
    vm1.write("vda", 0, 65536, 0x11);
    env.sh("kvmb init -r $R && kvmb backup --all -r $R").run().assert_ok();
    let disks = env.disks().display().to_string();
    fs::create_dir(env.path("disks/bücher")).unwrap();
    // An existing file is noticed when the restore is planned.
    fs::write(env.path("disks/kvmb-test-neu-vda.qcow2"), "").unwrap();

    let mut pty = env.pty(["restore", "-r", &env.repo()]);
    pty.expect("Machine");
    pty.send("\r");
    pty.expect("Point");
    pty.send("\r");
    pty.expect("next to the original");
    pty.send("\r");
    // The name of an existing machine; then a new one, by editing the first.
    pty.expect("New name");
    pty.send("\u{15}kvmb-test-vm1\r");
    pty.expect("a machine kvmb-test-vm1 already exists");
    pty.send("\u{7f}\u{7f}\u{7f}neu\r");
    pty.expect("Folder for the images");
    pty.send("\u{15}/nowhere/at/all\r");
    pty.expect("no folder /nowhere/at/all; create it, or type another one");
    // Pasted at once, and corrected with the cursor keys: home, end, left, right, backspace, delete.
    pty.send(&format!("\u{15}{}x\u{1b}[D\u{1b}[C\u{7f}\u{1b}[H/\u{1b}[3~\u{1b}[F\r", &disks));
    pty.expect("Start the machine after the restore?");
    pty.send("maybe\r");
    pty.expect("type y for yes or n for no");
    pty.send("\u{15}\r");
    // The plan finds the file, and the questions about the place are repeated with the previous answers.
    pty.expect("already exists");
    pty.expect("next to the original");
    pty.send("\r");
    let answered = |pty: &crate::support::pty::Pty, words: &str| {
        let last = pty.screen().rfind("already exists").unwrap();
        pty.screen()[last..].contains(words)
    };
    crate::support::wait_until("the name is proposed again", std::time::Duration::from_secs(60), || {
        answered(&pty, "New name: kvmb-test-neu")
    });
    pty.send("\r");
    crate::support::wait_until("the folder is proposed again", std::time::Duration::from_secs(60), || {
        answered(&pty, "Folder for the images: ")
    });
    // Non-ASCII input.
    pty.send("/bücherx\u{7f}\r");
    crate::support::wait_until("it asks about the start", std::time::Duration::from_secs(60), || {
        answered(&pty, "Start the machine")
    });
    pty.send("\r");
    // Nothing is replaced, so Enter is enough.
    pty.expect("Continue? [Y/n]");
    pty.send("\r");
    let screen = pty.wait().assert_ok();
    let lines = shown(screen.stdout(), 100);
    assert_eq!(lines.iter().filter(|line| line.starts_with("Machine: ")).count(), 1, "{lines:#?}");
    let model = vm1.model("vda");
    model.assert_image_equals(&env.path("disks/bücher/kvmb-test-neu-vda.qcow2"), "qcow2");
    assert_eq!(fs::read(env.path("disks/kvmb-test-neu-vda.qcow2")).unwrap(), b"");
}

#[test]
fn in_place_restore_of_a_running_machine_asks_for_another_place() {
    let env = Env::new("dialog running");
    let vm1 = env.machine("kvmb-test-vm1").disk(Disk::qcow2(MIB)).start_paused();
    env.sh("kvmb init -r $R && kvmb backup --all -r $R").run().assert_ok();
    let before = fs::read(vm1.image("vda")).unwrap();
    let mut pty = env.pty(["restore", "-r", &env.repo()]);
    pty.expect("Machine");
    pty.send("\r");
    pty.expect("Point");
    pty.send("\r");
    pty.expect("it is running: shut it down first");
    pty.send("\u{1b}[B\r");
    pty.expect(
        "kvmb-test-vm1 is running; shut it down first ('virsh shutdown kvmb-test-vm1'), or choose another place",
    );
    pty.send("\u{1b}[B\u{1b}[B\r");
    pty.expect("Folder for the images");
    pty.send(&format!("\u{15}{}\r", env.path("tmp").display()));
    pty.expect("Continue? [Y/n]");
    pty.send("n\r");
    let screen = pty.wait().assert_code(1);
    assert!(screen.stdout().contains("nothing was done"), "{screen}");
    assert_eq!(fs::read(vm1.image("vda")).unwrap(), before);
}
