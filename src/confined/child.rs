//! The child process. It answers requests of the parent over its standard input, a socket, which is its only open file.

use super::lockdown::confine;
use super::protocol::{
    BLOCKS, Bytes, ChildReply, ConfinedDisk, DATA, Depth, Entry, Follow, MOST_DATA_BYTES, MOST_MESSAGE_BYTES,
    NO_BLOCKS, ParentRequest, RANGES_PER_MESSAGE, REPLY, REQUEST, WANT_BLOCKS, Walk,
};
use crate::filesystems::blocks::{BlockSource, Cached};
use crate::filesystems::namespace::{Names, Namespace, Place};
use crate::filesystems::systems::{self, System, parse_path};
use crate::filesystems::volumes::{SourceDisk, Volumes};
use crate::filesystems::{FsError, InodeKind, InodeMetadata, Result, damaged};
use std::collections::{HashMap, HashSet};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

/// After this number of all-zero pieces, which are not sent, the parent is notified of progress.
const SIGN_OF_LIFE: usize = 256;

/// Maximum depth of directories; real trees are never that deep.
const MOST_LEVELS: usize = 4096;

/// Confines this process and answers requests until the parent has gone.
pub(crate) fn run() {
    let confined = confine();
    let ready = match &confined {
        Ok(()) => ChildReply::Ready,
        Err(error) => ChildReply::Failed(error.to_string()),
    };
    if send_reply(&ready).is_err() || confined.is_err() {
        return;
    }
    let mut state = OpenedDisks { volumes: Volumes(Vec::new()), systems: Vec::new() };
    while let Ok((REQUEST, body)) = receive() {
        let Ok(request) = serde_json::from_slice::<ParentRequest>(&body) else { return };
        // A parser panics if it meets unexpected bytes.
        let answered = catch_unwind(AssertUnwindSafe(|| state.answer(request)));
        let last = match answered {
            Ok(Ok(())) => ChildReply::Done,
            Ok(Err(Ended::Refused(error))) => ChildReply::Refused(error),
            Ok(Err(Ended::Gone)) => return,
            Err(_) => ChildReply::Refused(damaged("its reader failed")),
        };
        if send_reply(&last).is_err() {
            return;
        }
    }
}

