//! Runs commands of kvmb: look-ups, whose answers are cached, and jobs, which continue without the console.

use super::job_watch::JobWatch;
use super::reading::{Lookup, OutputPart, Reading, read_piece, read_some, words_of};
use crate::record::{Failure, Job, Record};
use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::process::ChildStdout;
use tokio::sync::Semaphore;

/// Time limit of a look-up.
const LIMIT: Duration = Duration::from_secs(120);

/// Maximum size of an answer.
const LARGEST_ANSWER_BYTES: usize = 64 << 20;

/// How much of standard error is read.
const LARGEST_MESSAGES_BYTES: u64 = 64 << 10;

/// The maximum number of concurrent look-ups.
const MOST_LOOKUPS: usize = 4;

/// The maximum number of concurrent downloads.
const MOST_DOWNLOADS: usize = 4;

/// Time limit of a look-up with many records; those that have arrived by then are the answer.
const LISTING_LIMIT: Duration = Duration::from_secs(60);

/// The number of cached answers.
const MOST_ANSWERS: usize = 64;

/// How long a started command may take until it is a job.
const START_LIMIT: Duration = Duration::from_secs(20);

/// Answers older than this are refreshed; meanwhile the old one is shown with its age.
const FRESH: Duration = Duration::from_secs(20);

/// Maximum age of answers about running jobs.
const FRESH_JOBS: Duration = Duration::from_millis(500);

/// The option that makes commands print records.
const JSON: &str = "--json";

/// The answer of a command.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) records: Arc<Vec<Record>>,
    /// The exit code; None if it was killed.
    pub(super) exit_code: Option<i32>,
    /// Its warnings.
    pub(super) warnings: Arc<Vec<String>>,
    asked: Instant,
    pub(super) at: Instant,
}

impl Answer {
    fn of_failure(error: String) -> Answer {
        let failure = Failure { code: "failed".into(), error, ..Failure::default() };
        Answer::of(vec![Record::Failure(failure)], None, Vec::new())
    }

    fn of(records: Vec<Record>, exit_code: Option<i32>, warnings: Vec<String>) -> Answer {
        let (records, warnings, at) = (Arc::new(records), Arc::new(warnings), Instant::now());
        Answer { records, exit_code, warnings, asked: at, at }
    }

    pub(super) fn failures(&self) -> impl Iterator<Item = &Failure> {
        self.records.iter().filter_map(|record| match record {
            Record::Failure(failure) => Some(failure),
            _ => None,
        })
    }
}

#[derive(Debug)]
pub(super) struct Toolbox {
    program: PathBuf,
    arguments: Vec<String>,
    lookups: Arc<Semaphore>,
    downloads: Arc<Semaphore>,
    /// Serialises the start of jobs, so that the second of two equal ones finds the first.
    starting: tokio::sync::Mutex<()>,
    answers: Mutex<HashMap<Vec<String>, Answer>>,
    /// Look-ups in progress, so that concurrent requests share an answer.
    asking: Mutex<HashMap<Vec<String>, Arc<tokio::sync::Mutex<()>>>>,
    watch: Arc<JobWatch>,
    /// The number of ended jobs when the cache was last cleared.
    forgotten: Mutex<u64>,
}

impl Toolbox {
    pub(super) fn new(program: PathBuf, arguments: Vec<String>) -> Toolbox {
        let (answers, asking, forgotten) = (Mutex::default(), Mutex::default(), Mutex::default());
        let [lookups, downloads] = [MOST_LOOKUPS, MOST_DOWNLOADS].map(|most| Arc::new(Semaphore::new(most)));
        let (starting, watch) = (tokio::sync::Mutex::new(()), Arc::new(JobWatch::new()));
        Toolbox { program, arguments, lookups, downloads, starting, answers, asking, watch, forgotten }
    }

    /// Whether the console adds this word to every command line.
    pub(super) fn is_own_argument(&self, word: &str) -> bool {
        word == JSON || self.arguments.iter().any(|own| own == word)
    }

