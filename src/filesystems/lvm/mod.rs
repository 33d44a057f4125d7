//! Logical volumes of LVM ("LVM2 metadata format"), linear and striped.
//!
//! ```text
//! physical volume   label ─→ header ─→ metadata area ─→ text: which extents make which logical volume
//!                   extents, from pe_start on
//! ```

mod text;

use super::blocks::{BlockSource, Blocks, BlocksSlice, le32, le64};
use super::{FsError, Result, damaged};
use std::collections::BTreeMap;
use std::rc::Rc;
use text::Section;

const SECTOR: u64 = 512;

/// The label is in one of the first four sectors.
const LABEL_SECTORS: u64 = 4;

/// Maximum size of the metadata.
const MOST_TEXT_BYTES: u64 = 16 << 20;

/// Maximum number of metadata areas and of stripes.
const MOST_PARTS: usize = 128;

pub(super) struct LogicalVolume {
    /// The name, as in `/dev/mapper`.
    pub(super) name: String,
    /// Its content, or why that is not available.
    pub(super) blocks: Result<Blocks>,
}

struct PhysicalVolume {
    group: String,
    group_id: String,
    metadata: Section,
    seqno: u64,
    id: String,
}

/// Finds the logical volumes on these physical volumes.
pub(super) fn find(parts: &[Blocks]) -> Vec<LogicalVolume> {
    let physical: Vec<Option<PhysicalVolume>> = parts.iter().map(|part| read(part).ok()).collect();
    // "The metadata with the highest sequence number is the current one".
    let mut groups: BTreeMap<(&str, &str), &PhysicalVolume> = BTreeMap::new();
    for volume in physical.iter().flatten() {
        let newest = groups.entry((&volume.group, &volume.group_id)).or_insert(volume);
        if newest.seqno < volume.seqno {
            *newest = volume;
        }
    }
    let mut devices: BTreeMap<&str, Vec<&Blocks>> = BTreeMap::new();
    for (volume, part) in physical.iter().zip(parts) {
        if let Some(volume) = volume {
            devices.entry(&volume.id).or_default().push(part);
        }
    }
    let mut found: Vec<LogicalVolume> = Vec::new();
    for (&(name, _), group) in &groups {
        let mut volumes = volumes_of(name, &group.metadata, &devices).unwrap_or_default();
        if groups.keys().filter(|(other, _)| *other == name).count() > 1 {
            let reason = format!("more than one volume group is named {name}; choose the disks of one with --disk");
            volumes.iter_mut().for_each(|volume| volume.blocks = Err(FsError::Unsupported(reason.clone())));
        }
        found.extend(volumes);
    }
    found
}

/// Returns the name of a logical volume in `/dev/mapper`: "hyphens are doubled, and one is between group and volume".
pub(super) fn mapper_name(group: &str, volume: &str) -> String {
    format!("{}-{}", group.replace('-', "--"), volume.replace('-', "--"))
}

/// Returns LVM's variant of CRC-32: with its own initial value, and without the final inversion.
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0xf597_a6cf, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

fn read(part: &Blocks) -> Result<PhysicalVolume> {
    let mut sector = [0; SECTOR as usize];
    for number in 0..LABEL_SECTORS {
        part.read_at(number * SECTOR, &mut sector)?;
        let header = le32(&sector, 20) as usize;
        if &sector[..8] != b"LABELONE" || checksum(&sector[20..]) != le32(&sector, 16) || header > 400 {
            continue;
        }
        let id = String::from_utf8_lossy(&sector[header..header + 32]).into_owned();
        // Pairs of offset and size: data areas, a zero pair, then metadata areas.
        let pairs = sector[header + 40..].chunks_exact(16).map(|pair| (le64(pair, 0), le64(pair, 8)));
        let areas = pairs.skip_while(|(offset, _)| *offset != 0).skip(1).take_while(|(offset, _)| *offset != 0);
        for (offset, _) in areas.take(MOST_PARTS) {
            if let Ok(mut found) = read_metadata(part, offset) {
                found.id = id;
                return Ok(found);
            }
        }
    }
    Err(damaged("it has no metadata of LVM"))
}

