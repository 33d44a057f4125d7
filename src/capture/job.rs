//! The backup job of a running machine: libvirt's pull mode, read over NBD.
//!
//! Every disk is an export named by its target; what changed since a checkpoint is the meta context
//! [`dirty_context`].

use std::io::ErrorKind;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use chrono::{DateTime, FixedOffset, Local};

use crate::capture::agent::{self, Consistency, FreezeMode, FreezeOptions, FreezeOutcome};
use crate::capture::block_job::BlockJob;
use crate::capture::checkpoint::checkpoint_xml;
use crate::capture::domain_xml::definition::{Definition, child, children, parse_xml};
use crate::capture::domain_xml::xml::escape;
use crate::capture::error::{Error, LibvirtErrorKind, Result};
use crate::capture::ffi;
use crate::capture::job_exports;
use crate::capture::machine::{Machine, Which};
use crate::failpoint::{self, Failpoint};

/// How long a job may take to end after it was asked to; it takes 15 ms, and longer on a machine under load.
const END_LIMIT: Duration = Duration::from_secs(30);

/// How long the begin of a job that is to be ended may still take.
const BEGIN_PATIENCE: Duration = Duration::from_secs(10);

/// What to back up, and where QEMU puts socket and scratch files.
#[derive(Debug, Clone, Default)]
pub struct JobRequest {
    /// The Unix socket that QEMU will listen on, in a folder that its user can write.
    pub socket: PathBuf,
    /// The disks to read.
    pub disks: Vec<JobDisk>,
    /// All other disks of the machine.
    pub skipped: Vec<String>,
    /// A checkpoint to make at the same instant.
    pub checkpoint: Option<NewCheckpoint>,
}

/// A disk to read.
#[derive(Debug, Clone)]
pub struct JobDisk {
    /// Its target.
    pub target: String,
    /// Where QEMU keeps what the guest overwrites meanwhile; must not exist.
    pub scratch: PathBuf,
    /// The checkpoint since which changes are wanted; none for all.
    pub parent: Option<String>,
}

/// A checkpoint to make.
#[derive(Debug, Clone)]
pub struct NewCheckpoint {
    /// Its name, never used before.
    pub(crate) name: String,
    /// The disks that get a bitmap: some or all of those read.
    pub(crate) disks: Vec<String>,
}

/// What [`Machine::begin_backup`] did.
#[derive(Debug, Clone)]
pub struct Begun {
    /// The moment captured. Everything that the guest wrote before is in it.
    pub(crate) captured_at: DateTime<FixedOffset>,
    /// Whether the guest's file systems were frozen.
    pub(crate) consistency: Consistency,
    /// Why not, if not.
    pub(crate) freeze_note: Option<String>,
    /// The guest did not confirm the thaw: it must be tried again.
    pub(crate) thaw_due: bool,
    /// The machine's definition (inactive, with secrets where permitted), read right then.
    pub(crate) definition_xml: String,
    /// The live definition, where the inactive one lacks a disk that was read or has another image for it.
    pub(crate) live_definition_xml: Option<String>,
}

/// A backup job that is running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobInfo {
    /// Its socket, if it is a pull-mode job on a Unix socket.
    pub(crate) socket: Option<PathBuf>,
    /// Its scratch files (or, of a push-mode job, its targets).
    pub(crate) scratch: Vec<PathBuf>,
    /// The disks that take part.
    pub disks: Vec<String>,
}

/// The meta context of what changed on a disk since the job's checkpoint.
pub(crate) fn dirty_context(target: &str) -> String {
    format!("qemu:dirty-bitmap:backup-{target}")
}

impl Machine {
    /// Captures this instant: freezes the guest, begins the job (with the new checkpoint), thaws, in this order and
    /// within milliseconds; thaws whatever happens.
    pub fn begin_backup(&self, request: &JobRequest, freeze: FreezeOptions) -> Result<Begun> {
        let live = self.definition(Which::Live)?;
        let backup = backup_xml(request, &live)?;
        let checkpoint = new_checkpoint_xml(request);
        let outcome = match freeze.mode {
            FreezeMode::Never => FreezeOutcome::NotFrozen("freezing is disabled".to_owned()),
            FreezeMode::Auto | FreezeMode::Required => agent::try_freeze(self, &live, freeze.timeout),
        };
        let (guest, note) = match outcome {
            FreezeOutcome::Frozen(guest) => (Some(guest), None),
            FreezeOutcome::NotFrozen(note) => (None, Some(note)),
            FreezeOutcome::Unknown(guest, note) => (Some(guest), Some(note)),
        };
        if let (FreezeMode::Required, Some(reason)) = (freeze.mode, &note) {
            return Err(Error::FreezeFailed { machine: self.name().to_owned(), reason: reason.clone() });
        }
        if guest.is_some() {
            failpoint::hit(Failpoint::Frozen);
        }
        // Told to end meanwhile: a guest that is frozen is thawed, and nothing is begun.
        self.limits().check_stop()?;
        let captured_at = Local::now().fixed_offset();
        let began = self.call_within(
            self.limits().begin,
            || format!("begin the backup of {}", self.name()),
            move |domain| ffi::backup_begin(domain, &backup, checkpoint.as_deref()),
        );
        if began.is_ok() {
            failpoint::hit(Failpoint::Begun);
        }
        let thawed = guest.map_or(Ok(()), agent::FrozenGuest::thaw);
        began.map_err(|error| self.begin_error(error))?;
        let thaw_note = thawed.as_ref().err().map(ToString::to_string);
        if let Some(thaw_note) = &thaw_note {
            tracing::error!("{thaw_note}");
        }
        let definition_xml = self.definition_xml(Which::Inactive, true)?;
        let live_definition_xml = match describes_all(&definition_xml, &live, request)? {
            true => None,
            false => Some(self.definition_xml(Which::Live, true)?),
        };
        Ok(Begun {
            captured_at,
            consistency: if note.is_none() { Consistency::Filesystem } else { Consistency::Crash },
            freeze_note: note.or(thaw_note),
            thaw_due: thawed.is_err(),
            definition_xml,
            live_definition_xml,
        })
    }

