//! A log file that is rotated when it is too large: `log` becomes `log.1`, that becomes `log.2`, and so on.
//!
//! Existing libraries for this expect a single writer: they keep the file open, and rename it while others write.
//!
//! Here several runs may write to one log at once, and logrotate may rotate it, too. So the file is opened again for
//! every line, in append mode. A line is one write, which the kernel does not mix with others, and goes to the file
//! that has the name at that moment. Only a rotation needs a lock, which is taken on the file that is too large:
//!
//! | run A | run B |
//! | --- | --- |
//! | writes, finds the file too large, locks it | writes, finds the same |
//! | checks that the file still has that name, renames it | the lock is taken: leaves it to A |
//! | | or, if it comes later: the file has another name now, so there is nothing to do |

use rustix::fs::{FlockOperation, flock};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The maximum number of rotated files.
pub(crate) const MOST_KEPT: u64 = 1000;

/// The file and the error of the first line that could not be written.
static WRITE_FAULT: OnceLock<(PathBuf, io::Error)> = OnceLock::new();

/// Returns the log file that lacks lines, and why.
pub(crate) fn write_fault() -> Option<&'static (PathBuf, io::Error)> {
    WRITE_FAULT.get()
}

#[derive(Debug)]
pub(crate) struct RotatingFile {
    path: PathBuf,
    max_bytes: u64,
    keep: u64,
}

impl RotatingFile {
    /// Opens the first writable one of these paths, or returns the error for the last.
    pub(crate) fn open_first(
        places: &[PathBuf],
        max_bytes: u64,
        keep: u64,
    ) -> Result<RotatingFile, (PathBuf, io::Error)> {
        let mut last = (PathBuf::new(), io::Error::from(io::ErrorKind::NotFound));
        for path in places {
            match open(path) {
                Ok(_) => return Ok(RotatingFile { path: path.clone(), max_bytes, keep }),
                Err(error) => last = (path.clone(), error),
            }
        }
        Err(last)
    }

    fn write_line(&self, line: &[u8]) -> io::Result<()> {
        let mut file = open(&self.path)?;
        file.write_all(line)?;
        if file.metadata()?.len() > self.max_bytes {
            self.set_aside(&file)?;
        }
        Ok(())
    }

    /// Rotates the file, if its name still refers to `file` and no other process is rotating it.
    fn set_aside(&self, file: &File) -> io::Result<()> {
        if flock(file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(());
        }
        let opened = file.metadata()?;
        let Ok(named) = fs::metadata(&self.path) else { return Ok(()) };
        if (opened.dev(), opened.ino()) != (named.dev(), named.ino()) {
            return Ok(());
        }
        // Remove files beyond the limit, left from a time when more were kept. The last one within it is replaced.
        let last = self.keep.clamp(1, MOST_KEPT);
        for number in last + 1..=MOST_KEPT {
            if fs::remove_file(aside(&self.path, number)).is_err() {
                break;
            }
        }
        // Rename existing files only, up to the first gap: other processes keep writing, and the file grows until this
        // is done.
        let gap = (1..last).find(|number| !aside(&self.path, *number).exists()).unwrap_or(last);
        for number in (1..gap).rev() {
            fs::rename(aside(&self.path, number), aside(&self.path, number + 1))?;
        }
        fs::rename(&self.path, aside(&self.path, 1))
    }
}

fn open(path: &Path) -> io::Result<File> {
    // Opening a named pipe would block until there is a reader.
    if fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo()) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is a named pipe"));
    }
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

/// Returns the path of the file after this number of rotations.
pub(crate) fn aside(path: &Path, number: u64) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".{number}"));
    name.into()
}

