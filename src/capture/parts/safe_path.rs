//! Safe access to files in folders that QEMU's user can write to.
//!
//! libvirt gives the folders of firmware variables and TPM state to the users that QEMU and swtpm run as. A guest that
//! has broken out of QEMU can replace a file there, which kvmb is about to access as root, by a symbolic link, a hard
//! link, a named pipe or a device.
//!
//! ```text
//!  /            root      open each name with O_PATH|O_NOFOLLOW, one folder after the other, and keep each open
//!   var/        root
//!    lib/       root      a link here is followed: all folders so far belong to root and only root can write to them
//!     nvram/    qemu      from here on no link is followed, whoever owns it
//!      a.fd               a regular file; reopened through its descriptor, never by its name
//! ```
//! "Root" includes the user that kvmb runs as: files that this user can write are no more hostile than kvmb itself. No
//! path is looked up twice, so nothing can be exchanged between check and use.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, FileType, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, readlinkat, unlinkat};
use rustix::io::Errno;

use crate::capture::error::{Error, Result};
use crate::capture::runtime::our_uid;

/// The maximum number of links on a path, the kernel's own limit. More are assumed to be a loop.
const MOST_LINKS: usize = 40;

/// A folder that is held open. Names are looked up in this folder, even if its path leads elsewhere by now.
#[derive(Debug, Clone)]
pub(crate) struct OpenFolder {
    /// Opened with `O_PATH`.
    file: Arc<File>,
    path: PathBuf,
    owner: u32,
    /// Whether the folder and every folder on its path belong to root and only root can write to them.
    is_trusted: bool,
}

/// The target of a path: a name in a folder, and the file with that name, if it exists.
#[derive(Debug)]
pub(crate) struct ResolvedPath {
    pub(crate) folder: OpenFolder,
    /// The name in the folder.
    pub(crate) name: OsString,
    found: Option<PathEntry>,
}

/// A file of any type in a folder, held open with `O_PATH`.
#[derive(Debug)]
struct PathEntry {
    file: File,
    metadata: Metadata,
}

/// What to do if the last component is a link that cannot be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LastLink {
    Refuse,
    /// Keep the link: a writer replaces it and does not follow it.
    Keep,
}

/// Opens a regular file for reading. With `or_device`, a block device is opened too, unless a user other than root
/// could have put it there. Fails with [`Error::UnsafePath`] for other file types. Never blocks.
pub(crate) fn open_file(path: &Path, or_device: bool) -> Result<File> {
    locate(path, LastLink::Refuse)?.open(or_device)
}

/// Resolves a path for writing. Links that root created are followed. A link in the last component is not followed if
/// others can change it.
pub(crate) fn place_for_writing(path: &Path) -> Result<ResolvedPath> {
    locate(path, LastLink::Keep)
}

impl ResolvedPath {
    /// Opens the file for reading, as [`open_file`] does.
    pub(crate) fn open(&self, or_device: bool) -> Result<File> {
        let path = self.path();
        let unsafe_because = |reason: &str| Error::UnsafePath { path: path.clone(), reason: reason.to_owned() };
        let found = self.found.as_ref().ok_or_else(|| Error::io("open", &path)(Errno::NOENT.into()))?;
        let kind = found.metadata.file_type();
        if kind.is_block_device() && or_device {
            if !self.folder.is_trusted {
                return Err(unsafe_because("it is a device in a folder that users other than root can write to"));
            }
        } else if !kind.is_file() {
            return Err(unsafe_because(&format!("it is {}, not a regular file", name_of(kind))));
        } else if self.is_foreign_hard_link() {
            return Err(unsafe_because("it is a hard link to a file of another user"));
        }
        // The file is reopened through its descriptor, because its name may refer to another file by now.
        let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(descriptor_path(&found.file));
        opened.map_err(Error::io("open", &path))
    }

    /// Opens the device for writing, unless it is in use.
    pub(crate) fn open_device(&self) -> Result<File> {
        let path = self.path();
        let found = self.found.as_ref().filter(|_| self.is_device());
        let found = found.ok_or_else(|| Error::io("open", &path)(Errno::NODEV.into()))?;
        // O_EXCL fails if a block device is mounted or otherwise in use.
        let flags = OFlags::EXCL.bits() as i32;
        let opened = OpenOptions::new().write(true).custom_flags(flags).open(descriptor_path(&found.file));
        opened.map_err(Error::io("open", &path))
    }

    /// Whether the file is a block device that only root can have put there.
    pub(crate) fn is_device(&self) -> bool {
        self.folder.is_trusted && self.kind().is_some_and(|kind| kind.is_block_device())
    }

