//! The backup job of a running machine: libvirt's pull mode, read over NBD.
//!
//! Every disk is an export named by its target. The changes since a checkpoint are the meta context [`dirty_context`].

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

/// The time limit for the end of a job. It usually takes 15 ms, and longer on a machine under load.
const END_LIMIT: Duration = Duration::from_secs(30);

/// How long to wait for the begin of a job that is to be ended.
const BEGIN_PATIENCE: Duration = Duration::from_secs(10);

/// What to back up, and where QEMU creates the socket and the scratch files.
#[derive(Debug, Clone, Default)]
pub struct JobRequest {
    /// The Unix socket that QEMU will listen on, in a folder that its user can write to.
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
    /// The disk's target.
    pub target: String,
    /// The file in which QEMU saves data that the guest overwrites during the job. It must not exist.
    pub scratch: PathBuf,
    /// The checkpoint since which changes are requested; `None` for the whole disk.
    pub parent: Option<String>,
}

/// A checkpoint to create.
#[derive(Debug, Clone)]
pub struct NewCheckpoint {
    /// Its name, which was never used before.
    pub(crate) name: String,
    /// The disks that get a bitmap, which must be among those read.
    pub(crate) disks: Vec<String>,
}

/// The result of [`Machine::begin_backup`].
#[derive(Debug, Clone)]
pub struct Begun {
    /// The captured moment. Everything that the guest wrote before it is included.
    pub(crate) captured_at: DateTime<FixedOffset>,
    /// Whether the guest's file systems were frozen.
    pub(crate) consistency: Consistency,
    /// Why they were not frozen.
    pub(crate) freeze_note: Option<String>,
    /// Whether the guest did not confirm the thaw, which must then be repeated.
    pub(crate) thaw_due: bool,
    /// The machine's definition (inactive, with secrets if permitted), read at that moment.
    pub(crate) definition_xml: String,
    /// The live definition, if the inactive one lacks a disk that is read or has another image for it.
    pub(crate) live_definition_xml: Option<String>,
}

/// A running backup job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobInfo {
    /// Its socket, if it is a pull-mode job with a Unix socket.
    pub(crate) socket: Option<PathBuf>,
    /// Its scratch files, or the targets of a push-mode job.
    pub(crate) scratch: Vec<PathBuf>,
    /// The disks of the job.
    pub disks: Vec<String>,
}

/// The name of the meta context with a disk's changes since the job's checkpoint.
pub(crate) fn dirty_context(target: &str) -> String {
    format!("qemu:dirty-bitmap:backup-{target}")
}

impl Machine {
    /// Captures this instant: freezes the guest, begins the job (with the new checkpoint) and thaws the guest, within
    /// milliseconds. The guest is always thawed, even after an error.
    pub fn begin_backup(&self, request: &JobRequest, freeze: FreezeOptions) -> Result<Begun> {
        let live = self.definition(Which::Live)?;
        let backup = backup_xml(request, &live)?;
        let checkpoint = new_checkpoint_xml(request);
        let outcome = match freeze.mode {
            FreezeMode::Never => FreezeOutcome::NotFrozen("freezing is disabled".to_owned()),
            FreezeMode::Auto | FreezeMode::Required => agent::try_freeze(self, &live, freeze.timeout),
        };
        let (guest, note, was_asked) = match outcome {
            FreezeOutcome::Frozen(guest) => (Some(guest), None, true),
            FreezeOutcome::NotFrozen(note) => (None, Some(note), false),
            FreezeOutcome::Refused(note) => (None, Some(note), true),
            FreezeOutcome::Unknown(guest, note) => (Some(guest), Some(note), true),
        };
        let expect_frozen = |note: &Option<String>| match (freeze.mode, note) {
            (FreezeMode::Required, Some(reason)) => {
                Err(Error::FreezeFailed { machine: self.name().to_owned(), reason: reason.clone() })
            }
            _ => Ok(()),
        };
        expect_frozen(&note)?;
        if guest.is_some() {
            failpoint::hit(Failpoint::Frozen);
        }
        // After an interrupt, no job is begun. A frozen guest is thawed.
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
        let thawed = guest.map(agent::FrozenGuest::thaw).transpose();
        began.map_err(|error| self.begin_error(error))?;
        let note = note.or_else(|| match &thawed {
            Ok(Some(0)) => Some("its file systems were thawed too early".to_owned()),
            Ok(_) => None,
            Err(error) => Some(error.to_string()),
        });
        expect_frozen(&note)?;
        match &note {
            Some(note) if was_asked => {
                tracing::warn!("{}: not frozen, so the point is crash-consistent: {note}", self.name());
            }
            Some(note) => tracing::info!("{}: not frozen: {note}", self.name()),
            None => {}
        }
        let definition_xml = self.definition_xml(Which::Inactive, true)?;
        let live_definition_xml = match describes_all(&definition_xml, &live, request)? {
            true => None,
            false => Some(self.definition_xml(Which::Live, true)?),
        };
        Ok(Begun {
            captured_at,
            consistency: if note.is_none() { Consistency::Filesystem } else { Consistency::Crash },
            freeze_note: note,
            thaw_due: thawed.is_err(),
            definition_xml,
            live_definition_xml,
        })
    }

