//! The files of the history: `history/REPOSITORY/UUID.json` below kvmb's data folder, one for each machine in each
//! repository, and `history/REPOSITORY/repository`, about the repository as a whole.
//!
//! No part of a name comes from a machine: the file is named by the UUID, in normalized form, and the folder by the
//! SHA-256 of the repository's address. Folders have mode 0700, files 0600.

use super::{MachineMemory, RepoMemory, VERSION};
use crate::atomic_file;
use crate::record::Time;
use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// The maximum size of a file; a larger one is not a history file.
const LARGEST_FILE_BYTES: u64 = 256 << 10;

/// The maximum number of machines per repository, and of repositories. The most recently used ones are kept.
const MOST_MACHINES: usize = 4096;
const MOST_REPOSITORIES: usize = 64;

/// Why the history cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A file or a folder is inaccessible.
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    /// A file is not a history file.
    #[error("{} is not a history file: {reason}", path.display())]
    NotHistory { path: PathBuf, reason: String },
    /// A machine without a valid UUID.
    #[error("{uuid:?} is not a UUID")]
    NoUuid { uuid: String },
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { action, path, source }
}

/// The history of the machines in one repository.
#[derive(Debug, Clone)]
pub(crate) struct History {
    repo: String,
    folder: PathBuf,
}

impl History {
    /// Returns the history of the repository with this address, below kvmb's data folder. Creates nothing yet.
    pub(crate) fn of(data_folder: &Path, repo: &str) -> History {
        let name = hex::encode(&Sha256::digest(repo)[..16]);
        History { repo: repo.to_owned(), folder: data_folder.join("history").join(name) }
    }

    fn file(&self, uuid: &str) -> Result<(PathBuf, String), Error> {
        let uuid = Uuid::parse_str(uuid).map_err(|_| Error::NoUuid { uuid: uuid.to_owned() })?;
        let uuid = uuid.hyphenated().to_string();
        Ok((self.folder.join(format!("{uuid}.json")), uuid))
    }

    /// Returns the history of all machines, and the errors of unreadable files.
    pub(crate) fn all(&self) -> (Vec<MachineMemory>, Vec<Error>) {
        let (mut memories, mut errors) = (Vec::new(), Vec::new());
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return (memories, errors),
            Err(error) => return (memories, vec![io("read", &self.folder)(error)]),
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.extension().is_some_and(|extension| extension == "json") {
                match self.read(&path) {
                    Ok(memory) => memories.push(memory),
                    // Removed meanwhile.
                    Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {}
                    Err(error) => errors.push(error),
                }
            }
        }
        memories.sort_by(|a, b| (&a.machine, &a.uuid).cmp(&(&b.machine, &b.uuid)));
        (memories, errors)
    }

    fn read(&self, path: &Path) -> Result<MachineMemory, Error> {
        let memory: MachineMemory = parse(path)?;
        let is_named = self.file(&memory.uuid).is_ok_and(|(file, _)| file == path);
        self.check(path, memory.version, &memory.repo, is_named)?;
        Ok(memory)
    }

    fn check(&self, path: &Path, version: u32, repo: &str, is_named: bool) -> Result<(), Error> {
        let bad = |reason: &str| Error::NotHistory { path: path.to_owned(), reason: reason.to_owned() };
        match () {
            () if version != VERSION => Err(bad("it is of another version")),
            () if repo != self.repo || !is_named => Err(bad("it is about something else")),
            () => Ok(()),
        }
    }

    /// Returns the history of the repository as a whole, or `None` if there is none.
    pub(crate) fn of_repo(&self) -> Result<Option<RepoMemory>, Error> {
        let path = self.repo_file();
        let memory: RepoMemory = match parse(&path) {
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => return Ok(None),
            parsed => parsed?,
        };
        self.check(&path, memory.version, &memory.repo, true)?;
        Ok(Some(memory))
    }

    /// Changes the history of the repository as a whole. An invalid file is replaced.
    pub(crate) fn change_repo(&self, now: Time, change: impl FnOnce(&mut RepoMemory)) -> Result<(), Error> {
        let path = self.repo_file();
        let _lock = self.make_and_lock()?;
        let known = self.of_repo().ok().flatten();
        let is_new = known.is_none();
        let mut memory = known.unwrap_or_else(|| RepoMemory::new(&self.repo, now));
        change(&mut memory);
        write(&path, &memory)?;
        if is_new {
            self.remove_oldest();
        }
        Ok(())
    }

    fn repo_file(&self) -> PathBuf {
        self.folder.join("repository")
    }

    /// Creates the folders and locks them, because two runs may change the same file. The lock is only held briefly.
    fn make_and_lock(&self) -> Result<File, Error> {
        let make = |folder: &Path, mode| DirBuilder::new().recursive(true).mode(mode).create(folder);
        // QEMU's user must be able to traverse the data folder.
        if let Some(data) = self.folder.parent().and_then(Path::parent) {
            make(data, 0o711).map_err(io("create", data))?;
        }
        make(&self.folder, 0o700).map_err(io("create", &self.folder))?;
        let lock = File::open(&self.folder).map_err(io("open", &self.folder))?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|error| io("lock", &self.folder)(error.into()))?;
        Ok(lock)
    }

    fn remove_oldest(&self) {
        keep_newest(&self.folder, MOST_MACHINES);
        self.folder.parent().into_iter().for_each(|all| keep_newest(all, MOST_REPOSITORIES));
    }

    /// Changes the history of a machine. An invalid file is replaced.
    pub(crate) fn change(
        &self,
        machine: &str,
        uuid: &str,
        now: Time,
        change: impl FnOnce(&mut MachineMemory),
    ) -> Result<(), Error> {
        let (path, uuid) = self.file(uuid)?;
        let _lock = self.make_and_lock()?;
        let known = self.read(&path);
        let is_new = known.is_err();
        let mut memory = known.unwrap_or_else(|_| MachineMemory::new(&self.repo, &uuid, now));
        machine.clone_into(&mut memory.machine);
        change(&mut memory);
        write(&path, &memory)?;
        if is_new {
            self.remove_oldest();
        }
        Ok(())
    }
}