    /// The type of the file. Links are not followed.
    pub(crate) fn kind(&self) -> Option<FileType> {
        self.found.as_ref().map(|found| found.metadata.file_type())
    }

    /// The path, for messages. It may lead elsewhere by now.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path.join(&self.name)
    }

    /// The path by which system calls access the name in this folder.
    pub(crate) fn anchored(&self) -> PathBuf {
        self.folder.anchored(&self.name)
    }

    /// Whether the file is a hard link to a file of another user. The folder's owner can create such links unless the
    /// kernel forbids it (`fs.protected_hardlinks`).
    fn is_foreign_hard_link(&self) -> bool {
        let of = |found: &PathEntry| found.metadata.nlink() > 1 && found.metadata.uid() != self.folder.owner;
        !self.folder.is_trusted && self.found.as_ref().is_some_and(of)
    }
}

impl OpenFolder {
    /// Opens a folder. Only links that root created are followed.
    pub(crate) fn open(path: &Path) -> Result<OpenFolder> {
        if !path.components().any(|component| matches!(component, Component::Normal(_))) {
            return OpenFolder::root();
        }
        let place = locate(path, LastLink::Refuse)?;
        match place.found {
            None => Err(Error::io("open", path)(Errno::NOENT.into())),
            Some(entry) => place.folder.enter(&place.name, entry),
        }
    }

    /// Opens a folder that the user specified. Links are followed.
    pub(crate) fn open_named(path: &Path) -> Result<OpenFolder> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path);
        let file = file.map_err(Error::io("open", path))?;
        let metadata = file.metadata().map_err(Error::io("access", path))?;
        Ok(OpenFolder { file: Arc::new(file), path: path.to_owned(), owner: metadata.uid(), is_trusted: false })
    }

    /// The path, for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The path by which system calls access a name in this folder.
    pub(crate) fn anchored(&self, name: &OsStr) -> PathBuf {
        descriptor_path(&self.file).join(name)
    }

    /// Returns the place of a name, which must be a plain one, in this folder.
    pub(crate) fn place(&self, name: &OsStr) -> Result<ResolvedPath> {
        Ok(ResolvedPath { folder: self.clone(), name: name.to_owned(), found: self.look(name)? })
    }

    /// The names in the folder, sorted.
    pub(crate) fn names(&self) -> Result<Vec<OsString>> {
        let listed = fs::read_dir(descriptor_path(&self.file)).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut names: Vec<OsString> =
            listed.map_err(Error::io("list", &self.path))?.into_iter().map(|entry| entry.file_name()).collect();
        names.sort();
        Ok(names)
    }

    /// Opens a subfolder. Refuses a link. Returns `None` if nothing has this name.
    pub(crate) fn subfolder(&self, name: &OsStr) -> Result<Option<OpenFolder>> {
        self.look(name)?.map(|entry| self.enter(name, entry)).transpose()
    }

    /// Creates a subfolder.
    pub(crate) fn create(&self, name: &OsStr, mode: u32) -> Result<OpenFolder> {
        let path = self.path.join(name);
        mkdirat(&self.file, name, Mode::from_raw_mode(mode))
            .map_err(|error| Error::io("create", &path)(error.into()))?;
        self.subfolder(name)?.ok_or_else(|| Error::io("open", &path)(Errno::NOENT.into()))
    }

    /// Removes an empty subfolder.
    pub(crate) fn remove_folder(&self, name: &OsStr) -> io::Result<()> {
        Ok(unlinkat(&self.file, name, AtFlags::REMOVEDIR)?)
    }

    fn root() -> Result<OpenFolder> {
        let mut folder = OpenFolder::open_named(Path::new("/"))?;
        let metadata = folder.file.metadata().map_err(Error::io("access", "/"))?;
        folder.is_trusted = is_roots_alone(&metadata);
        Ok(folder)
    }

    /// Looks up a name. Links are not followed.
    fn look(&self, name: &OsStr) -> Result<Option<PathEntry>> {
        let path = self.path.join(name);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match openat(&self.file, name, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            opened => File::from(opened.map_err(|error| Error::io("access", &path)(error.into()))?),
        };
        let metadata = file.metadata().map_err(Error::io("access", &path))?;
        Ok(Some(PathEntry { file, metadata }))
    }

    fn enter(&self, name: &OsStr, entry: PathEntry) -> Result<OpenFolder> {
        let path = self.path.join(name);
        if entry.metadata.file_type().is_symlink() {
            return Err(planted_link(path));
        }
        if !entry.metadata.is_dir() {
            return Err(Error::io("enter", path)(Errno::NOTDIR.into()));
        }
        let is_trusted = self.is_trusted && is_roots_alone(&entry.metadata);
        Ok(OpenFolder { file: Arc::new(entry.file), path, owner: entry.metadata.uid(), is_trusted })
    }

    fn parent(&self) -> Result<OpenFolder> {
        let path = self.path.parent().unwrap_or(Path::new("/")).to_owned();
        let entry = self.look(OsStr::new(".."))?.ok_or_else(|| Error::io("open", &path)(Errno::NOENT.into()))?;
        let is_trusted = self.is_trusted && is_roots_alone(&entry.metadata);
        Ok(OpenFolder { file: Arc::new(entry.file), path, owner: entry.metadata.uid(), is_trusted })
    }
}

