//! Prompts, on a terminal only.

use crate::cli::context::Context;
use crate::cli::failure::CliError;
use crate::cli::table::printable;
use crate::cli::terminal::interrupt;
use crate::cli::terminal::line_editor::read_line;
use crate::cli::terminal::stderr::say;
use crate::ops;
use dialoguer::{FuzzySelect, Password};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Whether the user can be asked, and did not request `--quiet`.
pub(crate) fn possible(context: &Context) -> bool {
    !context.global.quiet && std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Asks, and ends the program at Ctrl-C: code that waits for a line would not notice the stop flag, and no work has
/// started while there are questions.
fn ask<T>(question: impl FnOnce() -> dialoguer::Result<T>) -> Result<T, CliError> {
    let before = tcgetattr(std::io::stdin()).ok();
    let answered = AtomicBool::new(false);
    let answer = std::thread::scope(|scope| -> Result<_, CliError> {
        let watch = || {
            while !answered.load(Ordering::Relaxed) {
                if let Some(code) = interrupt::exit_code() {
                    if let Some(before) = &before {
                        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, before);
                    }
                    say("");
                    std::process::exit(code as i32);
                }
                std::thread::park_timeout(Duration::from_millis(50));
            }
        };
        std::thread::Builder::new().spawn_scoped(scope, watch).map_err(ops::Error::NoThread)?;
        let answer = question();
        answered.store(true, Ordering::Relaxed);
        Ok(answer)
    });
    answer?.map_err(|error| CliError::failed(format!("no answer: {error}")))
}

/// Asks for a password without echo.
pub(crate) fn password(question: &str) -> Result<String, CliError> {
    ask(|| Password::new().with_prompt(question).interact())
}

/// Like `password`, for a key's passphrase, which may be empty.
pub(crate) fn passphrase(question: &str) -> Result<String, CliError> {
    ask(|| Password::new().with_prompt(question).allow_empty_password(true).interact())
}

/// Asks for a new password, twice.
pub(crate) fn new_password(question: &str) -> Result<String, CliError> {
    ask(|| {
        Password::new().with_prompt(question).with_confirmation("Again", "The passwords differ; try again").interact()
    })
}

/// Offers a list, and returns the index of the answer.
pub(crate) fn select(question: &str, items: &[String]) -> Result<usize, CliError> {
    // Names of machines are not trusted.
    let items = items.iter().map(|item| printable(item));
    ask(|| FuzzySelect::new().with_prompt(question).items(items).default(0).interact())
}

/// Asks for an editable line of text, which starts as `initial`, until `check` accepts it. Otherwise its message is
/// shown and the question is repeated.
pub(crate) fn text(
    question: &str,
    initial: &str,
    check: &dyn Fn(&str) -> Result<(), String>,
) -> Result<String, CliError> {
    let question = printable(question);
    let check = |text: &str| check(text).map_err(|why| printable(&why));
    ask(|| read_line(&question, initial, &check).map_err(Into::into))
}

/// Asks a yes/no question. Enter alone means `default`.
pub(crate) fn confirm(question: &str, default: bool) -> Result<bool, CliError> {
    let question = format!("{question} [{}]", if default { "Y/n" } else { "y/N" });
    let answer = |text: &str| match text.trim().to_lowercase().as_str() {
        "" => Some(default),
        "y" | "yes" => Some(true),
        "n" | "no" => Some(false),
        _ => None,
    };
    let check = |text: &str| answer(text).map(|_| ()).ok_or_else(|| "type y for yes or n for no".to_owned());
    Ok(answer(&text(&question, "", &check)?).unwrap_or(default))
}
