//! The problems that would prevent a backup: an assessment of the findings.
//!
//! Pure: [`capture::survey`](crate::capture::survey) collects the findings, and the caller provides the wording.

use super::restore::live::confinement::MissingRule;
use super::snapshot::scratch_needed;
use crate::capture::state::{MissingPart, OutsideLeftOut};
use crate::capture::survey::{
    AgentSurvey, BrokenBitmap, DiskStorage, DiskSurvey, HostSurvey, JobSurvey, MachineSurvey,
};
use crate::record::Status;
use std::path::PathBuf;

/// Since this version, libvirt's backup API is enabled by default.
const LIBVIRT_NEEDED: (u32, u32, u32) = (7, 6, 0);
/// The version in Debian 12, the oldest that kvmb supports.
const LIBVIRT_WANTED: (u32, u32, u32) = (9, 0, 0);
/// libvirt offers incremental backups only with a QEMU whose `blockdev-reopen` is stable.
const QEMU_NEEDED: (u32, u32, u32) = (6, 1, 0);
/// The version in Debian 12, the oldest that kvmb supports.
const QEMU_WANTED: (u32, u32, u32) = (7, 2, 0);

/// More free scratch space than this is always enough.
const COMFORTABLE_SCRATCH_BYTES: u64 = 4 << 30;

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// The machine, or `None` for the host.
    pub(crate) machine: Option<String>,
    pub(crate) disk: Option<String>,
    pub(crate) status: Status,
    pub(crate) subject: CheckSubject,
}

/// What was checked, and the details found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CheckSubject {
    /// The connection to the hypervisor.
    Connection {
        uri: String,
    },
    Libvirt {
        version: (u32, u32, u32),
    },
    /// QEMU's version, or `None` if libvirt finds no QEMU.
    Qemu {
        version: Option<(u32, u32, u32)>,
    },
    Programs {
        /// The programs that are missing.
        missing: Vec<&'static str>,
    },
    /// A security module that confines machines.
    Confinement {
        by: String,
        /// Whether the folder that the module leaves accessible was found; `None` if no machine was examined.
        has_open_folder: Option<bool>,
    },
    /// A rule that this module needs before a machine can run on its point.
    LiveRestore(MissingRule),
    /// The folders for sockets and scratch files.
    Folders {
        /// The first folder that QEMU's user cannot traverse.
        closed: Option<PathBuf>,
        user: Option<u32>,
    },
    /// The free space for data that a guest overwrites during its backup.
    Scratch(FolderSpace),
    Agent(AgentSurvey),
    /// The job or capture that occupies the machine.
    Job(JobSurvey),
    /// The machine is paused because of an I/O error on a disk.
    StoppedByIoError,
    /// The machine has a managed save image.
    SavedMemory,
    /// No disk can be backed up; a backup would contain only the definition.
    NoDisks,
    /// A part that the machine needs and that a backup would not include.
    MissingPart(MissingPart),
    /// A file that the definition references and that a backup would not include.
    OutsideLeftOut(OutsideLeftOut),
    /// Internal snapshots of the images. They cannot be reverted to while there are bitmaps.
    InternalSnapshots {
        names: Vec<String>,
        /// Whether there are bitmaps now.
        has_checkpoints: bool,
    },
    /// Checkpoints, which prevent 'virsh undefine'.
    Checkpoints,
    Disk(DiskSurvey),
    /// An encrypted disk of a stopped machine. It can be read only while the machine runs.
    EncryptedAndOff(DiskSurvey),
    /// A bitmap that can no longer be used.
    Bitmap {
        bitmap: BrokenBitmap,
        /// Whether the machine runs.
        is_on: bool,
    },
}

/// The free space of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FolderSpace {
    pub(crate) folder: PathBuf,
    pub(crate) free_bytes: u64,
    /// The free space that a backup needs to start.
    pub(crate) needed_bytes: u64,
}

