//! Questions, on a terminal only.

use crate::cli::Context;
use crate::cli::failure::CliError;
use crate::cli::table::printable;
use dialoguer::{Confirm, FuzzySelect, Input, Password};
use std::io::IsTerminal;

/// Whether there is somebody to ask, who did not ask for quiet.
pub fn possible(context: &Context) -> bool {
    !context.global.quiet && std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

fn refused(error: dialoguer::Error) -> CliError {
    CliError::failed(format!("no answer: {error}"))
}

/// Asks for a password without showing it.
pub fn password(question: &str) -> Result<String, CliError> {
    Password::new().with_prompt(question).interact().map_err(refused)
}

/// Asks for a new password, twice.
pub fn new_password(question: &str) -> Result<String, CliError> {
    let asked = Password::new().with_prompt(question).with_confirmation("Again", "These differ; once more");
    asked.interact().map_err(refused)
}

/// Offers a list; the answer is the index.
pub fn select(question: &str, items: &[String]) -> Result<usize, CliError> {
    // A machine's name is not trusted.
    let items = items.iter().map(|item| printable(item));
    FuzzySelect::new().with_prompt(question).items(items).default(0).interact().map_err(refused)
}

/// Asks for a line of text.
pub fn text(question: &str, default: &str) -> Result<String, CliError> {
    Input::new().with_prompt(question).with_initial_text(default).interact_text().map_err(refused)
}

/// Asks yes or no; the default is no.
pub fn confirm(question: &str) -> Result<bool, CliError> {
    Confirm::new().with_prompt(question).default(false).interact().map_err(refused)
}
