//! Writes files as a tar archive in POSIX (pax) format, which GNU tar and bsdtar read.
//!
//! Long names, fractions of seconds, attributes and ACLs are stored in records before a member's header. A file with
//! holes is stored in GNU's sparse format 1.0, which keeps its size and omits its holes.

use super::content::{TakeBytes, zeros};
use super::{FileSink, GuestFile, WalkStart};
use crate::filesystems::namespace::Names;
use crate::filesystems::{DataRange, FsError, InodeKind, Timestamp};
use crate::ops::{Error, Result};
use crate::record::Time;
use tar::{EntryType, Header};

const BLOCK: u64 = 512;

/// The largest numbers that fit into a header.
const MOST_ID: u32 = 0o7_777_777;
const MOST_SIZE: u64 = 0o77_777_777_777;

/// The name in a header if the actual name is in a record.
const NAME_IN_RECORD: &[u8] = b"././@PaxHeader";

/// Called for each file that cannot be read.
pub(crate) type Report<'a> = &'a mut dyn FnMut(Error);

/// Writes the members of an archive. [`end`] finishes it.
pub(crate) struct Archive<'a> {
    take: TakeBytes<'a>,
    report: Report<'a>,
    /// The time of files whose file system does not record modification times.
    default_time: Timestamp,
    with_devices: bool,
    start: WalkStart,
    open: Option<Member>,
}

/// The file whose data is being received.
struct Member {
    file: GuestFile,
    ranges: Vec<DataRange>,
    /// Whether the header is written. All data of the member must then follow.
    begun: bool,
    /// The index of the current range, and the number of bytes written of it.
    at: usize,
    written: u64,
    data_bytes: u64,
}

/// Writes the two blocks of zeros that end an archive.
pub(crate) fn end(take: TakeBytes<'_>) -> Result<()> {
    zeros(take, 2 * BLOCK)
}

impl<'a> Archive<'a> {
    pub(crate) fn new(take: TakeBytes<'a>, report: Report<'a>, captured_at: Time, with_devices: bool) -> Archive<'a> {
        let default_time = Timestamp { seconds: captured_at.timestamp(), nanoseconds: 0 };
        Archive { take, report, default_time, with_devices, start: WalkStart::default(), open: None }
    }

    /// Fills the open member with zeros after the walk failed, so that other members can follow.
    pub(crate) fn close(&mut self) -> Result<()> {
        match self.open.as_ref().is_some_and(|member| member.begun) {
            true => self.finish(),
            false => Ok(()),
        }
    }

    /// The name of a member: the path without a leading slash.
    fn name(&self, names: &Names) -> Vec<u8> {
        let all: Names = self.start.names.iter().chain(names).cloned().collect();
        if all.is_empty() { b".".to_vec() } else { all.join(&b'/') }
    }

    fn pad(&mut self, length: u64) -> Result<()> {
        zeros(self.take, length.next_multiple_of(BLOCK) - length)
    }

    /// Writes the records and the header of a member with this number of stored bytes.
    fn header(&mut self, file: &GuestFile, kind: EntryType, stored_bytes: u64, sparse: bool) -> Result<()> {
        let metadata = &file.metadata;
        let mut name = self.name(&file.names);
        if metadata.kind == InodeKind::Directory {
            name.push(b'/');
        }
        let link = match (&file.same_as, &file.target) {
            (Some(names), _) => self.name(names),
            (None, target) => target.clone().unwrap_or_default(),
        };
        let mut records = Vec::new();
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_size(stored_bytes.min(MOST_SIZE));
        header.set_mode(metadata.mode.unwrap_or(if metadata.kind == InodeKind::Directory { 0o755 } else { 0o644 }));
        let (uid, gid) = metadata.owner.unwrap_or((0, 0));
        header.set_uid(uid.min(MOST_ID).into());
        header.set_gid(gid.min(MOST_ID).into());
        let time = metadata.modified.unwrap_or(self.default_time);
        header.set_mtime(time.seconds.clamp(0, MOST_SIZE as i64).cast_unsigned());
        let (major, minor) = metadata.device.unwrap_or((0, 0));
        // This cannot fail for a ustar header. Of a number that does not fit, the field keeps the low digits.
        let _ = header.set_device_major(major).and_then(|()| header.set_device_minor(minor));
        if sparse {
            record(&mut records, b"GNU.sparse.major", b"1");
            record(&mut records, b"GNU.sparse.minor", b"0");
            record(&mut records, b"GNU.sparse.name", &name);
            record(&mut records, b"GNU.sparse.realsize", metadata.size_bytes.to_string().as_bytes());
            name = [b"GNUSparseFile.0/", name.as_slice()].concat();
        }
        put(&mut header.as_old_mut().name, &name, b"path", &mut records);
        put(&mut header.as_old_mut().linkname, &link, b"linkpath", &mut records);
        if stored_bytes > MOST_SIZE {
            record(&mut records, b"size", stored_bytes.to_string().as_bytes());
        }
        for (key, id) in [(&b"uid"[..], uid), (b"gid", gid)] {
            if id > MOST_ID {
                record(&mut records, key, id.to_string().as_bytes());
            }
        }
        for (key, time) in [(&b"mtime"[..], Some(time)), (b"atime", metadata.accessed)] {
            if let Some(time) = time.filter(|time| time.nanoseconds != 0 || time.seconds < 0 || key == b"atime") {
                record(&mut records, key, decimal(time).as_bytes());
            }
        }
        file.xattrs.iter().for_each(|(name, value)| xattr_record(&mut records, name, value));
        self.write_records(&records)?;
        header.set_cksum();
        (self.take)(header.as_bytes())
    }

    fn write_records(&mut self, records: &[u8]) -> Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XHeader);
        header.set_size(records.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.as_old_mut().name[..NAME_IN_RECORD.len()].copy_from_slice(NAME_IN_RECORD);
        header.set_cksum();
        (self.take)(header.as_bytes())?;
        (self.take)(records)?;
        self.pad(records.len() as u64)
    }

    /// Writes the header of the open file, after all its ranges are known.
    fn begin(&mut self) -> Result<()> {
        let Some(mut member) = self.open.take() else { return Ok(()) };
        if !member.begun {
            member.begun = true;
            member.data_bytes = member.ranges.iter().map(|range| range.length).sum();
            let is_sparse = member.data_bytes < member.file.metadata.size_bytes;
            let map = if is_sparse { sparse_map(&member.ranges, member.file.metadata.size_bytes) } else { Vec::new() };
            self.header(&member.file, EntryType::Regular, member.data_bytes + map.len() as u64, is_sparse)?;
            (self.take)(&map)?;
        }
        self.open = Some(member);
        Ok(())
    }

    /// Writes zeros up to an offset of the file, for data within its ranges that was not received.
    fn fill_to(&mut self, offset: u64) -> Result<()> {
        let Some(member) = &mut self.open else { return Ok(()) };
        while let Some(range) = member.ranges.get(member.at) {
            let until = offset.clamp(range.offset, range.offset + range.length) - range.offset;
            zeros(self.take, until.saturating_sub(member.written))?;
            member.written = member.written.max(until);
            if member.written < range.length {
                break;
            }
            member.at += 1;
            member.written = 0;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        self.begin()?;
        self.fill_to(u64::MAX)?;
        let stored = self.open.take().map_or(0, |member| member.data_bytes);
        self.pad(stored)
    }
}

