//! Lists, prints and copies the files of a point without restoring a disk and without mounting anything.
//!
//! | module | content |
//! | --- | --- |
//! | this | the connection to the confined process: serves the blocks that it requests and checks all its answers |
//! | `listing` | file systems and files as records |
//! | `content` | the bytes of files, one after the other |
//! | `copy` | copies files into a folder of this host |
//! | `archive` | writes files as a tar archive |
//! | `guestfish` | a session of `guestfish`, which reads devices in a virtual machine |
//! | `opened` | the LUKS, RAID and logical volumes that guestfish opens |

pub(crate) mod archive;
pub(crate) mod content;
pub(crate) mod copy;
mod guestfish;
pub(crate) mod listing;
mod opened;

use super::manifest::ManifestDisk;
use super::points::OpenPoint;
use super::serve::PointDisks;
use super::{Error, Monitor, Result, Stop};
use crate::capture::RuntimeDirs;
use crate::confined::parent::{Confined, Event};
use crate::confined::protocol::{Bytes, ChildReply, ConfinedDisk, ParentRequest};
pub(crate) use crate::confined::protocol::{Depth, Follow, Walk};
use crate::filesystems::format::FilesystemFormat;
use crate::filesystems::namespace::{Names, display};
use crate::filesystems::volumes::VolumeInfo;
use crate::filesystems::{DataRange, FsError, InodeMetadata};
use crate::nbd::Piece;
use crate::record::Damage;
use crate::repo::{Index, Repository};
pub(crate) use opened::AskPassphrase;
use opened::OpenedDevices;
use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

/// "A component of a pathname has at most 255 bytes".
const MOST_NAME_BYTES: usize = 255;

/// The maximum length of a link target on this host.
const MOST_TARGET_BYTES: usize = 4095;

/// A file as the guest describes it. Each of its names was checked and is safe to use.
#[derive(Debug, Clone)]
pub(crate) struct GuestFile {
    /// The names below the start of the walk; empty for the start itself.
    pub(crate) names: Names,
    pub(crate) metadata: InodeMetadata,
    pub(crate) target: Option<Vec<u8>>,
    /// The names of an earlier hard link to the same file.
    pub(crate) same_as: Option<Names>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The start of a walk.
#[derive(Debug, Clone, Default)]
pub(crate) struct WalkStart {
    /// The file system, such as `vda2`.
    pub(crate) filesystem: String,
    /// The names from the root of the file system or of the operating system.
    pub(crate) names: Names,
}

impl WalkStart {
    /// The full path of a file of the walk, for messages.
    pub(crate) fn path(&self, names: &Names) -> String {
        let all: Names = self.names.iter().chain(names).cloned().collect();
        display(&all)
    }
}

/// Receives the results of a walk: for each file its metadata, data ranges, data and end. An error ends the walk.
pub(crate) trait FileSink {
    fn start(&mut self, _start: &WalkStart) -> Result<()> {
        Ok(())
    }

    fn file(&mut self, file: GuestFile) -> Result<()>;

    /// Ranges of the file that have data, in order. May be called several times.
    fn ranges(&mut self, _ranges: &[DataRange]) -> Result<()> {
        Ok(())
    }

    /// Bytes within one of the ranges, in order. Bytes that are not received are zeros.
    fn data(&mut self, _offset: u64, _bytes: &[u8]) -> Result<()> {
        Ok(())
    }

    /// The file is complete.
    fn end_of_file(&mut self) -> Result<()> {
        Ok(())
    }

    /// A file cannot be read. If parts of it were received already, no more follow.
    fn unreadable(&mut self, names: &Names, error: FsError) -> Result<()>;
}

/// The files of a point.
pub(crate) struct PointFiles {
    confined: Confined,
    /// Whether a walk ended early, so that the rest of its answers would be taken for those to the next one.
    has_unread_answers: bool,
    disks: PointDisks,
    /// The devices that guestfish opened on the disks.
    opened: Option<OpenedDevices>,
    volumes: Vec<VolumeInfo>,
    stop: Stop,
}

impl PointFiles {
    /// Opens the file systems on disks of a point.
    pub(crate) fn open(
        repo: &Repository,
        index: Arc<Index>,
        point: &OpenPoint,
        wanted: &[&ManifestDisk],
        stop: &Stop,
    ) -> Result<PointFiles> {
        let disks = PointDisks::open(repo, index, point, wanted, stop)?;
        let confined = Confined::start(stop.flag())?;
        let (opened, volumes, stop) = (None, Vec::new(), stop.clone());
        let mut files = PointFiles { confined, has_unread_answers: false, disks, opened, volumes, stop };
        files.find_volumes()?;
        Ok(files)
    }

