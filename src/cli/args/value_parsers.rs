//! Parsers for argument values: sizes, rates, percentages, times, paths, names.

use crate::cli::folders;
use crate::config;
use crate::units::{ChunkSize, Share, ShortDuration, Size};
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter};
use std::ffi::OsStr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

/// Parses a rate in bytes per second.
pub(crate) fn rate(text: &str) -> Result<NonZeroU32, String> {
    let size = text.to_ascii_uppercase().parse::<Size>().ok();
    // Rates beyond 4 GiB/s are no limit in practice.
    let bytes = size.map(|size| u32::try_from(size.0).unwrap_or(u32::MAX));
    bytes.and_then(NonZeroU32::new).ok_or_else(|| "expected bytes per second, such as 500K or 10M".to_owned())
}

/// Parses a positive number of bytes.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let size = text.to_ascii_uppercase().parse::<Size>().ok().filter(|size| size.0 > 0);
    size.map(|size| size.0).ok_or_else(|| "expected a size, such as 512M or 2G".to_owned())
}

/// Parses the size of a disk's chunks.
pub(crate) fn chunk_size(text: &str) -> Result<ChunkSize, String> {
    text.to_ascii_uppercase().parse::<ChunkSize>().map_err(|error| error.to_string())
}

/// Parses a percentage into a share from 0 to 1.
pub(crate) fn percent(text: &str) -> Result<f64, String> {
    text.parse::<Share>().map(|share| share.0).map_err(|error| error.to_string())
}

/// Parses a positive duration.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let span = text.parse::<ShortDuration>().ok().filter(|span| !span.0.is_zero());
    span.map(|span| span.0).ok_or_else(|| ShortDuration::RULE.to_owned())
}

/// Parses a name for a new machine, by libvirt's rules.
pub(crate) fn machine_name(text: &str) -> Result<String, String> {
    let is_name = !["", ".", ".."].contains(&text.trim()) && !text.contains(['/', '\n']);
    is_name
        .then(|| text.to_owned())
        .ok_or_else(|| "a machine name must not be empty, '.' or '..', or contain '/' or a line break".into())
}

/// Accepts a path. An empty one, as from an empty variable, means none.
pub(crate) fn path_or_nothing() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// Completes folders, address prefixes and the configured repositories.
pub(crate) fn repositories() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let mut found = PathCompleter::dir().complete(current);
        let mut addresses = configured_repositories();
        addresses.extend(["sftp://", "rest:https://", "s3:https://"].map(str::to_owned));
        let fits = |address: &String| current.to_str().is_some_and(|typed| address.starts_with(typed));
        found.extend(addresses.into_iter().filter(fits).map(CompletionCandidate::new));
        found
    })
}

/// Returns the configured repositories on servers. Local ones are completed as folders.
fn configured_repositories() -> Vec<String> {
    let (home, configurations) = folders::of_configurations();
    let named = std::env::var_os("KVMB_CONFIG").map(PathBuf::from).filter(|file| !file.as_os_str().is_empty());
    let Ok(loaded) = config::load(named.as_deref(), home.as_deref(), configurations.as_deref()) else {
        return Vec::new();
    };
    let config = &loaded.config;
    let mut found: Vec<String> =
        [config.primary_repo(), config.second_repo(), config.remote_url()].into_iter().flatten().collect();
    found.retain(|url| config::is_on_server(url));
    found.sort();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use crate::cli::args::value_parsers::*;

    #[test]
    fn refused_machine_name_names_the_rule_that_it_breaks() {
        assert_eq!(machine_name("web 1").as_deref(), Ok("web 1"));
        let refused = |name: &str| machine_name(name).expect_err(name);
        assert!(refused("..").contains("'..'") && refused("a/b").contains("'/'"));
    }

    #[test]
    fn rates_are_parsed_as_bytes_per_second() {
        let read = |text| rate(text).map(NonZeroU32::get).ok();
        assert_eq!(read("500K"), Some(500 << 10));
        assert_eq!(read("10M"), Some(10 << 20));
        assert_eq!(read("1"), Some(1));
        assert_eq!(read("100G"), Some(u32::MAX));
        for wrong in ["", "0", "0M", "K", "-1M", "1.5M", "10MB", "10 M", "1é"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn only_machine_names_that_libvirt_accepts_are_accepted() {
        for right in ["web", "web 1", "-rf", "...", ".web", "Büro"] {
            assert_eq!(machine_name(right).as_deref(), Ok(right));
        }
        for wrong in ["", " ", ".", "..", "a/b", "/", "a\nb"] {
            assert!(machine_name(wrong).is_err(), "{wrong:?}");
        }
    }
}
