//! A place in a point: a path in one of its file systems, or in its operating system with everything mounted there.

use crate::console::html;
use crate::console::pages::fields::query_of;
use crate::console::visit::Fields;
use crate::record::{Filesystem, Record};
use percent_encoding::percent_decode_str;

/// The value of the field that selects the operating system.
pub(super) const SYSTEM: &str = "system";

/// The file systems of a point.
pub(super) struct Filesystems<'r>(pub(super) Vec<&'r Filesystem>);

impl<'r> Filesystems<'r> {
    pub(super) fn of(records: &'r [Record]) -> Filesystems<'r> {
        let found = records.iter().filter_map(|record| match record {
            Record::Filesystem(filesystem) => Some(filesystem),
            _ => None,
        });
        Filesystems(found.collect())
    }

    pub(super) fn readable(&self) -> impl Iterator<Item = &'r Filesystem> {
        self.0.iter().copied().filter(|filesystem| filesystem.readable)
    }

    /// Returns the operating system if there is exactly one.
    pub(super) fn system(&self) -> Option<&'r str> {
        let mut systems = self.0.iter().filter_map(|filesystem| filesystem.system.as_deref());
        systems.next().filter(|_| systems.next().is_none())
    }

    fn has(&self, name: &str) -> bool {
        self.readable().any(|filesystem| filesystem.filesystem == name)
    }
}

/// A file system and an absolute path in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FilePlace {
    pub(super) part: String,
    pub(super) path: String,
}

impl FilePlace {
    /// Returns the place that a form or a link refers to; None if nothing in the point can be read.
    pub(super) fn of(fields: &Fields, known: &Filesystems<'_>) -> Option<FilePlace> {
        let default = || match known.system() {
            Some(_) => Some(SYSTEM.to_owned()),
            None => known.readable().next().map(|filesystem| filesystem.filesystem.clone()),
        };
        let is_part = |part: &&str| known.has(part) || (*part == SYSTEM && known.system().is_some());
        let part = fields.get("part").filter(is_part).map(str::to_owned).or_else(default)?;
        let typed = fields.get("path").unwrap_or("/");
        Some(match typed.split_once(':') {
            // The notation of the commands: `vda2:/etc`, `C:\Users`.
            Some((part, path)) if known.has(part) => FilePlace { part: part.to_owned(), path: plain(path) },
            Some((drive, path)) if drive.eq_ignore_ascii_case("c") && known.system() == Some("Windows") => {
                FilePlace { part: SYSTEM.to_owned(), path: plain(&path.replace('\\', "/")) }
            }
            _ => FilePlace { part, path: plain(typed) },
        })
    }

    /// Returns the path in the notation of the commands.
    pub(super) fn argument(&self) -> String {
        argument(&self.part, &self.path)
    }

    /// Returns the query of a link to this place.
    pub(super) fn query(&self) -> String {
        query_of([("part", self.part.as_str()), ("path", self.path.as_str())].into_iter())
    }

    /// Returns the place of another path in the same file system.
    pub(super) fn at(&self, path: &str) -> FilePlace {
        FilePlace { part: self.part.clone(), path: path.to_owned() }
    }

    /// Returns the parent folders: name and path of each.
    pub(super) fn folders(&self) -> Vec<(&str, &str)> {
        let names = self.path.split('/').filter(|name| !name.is_empty());
        let mut end = 0;
        names
            .map(|name| {
                end += 1 + name.len();
                (name, &self.path[..end])
            })
            .collect()
    }

    /// Returns the path in this file system of a file, from the path in its record.
    pub(super) fn path_of<'p>(&self, recorded: &'p str) -> &'p str {
        let prefix = recorded.strip_prefix(self.part.as_str()).and_then(|rest| rest.strip_prefix(':'));
        prefix.filter(|rest| rest.starts_with('/')).unwrap_or(recorded)
    }
}

/// Returns a path of a file system in the notation of the commands.
fn argument(part: &str, path: &str) -> String {
    if part == SYSTEM { path.to_owned() } else { format!("{part}:{path}") }
}