impl Write for RotatingFile {
    /// Writes a whole line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.write_line(line).inspect_err(|error| {
            // The caller in the library drops this error, so a copy of it is kept.
            let error = error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error);
            let _ = WRITE_FAULT.set((self.path.clone(), error));
        })?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn lines_of(folder: &Path) -> Vec<String> {
        let mut lines = Vec::new();
        for entry in fs::read_dir(folder).unwrap() {
            lines.extend(fs::read_to_string(entry.unwrap().path()).unwrap().lines().map(str::to_owned));
        }
        lines
    }

    #[test]
    fn rotation_keeps_only_the_configured_number_of_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        // Left from a time when more were kept.
        (1..6).for_each(|number| fs::write(aside(&path, number), "old\n").unwrap());
        let mut file = RotatingFile::open_first(std::slice::from_ref(&path), 100, 2).unwrap();
        for number in 0..40 {
            file.write_all(format!("line {number:02} of forty ...\n").as_bytes()).unwrap();
        }
        let names: BTreeSet<String> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert!(names.iter().all(|name| ["log", "log.1", "log.2"].contains(&name.as_str())), "{names:?}");
        let lines = lines_of(folder.path());
        assert!(lines.contains(&"line 39 of forty ...".to_owned()) && !lines.contains(&"old".to_owned()), "{lines:?}");
        assert!(names.iter().all(|name| fs::metadata(folder.path().join(name)).unwrap().len() < 130));
    }

    #[test]
    fn first_writable_log_path_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let places = [folder.path().join("no/such/folder/log"), folder.path().join("log")];
        let file = RotatingFile::open_first(&places, 100, 2).unwrap();
        assert_eq!(file.path, places[1]);
        let (path, error) = RotatingFile::open_first(&places[..1], 100, 2).unwrap_err();
        assert_eq!((path, error.kind()), (places[0].clone(), io::ErrorKind::NotFound));
    }

    #[test]
    fn concurrent_writers_lose_no_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let path = &path;
                scope.spawn(move || {
                    // Each writer has its own handles, like a process.
                    let mut file = RotatingFile::open_first(std::slice::from_ref(path), 400, 900).unwrap();
                    for number in 0..250 {
                        file.write_all(format!("writer {writer} line {number:03}\n").as_bytes()).unwrap();
                    }
                });
            }
        });
        let lines = lines_of(folder.path());
        assert_eq!(lines.len(), 1000);
        assert_eq!(lines.iter().collect::<BTreeSet<_>>().len(), 1000);
        // The writer that first rotates the file has lines left to write. More is not certain: during the rotation the
        // others may write all their lines.
        assert!(fs::read_dir(folder.path()).unwrap().count() >= 2);
    }

    #[test]
    fn late_line_in_a_rotated_file_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = RotatingFile::open_first(std::slice::from_ref(&path), 10, 3).unwrap();
        let mut late = open(&path).unwrap();
        log.write_all(b"longer than ten bytes\n").unwrap();
        late.write_all(b"late\n").unwrap();
        log.set_aside(&late).unwrap();
        assert!(!path.exists(), "the late writer has nothing to set aside");
        log.write_all(b"next\n").unwrap();
        // The file is rotated even if another process has locked an older rotated file.
        flock(&late, FlockOperation::NonBlockingLockExclusive).unwrap();
        log.write_all(b"longer than ten bytes\n").unwrap();
        let read = |number| fs::read_to_string(aside(&path, number)).unwrap();
        assert_eq!(read(2), "longer than ten bytes\nlate\n");
        assert_eq!(read(1), "next\nlonger than ten bytes\n");
        assert!(!path.exists() && !aside(&path, 3).exists());
    }

    #[test]
    fn log_being_rotated_elsewhere_is_still_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = RotatingFile::open_first(std::slice::from_ref(&path), 10, 3).unwrap();
        let other = open(&path).unwrap();
        flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap();
        (0..3).for_each(|_| log.write_all(b"longer than ten bytes\n").unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 3);
        // The other process is killed before the rotation.
        drop(other);
        log.write_all(b"end\n").unwrap();
        assert!(!path.exists());
        assert_eq!(fs::read_to_string(aside(&path, 1)).unwrap().lines().count(), 4);
    }

    #[test]
    fn rotation_fills_a_gap_in_the_numbering() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        fs::write(aside(&path, 1), "one").unwrap();
        fs::write(aside(&path, 3), "three").unwrap();
        let mut log = RotatingFile::open_first(std::slice::from_ref(&path), 10, 5).unwrap();
        log.write_all(b"longer than ten bytes\n").unwrap();
        assert_eq!(fs::read_to_string(aside(&path, 2)).unwrap(), "one");
        assert_eq!(fs::read_to_string(aside(&path, 3)).unwrap(), "three");
    }
}
