//! Files of a server: the calls of SFTP that a repository needs, on one connection.

use super::posix_rename::posix_rename;
use super::{Access, Connection, Error, Login, Result, Route, authenticate, connect};
use ssh2::{ErrorCode, File, FileStat, OpenFlags, OpenType, RenameFlags, Sftp};
use std::io::{ErrorKind, Read, Write};
use std::path::Path;

/// SFTP on a connection that is logged in. It is used by one thread at a time.
pub struct Files {
    // Before the connection, so that it is closed first.
    sftp: Sftp,
    connection: Connection,
}

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.connection.fmt(f)
    }
}

/// Why a call failed.
#[derive(Debug)]
pub enum Fault {
    /// The connection is gone.
    Server(Error),
    /// The server answered, and the answer is no.
    Refused(Refusal),
}

/// A server's no, as SFTP version 3 can say it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such file or folder.
    NotFound,
    /// Not permitted.
    Permission,
    /// The server does not know this call.
    Unsupported,
    /// No room. OpenSSH says [`Refusal::Other`] instead.
    NoSpace,
    /// Anything else; OpenSSH has one word, "failure", for a full disk, a file that exists and much more.
    Other(String),
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Refusal::NotFound => "no such file or folder",
            Refusal::Permission => "permission denied",
            Refusal::Unsupported => "the server does not support this",
            Refusal::NoSpace => "no space left",
            Refusal::Other(words) => words,
        })
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault::Server(error)
    }
}

impl Fault {
    /// Whether the server said that there is no such file.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Fault::Refused(Refusal::NotFound))
    }
}

/// What a folder holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name.
    pub name: String,
    /// Whether it is a folder.
    pub is_folder: bool,
    /// Its size.
    pub size_bytes: u64,
    /// When it was last written, in seconds since 1970.
    pub modified: u64,
}

impl Files {
    /// Connects, logs in and starts SFTP. `known` is the login that worked before.
    pub fn open(route: &Route, access: &Access, known: Option<&Login>) -> Result<(Files, Login)> {
        let connection = connect(route, access)?;
        let login = authenticate(&connection, route, access, known)?;
        let session = connection.session();
        let sftp = connection.step(|| session.sftp())?.map_err(|error| Error::NoSftp {
            server: route.server(),
            user: route.user.clone(),
            reason: error.message().to_owned(),
        })?;
        Ok((Files { sftp, connection }, login))
    }

    /// Whether the connection can be used no longer.
    pub fn is_broken(&self) -> bool {
        self.connection.is_broken()
    }

    /// Size and kind of a file or folder.
    pub fn stat(&self, path: &str) -> std::result::Result<FileStat, Fault> {
        self.call(|| self.sftp.stat(Path::new(path)))
    }

    /// The absolute form of a path.
    pub fn real_path(&self, path: &str) -> std::result::Result<String, Fault> {
        self.call(|| self.sftp.realpath(Path::new(path))).map(|path| path.to_string_lossy().into_owned())
    }

    /// Makes one folder that only its owner may enter.
    pub fn make_folder(&self, path: &str) -> std::result::Result<(), Fault> {
        self.call(|| self.sftp.mkdir(Path::new(path), 0o700))
    }

    /// Removes a file.
    pub fn remove(&self, path: &str) -> std::result::Result<(), Fault> {
        self.call(|| self.sftp.unlink(Path::new(path)))
    }

    /// Gives a file its name; nothing may have it already.
    pub fn rename(&self, from: &str, to: &str) -> std::result::Result<(), Fault> {
        let flags = Some(RenameFlags::ATOMIC | RenameFlags::NATIVE);
        self.call(|| self.sftp.rename(Path::new(from), Path::new(to), flags))
    }

    /// Gives a file its name, in the place of what has it already.
    pub fn replace(&self, from: &str, to: &str) -> std::result::Result<(), Fault> {
        match self.rename(from, to) {
            // OpenSSH's word for a name that is taken.
            Err(Fault::Refused(Refusal::Other(_))) if self.stat(to).is_ok() => {}
            other => return other,
        }
        match posix_rename(&self.connection, from, to)? {
            Ok(0) => Ok(()),
            // A server without that extension: the contents are the same as the name's, and the new file is complete.
            Ok(8) => {
                self.remove(to)?;
                self.rename(from, to)
            }
            Ok(code) => Err(self.fault(ssh2::Error::from_errno(ErrorCode::SFTP(code)))),
            Err(error) => Err(self.fault(error)),
        }
    }

