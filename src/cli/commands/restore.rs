//! `kvmb restore`

use crate::capture::Hypervisor;
use crate::cli::args::repo::{DefaultRepo, RepoArgs};
use crate::cli::args::value_parsers::machine_name;
use crate::cli::commands::restore_dialog as dialog;
use crate::cli::commands::restore_live::{LiveArgs, refuse_unfinished};
use crate::cli::complete;
use crate::cli::context::Context;
use crate::cli::failure::{CliError, Code};
use crate::cli::input::stdin_records;
use crate::cli::session::{About, Session};
use crate::cli::table::printable;
use crate::cli::terminal::prompt;
use crate::cli::terminal::stderr::{self, say};
use crate::ops;
use crate::ops::Monitor;
use crate::ops::points::{self, PointName, PointRef};
use crate::ops::repo_lock::lock_and_list;
use crate::ops::restore::live::check as check_live;
use crate::ops::restore::plan::{RestorePlan, plan, refuse_running};
use crate::ops::restore::restore;
use crate::ops::restore::{ImageFormat, RestoreRequest};
use crate::record::{Point, Record, RestoredTo};
use crate::repo::{Index, Permit, RepoLock, Repository};
use clap::ValueEnum;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Restore a machine: its disks and its definition.
///
/// The SHA-256 of every chunk is compared during the restore. New images are written next to the old ones, and
/// verified before anything is replaced. A running machine is never overwritten. Prints the 'point' record with
/// 'restored_to'. Without arguments on a terminal, kvmb asks for the machine, the point and the destination.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  kvmb restore vm1 -r /backup/kvm --overwrite                   restore the latest point to its original place
  kvmb restore vm1@2026-11-20 -r /backup/kvm --as vm1-copy --into /var/lib/libvirt/images --start
  kvmb restore 4f2a91c7 --disk vda --into /tmp --format raw     restore one disk as a raw image
  kvmb restore vm1 --into /mnt/rescue --no-define               restore without libvirt
  kvmb restore vm1 --overwrite --live                           run the machine while its data is copied")]
pub(crate) struct RestoreArgs {
    /// What to restore: the latest point of a machine (NAME), a point by time (NAME@2026-11-20, NAME@-2h) or a
    /// point by its ID.
    #[arg(value_name = "POINT|NAME[@TIME]", add = complete::points())]
    point: Option<String>,

    /// Restore as a new machine with this name, a new UUID and new MAC addresses. If the machine was renamed after the
    /// point was made, its present name restores it in its place.
    #[arg(long = "as", value_name = "NAME", value_parser = machine_name)]
    as_name: Option<String>,

    /// Folder for the images. Default: their original location.
    #[arg(long, value_name = "DIR")]
    into: Option<PathBuf>,

    /// Restore a disk to this file or block device, as DISK=PATH (can be repeated). Example: vda=/dev/vg0/vm1.
    #[arg(long, value_name = "DISK=PATH", value_parser = disk_path, add = complete::disk_paths())]
    to: Vec<(String, PathBuf)>,

    /// Restore only this disk, without the definition (can be repeated).
    #[arg(long, value_name = "DISK", add = complete::disks())]
    disk: Vec<String>,

    /// Image format. Default: the format in the definition of the machine.
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: Option<FormatChoice>,

    /// Do not define the machine in libvirt. Write its definition to a file next to the images instead.
    #[arg(long)]
    no_define: bool,

    /// Start the machine after the restore.
    #[arg(long, conflicts_with = "no_define")]
    start: bool,

    /// Replace existing images and an existing definition.
    #[arg(long)]
    overwrite: bool,

    /// Discard the saved memory of the machine that is replaced (requires --overwrite).
    #[arg(long, requires = "overwrite")]
    discard_saved_memory: bool,

    /// Restore the files that the definition mentions - loader, option ROMs, ACPI tables, fw_cfg files - into this
    /// folder, and change the definition to use them.
    #[arg(long, value_name = "DIR")]
    pub(super) with_files: Option<PathBuf>,

    /// Leave CD-ROM and floppy drives empty if their medium is not on this host.
    #[arg(long)]
    drop_missing_media: bool,

    /// Run the machine with this QEMU instead of the one in its definition.
    #[arg(long, value_name = "PATH")]
    emulator: Option<PathBuf>,

    /// Use this machine type instead of the one in the definition, which the QEMU of this host may not have.
    /// Examples: q35, pc.
    #[arg(long, value_name = "TYPE")]
    machine_type: Option<String>,

