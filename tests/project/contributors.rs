//! Everything that the pages for contributors mention exists, and the page on the format describes every field.

use std::collections::BTreeSet;
use std::fs;

use crate::architecture::root;

const PAGES: [&str; 4] = ["CONTRIBUTING.md", "SECURITY.md", "docs/architecture.md", "docs/format.md"];

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Returns the texts between single backquotes, outside of blocks.
fn words(text: &str) -> Vec<String> {
    let outside = text.split("```").step_by(2);
    outside.flat_map(|part| part.split('`').skip(1).step_by(2).map(str::to_owned)).collect()
}

#[test]
fn files_and_make_targets_in_contributor_pages_exist() {
    let makefile = read("Makefile");
    let layers: BTreeSet<String> = fs::read_dir(root().join("tests"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let mut seen = (0, 0);
    for page in PAGES {
        let text = read(page);
        for word in words(&text) {
            if ["src/", "tests/", ".ci/", "docs/", "fuzz"].iter().any(|prefix| word.starts_with(prefix)) {
                assert!(root().join(&word).exists(), "{page}: {word} does not exist");
                seen.0 += 1;
            }
        }
        for target in words(&text).iter().filter_map(|word| word.strip_prefix("make ")) {
            let is_layer = target.strip_prefix("test-").is_some_and(|layer| layers.contains(layer));
            assert!(is_layer || makefile.contains(&format!("\n{target}:")), "{page}: make {target} does not exist");
            seen.1 += 1;
        }
    }
    assert!(seen.0 > 30 && seen.1 > 5, "the pages are read wrongly: {seen:?}");
}

#[test]
fn format_page_documents_every_manifest_field() {
    let format = words(&read("docs/format.md")).into_iter().collect::<BTreeSet<_>>();
    let source = read("src/ops/manifest.rs");
    let mut fields = 0;
    let is_name = |name: &str| name.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit());
    for line in source.lines().filter_map(|line| line.strip_prefix("    pub(crate) ")) {
        let Some((field, _)) = line.split_once(": ").filter(|(name, _)| is_name(name)) else { continue };
        assert!(format.contains(field), "docs/format.md lacks `{field}`");
        fields += 1;
    }
    assert!(fields > 30, "src/ops/manifest.rs is read wrongly: {fields} fields");
}
