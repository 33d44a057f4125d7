//! The sandboxed process that parses data written by guests.
//!
//! ```text
//!  kvmb ── starts, by /proc/self/exe ──→ kvmb parse-guest
//!   │                                     │  nothing is open but one socket
//!   │ ←──── "bytes of disk 0 at …" ────── │  user nobody, no capabilities, no new privileges
//!   │ ────── verified bytes ────────────→ │  limits of memory and processor time
//!   │ ←──── entries, data of files ────── │  system calls: read, write, memory, exit
//!   └ checks what comes, writes files     └
//! ```
//! A guest that takes over the parser gains a process that can only compute. It can misreport its own files, which it
//! could do anyway. Callers check all of its output.
//!
//! | module | what |
//! | --- | --- |
//! | [`protocol`] | the messages between the two |
//! | [`lockdown`] | how the child drops its privileges |
//! | [`child`] | the child, which answers requests |
//! | [`parent`] | starts a child and sends it requests |

pub(crate) mod child;
pub mod lockdown;
pub mod parent;
pub(crate) mod protocol;

/// The argument that makes `kvmb` run as the child.
pub(crate) const COMMAND: &str = "parse-guest";
