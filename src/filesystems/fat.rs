//! FAT12, FAT16 and FAT32, by the crate `fatfs`.
//!
//! FAT has no owners, modes or links. Its times have no time zone; they are taken as UTC.

use super::blocks::{Allowance, Blocks, Cursor, of_io};
use super::{
    DataRange, FsError, GuestFilesystem, InodeKind, InodeMetadata, Node, OpenedFilesystem, Result, Timestamp, damaged,
    push_range,
};
use fatfs::{FileSystem, FsOptions};
use std::cell::Cell;
use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};

/// "A directory is at most 2 MiB", and its cluster chain is much smaller. The limit stops a chain that loops, even if
/// it contains no names.
const DIRECTORY_BYTES: u64 = 4 << 20;

/// The cluster chain of a 4 GiB file is 32 MiB long if clusters have one sector.
const CHAIN_BYTES: u64 = 64 << 20;

#[derive(Debug, Clone)]
struct FatEntry {
    path: String,
    is_dir: bool,
    size_bytes: u64,
    modified: Option<Timestamp>,
    accessed: Option<Timestamp>,
}

struct Fat {
    filesystem: &'static FileSystem<Cursor>,
    /// Every known file; a node is an index into this list.
    entries: Vec<FatEntry>,
    by_path: HashMap<String, usize>,
    /// The file that was read last, because seeking forward from the previous position is fast.
    last: Option<(Node, fatfs::File<'static, Cursor>)>,
    allowance: Allowance,
}

pub(super) fn open(blocks: &Blocks) -> Result<OpenedFilesystem> {
    let allowance = Allowance::new(Cell::new(DIRECTORY_BYTES));
    let cursor = Cursor::new(blocks, &allowance);
    let filesystem = FileSystem::new(cursor, FsOptions::new()).map_err(|error| of_io(&error))?;
    // The process ends with the request, so leaking is fine. Open files can then borrow from the file system.
    let filesystem: &'static FileSystem<Cursor> = Box::leak(Box::new(filesystem));
    let label = filesystem.read_volume_label_from_root_dir().ok().flatten();
    let label = label.unwrap_or_else(|| filesystem.volume_label()).trim().to_owned();
    let id = filesystem.volume_id();
    let root = FatEntry { path: String::new(), is_dir: true, size_bytes: 0, modified: None, accessed: None };
    let fat = Fat { filesystem, entries: vec![root], by_path: HashMap::new(), last: None, allowance };
    let label = if label == "NO NAME" { String::new() } else { label };
    Ok(OpenedFilesystem {
        filesystem: Box::new(fat),
        label,
        uuid: Some(format!("{:04X}-{:04X}", id >> 16, id & 0xffff)),
    })
}

fn moment(date: fatfs::Date, time: Option<fatfs::Time>) -> Option<Timestamp> {
    let date = chrono::NaiveDate::from_ymd_opt(date.year.into(), date.month.into(), date.day.into())?;
    let (hour, min, sec, milli) = time.map_or((0, 0, 0, 0), |time| (time.hour, time.min, time.sec, time.millis));
    let moment = date.and_hms_milli_opt(hour.into(), min.into(), sec.into(), milli.into())?.and_utc();
    Some(Timestamp { seconds: moment.timestamp(), nanoseconds: moment.timestamp_subsec_nanos() })
}

impl Fat {
    fn entry(&self, node: Node) -> Result<&FatEntry> {
        self.entries.get(node.0 as usize).ok_or_else(|| damaged("a file no longer exists"))
    }

    /// Allows the crate to read the directories on a path, and `more` bytes.
    fn allow(&self, path: &str, more: u64) {
        let directories = 1 + path.split('/').count() as u64;
        self.allowance.set(directories * DIRECTORY_BYTES + more);
    }
}

impl GuestFilesystem for Fat {
    fn root(&self) -> Node {
        Node(0)
    }

    fn metadata(&mut self, node: Node) -> Result<InodeMetadata> {
        let entry = self.entry(node)?;
        Ok(InodeMetadata {
            kind: if entry.is_dir { InodeKind::Directory } else { InodeKind::File },
            size_bytes: entry.size_bytes,
            mode: None,
            owner: None,
            links: 1,
            modified: entry.modified,
            accessed: entry.accessed,
            device: None,
        })
    }

    fn read_dir(&mut self, dir: Node) -> Result<Vec<(Vec<u8>, Node)>> {
        let path = self.entry(dir)?.path.clone();
        self.allow(&path, 0);
        let top = self.filesystem.root_dir();
        let folder = if path.is_empty() { top } else { top.open_dir(&path).map_err(|error| of_io(&error))? };
        let mut found = Vec::new();
        for entry in folder.iter() {
            let entry = entry.map_err(|error| of_io(&error))?;
            let name = entry.file_name();
            if matches!(name.as_str(), "." | ".." | "") {
                continue;
            }
            let path = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
            let modified = entry.modified();
            let entry = FatEntry {
                path: path.clone(),
                is_dir: entry.is_dir(),
                size_bytes: if entry.is_dir() { 0 } else { entry.len() },
                modified: moment(modified.date, Some(modified.time)),
                accessed: moment(entry.accessed(), None),
            };
            let entries = &mut self.entries;
            let number = *self.by_path.entry(path).or_insert_with(|| {
                entries.push(entry);
                entries.len() - 1
            });
            found.push((name.into_bytes(), Node(number as u64)));
        }
        Ok(found)
    }

    fn ignores_case(&self) -> bool {
        true
    }

    fn read_link(&mut self, _node: Node) -> Result<Vec<u8>> {
        Err(FsError::Unsupported("FAT has no symbolic links".into()))
    }

    fn data_ranges(&mut self, node: Node) -> Result<Vec<DataRange>> {
        let mut ranges = Vec::new();
        push_range(&mut ranges, 0, self.entry(node)?.size_bytes)?;
        Ok(ranges)
    }

    fn read_at(&mut self, node: Node, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let path = self.entry(node)?.path.clone();
        self.allow(&path, CHAIN_BYTES + buffer.len() as u64);
        let mut file = match self.last.take() {
            Some((last, file)) if last == node => file,
            _ => self.filesystem.root_dir().open_file(&path).map_err(|error| of_io(&error))?,
        };
        let found = file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(buffer));
        self.last = Some((node, file));
        found.map_err(|error| of_io(&error))
    }
}
