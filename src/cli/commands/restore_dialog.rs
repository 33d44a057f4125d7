//! `kvmb restore` without arguments, on a terminal: asks for repository, machine, point and place, then prints a
//! summary and the equivalent command line. Each answer is checked at once; a wrong one is asked for again, and the
//! others are kept. Written for a tired administrator on a host that may never have run kvmb.

use crate::capture::Hypervisor;
use crate::cli::args::repo::RepoArgs;
use crate::cli::args::value_parsers::machine_name;
use crate::cli::context::Context;
use crate::cli::failure::CliError;
use crate::cli::table::{age, bytes, moment};
use crate::cli::terminal::prompt;
use crate::cli::terminal::stderr::say;
use crate::ops::points::{OpenPoint, PointRef};
use crate::ops::restore::plan::RestorePlan;
use crate::record::Time;
use crate::repo::{Presence, Repository};
use rustix::fs::Access;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// libvirt's default folder for images.
const IMAGES: &str = "/var/lib/libvirt/images";

/// Asks for the machine. Returns None if there are no points.
pub(super) fn ask_machine(known: &[PointRef]) -> Result<Option<String>, CliError> {
    let mut machines: BTreeMap<&str, Vec<&PointRef>> = BTreeMap::new();
    for point in known {
        machines.entry(point.machine()).or_default().push(point);
    }
    let width = machines.keys().map(|name| name.chars().count()).max().unwrap_or(0);
    let label = |(name, points): (&&str, &Vec<&PointRef>)| {
        let newest = points.last().map(|point| age(now(), point.snapshot.time)).unwrap_or_default();
        let count = format!("{} point{}", points.len(), if points.len() == 1 { "" } else { "s" });
        format!("{name:width$}  {count}, latest {newest} ago")
    };
    let labels: Vec<String> = machines.iter().map(label).collect();
    if labels.is_empty() {
        return Ok(None);
    }
    let chosen = prompt::select("Machine", &labels)?;
    Ok(machines.keys().nth(chosen).map(|name| (*name).to_owned()))
}

/// Asks for the point of the machine.
pub(super) fn ask_point(known: &[PointRef], machine: &str) -> Result<PointRef, CliError> {
    let of_machine: Vec<&PointRef> = known.iter().rev().filter(|point| point.machine() == machine).collect();
    let are_of_one_host = of_machine.windows(2).all(|pair| pair[0].snapshot.hostname == pair[1].snapshot.hostname);
    let label = |point: &&PointRef| {
        let time = point.snapshot.time;
        let host = if are_of_one_host { String::new() } else { format!(", on {}", point.snapshot.hostname) };
        format!("{}  {}, {} ago{host}", point.id.short(), moment(time), age(now(), time))
    };
    let labels: Vec<String> = of_machine.iter().map(label).collect();
    Ok(of_machine[prompt::select("Point", &labels)?].clone())
}

/// The state of the machine in libvirt.
enum There {
    Running,
    Off,
    Nowhere,
    /// libvirt cannot be reached.
    Unknown,
}

fn look(context: &Context, machine: &str) -> There {
    let Ok(hypervisor) = context.hypervisor(None) else { return There::Unknown };
    let is_running = |hypervisor: &Hypervisor| hypervisor.machine(machine).and_then(|machine| machine.is_running());
    match is_running(&hypervisor) {
        Ok(true) => There::Running,
        Ok(false) => There::Off,
        Err(_) => There::Nowhere,
    }
}

/// Where to restore a machine, and what to do with it. When asked again, the questions default to these answers.
#[derive(Debug, Clone, Default)]
pub(super) struct PlaceAnswer {
    pub(super) as_name: Option<String>,
    pub(super) into: Option<PathBuf>,
    pub(super) overwrite: bool,
    pub(super) no_define: bool,
    pub(super) start: bool,
}

