//! Decides once for each stream whether to use colour.

use clap::ValueEnum;
use std::io::IsTerminal;
use std::sync::OnceLock;

/// When to use colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Default)]
pub(crate) enum ColorChoice {
    /// On a terminal, unless NO_COLOR is set; also elsewhere if CLICOLOR_FORCE is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// The value of the flag.
static CHOSEN: OnceLock<ColorChoice> = OnceLock::new();

/// Sets the value of the flag, once.
pub(crate) fn set(choice: ColorChoice) {
    let _ = CHOSEN.set(choice);
}

/// Whether standard error uses colour.
pub(crate) fn on_stderr() -> bool {
    is_wanted(std::io::stderr().is_terminal())
}

/// Whether a stream uses colour, depending on whether it is a terminal.
pub(crate) fn is_wanted(is_terminal: bool) -> bool {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let is_forced = variable("CLICOLOR_FORCE").is_some_and(|value| value != "0");
    let is_dumb = variable("TERM").is_some_and(|value| value == "dumb");
    match CHOSEN.get().copied().unwrap_or_default() {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto if variable("NO_COLOR").is_some() => false,
        ColorChoice::Auto => is_forced || is_terminal && !is_dumb,
    }
}
