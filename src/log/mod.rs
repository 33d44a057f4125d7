//! The log: a record of what each run did.
//!
//! Events are emitted with `tracing`. Standard error gets what users want to see immediately; the file, or the journal
//! when systemd runs kvmb, gets everything from `INFO` on. Each line carries the id of its run, to distinguish runs
//! that write at the same time.
//!
//! | module | what |
//! | --- | --- |
//! | [`mod@line`] | an event as a line of text or of JSON |
//! | [`reader`] | the lines of one run |
//! | [`rotating`] | the log file and its rotation |

pub(crate) mod line;
pub(crate) mod reader;
pub(crate) mod rotating;

use line::{LogLine, Style};
use rotating::RotatingFile;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Mutex;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// The target of events that were already reported on standard error in other words.
pub(crate) const SHOWN: &str = "kvmb::shown";

/// How verbose a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Quiet,
    Normal,
    Verbose,
    /// Includes details of the implementation.
    Debug,
}

impl Level {
    /// Returns the filter: libraries are logged less verbosely than kvmb.
    fn filter(self) -> Targets {
        let (own, others) = match self {
            Level::Quiet => (LevelFilter::ERROR, LevelFilter::ERROR),
            Level::Normal => (LevelFilter::WARN, LevelFilter::WARN),
            Level::Verbose => (LevelFilter::INFO, LevelFilter::WARN),
            Level::Debug => (LevelFilter::DEBUG, LevelFilter::INFO),
        };
        Targets::new().with_default(others).with_target("kvmb", own)
    }
}

/// The log file of a run.
#[derive(Debug, Clone)]
pub(crate) struct FilePlan {
    /// The possible paths, in order of preference.
    pub(crate) places: Vec<PathBuf>,
    /// The folder of one of them, which is created if no other path is writable.
    pub(crate) own_folder: Option<PathBuf>,
    /// The format of a line.
    pub(crate) style: Style,
    /// A larger file is rotated.
    pub(crate) max_bytes: u64,
    /// The number of rotated files to keep.
    pub(crate) keep: u64,
}

/// What a run logs, and where to.
#[derive(Debug, Clone)]
pub(crate) struct LogSettings<'a> {
    /// The id of the run.
    pub(crate) run: &'a str,
    pub(crate) command: &'static str,
    /// The verbosity of standard error.
    pub(crate) level: Level,
    /// Whether standard error is coloured.
    pub(crate) color: bool,
    /// Returns a writer for standard error.
    pub(crate) stderr: fn() -> Box<dyn Write>,
    /// The log file; `None` for a run without one.
    pub(crate) file: Option<FilePlan>,
    /// Whether to log to the journal.
    pub(crate) journal: bool,
}

/// The result of starting the log.
#[derive(Debug, Default)]
pub(crate) struct Started {
    /// Whether the journal is written to.
    pub(crate) journal: bool,
    /// Why the requested log file cannot be opened.
    pub(crate) fault: Option<(PathBuf, std::io::Error)>,
}

/// Opens the first path that is writable.
fn open(plan: &FilePlan) -> Result<RotatingFile, (PathBuf, std::io::Error)> {
    let open = || RotatingFile::open_first(&plan.places, plan.max_bytes, plan.keep);
    open().or_else(|error| match &plan.own_folder {
        Some(folder) if std::fs::create_dir_all(folder).is_ok() => open(),
        _ => Err(error),
    })
}

/// Starts logging, once per process. If a log cannot be written, this is reported, but does not stop anything.
pub(crate) fn start(plan: LogSettings<'_>) -> Started {
    let mut started = Started::default();
    let stderr = tracing_subscriber::fmt::layer()
        .with_writer(plan.stderr)
        .event_format(line::StderrLine { color: plan.color })
        .with_ansi(plan.color)
        // With internal errors enabled, a closed standard error would be reported on standard error, which panics.
        .log_internal_errors(false)
        .with_filter(plan.level.filter().with_target(SHOWN, LevelFilter::OFF));
    let kept = plan.level.max(Level::Verbose);
    let journal = plan.journal.then(|| tracing_journald::layer().ok()).flatten().map(|layer| {
        started.journal = true;
        let fields = [("RUN", plan.run), ("COMMAND", plan.command)];
        layer.with_syslog_identifier("kvmb".into()).with_custom_fields(fields).with_filter(kept.filter())
    });
    let file = plan.file.and_then(|file| match open(&file) {
        Ok(writer) => {
            let line = LogLine { run: plan.run.to_owned(), command: plan.command, style: file.style };
            let layer = tracing_subscriber::fmt::layer().event_format(line).with_writer(Mutex::new(writer));
            Some(layer.log_internal_errors(false).with_ansi(false).with_filter(kept.filter()))
        }
        Err(fault) => {
            started.fault = Some(fault);
            None
        }
    });
    tracing_subscriber::registry().with(stderr).with(file).with(journal).init();
    started
}