/// Asks for the address of the repository, and checks that there is one.
pub(super) fn ask_repository(context: &Context, repo: &RepoArgs) -> Result<String, CliError> {
    let check = |text: &str| {
        if text.trim().is_empty() {
            return Err("type a folder or an address".to_owned());
        }
        let repo = RepoArgs { repo: Some(text.trim().to_owned()), ..repo.clone() };
        let presence = repo.settled_storage(context).and_then(|storage| Ok(Repository::presence(&*storage)?));
        match presence.map_err(|error| error.message)? {
            Presence::Nothing => Err(format!("no repository in {}", text.trim())),
            _ => Ok(()),
        }
    };
    let text = prompt::text("Repository (a folder, or sftp://user@host//folder)", "", &check)?;
    Ok(text.trim().to_owned())
}

/// Asks where to restore the machine. `defines` says whether libvirt may receive its definition.
pub(super) fn ask_place(
    context: &Context,
    machine: &str,
    defines: bool,
    before: &PlaceAnswer,
) -> Result<PlaceAnswer, CliError> {
    let mut answer = PlaceAnswer { no_define: !defines, ..PlaceAnswer::default() };
    let there = look(context, machine);
    let in_place = match there {
        There::Running => "to its original place (it is running: shut it down first)",
        There::Off => "to its original place (replaces the existing machine)",
        There::Nowhere | There::Unknown => "to its original place (the machine does not exist on this host)",
    };
    let places =
        ["as a new machine, next to the original", in_place, "only the images and the definition, to a folder"];
    // Without libvirt, only a folder is possible.
    let first = if matches!(there, There::Unknown) { 2 } else { 0 };
    if first == 2 {
        say("libvirt is not available; only the images and the definition can be restored, as files.");
    }
    let places: Vec<String> = places[first..].iter().map(|place| (*place).to_owned()).collect();
    let place = loop {
        let place = first + prompt::select("Restore", &places)?;
        if place != 1 || !matches!(look(context, machine), There::Running) {
            break place;
        }
        let name = shlex::try_quote(machine).unwrap_or("NAME".into());
        say(&format!("  {machine} is running; shut it down first ('virsh shutdown {name}'), or choose another place"));
    };
    match place {
        0 => {
            let proposed = before.as_name.clone().unwrap_or_else(|| format!("{machine}-restored"));
            answer.as_name = Some(prompt::text("New name", &proposed, &|name| check_name(context, name))?);
            answer.into = Some(ask_folder(before)?);
        }
        // If the machine does not exist, do not overwrite: whatever is found there would be unexpected.
        1 => answer.overwrite = matches!(there, There::Off | There::Running),
        _ => {
            answer.no_define = true;
            answer.into = Some(ask_folder(before)?);
        }
    }
    if !answer.no_define {
        answer.start = prompt::confirm("Start the machine after the restore?", before.start)?;
    }
    Ok(answer)
}

fn ask_folder(before: &PlaceAnswer) -> Result<PathBuf, CliError> {
    let proposed = before.into.as_ref().map_or(IMAGES.into(), |folder| folder.to_string_lossy());
    prompt::text("Folder for the images", &proposed, &check_folder).map(PathBuf::from)
}

/// Checks whether a new machine may have this name.
fn check_name(context: &Context, name: &str) -> Result<(), String> {
    machine_name(name)?;
    match look(context, name) {
        There::Running | There::Off => Err(format!("a machine {name} already exists")),
        There::Nowhere | There::Unknown => Ok(()),
    }
}

/// Checks whether images can be written to this folder.
fn check_folder(folder: &str) -> Result<(), String> {
    if !Path::new(folder).is_dir() {
        return Err(format!("no folder {folder}; create it, or type another one"));
    }
    rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|error| format!("cannot write to {folder}: {}", std::io::Error::from(error)))
}

/// Prints what will be written.
pub(super) fn summarize(point: &OpenPoint, planned: &RestorePlan) {
    say(&format!(
        "{}, as of {} ({}):",
        point.manifest.machine,
        moment(point.snapshot.time),
        point.manifest.consistency
    ));
    for action in planned.actions() {
        let size = action.extra.get("capacity_bytes").and_then(|size| size.as_u64());
        let size = size.map(|size| format!(", {}", bytes(size))).unwrap_or_default();
        say(&format!("  {}: {}{size}", action.target, action.reason));
    }
    let data: u64 = planned.disks.iter().map(|disk| disk.data_bytes()).sum();
    say(&format!("  About {} will be written.", bytes(data)));
}

fn now() -> Time {
    chrono::Local::now().fixed_offset()
}
