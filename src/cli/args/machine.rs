//! Selection of machines: by names on the command line, or by records on standard input.

use crate::capture::{Hypervisor, Machine};
use crate::cli::context::Context;
use crate::cli::failure::CliError;
use crate::cli::input::stdin_records;
use crate::cli::session::{About, Session};
use crate::cli::terminal::stderr::say;
use crate::ops::points::name_matches;
use crate::record::Record;
use rustix::fs::{self, FileType};
use std::io::IsTerminal;

/// One machine to act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Selection {
    /// The libvirt connection URI; None means that of the command line.
    pub(crate) connect: Option<String>,
    /// Its UUID, or its name if only that is known.
    pub(crate) machine: String,
    /// Its name, for messages.
    pub(crate) name: String,
    /// The disks that were named; None means all that can be backed up.
    pub(crate) disks: Option<Vec<String>>,
}

/// Finds the machines that match names and globs. A name without a match is recorded as a failure; the others continue.
pub(crate) fn find(hypervisor: &Hypervisor, names: &[String], session: &mut Session) -> Vec<Machine> {
    let mut machines: Vec<Machine> = Vec::new();
    for name in names {
        match hypervisor.machines(std::slice::from_ref(name)) {
            Ok(found) => {
                for machine in found {
                    if !machines.iter().any(|known| known.uuid() == machine.uuid()) {
                        machines.push(machine);
                    }
                }
            }
            Err(error) => session.fail(About::machine(hypervisor.uri(), name), error),
        }
    }
    machines
}

/// Returns all machines of a connection, and prints a note if there are none.
pub(crate) fn all(hypervisor: &Hypervisor, context: &Context) -> Result<Vec<Machine>, CliError> {
    let machines = hypervisor.machines(&[])?;
    if machines.is_empty() {
        context.note(&format!("no machines on {}", hypervisor.uri()), no_machines_hint(hypervisor.uri()));
    }
    Ok(machines)
}

/// Returns a hint for when libvirt has no machines: a host's machines are rarely on a user's own connection.
fn no_machines_hint(uri: &str) -> &'static str {
    match uri {
        "qemu:///session" => "the machines of a host are usually on qemu:///system: run 'sudo kvmb vms'",
        _ => "choose the connection that has the machines: 'kvmb vms -c URI'",
    }
}

/// Turns machines into selections.
pub(crate) fn select(hypervisor: &Hypervisor, machines: &[Machine]) -> Vec<Selection> {
    let selection = |machine: &Machine| Selection {
        connect: Some(hypervisor.uri().to_owned()),
        machine: machine.uuid().to_owned(),
        name: machine.name().to_owned(),
        disks: None,
    };
    machines.iter().map(selection).collect()
}

/// Reads machines and disks from standard input, grouped by machine. Leaves out machines with a failure.
pub(crate) fn from_stdin(context: &Context, session: &mut Session) -> Result<Vec<Selection>, CliError> {
    gather(stdin_records(session.command(), "machines", &["machine", "disk"], &context.stop)?, session)
}

/// Reads machines and disks from standard input or, if it is empty, takes those that the configuration selects.
pub(crate) fn from_stdin_or_config(context: &Context, session: &mut Session) -> Result<Vec<Selection>, CliError> {
    if context.config().selected_vms.is_empty() {
        return match std::io::stdin().is_terminal() {
            true => Err(none_chosen(context)),
            false => from_stdin(context, session),
        };
    }
    // A terminal or /dev/null provides no records; only a pipe or a file can.
    let stdin = std::io::stdin();
    let is_device =
        fs::fstat(&stdin).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice);
    if !is_device {
        let mut records = stdin_records(session.command(), "machines", &["machine", "disk"], &context.stop)?;
        if !records.are_missing()? {
            return gather(records, session);
        }
    }
    from_config(context, session)
}

/// Maximum number of machines listed when none was named.
const MOST_NAMED: usize = 20;

/// Returns the error for when no machine was named, after listing the available machines.
fn none_chosen(context: &Context) -> CliError {
    let error = CliError::usage("no machines given");
    let known = context.hypervisor(None).and_then(|hypervisor| {
        let names = hypervisor.machines(&[])?.iter().map(|machine| machine.name().to_owned()).collect::<Vec<_>>();
        Ok((hypervisor.uri().to_owned(), names))
    });
    let (uri, names) = match known {
        Ok((uri, names)) if names.is_empty() => {
            let hint = no_machines_hint(&uri);
            return CliError::usage(format!("no machines given, and {uri} has none")).hint(hint);
        }
        Ok(known) => known,
        Err(error) => return error,
    };
    say(&format!("Machines on {uri}:"));
    names.iter().take(MOST_NAMED).for_each(|name| say(&format!("  {name}")));
    if names.len() > MOST_NAMED {
        say(&format!("  … and {} more: kvmb vms", names.len() - MOST_NAMED));
    }
    let first = shlex::try_quote(&names[0]).unwrap_or("NAME".into()).into_owned();
    error.hint(format!("run 'kvmb backup {first}' for one of them, or 'kvmb backup --all' for all"))
}

/// Returns the machines that `selected_vms` of the configuration selects.
fn from_config(context: &Context, session: &mut Session) -> Result<Vec<Selection>, CliError> {
    let (taken, left_out): (Vec<_>, Vec<_>) = context.config().selected_vms.iter().partition(|(_, taken)| **taken);
    let taken: Vec<String> = taken.into_iter().map(|(name, _)| name.text().to_owned()).collect();
    if taken.is_empty() {
        return Err(CliError::usage("no machines were given and selected_vms of the configuration selects none")
            .hint("specify machines, or use --all"));
    }
    let hypervisor = context.hypervisor(None)?;
    let mut machines = find(&hypervisor, &taken, session);
    machines.retain(|machine| !left_out.iter().any(|(name, _)| name_matches(name.text(), machine.name())));
    Ok(select(&hypervisor, &machines))
}

fn gather(
    records: impl Iterator<Item = Result<Record, CliError>>,
    session: &mut Session,
) -> Result<Vec<Selection>, CliError> {
    let mut selections: Vec<Selection> = Vec::new();
    let mut failed: Vec<(Option<String>, String)> = Vec::new();
    for record in records {
        match record? {
            Record::Machine(record) => selections.push(Selection {
                connect: Some(record.connect),
                machine: record.uuid,
                name: record.machine,
                disks: None,
            }),
            Record::Disk(disk) => {
                let same = |s: &&mut Selection| s.machine == disk.uuid && s.connect.as_ref() == Some(&disk.connect);
                let known = selections.iter_mut().find(same);
                // A machine without disks to back up is selected too.
                let named = disk.included.then_some(disk.disk);
                match known {
                    // A selection without disks already means the whole machine.
                    Some(selection) => {
                        if let Some(disks) = &mut selection.disks {
                            disks.extend(named);
                        }
                    }
                    None => selections.push(Selection {
                        connect: Some(disk.connect),
                        machine: disk.uuid,
                        name: disk.machine,
                        disks: Some(Vec::from_iter(named)),
                    }),
                }
            }
            Record::Failure(failure) => {
                failed.extend(failure.machine.clone().map(|machine| (failure.connect.clone(), machine)));
                session.pass_failure(failure);
            }
            other => session.pass(&other),
        }
    }
    let has_failed = |s: &Selection| failed.iter().any(|(c, name)| *name == s.name && (c.is_none() || *c == s.connect));
    selections.retain(|selection| !has_failed(selection));
    Ok(selections)
}
