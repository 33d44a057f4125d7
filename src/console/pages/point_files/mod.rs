//! The files of a point: browsing, searching, downloading, and copying into a folder of this host.

mod browse;
mod download;
mod place;

pub(super) use browse::page;
pub(super) use download::{copy, download};

use crate::console::html;
use crate::console::pages::repos::Repos;
use crate::record::Point;

/// Returns the path of the page with a point's files.
pub(super) fn page_of(point: &Point) -> String {
    format!("/points/{}/files", html::segment(&point.point))
}

/// Returns the command line of a `files` command for a point.
pub(super) fn words(repos: &Repos, point: &Point, command: &str, options: &[String], paths: &[String]) -> Vec<String> {
    let mut words = vec!["files".to_owned(), command.to_owned()];
    words.extend_from_slice(options);
    words.extend(repos.options(&point.repo));
    words.push(point.point.clone());
    words.extend_from_slice(paths);
    words
}
