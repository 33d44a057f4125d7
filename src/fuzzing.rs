//! The parsers of untrusted bytes, one function each: the bodies of the fuzz targets in `fuzz/`. A test calls them with
//! the seeds and with earlier findings (`fuzz/seeds`). They return for every input; a wrong result is a panic.

mod file_systems;

use std::fs::File;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use chrono::{TimeZone, Utc};

use crate::capture::Definition;
use crate::config::document;
use crate::nbd::{Client, ClientOptions, Export, Exports, Overlay, Piece, Server, StatusExtent, zero_flags};
use crate::repo::foreign;
use crate::schedule::{Cron, Crontab};
use crate::storage::sftp::known_hosts::KnownKeys;
use crate::storage::sftp::wire::Reply;

/// A fuzz target: its name, which is that of its file in `fuzz/fuzz_targets` and its folder in `fuzz/seeds`, and its
/// body.
pub type Target = (&'static str, fn(&[u8]));

/// All fuzz targets.
pub const TARGETS: [Target; 11] = [
    ("nbd_replies", nbd_replies),
    ("nbd_requests", nbd_requests),
    ("sftp_packets", sftp_packets),
    ("pack_header", pack_header),
    ("index_json", index_json),
    ("tree_json", tree_json),
    ("domain_xml", domain_xml),
    ("crontab", crontab),
    ("known_hosts", known_hosts),
    ("configuration", configuration),
    ("file_systems", file_systems),
];

/// A socket's buffer holds more than this without a reader.
const SOCKET_BYTES: usize = 100 << 10;

/// Everything that an NBD server sends on one connection: handshake, extents, data.
pub fn nbd_replies(bytes: &[u8]) {
    let Ok((ours, mut theirs)) = UnixStream::pair() else { return };
    let spoken = bytes.get(..SOCKET_BYTES).unwrap_or(bytes);
    if theirs.write_all(spoken).and_then(|()| theirs.shutdown(Shutdown::Write)).is_err() {
        return;
    }
    let contexts = vec!["base:allocation".to_owned(), "qemu:dirty-bitmap:x".to_owned()];
    let options = ClientOptions { contexts, timeout: Duration::from_secs(2), ..ClientOptions::default() };
    let Ok(mut client) = Client::from_stream(ours, "vda", &options) else { return };
    let length = u32::try_from(client.size_bytes().min(1 << 20)).unwrap_or_default();
    let _ = client.block_status(0, length);
    let mut buffer = vec![0; length.min(64 << 10) as usize];
    let _ = client.read(0, &mut buffer);
}

/// Everything that an NBD client sends on one connection: handshake, requests, data to be written.
pub fn nbd_requests(bytes: &[u8]) {
    let Ok((ours, mut theirs)) = UnixStream::pair() else { return };
    let spoken = bytes.get(..SOCKET_BYTES).unwrap_or(bytes);
    if theirs.write_all(spoken).and_then(|()| theirs.shutdown(Shutdown::Write)).is_err() {
        return;
    }
    let Ok(written) = rustix::fs::memfd_create("overlay", rustix::fs::MemfdFlags::CLOEXEC) else { return };
    let disk = Arc::new(Overlay::new(Arc::new(SmallDisk), File::from(written)));
    let mut exports = Exports::default();
    exports.insert("vda", Arc::new(SmallDisk));
    exports.insert("vdb", Arc::clone(&disk) as Arc<dyn Export>);
    let server = Server::new(exports, Arc::new(AtomicBool::new(false)));
    thread::scope(|scope| {
        scope.spawn(move || io::copy(&mut theirs, &mut io::sink()));
        let _ = server.serve(ours);
    });
    // The disk is complete whatever was written.
    let mut length_bytes = 0;
    let read = disk.read(0, SmallDisk::BYTES, &mut |piece| {
        assert!(!matches!(piece, Piece::Unreadable { .. }), "what was written is read back");
        length_bytes += piece.length_bytes();
        Ok(())
    });
    assert!(read.is_ok() && length_bytes == SmallDisk::BYTES, "{length_bytes} bytes were read: {read:?}");
    let extents = disk.extents(0, SmallDisk::BYTES, usize::MAX);
    assert_eq!(extents.iter().map(|extent| extent.length).sum::<u32>(), SmallDisk::BYTES, "{extents:?}");
}

/// A read-only disk whose second half is zero. Panics if it is asked for a range that it does not have.
struct SmallDisk;

impl SmallDisk {
    const BYTES: u32 = 64 << 10;
    const ZEROS_FROM: u32 = SmallDisk::BYTES / 2;

    /// Returns the lengths of the data and of the zeros in this range.
    fn split(offset: u64, length: u32) -> (u32, u32) {
        let begin = u32::try_from(offset).expect("the offset lies within the disk");
        assert!(
            length > 0 && begin.checked_add(length).is_some_and(|end| end <= SmallDisk::BYTES),
            "{offset} {length}"
        );
        let data = SmallDisk::ZEROS_FROM.saturating_sub(begin).min(length);
        (data, length - data)
    }
}

impl Export for SmallDisk {
    fn size_bytes(&self) -> u64 {
        SmallDisk::BYTES.into()
    }

    fn description(&self) -> String {
        "a small disk".to_owned()
    }

    fn read(&self, offset: u64, length: u32, deliver: &mut dyn FnMut(Piece<'_>) -> io::Result<()>) -> io::Result<()> {
        let (data, zeros) = SmallDisk::split(offset, length);
        deliver(Piece::Data(&vec![b'!'; data as usize]))?;
        deliver(Piece::Zeros(zeros))
    }

    fn extents(&self, offset: u64, length: u32, limit: usize) -> Vec<StatusExtent> {
        let (data, zeros) = SmallDisk::split(offset, length);
        let both = [(data, false), (zeros, true)].into_iter().filter(|(length, _)| *length > 0);
        both.map(|(length, is_zero)| StatusExtent { length, flags: zero_flags(is_zero) }).take(limit).collect()
    }
}

/// A reply of an SFTP server, without its length prefix.
pub fn sftp_packets(bytes: &[u8]) {
    let _ = Reply::parse(bytes.to_vec());
}

/// The decrypted header of a pack.
pub fn pack_header(bytes: &[u8]) {
    foreign::pack_header(bytes);
}

/// A decrypted index file.
pub fn index_json(bytes: &[u8]) {
    foreign::index_json(bytes);
}

/// A decrypted tree.
pub fn tree_json(bytes: &[u8]) {
    foreign::tree_json(bytes);
}

/// A machine's definition.
pub fn domain_xml(bytes: &[u8]) {
    let Ok(xml) = std::str::from_utf8(bytes) else { return };
    let Ok(definition) = Definition::parse(xml) else { return };
    for disk in &definition.disks {
        let _ = (disk.exclusion(), disk.keeps_bitmaps(), disk.source.path(), disk.source.kind());
    }
}

/// A crontab, and each of its lines as a cron expression.
pub fn crontab(bytes: &[u8]) {
    let crontab = Crontab::new(bytes);
    let _ = (crontab.entry(), crontab.old_entries(), crontab.without_old_entries());
    if let Ok(with) = crontab.with_entry("0 2 * * * root kvmb backup") {
        assert!(with.entry().is_ok_and(|entry| entry.is_some()), "an entry that was made is found");
        assert!(with.without_entry().is_ok_and(|without| without.entry().is_ok_and(|entry| entry.is_none())));
    }
    let Some(now) = Utc.with_ymd_and_hms(2026, 11, 20, 14, 30, 0).single() else { return };
    for line in String::from_utf8_lossy(bytes).lines().take(20) {
        if let Ok(cron) = line.parse::<Cron>() {
            let runs = cron.next_runs(&now, 3);
            assert!(runs.is_sorted() && runs.iter().all(|run| *run > now), "{line}: {runs:?}");
        }
    }
}

/// A known_hosts file.
pub fn known_hosts(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for name in ["server.example.com", "[10.0.0.1]:2222"] {
        let _ = KnownKeys::parse(&text, name).methods();
    }
}

/// A configuration file.
pub fn configuration(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok((config, _)) = document::read(text) {
        let _ = (config.remote_url(), config.primary_repo(), config.second_repo());
    }
}

/// A guest's disk in the form that [`file_systems::Disk`] describes: its partitions, and files of all readers.
pub fn file_systems(bytes: &[u8]) {
    file_systems::read(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    #[test]
    fn every_fuzz_target_survives_its_seeds_and_truncations() {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        let manifest = fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
        for (name, target) in TARGETS {
            assert!(
                manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")),
                "{name} is no target of fuzz/Cargo.toml"
            );
            let seeds: Vec<_> =
                fs::read_dir(fuzz.join("seeds").join(name)).unwrap().map(|seed| seed.unwrap().path()).collect();
            assert!(seeds.len() >= 2, "{name} has no seeds");
            for seed in seeds {
                let bytes = fs::read(&seed).unwrap();
                // Truncated seeds are invalid input too.
                for length in [bytes.len(), bytes.len() / 2, bytes.len().saturating_sub(1), 0] {
                    target(&bytes[..length]);
                }
            }
        }
    }

    #[test]
    fn seeds_are_valid_input_for_their_parsers() {
        let read = |path: &str| fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(path)).unwrap();
        assert!(foreign::pack_header(&read("pack_header/two_blobs")));
        assert!(foreign::index_json(&read("index_json/one_pack")));
        assert!(foreign::tree_json(&read("tree_json/file_and_folder")));
        assert!(Reply::parse(read("sftp_packets/names")).is_some());
        assert!(Definition::parse(&String::from_utf8(read("domain_xml/two_disks")).unwrap()).is_ok());
        assert!(document::read(&String::from_utf8(read("configuration/example")).unwrap()).is_ok());
    }
}
