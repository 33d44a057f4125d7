//! Progress: bars on a terminal, records for programs, and totals for `kvmb jobs`.

use super::progress_lines::{Overall, Shape, WorkView, lines};
use super::{live_lines, screen};
use crate::cli::terminal::stderr;
use crate::log::SHOWN;
use crate::ops::{Monitor, Progress};
use crate::record::{self, JobStep};
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How progress is shown on standard error.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressStyle {
    /// Bars on a terminal, otherwise nothing.
    #[default]
    Auto,
    /// A 'progress' record for each piece of work, once a second.
    Jsonl,
    /// Nothing.
    None,
}

/// Interval at which the lines are redrawn.
const DRAW_INTERVAL: Duration = Duration::from_millis(250);

/// The current tasks, and totals of the completed ones.
#[derive(Debug, Default)]
pub(crate) struct ProgressBoard {
    job: String,
    /// Whether progress is written to standard error as records.
    shown: bool,
    works: Mutex<Works>,
}

#[derive(Debug, Default)]
struct Works {
    in_hand: Vec<Arc<Work>>,
    ended_done_bytes: u64,
    ended_total_bytes: u64,
    /// The items of the run, if there are several.
    plan: Option<Plan>,
    /// Counts all tasks.
    all: Counter,
}

/// The items of a run, such as machines.
#[derive(Debug, Clone, Copy)]
struct Plan {
    noun: &'static str,
    done: usize,
    all: usize,
}

/// A task with its progress.
#[derive(Debug)]
struct Work {
    verb: String,
    label: String,
    /// The total decreases if parts turn out to need no work.
    counter: Counter,
    began: Instant,
}

/// Counts bytes and estimates the current rate. The bar itself is never drawn: [`live_lines`] draws all of them, in the
/// form that fits the terminal at that moment.
#[derive(Debug)]
struct Counter(ProgressBar);

impl Default for Counter {
    fn default() -> Counter {
        Counter::new(0)
    }
}

impl Counter {
    fn new(total_bytes: u64) -> Counter {
        Counter(ProgressBar::with_draw_target(Some(total_bytes), ProgressDrawTarget::hidden()))
    }

    fn done_bytes(&self) -> u64 {
        self.0.position()
    }

    fn total_bytes(&self) -> u64 {
        self.0.length().unwrap_or_default().max(self.done_bytes())
    }

    /// Returns the current rate; None before anything was done.
    fn bytes_per_second(&self) -> Option<f64> {
        self.0.tick();
        Some(self.0.per_sec()).filter(|rate| *rate > 0.0)
    }
}

impl Work {
    fn view(&self) -> WorkView {
        let Work { verb, label, counter, .. } = self;
        WorkView {
            label: format!("{verb} {label}"),
            done_bytes: counter.done_bytes(),
            total_bytes: counter.total_bytes(),
            bytes_per_second: counter.bytes_per_second(),
        }
    }
}

impl Works {
    fn done_bytes(&self) -> u64 {
        self.in_hand.iter().map(|work| work.counter.done_bytes()).sum::<u64>() + self.ended_done_bytes
    }

    /// Returns the lines for the terminal.
    fn lines(&mut self) -> Vec<String> {
        let works: Vec<WorkView> = self.in_hand.iter().map(|work| work.view()).collect();
        let done_bytes = self.done_bytes();
        self.all.0.set_position(done_bytes);
        let bytes_per_second = self.all.bytes_per_second();
        let overall = self.plan.map(|plan| {
            let Plan { noun, done, all } = plan;
            Overall { noun, done, all, done_bytes, bytes_per_second }
        });
        let (columns, rows) = screen::stderr_size();
        lines(&works, overall.as_ref(), Shape { columns, rows, is_utf8: screen::is_utf8() })
    }
}

impl ProgressBoard {
    fn works(&self) -> MutexGuard<'_, Works> {
        self.works.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether progress is shown as records.
    pub(crate) fn is_shown(&self) -> bool {
        self.shown
    }

    /// Returns the number of bytes done so far, and the known total.
    pub(crate) fn sums(&self) -> (u64, u64) {
        let works = self.works();
        let done = works.done_bytes();
        let total = works.in_hand.iter().map(|work| work.counter.total_bytes()).sum::<u64>() + works.ended_total_bytes;
        (done, total.max(done))
    }

    /// Returns the current tasks.
    pub(crate) fn steps(&self) -> Vec<JobStep> {
        let step = |work: &Arc<Work>| JobStep {
            verb: work.verb.clone(),
            label: work.label.clone(),
            done_bytes: work.counter.done_bytes(),
            total_bytes: work.counter.total_bytes(),
        };
        self.works().in_hand.iter().map(step).collect()
    }

    /// Prints each current task, if progress is shown as records.
    pub(crate) fn show(&self) {
        let in_hand = self.works().in_hand.clone();
        in_hand.iter().for_each(|work| self.show_one(work, false));
    }

