//! Benchmarks of the inner loops of backups, restores and lists: `cargo bench --bench inner_loops`.
//!
//! ```text
//! --save FILE       saves the results, for a comparison with another commit
//! --compare FILE    prints the results beside the saved ones
//! --instructions    counts instructions instead (valgrind), which other load on the machine does not affect
//! ```
//!
//! Each loop runs for 21 samples of 50 ms; the median and the quartiles are printed. Loops whose quartiles overlap with
//! the saved ones count as equal.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::hint::black_box;
use std::ops::ControlFlow;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use chrono::{DateTime, FixedOffset};
use kvmb::repo::{
    BlobKind, Content, Id, Index, LockMode, Node, Password, Repository, Writer, WriterOptions, read_blobs, read_tree,
    write_tree,
};
use kvmb::storage::testing::MemoryStorage;

const CHUNK_BYTES: usize = 1 << 20;
const SAMPLES: usize = 21;
const SAMPLE: Duration = Duration::from_millis(50);
/// Maximum number of rounds per sample, because new data stays in memory.
const MOST_ROUNDS: u32 = 64;

/// One round of a loop.
type Round = Box<dyn Fn()>;

/// A loop: its name, the bytes of a round, and a function that prepares it.
type Loop = (&'static str, usize, fn() -> Round);

const LOOPS: [Loop; 7] = [
    ("hash a chunk", CHUNK_BYTES, hash),
    ("store a new chunk", CHUNK_BYTES, store_new),
    ("store a known chunk", CHUNK_BYTES, store_known),
    ("read 16 chunks", 16 * CHUNK_BYTES, read_chunks),
    ("look up 1,000 of 50,000 blobs", 0, look_up),
    ("write a list of 50,000 chunks", 0, write_list),
    ("read a list of 50,000 chunks", 0, read_list),
];

/// Returns a chunk that compresses about as well as files: lines of words and numbers.
fn chunk(number: u64) -> Vec<u8> {
    let mut text = format!("{number:020}\n");
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while text.len() < CHUNK_BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let _ = writeln!(text, "entry {state:016x} of the table, size {} bytes", state % 4096);
    }
    text.truncate(CHUNK_BYTES);
    text.into_bytes()
}

fn repository() -> Repository {
    let password = Password::new("bench".to_owned());
    Repository::create(Arc::new(MemoryStorage::new()), &password).expect("create a repository")
}

fn writer(repo: &Repository, index: Arc<Index>) -> Writer {
    let lock = repo.lock(LockMode::Shared, Duration::ZERO).expect("lock the repository");
    let permit = lock.permit();
    // The lock is kept until the process ends.
    std::mem::forget(lock);
    Writer::new(repo, index, WriterOptions::default(), &permit)
}

/// Returns a repository with these blobs, its index, and the blobs' ids.
fn filled(blobs: impl Iterator<Item = Vec<u8>>) -> (Repository, Arc<Index>, Vec<Id>) {
    let repo = repository();
    let filler = writer(&repo, Arc::default());
    let ids = blobs.map(|blob| filler.put(BlobKind::Data, &blob).expect("put").id).collect();
    filler.finish().expect("finish");
    let index = repo.load_index().expect("load the index");
    (repo, index, ids)
}

fn hash() -> Round {
    let chunk = chunk(1);
    Box::new(move || {
        black_box(Id::hash(black_box(&chunk)));
    })
}

fn store_new() -> Round {
    let writer = writer(&repository(), Arc::default());
    let (chunk, number) = (chunk(1), Cell::new(0u64));
    Box::new(move || {
        number.set(number.get() + 1);
        let mut chunk = chunk.clone();
        chunk[..8].copy_from_slice(&number.get().to_le_bytes());
        writer.put(BlobKind::Data, &chunk).expect("put");
    })
}

fn store_known() -> Round {
    let (repo, index, _) = filled([chunk(1)].into_iter());
    let (writer, chunk) = (writer(&repo, index), chunk(1));
    Box::new(move || {
        writer.put(BlobKind::Data, black_box(&chunk)).expect("put");
    })
}

fn read_chunks() -> Round {
    let (repo, index, ids) = filled((0..16).map(chunk));
    Box::new(move || {
        let stop = AtomicBool::new(false);
        let deliver = |_, blob: kvmb::repo::Result<&[u8]>| {
            black_box(blob.expect("the blob"));
            ControlFlow::Continue(())
        };
        read_blobs(&repo, &index, ids.clone(), 2, &stop, deliver).expect("read");
    })
}

fn look_up() -> Round {
    let (_, index, ids) = filled((0..50_000u32).map(|number| number.to_le_bytes().to_vec()));
    Box::new(move || {
        let found = ids.iter().step_by(50).filter(|id| index.contains(BlobKind::Data, id)).count();
        assert_eq!(black_box(found), ids.len() / 50);
    })
}

