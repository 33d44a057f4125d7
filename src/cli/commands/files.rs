//! `kvmb files`

use crate::cli::args::repo::RepoArgs;
use crate::cli::commands::serving;
use crate::cli::complete;
use crate::cli::context::Context;
use crate::cli::failure::{CliError, Code};
use crate::cli::session::{About, Session};
use crate::cli::terminal::{prompt, secret};
use crate::glob;
use crate::ops::files::archive::{self, Archive};
use crate::ops::files::content::FileContent;
use crate::ops::files::copy::{CopyOptions, CopyTarget, CopyTotals};
use crate::ops::files::listing::{Listing, filesystem_record};
use crate::ops::files::{Depth, FileSink, Follow, PointFiles, Walk};
use crate::ops::manifest::ManifestDisk;
use crate::ops::points::{self, OpenPoint, PointName};
use crate::ops::repo_lock::lock_and_list;
use crate::ops::{self, Error};
use crate::record::{Action, File, Record, Time};
use crate::repo::{Password, RepoLock};
use crate::units::{ShortDuration, Size};
use chrono::{Local, NaiveDate, NaiveDateTime, NaiveTime, TimeZone};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// List, print and copy files of a restore point, without restoring it.
///
/// Nothing is mounted: a confined process reads the guest's file systems (ext2, ext3, ext4, XFS, Btrfs, FAT, NTFS). A
/// path is /etc/fstab or C:\Users\x if the point has one operating system, otherwise vda2:/etc/fstab.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb files ls vm1                                list the file systems of the newest point
  kvmb files ls vm1@2026-11-20 /etc
  kvmb files cat vm1 /etc/fstab
  kvmb files cp vm1@-2d /srv/data --to /root
  kvmb files cp win1 'C:\\Users\\x\\Documents' --to /root
  kvmb files tar vm1 vda2:/home | tar -C /root -x
  kvmb files find vm1 /etc --name '*.conf' --newer 7d")]
pub(crate) struct FilesArgs {
    #[command(subcommand)]
    command: FilesCommand,
}

#[derive(Debug, clap::Subcommand)]
enum FilesCommand {
    /// List file systems, or files.
    ///
    /// Without a path, prints a 'filesystem' record for each file system. With paths, prints a 'file' record for each
    /// file in these directories.
    #[command(after_help = "Examples:
  kvmb files ls vm1
  kvmb files ls vm1 / /etc
  kvmb files ls vm1@latest vda2:/home --json | jq -r .path")]
    Ls(PathSelection),
    /// Find files by name, time and size.
    ///
    /// Prints a 'file' record for each matching file below the paths.
    #[command(after_help = "Examples:
  kvmb files find vm1 /etc --name '*.conf'
  kvmb files find vm1 /home --newer 2026-11-20 --size +10M")]
    Find {
        #[command(flatten)]
        selection: PathSelection,
        #[command(flatten)]
        filter: Filter,
    },
    /// Print the content of files.
    #[command(after_help = "Examples:
  kvmb files cat vm1 /etc/fstab
  kvmb files cat vm1@2026-11-20 /var/lib/db/dump.sql.gz | gunzip")]
    Cat {
        #[command(flatten)]
        point: PointArgs,
        /// Files, printed one after the other.
        #[arg(value_name = "PATH", required = true, add = complete::point_paths())]
        paths: Vec<String>,
    },
    /// Copy files and directories into a directory of this host.
    ///
    /// Keeps mode, times, links, holes, attributes and ACLs, and as root the owner. Prints an 'action' record for each
    /// path.
    #[command(after_help = "Examples:
  kvmb files cp vm1 /etc --to /root/vm1
  kvmb files cp vm1@-2d /srv/data/report.ods --to . --overwrite")]
    Cp {
        #[command(flatten)]
        point: PointArgs,
        /// Files and directories to copy.
        #[arg(value_name = "PATH", required = true, add = complete::point_paths())]
        paths: Vec<String>,
        /// The directory to copy them to.
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        /// Replace existing files, and copy into existing directories.
        #[arg(long)]
        overwrite: bool,
        /// Create device nodes, which are skipped otherwise.
        #[arg(long)]
        devices: bool,
        /// Show what would be copied without copying it.
        #[arg(short = 'n', long)]
        dry_run: bool,
    },
    /// Write a tar archive of files to standard output.
    ///
    /// Keeps owner, mode, times, links, holes, attributes and ACLs (pax format).
    #[command(after_help = "Examples:
  kvmb files tar vm1 /etc /home > vm1.tar
  kvmb files tar vm1@latest / | zstd > vm1.tar.zst")]
    Tar {
        #[command(flatten)]
        selection: PathSelection,
        /// Include device nodes, which are skipped otherwise.
        #[arg(long)]
        devices: bool,
    },
}

