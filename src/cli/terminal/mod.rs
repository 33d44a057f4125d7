//! The terminal: colour, progress, prompts, Ctrl-C.

pub(crate) mod color;
pub(crate) mod interrupt;
mod line_buffer;
mod line_editor;
pub(crate) mod live_lines;
pub(crate) mod progress;
mod progress_lines;
pub(crate) mod prompt;
pub(crate) mod screen;
pub(crate) mod secret;
pub(crate) mod stderr;