    /// What a folder holds, without `.` and `..`.
    pub fn list(&self, path: &str) -> std::result::Result<Vec<Entry>, Fault> {
        let mut folder = self.call(|| self.sftp.opendir(Path::new(path)))?;
        let mut entries = Vec::new();
        loop {
            let (name, stat) = match self.connection.call(|| folder.readdir())? {
                Ok(entry) => entry,
                // The end.
                Err(error) if error.code() == ErrorCode::Session(-16) => break,
                Err(error) => return Err(self.fault(error)),
            };
            // Ours are hexadecimal: another name is no file of a repository.
            let Some(name) = name.to_str().filter(|name| ![".", ".."].contains(name)) else {
                continue;
            };
            entries.push(Entry {
                name: name.to_owned(),
                is_folder: stat.is_dir(),
                size_bytes: stat.size.unwrap_or(0),
                modified: stat.mtime.unwrap_or(0),
            });
        }
        self.close(folder)?;
        Ok(entries)
    }

    /// Writes a file that does not exist yet, and has the server put it on its disk, where the server can do that.
    pub fn write_new(&self, path: &str, contents: &[u8]) -> std::result::Result<(), Fault> {
        let flags = OpenFlags::WRITE | OpenFlags::EXCLUSIVE;
        let mut file = self.call(|| self.sftp.open_mode(Path::new(path), flags, 0o600, OpenType::File))?;
        self.write_all(&mut file, contents)?;
        match self.call(|| file.fsync()) {
            Ok(()) | Err(Fault::Refused(Refusal::Unsupported)) => {}
            Err(error) => return Err(error),
        }
        self.close(file)
    }

    /// Writes at the end of a file, which is made if it is not there.
    pub fn append(&self, path: &str, contents: &[u8]) -> std::result::Result<(), Fault> {
        let flags = OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::APPEND;
        let mut file = self.call(|| self.sftp.open_mode(Path::new(path), flags, 0o600, OpenType::File))?;
        self.write_all(&mut file, contents)?;
        self.close(file)
    }

    fn write_all(&self, file: &mut File, contents: &[u8]) -> std::result::Result<(), Fault> {
        let mut rest = contents;
        while !rest.is_empty() {
            // All of it at once: libssh2 keeps as much of it on the way as the server takes.
            match self.transfer(|| file.write(rest))? {
                0 => return Err(self.connection.lost("the server takes no more").into()),
                written => rest = &rest[written..],
            }
        }
        Ok(())
    }

    /// Puts a folder's entries on the server's disk, where the server can do that.
    pub fn sync_folder(&self, path: &str) -> std::result::Result<(), Fault> {
        let opened = self.call(|| self.sftp.open_mode(Path::new(path), OpenFlags::READ, 0, OpenType::File));
        let mut folder = match opened {
            Ok(folder) => folder,
            // Not every server opens a folder as if it were a file.
            Err(Fault::Refused(_)) => return Ok(()),
            Err(error) => return Err(error),
        };
        match self.call(|| folder.fsync()) {
            Ok(()) | Err(Fault::Refused(_)) => self.close(folder),
            Err(error) => Err(error),
        }
    }

    /// A whole file.
    pub fn read(&self, path: &str) -> std::result::Result<Vec<u8>, Fault> {
        let mut file = self.call(|| self.sftp.open(Path::new(path)))?;
        let size = self.call(|| file.stat())?.size.unwrap_or(0);
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
        let read = self.fill(&mut file, &mut bytes)?;
        bytes.truncate(read);
        self.close(file)?;
        Ok(bytes)
    }

