//! Partition tables: GPT ("Unified Extensible Firmware Interface Specification", 5.3) and MBR with logical partitions.
//!
//! kvmb has its own parser because there are only two structures of fixed size, for which crates would bring a dozen
//! dependencies.

use super::Result;
use super::blocks::{Blocks, BlocksSlice, le32, le64, text};
use crc::{CRC_32_ISO_HDLC, Crc};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Partition {
    /// Its number, as in Linux.
    pub(crate) number: u32,
    pub(crate) start: u64,
    pub(crate) size_bytes: u64,
    pub(crate) name: String,
    /// Its GUID in a GPT, as in `PARTUUID=`.
    pub(crate) uuid: Option<String>,
}

const MBR_SECTOR: u64 = 512;

/// Maximum number of GPT entries.
const MOST_ENTRIES: u32 = 1024;

/// Maximum number of logical partitions.
const MOST_LOGICAL: u32 = 128;

/// Returns the partitions of a disk; empty if it has no partition table.
pub(crate) fn read(disk: &Blocks) -> Result<Vec<Partition>> {
    if disk.size_bytes() < 1024 {
        return Ok(Vec::new());
    }
    let sectors: &[u64] = if is_protected(disk)? { &[512, 4096] } else { &[] };
    for &sector in sectors {
        let last = (disk.size_bytes() / sector).saturating_sub(1);
        for header in [1, last] {
            if let Some(found) = read_gpt(disk, sector, header)? {
                return Ok(found);
            }
        }
    }
    read_mbr(disk)
}

/// Whether the MBR says that the disk has a GPT. Otherwise a GPT is a remnant of an earlier use of the disk, and
/// systems ignore it.
fn is_protected(disk: &Blocks) -> Result<bool> {
    let entries = mbr_entries(disk, 0)?;
    Ok(entries.is_some_and(|entries| entries.iter().any(|(kind, first, _)| *kind == 0xee && *first == 1)))
}

fn read_gpt(disk: &Blocks, sector: u64, header_sector: u64) -> Result<Option<Vec<Partition>>> {
    let mut header = [0; 512];
    if header_sector == 0 || (header_sector + 1) * sector > disk.size_bytes() {
        return Ok(None);
    }
    disk.read_at(header_sector * sector, &mut header)?;
    let header_bytes = le32(&header, 12) as usize;
    if &header[..8] != b"EFI PART" || !(92..=512).contains(&header_bytes) {
        return Ok(None);
    }
    let crc = Crc::<u32>::new(&CRC_32_ISO_HDLC);
    let mut unsigned = header;
    unsigned[16..20].fill(0);
    let (entries_at, count, entry_bytes) = (le64(&header, 72), le32(&header, 80), le32(&header, 84));
    if crc.checksum(&unsigned[..header_bytes]) != le32(&header, 16)
        || count > MOST_ENTRIES
        || !(128..=4096).contains(&entry_bytes)
    {
        return Ok(None);
    }
    let mut entries = vec![0; (count * entry_bytes) as usize];
    let Some(offset) = entries_at.checked_mul(sector) else { return Ok(None) };
    if BlocksSlice::of(disk, offset, entries.len() as u64).read_at(0, &mut entries).is_err()
        || crc.checksum(&entries) != le32(&header, 88)
    {
        return Ok(None);
    }
    let partitions = entries.chunks_exact(entry_bytes as usize).zip(1..).filter_map(|(entry, number)| {
        let (first, last) = (le64(entry, 32), le64(entry, 40));
        let is_used = entry[..16] != [0; 16] && last >= first;
        let start = first.checked_mul(sector)?;
        let size_bytes = (last - first.min(last)).checked_add(1)?.checked_mul(sector)?;
        let name: Vec<u16> =
            entry[56..128].chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]])).collect();
        let name = text(String::from_utf16_lossy(&name).as_bytes());
        let uuid = Some(uuid::Uuid::from_bytes_le(entry[16..32].try_into().ok()?).to_string());
        is_used.then_some(Partition { number, start, size_bytes, name, uuid })
    });
    Ok(Some(partitions.filter(|partition| partition.start < disk.size_bytes()).collect()))
}

/// Reads the four entries of a sector with a boot signature: type, first sector, number of sectors.
fn mbr_entries(disk: &Blocks, sector: u64) -> Result<Option<[(u8, u64, u64); 4]>> {
    let mut bytes = [0; MBR_SECTOR as usize];
    let offset = sector * MBR_SECTOR;
    if offset + MBR_SECTOR > disk.size_bytes() {
        return Ok(None);
    }
    disk.read_at(offset, &mut bytes)?;
    let entry = |number: usize| {
        let at = 446 + 16 * number;
        (bytes[at + 4], u64::from(le32(&bytes, at + 8)), u64::from(le32(&bytes, at + 12)))
    };
    // A boot sector of FAT or NTFS has code where a table has a flag.
    let is_table = bytes[510..] == [0x55, 0xaa] && (0..4).all(|number| bytes[446 + 16 * number] & 0x7f == 0);
    Ok(is_table.then(|| [entry(0), entry(1), entry(2), entry(3)]))
}