    /// Returns the command line that a person would type for these arguments.
    pub(super) fn command_line(&self, words: &[String]) -> String {
        let words: Option<Vec<String>> = words.iter().map(|word| quoted(word)).collect();
        words.map(|words| format!("kvmb {}", words.join(" "))).unwrap_or_default()
    }

    /// Returns the answer of a command that changes nothing, from the cache if it is fresh. `again` ignores the cache.
    pub(super) async fn look_up(self: &Arc<Self>, words: &[&str], again: bool) -> Answer {
        if again {
            return self.look_up_within(words, Duration::ZERO).await;
        }
        if words[0] == "jobs" {
            return self.look_up_within(words, FRESH_JOBS).await;
        }
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        self.forget_after_jobs();
        let known = self.answers().get(&words).cloned();
        match known {
            Some(answer) if answer.at.elapsed() < FRESH => answer,
            Some(answer) => {
                let (toolbox, words) = (Arc::clone(self), words);
                tokio::spawn(async move { toolbox.ask(words).await });
                answer
            }
            None => self.ask(words).await,
        }
    }

    /// Like `look_up`, with a maximum age of the answer. Frequent requests share one look-up.
    pub(super) async fn look_up_within(&self, words: &[&str], age: Duration) -> Answer {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        self.forget_after_jobs();
        let known = self.answers().get(&words).cloned();
        match known.filter(|answer| answer.at.elapsed() < age) {
            Some(answer) => answer,
            None => self.ask_since(words, Instant::now().checked_sub(age).unwrap_or_else(Instant::now)).await,
        }
    }

    /// Returns the checks of all machines with their last runs: one answer for all pages.
    pub(super) async fn status(self: &Arc<Self>, again: bool) -> Answer {
        self.look_up(&["status", "--runs", "30"], again).await
    }

    async fn ask(&self, words: Vec<String>) -> Answer {
        self.ask_since(words, Instant::now()).await
    }

    /// Returns an answer that was requested at this moment or later.
    async fn ask_since(&self, words: Vec<String>, wanted: Instant) -> Answer {
        let turn = {
            let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
            asking.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(asking.entry(words.clone()).or_default())
        };
        let _one_at_a_time = turn.lock().await;
        // Another request may have got the answer meanwhile.
        if let Some(answer) = self.answers().get(&words).filter(|known| known.asked >= wanted) {
            return answer.clone();
        }
        let Ok(_permit) = self.lookups.acquire().await else {
            return Answer::of_failure("the console is ending".into());
        };
        let asked = Instant::now();
        let answer = match tokio::time::timeout(LIMIT, self.run(&words, None)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => Answer::of_failure(format!("cannot run {}: {error}", self.command_line(&words))),
            Err(_) => {
                Answer::of_failure(format!("{} did not end within {} s", self.command_line(&words), LIMIT.as_secs()))
            }
        };
        let answer = Answer { asked, ..answer };
        let mut answers = self.answers();
        if answers.len() >= MOST_ANSWERS {
            answers.retain(|_, answer| answer.at.elapsed() < FRESH);
        }
        if answers.get(&words).is_none_or(|known| known.at < asked) {
            answers.insert(words, answer.clone());
        }
        answer
    }

    /// Returns a kvmb command.
    pub(super) fn command(&self, words: &[String]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(&self.program);
        // `--json` precedes the words, because names that begin with a hyphen follow after `--`.
        command.args(&self.arguments).arg(JSON).args(words);
        command
    }

