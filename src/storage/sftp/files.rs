//! The SFTP calls that a repository needs, on one connection, in few round trips.
//!
//! | operation | round trips |
//! | --- | --- |
//! | store a file ([`SftpClient::store`]) | open it and its folder · write, sync, close · rename, sync the folder |
//! | the same for a file that is ignored while incomplete | open it and its folder · everything else |
//! | read a part of a file, or a short file | open · read, whatever the length |
//! | create a folder durably | open the parent, create the folder · sync |
//! | list folders, and read a short file ([`SftpClient::look`]) | open them · read, for a few hundred entries of each |

use super::wire::{Field, PacketReader, PacketType, Reply, Sent, SftpChannel, Stat};
use super::{Connection, Login, Result, SftpFault, SftpStatus, SshContext, SshTarget, authenticate, connect};
use crate::storage::Gate;
use std::cell::Cell;
use std::iter;
use std::ops::Range;

/// Bytes per read or write request. With all headers, it fits into an SSH packet that every server accepts.
pub(crate) const PIECE_BYTES: usize = 32_000;

/// Bytes per request if the server's limits allow it: the payload of OpenSSH's longest packet. Fewer and longer
/// requests cost both sides less.
const LONG_PIECE_BYTES: usize = 255 << 10;

/// The lower bound for a server's limits: a flood of requests for single bytes would fill the memory.
const SHORTEST_PIECE_BYTES: usize = 1 << 10;

/// More than any pack. Longer reads are requested only when the file is known to be that long.
pub(super) const PLAUSIBLE_BYTES: usize = 64 << 20;

const SYNC: &str = "fsync@openssh.com";
const REPLACE: &str = "posix-rename@openssh.com";
const ROOM: &str = "statvfs@openssh.com";
const LIMITS: &str = "limits@openssh.com";

/// Flags of [`PacketType::Open`].
pub(super) mod flags {
    pub(crate) const READ: u32 = 1;
    pub(crate) const WRITE: u32 = 2;
    pub(crate) const APPEND: u32 = 4;
    pub(crate) const CREATE: u32 = 8;
    pub(crate) const EXCLUSIVE: u32 = 32;
}

/// The result of a call.
pub(super) type SftpResult<T> = std::result::Result<T, SftpFault>;

/// SFTP on an authenticated connection. It is used by one thread at a time.
pub(crate) struct SftpClient {
    pub(super) wire: SftpChannel,
    /// The pending request for the server's limits, until they are needed.
    asked: Cell<Option<Sent>>,
    pieces: Cell<RequestBytes>,
}

/// How much one request may read and write, in bytes.
#[derive(Debug, Clone, Copy)]
struct RequestBytes {
    read: usize,
    write: usize,
}

impl RequestBytes {
    /// Reads the server's limits: the longest packet, read and write, in bytes. 0 or a missing value means no stated
    /// limit.
    fn of_limits(body: &[u8]) -> RequestBytes {
        let mut fields = PacketReader(body);
        let mut limit = || match fields.long() {
            None | Some(0) => PIECE_BYTES,
            Some(most) => usize::try_from(most).unwrap_or(usize::MAX).clamp(SHORTEST_PIECE_BYTES, LONG_PIECE_BYTES),
        };
        let (_, read, write) = (limit(), limit(), limit());
        RequestBytes { read, write }
    }
}

impl std::fmt::Debug for SftpClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.wire.connection().fmt(f)
    }
}

/// The free space of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RemoteSpace {
    /// Bytes available for new files.
    pub(crate) free_bytes: u64,
    /// Whether no more files can be created.
    pub(crate) is_out_of_files: bool,
    /// Whether the file system is read-only.
    pub(crate) is_read_only: bool,
}

/// An open file or folder on the server.
pub(super) struct Handle(Vec<u8>);

impl Handle {
    pub(super) fn part(&self) -> Field<'_> {
        Field::Text(&self.0)
    }
}

pub(super) fn text(text: &str) -> Field<'_> {
    Field::Text(text.as_bytes())
}

