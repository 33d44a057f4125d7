//! `kvmb ui`: the console as a browser sees it, over HTTP, with a real machine and a real repository.

mod browser;
mod client;
mod drills;
mod files;
mod french_pages;
mod french_setup;
mod journal;
mod journey;
mod live_restores;
mod machines;
mod points;
mod restores;
mod retention;
mod schedule;
mod security;
mod server;
mod settings;
mod system;
