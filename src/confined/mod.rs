//! A process that parses what guests wrote, and can do nothing else.
//!
//! ```text
//!  kvmb ── starts, by /proc/self/exe ──→ kvmb parse-guest
//!   │                                     │  nothing is open but one socket
//!   │ ←──── «bytes of disk 0 at …» ────── │  user nobody, no capabilities, no new privileges
//!   │ ────── verified bytes ────────────→ │  limits of memory and processor time
//!   │ ←──── entries, data of files ────── │  system calls: read, write, memory, exit
//!   └ checks what comes, writes files     └
//! ```
//! A guest that takes over the parser has gained a process that can compute. It can lie about its own files, which it
//! could before. What it says is checked by whoever uses it.
//!
//! | module | what |
//! | --- | --- |
//! | [`protocol`] | what the two say to each other |
//! | [`lockdown`] | how the child gives up what it does not need |
//! | [`child`] | the child: it answers requests |
//! | [`parent`] | starts a child and asks it |

pub(crate) mod child;
pub mod lockdown;
pub mod parent;
pub(crate) mod protocol;

/// The word by which `kvmb` knows that it is the child.
pub(crate) const COMMAND: &str = "parse-guest";
