//! Corrects a tip of the command-line parser.
//!
//! For an unknown `-x`, the parser suggests `-- -x`. After an option that takes a value (`--as -x`), only `--as=-x`
//! works.

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use std::ffi::OsString;

/// Returns the error with a tip that works, if the unknown argument was meant as the value of an option.
pub(super) fn corrected(mut error: clap::Error, parser: &clap::Command, args: &[OsString]) -> clap::Error {
    if error.kind() == ErrorKind::UnknownArgument
        && let Some(ContextValue::String(unknown)) = error.get(ContextKind::InvalidArg)
        && let Some((option, value)) = option_before(parser, args, unknown)
    {
        let tip = StyledStr::from(format!("to pass '{value}' as the value of '{option}', use '{option}={value}'"));
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip]));
    }
    error
}

/// Returns the option that takes a value and stands just before the unknown argument, and that argument.
fn option_before<'a>(parser: &clap::Command, args: &'a [OsString], unknown: &str) -> Option<(&'a str, &'a str)> {
    let words: Vec<&str> = args.iter().skip(1).map(|word| word.to_str().unwrap_or_default()).collect();
    let at = words.iter().position(|word| word.starts_with(unknown))?;
    let option = *words.get(at.checked_sub(1)?)?;
    let mut command = parser;
    for word in &words[..at] {
        command = command.find_subcommand(word).unwrap_or(command);
    }
    let long = option.strip_prefix("--")?;
    let takes_value = |arg: &clap::Arg| arg.get_long() == Some(long) && arg.get_action().takes_values();
    command.get_arguments().any(takes_value).then_some((option, words[at]))
}