/// Reads "mda_header": checksum, magic, version, start, size, and the location of the text: offset, size, checksum,
/// flags.
fn read_metadata(part: &Blocks, area: u64) -> Result<PhysicalVolume> {
    let mut header = [0; SECTOR as usize];
    part.read_at(area, &mut header)?;
    let (start, size) = (le64(&header, 24), le64(&header, 32));
    let (offset, length) = (le64(&header, 40), le64(&header, 48));
    let is_within = offset >= SECTOR && offset < size && length > 0 && length < size - SECTOR;
    if &header[4..20] != b" LVM2 x[5A%r0N*>" || checksum(&header[4..]) != le32(&header, 0) || start != area {
        return Err(damaged("the metadata area has no header"));
    }
    if !is_within || length > MOST_TEXT_BYTES {
        return Err(damaged("the metadata is not in its area"));
    }
    let area = BlocksSlice::of(part, area, size);
    let mut bytes = vec![0; length as usize];
    // The area is a ring buffer after its header.
    let first = length.min(size - offset) as usize;
    area.read_at(offset, &mut bytes[..first])?;
    area.read_at(SECTOR, &mut bytes[first..])?;
    if checksum(&bytes) != le32(&header, 56) {
        return Err(damaged("the checksum of the metadata is wrong"));
    }
    let document = text::parse(&bytes)?;
    let (group, metadata) = document.sections().next().ok_or_else(|| damaged("the metadata has no volume group"))?;
    let seqno = metadata.number("seqno").unwrap_or_default();
    let group_id = metadata.text("id").unwrap_or_default().to_owned();
    Ok(PhysicalVolume { group: group.to_owned(), group_id, metadata: metadata.clone(), seqno, id: String::new() })
}

/// Returns the visible volumes of a group; None if the metadata is invalid.
fn volumes_of(name: &str, group: &Section, devices: &BTreeMap<&str, Vec<&Blocks>>) -> Option<Vec<LogicalVolume>> {
    let extent_bytes = group.number("extent_size").filter(|size| *size > 0)?.checked_mul(SECTOR)?;
    let mut starts: BTreeMap<&str, DataAreas<'_>> = BTreeMap::new();
    for (key, physical) in group.section("physical_volumes")?.sections() {
        let id = physical.text("id")?.replace('-', "");
        let start = physical.number("pe_start")?.checked_mul(SECTOR)?;
        let parts = devices.get(id.as_str()).into_iter().flatten();
        starts.insert(key, parts.map(|blocks| (*blocks, start)).collect());
    }
    let Some(volumes) = group.section("logical_volumes") else { return Some(Vec::new()) };
    let visible = volumes.sections().filter(|(_, volume)| volume.texts("status").any(|word| word == "VISIBLE"));
    let snapshots: Vec<&Section> = volumes
        .sections()
        .flat_map(|(_, volume)| volume.sections())
        .filter_map(|(_, segment)| (segment.text("type") == Some("snapshot")).then_some(segment))
        .collect();
    let found = visible.map(|(volume, about)| {
        let unsupported = || Err(FsError::Closed("kvmb cannot read logical volumes of this kind".into()));
        let is_plain = !snapshots.iter().any(|snapshot| is_combined(snapshot, volume));
        let blocks = is_plain.then(|| mapped(about, extent_bytes, &starts)).flatten().unwrap_or_else(unsupported);
        LogicalVolume { name: mapper_name(name, volume), blocks }
    });
    Some(found.collect())
}

/// Whether a volume is read together with another one because of a snapshot: the snapshot itself, which only stores the
/// differences, and an origin that a snapshot is being merged into.
fn is_combined(snapshot: &Section, volume: &str) -> bool {
    let is_merging = snapshot.text("merging_store").is_some();
    ["cow_store", "merging_store"].iter().any(|key| snapshot.text(key) == Some(volume))
        || (is_merging && snapshot.text("origin") == Some(volume))
}

/// The disks that have a physical volume, and where its extents begin. More than one if a disk is a copy of another.
type DataAreas<'d> = Vec<(&'d Blocks, u64)>;