fn parse<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let mut text = String::new();
    let file = atomic_file::open(path).map_err(io("read", path))?;
    file.take(LARGEST_FILE_BYTES).read_to_string(&mut text).map_err(io("read", path))?;
    let bad = |error: serde_json::Error| Error::NotHistory { path: path.to_owned(), reason: error.to_string() };
    serde_json::from_str(&text).map_err(bad)
}

fn write(path: &Path, memory: &impl Serialize) -> Result<(), Error> {
    let text = serde_json::to_vec(memory).map_err(|error| io("write", path)(error.into()))?;
    atomic_file::write(path, &text, 0o600).map_err(io("write", path))
}

/// Removes the oldest entries of a folder until `most` are left. Failures are harmless.
fn keep_newest(folder: &Path, most: usize) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut aged: Vec<_> = entries.filter_map(|e| Some((e.metadata().ok()?.modified().ok()?, e.path()))).collect();
    if aged.len() <= most {
        return;
    }
    aged.sort();
    for (_, path) in aged.iter().take(aged.len() - most) {
        let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    }
}

#[cfg(test)]
mod tests {
    use super::super::{KnownPoint, MachineRun, RunOutcome, Verification, VerifiedDepth};
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const UUID: &str = "6f2a7c3e-0d6a-4b6e-9d1c-3f2f6c1e0a11";

    fn at(text: &str) -> Time {
        text.parse().unwrap()
    }

    fn run(result: RunOutcome, hour: u32) -> MachineRun {
        let began_at = at(&format!("2026-11-20T{hour:02}:00:00+01:00"));
        let point = KnownPoint { point: format!("p{hour}"), captured_at: began_at };
        MachineRun {
            run: "5f0c2a9e".into(),
            command: "backup".into(),
            began_at,
            ended_at: began_at + chrono::TimeDelta::seconds(90),
            result,
            code: None,
            error: Some("é".repeat(5000)),
            point: (result == RunOutcome::Done).then_some(point),
            read_bytes: 1,
            new_bytes: 2,
            stored_bytes: 3,
        }
    }