/// Stores a name in a header field, or in a record if it is too long or not ASCII.
fn put(field: &mut [u8; 100], name: &[u8], key: &[u8], records: &mut Vec<u8>) {
    if name.len() <= field.len() && name.is_ascii() {
        field[..name.len()].copy_from_slice(name);
        return;
    }
    record(records, key, name);
    let part = name.len().min(field.len());
    field[..part].copy_from_slice(&name[..part]);
}

/// Appends a record "%d %s=%s\n": its length (including the digits of the length), a key and a value.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    records.extend(format!("{length} ").into_bytes());
    records.extend(key);
    records.push(b'=');
    records.extend(value);
    records.push(b'\n');
}

fn decimal(time: Timestamp) -> String {
    match (time.seconds, time.nanoseconds) {
        (seconds, 0) => seconds.to_string(),
        (seconds, nanoseconds) if seconds >= 0 => format!("{seconds}.{nanoseconds:09}"),
        (seconds, nanoseconds) => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds),
    }
}

fn xattr_record(records: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    // A key ends at the first equals sign.
    if name.contains(&b'=') || name.contains(&0) {
        return;
    }
    let acl = match name {
        b"system.posix_acl_access" => Some(&b"SCHILY.acl.access"[..]),
        b"system.posix_acl_default" => Some(&b"SCHILY.acl.default"[..]),
        _ => None,
    };
    match acl {
        Some(key) => record(records, key, acl_text(value).as_bytes()),
        None => record(records, &[b"SCHILY.xattr.", name].concat(), value),
    }
}

/// Formats an ACL on one line, as `getfacl` prints it with numeric ids.
fn acl_text(value: &[u8]) -> String {
    let entries = value.get(4..).unwrap_or_default().chunks_exact(8).filter_map(|entry| {
        let (tag, bits) = (u16::from_le_bytes([entry[0], entry[1]]), entry[2]);
        let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        let permissions: String = [(4, 'r'), (2, 'w'), (1, 'x')]
            .iter()
            .map(|(bit, word)| if bits & bit != 0 { *word } else { '-' })
            .collect();
        Some(match tag {
            0x01 => format!("user::{permissions}"),
            0x02 => format!("user:{id}:{permissions}"),
            0x04 => format!("group::{permissions}"),
            0x08 => format!("group:{id}:{permissions}"),
            0x10 => format!("mask::{permissions}"),
            0x20 => format!("other::{permissions}"),
            _ => return None,
        })
    });
    entries.collect::<Vec<_>>().join(",")
}

