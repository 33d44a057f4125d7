//! Progress bars, on a terminal only.

use crate::cli::stderr;
use crate::log::TOLD;
use crate::ops::{Monitor, Progress};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::Duration;

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
        // The templates are constant and right; should one ever be wrong, a plain bar serves.
        let template = if terminal_width() < WIDE { NARROW_TEMPLATE } else { WIDE_TEMPLATE };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let style = if is_utf8() { style } else { style.progress_chars("##-") };
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
        match &self.bars {
            Some(bars) => bars.suspend(|| stderr::warning(message)),
            None => stderr::warning(message),
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