    async fn run(&self, words: &[String], input: Option<&str>) -> std::io::Result<Answer> {
        let mut command = self.command(words);
        let mut lookup = Lookup::start(command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() }))?;
        if let (Some(mut stdin), Some(input)) = (lookup.stdin(), input) {
            // A command that does not read its input has already ended.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        let (stdout, stderr) = lookup.output();
        let (read, said) =
            tokio::join!(read_records(stdout, LARGEST_ANSWER_BYTES), read_some(stderr, LARGEST_MESSAGES_BYTES));
        let ((mut records, is_whole), said, status) = (read?, said?, lookup.wait().await?);
        if !is_whole {
            // Otherwise, a page would take the rest for missing: points, for example.
            records.push(Record::Failure(Failure {
                code: "failed".into(),
                error: "the answer is too large, and the end of it is missing here".into(),
                hint: Some(self.command_line(words)),
                ..Failure::default()
            }));
        }
        // Errors in the command line are reported as text only.
        if records.is_empty() && !status.success() {
            let error = words_of(&said, "error:").join("; ");
            let failure = Failure { code: "usage".into(), error, ..Failure::default() };
            records.push(Record::Failure(failure));
        }
        Ok(Answer::of(records, status.code(), words_of(&said, "warning: ")))
    }

    /// Returns the first records of a command that may have very many, and whether they are all. The answer is not
    /// cached.
    pub(super) async fn first_records(&self, words: &[String], most: usize) -> (Answer, bool) {
        let Ok(permit) = Arc::clone(&self.lookups).acquire_owned().await else {
            return (Answer::of_failure("the console is ending".into()), true);
        };
        let mut reading = match Reading::start(self.command(words), permit) {
            Ok(reading) => reading,
            Err(error) => return (Answer::of_failure(error.to_string()), true),
        };
        let (mut records, mut line, mut end) = (Vec::new(), Vec::new(), None);
        let take = async {
            while records.len() <= most {
                match reading.next().await {
                    Some(OutputPart::Bytes(bytes)) => take_records(&bytes, &mut line, &mut records),
                    Some(OutputPart::End(ended)) => {
                        end = Some(ended);
                        break;
                    }
                    None => break,
                }
            }
        };
        let is_in_time = tokio::time::timeout(LISTING_LIMIT, take).await.is_ok();
        let is_complete = is_in_time && end.is_some() && records.len() <= most;
        records.truncate(most);
        if let Some(end) = end.as_ref().filter(|end| records.is_empty() && end.exit_code != Some(0)) {
            let failure = Failure { code: "failed".into(), error: end.errors.join("; "), ..Failure::default() };
            records.push(Record::Failure(failure));
        }
        (Answer::of(records, end.and_then(|end| end.exit_code), Vec::new()), is_complete)
    }

    /// Starts a command whose output is passed on to the browser; None if too many are running.
    pub(super) fn download(&self, words: &[String]) -> Option<std::io::Result<Reading>> {
        let permit = Arc::clone(&self.downloads).try_acquire_owned().ok()?;
        tracing::info!("console: {}", self.command_line(words));
        Some(Reading::start(self.command(words), permit))
    }

    /// Runs a short command that changes something, and clears the cache.
    pub(super) async fn act(&self, words: &[String]) -> Answer {
        self.act_with(words, None).await
    }

    /// Like `act`, with this text as standard input, where nobody else can see it.
    pub(super) async fn act_with(&self, words: &[String], input: Option<&str>) -> Answer {
        tracing::info!("console: {}", self.command_line(words));
        let answer = match tokio::time::timeout(LIMIT, self.run(words, input)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => Answer::of_failure(error.to_string()),
            Err(_) => Answer::of_failure(format!("no answer within {} s", LIMIT.as_secs())),
        };
        self.forget();
        answer
    }

    /// Clears the cache, because something may have changed.
    pub(super) fn forget(&self) {
        self.answers().clear();
    }

    /// Starts a command as a job that continues even if the console ends. Returns the job's id, or the command's answer
    /// if it ended before it became a job. If a job of the console with the same command line is already running,
    /// returns that one, so that a form that was submitted twice starts one job.
    pub(super) async fn start(self: &Arc<Self>, words: &[String]) -> Result<String, Answer> {
        let _one_at_a_time = self.starting.lock().await;
        if let Some(job) = self.same_job(words).await {
            return Ok(job);
        }
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
            // PIDs are reused, so take the newest job with this one.
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

    /// Returns the console's running job with this command line.
    pub(super) async fn same_job(&self, words: &[String]) -> Option<String> {
        let own = self.arguments.iter().map(String::as_str).chain([JSON]);
        let line: Vec<&str> = own.chain(words.iter().map(String::as_str)).collect();
        let running = self.ask(vec!["jobs".into(), "--running".into()]).await;
        running.records.iter().find_map(|record| match record {
            Record::Job(job) if job.origin == "console" && job.arguments == line => Some(job.job.clone()),
            _ => None,
        })
    }

    #[allow(clippy::type_complexity)]
    fn spawn(
        &self,
        words: &[String],
    ) -> std::io::Result<(u32, std::fs::File, tokio::sync::oneshot::Receiver<Option<i32>>)> {
        // An unlinked file: the job may write to it long after the console has ended.
        let output = tempfile::tempfile()?;
        let mut child = std::process::Command::new(&self.program)
            .args(&self.arguments)
            // `--json` precedes the words, because names that begin with a hyphen follow after `--`.
            .arg(JSON)
            .args(words)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(Stdio::null())
            // Ctrl-C in the console's terminal must not reach its jobs.
            .process_group(0)
            .spawn()?;
        let pid = child.id();
        let (sender, ended) = tokio::sync::oneshot::channel();
        // Wait for the child in any case, so that it does not remain a zombie.
        std::thread::Builder::new().name("job".into()).spawn(move || {
            let status = child.wait();
            let _ = sender.send(status.ok().and_then(|status| status.code()));
        })?;
        Ok((pid, output, ended))
    }

    /// Returns the running and the newest past jobs, newest first. All callers share one command that follows them.
    pub(super) async fn jobs(self: &Arc<Self>) -> Vec<Job> {
        let follow = || {
            let mut command = tokio::process::Command::new(&self.program);
            command.args(&self.arguments).args([JSON, "jobs", "--follow"]);
            command
        };
        let first = async {
            let answer = self.ask(vec!["jobs".into()]).await;
            let jobs = answer.records.iter().filter_map(|record| match record {
                Record::Job(job) => Some(job.clone()),
                _ => None,
            });
            jobs.collect()
        };
        self.watch.follow(follow, first).await;
        self.watch.jobs()
    }

    /// Returns a receiver that is notified when a job starts, progresses or ends.
    pub(super) fn job_changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.watch.subscribe()
    }

    /// Clears the cache when a job has ended.
    fn forget_after_jobs(&self) {
        let ended = self.watch.ended();
        let mut forgotten = self.forgotten.lock().unwrap_or_else(PoisonError::into_inner);
        if *forgotten != ended {
            *forgotten = ended;
            self.answers().clear();
        }
    }

    fn answers(&self) -> MutexGuard<'_, HashMap<Vec<String>, Answer>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Quotes a word for a shell. In `--flag=value` and `key=value`, only the value is quoted.