#[derive(Debug, clap::Args)]
struct PointArgs {
    /// A point: an ID or its beginning, NAME, NAME@latest, NAME@2026-11-20, NAME@-2h.
    #[arg(value_name = "POINT", add = complete::points())]
    point: String,

    /// Look only at this disk (repeatable).
    #[arg(long = "disk", value_name = "DISK", add = complete::disks())]
    disks: Vec<String>,

    /// Open LUKS, RAID and all kinds of logical volumes with guestfish (libguestfs).
    ///
    /// Starts a small virtual machine, which takes some seconds, without KVM up to a minute. Asks for the passphrase of
    /// each LUKS volume on a terminal.
    #[arg(long)]
    guestfish: bool,

    /// File with the passphrase of a LUKS volume, as VOLUME=FILE (repeatable).
    ///
    /// Implies --guestfish. The first line of the file is the passphrase. Example: vda5=/root/vda5.key.
    #[arg(long, value_name = "VOLUME=FILE", value_parser = volume_file)]
    luks_key_file: Vec<(String, PathBuf)>,

    #[command(flatten)]
    repo: RepoArgs,
}

fn volume_file(text: &str) -> Result<(String, PathBuf), String> {
    let parts = text.split_once('=').filter(|(volume, file)| !volume.is_empty() && !file.is_empty());
    let (volume, file) = parts.ok_or_else(|| "expected a volume and a file, such as vda5=/root/vda5.key".to_owned())?;
    Ok((volume.to_owned(), PathBuf::from(file)))
}

#[derive(Debug, clap::Args)]
struct PathSelection {
    #[command(flatten)]
    point: PointArgs,

    /// Paths: /etc, C:\Users, vda2:/etc.
    #[arg(value_name = "PATH", add = complete::point_paths())]
    paths: Vec<String>,
}

impl PathSelection {
    /// Returns the paths, or the root if none were given.
    fn paths_or_root(&self) -> Vec<String> {
        if self.paths.is_empty() { vec!["/".to_owned()] } else { self.paths.clone() }
    }
}

/// Which files are meant.
#[derive(Debug, clap::Args)]
struct Filter {
    /// Only files whose name matches this pattern: '*.conf'.
    #[arg(long, value_name = "PATTERN")]
    name: Option<String>,

    /// Only files that changed after this time: 2026-11-20, 2026-11-20T14:30, or 7d for the last seven days.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    newer: Option<Time>,

    /// Only files of at least (+10M) or at most (-10K) this size.
    #[arg(long, value_name = "SIZE", value_parser = size_bound, allow_hyphen_values = true)]
    size: Option<SizeBound>,
}

/// A bound on file sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SizeBound {
    Minimum(u64),
    Maximum(u64),
}

fn size_bound(text: &str) -> Result<SizeBound, String> {
    let (bound, number): (fn(u64) -> SizeBound, &str) = match text.split_at_checked(1) {
        Some(("+", rest)) => (SizeBound::Minimum, rest),
        Some(("-", rest)) => (SizeBound::Maximum, rest),
        _ => (SizeBound::Minimum, text),
    };
    let size = number.to_ascii_uppercase().parse::<Size>().ok();
    size.map(|size| bound(size.0)).ok_or_else(|| "expected a size, such as +10M or -500K".to_owned())
}

