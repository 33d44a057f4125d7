//! `kvmb restore` without arguments, on a terminal: repository, machine, point, place, a summary, and the command line that
//! does the same. For somebody who is tired, on a host that may never have seen kvmb.

use crate::capture::Hypervisor;
use crate::cli::Context;
use crate::cli::commands::restore::RestoreArgs;
use crate::cli::failure::CliError;
use crate::cli::prompt;
use crate::cli::repo_args::DefaultRepo;
use crate::cli::session::Session;
use crate::cli::stderr::say;
use crate::cli::table::{age, bytes, moment};
use crate::ops::points::{self, OpenPoint, PointName, PointRef};
use crate::ops::restore::plan::{RestorePlan, plan};
use crate::record::Time;
use clap::ValueEnum;
use std::collections::BTreeMap;

/// Where libvirt keeps images by itself.
const IMAGES: &str = "/var/lib/libvirt/images";

/// Asks for all that is missing, shows what will be written, and restores.
pub fn ask(mut args: RestoreArgs, context: &Context, session: &mut Session) -> Result<(), CliError> {
    if !args.repo.is_named() && !DefaultRepo::locate()?.exists() {
        say("This host has no repository of its own. Which one should be used?");
        args.repo.repo = Some(prompt::text("Repository (a folder, or sftp://user@host//folder)", "")?);
    }
    let repo = args.repo.open(context)?;
    let (known, damaged) = points::list(&repo)?;
    if !damaged.is_empty() {
        say(&format!("Snapshots that cannot be read (not listed): {}", damaged.len()));
    }
    let machine = ask_machine(&known)?.ok_or_else(|| CliError::failed(format!("no points in {}", repo.url())))?;
    let point = ask_point(&known, &machine)?;
    ask_place(&mut args, context, &machine)?;

    let index = points::load_index_for_reading(&repo, &context.monitor)?;
    let opened = points::open_with_damage(&repo, &index, &point)?;
    let libvirt = (!args.no_define).then(|| context.hypervisor(None).ok()).flatten();
    let connect = libvirt.as_ref().map(|hypervisor| hypervisor.uri().to_owned());
    let planned = plan(&repo, &index, &opened, &args.request(connect)?, libvirt.as_ref())?;
    drop(libvirt);
    summarize(&opened, &planned);
    let equivalent = command_line(&args, context, &point.id.short());
    if !prompt::confirm("Continue?")? {
        return Err(CliError::failed("nothing was done").hint(equivalent));
    }
    say(&format!("kvmb: to run this without questions: {equivalent}"));
    args.restore(context, &repo, &PointName::Plain(point.id.to_string()), session)
}

/// None if there are no points.
fn ask_machine(known: &[PointRef]) -> Result<Option<String>, CliError> {
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

fn ask_point(known: &[PointRef], machine: &str) -> Result<PointRef, CliError> {
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

/// What libvirt says of the machine that is to be restored.
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

fn ask_place(args: &mut RestoreArgs, context: &Context, machine: &str) -> Result<(), CliError> {
    let there = look(context, machine);
    let in_place = match there {
        There::Running => "to its original place (it is running: shut it down first)",
        There::Off => "to its original place (replaces the existing machine)",
        There::Nowhere | There::Unknown => "to its original place (the machine does not exist on this host)",
    };
    let places =
        ["as a new machine, next to the original", in_place, "only the images and the definition, to a folder"];
    // Without libvirt only a folder is left.
    let first = if matches!(there, There::Unknown) { 2 } else { 0 };
    if first == 2 {
        say("libvirt is not available; only the images and the definition can be restored, as files.");
    }
    match first
        + prompt::select("Restore", &places[first..].iter().map(|place| (*place).to_owned()).collect::<Vec<_>>())?
    {
        0 => {
            args.as_name = Some(prompt::text("New name", &format!("{machine}-restored"))?);
            args.into = Some(prompt::text("Folder for the images", IMAGES)?.into());
        }
        // Where nothing is, nothing is to be replaced: whatever is found there after all is a surprise.
        1 => args.overwrite = matches!(there, There::Off | There::Running),
        _ => {
            args.no_define = true;
            args.into = Some(prompt::text("Folder for the images", IMAGES)?.into());
        }
    }
    if !args.no_define {
        args.start = prompt::confirm("Start the machine after the restore?")?;
    }
    Ok(())
}

fn summarize(point: &OpenPoint, planned: &RestorePlan) {
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

/// The command line that does what was chosen, without a question.
fn command_line(args: &RestoreArgs, context: &Context, point: &str) -> String {
    let path = |path: &Option<std::path::PathBuf>| path.as_ref().map(|path| path.to_string_lossy().into_owned());
    let mut words = vec!["kvmb".to_owned(), "restore".to_owned(), point.to_owned()];
    let format = args.format.and_then(|format| format.to_possible_value()).map(|value| value.get_name().to_owned());
    for (flag, value) in [
        ("-c", context.global.connect.clone()),
        ("-r", args.repo.repo.clone()),
        ("--password-file", path(&args.repo.password_file)),
        ("--ssh-password-file", path(&args.repo.ssh_password_file)),
        ("--as", args.as_name.clone()),
        ("--into", path(&args.into)),
        ("--format", format),
    ] {
        words.extend(value.into_iter().flat_map(|value| [flag.to_owned(), value]));
    }
    words.extend(args.to.iter().flat_map(|(disk, path)| ["--to".to_owned(), format!("{disk}={}", path.display())]));
    words.extend(args.disk.iter().flat_map(|disk| ["--disk".to_owned(), disk.clone()]));
    for (flag, is_set) in [
        ("--no-define", args.no_define),
        ("--start", args.start),
        ("--overwrite", args.overwrite),
        ("--dry-run", args.dry_run),
    ] {
        words.extend(is_set.then(|| flag.to_owned()));
    }
    // A word that no shell can take does not come from a command line.
    shlex::try_join(words.iter().map(String::as_str)).unwrap_or_else(|_| words.join(" "))
}

fn now() -> Time {
    chrono::Local::now().fixed_offset()
}