    /// Opens volumes that kvmb itself cannot read (LUKS, RAID, other kinds of logical volumes) with `guestfish`, if
    /// there are any.
    pub(crate) fn open_closed(
        &mut self,
        runtime: &RuntimeDirs,
        monitor: &dyn Monitor,
        ask: AskPassphrase<'_>,
    ) -> Result<()> {
        if !self.volumes.iter().any(opened::is_closed) {
            return Ok(());
        }
        // The passphrases known to be needed are requested before the virtual machine starts, so that the user need not
        // wait.
        let mut passphrases = BTreeMap::new();
        for volume in self.volumes.iter().filter(|volume| volume.format == FilesystemFormat::Luks) {
            passphrases.insert(volume.name.clone(), ask(&volume.name)?);
        }
        let mut ask = |volume: &str| match passphrases.remove(volume) {
            Some(known) => Ok(known),
            None => ask(volume),
        };
        let started = {
            let _progress = monitor.start("starting", "guestfish", 0);
            OpenedDevices::start(&self.disks.disks, runtime, &self.stop)?
        };
        let opened = self.opened.insert(started);
        // An opened volume may contain further closed ones, as with logical volumes on LUKS on RAID.
        let mut has_more = opened.open(&self.volumes, &mut ask)?;
        while has_more {
            // A new process has an empty cache and knows the new devices.
            self.start_again()?;
            has_more = match &mut self.opened {
                Some(opened) => opened.open(&self.volumes, &mut ask)?,
                None => false,
            };
        }
        Ok(())
    }

    /// Replaces the confined process.
    fn start_again(&mut self) -> Result<()> {
        self.confined = Confined::start(self.stop.flag())?;
        self.has_unread_answers = false;
        self.find_volumes()
    }

    /// Queries the file systems and operating systems.
    fn find_volumes(&mut self) -> Result<()> {
        let disks = self.disks.disks.iter().zip(0..).map(|((name, export), number)| ConfinedDisk {
            name: name.clone(),
            size_bytes: export.size_bytes(),
            number: Some(number),
        });
        let devices = self.opened.iter().flat_map(OpenedDevices::devices).map(|device| ConfinedDisk {
            name: device.name.clone(),
            size_bytes: device.size_bytes,
            number: None,
        });
        let request = ParentRequest::Open { disks: disks.chain(devices).collect() };
        let (mut found, mut refused) = (Vec::new(), None);
        self.ask(&request, &mut |event| {
            match event {
                Event::Reply(ChildReply::Volumes(volumes)) => found = volumes,
                Event::Reply(ChildReply::Refused(error)) => refused = Some(error),
                _ => {}
            }
            ControlFlow::Continue(())
        })?;
        match refused {
            Some(source) => Err(Error::GuestFile { path: "the file systems".to_owned(), source }),
            None => {
                self.volumes = found;
                Ok(())
            }
        }
    }

    /// The volumes on the disks.
    pub(crate) fn volumes(&self) -> &[VolumeInfo] {
        &self.volumes
    }

    /// Returns the damage of the repository found since the last call.
    pub(crate) fn take_damage(&self) -> Vec<Damage> {
        self.disks.take_damage()
    }

