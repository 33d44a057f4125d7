//! Small files that are there whole or not at all, whoever reads them at whatever moment.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Writes `content` beside `path` with this mode, syncs it and renames it into its place.
pub fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    temporary(path, content, mode)?.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// As [`write()`], but fails with [`ErrorKind::AlreadyExists`] where `path` exists: of several creators exactly one succeeds.
/// Where the file system has no hard links, a reader may see the file before it is complete.
pub fn create(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let temporary = temporary(path, content, mode)?;
    publish(temporary.path(), path, content, mode)?;
    File::open(folder_of(path))?.sync_all()
}

/// Gives the complete file `temporary`, which has this `content`, the name `path`, unless that exists. `temporary` stays.
pub fn publish(temporary: &Path, path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    match link(temporary, path) {
        // The answer of a network file system was lost and the call repeated.
        Err(error) if error.kind() == ErrorKind::AlreadyExists && is_same_file(temporary, path) => Ok(()),
        Err(error) if has_no_links(&error) => create_in_place(path, content, mode),
        other => other,
    }
}

/// A build with debug assertions takes `$KVMB_TEST_NO_LINKS=1` for a file system without hard links.
fn link(temporary: &Path, path: &Path) -> io::Result<()> {
    if cfg!(debug_assertions) && std::env::var_os("KVMB_TEST_NO_LINKS").is_some() {
        return Err(rustix::io::Errno::PERM.into());
    }
    fs::hard_link(temporary, path)
}

/// What FAT, exFAT, SMB and FUSE answer to link().
fn has_no_links(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    // EXDEV: some overlays refuse links although both names are in one folder.
    errno.is_some_and(|errno| {
        [Errno::PERM, Errno::OPNOTSUPP, Errno::NOSYS, Errno::MLINK, Errno::XDEV, Errno::ACCESS].contains(&errno)
    })
}

fn create_in_place(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    let written = file.write_all(content).and_then(|()| file.sync_all());
    if written.is_err() {
        let _ = fs::remove_file(path);
    }
    written
}

fn is_same_file(a: &Path, b: &Path) -> bool {
    let identity = |path| fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
    matches!((identity(a), identity(b)), (Ok(a), Ok(b)) if a == b)
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn temporary(path: &Path, content: &[u8], mode: u32) -> io::Result<tempfile::NamedTempFile> {
    // cron, systemd and the node exporter pass over names that begin with a dot or end in something else.
    let mut file = tempfile::Builder::new()
        .prefix(".kvmb-")
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(folder_of(path))?;
    file.write_all(content)?;
    // Whatever the umask takes away.
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_created_once_and_never_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let created: Vec<bool> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8u8)
                .map(|thread| {
                    let path = &path;
                    scope.spawn(move || create(path, &[thread; 1000], 0o600).is_ok())
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(created.iter().filter(|created| **created).count(), 1);
        let winner = created.iter().position(|created| *created).unwrap() as u8;
        assert_eq!(fs::read(&path).unwrap(), [winner; 1000]);
        assert_eq!(create(&path, b"x", 0o600).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(create_in_place(&path, b"x", 0o600).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn what_file_systems_without_hard_links_answer_is_recognised() {
        use rustix::io::Errno;
        for errno in [Errno::PERM, Errno::OPNOTSUPP, Errno::NOSYS, Errno::MLINK] {
            assert!(has_no_links(&errno.into()), "{errno}");
        }
        for errno in [Errno::NOSPC, Errno::EXIST, Errno::NOENT, Errno::ROFS] {
            assert!(!has_no_links(&errno.into()), "{errno}");
        }
    }
}