fn moment(text: &str) -> Result<Time, String> {
    let rule = || "expected a time, such as 2026-11-20, 2026-11-20T14:30 or 7d".to_owned();
    if let Ok(age) = text.trim_start_matches('-').parse::<ShortDuration>() {
        let age = chrono::TimeDelta::from_std(age.0).map_err(|_| rule())?;
        return Ok((Local::now() - age).fixed_offset());
    }
    if let Ok(time) = text.parse::<Time>() {
        return Ok(time);
    }
    let forms = ["%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S"];
    let local = forms.iter().find_map(|form| NaiveDateTime::parse_from_str(text, form).ok());
    let local = local.or_else(|| Some(NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.and_time(NaiveTime::MIN)));
    let time = local.and_then(|local| Local.from_local_datetime(&local).earliest());
    time.map(|time| time.fixed_offset()).ok_or_else(rule)
}

impl Filter {
    fn fits(&self, file: &File) -> bool {
        let name = file.path.rsplit('/').next().unwrap_or_default();
        self.name.as_ref().is_none_or(|pattern| glob::matches(pattern, name))
            && self.newer.is_none_or(|newer| file.modified_at.is_some_and(|modified| modified > newer))
            && self.size.is_none_or(|bound| match bound {
                SizeBound::Minimum(least) => file.size_bytes >= least,
                SizeBound::Maximum(most) => file.size_bytes <= most,
            })
    }
}

/// A point whose files can be read.
struct OpenFiles {
    point: OpenPoint,
    files: PointFiles,
    _lock: Option<RepoLock>,
}

impl PointArgs {
    fn open(&self, context: &Context, session: &mut Session) -> Result<OpenFiles, CliError> {
        let repo = self.repo.open(context)?;
        let (lock, snapshots) = lock_and_list(&repo, &context.monitor, &context.stop)?;
        let (found, damaged) = points::of_snapshots(snapshots);
        let index = points::load_index_for_reading(&repo, &context.monitor)?;
        let name = PointName::parse(&self.point, Local::now());
        let found = points::find_surely(&repo, &found, &damaged, &name)?;
        let point = points::open_with_damage(&repo, &index, &found)?;
        let has = |name: &String| point.manifest.disks.iter().any(|disk| disk.disk == *name);
        if let Some(unknown) = self.disks.iter().find(|name| !has(name)) {
            let subject = format!("point {}", point.id.short());
            return Err(Error::NoSuchDisk { subject, disk: unknown.clone() }.into());
        }
        let wanted = |disk: &&ManifestDisk| self.disks.is_empty() || self.disks.contains(&disk.disk);
        let mut disks: Vec<&ManifestDisk> = Vec::new();
        for disk in point.manifest.disks.iter().filter(wanted) {
            match point.broken.get(&disk.disk) {
                None => disks.push(disk),
                Some(reason) => {
                    let machine = Some(point.manifest.machine.clone());
                    let about = About { machine, disk: Some(disk.disk.clone()), ..About::default() };
                    session.fail(about, CliError::new(Code::Damage, reason.clone()));
                }
            }
        }
        let mut files = PointFiles::open(&repo, index, &point, &disks, &context.stop)?;
        if self.guestfish || !self.luks_key_file.is_empty() {
            self.open_closed(context, &mut files)?;
        }
        Ok(OpenFiles { point, files, _lock: lock })
    }

