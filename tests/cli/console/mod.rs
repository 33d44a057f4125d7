//! `kvmb ui`: the console as a browser sees it, over HTTP, with a real machine and a real repository.

mod client;
mod journey;
mod security;