impl SftpClient {
    /// Connects, logs in and starts SFTP. `known` is the login that succeeded before.
    pub(crate) fn open(
        ssh_target: &SshTarget,
        ssh_context: &SshContext,
        known: Option<&Login>,
    ) -> Result<(SftpClient, Login)> {
        let connection = connect(ssh_target, ssh_context)?;
        let login = authenticate(&connection, ssh_target, ssh_context, known)?;
        Ok((SftpClient::start(connection, ssh_target)?, login))
    }

    /// Starts SFTP on an authenticated connection.
    pub(crate) fn start(connection: Connection, ssh_target: &SshTarget) -> Result<SftpClient> {
        let wire = SftpChannel::start(connection, ssh_target)?;
        let asked = wire.has(LIMITS).then(|| wire.send(PacketType::Extended, &[text(LIMITS)])).transpose()?;
        let pieces = RequestBytes { read: PIECE_BYTES, write: PIECE_BYTES };
        Ok(SftpClient { wire, asked: Cell::new(asked), pieces: Cell::new(pieces) })
    }

    /// Returns the request sizes. The server's answer usually arrived while other replies were awaited.
    fn pieces(&self) -> Result<RequestBytes> {
        if let Some(asked) = self.asked.take()
            && let Reply::Extended(body) = self.wire.receive(asked)?
        {
            self.pieces.set(RequestBytes::of_limits(&body));
        }
        Ok(self.pieces.get())
    }

    /// Returns whether the server identifies itself as OpenSSH.
    pub(crate) fn server_is_openssh(&self) -> bool {
        self.wire.connection().is_openssh()
    }

    /// Restarts the progress timeout for a new request.
    pub(crate) fn restart_progress(&self) {
        self.wire.connection().restart_progress();
    }

    /// Returns whether the connection can no longer be used.
    pub(crate) fn is_broken(&self) -> bool {
        self.wire.connection().is_broken()
    }

    /// Returns the size and kind of a file or folder.
    pub(crate) fn stat(&self, path: &str) -> SftpResult<Stat> {
        match self.wire.ask(PacketType::Stat, &[text(path)])? {
            Reply::Stat(stat) => Ok(stat),
            _ => Err(self.wire.protocol_error().into()),
        }
    }

    /// Returns the absolute form of a path.
    pub(crate) fn real_path(&self, path: &str) -> SftpResult<String> {
        match self.wire.ask(PacketType::RealPath, &[text(path)])? {
            Reply::Names(names) if !names.entries.is_empty() => {
                Ok(names.entries.into_iter().map(|(name, _)| name).collect())
            }
            _ => Err(self.wire.protocol_error().into()),
        }
    }

    /// Creates a folder that only its owner may enter.
    pub(crate) fn make_folder(&self, path: &str) -> SftpResult<()> {
        let sent = self.send_make_folder(path)?;
        self.done(sent)
    }

    /// Like [`SftpClient::make_folder`], and syncs `parent` on the server if it supports that.
    pub(crate) fn make_folder_synced(&self, path: &str, parent: &str) -> SftpResult<()> {
        let parent = self.send_open_folder_to_sync(parent)?;
        let made = self.send_make_folder(path)?;
        let parent = self.opened_folder(parent)?;
        let made = self.done(made);
        let synced = self.sync_and_close(parent)?;
        made.and_then(|()| self.synced(synced))
    }

    pub(crate) fn remove(&self, path: &str) -> SftpResult<()> {
        self.do_it(PacketType::Remove, &[text(path)])
    }

    /// Removes a file and syncs its folder on the server, if it supports that.
    pub(crate) fn remove_synced(&self, path: &str, folder: &str) -> SftpResult<()> {
        let folder = self.send_open_folder_to_sync(folder)?;
        let removed = self.wire.send(PacketType::Remove, &[text(path)])?;
        let folder = self.opened_folder(folder)?;
        // Sent before the reply to the removal is known: if that fails, the sync is superfluous but harmless.
        let synced = self.sync_and_close(folder)?;
        self.done(removed).and_then(|()| self.synced(synced))
    }

