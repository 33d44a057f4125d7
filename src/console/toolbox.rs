//! Runs commands of kvmb: look-ups, whose answers are kept for a while, and jobs, which go on without the console.

use crate::record::{Failure, Job, Record};
use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tokio::sync::Semaphore;

/// How long a look-up may take.
const LIMIT: Duration = Duration::from_secs(120);

/// So much of an answer is read.
const LARGEST_ANSWER_BYTES: u64 = 64 << 20;

/// So much of what it says on standard error.
const LARGEST_MESSAGES_BYTES: u64 = 64 << 10;

/// So many look-ups run at the same time.
const MOST_LOOKUPS: usize = 4;

/// So many answers are kept.
const MOST_ANSWERS: usize = 64;

/// How long a started command may take to become a job.
const START_LIMIT: Duration = Duration::from_secs(20);

/// An answer that is older is asked for again; the old one is shown meanwhile, with its age.
const FRESH: Duration = Duration::from_secs(20);

/// Answers about running jobs are younger than this.
const FRESH_JOBS: Duration = Duration::from_millis(500);

/// What a command answered.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    /// Its records.
    pub(super) records: Arc<Vec<Record>>,
    /// Its exit code; none if it was killed.
    pub(super) exit_code: Option<i32>,
    /// What it warned of.
    pub(super) warnings: Arc<Vec<String>>,
    /// When it ended.
    pub(super) at: Instant,
}

impl Answer {
    fn of_failure(error: String) -> Answer {
        let failure = Failure { code: "failed".into(), error, ..Failure::default() };
        Answer::of(vec![Record::Failure(failure)], None, Vec::new())
    }

    fn of(records: Vec<Record>, exit_code: Option<i32>, warnings: Vec<String>) -> Answer {
        Answer { records: Arc::new(records), exit_code, warnings: Arc::new(warnings), at: Instant::now() }
    }

    /// What failed.
    pub(super) fn failures(&self) -> impl Iterator<Item = &Failure> {
        self.records.iter().filter_map(|record| match record {
            Record::Failure(failure) => Some(failure),
            _ => None,
        })
    }
}

/// The commands.
#[derive(Debug)]
pub(super) struct Toolbox {
    program: PathBuf,
    arguments: Vec<String>,
    lookups: Semaphore,
    answers: Mutex<HashMap<Vec<String>, Answer>>,
    /// The jobs that ran when it was last looked.
    running: Mutex<Vec<String>>,
}

impl Toolbox {
    pub(super) fn new(program: PathBuf, arguments: Vec<String>) -> Toolbox {
        let (answers, running) = (Mutex::default(), Mutex::default());
        Toolbox { program, arguments, lookups: Semaphore::new(MOST_LOOKUPS), answers, running }
    }

    /// The command line that a person would type for these arguments.
    pub(super) fn command_line(&self, words: &[String]) -> String {
        let words = ["kvmb"].into_iter().chain(words.iter().map(String::as_str));
        shlex::try_join(words).unwrap_or_default()
    }

    /// The answer of a command that changes nothing. One that is not too old is not asked for again; with `again`, any.
    pub(super) async fn look_up(self: &Arc<Self>, words: &[&str], again: bool) -> Answer {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let fresh = if words[0] == "jobs" { FRESH_JOBS } else { FRESH };
        let known = self.answers().get(&words).cloned();
        match known {
            Some(answer) if !again && answer.at.elapsed() < fresh => answer,
            Some(answer) if !again && words[0] != "jobs" => {
                let (toolbox, words) = (Arc::clone(self), words);
                tokio::spawn(async move { toolbox.ask(words).await });
                answer
            }
            _ => self.ask(words).await,
        }
    }

    async fn ask(&self, words: Vec<String>) -> Answer {
        let Ok(_permit) = self.lookups.acquire().await else {
            return Answer::of_failure("the console is ending".into());
        };
        // Somebody else may have asked the same meanwhile.
        let asked = Instant::now();
        let answer = match tokio::time::timeout(LIMIT, self.run(&words)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => Answer::of_failure(format!("cannot run {}: {error}", self.command_line(&words))),
            Err(_) => {
                Answer::of_failure(format!("{} did not end within {} s", self.command_line(&words), LIMIT.as_secs()))
            }
        };
        let mut answers = self.answers();
        if answers.len() >= MOST_ANSWERS {
            answers.retain(|_, answer| answer.at.elapsed() < FRESH);
        }
        if answers.get(&words).is_none_or(|known| known.at < asked) {
            answers.insert(words, answer.clone());
        }
        answer
    }

    async fn run(&self, words: &[String]) -> std::io::Result<Answer> {
        let mut child = tokio::process::Command::new(&self.program)
            .args(&self.arguments)
            // Before the words: a name that begins with a hyphen stands behind "--".
            .arg("--json")
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (text, said) =
            tokio::join!(read_some(stdout, LARGEST_ANSWER_BYTES), read_some(stderr, LARGEST_MESSAGES_BYTES));
        let (text, said, status) = (text?, said?, child.wait().await?);
        let mut records = records(&text);
        // What is wrong with a command line is said in words only.
        if records.is_empty() && !status.success() {
            let error = words_of(&said, "error:").join("; ");
            let failure = Failure { code: "usage".into(), error, ..Failure::default() };
            records.push(Record::Failure(failure));
        }
        Ok(Answer::of(records, status.code(), words_of(&said, "warning: ")))
    }

