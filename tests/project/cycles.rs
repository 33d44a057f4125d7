//! There are no import cycles between the files of the crate.
//!
//! An edge leads from a file to each file that defines an item which it names, in a `use` or by a path in its code. A
//! re-export in a `mod.rs` (`pub use child::Item;`) is not an edge: a file that names the item through the parent
//! depends on the file that defines it. So a parent may re-export its children, as long as its own code does not use
//! the re-exports and the children do not need the parent.
//! Test modules are ignored.

use std::collections::{BTreeMap, BTreeSet};

use crate::architecture::{Source, assert_none, sources, words};

/// A module's path, without `crate`.
type Module = Vec<String>;

#[test]
fn source_files_have_no_import_cycles() {
    let graph = Graph::of(&sources());
    assert!(graph.arrows.values().map(BTreeSet::len).sum::<usize>() > 300, "the imports were not read");
    let faults: Vec<String> = graph.circles().iter().map(|circle| graph.describe(circle)).collect();
    assert_none(&faults);
}

#[test]
fn import_cycles_are_found_and_facades_are_not_cycles() {
    let file = |name: &str, code: &str| Source::of_code(name, code);
    let facade = [
        file("a/mod.rs", "mod b; mod c; pub use b::B; pub use c::{C, other as D};"),
        file("a/b.rs", "pub struct B;"),
        file("a/c.rs", "use super::B; pub struct C(B);"),
    ];
    assert!(Graph::of(&facade).circles().is_empty());
    let used = [file("a/mod.rs", "mod b; use b::B; pub struct A(B);"), file("a/b.rs", "use super::A; pub struct B;")];
    assert_eq!(Graph::of(&used).circles().len(), 1);
    let by_path = [
        file("a.rs", "use crate::b; fn f() { b::g() }"),
        file("b.rs", "pub fn g() { crate::c::h() }"),
        file("c.rs", "use crate::{a as x}; pub fn h() { x::f() }\n#[cfg(test)]\nmod tests { use crate::b; }"),
    ];
    let graph = Graph::of(&by_path);
    let circles = graph.circles();
    assert_eq!(circles.len(), 1);
    assert_eq!(graph.describe(&circles[0]), "a -> b, b -> c, c -> a");
}

struct Graph {
    arrows: BTreeMap<Module, BTreeSet<Module>>,
}

impl Graph {
    fn of(sources: &[Source]) -> Graph {
        // The library's root re-exports nothing, and `main.rs` is another crate.
        let files = sources.iter().filter(|file| file.layer().is_some()).map(|file| (module(&file.name), file));
        let modules: BTreeMap<Module, &Source> = files.collect();
        let read: BTreeMap<&Module, Names> =
            modules.iter().map(|(module, file)| (module, Names::read(module, &file.code, &modules))).collect();
        let arrows = read.iter().map(|(module, names)| {
            let targets = names.used.iter().filter_map(|path| defined_in(path, &read, 0));
            ((*module).clone(), targets.filter(|target| target != *module).collect())
        });
        Graph { arrows: arrows.collect() }
    }

    /// Returns the strongly connected components with more than one file.
    fn circles(&self) -> Vec<Vec<Module>> {
        let reach: BTreeMap<&Module, BTreeSet<&Module>> =
            self.arrows.keys().map(|module| (module, self.reachable(module))).collect();
        let mut circles: Vec<Vec<Module>> = Vec::new();
        for module in self.arrows.keys() {
            if circles.iter().flatten().any(|known| known == module) {
                continue;
            }
            let back = |other: &&&Module| reach.get(**other).is_some_and(|from| from.contains(module));
            let circle: Vec<Module> = reach[module].iter().filter(back).map(|other| (*other).clone()).collect();
            if circle.len() > 1 {
                circles.push(circle);
            }
        }
        circles
    }

    fn reachable<'g>(&'g self, from: &Module) -> BTreeSet<&'g Module> {
        let mut found = BTreeSet::new();
        let mut open: Vec<&Module> = self.arrows.get(from).into_iter().flatten().collect();
        while let Some(module) = open.pop() {
            if found.insert(module) {
                open.extend(self.arrows.get(module).into_iter().flatten());
            }
        }
        found
    }

    fn describe(&self, circle: &[Module]) -> String {
        let inside = |from: &Module| {
            let targets = self.arrows[from].iter().filter(|target| circle.contains(target));
            targets.map(|target| format!("{} -> {}", from.join("::"), target.join("::"))).collect::<Vec<_>>()
        };
        circle.iter().flat_map(inside).collect::<Vec<_>>().join(", ")
    }
}

/// The names of the crate that a file mentions.
#[derive(Default)]
struct Names {
    /// Paths that it uses.
    used: BTreeSet<Vec<String>>,
    /// Names that it re-exports, and their paths.
    handed_on: BTreeMap<String, Vec<String>>,
}