    /// The backup job that is running, whoever began it.
    pub fn running_backup(&self) -> Result<Option<JobInfo>> {
        let xml = self.call(|| format!("check for a backup job of {}", self.name()), ffi::backup_xml);
        match xml {
            Ok(xml) => read_job(&xml).map(Some),
            Err(error)
                if matches!(
                    error.meaning(),
                    LibvirtErrorKind::NoBackupJob | LibvirtErrorKind::InvalidState | LibvirtErrorKind::Unsupported
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// As [`Machine::running_backup`], after libvirt has come so far with the begin of a job that it can name it: a
    /// begin that was given up may go on for a while.
    pub(super) fn settled_backup(&self) -> Result<Option<JobInfo>> {
        let wait = self.limits().wait(BEGIN_PATIENCE.min(self.limits().call));
        loop {
            if let Some(job) = self.running_backup()? {
                return Ok(Some(job));
            }
            let is_beginning = match self.call(|| format!("check for a job of {}", self.name()), ffi::has_job) {
                Err(error) => error.meaning() == LibvirtErrorKind::Internal && self.has_lost_its_job()?,
                Ok(_) => false,
            };
            if !is_beginning || wait.is_over() {
                return Ok(None);
            }
            wait.check_stop()?;
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Fails when libvirt is at work on something else for the machine (a migration, a snapshot, a managed save):
    /// beginning a backup would wait for that half a minute, the guest frozen. A backup that libvirt was killed in the
    /// middle of beginning looks like this too, and never ends.
    pub(crate) fn expect_no_job(&self) -> Result<()> {
        match self.call(|| format!("check for a job of {}", self.name()), ffi::has_job) {
            Ok(false) => Ok(()),
            Ok(true) => Err(Error::OtherJob { machine: self.name().to_owned() }),
            Err(error) if error.meaning() == LibvirtErrorKind::Internal && self.has_lost_its_job()? => {
                Err(Error::Wedged { machine: self.name().to_owned(), message: error.to_string() })
            }
            Err(error) if matches!(error.meaning(), LibvirtErrorKind::InvalidState | LibvirtErrorKind::Unsupported) => {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// The block job of a disk.
    pub(crate) fn block_job(&self, disk: &str) -> Result<Option<BlockJob>> {
        let (action, target) = (|| format!("check for a block job of {}'s disk {disk}", self.name()), disk.to_owned());
        match self.call(action, move |domain| ffi::block_job(domain, &target)) {
            Ok(found) => Ok(found.and_then(|(kind, position, end)| BlockJob::from_numbers(kind, position, end))),
            // It is off, or its driver knows no such jobs.
            Err(error) if matches!(error.meaning(), LibvirtErrorKind::InvalidState | LibvirtErrorKind::Unsupported) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Fails when a block job is at work on one of these disks.
    pub(super) fn expect_no_block_job<'a>(&self, disks: impl Iterator<Item = &'a str>) -> Result<()> {
        for disk in disks {
            if let Some(job) = self.block_job(disk)? {
                return Err(Error::BlockJob { machine: self.name().to_owned(), disk: disk.to_owned(), job });
            }
        }
        Ok(())
    }

    /// Ends the backup job and waits until it is gone; false when there was none. Whose job it is, the caller has
    /// checked.
    pub fn end_backup(&self) -> Result<bool> {
        let Some(job) = self.running_backup()? else { return Ok(false) };
        self.wait_until_begun(&job)?;
        let deadline = Instant::now() + END_LIMIT;
        match self.call(|| format!("end the backup job of {}", self.name()), ffi::abort_job) {
            // «no job is active»: it ended meanwhile.
            Err(error) if error.meaning() != LibvirtErrorKind::InvalidState => return Err(error),
            _ => {}
        }
        while self.running_backup()?.is_some() {
            if Instant::now() > deadline {
                return Err(Error::JobStuck { machine: self.name().to_owned(), waited: END_LIMIT });
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(true)
    }

    /// Waits until libvirt is done with the begin of a job, which it shows before that: libvirtd 11.3 can crash when a
    /// job is ended meanwhile. The last that it asks of QEMU is to export each disk. A job that never comes so far,
    /// because libvirtd was killed in the middle of its begin, is ended all the same.
    fn wait_until_begun(&self, job: &JobInfo) -> Result<()> {
        let Some(socket) = &job.socket else { return Ok(()) };
        let limit = BEGIN_PATIENCE.min(self.limits().call);
        let action = || format!("end the backup job of {}", self.name());
        let wait = self.limits().wait(limit);
        loop {
            let asked = socket.clone();
            let silent = match self.limits().run(limit, action, move || job_exports::count(&asked))? {
                Ok(exports) if exports >= job.disks.len() => return Ok(()),
                Ok(_) => false,
                Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
            };
            if !wait.is_over() {
                wait.check_stop()?;
            } else if silent {
                // QEMU hangs: libvirt may be in the middle of it still.
                return Err(Error::TimedOut { action: action(), limit });
            } else {
                return Ok(());
            }
            if self.running_backup()?.is_none() {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether libvirt cannot say how far the machine's job is although it knows of no backup: it was killed in the
    /// middle of beginning one.
    fn has_lost_its_job(&self) -> Result<bool> {
        Ok(self.is_running()? && self.running_backup()?.is_none())
    }

    fn begin_error(&self, error: Error) -> Error {
        if !matches!(error.meaning(), LibvirtErrorKind::Internal | LibvirtErrorKind::Busy) {
            return error;
        }
        match self.expect_no_job() {
            Err(wedged @ Error::Wedged { .. }) => wedged,
            _ => error,
        }
    }
}

/// Whether a definition has every disk that is read, each with the image that the running machine has for it.
fn describes_all(inactive: &str, live: &Definition, request: &JobRequest) -> Result<bool> {
    let inactive = Definition::parse(inactive)?;
    Ok(request.disks.iter().all(|disk| match (inactive.disk(&disk.target), live.disk(&disk.target)) {
        (Some(inactive), Some(live)) => inactive.source == live.source,
        _ => false,
    }))
}

fn backup_xml(request: &JobRequest, live: &Definition) -> Result<String> {
    let socket = path_text(&request.socket)?;
    let mut xml = format!("<domainbackup mode='pull'><server transport='unix' socket='{}'/><disks>", escape(socket));
    for disk in &request.disks {
        let mode = match &disk.parent {
            Some(parent) => format!(
                "backupmode='incremental' incremental='{}' exportbitmap='backup-{}'",
                escape(parent),
                escape(&disk.target)
            ),
            None => "backupmode='full'".to_owned(),
        };
        xml += &format!(
            "<disk name='{target}' backup='yes' type='file' exportname='{target}' {mode}>\
             <driver type='qcow2'/><scratch file='{}'/></disk>",
            escape(path_text(&disk.scratch)?),
            target = escape(&disk.target),
        );
    }
    // A disk that is not named at all would be backed up: so name every one.
    let named = |target: &str| request.disks.iter().any(|disk| disk.target == target);
    for disk in live.disks.iter().filter(|disk| !named(&disk.target)) {
        xml += &format!("<disk name='{}' backup='no'/>", escape(&disk.target));
    }
    for target in &request.skipped {
        if !named(target) && live.disk(target).is_none() {
            xml += &format!("<disk name='{}' backup='no'/>", escape(target));
        }
    }
    xml += "</disks></domainbackup>";
    Ok(xml)
}

fn new_checkpoint_xml(request: &JobRequest) -> Option<String> {
    let checkpoint = request.checkpoint.as_ref()?;
    let all: Vec<String> =
        request.disks.iter().map(|disk| disk.target.clone()).chain(request.skipped.iter().cloned()).collect();
    let disks: Vec<&str> = checkpoint.disks.iter().map(String::as_str).collect();
    Some(checkpoint_xml(&checkpoint.name, &disks, &all))
}

fn read_job(xml: &str) -> Result<JobInfo> {
    let document = parse_xml(xml)?;
    let root = document.root_element();
    let disks: Vec<_> = child(root, "disks")
        .into_iter()
        .flat_map(|disks| children(disks, "disk"))
        .filter(|disk| disk.attribute("backup") != Some("no"))
        .collect();
    Ok(JobInfo {
        socket: child(root, "server").and_then(|server| server.attribute("socket")).map(PathBuf::from),
        scratch: disks
            .iter()
            .filter_map(|disk| child(*disk, "scratch").or(child(*disk, "target")))
            .filter_map(|scratch| scratch.attribute("file").or(scratch.attribute("dev")))
            .map(PathBuf::from)
            .collect(),
        disks: disks.iter().filter_map(|disk| disk.attribute("name").map(str::to_owned)).collect(),
    })
}

/// libvirt takes paths as UTF-8 text only.
fn path_text(path: &std::path::Path) -> Result<&str> {
    path.to_str().ok_or_else(|| Error::UnsafeFolder {
        path: path.to_owned(),
        reason: "its name is not UTF-8, which libvirt cannot take".to_owned(),
    })
}