/// Formats the sparse map, padded to a block: the number of ranges, then the offset and size of each, one number per
/// line. A file that ends with a hole has an empty range at its end.
fn sparse_map(ranges: &[DataRange], size_bytes: u64) -> Vec<u8> {
    let ends_with_data = ranges.last().is_some_and(|last| last.offset + last.length == size_bytes);
    let mut numbers = vec![ranges.len() as u64 + u64::from(!ends_with_data)];
    numbers.extend(ranges.iter().flat_map(|range| [range.offset, range.length]));
    if !ends_with_data {
        numbers.extend([size_bytes, 0]);
    }
    let mut map: Vec<u8> = numbers.iter().flat_map(|number| format!("{number}\n").into_bytes()).collect();
    map.resize(map.len().next_multiple_of(BLOCK as usize), 0);
    map
}

impl FileSink for Archive<'_> {
    fn start(&mut self, start: &WalkStart) -> Result<()> {
        self.start = start.clone();
        Ok(())
    }

    fn file(&mut self, file: GuestFile) -> Result<()> {
        self.open = None;
        let kind = match file.metadata.kind {
            _ if file.same_as.is_some() => EntryType::Link,
            InodeKind::File => {
                self.open = Some(Member { file, ranges: Vec::new(), begun: false, at: 0, written: 0, data_bytes: 0 });
                return Ok(());
            }
            InodeKind::Directory => EntryType::Directory,
            InodeKind::Symlink => EntryType::Symlink,
            InodeKind::Fifo => EntryType::Fifo,
            InodeKind::CharDevice if self.with_devices => EntryType::Char,
            InodeKind::BlockDevice if self.with_devices => EntryType::Block,
            // A socket is useless without its program.
            InodeKind::Socket | InodeKind::CharDevice | InodeKind::BlockDevice => return Ok(()),
        };
        self.header(&file, kind, 0, false)
    }

    fn ranges(&mut self, ranges: &[DataRange]) -> Result<()> {
        self.open.iter_mut().for_each(|member| member.ranges.extend_from_slice(ranges));
        Ok(())
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.begin()?;
        self.fill_to(offset)?;
        if let Some(member) = &mut self.open {
            member.written += bytes.len() as u64;
        }
        (self.take)(bytes)
    }

    fn end_of_file(&mut self) -> Result<()> {
        self.finish()
    }

    fn unreadable(&mut self, names: &Names, source: FsError) -> Result<()> {
        let was_begun = self.open.as_ref().is_some_and(|member| member.begun);
        let path = self.start.path(names);
        match was_begun {
            true => {
                // The header has promised the size, so the member is filled with zeros and the damage is reported.
                self.finish()?;
                let reason = format!("the rest of it is zeros in the archive: {source}");
                (self.report)(Error::GuestFile { path, source: FsError::Unreadable(reason) });
            }
            false => {
                self.open = None;
                (self.report)(Error::GuestFile { path, source });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pax_record_length_includes_itself() {
        for value in ["", "x", &"y".repeat(85), &"y".repeat(90), &"z".repeat(990)] {
            let mut records = Vec::new();
            record(&mut records, b"path", value.as_bytes());
            let text = String::from_utf8(records).unwrap();
            let (length, rest) = text.split_once(' ').unwrap();
            assert_eq!(length.parse::<usize>().unwrap(), text.len());
            assert_eq!(rest, format!("path={value}\n"));
        }
    }

    #[test]
    fn archive_can_be_continued_after_a_walk_that_failed_in_a_file() {
        use crate::filesystems::InodeMetadata;
        let file = |name: &[u8]| GuestFile {
            names: vec![name.to_vec()],
            metadata: InodeMetadata::of_file(2000),
            target: None,
            same_as: None,
            xattrs: Vec::new(),
        };
        let mut bytes = Vec::new();
        for name in [b"a", b"b"] {
            let (mut take, mut report) = (
                |part: &[u8]| {
                    bytes.extend_from_slice(part);
                    Ok(())
                },
                |_| {},
            );
            let captured_at = chrono::Local::now().fixed_offset();
            let mut archive = Archive::new(&mut take, &mut report, captured_at, false);
            archive.file(file(name)).unwrap();
            archive.ranges(&[DataRange { offset: 0, length: 2000 }]).unwrap();
            archive.data(0, &[7; 100]).unwrap();
            archive.close().unwrap();
        }
        let mut archive = tar::Archive::new(bytes.as_slice());
        let members = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            (entry.path().unwrap().display().to_string(), entry.size())
        });
        assert_eq!(members.collect::<Vec<_>>(), [("a".to_owned(), 2000), ("b".to_owned(), 2000)]);
    }

    #[test]
    fn times_before_1970_are_written_as_negative_decimals() {
        let text = |seconds, nanoseconds| decimal(Timestamp { seconds, nanoseconds });
        assert_eq!(text(1, 5), "1.000000005");
        assert_eq!(text(-1, 0), "-1");
        assert_eq!(text(-1, 250_000_000), "-0.750000000");
        assert_eq!(text(-2, 999_999_999), "-1.000000001");
    }
}
