//! A command whose records are shown while it runs. Like a look-up, it ends with the console.

use super::fields::Fields;
use super::reading::{Lookup, words_of};
use super::toolbox::Toolbox;
use crate::record::{Failure, Record};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::task::AbortHandle;

/// Time limit of the command.
const LIMIT: Duration = Duration::from_secs(300);

/// Maximum number of records that are kept.
const MOST_RECORDS: usize = 1000;

/// A running or finished command.
#[derive(Debug)]
pub(super) struct Followed {
    pub(super) words: Vec<String>,
    /// The form that started it.
    pub(super) form: Fields,
    pub(super) started: Instant,
    state: Mutex<FollowedState>,
    task: Mutex<Option<AbortHandle>>,
}

#[derive(Debug, Default)]
struct FollowedState {
    records: Vec<Record>,
    has_ended: bool,
}

impl Followed {
    pub(super) fn start(toolbox: &Arc<Toolbox>, words: Vec<String>, form: Fields) -> Arc<Followed> {
        tracing::info!("console: {}", toolbox.command_line(&words));
        let (state, task) = (Mutex::default(), Mutex::default());
        let followed = Arc::new(Followed { words, form, started: Instant::now(), state, task });
        let (running, toolbox) = (Arc::clone(&followed), Arc::clone(toolbox));
        let task = tokio::spawn(async move {
            let error = match tokio::time::timeout(LIMIT, running.run(&toolbox)).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some(format!("no end within {} s", LIMIT.as_secs())),
            };
            running.fail(error);
            running.state().has_ended = true;
            toolbox.forget();
        });
        *followed.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task.abort_handle());
        followed
    }

    async fn run(&self, toolbox: &Toolbox) -> std::io::Result<()> {
        let mut lookup = Lookup::start(toolbox.command(&self.words).stdin(Stdio::null()))?;
        let (stdout, stderr) = lookup.output();
        let records = async {
            let Some(stdout) = stdout else { return Ok(()) };
            let mut lines = BufReader::new(stdout).lines();
            while let Some(line) = lines.next_line().await? {
                let mut state = self.state();
                if let Ok(record) = Record::parse(&line)
                    && state.records.len() < MOST_RECORDS
                {
                    state.records.push(record);
                }
            }
            Ok::<(), std::io::Error>(())
        };
        let said = async {
            let mut said = Vec::new();
            if let Some(stderr) = stderr {
                stderr.take(64 << 10).read_to_end(&mut said).await?;
            }
            Ok::<_, std::io::Error>(said)
        };
        let (read, said) = tokio::join!(records, said);
        read?;
        let status = lookup.wait().await?;
        // Errors in the command line are reported as text only.
        if !status.success() && self.state().records.is_empty() {
            self.fail(Some(words_of(&said?, "error:").join("; ")));
        }
        Ok(())
    }

    fn fail(&self, error: Option<String>) {
        if let Some(error) = error {
            let failure = Failure { code: "failed".into(), error, ..Failure::default() };
            self.state().records.push(Record::Failure(failure));
        }
    }

    /// Returns its records so far.
    pub(super) fn records(&self) -> Vec<Record> {
        self.state().records.clone()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.state().has_ended
    }

    /// Stops it, if it is still running.
    pub(super) fn stop(&self) {
        if let Some(task) = self.task.lock().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
        self.state().has_ended = true;
    }

    fn state(&self) -> MutexGuard<'_, FollowedState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
