//! Where in a point: one of its file systems, or its operating system with all that it mounts; and a path there.

use crate::console::html;
use crate::console::pages::fields::query_of;
use crate::console::visit::Fields;
use crate::record::{Filesystem, Record};
use percent_encoding::percent_decode_str;

/// The value of the field for the operating system.
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

    /// The only operating system.
    pub(super) fn system(&self) -> Option<&'r str> {
        let mut systems = self.0.iter().filter_map(|filesystem| filesystem.system.as_deref());
        systems.next().filter(|_| systems.next().is_none())
    }

    fn has(&self, name: &str) -> bool {
        self.readable().any(|filesystem| filesystem.filesystem == name)
    }
}

/// A file system and a path on it; the path begins with a slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FilePlace {
    pub(super) part: String,
    pub(super) path: String,
}

impl FilePlace {
    /// What a form or a link asks for; none if nothing in the point can be read.
    pub(super) fn of(fields: &Fields, known: &Filesystems<'_>) -> Option<FilePlace> {
        let default = || match known.system() {
            Some(_) => Some(SYSTEM.to_owned()),
            None => known.readable().next().map(|filesystem| filesystem.filesystem.clone()),
        };
        let is_part = |part: &&str| known.has(part) || (*part == SYSTEM && known.system().is_some());
        let part = fields.get("part").filter(is_part).map(str::to_owned).or_else(default)?;
        let typed = fields.get("path").unwrap_or("/");
        Some(match typed.split_once(':') {
            // As a command would have it: `vda2:/etc`, `C:\Users`.
            Some((part, path)) if known.has(part) => FilePlace { part: part.to_owned(), path: plain(path) },
            Some((drive, path)) if drive.eq_ignore_ascii_case("c") && known.system() == Some("Windows") => {
                FilePlace { part: SYSTEM.to_owned(), path: plain(&path.replace('\\', "/")) }
            }
            _ => FilePlace { part, path: plain(typed) },
        })
    }

    /// The path as a command has it.
    pub(super) fn argument(&self) -> String {
        argument(&self.part, &self.path)
    }

    /// What a link to it has behind `?`.
    pub(super) fn query(&self) -> String {
        query_of([("part", self.part.as_str()), ("path", self.path.as_str())].into_iter())
    }

    /// The same file system, another path.
    pub(super) fn at(&self, path: &str) -> FilePlace {
        FilePlace { part: self.part.clone(), path: path.to_owned() }
    }

    /// The folders on the way: the name of each, and its path.
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

    /// The path of a file on this file system, of the path in its record.
    pub(super) fn path_of<'p>(&self, recorded: &'p str) -> &'p str {
        let prefix = recorded.strip_prefix(self.part.as_str()).and_then(|rest| rest.strip_prefix(':'));
        prefix.filter(|rest| rest.starts_with('/')).unwrap_or(recorded)
    }
}

/// A path on a file system, as a command has it.
fn argument(part: &str, path: &str) -> String {
    if part == SYSTEM { path.to_owned() } else { format!("{part}:{path}") }
}

/// A path that begins with one slash, with nothing in it that means another folder.
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

/// A path as the value of a field. A browser changes the ends of lines in a value, and names may have some.
pub(super) fn field_of(path: &str) -> String {
    html::segment(path)
}

/// The paths that a form names, as a command has them. Only what the page itself puts there is one.
pub(super) fn chosen(fields: &Fields, name: &str) -> Vec<String> {
    let part = fields.get("part").unwrap_or(SYSTEM);
    let is_part = part.starts_with(|first: char| first.is_ascii_alphanumeric())
        && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    let decoded = |value: &str| percent_decode_str(value).decode_utf8().ok().map(|path| path.into_owned());
    let paths = fields.all(name).filter_map(decoded);
    // Of a name with a zero byte no command line can be made.
    let paths = paths.filter(|path| is_part && path.starts_with('/') && !path.contains('\0'));
    paths.map(|path| argument(part, &path)).collect()
}

/// The last name of a path.
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
    fn a_path_is_typed_in_many_ways() {
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
    fn a_form_names_paths_and_nothing_else() {
        let path = "/a b/-x\n\u{202e}é";
        let form = format!("part=vda2&f={}&f=etc&f=--to%3D/&f=/a%2500b", html::segment(&field_of(path)));
        assert_eq!(chosen(&Fields::parse(&form), "f"), [format!("vda2:{path}")]);
        for part in ["--to", "-r", "a%2Fb", "vda1:"] {
            assert!(chosen(&Fields::parse(&format!("part={part}&f=/etc")), "f").is_empty(), "{part}");
        }
        assert_eq!(chosen(&Fields::parse("part=system&f=/etc"), "f"), ["/etc"]);
    }

    #[test]
    fn folders_on_the_way_have_their_paths() {
        let place = FilePlace { part: "vda2".into(), path: "/a/bé/c".into() };
        assert_eq!(place.folders(), [("a", "/a"), ("bé", "/a/bé"), ("c", "/a/bé/c")]);
        assert_eq!((place.path_of("vda2:/x"), place.path_of("/x")), ("/x", "/x"));
    }
}