    fn show_one(&self, work: &Work, ended: bool) {
        if self.shown {
            let done_bytes = work.counter.done_bytes();
            let progress = record::Progress {
                job: self.job.clone(),
                verb: work.verb.clone(),
                label: work.label.clone(),
                done_bytes,
                total_bytes: work.counter.total_bytes(),
                bytes_per_second: (done_bytes as f64 / work.began.elapsed().as_secs_f64().max(0.001)).round(),
                ended,
            };
            stderr::say(&progress.to_line());
        }
    }

    fn begin(self: &Arc<Self>, verb: &str, label: &str, total_bytes: u64) -> Arc<Work> {
        let (verb, label, began) = (verb.to_owned(), label.to_owned(), Instant::now());
        let work = Arc::new(Work { verb, label, counter: Counter::new(total_bytes), began });
        self.works().in_hand.push(Arc::clone(&work));
        work
    }

    fn end(&self, work: &Arc<Work>) {
        let mut works = self.works();
        works.in_hand.retain(|other| !Arc::ptr_eq(other, work));
        works.ended_done_bytes += work.counter.done_bytes();
        works.ended_total_bytes += work.counter.total_bytes();
        if works.in_hand.is_empty() {
            live_lines::erase();
        }
        drop(works);
        self.show_one(work, true);
    }
}

/// Shows each current task in the requested style, and counts it for `kvmb jobs`.
#[derive(Debug)]
pub(crate) struct Bars {
    board: Arc<ProgressBoard>,
    /// Draws the lines; started with the first task. None if nothing is drawn.
    painter: Option<Mutex<Option<Painter>>>,
    quiet: bool,
}

/// A thread that draws until this is dropped.
#[derive(Debug)]
struct Painter(Option<(crossbeam_channel::Sender<()>, JoinHandle<()>)>);

impl Painter {
    fn start(board: &Arc<ProgressBoard>) -> Painter {
        let (stop, stopped) = crossbeam_channel::bounded::<()>(0);
        let board = Arc::clone(board);
        let draw = move || {
            while stopped.recv_timeout(DRAW_INTERVAL) == Err(crossbeam_channel::RecvTimeoutError::Timeout) {
                // Holding this lock delays whoever ends a task, so nothing is drawn after the last one was erased.
                let mut works = board.works();
                if !works.in_hand.is_empty() && screen::is_in_foreground() {
                    live_lines::draw(works.lines(), screen::stderr_size().0);
                }
            }
        };
        // If the thread cannot be started, nothing is drawn, and the run continues.
        Painter(thread::Builder::new().name("progress".into()).spawn(draw).ok().map(|thread| (stop, thread)))
    }
}

impl Drop for Painter {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.0.take() {
            drop(stop);
            let _ = thread.join();
        }
    }
}

impl Bars {
    /// Creates the progress of the run `job`. With `quiet`, nothing is shown unless explicitly requested.
    pub(crate) fn new(quiet: bool, style: ProgressStyle, job: &str) -> Bars {
        let draws = style == ProgressStyle::Auto && !quiet && screen::can_draw();
        let shown = style == ProgressStyle::Jsonl;
        let board = Arc::new(ProgressBoard { job: job.to_owned(), shown, works: Mutex::default() });
        Bars { board, painter: draws.then(Mutex::default), quiet }
    }

    pub(crate) fn board(&self) -> &Arc<ProgressBoard> {
        &self.board
    }

    /// Adds a line that shows how many of `all` items are done, if there are several; `noun` names them.
    pub(crate) fn expect(&self, noun: &'static str, all: usize) {
        self.board.works().plan = (all > 1).then_some(Plan { noun, done: 0, all });
    }

    /// Counts one of the expected items as done.
    pub(crate) fn one_done(&self) {
        if let Some(plan) = &mut self.board.works().plan {
            plan.done += 1;
        }
    }
}

impl Monitor for Bars {
    fn start(&self, verb: &str, label: &str, total_bytes: u64) -> Box<dyn Progress> {
        let work = self.board.begin(verb, label, total_bytes);
        if let Some(painter) = &self.painter {
            let mut painter = painter.lock().unwrap_or_else(PoisonError::into_inner);
            painter.get_or_insert_with(|| Painter::start(&self.board));
        }
        Box::new(WorkProgress { board: Arc::clone(&self.board), work })
    }

    fn warn(&self, message: &str) {
        tracing::warn!(target: SHOWN, "{message}");
        if !self.quiet && !stderr::in_journal() {
            stderr::warning(message);
        }
    }
}

struct WorkProgress {
    board: Arc<ProgressBoard>,
    work: Arc<Work>,
}

impl Progress for WorkProgress {
    fn advance(&self, bytes: u64) {
        self.work.counter.0.inc(bytes);
    }

    fn skip(&self, bytes: u64) {
        self.work.counter.0.dec_length(bytes);
    }
}

impl Drop for WorkProgress {
    fn drop(&mut self) {
        self.board.end(&self.work);
    }
}
