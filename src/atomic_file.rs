//! Atomic replacement of small files: a reader sees either the old file or the new one, never a part.

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::OFlags;

/// Durably writes `content` with this mode: to a temporary file beside `path`, which is synced and renamed to `path`.
pub(crate) fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    temporary(path, content, mode).map_err(without_path)?.persist(path).map_err(|error| error.error)?;
    sync_folder(folder_of(path))
}

/// Like [`write()`], with the owner and group of the file that it replaces. If they cannot be kept, the rights of the
/// old group are not given to another one.
pub(crate) fn replace(path: &Path, content: &[u8], mode: u32, replaced: &Metadata) -> io::Result<()> {
    let temporary = temporary(path, content, mode & !0o077).map_err(without_path)?;
    let file = temporary.as_file();
    let is_kept = std::os::unix::fs::fchown(file, Some(replaced.uid()), Some(replaced.gid())).is_ok()
        || std::os::unix::fs::fchown(file, None, Some(replaced.gid())).is_ok();
    file.set_permissions(Permissions::from_mode(if is_kept { mode } else { mode & !0o070 }))?;
    file.sync_all()?;
    temporary.persist(path).map_err(|error| error.error)?;
    sync_folder(folder_of(path))
}

/// Like [`write()`], but fails with [`ErrorKind::AlreadyExists`] if `path` exists: exactly one of several concurrent
/// creators succeeds. On a file system without hard links, a reader may see an incomplete file.
pub(crate) fn create(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let temporary = temporary(path, content, mode).map_err(without_path)?;
    publish(temporary.path(), path, content, mode)?;
    sync_folder(folder_of(path))
}

/// Syncs the entries of a folder to disk. Ignores file systems that do not support this (SMB, NFS, FUSE, exFAT), but
/// reports errors of the disk.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder)?.sync_all() {
        Err(error) if cannot_sync_folders(&error) => Ok(()),
        synced => synced,
    }
}

/// Whether fsync() failed because the file system does not support it for folders.
fn cannot_sync_folders(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    // On Linux, EOPNOTSUPP and ENOTSUP are the same.
    errno.is_some_and(|errno| [Errno::INVAL, Errno::OPNOTSUPP, Errno::NOSYS, Errno::NOENT].contains(&errno))
}

/// Gives the complete file `temporary`, which has this `content`, the additional name `path`, unless `path` exists.
/// Keeps `temporary`.
pub(crate) fn publish(temporary: &Path, path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    match link(temporary, path) {
        // A network file system lost its answer and the call was repeated.
        Err(error) if error.kind() == ErrorKind::AlreadyExists && is_same_file(temporary, path) => Ok(()),
        Err(error) if has_no_links(&error) => create_in_place(path, content, mode),
        other => other,
    }
}

/// Creates a hard link. In a build with debug assertions, `$KVMB_TEST_NO_LINKS=1` simulates a file system without hard
/// links.
fn link(temporary: &Path, path: &Path) -> io::Result<()> {
    if cfg!(debug_assertions) && std::env::var_os("KVMB_TEST_NO_LINKS").is_some() {
        return Err(rustix::io::Errno::PERM.into());
    }
    fs::hard_link(temporary, path)
}

/// Whether link() failed because the file system has no hard links: errors of FAT, exFAT, SMB and FUSE.
fn has_no_links(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    // EXDEV: some overlay file systems refuse links even within a folder.
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

/// Returns the folder of a file.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Returns the error of the system without the path of the temporary file, which means nothing to the user.
pub(crate) fn without_path(error: io::Error) -> io::Error {
    // The library appends the path to the text, and hides the original error.
    let text = error.to_string();
    match text.split_once(" at path \"") {
        Some((reason, _)) => io::Error::new(error.kind(), reason),
        None => error,
    }
}

fn temporary(path: &Path, content: &[u8], mode: u32) -> io::Result<tempfile::NamedTempFile> {
    // cron, systemd and the node exporter ignore names that begin with a dot or have another suffix.
    let mut file = tempfile::Builder::new()
        .prefix(".kvmb-")
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(folder_of(path))?;
    file.write_all(content)?;
    // Set the mode again because the umask may have cleared some bits.
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    Ok(file)
}

/// Opens a file for reading that never blocks its reader: a regular file or `/dev/null`. Refuses everything else.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    // Without O_NONBLOCK, opening a named pipe waits for a writer.
    let file = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path)?;
    refuse_irregular(&file.metadata()?)?;
    Ok(file)
}