    /// Opens volumes that need another program. The passphrases come from files, or from the user at the terminal.
    fn open_closed(&self, context: &Context, files: &mut PointFiles) -> Result<(), CliError> {
        let limit = context.password_limit();
        let keys = self.luks_key_file.iter().map(|(volume, file)| Ok((volume, secret::line_from_file(file, limit)?)));
        let mut keys = keys.collect::<Result<BTreeMap<&String, Password>, CliError>>()?;
        let mut unanswered = None;
        let mut ask = |volume: &str| {
            if let Some(key) = keys.remove(&volume.to_owned()) {
                return Ok(Some(key));
            }
            if !self.guestfish || !prompt::possible(context) {
                return Ok(None);
            }
            match prompt::passphrase(&format!("Passphrase of {volume} (empty: leave it closed)")) {
                Ok(text) if text.is_empty() => Ok(None),
                Ok(text) => Ok(Some(Password::new(text))),
                Err(error) => {
                    unanswered = Some(error);
                    Err(Error::Interrupted)
                }
            }
        };
        let opened = files.open_closed(&context.runtime()?, &context.monitor, &mut ask);
        if let Some(error) = unanswered {
            return Err(error);
        }
        opened?;
        match keys.keys().next() {
            Some(volume) => Err(CliError::new(Code::NotFound, format!("{volume} is not a LUKS volume of the point"))
                .hint("run 'kvmb files ls POINT' to list the volumes")),
            None => Ok(()),
        }
    }
}

impl OpenFiles {
    fn machine(&self) -> &str {
        &self.point.manifest.machine
    }

    fn about(&self) -> About {
        About { machine: Some(self.machine().to_owned()), ..About::default() }
    }

    /// Reports repository damage that was found while reading.
    fn report_damage(&self, session: &mut Session) {
        self.files.take_damage().into_iter().for_each(|damage| serving::report(session, self.machine(), damage));
    }
}

fn walk(path: &str, depth: Depth, follow: Follow, content: bool) -> Walk {
    Walk { path: path.to_owned(), depth, follow, content }
}

/// Writes bytes to standard output.
fn print(session: &mut Session, bytes: &[u8]) -> ops::Result<()> {
    session.text(bytes);
    // The reader has closed the pipe: stop.
    if session.is_pointless() { Err(Error::Interrupted) } else { Ok(()) }
}

impl FilesArgs {
    /// Whether the command changes anything.
    pub(crate) fn changes(&self) -> bool {
        matches!(self.command, FilesCommand::Cp { dry_run: false, .. })
    }

    pub(crate) fn run(self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        match self.command {
            FilesCommand::Ls(selection) => {
                let mut open = selection.point.open(context, session)?;
                if selection.paths.is_empty() {
                    for volume in open.files.volumes() {
                        session.done(Record::Filesystem(filesystem_record(&open.point, volume)));
                    }
                    open.report_damage(session);
                    return Ok(());
                }
                list(&mut open, &selection.paths, Depth::Children, |_| true, session)
            }
            FilesCommand::Find { selection, filter } => {
                let mut open = selection.point.open(context, session)?;
                list(&mut open, &selection.paths_or_root(), Depth::All, |file| filter.fits(file), session)
            }
            FilesCommand::Cat { point, paths } => {
                session.suppress_records();
                cat(&mut point.open(context, session)?, &paths, session)
            }
            FilesCommand::Cp { point, paths, to, overwrite, devices, dry_run } => {
                if !to.is_dir() {
                    let message = format!("directory {} does not exist", to.display());
                    let path = to.to_str().and_then(|path| shlex::try_quote(path).ok());
                    let error = CliError::new(Code::NotFound, message);
                    return Err(match path {
                        Some(path) => error.hint(format!("create it with 'mkdir -p {path}'")),
                        None => error,
                    });
                }
                let mut open = point.open(context, session)?;
                if dry_run {
                    return paths.iter().try_for_each(|path| dry_run_copy(&mut open, path, &to, overwrite, session));
                }
                let options = CopyOptions { overwrite, devices };
                paths.iter().try_for_each(|path| copy(context, &mut open, path, &to, options, session))
            }
            FilesCommand::Tar { selection, devices } => {
                if session.prints_to_terminal() {
                    let error = CliError::usage("refusing to write an archive to a terminal");
                    return Err(error.hint("write it to a file: kvmb files tar POINT PATH > files.tar"));
                }
                session.suppress_records();
                let mut open = selection.point.open(context, session)?;
                tar(&mut open, &selection.paths_or_root(), devices, session)
            }
        }
    }
}

