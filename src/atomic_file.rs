//! Small files that are there whole or not at all, whoever reads them at whatever moment.

use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::OFlags;

/// Writes `content` beside `path` with this mode, syncs it and renames it into its place.
pub fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // cron, systemd and the node exporter pass over names that begin with a dot or end in something else.
    let mut file =
        tempfile::Builder::new().prefix(".kvmb-").permissions(Permissions::from_mode(mode)).tempfile_in(folder)?;
    file.write_all(content)?;
    // Whatever the umask takes away.
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// Opens a file for reading that never keeps its reader waiting: a regular one, or `/dev/null`. Anything else that has the
/// name is refused.
pub fn open(path: &Path) -> io::Result<File> {
    // Opening a named pipe waits for a writer.
    let file = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path)?;
    refuse_irregular(&file.metadata()?)?;
    Ok(file)
}

/// Reads such a file.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    open(path)?.read_to_end(&mut content)?;
    Ok(content)
}

/// Reads such a file, which is text.
pub fn read_to_string(path: &Path) -> io::Result<String> {
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
    fn only_what_can_be_read_at_once_is_opened() {
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
