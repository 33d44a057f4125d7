//! Completion of paths inside a point: the names in the directory that the current word refers to.

use super::candidates::{Offer, completer, context, known_points, point_on};
use super::line::CompletionLine;
use crate::cli::table;
use crate::filesystems::namespace::Names;
use crate::filesystems::volumes::VolumeInfo;
use crate::filesystems::{FsError, InodeKind};
use crate::ops::files::{Depth, FileSink, Follow, GuestFile, PointFiles, Walk};
use crate::ops::manifest::ManifestDisk;
use crate::ops::points;
use crate::ops::{Error, Result, Silent};
use clap_complete::engine::ArgValueCompleter;

/// Maximum number of candidates; nobody reads more names than these.
const MOST_NAMES: usize = 10_000;

/// Completes the paths of the point on the line: `/etc/`, `vda2:/home/`, `C:\Users\`.
pub(crate) fn point_paths() -> ArgValueCompleter {
    completer(|typed, line| paths(typed, &line))
}

fn paths(typed: &str, line: &CompletionLine) -> Option<Vec<Offer>> {
    let (repo, known) = known_points(line)?;
    let found = point_on(line, &repo, &known)?;
    let index = points::load_index_for_reading(&repo, &Silent).ok()?;
    let point = points::open_with_damage(&repo, &index, &found).ok()?;
    let wanted = line.values("disks");
    let is_wanted = |disk: &&ManifestDisk| {
        !point.broken.contains_key(&disk.disk) && (wanted.is_empty() || wanted.contains(&disk.disk))
    };
    let disks: Vec<&ManifestDisk> = point.manifest.disks.iter().filter(is_wanted).collect();
    let mut files = PointFiles::open(&repo, index, &point, &disks, &context(line)?.stop).ok()?;
    match split(typed) {
        Some((directory, separator)) => names_in(&mut files, directory, separator),
        None => Some(roots(&files)),
    }
}

/// Returns the directory part of a path, including its last separator, and that separator.
fn split(typed: &str) -> Option<(&str, char)> {
    let is_of_windows = typed.get(1..3) == Some(":\\");
    let end = typed.rfind(|c| c == '/' || (is_of_windows && c == '\\'))?;
    Some((&typed[..=end], if is_of_windows { '\\' } else { '/' }))
}

/// Returns the possible beginnings of a path.
fn roots(files: &PointFiles) -> Vec<Offer> {
    let readable: Vec<&VolumeInfo> =
        files.volumes().iter().filter(|volume| volume.format.is_readable() && volume.problem.is_none()).collect();
    let systems: Vec<&String> = readable.iter().filter_map(|volume| volume.system.as_ref()).collect();
    let root = match (systems.as_slice(), readable.as_slice()) {
        ([system], _) => Some(("/".to_owned(), (*system).clone())),
        ([], [only]) => Some(("/".to_owned(), only.format.word().to_owned())),
        _ => None,
    };
    let volume = |volume: &&VolumeInfo| {
        let about = [volume.format.word(), volume.mount_point.as_deref().unwrap_or(&volume.label)].join(" ");
        (format!("{}:/", volume.name), about.trim().to_owned())
    };
    root.into_iter().chain(readable.iter().map(volume)).collect()
}

fn names_in(files: &mut PointFiles, directory: &str, separator: char) -> Option<Vec<Offer>> {
    let mut listed = PathOffers { before: directory.to_owned(), separator, offers: Vec::new() };
    let walk = Walk { path: directory.to_owned(), depth: Depth::Children, follow: Follow::ToDirectory, content: false };
    match files.walk(&walk, &mut listed) {
        Ok(()) | Err(Error::Interrupted) => Some(listed.offers),
        Err(_) => None,
    }
}

/// Turns the files of a directory into candidates.
struct PathOffers {
    before: String,
    separator: char,
    offers: Vec<Offer>,
}

impl FileSink for PathOffers {
    fn file(&mut self, file: GuestFile) -> Result<()> {
        // A name that is not UTF-8 cannot be typed.
        let Some(name) = file.names.last().and_then(|name| std::str::from_utf8(name).ok()) else { return Ok(()) };
        let (before, metadata) = (&self.before, &file.metadata);
        self.offers.push(match metadata.kind {
            InodeKind::Directory => (format!("{before}{name}{}", self.separator), String::new()),
            InodeKind::File => (format!("{before}{name}"), table::bytes(metadata.size_bytes)),
            kind => (format!("{before}{name}"), kind.word().to_owned()),
        });
        if self.offers.len() < MOST_NAMES { Ok(()) } else { Err(Error::Interrupted) }
    }

    fn unreadable(&mut self, _names: &Names, _error: FsError) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partial_path_is_split_at_the_separator_of_its_system() {
        for (typed, directory) in [
            ("/et", Some(("/", '/'))),
            ("/etc/", Some(("/etc/", '/'))),
            ("vda2:/home/a", Some(("vda2:/home/", '/'))),
            (r"C:\Users\x", Some((r"C:\Users\", '\\'))),
            (r"/a\b", Some(("/", '/'))),
            ("vda2:", None),
            ("", None),
            ("é", None),
        ] {
            assert_eq!(split(typed), directory, "{typed}");
        }
    }
}
