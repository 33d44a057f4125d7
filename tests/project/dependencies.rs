//! The dependencies follow the rules of `deny.toml`.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

const RULES: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/deny.toml"));

/// Returns the words of a list in `deny.toml`.
fn list(key: &str) -> BTreeSet<&'static str> {
    let (_, rest) = RULES.split_once(&format!("\n{key} = [\n")).expect(key);
    let lines = rest.lines().take_while(|line| *line != "]");
    lines.map(|line| line.trim().trim_end_matches(',').trim_matches('"')).collect()
}

/// Returns the packages that are linked on Linux, with cargo's metadata.
fn packages() -> Vec<Value> {
    let cargo = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--offline", "--format-version", "1"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .output()
        .expect("cargo");
    assert!(cargo.status.success(), "{}", String::from_utf8_lossy(&cargo.stderr));
    let metadata: Value = serde_json::from_slice(&cargo.stdout).expect("JSON");
    metadata["packages"].as_array().expect("packages").clone()
}

/// Whether a license is permitted: at least one of several alternatives, and all of several that apply.
fn is_permitted(license: &str, allowed: &BTreeSet<&str>) -> bool {
    let license = license.replace(['(', ')'], "").replace(" / ", " OR ").replace('/', " OR ");
    license.split(" AND ").all(|part| part.split(" OR ").any(|name| allowed.contains(name.trim())))
}

#[test]
fn every_license_is_permitted() {
    let allowed = list("allow");
    assert!(is_permitted("(MIT OR Nothing) AND Unicode-3.0", &allowed) && is_permitted("MIT/Nothing", &allowed));
    assert!(!is_permitted("Nothing", &allowed) && !is_permitted("MIT AND Nothing", &allowed));
    for package in packages() {
        let license = package["license"].as_str().unwrap_or_default();
        assert!(is_permitted(license, &allowed), "{}: {license} is not in deny.toml", package["name"]);
    }
}

#[test]
fn duplicate_crate_versions_are_exactly_those_in_deny_toml() {
    let mut versions = BTreeMap::<String, BTreeSet<String>>::new();
    for package in packages() {
        let text = |key: &str| package[key].as_str().expect(key).to_owned();
        versions.entry(text("name")).or_default().insert(text("version"));
    }
    let several: BTreeSet<&str> =
        versions.iter().filter(|(_, versions)| versions.len() > 1).map(|(name, _)| name.as_str()).collect();
    assert_eq!(several, list("skip"), "left: there are several versions; right: deny.toml permits it");
}
