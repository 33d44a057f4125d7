//! File systems and files as records.

use super::super::points::OpenPoint;
use super::{FileSink, GuestFile, WalkStart};
use crate::filesystems::namespace::Names;
use crate::filesystems::volumes::VolumeInfo;
use crate::filesystems::{FsError, Timestamp};
use crate::ops::{Error, Result};
use crate::record::{self, Time};
use chrono::DateTime;

/// The record of a volume's file system.
pub(crate) fn filesystem_record(point: &OpenPoint, volume: &VolumeInfo) -> record::Filesystem {
    record::Filesystem {
        machine: point.manifest.machine.clone(),
        point: point.id.to_string(),
        disk: volume.disk.clone(),
        filesystem: volume.name.clone(),
        format: volume.format.word().to_owned(),
        offset_bytes: volume.offset_bytes,
        size_bytes: volume.size_bytes,
        readable: volume.format.is_readable() && volume.problem.is_none(),
        error: volume.problem.as_ref().map(ToString::to_string),
        label: Some(volume.label.clone()).filter(|label| !label.is_empty()),
        uuid: volume.uuid.clone(),
        system: volume.system.clone(),
        mount_point: volume.mount_point.clone(),
        extra: Default::default(),
    }
}

pub(crate) fn time(time: Timestamp) -> Option<Time> {
    Some(DateTime::from_timestamp(time.seconds, time.nanoseconds)?.fixed_offset())
}

/// Called with each record, or with the error for a file that cannot be read.
pub(crate) type TakeRecord<'a> = &'a mut dyn FnMut(std::result::Result<record::File, Error>) -> Result<()>;

/// Converts files to records.
pub(crate) struct Listing<'a> {
    point: &'a OpenPoint,
    start: WalkStart,
    /// The prefix of each path, such as `vda2:`, if the path on the command line had it.
    prefix: String,
    take: TakeRecord<'a>,
}

impl<'a> Listing<'a> {
    /// The listing of a walk that starts at `path`.
    pub(crate) fn new(point: &'a OpenPoint, path: &str, take: TakeRecord<'a>) -> Listing<'a> {
        let prefix = path.split_once(':').filter(|(volume, _)| !volume.contains('/'));
        let prefix = prefix.map(|(volume, _)| format!("{volume}:")).unwrap_or_default();
        Listing { point, start: WalkStart::default(), prefix, take }
    }

    fn path(&self, names: &Names) -> String {
        format!("{}{}", self.prefix, self.start.path(names))
    }
}

impl FileSink for Listing<'_> {
    fn start(&mut self, start: &WalkStart) -> Result<()> {
        self.start = start.clone();
        Ok(())
    }

    fn file(&mut self, file: GuestFile) -> Result<()> {
        let metadata = &file.metadata;
        let record = record::File {
            path: self.path(&file.names),
            size_bytes: metadata.size_bytes,
            sha256: None,
            machine: Some(self.point.manifest.machine.clone()),
            point: Some(self.point.id.to_string()),
            filesystem: Some(self.start.filesystem.clone()),
            kind: Some(metadata.kind.word().to_owned()),
            mode: metadata.mode.map(|mode| format!("{mode:04o}")),
            uid: metadata.owner.map(|owner| owner.0),
            gid: metadata.owner.map(|owner| owner.1),
            links: Some(metadata.links),
            modified_at: metadata.modified.and_then(time),
            target: file.target.as_ref().map(|target| String::from_utf8_lossy(target).into_owned()),
            extra: Default::default(),
        };
        (self.take)(Ok(record))
    }

    fn unreadable(&mut self, names: &Names, source: FsError) -> Result<()> {
        let path = self.path(names);
        (self.take)(Err(Error::GuestFile { path, source }))
    }
}