    /// Passes the files of a walk to a sink.
    pub(crate) fn walk(&mut self, walk: &Walk, sink: &mut dyn FileSink) -> Result<()> {
        if self.has_unread_answers {
            self.start_again()?;
        }
        let mut checker = Checker { sink, open: None, refused: None };
        let mut result = Ok(());
        self.ask(&ParentRequest::Walk(walk.clone()), &mut |event| {
            result = checker.take(event);
            match result {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        })?;
        self.has_unread_answers = result.is_err();
        result?;
        match checker.refused {
            Some(source) => Err(Error::GuestFile { path: walk.path.clone(), source }),
            None => Ok(()),
        }
    }

    fn ask(&mut self, request: &ParentRequest, take: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>) -> Result<()> {
        let (disks, opened) = (&self.disks.disks, &mut self.opened);
        let mut read = |disk: usize, offset: u64, buffer: &mut [u8]| {
            if let (Some(device), Some(opened)) = (disk.checked_sub(disks.len()), opened.as_mut()) {
                return opened.read(device, offset, buffer);
            }
            let (_, export) = disks.get(disk).ok_or("there is no such disk")?;
            let length = buffer.len() as u32;
            if offset.checked_add(length.into()).is_none_or(|end| end > export.size_bytes()) {
                return Err("the disk ends before that".to_owned());
            }
            read_export(export.as_ref(), offset, buffer)
        };
        Ok(self.confined.ask(request, &mut read, take)?)
    }
}

fn read_export(export: &dyn crate::nbd::Export, offset: u64, buffer: &mut [u8]) -> std::result::Result<(), String> {
    let (length, mut filled, mut missing) = (buffer.len() as u32, 0, None);
    let read = export.read(offset, length, &mut |piece| {
        let end = filled + piece.length_bytes() as usize;
        let place = buffer.get_mut(filled..end).ok_or(io::ErrorKind::InvalidData)?;
        match piece {
            Piece::Zeros(_) => place.fill(0),
            Piece::Data(bytes) => place.copy_from_slice(bytes),
            Piece::Unreadable { reason, .. } => drop(missing.get_or_insert_with(|| reason.to_owned())),
        }
        filled = end;
        Ok(())
    });
    match (missing, read) {
        (Some(reason), _) => Err(reason),
        (None, Err(error)) => Err(error.to_string()),
        (None, Ok(())) if filled < buffer.len() => Err("not all of it arrived".to_owned()),
        (None, Ok(())) => Ok(()),
    }
}

/// Why a file name is invalid.
fn name_fault(name: &[u8]) -> Option<&'static str> {
    match name {
        b"" | b"." | b".." => Some("its name refers to another folder"),
        name if name.contains(&b'/') || name.contains(&0) => Some("its name contains a slash or a zero byte"),
        name if name.len() > MOST_NAME_BYTES => Some("its name is too long for this host"),
        _ => None,
    }
}

/// Checks the messages of the confined process before they are used.
struct Checker<'s> {
    sink: &'s mut dyn FileSink,
    /// The file whose data is being received.
    open: Option<OpenFile>,
    refused: Option<FsError>,
}

struct OpenFile {
    size_bytes: u64,
    ranges: Vec<DataRange>,
    /// The index of the current range.
    at: usize,
    /// The end of the data received so far.
    next: u64,
}

fn nonsense(what: &str) -> Error {
    Error::GuestFile { path: "the guest".to_owned(), source: FsError::Damaged(what.to_owned()) }
}

impl Checker<'_> {
    fn take(&mut self, event: Event<'_>) -> Result<()> {
        match event {
            Event::Data { offset, bytes } => self.data(offset, bytes),
            Event::Reply(ChildReply::Start { volume, names }) => {
                let names = plain(names);
                match names.iter().find_map(|name| name_fault(name)) {
                    Some(fault) => Err(nonsense(fault)),
                    None => self.sink.start(&WalkStart { filesystem: volume, names }),
                }
            }
            Event::Reply(ChildReply::Entry(entry)) => {
                self.open = None;
                let file = GuestFile {
                    names: plain(entry.names),
                    metadata: entry.metadata,
                    target: entry.target.map(|target| target.0),
                    same_as: entry.same_as.map(plain),
                    xattrs: entry.xattrs.into_iter().map(|(name, value)| (name.0, value.0)).collect(),
                };
                self.file(file)
            }
            Event::Reply(ChildReply::Ranges(ranges)) => self.ranges(&ranges),
            Event::Reply(ChildReply::EndOfFile) => match self.open.take() {
                Some(_) => self.sink.end_of_file(),
                None => Ok(()),
            },
            Event::Reply(ChildReply::Unreadable { names, error }) => {
                self.open = None;
                self.sink.unreadable(&plain(names), error)
            }
            Event::Reply(ChildReply::Refused(error)) => {
                self.refused = Some(error);
                Ok(())
            }
            Event::Reply(ChildReply::Done | ChildReply::Working) => Ok(()),
            Event::Reply(ChildReply::Ready | ChildReply::Failed(_) | ChildReply::Volumes(_)) => {
                Err(nonsense("the confined process answered an unknown request"))
            }
        }
    }

    fn file(&mut self, file: GuestFile) -> Result<()> {
        let names = file.names.iter().chain(file.same_as.iter().flatten());
        let fault = names.into_iter().find_map(|name| name_fault(name));
        let target = file.target.as_deref().unwrap_or_default();
        let target_fault = match target {
            target if target.contains(&0) => Some("its target contains a zero byte"),
            target if target.len() > MOST_TARGET_BYTES => Some("its target is too long for this host"),
            _ => None,
        };
        if let Some(fault) = fault.or(target_fault) {
            return self.sink.unreadable(&file.names, FsError::Unsupported(format!("it is refused: {fault}")));
        }
        let size_bytes = file.metadata.size_bytes;
        self.open = Some(OpenFile { size_bytes, ranges: Vec::new(), at: 0, next: 0 });
        self.sink.file(file)
    }

    fn ranges(&mut self, ranges: &[DataRange]) -> Result<()> {
        // The ranges of a refused file are ignored.
        let Some(open) = &mut self.open else { return Ok(()) };
        let mut last = open.ranges.last().map_or(0, |range| range.offset + range.length);
        for range in ranges {
            let end = range.offset.checked_add(range.length).filter(|end| *end <= open.size_bytes);
            match end {
                Some(end) if range.offset >= last && range.length > 0 => last = end,
                _ => return Err(nonsense("the data of a file has an impossible offset")),
            }
        }
        open.ranges.extend_from_slice(ranges);
        self.sink.ranges(ranges)
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let end = offset.saturating_add(bytes.len() as u64);
        while open.ranges.get(open.at).is_some_and(|range| range.offset + range.length <= offset) {
            open.at += 1;
        }
        let range = open.ranges.get(open.at);
        let is_within = range.is_some_and(|range| range.offset <= offset && end <= range.offset + range.length);
        if offset < open.next || !is_within || bytes.is_empty() {
            return Err(nonsense("the data is not part of its file"));
        }
        open.next = end;
        self.sink.data(offset, bytes)
    }
}