fn list(name: &str) -> Node {
    let mut content = Content::new();
    (0..50_000u32).for_each(|number| content.push(Id::hash(&number.to_le_bytes())));
    let time: DateTime<FixedOffset> = DateTime::parse_from_rfc3339("2026-11-23T14:55:59Z").expect("a time");
    Node::file(name, time, 50_000 << 20, content)
}

fn write_list() -> Round {
    let writer = writer(&repository(), Arc::default());
    let (node, number) = (list("disk"), Cell::new(0u64));
    Box::new(move || {
        number.set(number.get() + 1);
        let mut node = node.clone();
        node.name = format!("disk-{}", number.get()).into();
        write_tree(&writer, &[node]).expect("write the list");
    })
}

fn read_list() -> Round {
    let repo = repository();
    let filler = writer(&repo, Arc::default());
    let id = write_tree(&filler, &[list("disk")]).expect("write the list");
    filler.finish().expect("finish");
    let index = repo.load_index().expect("load the index");
    Box::new(move || {
        black_box(read_tree(&repo, &index, &id).expect("read the list"));
    })
}

/// The quartiles of a round's time, in nanoseconds.
#[derive(Clone, Copy)]
struct Times([f64; 3]);

impl Times {
    fn median(&self) -> f64 {
        self.0[1]
    }

    fn overlaps(&self, other: &Times) -> bool {
        self.0[0] <= other.0[2] && other.0[0] <= self.0[2]
    }
}

fn measure(round: &Round) -> Times {
    let timed = |rounds: u32| {
        let start = Instant::now();
        (0..rounds).for_each(|_| round());
        start.elapsed()
    };
    let first = timed(1).max(Duration::from_nanos(1));
    let rounds = (SAMPLE.as_nanos() / first.as_nanos()).clamp(1, u128::from(MOST_ROUNDS)) as u32;
    let mut samples: Vec<f64> = (0..SAMPLES).map(|_| timed(rounds).as_nanos() as f64 / f64::from(rounds)).collect();
    samples.sort_by(f64::total_cmp);
    Times([samples[SAMPLES / 4], samples[SAMPLES / 2], samples[3 * SAMPLES / 4]])
}

/// Returns the instructions of a round: those of a run with three rounds minus those of a run with one.
fn instructions(name: &str) -> u64 {
    let count = |rounds: &str| {
        let output = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg(std::env::current_exe().expect("this program"))
            .args(["--rounds", rounds, "--loop", name])
            .output()
            .expect("cannot run valgrind; install it");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let collected = said.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse::<u64>().ok());
        collected.unwrap_or_else(|| panic!("valgrind: {said}"))
    };
    count("3").saturating_sub(count("1")) / 2
}

fn noted(file: &str) -> BTreeMap<String, Times> {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("cannot read {file}: {error}"));
    let line = |line: &str| {
        let mut fields = line.split('\t');
        let name = fields.next()?.to_owned();
        let mut time = || fields.next()?.parse().ok();
        Some((name, Times([time()?, time()?, time()?])))
    };
    text.lines().filter_map(line).collect()
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let value = |name: &str| words.iter().position(|word| word == name).and_then(|at| words.get(at + 1));
    if let (Some(rounds), Some(name)) = (value("--rounds"), value("--loop")) {
        let (_, _, prepare) = LOOPS.iter().find(|(known, ..)| known == name).expect("a loop of this name");
        let round = prepare();
        return (0..rounds.parse().expect("a number")).for_each(|_: u32| round());
    }
    if words.iter().any(|word| word == "--instructions") {
        for (name, ..) in LOOPS {
            println!("{name:<32} {:>16} instructions", instructions(name));
        }
        return;
    }
    let before = value("--compare").map(|file| noted(file));
    let mut notes = String::new();
    for (name, bytes, prepare) in LOOPS {
        let times = measure(&prepare());
        let [low, median, high] = times.0.map(|time| time / 1e6);
        let rate = if bytes > 0 { format!("{:.0} MB/s", bytes as f64 / 1e3 / median) } else { String::new() };
        print!("{name:<32} {median:>9.3} ms ({low:.3} to {high:.3}) {rate:>12}");
        if let Some(before) = before.as_ref().and_then(|before| before.get(name)) {
            let ratio = times.median() / before.median();
            print!(
                "{}",
                if times.overlaps(before) { "   equal".to_owned() } else { format!("   {ratio:.2} of before") }
            );
        }
        println!();
        let _ = writeln!(notes, "{name}\t{}\t{}\t{}", times.0[0], times.0[1], times.0[2]);
    }
    if let Some(file) = value("--save") {
        fs::write(file, notes).unwrap_or_else(|error| panic!("cannot write {file}: {error}"));
    }
}