    /// Connect interfaces of network OLD to network NEW of this host (can be repeated).
    #[arg(long, value_name = "OLD=NEW")]
    network: Vec<String>,

    /// Connect interfaces of bridge or device OLD to bridge or device NEW of this host (can be repeated).
    #[arg(long, value_name = "OLD=NEW")]
    bridge: Vec<String>,

    #[command(flatten)]
    live: LiveArgs,

    /// Show what would be written without writing it.
    #[arg(short = 'n', long, help_heading = "Options", conflicts_with_all = ["resume", "abort"])]
    dry_run: bool,

    #[command(flatten)]
    repo: RepoArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FormatChoice {
    Qcow2,
    Raw,
}

fn disk_path(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((disk, path)) if !disk.is_empty() && !path.is_empty() => Ok((disk.to_owned(), path.into())),
        _ => Err("a disk and a path: vda=/path".to_owned()),
    }
}

/// Parses the names of `--network` and `--bridge`.
fn renamed(pairs: &[String]) -> Result<BTreeMap<String, String>, CliError> {
    let pair = |text: &String| match text.split_once('=') {
        Some((old, new)) if !old.is_empty() && !new.is_empty() => Ok((old.to_owned(), new.to_owned())),
        _ => Err(CliError::usage(format!("expected OLD=NEW instead of {text:?}"))),
    };
    pairs.iter().map(pair).collect()
}

impl RestoreArgs {
    pub(crate) fn run(mut self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        if let Some(machine) = self.point.as_ref().filter(|_| self.live.is_about_unfinished()) {
            return self.live.settle(context, &self.repo, machine, session);
        }
        if let Some(name) = self.point.take() {
            let repo = self.repo.open(context)?;
            self.restore(context, &repo, &PointName::parse(&name, chrono::Local::now()), session)?;
            return Ok(());
        }
        if prompt::possible(context) {
            return self.ask(context, session);
        }
        for record in stdin_records("restore", "point", &["point"], &context.stop)? {
            match record? {
                Record::Point(point) => {
                    let about = About { machine: Some(point.machine.clone()), ..About::default() };
                    if let Err(error) = self.restore_record(context, point, session) {
                        session.fail(about, error);
                    }
                }
                Record::Failure(failure) => session.pass_failure(failure),
                other => session.pass(&other),
            }
        }
        Ok(())
    }

    /// Asks for everything that is missing, shows what will be written, and restores.
    fn ask(mut self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        if !self.repo.is_named() && !DefaultRepo::locate()?.exists() {
            say("This host has no repository of its own. Which one should be used?");
            self.repo.repo = Some(dialog::ask_repository(context, &self.repo)?);
        }
        let repo = self.repo.open(context)?;
        let (known, damaged) = points::list(&repo)?;
        if !damaged.is_empty() {
            say(&format!("Snapshots that cannot be read (not listed): {}", damaged.len()));
        }
        let machine =
            dialog::ask_machine(&known)?.ok_or_else(|| CliError::failed(format!("no points in {}", repo.url())))?;
        let point = dialog::ask_point(&known, &machine)?;
        let index = points::load_index_for_reading(&repo, &context.monitor)?;
        let opened = points::open_with_damage(&repo, &index, &point)?;
        let mut answer = dialog::PlaceAnswer { start: self.start, ..Default::default() };
        let (chosen, planned) = loop {
            answer = dialog::ask_place(context, &machine, !self.no_define, &answer)?;
            let chosen = RestoreArgs {
                as_name: answer.as_name.clone().or(self.as_name.clone()),
                into: answer.into.clone().or(self.into.clone()),
                overwrite: self.overwrite || answer.overwrite,
                no_define: answer.no_define,
                start: answer.start,
                ..self.clone()
            };
            match chosen.plan(context, &repo, &index, &opened) {
                Ok(planned) => break (chosen, planned),
                Err(error) if matches!(error.code, Code::Interrupted | Code::Damage) => return Err(error),
                // The other answers are kept.
                Err(error) => stderr::error(&error.message, error.hint.as_deref()),
            }
        };
        dialog::summarize(&opened, &planned);
        let equivalent = chosen.command_line(context, &point.id.short());
        // Replacing something must not be confirmed by Enter alone.
        if !prompt::confirm("Continue?", !chosen.overwrite)? {
            return Err(CliError::failed("nothing was done").hint(equivalent));
        }
        say(&format!("kvmb: to run this without questions: {equivalent}"));
        chosen.restore(context, &repo, &PointName::Plain(point.id.to_string()), session)
    }

