//! NTFS, by the crate `ntfs`.
//!
//! Refuses compressed, encrypted and deduplicated files, and those that Windows stores elsewhere, because their
//! clusters do not contain their plain data. Reads zeros beyond a file's initialised size, which the crate does not
//! handle.

use super::blocks::{Allowance, Blocks, Cursor, le16, le32, le64, of_io};
use super::{
    DataRange, FsError, GuestFilesystem, InodeKind, InodeMetadata, Node, OpenedFilesystem, Result, Timestamp, damaged,
    push_range,
};
use ::ntfs::attribute_value::NtfsAttributeValue;
use ::ntfs::structured_values::{NtfsFileAttributeFlags, NtfsFileNamespace, NtfsIndexRoot};
use ::ntfs::{
    Ntfs, NtfsAttributeFlags, NtfsAttributeItem, NtfsAttributeType, NtfsError, NtfsFile, NtfsReadSeek, NtfsTime,
};
use std::cell::Cell;
use std::io::SeekFrom;
use std::rc::Rc;

const ROOT: u64 = 5;

/// Smaller record numbers belong to NTFS's own files.
const FIRST_USER_FILE: u64 = 24;

/// Maximum number of bytes read from a directory: the records of 5 million files. Stops an index that loops.
const DIRECTORY_BYTES: u64 = 512 << 20;

/// Maximum number of bytes read to find a file's attributes, which may be spread over many records.
const ATTRIBUTES_BYTES: u64 = 64 << 20;

/// Index records have 4 KiB; this is the largest cluster size of older Windows versions.
const MOST_INDEX_RECORD_BYTES: u32 = 64 << 10;

/// "Maximum reparse data: 16 KiB".
const MOST_REPARSE_BYTES: u64 = 16 << 10;

const TAG_MOUNT_POINT: u32 = 0xa000_0003;
const TAG_SYMLINK: u32 = 0xa000_000c;
const TAG_LINUX_SYMLINK: u32 = 0xa000_001d;

/// The seconds from 1601 to 1970.
const EPOCH_SECONDS: i64 = 11_644_473_600;

struct NtfsVolume {
    blocks: Blocks,
    cursor: Cursor,
    allowance: Allowance,
    ntfs: Rc<Ntfs>,
}

pub(super) fn open(blocks: &Blocks) -> Result<OpenedFilesystem> {
    let allowance = Allowance::new(Cell::new(ATTRIBUTES_BYTES));
    let mut cursor = Cursor::new(blocks, &allowance);
    let mut ntfs = Ntfs::new(&mut cursor).map_err(of_ntfs)?;
    ntfs.read_upcase_table(&mut cursor).map_err(of_ntfs)?;
    let label = match ntfs.volume_name(&mut cursor) {
        Some(Ok(name)) => name.name().to_string_lossy(),
        _ => String::new(),
    };
    let uuid = Some(format!("{:016X}", ntfs.serial_number()));
    let volume = NtfsVolume { blocks: blocks.clone(), cursor, allowance, ntfs: Rc::new(ntfs) };
    Ok(OpenedFilesystem { filesystem: Box::new(volume), label, uuid })
}

fn of_ntfs(error: NtfsError) -> FsError {
    match error {
        NtfsError::Io(error) => of_io(&error),
        error => damaged(error.to_string()),
    }
}

fn moment(time: NtfsTime) -> Timestamp {
    let ticks = time.nt_timestamp();
    let seconds = (ticks / 10_000_000).cast_signed() - EPOCH_SECONDS;
    Timestamp { seconds, nanoseconds: (ticks % 10_000_000) as u32 * 100 }
}

/// The meaning of a file's reparse point.
enum Reparse {
    None,
    Link(Vec<u8>),
    Other(u32),
}

/// A file's data attribute, its size, and how much of it is initialised.
struct Data<'n, 'f> {
    item: Option<NtfsAttributeItem<'n, 'f>>,
    size_bytes: u64,
    written_bytes: u64,
}

