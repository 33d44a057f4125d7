//! Safe access to files in folders that QEMU's user can write to.
//!
//! libvirt gives the folders of firmware variables and of TPM state to the users that QEMU and swtpm run as. A guest
//! that has broken out of QEMU can put a symbolic link, a hard link, a named pipe or a device there, in the place of a
//! file that kvmb, as root, is about to read or to write.
//!
//! ```text
//!  /            root      look at each name with O_PATH|O_NOFOLLOW, one folder after the other, each held open
//!   var/        root
//!    lib/       root      a link here is followed: it and all folders so far are root's, nobody else can write them
//!     nvram/    qemu      from here on no link is followed, whoever owns it
//!      a.fd               a regular file; opened again through its descriptor, never by its name
//! ```
//! «Root» is also the user that kvmb runs as: what that one can write is no more hostile than kvmb itself. No path is
//! looked up twice, so nothing can be exchanged between the look and the use.

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

/// More links on one way than this are a loop; the kernel's own limit.
const MOST_LINKS: usize = 40;

/// A folder that is held open: names are looked up in this very folder, whatever its path leads to by now.
#[derive(Debug, Clone)]
pub(crate) struct OpenFolder {
    /// Opened with `O_PATH`.
    file: Arc<File>,
    path: PathBuf,
    owner: u32,
    /// It and every folder on the way belong to root, and nobody else can write them.
    is_trusted: bool,
}

/// Where a path leads: a name in a folder, and what has that name, if anything has.
#[derive(Debug)]
pub(crate) struct ResolvedPath {
    pub(crate) folder: OpenFolder,
    /// The name in it.
    pub(crate) name: OsString,
    found: Option<PathEntry>,
}

/// Something in a folder, held open with `O_PATH`.
#[derive(Debug)]
struct PathEntry {
    file: File,
    metadata: Metadata,
}

/// What to do with a link in the last place that cannot be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LastLink {
    Refuse,
    /// Whoever writes replaces the link, and does not follow it.
    Keep,
}

/// Opens a regular file for reading. With `or_device` a block device is opened as well, unless somebody else than root
/// could have put it there. Fails with [`Error::UnsafePath`] for anything else, and never blocks on what it finds.
pub(crate) fn open_file(path: &Path, or_device: bool) -> Result<File> {
    locate(path, LastLink::Refuse)?.open(or_device)
}

/// The place that a path means for whoever writes: links that root made are followed, one in the last place that others
/// can change is not.
pub(crate) fn place_for_writing(path: &Path) -> Result<ResolvedPath> {
    locate(path, LastLink::Keep)
}

impl ResolvedPath {
    /// Opens what is there, as [`open_file`] does.
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
        // By its descriptor: its name may mean something else by now.
        let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(descriptor_path(&found.file));
        opened.map_err(Error::io("open", &path))
    }

    /// Opens the device that is there for writing, if nobody else uses it.
    pub(crate) fn open_device(&self) -> Result<File> {
        let path = self.path();
        let found = self.found.as_ref().filter(|_| self.is_device());
        let found = found.ok_or_else(|| Error::io("open", &path)(Errno::NODEV.into()))?;
        // O_EXCL on a block device fails when it is mounted or otherwise taken.
        let flags = OFlags::EXCL.bits() as i32;
        let opened = OpenOptions::new().write(true).custom_flags(flags).open(descriptor_path(&found.file));
        opened.map_err(Error::io("open", &path))
    }

    /// Whether a block device is there that nobody but root can have put there.
    pub(crate) fn is_device(&self) -> bool {
        self.folder.is_trusted && self.kind().is_some_and(|kind| kind.is_block_device())
    }

    /// What is there; a link is a link.
    pub(crate) fn kind(&self) -> Option<FileType> {
        self.found.as_ref().map(|found| found.metadata.file_type())
    }

    /// Its path, for messages: who has it may have changed what it means.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path.join(&self.name)
    }

    /// The path by which system calls reach the name in this very folder.
    pub(crate) fn anchored(&self) -> PathBuf {
        self.folder.anchored(&self.name)
    }

    /// The owner of the folder can make a link to any file where the kernel does not forbid it
    /// (`fs.protected_hardlinks`).
    fn is_foreign_hard_link(&self) -> bool {
        let of = |found: &PathEntry| found.metadata.nlink() > 1 && found.metadata.uid() != self.folder.owner;
        !self.folder.is_trusted && self.found.as_ref().is_some_and(of)
    }
}