    /// Returns what would be written.
    fn plan(
        &self,
        context: &Context,
        repo: &Repository,
        index: &Index,
        opened: &points::OpenPoint,
    ) -> Result<RestorePlan, CliError> {
        let libvirt = (!self.no_define).then(|| context.hypervisor(None).ok()).flatten();
        let connect = libvirt.as_ref().map(|hypervisor| hypervisor.uri().to_owned());
        Ok(plan(repo, index, opened, &self.request(connect)?, libvirt.as_ref())?)
    }

    /// Returns the command line that does the same without questions.
    fn command_line(&self, context: &Context, point: &str) -> String {
        let path = |path: &Option<std::path::PathBuf>| path.as_ref().map(|path| path.to_string_lossy().into_owned());
        let mut words = vec!["kvmb".to_owned(), "restore".to_owned(), point.to_owned()];
        let format = self.format.and_then(|format| format.to_possible_value()).map(|value| value.get_name().to_owned());
        for (flag, value) in [
            ("-c", context.global.connect.clone()),
            ("-r", self.repo.repo.clone()),
            ("--password-file", path(&self.repo.password_file)),
            ("--ssh-password-file", path(&self.repo.ssh_password_file)),
            ("--cacert", path(&self.repo.cacert)),
            ("--tls-client-cert", path(&self.repo.tls_client_cert)),
            ("--as", self.as_name.clone()),
            ("--into", path(&self.into)),
            ("--format", format),
        ] {
            words.extend(value.into_iter().flat_map(|value| [flag.to_owned(), value]));
        }
        words.extend(self.to.iter().flat_map(|(disk, path)| ["--to".to_owned(), format!("{disk}={}", path.display())]));
        words.extend(self.disk.iter().flat_map(|disk| ["--disk".to_owned(), disk.clone()]));
        for (flag, is_set) in [
            ("--no-define", self.no_define),
            ("--start", self.start),
            ("--live", self.live.live),
            ("--overwrite", self.overwrite),
            ("--dry-run", self.dry_run),
        ] {
            words.extend(is_set.then(|| flag.to_owned()));
        }
        // A word that cannot be quoted cannot come from a command line.
        shlex::try_join(words.iter().map(String::as_str)).unwrap_or_else(|_| words.join(" "))
    }

    fn restore_record(&self, context: &Context, point: Point, session: &mut Session) -> Result<(), CliError> {
        let url = if self.repo.is_named() { self.repo.url()? } else { point.repo };
        let repo = RepoArgs { repo: Some(url), ..self.repo.clone() }.open(context)?;
        self.restore(context, &repo, &PointName::Plain(point.point), session)
    }

    fn request(&self, connect: Option<String>) -> Result<RestoreRequest, CliError> {
        Ok(RestoreRequest {
            as_name: self.as_name.clone(),
            into: self.into.clone(),
            to: self.to.iter().cloned().collect::<BTreeMap<_, _>>(),
            only_disks: self.disk.clone(),
            format: self.format.map(|format| match format {
                FormatChoice::Qcow2 => ImageFormat::Qcow2,
                FormatChoice::Raw => ImageFormat::Raw,
            }),
            define: !self.no_define,
            connect,
            start: self.start || self.live.live,
            overwrite: self.overwrite,
            discard_saved_memory: self.discard_saved_memory,
            drop_missing_media: self.drop_missing_media,
            with_files: self.with_files.clone(),
            emulator: self.emulator.clone(),
            machine_type: self.machine_type.clone(),
            networks: renamed(&self.network)?,
            bridges: renamed(&self.bridge)?,
        })
    }

    fn restore(
        &self,
        context: &Context,
        repo: &Repository,
        name: &PointName,
        session: &mut Session,
    ) -> Result<(), CliError> {
        let (lock, snapshots) = lock_and_list(repo, &context.monitor, &context.stop)?;
        let (known, damaged) = points::of_snapshots(snapshots);
        let index = points::load_index_for_reading(repo, &context.monitor)?;
        let point = points::find_surely(repo, &known, &damaged, name)?;
        let about = About { machine: Some(point.machine().to_owned()), ..About::default() };
        let permit = lock.as_ref().map(RepoLock::permit);
        if let Err(error) = self.restore_point(context, (repo, permit), &index, &point, session) {
            session.fail(about, error);
        }
        Ok(())
    }

