//! Progress on a terminal: what it counts, that it fits even after a resize, and that it is erased at the end.

use crate::support::pty::Pty;
use crate::support::screen::shown;
use crate::support::{Disk, Env};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Creates machines with 1 GiB disks that contain 8 MiB of data, and an empty repository.
fn env(name: &str, machines: &[&str]) -> Env {
    let env = Env::new(name);
    for machine in machines {
        let defined = env.machine(machine).disk(Disk::qcow2(GIB)).define();
        defined.write("vda", 0, 8 * MIB, 0x11);
        // Different data, so that everything is stored.
        defined.write("vda", MIB, 8, machine.len() as u8);
    }
    env.kvmb(["init", "-r", &env.repo()]).run().assert_ok();
    env
}

/// Starts a backup that takes some seconds, on a terminal with this number of columns.
fn backup(env: &Env, columns: usize, locale: &str) -> Pty {
    let repo = env.repo();
    let script =
        format!("stty cols {columns} rows 24; LC_ALL={locale} exec kvmb backup --all -r '{repo}' --limit-read 2M");
    env.pty_of("sh", ["-c", &script])
}

/// Returns the last frame with a remaining time.
fn last_frame(sent: &str, columns: usize) -> Vec<String> {
    let end = sent.rfind(" left").expect("a time left");
    let end = end + sent[end..].find("\r\r").expect("it is erased");
    let lines = shown(&sent[..end], columns);
    lines.into_iter().filter(|line| line.starts_with("reading") || line.starts_with("total")).collect()
}

/// Replaces each number in a line with `N`, each bar with a single one, and multiple spaces with one.
fn normalised(line: &str) -> String {
    let mut text = String::new();
    for c in line.chars() {
        let c = match c {
            '0'..='9' | '.' => 'N',
            '█' | '░' | '#' => '█',
            '-' if text.ends_with('█') => '█',
            c => c,
        };
        if !("N█ ".contains(c) && text.ends_with(c)) {
            text.push(c);
        }
    }
    text
}

#[test]
fn progress_layout_is_pinned_at_80_and_160_columns() {
    let pinned = [
        (80, "reading kvmb-test-b/vda N % N MiB of N MiB N s left"),
        (160, "reading kvmb-test-b/vda █ N % N MiB of N MiB N MiB/s N s left"),
    ];
    for (columns, work) in pinned {
        let env = env("progress", &["kvmb-test-b", "kvmb-test-ab"]);
        let screen = backup(&env, columns, "C.UTF-8").wait().assert_ok();
        let sent = screen.stdout();
        let frame = last_frame(sent, columns);
        let normal: Vec<String> = frame.iter().map(|line| normalised(line)).collect();
        assert_eq!(normal, [work, "total: N of N machines done, N MiB, N MiB/s"], "{frame:?}");
        assert!(frame[1].starts_with("total: 1 of 2 machines done, "), "{frame:?}");
        // Holes do not count: of a 1 GiB disk, 8 MiB are read.
        assert!(frame[0].contains(" of 8.00 MiB "), "{frame:?}");
        // Nothing of it is left.
        let left = shown(sent, columns);
        let is_progress = |line: &&String| line.starts_with("reading") || line.starts_with("total");
        assert_eq!(left.iter().find(is_progress), None, "{left:#?}");
        assert!(left.iter().any(|line| line.starts_with("backed up 2 machines in ")), "{left:#?}");
    }
}

#[test]
fn resize_shortens_progress_lines_and_ctrl_c_erases_them() {
    let env = env("progress resize", &["kvmb-test-b"]);
    let mut pty = backup(&env, 150, "C.UTF-8");
    pty.expect("░");
    pty.expect(" left");
    let before = pty.screen().len();
    pty.resize(50);
    let narrow = || pty.screen()[before..].split("\u{1b}[J").skip(1).any(|frame| frame.contains("reading kvmb"));
    crate::support::wait_until("it draws again", std::time::Duration::from_secs(60), narrow);
    pty.send("\u{3}");
    let screen = pty.wait().assert_code(130);
    let sent = screen.stdout();
    // The first frame after the resize may already have been in progress.
    let frames: Vec<&str> = sent[before..].split("\u{1b}[J").skip(2).collect();
    for frame in frames.iter().filter(|frame| frame.contains("reading kvmb")) {
        let line = frame.split('\r').next().unwrap();
        assert!(line.chars().count() < 50 && !line.contains('░'), "{line:?}");
    }
    let last = &sent[sent.rfind("reading kvmb").unwrap()..];
    let left = shown(last.split_once('\r').unwrap().1, 50);
    assert!(!left.iter().any(|line| line.contains("reading") || line.contains('%')), "{left:#?}");
    assert!(left.iter().any(|line| line.starts_with("kvmb: interrupted; 0 of 1 machines")), "{left:#?}");
}

#[test]
fn non_utf8_locale_gets_ascii_and_dumb_terminal_no_progress() {
    let env = env("progress ascii", &["kvmb-test-b"]);
    let screen = backup(&env, 150, "C").wait().assert_ok();
    assert!(screen.stdout().is_ascii() && screen.stdout().contains("####"), "{screen}");
    let repo = env.repo();
    let script = format!("TERM=dumb exec kvmb backup --all -r '{repo}' --full --limit-read 4M");
    let screen = env.pty_of("sh", ["-c", &script]).wait().assert_ok();
    assert!(!screen.stdout().contains("reading") && !screen.stdout().contains('\u{1b}'), "{screen}");
}