fn quoted(word: &str) -> Option<String> {
    let quoted = |word: &str| shlex::try_quote(word).ok().map(Into::into);
    let is_plain =
        |key: &str| !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    match word.split_once('=').filter(|(key, _)| is_plain(key)) {
        Some((key, "")) => Some(format!("{key}=")),
        Some((key, value)) => quoted(value).map(|value: String| format!("{key}={value}")),
        None => quoted(word),
    }
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

/// Returns the records in the first `most_bytes` of an output, and whether that is all of it. Parses them as they
/// arrive, because the text needs more memory than the records.
async fn read_records(stdout: Option<ChildStdout>, most_bytes: usize) -> std::io::Result<(Vec<Record>, bool)> {
    let (mut records, mut line, mut is_whole) = (Vec::new(), Vec::new(), true);
    let Some(mut stdout) = stdout else { return Ok((records, is_whole)) };
    let mut left_bytes = most_bytes;
    loop {
        let piece = read_piece(&mut stdout).await?;
        if piece.is_empty() {
            break;
        }
        // Discard the rest, but keep reading so that the command can write it.
        let kept = &piece[..piece.len().min(left_bytes)];
        left_bytes -= kept.len();
        is_whole &= kept.len() == piece.len();
        take_records(kept, &mut line, &mut records);
    }
    records.extend(Record::parse(String::from_utf8_lossy(&line).trim_end()).ok());
    records.shrink_to_fit();
    Ok((records, is_whole))
}

/// Parses the records of all complete lines, and keeps the rest of the last one.
fn take_records(bytes: &[u8], line: &mut Vec<u8>, taken: &mut Vec<Record>) {
    for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
        line.extend_from_slice(piece);
        if piece.ends_with(b"\n") {
            taken.extend(Record::parse(String::from_utf8_lossy(line).trim_end()).ok());
            line.clear();
        }
    }
}

