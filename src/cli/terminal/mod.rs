//! The terminal: colour, progress, questions, Ctrl-C.

pub mod color;
pub mod interrupt;
pub mod progress;
pub mod prompt;
pub mod secret;
pub mod stderr;
