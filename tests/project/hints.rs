//! Every command in a hint is accepted by kvmb, also with the options of the call that failed.

use super::messages;
use kvmb::cli::command;
use kvmb::cli::failure::hint::{Invocation, commands};

/// Returns the kvmb commands in a hint.
fn kvmb_commands(hint: &str) -> Vec<String> {
    let found =
        commands(hint).into_iter().flat_map(|place| hint[place].split(" | ").map(str::to_owned).collect::<Vec<_>>());
    found.filter(|command| command.starts_with("kvmb ")).collect()
}

#[track_caller]
fn matches_of(words: &str) -> clap::ArgMatches {
    let words = shlex::split(words).unwrap_or_else(|| panic!("no words of a shell: {words}"));
    command().try_get_matches_from(&words).unwrap_or_else(|error| panic!("{words:?}: {error}"))
}

#[test]
fn hinted_commands_are_accepted_with_the_options_of_the_call() {
    let call = matches_of("kvmb points -r '/my backups' -c qemu:///session --config '/etc/it'\"'\"'s.json'");
    let invocation = Invocation::new(command, &call);
    let mut count = 0;
    for error in messages::of_the_command_line() {
        let Some(hint) = &error.hint else { continue };
        let completed = invocation.complete(hint, Some("web 1"));
        for (alone, with_options) in kvmb_commands(hint).iter().zip(kvmb_commands(&completed)) {
            count += 1;
            matches_of(alone);
            let matches = matches_of(&with_options);
            let (_, below) = matches.subcommand().expect("a command");
            let config = below.get_raw("config").and_then(|mut values| values.next().map(ToOwned::to_owned));
            assert_eq!(config.expect("--config"), "/etc/it's.json", "{with_options}");
            let has_repo = command()
                .find_subcommand(matches.subcommand_name().unwrap_or_default())
                .is_some_and(|known| known.get_arguments().any(|arg| arg.get_id() == "repo"));
            if has_repo && !alone.contains(" -r ") {
                assert_eq!(below.get_one::<String>("repo").expect("-r"), "/my backups", "{with_options}");
            }
        }
        assert_eq!(kvmb_commands(hint).len(), kvmb_commands(&completed).len(), "{completed}");
    }
    assert!(count > 20, "only {count} commands were found in hints");
}