    /// Runs a command that changes something and ends soon. Nothing that is known stays.
    pub(super) async fn act(&self, words: &[String]) -> Answer {
        tracing::info!("console: {}", self.command_line(words));
        let answer = match tokio::time::timeout(LIMIT, self.run(words)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => Answer::of_failure(error.to_string()),
            Err(_) => Answer::of_failure(format!("no answer within {} s", LIMIT.as_secs())),
        };
        self.answers().clear();
        answer
    }

    /// Starts a command that becomes a job and goes on even if the console ends. Returns the job's id, or what the
    /// command said when it ended before it became one.
    pub(super) async fn start(self: &Arc<Self>, words: &[String]) -> Result<String, Answer> {
        tracing::info!("console: {}", self.command_line(words));
        let started = self.spawn(words).map_err(|error| Answer::of_failure(error.to_string()))?;
        let (pid, output, mut ended) = started;
        let end = Instant::now() + START_LIMIT;
        loop {
            let is_over = ended.try_recv();
            let jobs = self.ask(vec!["jobs".into(), "--limit".into(), "50".into()]).await;
            let of_child = |record: &Record| match record {
                Record::Job(job) if job.pid == pid => Some(job.job.clone()),
                _ => None,
            };
            // Process ids are used again: the newest job with it is meant.
            if let Some(job) = jobs.records.iter().rev().find_map(of_child) {
                self.answers().clear();
                return Ok(job);
            }
            if let Ok(exit_code) = is_over {
                return Err(answer_of(output, exit_code));
            }
            if Instant::now() > end {
                return Err(Answer::of_failure(format!("process {pid} has not become a job")));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    #[allow(clippy::type_complexity)]
    fn spawn(
        &self,
        words: &[String],
    ) -> std::io::Result<(u32, std::fs::File, tokio::sync::oneshot::Receiver<Option<i32>>)> {
        // A file without a name: the job may write to it long after the console has ended.
        let output = tempfile::tempfile()?;
        let mut child = std::process::Command::new(&self.program)
            .args(&self.arguments)
            // Before the words: a name that begins with a hyphen stands behind "--".
            .arg("--json")
            .args(words)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(Stdio::null())
            // Ctrl-C in the console's terminal is not for its jobs.
            .process_group(0)
            .spawn()?;
        let pid = child.id();
        let (sender, ended) = tokio::sync::oneshot::channel();
        // It is waited for even if nobody wants to know any more, so that it does not stay a zombie.
        std::thread::Builder::new().name("job".into()).spawn(move || {
            let status = child.wait();
            let _ = sender.send(status.ok().and_then(|status| status.code()));
        })?;
        Ok((pid, output, ended))
    }

    /// The running and the newest past jobs, newest first. When one has ended, what was known is forgotten.
    pub(super) async fn jobs(self: &Arc<Self>) -> Vec<Job> {
        let answer = self.look_up(&["jobs", "--limit", "200"], false).await;
        let jobs = answer.records.iter().rev().filter_map(|record| match record {
            Record::Job(job) => Some(job.clone()),
            _ => None,
        });
        let jobs: Vec<Job> = jobs.collect();
        let running: Vec<String> =
            jobs.iter().filter(|job| job.status == "running").map(|job| job.job.clone()).collect();
        let before = {
            let mut known = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *known, running.clone())
        };
        if before.iter().any(|job| !running.contains(job)) {
            self.answers().retain(|words, _| words[0] == "jobs");
        }
        jobs
    }

    fn answers(&self) -> MutexGuard<'_, HashMap<Vec<String>, Answer>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn read_some(stream: Option<impl tokio::io::AsyncRead + Unpin>, most: u64) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    if let Some(mut stream) = stream {
        (&mut stream).take(most).read_to_end(&mut text).await?;
        // The rest is not kept, but the command must be able to write it.
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
    }
    Ok(text)
}

/// The messages of a kind on standard error.
fn words_of(text: &[u8], kind: &str) -> Vec<String> {
    let prefix = format!("kvmb: {kind}");
    let text = String::from_utf8_lossy(text);
    text.lines().filter_map(|line| line.strip_prefix(&prefix)).map(|line| line.trim().to_owned()).collect()
}

fn answer_of(mut output: std::fs::File, exit_code: Option<i32>) -> Answer {
    let mut text = Vec::new();
    let read = output.seek(SeekFrom::Start(0)).and_then(|_| output.take(1 << 20).read_to_end(&mut text));
    let records = if read.is_ok() { records(&text) } else { Vec::new() };
    match records.is_empty() {
        true => Answer::of_failure(format!("the command ended with exit code {}", exit_code.unwrap_or(-1))),
        false => Answer::of(records, exit_code, Vec::new()),
    }
}

fn records(text: &[u8]) -> Vec<Record> {
    String::from_utf8_lossy(text).lines().filter_map(|line| Record::parse(line).ok()).collect()
}