fn records(text: &[u8]) -> Vec<Record> {
    String::from_utf8_lossy(text).lines().filter_map(|line| Record::parse(line).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_quoted_for_the_shell() {
        let toolbox = Toolbox::new(PathBuf::new(), Vec::new());
        let line = |words: &[&str]| toolbox.command_line(&words.iter().map(|word| (*word).into()).collect::<Vec<_>>());
        assert_eq!(line(&["prune", "--keep-last=1"]), "kvmb prune --keep-last=1");
        assert_eq!(line(&["schedule", "install", "--cron=0 2 * * *"]), "kvmb schedule install --cron='0 2 * * *'");
        assert_eq!(line(&["config", "set", "a.b=c d", "repo="]), "kvmb config set a.b='c d' repo=");
        assert_eq!(line(&["backup", "--", "-a b=c", "$(id)", ""]), "kvmb backup -- '-a b=c' '$(id)' ''");
    }

    /// Returns a command that records that it was run, and prints this number of records.
    fn noting(folder: &tempfile::TempDir, records: usize) -> Arc<Toolbox> {
        let runs = folder.path().join("runs");
        let record = r#"{"type":"file","path":"/x","size_bytes":1}"#;
        let script = format!("echo >> '{}'; yes '{record}' | head -n {records}", runs.display());
        Arc::new(Toolbox::new("/bin/sh".into(), vec!["-c".into(), script, "sh".into()]))
    }

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work)
    }

    #[test]
    fn concurrent_lookups_run_the_command_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let toolbox = noting(&folder, 1);
        let runs = || std::fs::read_to_string(folder.path().join("runs")).expect("runs").len();
        block_on(async {
            let words = ["log", "0123abcd"];
            let hour = Duration::from_secs(3600);
            tokio::join!(toolbox.look_up_within(&words, hour), toolbox.look_up_within(&words, hour));
            assert_eq!(toolbox.look_up_within(&words, hour).await.records.len(), 1);
            assert_eq!(runs(), 1);
            toolbox.look_up_within(&words, Duration::ZERO).await;
            toolbox.look_up(&words, true).await;
            toolbox.look_up(&words, false).await;
            assert_eq!(runs(), 3);
        });
    }

    #[test]
    fn cut_answer_is_not_taken_for_a_whole_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let toolbox = noting(&folder, 20);
        block_on(async {
            for (most_bytes, is_whole) in [(1 << 20, true), (100, false)] {
                let mut lookup = Lookup::start(&mut toolbox.command(&["points".to_owned()])).expect("a command");
                let (records, is_all) = read_records(lookup.output().0, most_bytes).await.expect("records");
                assert_eq!((records.len() == 20, is_all), (is_whole, is_whole));
                lookup.wait().await.expect("its end");
            }
        });
    }

    #[test]
    fn only_the_first_of_many_records_are_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let words = ["files".to_owned()];
        let (few, many) = (noting(&folder, 20), noting(&folder, 1_000_000_000));
        block_on(async {
            let (answer, is_complete) = few.first_records(&words, 20).await;
            assert_eq!((answer.records.len(), answer.exit_code, is_complete), (20, Some(0), true));
            let (answer, is_complete) = many.first_records(&words, 3000).await;
            assert_eq!((answer.records.len(), is_complete), (3000, false));
        });
    }
}