/// Resolves an absolute path, one name after the other.
fn locate(path: &Path, last_link: LastLink) -> Result<ResolvedPath> {
    if !path.is_absolute() {
        return Err(Error::UnsafePath { path: path.to_owned(), reason: "it is not an absolute path".to_owned() });
    }
    let (mut folder, mut ahead, mut links) = (OpenFolder::root()?, names_of(path), 0);
    while let Some(name) = ahead.pop_front() {
        if name == ".." {
            folder = folder.parent()?;
            continue;
        }
        let Some(entry) = folder.look(&name)? else {
            return match ahead.is_empty() {
                true => Ok(ResolvedPath { folder, name, found: None }),
                false => Err(Error::io("enter", folder.path.join(name))(Errno::NOENT.into())),
            };
        };
        if entry.metadata.file_type().is_symlink() {
            if !folder.is_trusted || !is_roots(&entry.metadata) {
                match (ahead.is_empty(), last_link) {
                    (true, LastLink::Keep) => return Ok(ResolvedPath { folder, name, found: Some(entry) }),
                    _ => return Err(planted_link(folder.path.join(name))),
                }
            }
            links += 1;
            if links > MOST_LINKS {
                return Err(Error::io("follow", path)(Errno::LOOP.into()));
            }
            let target =
                readlinkat(&entry.file, "", Vec::new()).map_err(|error| Error::io("follow", path)(error.into()))?;
            let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
            if target.is_absolute() {
                folder = OpenFolder::root()?;
            }
            names_of(&target).into_iter().rev().for_each(|name| ahead.push_front(name));
        } else if ahead.is_empty() {
            return Ok(ResolvedPath { folder, name, found: Some(entry) });
        } else {
            folder = folder.enter(&name, entry)?;
        }
    }
    Err(Error::io("open", path)(Errno::ISDIR.into()))
}

fn names_of(path: &Path) -> VecDeque<OsString> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    names.collect()
}

fn planted_link(path: PathBuf) -> Error {
    let reason = "it is a symbolic link that users other than root can change".to_owned();
    Error::UnsafePath { path, reason }
}

fn descriptor_path(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn is_roots(metadata: &Metadata) -> bool {
    metadata.uid() == 0 || metadata.uid() == our_uid()
}

/// Whether a folder belongs to root and nobody else can write to it. If there is an access control list, the group bits
/// are the maximum that it permits.
fn is_roots_alone(metadata: &Metadata) -> bool {
    is_roots(metadata) && metadata.mode() & 0o022 == 0
}

fn name_of(kind: FileType) -> &'static str {
    match () {
        () if kind.is_symlink() => "a symbolic link",
        () if kind.is_dir() => "a folder",
        () if kind.is_fifo() => "a named pipe",
        () if kind.is_socket() => "a socket",
        () if kind.is_block_device() => "a block device",
        () if kind.is_char_device() => "a character device",
        () => "of an unknown kind",
    }
}

#[cfg(test)]
mod tests {
    use crate::capture::parts::safe_path::*;
    use rustix::fs::{CWD, FileType as NodeType, chownat, mkfifoat, mknodat};
    use std::io::Read;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::time::Instant;

    /// Creates a folder of root in a place that nobody else can write to.
    fn roots_folder() -> tempfile::TempDir {
        let folder = tempfile::Builder::new().prefix("kvmb-test-").tempdir_in("/var/lib").unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        folder
    }

