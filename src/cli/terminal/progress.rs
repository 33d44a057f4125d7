//! Progress: bars on a terminal, records for programs, and the sums for `kvmb jobs`.

use crate::cli::terminal::stderr;
use crate::log::TOLD;
use crate::ops::{Monitor, Progress};
use crate::record::{self, JobStep};
use clap::ValueEnum;
use indicatif::{MultiProgress, ProgressBar};
use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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

/// From this width on there is room for a bar.
const WIDE: u16 = 110;

/// The message takes what is left of the line, also after the window was resized.
const WIDE_TEMPLATE: &str =
    "{wide_msg} {bar:24} {percent:>3} %  {binary_bytes} of {binary_total_bytes}  {binary_bytes_per_sec}  {eta} left";

/// The same without a bar.
const NARROW_TEMPLATE: &str =
    "{wide_msg} {percent:>3} %  {binary_bytes} of {binary_total_bytes}  {binary_bytes_per_sec}  {eta} left";

/// How many columns the terminal of standard error has.
fn terminal_width() -> u16 {
    rustix::termios::tcgetwinsize(std::io::stderr()).map_or(80, |size| size.ws_col)
}

/// Whether the locale can show more than ASCII.
fn is_utf8() -> bool {
    let variables = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter();
    let locale = variables.filter_map(|name| std::env::var(name).ok()).find(|value| !value.is_empty());
    locale.is_some_and(|locale| locale.to_lowercase().replace('-', "").contains("utf8"))
}

/// The pieces of work in hand, and what was done before them.
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
}

/// One piece of work.
#[derive(Debug)]
struct Work {
    verb: String,
    label: String,
    total_bytes: u64,
    done_bytes: AtomicU64,
    began: Instant,
}

impl Work {
    fn done_bytes(&self) -> u64 {
        self.done_bytes.load(Ordering::Relaxed)
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

    /// What has been done so far, and what is known that there is to do.
    pub(crate) fn sums(&self) -> (u64, u64) {
        let works = self.works();
        let done = works.in_hand.iter().map(|work| work.done_bytes()).sum::<u64>() + works.ended_done_bytes;
        let total = works.in_hand.iter().map(|work| work.total_bytes).sum::<u64>() + works.ended_total_bytes;
        (done, total.max(done))
    }

    /// The pieces of work in hand.
    pub(crate) fn steps(&self) -> Vec<JobStep> {
        let step = |work: &Arc<Work>| JobStep {
            verb: work.verb.clone(),
            label: work.label.clone(),
            done_bytes: work.done_bytes(),
            total_bytes: work.total_bytes,
        };
        self.works().in_hand.iter().map(step).collect()
    }

    /// Shows each piece of work in hand, if progress is shown as records.
    pub(crate) fn show(&self) {
        let in_hand = self.works().in_hand.clone();
        in_hand.iter().for_each(|work| self.show_one(work, false));
    }

    fn show_one(&self, work: &Work, ended: bool) {
        if self.shown {
            let done_bytes = work.done_bytes();
            let progress = record::Progress {
                job: self.job.clone(),
                verb: work.verb.clone(),
                label: work.label.clone(),
                done_bytes,
                total_bytes: work.total_bytes,
                bytes_per_second: (done_bytes as f64 / work.began.elapsed().as_secs_f64().max(0.001)).round(),
                ended,
            };
            stderr::say(&progress.to_line());
        }
    }

    fn begin(self: &Arc<Self>, verb: &str, label: &str, total_bytes: u64) -> Arc<Work> {
        let (verb, label, began) = (verb.to_owned(), label.to_owned(), Instant::now());
        let work = Arc::new(Work { verb, label, total_bytes, done_bytes: AtomicU64::new(0), began });
        self.works().in_hand.push(Arc::clone(&work));
        work
    }

    fn end(&self, work: &Arc<Work>) {
        let mut works = self.works();
        works.in_hand.retain(|other| !Arc::ptr_eq(other, work));
        works.ended_done_bytes += work.done_bytes();
        works.ended_total_bytes += work.total_bytes;
        drop(works);
        self.show_one(work, true);
    }
}

/// Shows each piece of work in hand as was asked for, and counts it for `kvmb jobs`.
#[derive(Debug)]
pub(crate) struct Bars {
    bars: Option<MultiProgress>,
    board: Arc<ProgressBoard>,
    quiet: bool,
}

impl Bars {
    /// Progress of the run `job`. With `quiet`, nothing is shown unless it was asked for.
    pub(crate) fn new(quiet: bool, style: ProgressStyle, job: &str) -> Bars {
        let draws = style == ProgressStyle::Auto && !quiet && std::io::stderr().is_terminal();
        let shown = style == ProgressStyle::Jsonl;
        let board = Arc::new(ProgressBoard { job: job.to_owned(), shown, works: Mutex::default() });
        Bars { bars: draws.then(MultiProgress::new), board, quiet }
    }

    /// The pieces of work in hand.
    pub(crate) fn board(&self) -> &Arc<ProgressBoard> {
        &self.board
    }

    fn bar(&self, verb: &str, label: &str, total_bytes: u64) -> Option<ProgressBar> {
        use indicatif::ProgressStyle;
        let bars = self.bars.as_ref()?;
        // The templates are constant and right; should one ever be wrong, a plain bar serves.
        let template = if terminal_width() < WIDE { NARROW_TEMPLATE } else { WIDE_TEMPLATE };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let style = if is_utf8() { style } else { style.progress_chars("##-") };
        let bar = bars.add(ProgressBar::new(total_bytes).with_style(style));
        bar.set_message(format!("{verb} {}", crate::cli::table::printable(label)));
        bar.enable_steady_tick(Duration::from_millis(250));
        Some(bar)
    }
}

impl Monitor for Bars {
    fn start(&self, verb: &str, label: &str, total_bytes: u64) -> Box<dyn Progress> {
        let work = self.board.begin(verb, label, total_bytes);
        Box::new(WorkProgress { bar: self.bar(verb, label, total_bytes), board: Arc::clone(&self.board), work })
    }

    fn warn(&self, message: &str) {
        tracing::warn!(target: TOLD, "{message}");
        if self.quiet || stderr::in_journal() {
            return;
        }
        match &self.bars {
            Some(bars) => bars.suspend(|| stderr::warning(message)),
            None => stderr::warning(message),
        }
    }
}

struct WorkProgress {
    bar: Option<ProgressBar>,
    board: Arc<ProgressBoard>,
    work: Arc<Work>,
}

impl Progress for WorkProgress {
    fn advance(&self, bytes: u64) {
        self.work.done_bytes.fetch_add(bytes, Ordering::Relaxed);
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
    }
}

impl Drop for WorkProgress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        self.board.end(&self.work);
    }
}