/// Normalises a path: one leading slash, no empty, `.` or `..` components.
fn plain(path: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    format!("/{}", names.join("/"))
}

/// Encodes a path as the value of a field. Browsers change line ends in values, and names may contain some.
pub(super) fn field_of(path: &str) -> String {
    html::segment(path)
}

/// Returns the paths that a form selects, in the notation of the commands. Accepts only the encoding of [`field_of`].
pub(super) fn chosen(fields: &Fields, name: &str) -> Vec<String> {
    let part = fields.get("part").unwrap_or(SYSTEM);
    let is_part = part.starts_with(|first: char| first.is_ascii_alphanumeric())
        && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    let decoded = |value: &str| percent_decode_str(value).decode_utf8().ok().map(|path| path.into_owned());
    let paths = fields.all(name).filter_map(decoded);
    // A command line cannot contain a name with a NUL byte.
    let paths = paths.filter(|path| is_part && path.starts_with('/') && !path.contains('\0'));
    paths.map(|path| argument(part, &path)).collect()
}

/// Returns the last component of a path.
pub(super) fn name_of(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filesystem(name: &str, system: Option<&str>) -> Record {
        let line = serde_json::json!({
            "type": "filesystem", "machine": "vm1", "point": "x", "disk": "vda", "filesystem": name, "format": "ext4",
            "offset_bytes": 0, "size_bytes": 0, "readable": true, "system": system,
        });
        Record::parse(&line.to_string()).unwrap()
    }

    fn place(records: &[Record], query: &str) -> (String, String) {
        let place = FilePlace::of(&Fields::parse(query), &Filesystems::of(records)).unwrap();
        (place.part, place.path)
    }

    #[test]
    fn typed_paths_are_normalised_for_their_file_system() {
        let linux = [filesystem("vda1", None), filesystem("vda2", Some("Debian"))];
        let windows = [filesystem("vda3", Some("Windows"))];
        for (records, query, part, path) in [
            (&linux[..], "", "system", "/"),
            (&linux, "path=etc//x/./y/", "system", "/etc/x/y"),
            (&linux, "part=vda1&path=/a/../../b", "vda1", "/b"),
            (&linux, "part=vda9&path=/b", "system", "/b"),
            (&linux, "part=system&path=vda1:/b", "vda1", "/b"),
            (&linux, "path=/vda1:/b", "system", "/vda1:/b"),
            (&linux, "path=C:\\b", "system", "/C:\\b"),
            (&linux[..1], "part=system", "vda1", "/"),
            (&windows, "part=vda3&path=c:\\Users\\x", "system", "/Users/x"),
        ] {
            assert_eq!(place(records, query), (part.to_owned(), path.to_owned()), "{query}");
        }
        assert_eq!(FilePlace::of(&Fields::default(), &Filesystems(Vec::new())), None);
    }

    #[test]
    fn form_fields_yield_only_absolute_paths() {
        let path = "/a b/-x\n\u{202e}é";
        let form = format!("part=vda2&f={}&f=etc&f=--to%3D/&f=/a%2500b", html::segment(&field_of(path)));
        assert_eq!(chosen(&Fields::parse(&form), "f"), [format!("vda2:{path}")]);
        for part in ["--to", "-r", "a%2Fb", "vda1:"] {
            assert!(chosen(&Fields::parse(&format!("part={part}&f=/etc")), "f").is_empty(), "{part}");
        }
        assert_eq!(chosen(&Fields::parse("part=system&f=/etc"), "f"), ["/etc"]);
    }

    #[test]
    fn parent_folders_have_their_full_paths() {
        let place = FilePlace { part: "vda2".into(), path: "/a/bé/c".into() };
        assert_eq!(place.folders(), [("a", "/a"), ("bé", "/a/bé"), ("c", "/a/bé/c")]);
        assert_eq!((place.path_of("vda2:/x"), place.path_of("/x")), ("/x", "/x"));
    }
}
