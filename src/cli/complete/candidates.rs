//! Completion candidates: machines, points, disks, captures.

use super::line::CompletionLine;
use crate::bounded;
use crate::capture::machine::Which;
use crate::capture::{CaptureFile, Hypervisor};
use crate::cli::context::Context;
use crate::cli::output::ClosedPipe;
use crate::cli::run::Run;
use crate::cli::table;
use crate::cli::terminal::secret;
use crate::config;
use crate::ops::Silent;
use crate::ops::points::{self, PointName, PointRef};
use crate::record::{Time, steers_terminal};
use crate::repo::Repository;
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter};
use std::ffi::OsStr;
use std::time::Duration;

/// How long a user who pressed Tab waits for names. They usually arrive within a tenth of a second, but an embedded
/// libvirt has to start first.
const LIMIT: Duration = Duration::from_secs(3);

/// The same for names from a server. Data in this host's cache is not read from the repository again.
const SERVER_LIMIT: Duration = Duration::from_secs(2);

/// A word and its description.
pub(super) type Offer = (String, String);

/// Completes the machines that libvirt knows.
pub(crate) fn machines() -> ArgValueCompleter {
    completer(|_, line| {
        let hypervisor = hypervisor(&line)?;
        let machines = hypervisor.machines(&[]).ok()?;
        let state = |machine: &crate::capture::Machine| machine.state().map_or("", |state| state.as_str()).to_owned();
        Some(machines.iter().map(|machine| (machine.name().to_owned(), state(machine))).collect())
    })
}

/// Completes the disks of the machines on the line.
pub(crate) fn machine_disks() -> ArgValueCompleter {
    completer(|_, line| disks_of_machines(&line))
}

/// Completes the disks of the point on the line.
pub(crate) fn disks() -> ArgValueCompleter {
    completer(|_, line| disks_of_point(&line))
}

/// Completes `DISK=` with the disks of the point, then a path.
pub(crate) fn disk_paths() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| match current.to_str().and_then(|text| text.split_once('=')) {
        Some((disk, path)) => {
            let paths = PathCompleter::any().complete(OsStr::new(path));
            paths.into_iter().map(|path| path.add_prefix(format!("{disk}="))).collect()
        }
        None => offers(current, |_, line| {
            let disks = disks_of_point(&line)?;
            Some(disks.into_iter().map(|(disk, about)| (format!("{disk}="), about)).collect())
        }),
    })
}

/// Completes the machines that have points in the repository.
pub(crate) fn point_machines() -> ArgValueCompleter {
    completer(|_, line| {
        let (_, known) = known_points(&line)?;
        Some(machines_of(&known))
    })
}

/// Completes points: the machines that have some, `MACHINE@TIME` after an `@`, and ids by prefix.
pub(crate) fn points() -> ArgValueCompleter {
    completer(|current, line| {
        let (_, known) = known_points(&line)?;
        let mut offers = match current.split_once('@') {
            Some((machine, _)) => moments_of(&known, machine),
            None => machines_of(&known),
        };
        if !current.is_empty() && current.chars().all(|c| c.is_ascii_hexdigit()) {
            offers.extend(
                known.iter().rev().map(|point| (point.id.short(), format!("{}, {}", point.machine(), age(point)))),
            );
        }
        Some(offers)
    })
}

/// Completes the machines with an open capture.
pub(crate) fn captures() -> ArgValueCompleter {
    completer(|_, line| {
        let files = CaptureFile::open_all(&context(&line)?.runtime().ok()?).ok()?;
        let states = files.iter().filter_map(|file| file.load().ok());
        Some(states.map(|state| (state.machine, state.id)).collect())
    })
}

pub(super) fn completer(look_up: fn(&str, CompletionLine) -> Option<Vec<Offer>>) -> ArgValueCompleter {
    ArgValueCompleter::new(move |current: &OsStr| offers(current, look_up))
}

