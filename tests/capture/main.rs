//! Captures of running and of stopped machines, on real libvirt and QEMU.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod definition;
mod definition_zoo;
mod embedded;
mod guard;
mod guest;
mod hostile_files;
mod lab;
mod libvirtd;
mod offline_changes;
mod open_and_close;
mod stopped_machines;
