//! Paths as the guest sees them, with mounted file systems and symbolic links.
//!
//! A symbolic link never leaves the guest: an absolute target starts at its root, and `..` of the root is the root.

use super::volumes::Volumes;
use super::{FsError, InodeKind, Node, Result};
use crate::suggest::similar_names;

/// "A pathname has at most 40 links", as in Linux.
const MOST_LINKS: usize = 40;

/// Maximum number of names in a path and in a link target.
const MOST_NAMES: usize = 4096;

/// A file of one of the volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) volume: usize,
    pub(crate) node: Node,
}

/// The names from the root to a file.
pub(crate) type Names = Vec<Vec<u8>>;

/// A tree of files.
#[derive(Debug, Clone)]
pub(crate) struct Namespace {
    pub(crate) root: Place,
    /// The mount points, and the roots mounted there.
    pub(crate) mounts: Vec<(Names, Place)>,
}

impl Namespace {
    /// Returns the tree of one volume.
    pub(crate) fn of_volume(volumes: &mut Volumes, volume: usize) -> Result<Namespace> {
        let node = volumes.filesystem(volume)?.root();
        Ok(Namespace { root: Place { volume, node }, mounts: Vec::new() })
    }

    /// Returns the root of the file system mounted at a path, or the original place.
    fn mounted(&self, names: &Names, place: Place) -> Place {
        self.mounts.iter().find(|(at, _)| at == names).map_or(place, |(_, mounted)| *mounted)
    }

    /// Returns the index of the mount that shows a path; None for the root.
    pub(crate) fn mount_of(&self, names: &Names) -> Option<usize> {
        let shown = self.mounts.iter().enumerate().filter(|(_, (at, _))| names.starts_with(at));
        shown.max_by_key(|(_, (at, _))| at.len()).map(|(number, _)| number)
    }

    /// Finds a file. The returned names are those of the file itself, with all symbolic links on the way resolved.
    pub(crate) fn resolve(&self, volumes: &mut Volumes, path: &Names, follow_last: bool) -> Result<(Names, Place)> {
        let mut at: Vec<(Vec<u8>, Place)> = Vec::new();
        let mut rest: Names = path.iter().rev().cloned().collect();
        let mut links = 0;
        while let Some(name) = rest.pop() {
            if at.len() + rest.len() > MOST_NAMES {
                return Err(FsError::BadPath("the path is too long".into()));
            }
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    at.pop();
                    continue;
                }
                _ => {}
            }
            let dir = at.last().map_or(self.root, |(_, place)| *place);
            let (name, node) = lookup(volumes, dir, &name, &at)?;
            let mut names: Names = at.iter().map(|(name, _)| name.clone()).collect();
            names.push(name.clone());
            let place = self.mounted(&names, Place { volume: dir.volume, node });
            let filesystem = volumes.filesystem(place.volume)?;
            let is_link = filesystem.metadata(place.node)?.kind == InodeKind::Symlink;
            if !is_link || (rest.is_empty() && !follow_last) {
                at.push((name, place));
                continue;
            }
            links += 1;
            if links > MOST_LINKS {
                return Err(FsError::BadPath(format!("{} has too many levels of symbolic links", display(&names))));
            }
            let is_windows = filesystem.ignores_case();
            let (is_absolute, target) = split_target(&filesystem.read_link(place.node)?, is_windows);
            if is_absolute {
                at.clear();
            }
            rest.extend(target.into_iter().rev());
        }
        let place = at.last().map_or(self.root, |(_, place)| *place);
        Ok((at.into_iter().map(|(name, _)| name).collect(), place))
    }

    /// Returns the sorted names in a directory, with mount points resolved.
    pub(crate) fn children(&self, volumes: &mut Volumes, names: &Names, dir: Place) -> Result<Vec<(Vec<u8>, Place)>> {
        let mut entries = volumes.filesystem(dir.volume)?.read_dir(dir.node)?;
        entries.sort();
        let mut below = names.clone();
        let children = entries.into_iter().map(|(name, node)| {
            below.push(name);
            let place = self.mounted(&below, Place { volume: dir.volume, node });
            (below.pop().unwrap_or_default(), place)
        });
        Ok(children.collect())
    }
}

fn lookup(volumes: &mut Volumes, dir: Place, name: &[u8], above: &[(Vec<u8>, Place)]) -> Result<(Vec<u8>, Node)> {
    let filesystem = volumes.filesystem(dir.volume)?;
    let names = || above.iter().map(|(name, _)| name.clone()).collect::<Names>();
    if filesystem.metadata(dir.node)?.kind != InodeKind::Directory {
        return Err(FsError::BadPath(format!("{} is not a directory", display(&names()))));
    }
    let entries = filesystem.read_dir(dir.node)?;
    let same =
        |known: &[u8]| String::from_utf8_lossy(known).to_lowercase() == String::from_utf8_lossy(name).to_lowercase();
    let exact = entries.iter().find(|(known, _)| known == name);
    let found = exact.or_else(|| entries.iter().find(|(known, _)| filesystem.ignores_case() && same(known)));
    match found {
        Some((known, node)) => Ok((known.clone(), *node)),
        None => {
            let known: Vec<String> =
                entries.iter().map(|(name, _)| String::from_utf8_lossy(name).into_owned()).collect();
            let near = similar_names(&String::from_utf8_lossy(name), known.iter().map(String::as_str));
            let mut path = names();
            path.push(name.to_vec());
            Err(FsError::NotFound { path: display(&path), near })
        }
    }
}

/// Splits a link target into names, and returns whether it is absolute.
fn split_target(target: &[u8], is_windows: bool) -> (bool, Names) {
    let is_separator = |byte: &u8| *byte == b'/' || (is_windows && *byte == b'\\');
    let drive = if is_windows && target.len() > 1 && target[1] == b':' { 2 } else { 0 };
    let target = &target[drive..];
    let is_absolute = target.first().is_some_and(is_separator);
    let names = target.split(is_separator).take(MOST_NAMES).map(<[u8]>::to_vec);
    (is_absolute, names.filter(|name| !name.is_empty()).collect())
}

/// Formats a path for people.
pub(crate) fn display(names: &[Vec<u8>]) -> String {
    let names: Vec<_> = names.iter().map(|name| String::from_utf8_lossy(name)).collect();
    format!("/{}", names.join("/"))
}

/// Splits a path with slashes into names.
pub(crate) fn names_of(path: &[u8]) -> Names {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_targets_are_split_by_the_rules_of_their_system() {
        let names = |names: &[&str]| names.iter().map(|name| name.as_bytes().to_vec()).collect::<Names>();
        assert_eq!(split_target(b"../a//b", false), (false, names(&["..", "a", "b"])));
        assert_eq!(split_target(b"/usr/bin", false), (true, names(&["usr", "bin"])));
        assert_eq!(split_target(br"C:\Users\x", true), (true, names(&["Users", "x"])));
        assert_eq!(split_target(br"C:\x", false), (false, names(&[r"C:\x"])));
    }
}