    /// Writes a file that does not exist yet and syncs it, if the server supports that.
    pub(crate) fn write_new(&self, path: &str, contents: &[u8]) -> SftpResult<()> {
        let file = self.send_open(path, flags::WRITE | flags::CREATE | flags::EXCLUSIVE)?;
        let file = self.handle(file)?;
        self.write_through(&file, 0, contents, &|_| true)
    }

    /// Appends to a file of this length, which is created if it does not exist. Some servers find the end themselves,
    /// others write at the given offset.
    pub(crate) fn append(&self, path: &str, length: u64, contents: &[u8]) -> SftpResult<()> {
        let file = self.send_open(path, flags::WRITE | flags::CREATE | flags::APPEND)?;
        let file = self.handle(file)?;
        self.write_through(&file, length, contents, &|_| true)
    }

    /// Writes a file as `temporary`, syncs it, renames it to `path`, replacing an existing file, and syncs `folder`.
    /// `gate` is called before each request is sent.
    ///
    /// A failure may leave `temporary` behind.
    pub(crate) fn store(
        &self,
        folder: &str,
        temporary: &str,
        path: &str,
        contents: &[u8],
        gate: Gate,
    ) -> SftpResult<()> {
        let (file, folder) = self.open_to_store(temporary, folder)?;
        let written = file.and_then(|file| self.write_through(&file, 0, contents, gate));
        // Writing took time, so the program may have been stopped meanwhile.
        let written = written.and_then(|()| match gate(0) {
            true => Ok(()),
            false => Err(SftpFault::Refused(SftpStatus::Stopped)),
        });
        if let Err(fault) = written {
            if let (Some(folder), SftpFault::Refused(_)) = (&folder, &fault) {
                self.leave(folder);
            }
            return Err(fault);
        }
        // Rename only after all data is written: nobody may ever see a partial file under this name.
        let named = self.send_rename(temporary, path)?;
        let synced = self.sync_and_close(folder)?;
        let named = match self.done(named) {
            // The plain rename of SFTP fails if the name exists. The contents are the same, and the new file is
            // complete.
            Err(SftpFault::Refused(SftpStatus::Other(_))) if !self.wire.has(REPLACE) && self.stat(path).is_ok() => {
                self.remove(path)?;
                self.do_it(PacketType::Rename, &[text(temporary), text(path)])
            }
            named => named,
        };
        named.and_then(|()| self.synced(synced))
    }

    /// Like [`SftpClient::store`], with one round trip less, for a file that is ignored while incomplete: it is renamed
    /// before the writes are confirmed. (A server processes requests for one file in order: section 3 of
    /// draft-ietf-secsh-filexfer-02.) A refusal may leave a file under either name.
    pub(crate) fn store_at_once(&self, folder: &str, temporary: &str, path: &str, contents: &[u8]) -> SftpResult<()> {
        let (file, folder) = self.open_to_store(temporary, folder)?;
        let file = file.inspect_err(|_| folder.iter().for_each(|folder| self.leave(folder)))?;
        let (written, _) = self.send_through(&file, 0, contents, &|_| true)?;
        let named = self.send_rename(temporary, path)?;
        let synced = self.sync_and_close(folder)?;
        // Read every reply, whatever the results of the others.
        let (written, named, synced) = (self.all_done(written), self.done(named), self.synced(synced));
        written.and(named).and(synced)
    }

    /// Opens a new file, and its folder if that can be synced. A refusal of the file is returned after the folder was
    /// opened.
    fn open_to_store(&self, temporary: &str, folder: &str) -> Result<(SftpResult<Handle>, Option<Handle>)> {
        let file = self.send_open(temporary, flags::WRITE | flags::CREATE | flags::EXCLUSIVE)?;
        let folder = self.send_open_folder_to_sync(folder)?;
        // Return a refusal only after the folder's reply was read. On a lost connection no more replies arrive.
        let file = match self.handle(file) {
            Err(SftpFault::Server(error)) => return Err(error),
            file => file,
        };
        Ok((file, self.opened_folder(folder)?))
    }