fn offers(current: &OsStr, look_up: fn(&str, CompletionLine) -> Option<Vec<Offer>>) -> Vec<CompletionCandidate> {
    let Some(typed) = current.to_str() else { return Vec::new() };
    let asked = typed.to_owned();
    let line = CompletionLine::read();
    let limit = if line.as_ref().is_some_and(is_on_server) { SERVER_LIMIT } else { LIMIT };
    // The process ends after the answer, even if the call is still waiting.
    let found = bounded::call(limit, &bounded::ending(), move || look_up(&asked, line?)).ok().flatten();
    let mut seen = std::collections::BTreeSet::new();
    let fit =
        |(word, _): &Offer| word.starts_with(typed) && !word.contains(steers_terminal) && seen.insert(word.clone());
    let candidate = |(at, (word, about)): (usize, Offer)| {
        let about = Some(table::printable(&about)).filter(|about| !about.is_empty());
        // Keep the order in which they were found: newest point first.
        CompletionCandidate::new(word).help(about.map(Into::into)).display_order(Some(at))
    };
    found.unwrap_or_default().into_iter().filter(fit).enumerate().map(candidate).collect()
}

pub(super) fn context(line: &CompletionLine) -> Option<Context> {
    Some(Context::new(
        line.global()?,
        line.settings(),
        Run::begin("complete", ClosedPipe::Reads),
        super::line::grammar()?,
    ))
}

fn hypervisor(line: &CompletionLine) -> Option<Hypervisor> {
    context(line)?.hypervisor(None).ok()
}

/// Returns the points of the line's repository, unless the password comes from a command.
pub(super) fn known_points(line: &CompletionLine) -> Option<(Repository, Vec<PointRef>)> {
    let repo = line.repo()?;
    let context = context(line)?;
    // A command may prompt, which a key press must not cause.
    let config = context.config();
    let by_command = |variable, command: bool| secret::variable(variable).is_some() || command;
    let asks_for_key =
        repo.password_file.is_none() && by_command("KVMB_PASSWORD_COMMAND", config.password_command.is_some());
    let asks_for_login = is_on_server(line)
        && (by_command("KVMB_SSH_PASSWORD_COMMAND", config.ssh.password_command.is_some())
            || by_command("KVMB_REST_PASSWORD_COMMAND", config.http.password_command.is_some()));
    if asks_for_key || asks_for_login {
        return None;
    }
    let repo = repo.open(&context).ok()?;
    let (known, _) = points::list(&repo).ok()?;
    Some((repo, known))
}

fn is_on_server(line: &CompletionLine) -> bool {
    line.repo().and_then(|repo| repo.url().ok()).is_some_and(|url| config::is_on_server(&url))
}

/// Returns the point on the line.
pub(super) fn point_on(line: &CompletionLine, repo: &Repository, known: &[PointRef]) -> Option<PointRef> {
    let name = PointName::parse(line.values("point").first()?, chrono::Local::now());
    points::find(repo, known, &name).ok()
}

/// Returns each machine once, the one with the newest point first.
fn machines_of(known: &[PointRef]) -> Vec<Offer> {
    known.iter().rev().map(|point| (point.machine().to_owned(), format!("newest point {}", age(point)))).collect()
}

fn moments_of(known: &[PointRef], machine: &str) -> Vec<Offer> {
    let of_machine = known.iter().rev().filter(|point| point.machine() == machine);
    let moment = |point: &PointRef| {
        let local = point.snapshot.time.with_timezone(&chrono::Local);
        (format!("{machine}@{}", local.format("%Y-%m-%dT%H:%M:%S")), age(point))
    };
    let latest = (format!("{machine}@latest"), "the newest".to_owned());
    let mut offers: Vec<Offer> = of_machine.map(moment).collect();
    if !offers.is_empty() {
        offers.insert(0, latest);
    }
    offers
}

fn age(point: &PointRef) -> String {
    let now: Time = chrono::Local::now().fixed_offset();
    table::age(now, point.snapshot.time)
}

fn disks_of_machines(line: &CompletionLine) -> Option<Vec<Offer>> {
    let hypervisor = hypervisor(line)?;
    let mut offers = Vec::new();
    for machine in hypervisor.machines(&line.values("names")).ok()? {
        let definition = machine.definition(Which::Live).ok()?;
        let included = definition.disks.iter().filter(|disk| disk.exclusion().is_none());
        offers.extend(included.map(|disk| (disk.target.clone(), machine.name().to_owned())));
    }
    Some(offers)
}

fn disks_of_point(line: &CompletionLine) -> Option<Vec<Offer>> {
    let (repo, known) = known_points(line)?;
    let point = point_on(line, &repo, &known)?;
    let index = points::load_index_for_reading(&repo, &Silent).ok()?;
    let manifest = points::read_manifest(&repo, &index, &point).ok()?;
    Some(manifest.disks.iter().map(|disk| (disk.disk.clone(), table::bytes(disk.capacity_bytes))).collect())
}