/// Sends the files of a path to a sink. An error is reported, and the next path continues.
fn take(
    open: &mut OpenFiles,
    walk: &Walk,
    session: &mut Session,
    sink: impl FnOnce(&mut PointFiles, &OpenPoint, &mut Session) -> ops::Result<()>,
) -> Result<bool, CliError> {
    let OpenFiles { files, point, .. } = open;
    let taken = sink(files, point, session);
    open.report_damage(session);
    match taken {
        Ok(()) => Ok(true),
        Err(Error::Interrupted) if session.is_pointless() => Ok(false),
        Err(error @ (Error::Interrupted | Error::Confined(_))) => Err(error.into()),
        Err(error) => {
            tracing::debug!("{}: {error}", walk.path);
            session.fail(open.about(), error);
            Ok(true)
        }
    }
}

fn list(
    open: &mut OpenFiles,
    paths: &[String],
    depth: Depth,
    fits: impl Fn(&File) -> bool,
    session: &mut Session,
) -> Result<(), CliError> {
    let about = open.about();
    for path in paths {
        let walk = walk(path, depth, Follow::ToDirectory, false);
        let goes_on = take(open, &walk, session, |files, point, session| {
            let mut print = |found: Result<File, Error>| {
                match found {
                    Ok(file) if fits(&file) => session.done(Record::File(file)),
                    Ok(_) => {}
                    Err(error) => session.fail(about.clone(), error),
                }
                if session.is_pointless() { Err(Error::Interrupted) } else { Ok(()) }
            };
            files.walk(&walk, &mut Listing::new(point, path, &mut print))
        })?;
        if !goes_on {
            break;
        }
    }
    Ok(())
}

fn cat(open: &mut OpenFiles, paths: &[String], session: &mut Session) -> Result<(), CliError> {
    for path in paths {
        let walk = walk(path, Depth::Itself, Follow::Yes, true);
        let goes_on = take(open, &walk, session, |files, _, session| {
            let mut hand_on = |bytes: &[u8]| print(session, bytes);
            files.walk(&walk, &mut FileContent::new(path, &mut hand_on))?;
            session.count_done();
            Ok(())
        })?;
        if !goes_on {
            break;
        }
    }
    Ok(())
}

/// Prints what a copy would write.
fn dry_run_copy(
    open: &mut OpenFiles,
    path: &str,
    to: &Path,
    overwrite: bool,
    session: &mut Session,
) -> Result<(), CliError> {
    let about = open.about();
    let walk = walk(path, Depth::All, Follow::No, false);
    take(open, &walk, session, |files, point, session| {
        let (mut totals, mut target) = (CopyTotals::default(), None);
        let mut count = |found: Result<File, Error>| {
            let file = match found {
                Ok(file) => file,
                Err(error) => {
                    session.fail(about.clone(), error);
                    return Ok(());
                }
            };
            target.get_or_insert_with(|| to.join(file.path.rsplit(['/', ':']).next().unwrap_or_default()));
            match file.kind.as_deref() {
                Some("file") => (totals.files, totals.bytes) = (totals.files + 1, totals.bytes + file.size_bytes),
                Some("directory") => totals.directories += 1,
                Some("symlink") => totals.files += 1,
                _ => totals.skipped += 1,
            }
            Ok(())
        };
        files.walk(&walk, &mut Listing::new(point, path, &mut count))?;
        let target = target.unwrap_or_else(|| to.to_owned());
        if !overwrite && target != to && target.symlink_metadata().is_ok() {
            return Err(Error::Exists { path: target });
        }
        let reason = format!("would copy {}", counted(totals.files, "file", "files"));
        session.done(Record::Action(action(point, path, &target, totals, reason, true)));
        Ok(())
    })?;
    Ok(())
}

fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