    fn send_rename(&self, from: &str, to: &str) -> Result<Sent> {
        match self.wire.has(REPLACE) {
            true => self.wire.send(PacketType::Extended, &[text(REPLACE), text(from), text(to)]),
            false => self.wire.send(PacketType::Rename, &[text(from), text(to)]),
        }
    }

    /// Writes a file as `temporary`, syncs it and renames it to `path`, unless that exists. Returns whether it was
    /// renamed. The plain rename of SFTP fails if the name exists; `posix-rename@openssh.com` would replace the file.
    pub(crate) fn create(&self, folder: &str, temporary: &str, path: &str, contents: &[u8]) -> SftpResult<bool> {
        self.write_new(temporary, contents)?;
        let named = self.rename_free(temporary, path)?;
        match named {
            true => self.sync_folder(folder)?,
            false => self.remove(temporary)?,
        }
        Ok(named)
    }

    /// Renames a file unless the new name exists, and returns whether it did. Servers have no status for an existing
    /// name, and some other than OpenSSH replace the file, so the name is checked before the rename as well.
    pub(crate) fn rename_free(&self, from: &str, to: &str) -> SftpResult<bool> {
        match self.stat(to) {
            Ok(_) => return Ok(false),
            Err(fault) if fault.is_not_found() => {}
            Err(fault) => return Err(fault),
        }
        match self.do_it(PacketType::Rename, &[text(from), text(to)]) {
            Err(SftpFault::Refused(refusal)) => match self.stat(to) {
                Ok(_) => Ok(false),
                Err(lost @ SftpFault::Server(_)) => Err(lost),
                Err(SftpFault::Refused(_)) => Err(SftpFault::Refused(refusal)),
            },
            other => other.map(|()| true),
        }
    }

    /// Syncs a folder on the server, if it supports that.
    pub(crate) fn sync_folder(&self, path: &str) -> SftpResult<()> {
        let folder = self.send_open_folder_to_sync(path)?;
        let folder = self.opened_folder(folder)?;
        let synced = self.sync_and_close(folder)?;
        self.synced(synced)
    }

    /// Reads `length` bytes from `offset`. Returns `None` if the file ends before that.
    pub(crate) fn read_range(&self, path: &str, offset: u64, length: usize) -> SftpResult<Option<Vec<u8>>> {
        self.reading(path, |file| {
            let end = offset.saturating_add(length as u64);
            // A read of 0 bytes would not show whether the file is that long.
            let is_strange = length == 0 || length > PLAUSIBLE_BYTES || end > i64::MAX.unsigned_abs();
            if is_strange && self.size(file)? < end {
                return Ok(None);
            }
            let mut bytes = vec![0; length];
            let read = self.fill(file, offset, &mut bytes)?;
            Ok((read == length).then_some(bytes))
        })
    }

    /// Returns the free space on the file system of `path`, if the server reports it.
    pub(crate) fn free_bytes(&self, path: &str) -> SftpResult<Option<u64>> {
        Ok(self.room(path)?.map(|room| room.free_bytes))
    }