impl Names {
    fn read(module: &Module, code: &str, modules: &BTreeMap<Module, &Source>) -> Names {
        let code = code.split("#[cfg(test)]\nmod ").next().unwrap_or(code);
        let (mut names, mut aliases) = (Names::default(), BTreeMap::new());
        let (uses, rest) = split_uses(code);
        let own_words = words(&own_code(&rest));
        for (is_public, tree) in uses {
            for (path, alias) in leaves(&tree) {
                let Some(path) = absolute(module, &path, modules, &BTreeMap::new()) else { continue };
                if is_public {
                    names.handed_on.insert(alias.clone(), path.clone());
                    // A re-export that is not used here.
                    if path.starts_with(module) && !own_words.contains(&alias) {
                        continue;
                    }
                }
                // For a module, only what is taken from it counts.
                if modules.contains_key(&path) {
                    aliases.insert(alias, path);
                } else {
                    names.used.insert(path);
                }
            }
        }
        for path in paths(&rest) {
            names.used.extend(absolute(module, &path, modules, &aliases));
        }
        names
    }
}

/// Returns the file that defines what a path refers to.
fn defined_in(path: &[String], read: &BTreeMap<&Module, Names>, depth: usize) -> Option<Module> {
    let at = (1..=path.len()).rev().find(|length| read.contains_key(&path[..*length].to_vec()))?;
    let (module, rest) = (path[..at].to_vec(), &path[at..]);
    match rest.first().and_then(|name| read[&module].handed_on.get(name)) {
        Some(origin) if depth < 8 => defined_in(&[origin, &rest[1..]].concat(), read, depth + 1),
        _ => Some(module),
    }
}

/// Returns a path from the crate's root; None if it leads out of the crate.
fn absolute(
    module: &Module,
    path: &[String],
    modules: &BTreeMap<Module, &Source>,
    aliases: &BTreeMap<String, Vec<String>>,
) -> Option<Vec<String>> {
    let first = path.first()?;
    if let Some(known) = aliases.get(first) {
        return Some([known, &path[1..]].concat());
    }
    let ups = path.iter().take_while(|part| *part == "super").count();
    let (base, rest) = match first.as_str() {
        "crate" => (&module[..0], &path[1..]),
        "self" => (&module[..], &path[1..]),
        "super" => (&module[..module.len().checked_sub(ups)?], &path[ups..]),
        child if modules.contains_key(&[&module[..], &[child.to_owned()]].concat()) => (&module[..], path),
        _ => return None,
    };
    Some([base, rest].concat())
}

fn module(name: &str) -> Module {
    let path = name.strip_suffix("/mod.rs").or(name.strip_suffix(".rs")).unwrap_or(name);
    path.split('/').map(str::to_owned).collect()
}

/// Returns the trees of all `use` statements, whether they are public, and the code without them.
fn split_uses(code: &str) -> (Vec<(bool, String)>, String) {
    let (mut uses, mut rest) = (Vec::new(), String::new());
    let mut left = code;
    while let Some(at) = left.find("use ") {
        let (before, from) = left.split_at(at);
        let starts = before.chars().next_back().is_none_or(|c| c.is_whitespace() || c == ';' || c == '{' || c == '}');
        let end = from.find(';').filter(|_| starts);
        let Some(end) = end else {
            rest += before;
            rest += "use ";
            left = &from[4..];
            continue;
        };
        let words = before.trim_end();
        let is_public = words.ends_with("pub")
            || (words.ends_with(')') && words.rsplit('(').nth(1).is_some_and(|w| w.ends_with("pub")));
        rest += before;
        uses.push((is_public, from[4..end].to_owned()));
        left = &from[end + 1..];
    }
    rest += left;
    (uses, rest)
}

/// Removes the declarations of modules from code.
fn own_code(code: &str) -> String {
    let declares = |line: &&str| line.trim_end().ends_with(';') && line.split_whitespace().any(|word| word == "mod");
    code.lines().filter(|line| !declares(line)).collect::<Vec<_>>().join("\n")
}

/// Returns the paths of a `use` tree, each with its local name.
fn leaves(tree: &str) -> Vec<(Vec<String>, String)> {
    let (mut found, mut prefixes, mut path, mut word) =
        (Vec::new(), Vec::<Vec<String>>::new(), Vec::new(), String::new());
    for character in tree.chars().chain([',']) {
        match character {
            '{' => prefixes.push(path.clone()),
            ':' if !word.trim().is_empty() => path.push(std::mem::take(&mut word).trim().to_owned()),
            ':' => {}
            ',' | '}' => {
                let (name, alias) = word.trim().split_once(" as ").unwrap_or((word.trim(), ""));
                if !name.is_empty() {
                    let whole = if name == "self" && !path.is_empty() {
                        path.clone()
                    } else {
                        [&path[..], &[name.to_owned()]].concat()
                    };
                    let brings = if alias.is_empty() {
                        whole.last().cloned().unwrap_or_default()
                    } else {
                        alias.trim().to_owned()
                    };
                    found.push((whole, brings));
                }
                word.clear();
                if character == '}' {
                    prefixes.pop();
                }
                path = prefixes.last().cloned().unwrap_or_default();
            }
            other => word.push(other),
        }
    }
    found
}

/// Returns all paths with at least two parts.
fn paths(code: &str) -> BTreeSet<Vec<String>> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let words = code.split(|c: char| !is_part(c)).filter(|word| word.contains("::"));
    let parts = words.map(|word| word.trim_matches(':').split("::").map(str::to_owned).collect::<Vec<_>>());
    parts.filter(|parts| parts.len() > 1 && parts.iter().all(|part| !part.is_empty() && !part.contains(':'))).collect()
}