    #[test]
    fn history_is_kept_per_machine_and_repository_in_private_files() {
        let data = tempfile::tempdir().unwrap();
        let history = History::of(data.path(), "/backup");
        assert!(history.all().0.is_empty());
        let now = at("2026-11-20T01:00:00+01:00");
        let note = |name: &str, run: MachineRun| history.change(name, UUID, now, |m| m.note_run(run)).unwrap();
        note("../../vm \"1\"\n", run(RunOutcome::Done, 2));
        note("vm1", run(RunOutcome::Failed, 3));
        let (memories, errors) = history.all();
        assert!(errors.is_empty(), "{errors:?}");
        let memory = &memories[0];
        assert_eq!((memories.len(), memory.machine.as_str(), memory.since), (1, "vm1", now));
        assert_eq!(memory.last_run.as_ref().unwrap().result, RunOutcome::Failed);
        assert_eq!(memory.last_success.as_ref().unwrap().duration_seconds(), 90.0);
        assert_eq!(memory.newest_point.as_ref().unwrap().point, "p2");
        let (path, _) = history.file(&UUID.to_uppercase()).unwrap();
        assert!(fs::metadata(&path).unwrap().len() < LARGEST_FILE_BYTES / 8);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&history.folder)), (0o600, 0o700));
        assert_eq!(mode(history.folder.parent().unwrap()), 0o700);
        // Another repository has a separate history.
        assert!(History::of(data.path(), "/other").all().0.is_empty());
        assert!(matches!(history.change("x", "../../x", now, |_| ()), Err(Error::NoUuid { .. })));
    }

    #[test]
    fn run_history_of_hourly_backups_covers_days_within_its_limit() {
        let mut memory = MachineMemory::new("/backup", UUID, at("2026-11-01T00:00:00Z"));
        for hour in 0..24 * 70 {
            let mut run = run(RunOutcome::Done, 1);
            run.ended_at = at("2026-09-01T00:30:00Z") + chrono::TimeDelta::hours(hour);
            memory.note_run(run);
        }
        let days: std::collections::BTreeSet<_> = memory.runs.iter().map(|run| run.ended_at.date_naive()).collect();
        assert_eq!((memory.runs.len(), days.len()), (60, 45));
        assert!(memory.runs.is_sorted_by_key(|run| run.ended_at));
        assert!(serde_json::to_vec(&memory).unwrap().len() < 32 << 10);
    }

    #[test]
    fn an_older_point_that_is_copied_later_is_not_the_newest() {
        let mut memory = MachineMemory::new("/backup", UUID, at("2026-11-20T01:00:00Z"));
        memory.note_run(run(RunOutcome::Done, 9));
        memory.note_run(run(RunOutcome::Done, 4));
        assert_eq!(memory.newest_point.unwrap().point, "p9");
    }

    #[test]
    fn damaged_point_is_cleared_only_by_an_equally_deep_verification() {
        let mut memory = MachineMemory::new("/backup", UUID, at("2026-11-20T01:00:00Z"));
        let verification =
            |point: &str, depth| Verification { point: point.into(), at: at("2026-11-20T02:00:00Z"), depth };
        memory.note_damage(verification("a", VerifiedDepth::Full));
        memory.note_damage(verification("a", VerifiedDepth::Full));
        memory.note_whole(verification("b", VerifiedDepth::Full));
        memory.note_whole(verification("a", VerifiedDepth::Quick));
        assert_eq!(memory.damaged.len(), 1);
        memory.note_whole(verification("a", VerifiedDepth::Full));
        assert!(memory.damaged.is_empty());
        (0..100).for_each(|number| memory.note_damage(verification(&number.to_string(), VerifiedDepth::Quick)));
        assert_eq!(memory.damaged.len(), super::super::MOST_DAMAGED_POINTS);
        assert_eq!(memory.damaged.last().unwrap().point, "99");
    }

    #[test]
    fn invalid_history_file_is_reported_and_replaced() {
        let data = tempfile::tempdir().unwrap();
        let history = History::of(data.path(), "/backup");
        let now = at("2026-11-20T01:00:00+01:00");
        history.change("vm1", UUID, now, |_| ()).unwrap();
        let (path, _) = history.file(UUID).unwrap();
        for text in ["", "{}", "\u{0}\u{0}", &fs::read_to_string(&path).unwrap().replace("/backup", "/other")] {
            fs::write(&path, text).unwrap();
            assert!(matches!(history.all().1[..], [Error::NotHistory { .. }]), "{text}");
            history.change("vm1", UUID, now, |_| ()).unwrap();
            assert_eq!(history.all().0.len(), 1);
        }
    }

    #[test]
    fn repository_history_is_stored_in_a_separate_file() {
        let data = tempfile::tempdir().unwrap();
        let history = History::of(data.path(), "/backup");
        assert_eq!(history.of_repo().unwrap(), None);
        let now = at("2026-11-20T01:00:00+01:00");
        history.change("vm1", UUID, now, |_| ()).unwrap();
        history.change_repo(now, |memory| memory.note_free_space(now, 5)).unwrap();
        let later = at("2026-11-21T01:00:00+01:00");
        history.change_repo(later, |memory| memory.note_free_space(later, 4)).unwrap();
        let memory = history.of_repo().unwrap().unwrap();
        assert_eq!((memory.since, memory.free_space.len()), (now, 2));
        let (memories, errors) = history.all();
        assert_eq!((memories.len(), errors.len()), (1, 0));
        assert_eq!(History::of(data.path(), "/other").of_repo().unwrap(), None);
        fs::write(history.repo_file(), "{").unwrap();
        assert!(matches!(history.of_repo(), Err(Error::NotHistory { .. })));
        history.change_repo(later, |_| ()).unwrap();
        assert_eq!(history.of_repo().unwrap().unwrap().since, later);
    }

    #[test]
    fn only_the_newest_files_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..5u64 {
            let file = File::create(folder.path().join(number.to_string())).unwrap();
            file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(number)).unwrap();
        }
        keep_newest(folder.path(), 2);
        let mut left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["3", "4"]);
    }
}