pub(crate) fn judge_host(host: &HostSurvey, missing: &[&'static str]) -> Vec<Finding> {
    let mut findings = vec![
        of_host(
            if host.is_local { Status::Ok } else { Status::Critical },
            CheckSubject::Connection { uri: host.uri.clone() },
        ),
        of_host(age(host.libvirt, LIBVIRT_NEEDED, LIBVIRT_WANTED), CheckSubject::Libvirt { version: host.libvirt }),
        of_host(
            host.qemu.map_or(Status::Critical, |version| age(version, QEMU_NEEDED, QEMU_WANTED)),
            CheckSubject::Qemu { version: host.qemu },
        ),
        of_host(
            if missing.is_empty() { Status::Ok } else { Status::Critical },
            CheckSubject::Programs { missing: missing.to_vec() },
        ),
    ];
    let confinement = host.confined_by.clone().map(|by| CheckSubject::Confinement { by, has_open_folder: None });
    findings.extend(confinement.map(|subject| of_host(Status::Ok, subject)));
    findings
}

/// Judges the rules that a security module needs for live restores. Backups do not need them, and neither do most
/// hosts: a missing rule is a problem only if a live restore is unfinished.
pub(crate) fn judge_live_restores(missing: Option<MissingRule>, is_unfinished: bool) -> Option<Finding> {
    let status = if is_unfinished { Status::Warning } else { Status::Ok };
    missing.map(|rule| of_host(status, CheckSubject::LiveRestore(rule)))
}

/// Judges a machine. `scratch` is the folder of scratch files and its free bytes, if known.
pub(crate) fn judge_machine(machine: &MachineSurvey, scratch: Option<(PathBuf, u64)>) -> Vec<Finding> {
    let mut found: Vec<(Status, CheckSubject)> = Vec::new();
    if machine.is_stopped_by_io_error() {
        found.push((Status::Critical, CheckSubject::StoppedByIoError));
    }
    if machine.has_saved_memory {
        found.push((Status::Warning, CheckSubject::SavedMemory));
    }
    found.push((of_job(&machine.job), CheckSubject::Job(machine.job.clone())));
    found.push((of_agent(&machine.agent), CheckSubject::Agent(machine.agent.clone())));
    if let Some((by, has_open_folder)) = &machine.confined {
        let status = if *has_open_folder { Status::Ok } else { Status::Warning };
        found.push((status, CheckSubject::Confinement { by: by.clone(), has_open_folder: Some(*has_open_folder) }));
    }
    let folders = CheckSubject::Folders { closed: machine.closed_folder.clone(), user: machine.qemu_user };
    found.push((if machine.closed_folder.is_some() { Status::Critical } else { Status::Ok }, folders));
    let included = || machine.disks.iter().filter(|disk| disk.exclusion.is_none());
    if included().next().is_none() {
        found.push((Status::Ok, CheckSubject::NoDisks));
    } else if let Some((folder, free_bytes)) = scratch {
        let capacity_bytes = included().filter_map(|disk| disk.capacity_bytes).sum();
        let needed_bytes = scratch_needed(capacity_bytes);
        let status = match free_bytes {
            free if free < needed_bytes => Status::Critical,
            free if free < capacity_bytes.min(COMFORTABLE_SCRATCH_BYTES) => Status::Warning,
            _ => Status::Ok,
        };
        found.push((status, CheckSubject::Scratch(FolderSpace { folder, free_bytes, needed_bytes })));
    }
    found.extend(machine.missing.iter().map(|part| (Status::Warning, CheckSubject::MissingPart(part.clone()))));
    let left_out = machine.outside_left_out.iter();
    found.extend(left_out.map(|file| (Status::Warning, CheckSubject::OutsideLeftOut(file.clone()))));
    if !machine.internal_snapshots.is_empty() {
        let (names, has_checkpoints) = (machine.internal_snapshots.clone(), machine.has_checkpoints);
        found.push((Status::Warning, CheckSubject::InternalSnapshots { names, has_checkpoints }));
    }
    if machine.has_checkpoints {
        found.push((Status::Ok, CheckSubject::Checkpoints));
    }
    let of_machine = |(status, subject)| Finding { machine: Some(machine.name.clone()), disk: None, status, subject };
    let mut findings: Vec<Finding> = found.into_iter().map(of_machine).collect();
    for disk in &machine.disks {
        let (status, subject) = of_disk(disk, machine.is_on());
        findings.push(Finding {
            machine: Some(machine.name.clone()),
            disk: Some(disk.target.clone()),
            status,
            subject,
        });
    }
    for bitmap in &machine.broken_bitmaps {
        findings.push(Finding {
            machine: Some(machine.name.clone()),
            disk: Some(bitmap.disk.clone()),
            status: Status::Warning,
            subject: CheckSubject::Bitmap { bitmap: bitmap.clone(), is_on: machine.is_on() },
        });
    }
    findings
}

fn of_host(status: Status, subject: CheckSubject) -> Finding {
    Finding { machine: None, disk: None, status, subject }
}

fn age(version: (u32, u32, u32), needed: (u32, u32, u32), wanted: (u32, u32, u32)) -> Status {
    match version {
        version if version < needed => Status::Critical,
        version if version < wanted => Status::Warning,
        _ => Status::Ok,
    }
}

fn of_job(job: &JobSurvey) -> Status {
    match job {
        // The next run cleans up after a killed run. Until then its remains may keep the machine from starting.
        JobSurvey::Free | JobSurvey::LeftOver { holds_off: false, .. } => Status::Ok,
        JobSurvey::LeftOver { .. }
        | JobSurvey::Captured { .. }
        | JobSurvey::Foreign { .. }
        | JobSurvey::Block { .. } => Status::Warning,
        JobSurvey::Wedged { .. } => Status::Critical,
        JobSurvey::Unknown { .. } => Status::Unknown,
    }
}

fn of_agent(agent: &AgentSurvey) -> Status {
    match agent {
        AgentSurvey::Answers => Status::Ok,
        AgentSurvey::NotAsked => Status::Unknown,
        // A backup works without the agent, but its points are only crash-consistent.
        AgentSurvey::NoChannel | AgentSurvey::Disconnected | AgentSurvey::Silent(_) => Status::Warning,
    }
}

fn of_disk(disk: &DiskSurvey, is_on: bool) -> (Status, CheckSubject) {
    let subject = CheckSubject::Disk(disk.clone());
    if disk.exclusion.is_some() {
        return (if disk.is_drive { Status::Ok } else { Status::Warning }, subject);
    }
    if disk.secret_error.is_some() && !is_on {
        return (Status::Critical, CheckSubject::EncryptedAndOff(disk.clone()));
    }
    let status = match &disk.storage {
        DiskStorage::KeepsBitmaps | DiskStorage::DataFile => Status::Ok,
        // The disk is read in full each time.
        DiskStorage::OldQcow2 | DiskStorage::Format(_) => Status::Warning,
        DiskStorage::Corrupt | DiskStorage::CutOff | DiskStorage::Unreadable(_) | DiskStorage::NoDriver(_) => {
            Status::Critical
        }
    };
    (status, subject)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::block_job::{BlockJob, BlockJobKind};
    use crate::capture::machine::{MachineState, PausedReason};

    fn host() -> HostSurvey {
        HostSurvey {
            uri: "qemu:///system".into(),
            is_local: true,
            libvirt: (11, 3, 0),
            qemu: Some((10, 0, 2)),
            confined_by: None,
            qemu_owner: None,
        }
    }

    fn disk(target: &str) -> DiskSurvey {
        DiskSurvey {
            target: target.into(),
            exclusion: None,
            is_drive: false,
            path: Some("/disks/a.qcow2".into()),
            is_file: true,
            storage: DiskStorage::KeepsBitmaps,
            encryption: None,
            secret_error: None,
            capacity_bytes: Some(10 << 30),
        }
    }

    fn machine() -> MachineSurvey {
        MachineSurvey {
            name: "vm".into(),
            state: MachineState::Running,
            has_saved_memory: false,
            agent: AgentSurvey::Answers,
            job: JobSurvey::Free,
            confined: None,
            closed_folder: None,
            qemu_user: Some(64055),
            disks: vec![disk("vda")],
            broken_bitmaps: Vec::new(),
            missing: Vec::new(),
            outside_left_out: Vec::new(),
            internal_snapshots: Vec::new(),
            has_checkpoints: true,
        }
    }

    /// The findings that are not OK.
    fn bad(findings: Vec<Finding>) -> Vec<(Status, CheckSubject)> {
        let bad = findings.into_iter().filter(|finding| finding.status != Status::Ok);
        bad.map(|finding| (finding.status, finding.subject)).collect()
    }

    fn bad_of(machine: &MachineSurvey) -> Vec<(Status, CheckSubject)> {
        bad(judge_machine(machine, Some(("/scratch".into(), 100 << 30))))
    }

    #[test]
    fn healthy_host_and_machine_have_no_problems() {
        assert_eq!(bad(judge_host(&host(), &[])), []);
        assert_eq!(bad(judge_host(&HostSurvey { confined_by: Some("apparmor".into()), ..host() }, &[])), []);
        assert_eq!(bad_of(&machine()), []);
    }

    #[test]
    fn missing_live_restore_rule_is_a_warning_only_while_unfinished() {
        let rule = || MissingRule { module: "AppArmor".into(), rule: "/run/nbd rw,".into(), command: "true".into() };
        for (is_unfinished, status) in [(true, Status::Warning), (false, Status::Ok)] {
            let found = judge_live_restores(Some(rule()), is_unfinished);
            assert_eq!(found, Some(of_host(status, CheckSubject::LiveRestore(rule()))));
            assert_eq!(judge_live_restores(None, is_unfinished), None);
        }
    }

    #[test]
    fn old_versions_missing_programs_and_remote_hosts_are_reported() {
        let judged = |host: HostSurvey| bad(judge_host(&host, &[]));
        for (version, status) in [((6, 0, 0), Status::Critical), ((7, 6, 0), Status::Warning)] {
            let found = judged(HostSurvey { libvirt: version, ..host() });
            assert_eq!(found, [(status, CheckSubject::Libvirt { version })]);
        }
        for (version, status) in
            [(None, Status::Critical), (Some((5, 2, 0)), Status::Critical), (Some((6, 2, 0)), Status::Warning)]
        {
            let found = judged(HostSurvey { qemu: version, ..host() });
            assert_eq!(found, [(status, CheckSubject::Qemu { version })]);
        }
        assert_eq!(judged(HostSurvey { is_local: false, ..host() })[0].0, Status::Critical);
        let missing = bad(judge_host(&host(), &["qemu-img"]));
        assert_eq!(missing, [(Status::Critical, CheckSubject::Programs { missing: vec!["qemu-img"] })]);
    }

    #[test]
    fn scratch_space_is_compared_with_the_size_of_the_disks() {
        let judged = |free_bytes: u64| bad(judge_machine(&machine(), Some(("/scratch".into(), free_bytes))));
        assert_eq!(judged(255 << 20)[0].0, Status::Critical);
        assert_eq!(judged(256 << 20)[0].0, Status::Warning);
        assert_eq!(judged((4 << 30) - 1)[0].0, Status::Warning);
        assert_eq!(judged(4 << 30), []);
        let small = MachineSurvey { disks: vec![DiskSurvey { capacity_bytes: Some(100), ..disk("vda") }], ..machine() };
        assert_eq!(bad(judge_machine(&small, Some(("/scratch".into(), 101)))), []);
    }

    #[test]
    fn blocking_jobs_io_errors_and_inaccessible_folders_are_reported() {
        let held = |job: JobSurvey| bad_of(&MachineSurvey { job, ..machine() }).first().map(|(status, _)| *status);
        assert_eq!(held(JobSurvey::Wedged { message: "x".into() }), Some(Status::Critical));
        assert_eq!(held(JobSurvey::Foreign { job: "x".into() }), Some(Status::Warning));
        let job = BlockJob { kind: BlockJobKind::Copy, is_ready: true, done_bytes: 1, total_bytes: 1 };
        assert_eq!(held(JobSurvey::Block { disk: "vda".into(), job }), Some(Status::Warning));
        assert_eq!(held(JobSurvey::Unknown { error: "x".into() }), Some(Status::Unknown));
        let left = |holds_off| held(JobSurvey::LeftOver { capture: "c-00000001".into(), holds_off });
        assert_eq!((left(false), left(true)), (None, Some(Status::Warning)));
        let stopped = MachineSurvey { state: MachineState::Paused(PausedReason::IoError), ..machine() };
        assert_eq!(bad_of(&stopped), [(Status::Critical, CheckSubject::StoppedByIoError)]);
        let closed = MachineSurvey { closed_folder: Some("/root".into()), ..machine() };
        assert_eq!(bad_of(&closed)[0].0, Status::Critical);
        let confined = |found| MachineSurvey { confined: Some(("selinux".into(), found)), ..machine() };
        assert_eq!(bad_of(&confined(true)), []);
        assert_eq!(bad_of(&confined(false))[0].0, Status::Warning);
    }

    #[test]
    fn disks_without_bitmaps_excluded_or_unreadable_are_reported() {
        let judged = |changed: DiskSurvey| {
            let found = bad_of(&MachineSurvey { disks: vec![disk("vda"), changed], ..machine() });
            found.first().map(|(status, _)| *status)
        };
        let with = |storage: DiskStorage| DiskSurvey { storage, ..disk("vdb") };
        assert_eq!(judged(with(DiskStorage::OldQcow2)), Some(Status::Warning));
        assert_eq!(judged(with(DiskStorage::Format("raw".into()))), Some(Status::Warning));
        assert_eq!(judged(with(DiskStorage::Unreadable("gone".into()))), Some(Status::Critical));
        assert_eq!(judged(with(DiskStorage::Corrupt)), Some(Status::Critical));
        let left_out = |is_drive| DiskSurvey { exclusion: Some("x".into()), is_drive, ..disk("vdb") };
        assert_eq!(judged(left_out(false)), Some(Status::Warning));
        assert_eq!(judged(left_out(true)), None);
        let encrypted = DiskSurvey {
            encryption: Some("luks".into()),
            secret_error: Some("secret is private".into()),
            ..disk("vda")
        };
        let off = |state| MachineSurvey { state, disks: vec![encrypted.clone()], ..machine() };
        assert_eq!(bad_of(&off(MachineState::Running)), []);
        assert_eq!(bad_of(&off(MachineState::Off))[0].0, Status::Critical);
        let none = MachineSurvey { disks: vec![left_out(true)], ..machine() };
        assert_eq!(bad_of(&none), [], "its definition is kept");
    }
}
