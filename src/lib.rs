//! kvmb backs up and restores KVM/libvirt virtual machines into restic repositories.
//!
//! The map of the layers, lowest first; a layer imports only from those above it in this table, and `storage`, `nbd`
//! and `capture` do not know each other. `tests/project/architecture.rs` checks this.
//!
//! | layer | what |
//! | --- | --- |
//! | [`record`] | what commands say to each other: the wire format, field by field |
//! | [`mod@glob`] | names that a pattern matches |
//! | [`suggest`] | what was meant by a word that nobody knows |
//! | [`units`] | lengths of time, sizes and shares, as people write them |
//! | [`clock`] | what a clock on the wall shows when clocks change |
//! | [`failpoint`] | the steps of a backup and of a prune by name, for tests that interrupt it at each |
//! | [`bounded`] | calls that may never return, given up in time |
//! | [`rate_limiter`] | so many bytes a second and no more |
//! | [`atomic_file`] | small files that are there whole or not at all |
//! | [`direct_file`] | large files that are written past the page cache |
//! | [`storage`] | where the files of a repository live |
//! | [`nbd`] | reading disks: the NBD client |
//! | [`filesystems`] | the file systems of guests, read without the kernel |
//! | [`confined`] | the process that parses them, and can do nothing else |
//! | [`repo`] | restic's repository format, version 2 |
//! | [`capture`] | libvirt and QEMU: the moment of capture |
//! | [`schedule`] | when backups run: crontab(5) expressions |
//! | [`retention`] | which points to keep: pure rules |
//! | [`history`] | what this host remembers of its backups |
//! | [`ops`] | the workflows on all of these, without a terminal |
//! | [`config`] | the configuration file |
//! | [`log`] | what a run leaves to be read later |
//! | `fuzzing` | what parses bytes of others, as the fuzz targets call it (feature `testing`) |
//! | `console` | the web console: runs commands and shows their records (feature `console`) |
//! | [`cli`] | one file a subcommand; alone knows the terminal and the environment |

pub mod atomic_file;
pub mod bounded;
pub mod capture;
pub mod cli;
pub mod clock;
pub mod config;
pub mod confined;
#[cfg(feature = "console")]
pub mod console;
pub mod direct_file;
pub mod failpoint;
pub mod filesystems;
#[cfg(any(test, feature = "testing"))]
pub mod fuzzing;
pub mod glob;
pub mod history;
pub mod log;
pub mod nbd;
pub mod ops;
pub mod rate_limiter;
pub mod record;
pub mod repo;
pub mod retention;
pub mod schedule;
pub mod storage;
pub mod suggest;
pub mod units;