fn plain(names: Vec<Bytes>) -> Names {
    names.into_iter().map(|name| name.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::confined::protocol::Entry;

    #[derive(Default)]
    struct Recorder(Vec<String>);

    impl FileSink for Recorder {
        fn file(&mut self, file: GuestFile) -> Result<()> {
            self.0.push(display(&file.names));
            Ok(())
        }

        fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
            self.0.push(format!("{} at {offset}", bytes.len()));
            Ok(())
        }

        fn unreadable(&mut self, _: &Names, error: FsError) -> Result<()> {
            self.0.push(error.to_string());
            Ok(())
        }
    }

    fn entry(names: &[&[u8]], size_bytes: u64) -> Event<'static> {
        let metadata = InodeMetadata::of_file(size_bytes);
        let names = names.iter().map(|name| Bytes(name.to_vec())).collect();
        Event::Reply(ChildReply::Entry(Entry { names, metadata, target: None, same_as: None, xattrs: Vec::new() }))
    }

    #[test]
    fn unsafe_names_are_refused_and_the_listing_continues() {
        let long = [b'x'; 256];
        for wrong in [&b".."[..], b".", b"", b"a/b", b"a\0", &long] {
            let mut sink = Recorder::default();
            let mut checker = Checker { sink: &mut sink, open: None, refused: None };
            checker.take(entry(&[b"a", wrong], 10)).unwrap();
            // The data of the refused file is ignored.
            checker.take(Event::Reply(ChildReply::Ranges(vec![DataRange { offset: 0, length: 10 }]))).unwrap();
            checker.take(Event::Data { offset: 0, bytes: b"0123456789" }).unwrap();
            checker.take(entry(&[b"good"], 0)).unwrap();
            assert_eq!(sink.0.len(), 2, "{wrong:?}: {:?}", sink.0);
            assert!(sink.0[0].contains("refused"), "{:?}", sink.0);
            assert_eq!(sink.0[1], "/good");
        }
    }

    #[test]
    fn data_outside_of_its_file_is_an_error() {
        let range = |offset, length| Event::Reply(ChildReply::Ranges(vec![DataRange { offset, length }]));
        let data = |offset| Event::Data { offset, bytes: b"xx" };
        for wrong in [
            vec![range(0, 11)],
            vec![range(u64::MAX, 2)],
            vec![range(4, 4), range(2, 1)],
            vec![range(4, 4), data(3)],
            vec![range(4, 4), data(7)],
            vec![range(4, 4), data(4), data(4)],
            vec![data(0)],
        ] {
            let mut sink = Recorder::default();
            let mut checker = Checker { sink: &mut sink, open: None, refused: None };
            checker.take(entry(&[b"a"], 10)).unwrap();
            let last = wrong.into_iter().map(|event| checker.take(event)).last();
            assert!(last.is_some_and(|last| last.is_err()));
        }
    }
}