fn write_all(mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(rustix::stdio::stdin(), bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn read_exact(mut buffer: &mut [u8]) -> io::Result<()> {
    while !buffer.is_empty() {
        match rustix::io::read(rustix::stdio::stdin(), &mut *buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => buffer = &mut buffer[read..],
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn send(letter: u8, parts: &[&[u8]]) -> io::Result<()> {
    let length: usize = 1 + parts.iter().map(|part| part.len()).sum::<usize>();
    let mut message = Vec::with_capacity(4 + length);
    message.extend((length as u32).to_le_bytes());
    message.push(letter);
    parts.iter().for_each(|part| message.extend(*part));
    write_all(&message)
}

fn send_reply(reply: &ChildReply) -> io::Result<()> {
    send(REPLY, &[&serde_json::to_vec(reply)?])
}

/// Receives a message: its letter and body.
fn receive() -> io::Result<(u8, Vec<u8>)> {
    let mut length = [0; 4];
    read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if !(1..=MOST_MESSAGE_BYTES).contains(&length) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut letter = [0];
    read_exact(&mut letter)?;
    let mut body = vec![0; length as usize - 1];
    read_exact(&mut body)?;
    Ok((letter[0], body))
}

/// A disk whose blocks the parent provides.
struct RemoteDisk {
    number: u32,
    size_bytes: u64,
}

impl BlockSource for RemoteDisk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let gone = |error: io::Error| FsError::Unreadable(format!("the parent process is gone: {error}"));
        for (number, piece) in buffer.chunks_mut(MOST_DATA_BYTES).enumerate() {
            let at = offset + (number * MOST_DATA_BYTES) as u64;
            let length = piece.len() as u32;
            send(WANT_BLOCKS, &[&self.number.to_le_bytes(), &length.to_le_bytes(), &at.to_le_bytes()]).map_err(gone)?;
            match receive().map_err(gone)? {
                (BLOCKS, bytes) if bytes.len() == piece.len() => piece.copy_from_slice(&bytes),
                (NO_BLOCKS, reason) => return Err(FsError::Unreadable(String::from_utf8_lossy(&reason).into_owned())),
                _ => return Err(FsError::Unreadable("the parent process broke the protocol".into())),
            }
        }
        Ok(())
    }
}

/// Why a request ended early.
enum Ended {
    Refused(FsError),
    /// The parent has gone.
    Gone,
}

impl From<FsError> for Ended {
    fn from(error: FsError) -> Ended {
        Ended::Refused(error)
    }
}

impl From<io::Error> for Ended {
    fn from(_: io::Error) -> Ended {
        Ended::Gone
    }
}

struct OpenedDisks {
    volumes: Volumes,
    systems: Vec<System>,
}

impl OpenedDisks {
    fn answer(&mut self, request: ParentRequest) -> std::result::Result<(), Ended> {
        match request {
            ParentRequest::Open { disks } => self.open(&disks),
            ParentRequest::Walk(walk) => self.walk(&walk),
        }
    }

    fn open(&mut self, disks: &[ConfinedDisk]) -> std::result::Result<(), Ended> {
        let disks: Vec<SourceDisk> = disks
            .iter()
            .zip(0..)
            .map(|(disk, number)| {
                let remote = RemoteDisk { number, size_bytes: disk.size_bytes };
                SourceDisk { name: disk.name.clone(), blocks: Rc::new(Cached::new(remote)), number: disk.number }
            })
            .collect();
        self.volumes = Volumes::find(&disks);
        self.systems = systems::find(&mut self.volumes);
        let about = self.volumes.0.iter().map(|volume| volume.about.clone()).collect();
        Ok(send_reply(&ChildReply::Volumes(about))?)
    }

    fn walk(&mut self, walk: &Walk) -> std::result::Result<(), Ended> {
        let (tree, path) = parse_path(&walk.path, &mut self.volumes, &self.systems)?;
        let (mut names, mut place) = tree.resolve(&mut self.volumes, &path, walk.follow == Follow::Yes)?;
        if walk.follow == Follow::ToDirectory
            && let Ok((followed, target)) = tree.resolve(&mut self.volumes, &path, true)
            && self.metadata(target)?.kind == InodeKind::Directory
        {
            (names, place) = (followed, target);
        }
        let volume = self.volumes.0[place.volume].about.name.clone();
        let start = names.iter().cloned().map(Bytes).collect();
        send_reply(&ChildReply::Start { volume, names: start })?;
        let mut walker = Walker {
            state: self,
            tree,
            start: names,
            content: walk.content,
            sent: HashMap::new(),
            directories: HashSet::new(),
        };
        walker.run(place, walk.depth)
    }

    fn metadata(&mut self, place: Place) -> Result<InodeMetadata> {
        self.volumes.filesystem(place.volume)?.metadata(place.node)
    }
}

struct Walker<'s> {
    state: &'s mut OpenedDisks,
    tree: Namespace,
    start: Names,
    content: bool,
    /// Files with several names, and the name under which each was sent.
    sent: HashMap<(usize, u64), Names>,
    /// Directories that were visited, each with the mount that shows it: a directory cannot have two names in a mount.
    directories: HashSet<(Option<usize>, usize, u64)>,
}

impl Walker<'_> {
    fn run(&mut self, place: Place, depth: Depth) -> std::result::Result<(), Ended> {
        let is_directory = self.state.metadata(place)?.kind == InodeKind::Directory;
        let mut rest: Vec<(Names, Place)> = match depth {
            Depth::Children if is_directory => self.children(&Vec::new(), place)?,
            _ => vec![(Vec::new(), place)],
        };
        while let Some((names, place)) = rest.pop() {
            match self.entry(&names, place) {
                Ok(InodeKind::Directory) if depth == Depth::All => match self.children(&names, place) {
                    Ok(children) => rest.extend(children),
                    Err(error) => unreadable(&names, error)?,
                },
                Ok(_) => {}
                Err(Ended::Refused(error)) => {
                    // Its other names must not be sent as links to a file that was not sent.
                    self.sent.retain(|_, sent| *sent != names);
                    unreadable(&names, error)?;
                }
                Err(Ended::Gone) => return Err(Ended::Gone),
            }
        }
        Ok(())
    }

    /// Returns the entries of a directory, last name first.
    fn children(&mut self, names: &Names, dir: Place) -> Result<Vec<(Names, Place)>> {
        if names.len() >= MOST_LEVELS {
            return Err(damaged("directories do not end"));
        }
        let full: Names = self.start.iter().chain(names).cloned().collect();
        if !self.directories.insert((self.tree.mount_of(&full), dir.volume, dir.node.0)) {
            return Err(damaged("the directory contains itself, or is in two directories"));
        }
        let children = self.tree.children(&mut self.state.volumes, &full, dir)?;
        let below = children.into_iter().rev().map(|(name, place)| {
            let mut names = names.clone();
            names.push(name);
            (names, place)
        });
        Ok(below.collect())
    }

    /// Sends a file and its content.
    fn entry(&mut self, names: &Names, place: Place) -> std::result::Result<InodeKind, Ended> {
        let content = self.content;
        let filesystem = self.state.volumes.filesystem(place.volume)?;
        let metadata = filesystem.metadata(place.node)?;
        let target = match metadata.kind {
            InodeKind::Symlink => Some(Bytes(filesystem.read_link(place.node)?)),
            _ => None,
        };
        let key = (place.volume, place.node.0);
        let has_more_names = metadata.links > 1 && metadata.kind == InodeKind::File;
        let same_as = self.sent.get(&key).filter(|_| content).cloned();
        if has_more_names && same_as.is_none() {
            self.sent.insert(key, names.clone());
        }
        let xattrs = if content && same_as.is_none() { filesystem.xattrs(place.node)? } else { Vec::new() };
        let kind = metadata.kind;
        let has_data = content && kind == InodeKind::File && same_as.is_none();
        let ranges = if has_data { filesystem.data_ranges(place.node)? } else { Vec::new() };
        let size_bytes = metadata.size_bytes;
        send_reply(&ChildReply::Entry(Entry {
            names: names.iter().cloned().map(Bytes).collect(),
            metadata,
            target,
            same_as: same_as.map(|names| names.into_iter().map(Bytes).collect()),
            xattrs: xattrs.into_iter().map(|(name, value)| (Bytes(name), Bytes(value))).collect(),
        }))?;
        if !has_data {
            return Ok(kind);
        }
        for part in ranges.chunks(RANGES_PER_MESSAGE) {
            send_reply(&ChildReply::Ranges(part.to_vec()))?;
        }
        let (mut buffer, mut skipped) = (vec![0; MOST_DATA_BYTES], 0_usize);
        for range in ranges {
            let end = range.offset.saturating_add(range.length).min(size_bytes);
            let mut at = range.offset;
            while at < end {
                let length = (end - at).min(MOST_DATA_BYTES as u64) as usize;
                let piece = &mut buffer[..length];
                filesystem.read_at(place.node, at, piece)?;
                // The parent fills gaps with zeros.
                if piece.iter().any(|byte| *byte != 0) {
                    send(DATA, &[&at.to_le_bytes(), piece])?;
                    skipped = 0;
                } else {
                    skipped += 1;
                    if skipped % SIGN_OF_LIFE == 0 {
                        send_reply(&ChildReply::Working)?;
                    }
                }
                at += length as u64;
            }
        }
        send_reply(&ChildReply::EndOfFile)?;
        Ok(kind)
    }
}

fn unreadable(names: &Names, error: FsError) -> io::Result<()> {
    send_reply(&ChildReply::Unreadable { names: names.iter().cloned().map(Bytes).collect(), error })
}