impl NtfsVolume {
    /// Opens a file, and allows the crate to read this many bytes of it.
    fn file<'n>(&mut self, ntfs: &'n Ntfs, node: Node, most_bytes: u64) -> Result<NtfsFile<'n>> {
        self.allowance.set(most_bytes);
        ntfs.file(&mut self.cursor, node.0).map_err(of_ntfs)
    }

    fn reparse(&mut self, file: &NtfsFile<'_>) -> Result<Reparse> {
        let flags = file.info().map_err(of_ntfs)?.file_attributes();
        if !flags.contains(NtfsFileAttributeFlags::REPARSE_POINT) {
            return Ok(Reparse::None);
        }
        let mut attributes = file.attributes();
        while let Some(item) = attributes.next(&mut self.cursor) {
            let item = item.map_err(of_ntfs)?;
            let attribute = item.to_attribute().map_err(of_ntfs)?;
            if attribute.ty().ok() != Some(NtfsAttributeType::ReparsePoint) {
                continue;
            }
            let mut bytes = vec![0; attribute.value_length().min(MOST_REPARSE_BYTES) as usize];
            let mut value = attribute.value(&mut self.cursor).map_err(of_ntfs)?;
            value.read_exact(&mut self.cursor, &mut bytes).map_err(of_ntfs)?;
            return Ok(reparse_of(&bytes));
        }
        Ok(Reparse::Other(0))
    }

    fn data<'n, 'f>(&mut self, file: &'f NtfsFile<'n>) -> Result<Data<'n, 'f>> {
        let Some(item) = file.data(&mut self.cursor, "") else {
            return Ok(Data { item: None, size_bytes: 0, written_bytes: 0 });
        };
        let item = item.map_err(of_ntfs)?;
        let attribute = item.to_attribute().map_err(of_ntfs)?;
        let size_bytes = attribute.value_length();
        let mut written_bytes = size_bytes;
        if !attribute.is_resident() {
            let position = attribute.position().value().map(|position| position.get());
            written_bytes = self.initialised_bytes(position.unwrap_or_default())?.min(size_bytes);
        }
        Ok(Data { item: Some(item), size_bytes, written_bytes })
    }

    /// Fails if the records of a directory's index are too large, because the crate allocates memory for them.
    fn check_index(&mut self, file: &NtfsFile<'_>) -> Result<()> {
        let mut attributes = file.attributes();
        while let Some(item) = attributes.next(&mut self.cursor) {
            let item = item.map_err(of_ntfs)?;
            let attribute = item.to_attribute().map_err(of_ntfs)?;
            if attribute.ty().ok() == Some(NtfsAttributeType::IndexRoot) {
                let root = attribute.resident_structured_value::<NtfsIndexRoot<'_>>().map_err(of_ntfs)?;
                if root.index_record_size() > MOST_INDEX_RECORD_BYTES {
                    return Err(damaged("an index has records of an impossible size"));
                }
            }
        }
        Ok(())
    }

    /// Returns the initialised size of the attribute at a position of the volume. Reads it from the attribute's file
    /// record, after undoing the update sequence fix-up.
    fn initialised_bytes(&self, position: u64) -> Result<u64> {
        let record_bytes = u64::from(self.ntfs.file_record_size());
        let start = position - position % record_bytes;
        let mut record = vec![0; record_bytes as usize];
        self.blocks_read(start, &mut record)?;
        let (array, count) = (usize::from(le16(&record, 4)), usize::from(le16(&record, 6)));
        if !record.starts_with(b"FILE") || array + 2 * count > record.len() {
            return Err(FsError::Unsupported("the file's record is in a place that this version does not read".into()));
        }
        for sector in 1..count {
            let (original, place) = (le16(&record, array + 2 * sector), 512 * sector - 2);
            if let Some(end) = record.get_mut(place..place + 2) {
                end.copy_from_slice(&original.to_le_bytes());
            }
        }
        let attribute = (position - start) as usize;
        match record.get(attribute..attribute + 64) {
            Some(header) if le32(header, 0) == NtfsAttributeType::Data as u32 && header[8] == 1 => Ok(le64(header, 56)),
            _ => Err(damaged("a data attribute is not where it was")),
        }
    }

    fn blocks_read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.blocks.read_at(offset, buffer)
    }

    /// Returns a file's data, unless its clusters do not contain it.
    fn readable_data<'n, 'f>(&mut self, file: &'f NtfsFile<'n>) -> Result<Data<'n, 'f>> {
        if let Reparse::Other(tag) = self.reparse(file)? {
            let what = format!("the file is compressed, deduplicated or in a cloud (reparse tag {tag:#010x})");
            return Err(FsError::Unsupported(what));
        }
        let data = self.data(file)?;
        if let Some(item) = &data.item {
            let flags = item.to_attribute().map_err(of_ntfs)?.flags();
            let word = match () {
                () if flags.contains(NtfsAttributeFlags::ENCRYPTED) => Some("encrypted"),
                () if flags.contains(NtfsAttributeFlags::COMPRESSED) => Some("compressed"),
                () => None,
            };
            if let Some(word) = word {
                return Err(FsError::Unsupported(format!("the file is {word} by NTFS")));
            }
        }
        Ok(data)
    }
}

