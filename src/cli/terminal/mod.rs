//! The terminal: colour, progress, questions, Ctrl-C.

pub(crate) mod color;
pub(crate) mod interrupt;
pub(crate) mod progress;
pub(crate) mod prompt;
pub(crate) mod secret;
pub(crate) mod stderr;
