//! kvmb backs up and restores KVM/libvirt virtual machines into restic repositories.
//!
//! The layers, lowest first. A layer imports only from those above it in this table, and `storage`, `nbd` and `capture`
//! do not import each other. `tests/project/architecture.rs` checks this.
//!
//! | layer | what |
//! | --- | --- |
//! | [`record`] | the records that commands exchange: the wire format, field by field |
//! | [`mod@glob`] | glob patterns for names |
//! | [`suggest`] | suggestions for misspelled words |
//! | [`units`] | parsing and printing of durations, sizes and percentages |
//! | [`clock`] | local time, across daylight-saving changes |
//! | [`failpoint`] | named steps of backups and prunes, at which tests interrupt them |
//! | [`bounded`] | time limits for calls that may never return |
//! | [`helper_thread`] | optional threads: the caller does their work if the system refuses them |
//! | [`rate_limiter`] | bandwidth limits |
//! | [`atomic_file`] | atomic replacement of small files |
//! | [`direct_file`] | direct I/O for large files |
//! | [`storage`] | storage backends for repositories |
//! | [`nbd`] | the NBD client and server |
//! | [`filesystems`] | the file systems of guests, read without the kernel |
//! | [`confined`] | the sandboxed process that parses them |
//! | [`repo`] | restic's repository format, version 2 |
//! | [`capture`] | libvirt and QEMU: capturing machines |
//! | [`schedule`] | schedules: crontab(5) expressions, crontabs and systemd timers |
//! | [`retention`] | retention rules (pure) |
//! | [`history`] | the host's history of backups |
//! | [`ops`] | the workflows, without a terminal |
//! | [`config`] | the configuration file |
//! | [`log`] | the log |
//! | `fuzzing` | entry points of the fuzz targets (feature `testing`) |
//! | `console` | the web console: runs commands and shows their records (feature `console`) |
//! | [`cli`] | the commands, one file each; the only layer that uses the terminal and the environment |

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
pub mod helper_thread;
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