    /// `length` bytes from `offset`; none when the file ends before.
    pub fn read_range(&self, path: &str, offset: u64, length: usize) -> std::result::Result<Option<Vec<u8>>, Fault> {
        /// More than any blob: so much is asked for only when the file is known to have it.
        const PLAUSIBLE_BYTES: usize = 64 << 20;
        let mut file = self.call(|| self.sftp.open(Path::new(path)))?;
        let end = offset.saturating_add(length as u64);
        let implausible = length > PLAUSIBLE_BYTES || end > i64::MAX.unsigned_abs();
        if implausible && self.call(|| file.stat())?.size.unwrap_or(0) < end {
            self.close(file)?;
            return Ok(None);
        }
        let mut bytes = vec![0; length];
        // A seek that only libssh2 hears of.
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(offset))
            .map_err(|error| Fault::Refused(Refusal::Other(error.to_string())))?;
        let read = self.fill(&mut file, &mut bytes)?;
        self.close(file)?;
        Ok((read == length).then_some(bytes))
    }

    fn fill(&self, file: &mut File, bytes: &mut [u8]) -> std::result::Result<usize, Fault> {
        let mut filled = 0;
        while filled < bytes.len() {
            // libssh2 asks the server for four times what it is asked for, so this is just all that is left.
            let ask = (bytes.len() - filled).div_ceil(4);
            match self.transfer(|| file.read(&mut bytes[filled..filled + ask]))? {
                0 => break,
                read => filled += read,
            }
        }
        Ok(filled)
    }

    /// The room that is left where `path` is, if the server can tell.
    pub fn free_bytes(&self, path: &str) -> std::result::Result<Option<u64>, Fault> {
        let opened = self.call(|| self.sftp.open_mode(Path::new(path), OpenFlags::READ, 0, OpenType::File));
        let mut folder = match opened {
            Ok(folder) => folder,
            Err(Fault::Refused(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let free = match self.call(|| folder.statvfs()) {
            Ok(stat) => Some(stat.f_bavail.saturating_mul(stat.f_frsize)),
            Err(Fault::Refused(_)) => None,
            Err(error) => return Err(error),
        };
        self.close(folder)?;
        Ok(free)
    }

    fn close(&self, mut file: File) -> std::result::Result<(), Fault> {
        self.call(|| file.close())
    }

    fn call<T>(&self, call: impl FnMut() -> std::result::Result<T, ssh2::Error>) -> std::result::Result<T, Fault> {
        self.connection.call(call)?.map_err(|error| self.fault(error))
    }

    /// A read or write, whose errors `ssh2` translates so that their number is lost.
    fn transfer(&self, mut call: impl FnMut() -> std::io::Result<usize>) -> std::result::Result<usize, Fault> {
        /// libssh2's "the server said no".
        const STATUS: ErrorCode = ErrorCode::Session(-31);
        let mut refusal = None;
        let answer = self.connection.call(|| {
            call().map_err(|error| {
                if error.kind() == ErrorKind::WouldBlock {
                    return ssh2::Error::from_errno(ErrorCode::Session(-37));
                }
                let last = ssh2::Error::last_session_error(self.connection.session());
                let last = last.unwrap_or_else(ssh2::Error::unknown);
                if last.code() == STATUS {
                    refusal = Some(match (error.kind(), error.to_string().as_str()) {
                        (ErrorKind::NotFound, _) => Refusal::NotFound,
                        (_, "permission denied") => Refusal::Permission,
                        (_, "no space on filesystem" | "quota exceeded") => Refusal::NoSpace,
                        (_, words) => Refusal::Other(words.to_owned()),
                    });
                }
                last
            })
        })?;
        answer.map_err(|error| refusal.map_or_else(|| self.fault(error), Fault::Refused))
    }

    /// What an error of libssh2's means. One that is no answer of the server's leaves the connection useless.
    fn fault(&self, error: ssh2::Error) -> Fault {
        match error.code() {
            ErrorCode::SFTP(2 | 10) => Fault::Refused(Refusal::NotFound),
            ErrorCode::SFTP(3 | 12) => Fault::Refused(Refusal::Permission),
            ErrorCode::SFTP(8) => Fault::Refused(Refusal::Unsupported),
            ErrorCode::SFTP(14 | 15) => Fault::Refused(Refusal::NoSpace),
            ErrorCode::SFTP(code) if code > 1 => Fault::Refused(Refusal::Other(error.message().to_owned())),
            _ => Fault::Server(self.connection.lost(error.message())),
        }
    }
}
