//! Progress bars, on a terminal only.

use crate::cli::stderr::{self, say};
use crate::log::TOLD;
use crate::ops::{Monitor, Progress};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::Duration;

/// Draws one bar for each piece of work in hand; draws nothing when standard error is no terminal.
#[derive(Debug)]
pub struct Bars {
    bars: Option<MultiProgress>,
    quiet: bool,
}

impl Bars {
    /// Bars, unless `quiet`.
    pub fn new(quiet: bool) -> Bars {
        let bars = (!quiet && std::io::stderr().is_terminal()).then(MultiProgress::new);
        Bars { bars, quiet }
    }
}

impl Monitor for Bars {
    fn start(&self, verb: &str, label: &str, total_bytes: u64) -> Box<dyn Progress> {
        let Some(bars) = &self.bars else {
            return Box::new(crate::ops::Silent);
        };
        // The template is constant and right; should it ever be wrong, a plain bar serves.
        let style = ProgressStyle::with_template(
            "{msg:<34!} {bar:24} {percent:>3} %  {binary_bytes} of {binary_total_bytes}  {binary_bytes_per_sec}  {eta} left",
        )
        .unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = bars.add(ProgressBar::new(total_bytes).with_style(style));
        bar.set_message(format!("{verb} {}", super::table::printable(label)));
        bar.enable_steady_tick(Duration::from_millis(250));
        Box::new(Bar(bar))
    }

    fn warn(&self, message: &str) {
        tracing::warn!(target: TOLD, "{message}");
        if self.quiet || stderr::in_journal() {
            return;
        }
        let line = format!("kvmb: warning: {message}");
        match &self.bars {
            Some(bars) => bars.suspend(|| say(&line)),
            None => say(&line),
        }
    }
}

struct Bar(ProgressBar);

impl Progress for Bar {
    fn advance(&self, bytes: u64) {
        self.0.inc(bytes);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