    /// Returns the hypervisor that receives the definition. Without a definition, libvirt is still asked about images
    /// that would be overwritten, but need not be available.
    fn hypervisor(&self, context: &Context) -> Result<Option<Hypervisor>, CliError> {
        let defines = !self.no_define && self.disk.is_empty();
        let replaces_nothing = self.into.is_some() && !self.overwrite;
        if !defines && (replaces_nothing || Hypervisor::would_be_embedded(context.global.connect.as_deref())) {
            return Ok(None);
        }
        match context.hypervisor(None) {
            Ok(hypervisor) => Ok(Some(hypervisor)),
            Err(error) if defines => Err(error),
            Err(error) => {
                tracing::debug!("{error}");
                Ok(None)
            }
        }
    }

    fn restore_point(
        &self,
        context: &Context,
        (repo, permit): (&Repository, Option<Permit>),
        index: &Index,
        point: &PointRef,
        session: &mut Session,
    ) -> Result<(), CliError> {
        let opened = points::open_with_damage(repo, index, point)?;
        let hypervisor = self.hypervisor(context)?;
        let connect = hypervisor.as_ref().map(|hypervisor| hypervisor.uri().to_owned());
        let planned = plan(repo, index, &opened, &self.request(connect)?, hypervisor.as_ref())?;
        if let Some(hypervisor) = &hypervisor {
            refuse_running(hypervisor, &planned)?;
        }
        refuse_unfinished(&planned)?;
        if let Some(hypervisor) = hypervisor.as_ref().filter(|_| self.live.live) {
            check_live(&planned, hypervisor, &context.runtime()?)?;
        }
        drop(hypervisor);
        for left_out in opened.manifest.left_out.iter().filter(|left_out| left_out.is_required()) {
            let (part, machine) = (left_out.part.as_deref().unwrap_or_default(), &opened.manifest.machine);
            context.monitor.warn(&format!("the point does not contain the {part} of {machine}: {}", left_out.reason));
        }
        if self.dry_run {
            planned.notes.iter().for_each(|note| context.monitor.warn(note));
            planned.actions().into_iter().for_each(|action| session.done(Record::Action(action)));
            return Ok(());
        }
        let restored = match self.live.live {
            true => self.live.restore(context, &self.repo, (repo, permit, index, &opened), &planned)?,
            false => {
                let connect = || context.open_hypervisor(None);
                let restored = restore(repo, index, &opened, &planned, &connect, &context.monitor, &context.stop);
                restored.map_err(|error| match error {
                    ops::Error::Interrupted => CliError::from(error).hint(what_is_kept(&planned)),
                    other => other.into(),
                })?
            }
        };
        if let Some(place) = &restored.restored_to {
            session.close_table(&summary(&restored.machine, place, context.global.connect.as_deref()));
        }
        session.done(Record::Point(restored));
        Ok(())
    }
}

/// Returns the message after an interrupted restore.
fn what_is_kept(planned: &RestorePlan) -> String {
    let devices: Vec<&str> = planned.devices().map(|path| path.to_str().unwrap_or("?")).collect();
    match devices.is_empty() {
        true => "existing images and the definition are unchanged; run the command again".into(),
        false => format!("the content of {} is incomplete; run the command again", devices.join(" and ")),
    }
}

/// Describes where everything is, and what to do next.
fn summary(machine: &str, place: &RestoredTo, connect: Option<&str>) -> String {
    let mut text: String =
        place.disks.iter().map(|disk| format!("restored {} to {}\n", disk.disk, printable(&disk.path))).collect();
    let quoted = |word: &str| shlex::try_quote(word).map_or_else(|_| printable(word), |word| printable(&word));
    let virsh = connect.map_or_else(|| "virsh".to_owned(), |uri| format!("virsh -c {}", quoted(uri)));
    match (&place.machine, &place.definition) {
        (Some(name), _) if place.started => text.push_str(&format!("{} is running\n", printable(name))),
        (Some(name), _) => text.push_str(&format!("next step: {virsh} start {}\n", quoted(name))),
        (None, Some(file)) => text.push_str(&format!(
            "restored the definition of {} to {}\nnext step: {virsh} define {}\n",
            printable(machine),
            printable(file),
            quoted(file)
        )),
        (None, None) => {}
    }
    text
}
