//! The manual pages: what clap knows about a command, and additional text.

use super::first_week;
use super::records::{Kind, RecordField, kinds};
use super::roff::{Text, join, rendered};
use crate::cli::environment::{FOREIGN, VARIABLES};
use crate::cli::failure::exit_code::{ExitCode, PluginState};
use crate::cli::failure::{CliError, Code};
use clap::Command;
use clap_mangen::Man;

/// Files that a user may come across.
const FILES: &[(&str, &str)] = &[
    (
        "~/.kvm_backup_config.json, ~/.config/kvmb/config.json, /etc/kvmb/config.json",
        "Configuration file. The first one that exists is used, unless `--config` is given. `kvmb config schema` \
         describes its keys.",
    ),
    (
        "/var/log/kvm_backup.log, ~/.local/state/kvmb/kvmb.log",
        "Log file, and next to it the rotated files (`.1` …). Under systemd, the journal is used.",
    ),
    (
        "/var/lib/kvmb/repo",
        "Default repository of this host, created on first use. For other users than root: below \
         `~/.local/share/kvmb`.",
    ),
    (
        "/var/lib/kvmb/repo.key",
        "Generated password of that repository, mode 0600. Use `kvmb key export` to keep a copy elsewhere; without it \
         the backups are lost with the host.",
    ),
    ("/var/lib/kvmb/history", "Results of the last runs and verifications, for `kvmb status`. May be deleted."),
    ("/var/lib/kvmb/scratch", "Blocks that guests overwrite during a backup."),
    (
        "/run/kvmb",
        "State of open captures, and copies of definitions. Accessible to root only. For other users: below \
         `$XDG_RUNTIME_DIR`.",
    ),
    ("/run/kvmb-nbd", "Sockets of open captures, each in a folder that only QEMU's user can access."),
];

/// One manual page.
pub(crate) struct ManualPage {
    /// The name of its file: `kvmb-backup.1`.
    pub(crate) file: String,
    pub(crate) text: String,
}

/// Returns every page, that of kvmb itself first.
pub(crate) fn pages(mut root: Command) -> Result<Vec<ManualPage>, CliError> {
    root.build();
    let mut commands = vec![&root];
    let mut at = 0;
    while let Some(command) = commands.get(at) {
        let below = command.get_subcommands().filter(|command| !command.is_hide_set());
        commands.extend(below.collect::<Vec<_>>());
        at += 1;
    }
    commands.into_iter().map(page).collect()
}

fn name(command: &Command) -> &str {
    command.get_display_name().unwrap_or_else(|| command.get_name())
}

fn page(command: &Command) -> Result<ManualPage, CliError> {
    let is_root = name(command) == "kvmb";
    let version = format!("kvmb {}", env!("CARGO_PKG_VERSION"));
    // Global options are described once, in the page of kvmb itself.
    let shown = match is_root {
        true => command.clone(),
        false => command.clone().mut_args(|arg| if arg.is_global_set() { arg.hide(true) } else { arg }),
    };
    let man = Man::new(shown).title(name(command).to_uppercase()).source(version).manual("kvmb manual");
    let mut parts = vec![
        rendered(|to| man.render_title(to))?,
        rendered(|to| man.render_name_section(to))?,
        rendered(|to| man.render_synopsis_section(to))?,
        rendered(|to| man.render_description_section(to))?,
    ];
    if is_root {
        let mut story = Text::default();
        first_week::section(&mut story);
        parts.push(story.finish());
    }
    if command.has_subcommands() {
        parts.push(rendered(|to| man.render_subcommands_section(to))?.replace("SUBCOMMANDS", "COMMANDS"));
    }
    parts.push(rendered(|to| man.render_options_section(to))?);
    let mut text = Text::default();
    if !is_root {
        text.paragraph("The global options (`--connect`, `--output`, `--config` and others) are described in kvmb(1).");
    }
    examples(&mut text, command);
    exit_status(&mut text, command);
    match is_root {
        true => {
            failures(&mut text);
            all_records(&mut text);
        }
        false => records(&mut text, command),
    }
    environment(&mut text, command);
    if is_root {
        files(&mut text);
    }
    text.section("SEE ALSO");
    let others = "restic(1), virsh(1), qemu-storage-daemon(1)";
    text.paragraph(&if is_root { others.to_owned() } else { format!("kvmb(1), {others}") });
    parts.push(text.finish());
    Ok(ManualPage { file: format!("{}.1", name(command)), text: join(&parts) })
}