fn action(point: &OpenPoint, path: &str, target: &Path, totals: CopyTotals, reason: String, dry_run: bool) -> Action {
    let extra = json!({
        "machine": point.manifest.machine,
        "point": point.id.to_string(),
        "path": path,
        "files": totals.files,
        "directories": totals.directories,
        "copied_bytes": totals.bytes,
        "skipped": totals.skipped,
    });
    Action {
        action: "files cp".to_owned(),
        target: target.display().to_string(),
        changed: totals.files + totals.directories > 0,
        reason,
        dry_run,
        extra: extra.as_object().cloned().unwrap_or_default(),
    }
}

fn copy(
    context: &Context,
    open: &mut OpenFiles,
    path: &str,
    to: &Path,
    options: CopyOptions,
    session: &mut Session,
) -> Result<(), CliError> {
    let about = open.about();
    let walk = walk(path, Depth::All, Follow::No, true);
    take(open, &walk, session, |files, point, session| {
        let mut report = |error: Error| {
            let exists = matches!(error, Error::Exists { .. });
            let error = CliError::from(error);
            session.fail(
                about.clone(),
                match exists {
                    true => error.hint("replace it with --overwrite, or choose another directory with --to DIR"),
                    false => error,
                },
            );
        };
        let mut target = CopyTarget::open(to, options, &context.monitor, &mut report)?;
        let walked = files.walk(&walk, &mut target);
        // Files that were copied so far get their modes even after an error.
        let (totals, written_to) = target.finish()?;
        walked?;
        let mut reason = format!("{} copied", counted(totals.files, "file", "files"));
        if totals.skipped > 0 {
            reason += &format!(", {} skipped", counted(totals.skipped, "device or socket", "devices and sockets"));
        }
        let action = action(point, path, &written_to, totals, reason, false);
        match action.changed {
            true => session.done(Record::Action(action)),
            false => session.pass(&Record::Action(action)),
        }
        Ok(())
    })?;
    Ok(())
}

fn tar(open: &mut OpenFiles, paths: &[String], devices: bool, session: &mut Session) -> Result<(), CliError> {
    let about = open.about();
    let captured_at = open.point.manifest.captured_at;
    for path in paths {
        let walk = walk(path, Depth::All, Follow::No, true);
        let goes_on = take(open, &walk, session, |files, _, session| {
            let mut failures = Vec::new();
            let mut report = |error: Error| failures.push(error);
            let mut hand_on = |bytes: &[u8]| print(session, bytes);
            let mut archive = Archive::new(&mut hand_on, &mut report, captured_at, devices);
            let walked = files.walk(&walk, &mut archive as &mut dyn FileSink);
            let closed = archive.close();
            drop(archive);
            match failures.is_empty() && walked.is_ok() {
                true => session.count_done(),
                false => failures.into_iter().for_each(|error| session.fail(about.clone(), error)),
            }
            walked.and(closed)
        })?;
        if !goes_on {
            return Ok(());
        }
    }
    // Ignore the error: a reader that has closed the pipe does not need the end of the archive.
    let _ = archive::end(&mut |bytes: &[u8]| print(session, bytes));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_bounds_are_parsed_with_their_sign() {
        assert_eq!(size_bound("+10M"), Ok(SizeBound::Minimum(10 << 20)));
        assert_eq!(size_bound("-500k"), Ok(SizeBound::Maximum(500 << 10)));
        assert_eq!(size_bound("1G"), Ok(SizeBound::Minimum(1 << 30)));
        for wrong in ["", "+", "x", "+-1", "1.5M"] {
            assert!(size_bound(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn moments_are_parsed_from_dates_times_and_ages() {
        for right in ["2026-11-20", "2026-11-20T14:30", "2026-11-20 14:30:05", "2026-11-20T14:30:00+01:00", "7d", "-2h"]
        {
            assert!(moment(right).is_ok(), "{right}");
        }
        for wrong in ["", "yesterday", "2026-13-01", "7"] {
            assert!(moment(wrong).is_err(), "{wrong}");
        }
        let age = Local::now().fixed_offset() - moment("1h").unwrap();
        assert!((3595..3605).contains(&age.num_seconds()), "{age}");
    }
}