/// Reads a file that [`open`] accepts.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    open(path)?.read_to_end(&mut content)?;
    Ok(content)
}

/// Like [`read`], for text.
pub(crate) fn read_to_string(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    open(path)?.read_to_string(&mut text)?;
    Ok(text)
}

fn refuse_irregular(found: &Metadata) -> io::Result<()> {
    let null = rustix::fs::makedev(1, 3);
    if found.is_file() || (found.file_type().is_char_device() && found.rdev() == null) {
        return Ok(());
    }
    Err(match found.is_dir() {
        true => ErrorKind::IsADirectory.into(),
        false => io::Error::new(ErrorKind::InvalidInput, "it is not a regular file"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn concurrent_creates_write_the_file_exactly_once() {
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
    fn error_does_not_name_the_temporary_file() {
        let folder = tempfile::tempdir().unwrap();
        for result in [write, create].map(|write| write(&folder.path().join("none/file"), b"x", 0o600)) {
            let error = result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound);
            assert_eq!(error.to_string(), io::Error::from(rustix::io::Errno::NOENT).to_string());
        }
    }

    #[test]
    fn folder_sync_ignores_unsupported_fsync_but_reports_disk_errors() {
        use rustix::io::Errno;
        // The kernel's own file systems have no fsync().
        assert_eq!(
            File::open("/proc").unwrap().sync_all().unwrap_err().raw_os_error(),
            Some(Errno::INVAL.raw_os_error())
        );
        sync_folder(Path::new("/proc")).unwrap();
        assert_eq!(sync_folder(Path::new("/proc/none")).unwrap_err().kind(), ErrorKind::NotFound, "there is no folder");
        for errno in [Errno::INVAL, Errno::OPNOTSUPP, Errno::NOTSUP, Errno::NOENT] {
            assert!(cannot_sync_folders(&errno.into()), "{errno}");
        }
        for errno in [Errno::IO, Errno::NOSPC, Errno::DQUOT, Errno::ROFS, Errno::STALE] {
            assert!(!cannot_sync_folders(&errno.into()), "{errno}");
        }
    }

    #[test]
    fn errors_for_missing_hard_link_support_are_recognised() {
        use rustix::io::Errno;
        for errno in [Errno::PERM, Errno::OPNOTSUPP, Errno::NOSYS, Errno::MLINK] {
            assert!(has_no_links(&errno.into()), "{errno}");
        }
        for errno in [Errno::NOSPC, Errno::EXIST, Errno::NOENT, Errno::ROFS] {
            assert!(!has_no_links(&errno.into()), "{errno}");
        }
    }

    #[test]
    fn only_regular_files_and_dev_null_are_opened() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let kind = |path: &Path| open(path).map(drop).map_err(|error| error.kind());
        assert_eq!(kind(&fifo), Err(ErrorKind::InvalidInput));
        assert_eq!(kind(folder.path()), Err(ErrorKind::IsADirectory));
        assert_eq!(kind(&folder.path().join("none")), Err(ErrorKind::NotFound));
        assert_eq!(kind(Path::new("/dev/zero")), Err(ErrorKind::InvalidInput));
        assert_eq!(kind(Path::new("/dev/null")), Ok(()));
        let file = folder.path().join("file");
        write(&file, "text".as_bytes(), 0o600).unwrap();
        assert_eq!(read_to_string(&file).unwrap(), "text");
    }
}