    /// Returns the state of the file system of `path`, if the server reports it.
    pub(crate) fn room(&self, path: &str) -> SftpResult<Option<RemoteSpace>> {
        if !self.wire.has(ROOM) {
            return Ok(None);
        }
        match self.wire.ask(PacketType::Extended, &[text(ROOM), text(path)]) {
            Ok(Reply::Extended(body)) => {
                // Block size, fragment size; blocks: total, free, available to us; files: the same; id, flags.
                let mut fields = PacketReader(&body);
                let numbers: Option<Vec<u64>> = (0..10).map(|_| fields.long()).collect();
                match numbers.as_deref() {
                    Some([_, fragment, _, _, free, files, _, free_files, _, flags]) => Ok(Some(RemoteSpace {
                        free_bytes: free.saturating_mul(*fragment),
                        // Some file systems do not count files.
                        is_out_of_files: *files > 0 && *free_files == 0,
                        is_read_only: flags & 1 != 0,
                    })),
                    _ => Err(self.wire.protocol_error().into()),
                }
            }
            Ok(_) => Err(self.wire.protocol_error().into()),
            Err(SftpFault::Refused(SftpStatus::NotFound)) => Err(SftpFault::Refused(SftpStatus::NotFound)),
            Err(SftpFault::Refused(_)) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// Writes from `offset`, syncs and closes, without waiting in between.
    fn write_through(&self, file: &Handle, offset: u64, contents: &[u8], gate: Gate) -> SftpResult<()> {
        let (sent, stopped) = self.send_through(file, offset, contents, gate)?;
        let answer = self.all_done(sent);
        if stopped { answer.and(Err(SftpFault::Refused(SftpStatus::Stopped))) } else { answer }
    }

    /// Sends the requests for [`SftpClient::write_through`]. Returns them and whether the gate stopped the write.
    fn send_through(&self, file: &Handle, mut offset: u64, contents: &[u8], gate: Gate) -> Result<(Vec<Sent>, bool)> {
        let (mut sent, mut stopped) = (Vec::new(), false);
        for piece in contents.chunks(self.pieces()?.write) {
            if !gate(piece.len()) {
                stopped = true;
                break;
            }
            sent.push(self.wire.send(PacketType::Write, &[file.part(), Field::Long(offset), Field::Text(piece)])?);
            offset += piece.len() as u64;
        }
        if self.wire.has(SYNC) {
            sent.push(self.wire.send(PacketType::Extended, &[text(SYNC), file.part()])?);
        }
        sent.push(self.wire.send(PacketType::Close, &[file.part()])?);
        Ok((sent, stopped))
    }

    /// Reads all replies. The first refusal is the cause of the others.
    fn all_done(&self, sent: Vec<Sent>) -> SftpResult<()> {
        let answers: Vec<SftpResult<()>> = sent.into_iter().map(|sent| self.done(sent)).collect();
        answers.into_iter().collect()
    }

    /// Opens a file for reading, runs `work` and closes the file, whatever the result.
    fn reading<T>(&self, path: &str, work: impl FnOnce(&Handle) -> SftpResult<T>) -> SftpResult<T> {
        let sent = self.send_open(path, flags::READ)?;
        let file = self.handle(sent)?;
        let answer = work(&file);
        self.leave(&file);
        answer
    }

    pub(super) fn fill(&self, file: &Handle, offset: u64, bytes: &mut [u8]) -> SftpResult<usize> {
        let piece_bytes = self.pieces()?.read;
        let (mut end, mut refused) = (bytes.len(), None);
        let mut wanted: Vec<Range<usize>> = iter::once(0..bytes.len()).collect();
        // A server may return less than was requested: request the rest again.
        while !wanted.is_empty() && refused.is_none() {
            let mut sent = Vec::new();
            for range in std::mem::take(&mut wanted) {
                for start in range.clone().step_by(piece_bytes) {
                    let length = piece_bytes.min(range.end - start);
                    let place = [Field::Long(offset + start as u64), Field::Number(length as u32)];
                    sent.push((
                        start..start + length,
                        self.wire.send(PacketType::Read, &[file.part(), place[0], place[1]])?,
                    ));
                }
            }
            for (range, sent) in sent {
                match self.wire.receive(sent)? {
                    Reply::Data(data) if !data.is_empty() && data.len() <= range.len() => {
                        let filled = range.start + data.len();
                        bytes[range.start..filled].copy_from_slice(&data);
                        if filled < range.end {
                            wanted.push(filled..range.end);
                        }
                    }
                    Reply::End => end = end.min(range.start),
                    Reply::Refused(refusal) => refused = Some(refusal),
                    _ => return Err(self.wire.protocol_error().into()),
                }
            }
            wanted.retain(|range| range.start < end);
        }
        refused.map_or(Ok(end), |refusal| Err(SftpFault::Refused(refusal)))
    }

    fn size(&self, file: &Handle) -> SftpResult<u64> {
        self.size_of(self.wire.ask(PacketType::StatOpened, &[file.part()])?)
    }

    pub(super) fn size_of(&self, reply: Reply) -> SftpResult<u64> {
        match reply {
            Reply::Stat(stat) => Ok(stat.size_bytes),
            _ => Err(self.wire.protocol_error().into()),
        }
    }

    fn send_make_folder(&self, path: &str) -> Result<Sent> {
        let permissions = [Field::Number(4), Field::Number(0o700)];
        self.wire.send(PacketType::MakeFolder, &[&[text(path)][..], &permissions].concat())
    }

    pub(super) fn send_open(&self, path: &str, flags: u32) -> Result<Sent> {
        let permissions = [Field::Number(4), Field::Number(0o600)];
        self.wire.send(PacketType::Open, &[&[text(path), Field::Number(flags)][..], &permissions].concat())
    }

    pub(super) fn handle(&self, sent: Sent) -> SftpResult<Handle> {
        match self.wire.answer(sent)? {
            Reply::Handle(handle) => Ok(Handle(handle)),
            _ => Err(self.wire.protocol_error().into()),
        }
    }

    /// Opens a folder as if it were a file, to sync it. Returns `None` if the server does not support sync at all.
    fn send_open_folder_to_sync(&self, path: &str) -> Result<Option<Sent>> {
        self.wire
            .has(SYNC)
            .then(|| self.wire.send(PacketType::Open, &[text(path), Field::Number(flags::READ), Field::Number(0)]))
            .transpose()
    }

    /// Not every server opens a folder as if it were a file.
    fn opened_folder(&self, sent: Option<Sent>) -> Result<Option<Handle>> {
        match sent.map(|sent| self.handle(sent)) {
            Some(Ok(folder)) => Ok(Some(folder)),
            None | Some(Err(SftpFault::Refused(_))) => Ok(None),
            Some(Err(SftpFault::Server(error))) => Err(error),
        }
    }

    fn sync_and_close(&self, folder: Option<Handle>) -> Result<Option<Sent>> {
        let Some(folder) = folder else {
            return Ok(None);
        };
        let synced = self.wire.send(PacketType::Extended, &[text(SYNC), folder.part()])?;
        self.leave(&folder);
        Ok(Some(synced))
    }

    /// Not every file system can sync a folder, but a failing disk is an error.
    fn synced(&self, sent: Option<Sent>) -> SftpResult<()> {
        match sent.map(|sent| self.done(sent)) {
            Some(Err(SftpFault::Refused(status))) if status.cannot_sync_folders() => Ok(()),
            Some(answer) => answer,
            None => Ok(()),
        }
    }

    /// Closes a handle that was only read from, together with the next request and without waiting for the reply.
    /// Handles that are still open at the end are closed with the connection.
    pub(super) fn leave(&self, handle: &Handle) {
        self.wire.defer(PacketType::Close, &[handle.part()]);
    }

    fn do_it(&self, call: PacketType, parts: &[Field<'_>]) -> SftpResult<()> {
        let sent = self.wire.send(call, parts)?;
        self.done(sent)
    }

    fn done(&self, sent: Sent) -> SftpResult<()> {
        match self.wire.answer(sent)? {
            Reply::Done => Ok(()),
            _ => Err(self.wire.protocol_error().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_sizes_are_clamped_to_sane_limits() {
        let pieces = |limits: &[u64]| {
            let body: Vec<u8> = limits.iter().flat_map(|limit| limit.to_be_bytes()).collect();
            let RequestBytes { read, write } = RequestBytes::of_limits(&body);
            (read, write)
        };
        assert_eq!(pieces(&[1 << 18, 1 << 16, 1 << 15, 0]), (1 << 16, 1 << 15));
        assert_eq!(pieces(&[1 << 18, 0, 0, 0]), (PIECE_BYTES, PIECE_BYTES));
        assert_eq!(pieces(&[]), (PIECE_BYTES, PIECE_BYTES));
        assert_eq!(pieces(&[1, 1, u64::MAX, 1]), (SHORTEST_PIECE_BYTES, LONG_PIECE_BYTES));
    }
}