fn read_mbr(disk: &Blocks) -> Result<Vec<Partition>> {
    let sectors = disk.size_bytes() / MBR_SECTOR;
    let mut found = Vec::new();
    let Some(entries) = mbr_entries(disk, 0)? else { return Ok(found) };
    let mut signature = [0; 4];
    disk.read_at(440, &mut signature)?;
    let signature = u32::from_le_bytes(signature);
    let mut push = |number: u32, (kind, first, count): (u8, u64, u64)| {
        if kind != 0 && count > 0 && first > 0 && first < sectors {
            found.push(Partition {
                number,
                start: first * MBR_SECTOR,
                size_bytes: count * MBR_SECTOR,
                name: String::new(),
                uuid: Some(format!("{signature:08x}-{number:02x}")),
            });
        }
    };
    let is_extended = |kind: u8| matches!(kind, 0x05 | 0x0f | 0x85);
    entries.iter().zip(1..).filter(|(entry, _)| !is_extended(entry.0)).for_each(|(entry, number)| push(number, *entry));
    let Some((_, extended, _)) = entries.into_iter().find(|(kind, ..)| is_extended(*kind)) else { return Ok(found) };
    let mut table = extended;
    for number in 5..5 + MOST_LOGICAL {
        let Some([(kind, first, count), (next_kind, next, _), ..]) = mbr_entries(disk, table)? else { break };
        push(number, (kind, table + first, count));
        if !is_extended(next_kind) || next == 0 {
            break;
        }
        table = extended + next;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::blocks::tests::MemoryBlocks;
    use super::*;
    use std::rc::Rc;

    fn sector_with(entries: &[(u8, u32, u32)]) -> Vec<u8> {
        let mut sector = vec![0; 512];
        for (number, (kind, first, count)) in entries.iter().enumerate() {
            let at = 446 + 16 * number;
            sector[at + 4] = *kind;
            sector[at + 8..at + 12].copy_from_slice(&first.to_le_bytes());
            sector[at + 12..at + 16].copy_from_slice(&count.to_le_bytes());
        }
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        sector
    }

    #[test]
    fn cyclic_chain_of_logical_partitions_ends() {
        let mut disk = sector_with(&[(0x83, 1, 1), (0x05, 2, 100)]);
        disk.resize(512 * 2, 0);
        // The next table is this one again.
        disk.extend(sector_with(&[(0x83, 1, 1), (0x05, 0, 1)]));
        disk.extend(sector_with(&[(0x83, 1, 1), (0x05, 1, 1)]));
        disk.resize(512 * 110, 0);
        let disk: Blocks = Rc::new(MemoryBlocks(disk));
        let found = read(&disk).unwrap();
        assert_eq!(found[0].number, 1);
        assert!(found.len() <= 1 + MOST_LOGICAL as usize);
    }

    /// Returns a disk with this MBR and a GPT whose only partition begins at sector 40.
    fn disk_with_gpt(mbr: Vec<u8>) -> Blocks {
        let crc = Crc::<u32>::new(&CRC_32_ISO_HDLC);
        let mut entries = vec![0; 128 * 128];
        entries[..32].fill(7);
        entries[32..40].copy_from_slice(&40_u64.to_le_bytes());
        entries[40..48].copy_from_slice(&49_u64.to_le_bytes());
        let mut header = vec![0; 512];
        header[..8].copy_from_slice(b"EFI PART");
        let sum = crc.checksum(&entries);
        for (at, value) in [(12, 92), (72, 2), (80, 128), (84, 128), (88, sum)] {
            header[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
        }
        let sum = crc.checksum(&header[..92]);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        let mut disk = [mbr, header, entries].concat();
        disk.resize(512 * 110, 0);
        Rc::new(MemoryBlocks(disk))
    }

    #[test]
    fn gpt_requires_a_protective_mbr_entry() {
        let starts = |entries: &[(u8, u32, u32)]| -> Vec<u64> {
            let found = read(&disk_with_gpt(sector_with(entries))).unwrap();
            found.iter().map(|partition| partition.start / 512).collect()
        };
        assert_eq!(starts(&[(0xee, 1, 109)]), [40]);
        // A hybrid MBR repeats partitions for systems that do not support GPT.
        assert_eq!(starts(&[(0x83, 60, 10), (0xee, 1, 39)]), [40]);
        // The GPT is a remnant of an earlier use of the disk.
        assert_eq!(starts(&[(0x83, 60, 10)]), [60]);
        assert_eq!(starts(&[]), [0; 0]);
    }

    #[test]
    fn a_disk_without_a_table_has_no_partitions() {
        for size in [0, 100, 512, 1 << 20] {
            let disk: Blocks = Rc::new(MemoryBlocks(vec![0; size]));
            assert_eq!(read(&disk).unwrap(), []);
        }
    }
}