impl OpenFolder {
    /// Opens a folder; only links that root made are followed on the way.
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

    /// Opens a folder that the user of the command named: links on the way are the user's business.
    pub(crate) fn open_named(path: &Path) -> Result<OpenFolder> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path);
        let file = file.map_err(Error::io("open", path))?;
        let metadata = file.metadata().map_err(Error::io("access", path))?;
        Ok(OpenFolder { file: Arc::new(file), path: path.to_owned(), owner: metadata.uid(), is_trusted: false })
    }

    /// Its path, for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The path by which system calls reach a name in this very folder.
    pub(crate) fn anchored(&self, name: &OsStr) -> PathBuf {
        descriptor_path(&self.file).join(name)
    }

    /// A place in it. The name must be a plain one.
    pub(crate) fn place(&self, name: &OsStr) -> Result<ResolvedPath> {
        Ok(ResolvedPath { folder: self.clone(), name: name.to_owned(), found: self.look(name)? })
    }

    /// The names in it, sorted.
    pub(crate) fn names(&self) -> Result<Vec<OsString>> {
        let listed = fs::read_dir(descriptor_path(&self.file)).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut names: Vec<OsString> =
            listed.map_err(Error::io("list", &self.path))?.into_iter().map(|entry| entry.file_name()).collect();
        names.sort();
        Ok(names)
    }

    /// Opens a folder in it; a link is refused. None when there is nothing of that name.
    pub(crate) fn subfolder(&self, name: &OsStr) -> Result<Option<OpenFolder>> {
        self.look(name)?.map(|entry| self.enter(name, entry)).transpose()
    }

    /// Makes a folder in it.
    pub(crate) fn create(&self, name: &OsStr, mode: u32) -> Result<OpenFolder> {
        let path = self.path.join(name);
        mkdirat(&self.file, name, Mode::from_raw_mode(mode))
            .map_err(|error| Error::io("create", &path)(error.into()))?;
        self.subfolder(name)?.ok_or_else(|| Error::io("open", &path)(Errno::NOENT.into()))
    }

    /// Removes an empty folder in it.
    pub(crate) fn remove_folder(&self, name: &OsStr) -> io::Result<()> {
        Ok(unlinkat(&self.file, name, AtFlags::REMOVEDIR)?)
    }

    fn root() -> Result<OpenFolder> {
        let mut folder = OpenFolder::open_named(Path::new("/"))?;
        let metadata = folder.file.metadata().map_err(Error::io("access", "/"))?;
        folder.is_trusted = is_roots_alone(&metadata);
        Ok(folder)
    }

    /// What has this name; a link is looked at itself.
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

/// Walks an absolute path, one name after the other.
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

/// Whether a folder belongs to root, and nobody else can write it. (Where there is an access control list, the bits of
/// the group are the most that it permits.)
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

    /// A folder of root's below `/root` or another place that nobody else can write.
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
    fn links_of_roots_are_followed_and_those_of_others_are_not() {
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
        // A link that is not root's, or a folder that its group can write.
        symlink(at("secret"), at("nobodys")).unwrap();
        give_away(&at("nobodys"));
        assert_refused(&at("nobodys"), "symbolic link");
        fs::set_permissions(at("roots"), fs::Permissions::from_mode(0o775)).unwrap();
        assert_refused(&at("roots/relative"), "symbolic link");
    }

    #[test]
    fn what_is_no_file_is_refused_at_once() {
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
    fn a_hard_link_to_a_file_of_roots_is_refused_in_a_folder_of_others() {
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
    fn a_folder_that_is_exchanged_is_still_the_one_that_was_opened() {
        let folder = roots_folder();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("state")).unwrap();
        fs::write(at("state/file"), "old").unwrap();
        let place = place_for_writing(&at("state/file")).unwrap();
        fs::rename(at("state"), at("moved")).unwrap();
        symlink("/etc", at("state")).unwrap();
        fs::write(place.anchored(), "new").unwrap();
        assert_eq!(fs::read_to_string(at("moved/file")).unwrap(), "new");
        // A planted link in the last place is what is replaced, not what is written through.
        give_away(&at("moved"));
        symlink("/etc/hostname", at("moved/link")).unwrap();
        let place = place_for_writing(&at("moved/link")).unwrap();
        assert!(place.kind().is_some_and(|kind| kind.is_symlink()) && place.folder.path() == at("moved"));
        assert!(OpenFolder::open(&at("moved/link")).is_err());
    }
}