    fn give_away(path: &Path) {
        let nobody = rustix::fs::Uid::from_raw(65534);
        chownat(CWD, path, Some(nobody), None, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }

    fn read(path: &Path) -> std::result::Result<String, String> {
        let mut text = String::new();
        let opened = open_file(path, true).map_err(|error| error.to_string())?;
        { opened }.read_to_string(&mut text).map_err(|error| error.to_string())?;
        Ok(text)
    }

    #[track_caller]
    fn assert_refused(path: &Path, why: &str) {
        let began = Instant::now();
        let error = read(path).expect_err("it was read");
        assert!(error.contains(why), "{error}");
        assert!(began.elapsed().as_secs() < 60);
    }

    #[test]
    fn only_links_controlled_by_root_are_followed() {
        let folder = roots_folder();
        let at = |name: &str| folder.path().join(name);
        for name in ["roots", "qemus"] {
            fs::create_dir(at(name)).unwrap();
        }
        fs::write(at("secret"), "secret").unwrap();
        fs::write(at("qemus/own"), "own").unwrap();
        symlink("../secret", at("roots/relative")).unwrap();
        symlink(at("roots/relative"), at("absolute")).unwrap();
        symlink(at("secret"), at("qemus/roots-link")).unwrap();
        symlink("qemus", at("roots-link-to-folder")).unwrap();
        symlink("own", at("qemus/inner")).unwrap();
        symlink(folder.path(), at("qemus/folder")).unwrap();
        symlink("loop", at("loop")).unwrap();
        give_away(&at("qemus"));
        for name in ["secret", "roots/relative", "absolute", "roots/../secret"] {
            assert_eq!(read(&at(name)).as_deref(), Ok("secret"), "{name}");
        }
        for name in ["qemus/own", "roots-link-to-folder/own"] {
            assert_eq!(read(&at(name)).as_deref(), Ok("own"), "{name}");
        }
        for name in ["qemus/roots-link", "qemus/inner", "qemus/folder/secret", "roots-link-to-folder/inner"] {
            assert_refused(&at(name), "symbolic link that users other than root can change");
        }
        assert_refused(&at("loop"), "cannot follow");
        assert_refused(&at("missing"), "No such file");
        // A link that does not belong to root, and a folder that its group can write to.
        symlink(at("secret"), at("nobodys")).unwrap();
        give_away(&at("nobodys"));
        assert_refused(&at("nobodys"), "symbolic link");
        fs::set_permissions(at("roots"), fs::Permissions::from_mode(0o775)).unwrap();
        assert_refused(&at("roots/relative"), "symbolic link");
    }

    #[test]
    fn non_regular_files_and_relative_paths_are_refused() {
        let folder = roots_folder();
        let at = |name: &str| folder.path().join(name);
        mkfifoat(CWD, at("fifo"), Mode::from_raw_mode(0o600)).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        let zero = rustix::fs::makedev(1, 5);
        mknodat(CWD, at("zero"), NodeType::CharacterDevice, Mode::from_raw_mode(0o600), zero).unwrap();
        for (name, why) in [("fifo", "a named pipe"), ("socket", "a socket"), ("zero", "a character device")] {
            assert_refused(&at(name), why);
        }
        assert_refused(folder.path(), "a folder");
        assert!(open_file(Path::new("relative"), false).is_err());
    }

    #[test]
    fn hard_link_to_a_file_of_root_is_refused_in_a_folder_of_others() {
        let folder = roots_folder();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("qemus")).unwrap();
        fs::write(at("secret"), "secret").unwrap();
        fs::hard_link(at("secret"), at("qemus/vars")).unwrap();
        assert_eq!(read(&at("qemus/vars")).as_deref(), Ok("secret"));
        give_away(&at("qemus"));
        assert_refused(&at("qemus/vars"), "hard link");
        give_away(&at("secret"));
        assert_eq!(read(&at("qemus/vars")).as_deref(), Ok("secret"));
    }

    #[test]
    fn replaced_folder_does_not_redirect_an_open_one() {
        let folder = roots_folder();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("state")).unwrap();
        fs::write(at("state/file"), "old").unwrap();
        let place = place_for_writing(&at("state/file")).unwrap();
        fs::rename(at("state"), at("moved")).unwrap();
        symlink("/etc", at("state")).unwrap();
        fs::write(place.anchored(), "new").unwrap();
        assert_eq!(fs::read_to_string(at("moved/file")).unwrap(), "new");
        // A planted link in the last component is replaced, not followed.
        give_away(&at("moved"));
        symlink("/etc/hostname", at("moved/link")).unwrap();
        let place = place_for_writing(&at("moved/link")).unwrap();
        assert!(place.kind().is_some_and(|kind| kind.is_symlink()) && place.folder.path() == at("moved"));
        assert!(OpenFolder::open(&at("moved/link")).is_err());
    }
}