/// Maps a logical volume to its devices; None if its type is not supported.
fn mapped(about: &Section, extent_bytes: u64, starts: &BTreeMap<&str, DataAreas<'_>>) -> Option<Result<Blocks>> {
    let mut segments: Vec<Segment> = Vec::new();
    for (_, segment) in about.sections() {
        let list = segment.list("stripes").filter(|list| !list.is_empty() && list.len() <= 2 * MOST_PARTS)?;
        if segment.text("type") != Some("striped") {
            return None;
        }
        let mut stripes = Vec::new();
        for pair in list.chunks(2) {
            let [device, first] = pair else { return None };
            let (device, first) = (device.text()?, first.number()?);
            let reason = match starts.get(device)?.as_slice() {
                [(blocks, start)] => {
                    stripes.push((Rc::clone(blocks), first.checked_mul(extent_bytes)?.checked_add(*start)?));
                    continue;
                }
                [] => format!("a part of it is on physical volume {device}, which is not on the disks"),
                _ => format!("physical volume {device} is on more than one disk; choose one with --disk"),
            };
            return Some(Err(FsError::Unsupported(reason)));
        }
        let length = segment.number("extent_count")?.checked_mul(extent_bytes)?;
        let stripe_bytes = match stripes.len() {
            1 => length,
            _ => segment.number("stripe_size")?.checked_mul(SECTOR)?,
        };
        if length == 0 || stripe_bytes == 0 {
            return None;
        }
        let start = segment.number("start_extent")?.checked_mul(extent_bytes)?;
        segments.push(Segment { start, length, stripe_bytes, stripes });
    }
    segments.sort_by_key(|segment| segment.start);
    let mut end = 0_u64;
    for segment in &segments {
        if segment.start != end {
            return Some(Err(damaged("the segments of the logical volume do not follow one another")));
        }
        end = end.checked_add(segment.length)?;
    }
    Some(Ok(Rc::new(Mapped { segments, size_bytes: end })))
}

/// A segment of a logical volume: linear on one device, or striped over several.
struct Segment {
    start: u64,
    length: u64,
    stripe_bytes: u64,
    stripes: Vec<(Blocks, u64)>,
}

struct Mapped {
    segments: Vec<Segment>,
    size_bytes: u64,
}

impl BlockSource for Mapped {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= self.size_bytes);
        let end = end.ok_or_else(|| damaged(format!("it refers to byte {offset}, beyond its end")))?;
        let mut at = offset;
        while at < end {
            let after = self.segments.partition_point(|segment| segment.start <= at);
            let segment = &self.segments[after - 1];
            let within = at - segment.start;
            let (stripe, skipped) = (within / segment.stripe_bytes, within % segment.stripe_bytes);
            let count = segment.stripes.len() as u64;
            let (blocks, start) = &segment.stripes[(stripe % count) as usize];
            let length = (segment.stripe_bytes - skipped).min(segment.length - within).min(end - at);
            let place = &mut buffer[(at - offset) as usize..(at - offset + length) as usize];
            let from = start.checked_add(stripe / count * segment.stripe_bytes + skipped);
            blocks.read_at(from.ok_or_else(|| damaged("the offset of an extent overflows"))?, place)?;
            at += length;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which logical volumes of this text are plain: all that they lack is their disk.
    fn plain_volumes(merging: &str) -> Vec<String> {
        let volume = |name: &str, status: &str, segment: &str| {
            format!("{name} {{ status = [{status}] segment1 {{ start_extent = 0 extent_count = 1 {segment} }} }}\n")
        };
        let striped = r#"type = "striped" stripes = ["pv0", 0]"#;
        let snapshot = format!(r#"type = "snapshot" origin = "root" {merging} = "snap""#);
        let text = [
            r#"extent_size = 8 physical_volumes { pv0 { id = "a" pe_start = 8 } } logical_volumes {"#,
            &volume("root", r#""VISIBLE""#, striped),
            &volume("snap", r#""VISIBLE""#, striped),
            &volume("home", r#""VISIBLE""#, striped),
            &volume("snapshot0", r#""READ""#, &snapshot),
            "}",
        ];
        let group = text::parse(text.concat().as_bytes()).unwrap();
        let found = volumes_of("vg", &group, &BTreeMap::new()).unwrap();
        let plain = found.iter().filter(|volume| matches!(volume.blocks, Err(FsError::Unsupported(_))));
        plain.map(|volume| volume.name.clone()).collect()
    }

    #[test]
    fn snapshots_and_origins_that_they_are_merged_into_are_not_plain_volumes() {
        assert_eq!(plain_volumes("cow_store"), ["vg-home", "vg-root"]);
        assert_eq!(plain_volumes("merging_store"), ["vg-home"]);
    }
}