fn examples(text: &mut Text, command: &Command) {
    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let Some((_, examples)) = help.split_once("Examples:\n") else { return };
    text.section("EXAMPLES");
    let lines = examples.lines().take_while(|line| !line.is_empty());
    text.literal(lines.map(|line| line.strip_prefix("  ").unwrap_or(line)));
}

fn exit_status(text: &mut Text, command: &Command) {
    text.section("EXIT STATUS");
    for (code, meaning) in ExitCode::ALL {
        text.term(&(code as u8).to_string(), meaning);
    }
    text.paragraph(
        "Code 4 takes precedence over 3, and 3 over 1. If the output cannot be written (a full disk), the code is 1. \
         SIGHUP does not end a command that has locked a repository: as with restic, it only shows that the process \
         is alive.",
    );
    if command.get_arguments().any(|arg| arg.get_long() == Some("nagios")) {
        text.paragraph("With `--nagios`, the exit status is that of a monitoring plugin:");
        for (state, meaning) in PluginState::ALL {
            text.term(&(state as u8).to_string(), meaning);
        }
    }
}

fn failures(text: &mut Text) {
    text.section("FAILURES");
    text.paragraph(
        "If one machine fails, a `failure` record is printed and the other machines continue. Its `code` is one of:",
    );
    for (_, word, meaning) in Code::ALL {
        text.term(word, meaning);
    }
}

fn all_records(text: &mut Text) {
    text.section("RECORDS");
    text.paragraph(
        "Commands print records: one JSON object per line, starting with `type`. Sizes end in `_bytes` and are bytes; \
         times are RFC 3339 with offset. Fields that do not apply are omitted. Unknown fields and types are passed on. \
         Commands without names on the command line read records from standard input. A `failure` record in the input \
         is passed on, its machine is skipped, and the exit status is not 0.",
    );
    for kind in kinds() {
        text.subsection(kind.name);
        text.paragraph(&kind.summary());
        for RecordField { path, meaning } in kind.fields() {
            match path.is_empty() {
                true => text.paragraph(&meaning),
                false => text.term(&path, &meaning),
            }
        }
    }
}

/// Adds the records that the command's description names, such as `'point'`.
fn records(text: &mut Text, command: &Command) {
    let about = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    let printed: Vec<Kind> = kinds().into_iter().filter(|kind| about.contains(&format!("'{}'", kind.name))).collect();
    if printed.is_empty() {
        return;
    }
    text.section("RECORDS");
    for kind in printed {
        let fields: Vec<String> = kind.fields().into_iter().map(|field| field.path).collect();
        let own = fields.iter().filter(|path| !path.is_empty() && !path.contains(['.', '[', ' ']));
        text.term(kind.name, &own.map(|path| format!("`{path}`")).collect::<Vec<_>>().join(", "));
    }
    text.paragraph("See RECORDS in kvmb(1).");
}

fn environment(text: &mut Text, command: &Command) {
    let read: Vec<_> = command.get_arguments().filter_map(|arg| arg.get_env()?.to_str()).collect();
    let has_repo = read.contains(&"KVMB_REPO");
    let is_root = name(command) == "kvmb";
    // Commands with a repository read all password variables, not only those with a flag.
    let is_password = |variable: &str| variable.contains("_PASSWORD");
    let minds = |variable: &str| is_root || read.contains(&variable) || has_repo && is_password(variable);
    let own = VARIABLES.iter().filter(|(variable, _)| minds(variable));
    let foreign = FOREIGN.iter().filter(|_| is_root);
    let mut listed = own.chain(foreign).peekable();
    if listed.peek().is_some() {
        text.section("ENVIRONMENT");
    }
    for (variable, meaning) in listed {
        text.term(variable, meaning);
    }
}

fn files(text: &mut Text) {
    text.section("FILES");
    for (path, meaning) in FILES {
        text.term(path, meaning);
    }
}
