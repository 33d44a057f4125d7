//! The project itself: its structure, its generated files, its documents, its packages and its test support.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod ansible;
mod architecture;
mod contributors;
mod cycles;
mod dependencies;
mod documents;
mod file_sizes;
mod generated;
mod hints;
mod messages;
mod packaging;
mod readme;
mod snapshots;
mod support_self;
mod wording;