fn reparse_of(bytes: &[u8]) -> Reparse {
    let tag = le32(bytes, 0);
    let names = match tag {
        TAG_SYMLINK => 20,
        TAG_MOUNT_POINT => 16,
        TAG_LINUX_SYMLINK => return Reparse::Link(bytes.get(12..).unwrap_or_default().to_vec()),
        tag => return Reparse::Other(tag),
    };
    // The print name or the substitute name.
    let name = |at: usize| {
        let (offset, length) = (usize::from(le16(bytes, at)), usize::from(le16(bytes, at + 2)));
        let units = bytes.get(names + offset..names + offset + length)?.chunks_exact(2);
        let units: Vec<u16> = units.map(|unit| u16::from_le_bytes([unit[0], unit[1]])).collect();
        (!units.is_empty()).then(|| String::from_utf16_lossy(&units))
    };
    let target = name(12).or_else(|| name(8)).unwrap_or_default();
    Reparse::Link(target.trim_start_matches(r"\??\").as_bytes().to_vec())
}

impl GuestFilesystem for NtfsVolume {
    fn root(&self) -> Node {
        Node(ROOT)
    }

    fn metadata(&mut self, node: Node) -> Result<InodeMetadata> {
        let ntfs = Rc::clone(&self.ntfs);
        let file = &self.file(&ntfs, node, ATTRIBUTES_BYTES)?;
        let info = file.info().map_err(of_ntfs)?;
        let reparse = self.reparse(file)?;
        let mut names = 0;
        let mut attributes = file.attributes();
        while let Some(item) = attributes.next(&mut self.cursor) {
            let item = item.map_err(of_ntfs)?;
            let attribute = item.to_attribute().map_err(of_ntfs)?;
            if attribute.ty().ok() == Some(NtfsAttributeType::FileName) {
                let name = attribute.structured_value::<_, ::ntfs::structured_values::NtfsFileName>(&mut self.cursor);
                names += u32::from(name.is_ok_and(|name| name.namespace() != NtfsFileNamespace::Dos));
            }
        }
        let (kind, size_bytes) = match &reparse {
            Reparse::Link(target) => (InodeKind::Symlink, target.len() as u64),
            _ if file.is_directory() => (InodeKind::Directory, 0),
            _ => (InodeKind::File, self.data(file)?.size_bytes),
        };
        Ok(InodeMetadata {
            kind,
            size_bytes,
            mode: None,
            owner: None,
            links: names.max(1),
            modified: Some(moment(info.modification_time())),
            accessed: Some(moment(info.access_time())),
            device: None,
        })
    }

    fn read_dir(&mut self, dir: Node) -> Result<Vec<(Vec<u8>, Node)>> {
        let ntfs = Rc::clone(&self.ntfs);
        let file = self.file(&ntfs, dir, DIRECTORY_BYTES)?;
        self.check_index(&file)?;
        let index = file.directory_index(&mut self.cursor).map_err(of_ntfs)?;
        let mut entries = index.entries();
        let mut found = Vec::new();
        while let Some(entry) = entries.next(&mut self.cursor) {
            let entry = entry.map_err(of_ntfs)?;
            let Some(name) = entry.key() else { continue };
            let name = name.map_err(of_ntfs)?;
            let number = entry.file_reference().file_record_number();
            if name.namespace() == NtfsFileNamespace::Dos || number < FIRST_USER_FILE {
                continue;
            }
            found.push((name.name().to_string_lossy().into_bytes(), Node(number)));
        }
        Ok(found)
    }

    fn ignores_case(&self) -> bool {
        true
    }

    fn read_link(&mut self, node: Node) -> Result<Vec<u8>> {
        let ntfs = Rc::clone(&self.ntfs);
        let file = self.file(&ntfs, node, ATTRIBUTES_BYTES)?;
        match self.reparse(&file)? {
            Reparse::Link(target) => Ok(target),
            _ => Err(damaged("a link points nowhere")),
        }
    }

    fn data_ranges(&mut self, node: Node) -> Result<Vec<DataRange>> {
        let ntfs = Rc::clone(&self.ntfs);
        let file = self.file(&ntfs, node, ATTRIBUTES_BYTES)?;
        let data = self.readable_data(&file)?;
        let mut ranges = Vec::new();
        let Some(item) = &data.item else { return Ok(ranges) };
        let attribute = item.to_attribute().map_err(of_ntfs)?;
        let value = attribute.value(&mut self.cursor).map_err(of_ntfs)?;
        let NtfsAttributeValue::NonResident(value) = value else {
            push_range(&mut ranges, 0, data.written_bytes)?;
            return Ok(ranges);
        };
        let mut offset = 0_u64;
        for run in value.data_runs() {
            let run = run.map_err(of_ntfs)?;
            let end = offset.checked_add(run.allocated_size()).ok_or_else(|| damaged("a file is too long"))?;
            if run.data_position().value().is_some() {
                push_range(&mut ranges, offset, end.min(data.written_bytes).saturating_sub(offset))?;
            }
            offset = end;
        }
        Ok(ranges)
    }

    fn read_at(&mut self, node: Node, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let ntfs = Rc::clone(&self.ntfs);
        let file = self.file(&ntfs, node, ATTRIBUTES_BYTES + buffer.len() as u64)?;
        let data = self.readable_data(&file)?;
        let available = data.written_bytes.saturating_sub(offset).min(buffer.len() as u64) as usize;
        buffer[available..].fill(0);
        let Some(item) = &data.item else { return Ok(()) };
        let attribute = item.to_attribute().map_err(of_ntfs)?;
        let mut value = attribute.value(&mut self.cursor).map_err(of_ntfs)?;
        value.seek(&mut self.cursor, SeekFrom::Start(offset)).map_err(of_ntfs)?;
        value.read_exact(&mut self.cursor, &mut buffer[..available]).map_err(of_ntfs)
    }
}