    /// Returns the running backup job, even if another program began it.
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

    /// The same as [`Machine::running_backup`], but waits while libvirt is still beginning a job: a call that timed out
    /// may continue for a while.
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

    /// Fails if libvirt is busy with another operation on the machine, such as a migration, a snapshot or a managed
    /// save: beginning a backup would wait for half a minute with the guest frozen. If libvirt was killed while
    /// beginning a backup, the state is the same, but lasts forever.
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

    /// Returns the block job of a disk.
    pub(crate) fn block_job(&self, disk: &str) -> Result<Option<BlockJob>> {
        let (action, target) = (|| format!("check for a block job of {}'s disk {disk}", self.name()), disk.to_owned());
        match self.call(action, move |domain| ffi::block_job(domain, &target)) {
            Ok(found) => Ok(found.and_then(|(kind, position, end)| BlockJob::from_numbers(kind, position, end))),
            // The machine is off, or its driver does not support block jobs.
            Err(error) if matches!(error.meaning(), LibvirtErrorKind::InvalidState | LibvirtErrorKind::Unsupported) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Fails if one of these disks has a block job.
    pub(super) fn expect_no_block_job<'a>(&self, disks: impl Iterator<Item = &'a str>) -> Result<()> {
        for disk in disks {
            if let Some(job) = self.block_job(disk)? {
                return Err(Error::BlockJob { machine: self.name().to_owned(), disk: disk.to_owned(), job });
            }
        }
        Ok(())
    }

    /// Ends the backup job and waits until it is gone. Returns false if there was none. The caller must have checked
    /// whose job it is.
    pub fn end_backup(&self) -> Result<bool> {
        let Some(job) = self.running_backup()? else { return Ok(false) };
        self.wait_until_begun(&job)?;
        let deadline = Instant::now() + END_LIMIT;
        match self.call(|| format!("end the backup job of {}", self.name()), ffi::abort_job) {
            // "No job is active": it has already ended.
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

    /// Waits until libvirt has completed the begin of a job, because libvirtd 11.3 can crash if a job is ended while it
    /// begins. libvirt reports a job before that, but its last request to QEMU is to export the disks. A job whose
    /// disks are never exported, because libvirtd was killed while beginning it, is ended anyway.
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
                // QEMU hangs, so libvirt may still be beginning the job.
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

    /// Whether libvirt lost track of a job: it cannot report the job's progress and knows no backup, because it was
    /// killed while beginning one.
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

/// Whether a definition has every disk that is read, with the same image as the running machine.
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
    // Disks that are not listed would be backed up, so every disk is listed.
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

/// Returns a path as text, because libvirt only accepts UTF-8.
fn path_text(path: &std::path::Path) -> Result<&str> {
    path.to_str().ok_or_else(|| Error::UnsafeFolder {
        path: path.to_owned(),
        reason: "its name is not UTF-8, which libvirt cannot take".to_owned(),
    })
}
