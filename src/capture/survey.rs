//! Read-only inspection of this host and its machines, as a backup would encounter them.
//!
//! It does not judge the results. If something cannot be determined, it is reported as such and does not hide other
//! results.

use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, FixedOffset};

use crate::capture::block_job::BlockJob;
use crate::capture::close::capture_of_socket;
use crate::capture::connection::Hypervisor;
use crate::capture::domain_folder::domain_folder;
use crate::capture::domain_xml::definition::{
    DefinedDisk, Definition, Device, DiskSource, Encryption, child, children, parse_xml,
};
use crate::capture::error::{Error, LibvirtErrorKind, Result};
use crate::capture::ffi;
use crate::capture::machine::{Machine, MachineState, PausedReason, Which};
use crate::capture::machine_lock::lock_machine;
use crate::capture::offline::block_graph;
use crate::capture::offline::image_header::Header;
use crate::capture::offline::image_lookup::{self, HostImages};
use crate::capture::offline::qemu_user::{QemuUser, base_owner};
use crate::capture::offline::storage_daemon::{is_on_path, is_ours};
use crate::capture::runtime::{self, RuntimeDirs};
use crate::capture::state::{CaptureFile, DiskServer, MissingPart, OutsideLeftOut, Phase};

/// The programs of QEMU that captures need besides QEMU itself.
const PROGRAMS: [&str; 2] = ["qemu-img", "qemu-storage-daemon"];

/// The time limit for a trivial query to the guest agent.
const AGENT_LIMIT: Duration = Duration::from_secs(5);

/// The properties of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostSurvey {
    /// The URI of the connection.
    pub(crate) uri: String,
    /// Whether the machines run on this host.
    pub(crate) is_local: bool,
    pub(crate) libvirt: (u32, u32, u32),
    /// QEMU's version, or `None` if libvirt finds no QEMU.
    pub(crate) qemu: Option<(u32, u32, u32)>,
    /// `apparmor` or `selinux`, if it confines machines.
    pub(crate) confined_by: Option<String>,
    /// The user and group of the machines' QEMU.
    pub(crate) qemu_owner: Option<(u32, u32)>,
}

/// The properties of a machine that matter for a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MachineSurvey {
    pub(crate) name: String,
    /// The state of the machine.
    pub(crate) state: MachineState,
    /// Whether the machine is off and has a managed save image.
    pub(crate) has_saved_memory: bool,
    pub(crate) agent: AgentSurvey,
    pub(crate) job: JobSurvey,
    /// The security module that confines its QEMU, and whether the folder that the module leaves accessible was found.
    pub(crate) confined: Option<(String, bool)>,
    /// The first folder on the paths to sockets and scratch files that its QEMU cannot traverse.
    pub(crate) closed_folder: Option<PathBuf>,
    pub(crate) qemu_user: Option<u32>,
    pub(crate) disks: Vec<DiskSurvey>,
    /// Bitmaps that track changes and can no longer be used.
    pub(crate) broken_bitmaps: Vec<BrokenBitmap>,
    /// Parts that the machine needs and a backup would not include.
    pub(crate) missing: Vec<MissingPart>,
    /// Other files that its definition references and a backup would not include.
    pub(crate) outside_left_out: Vec<OutsideLeftOut>,
    /// The names of its internal libvirt snapshots.
    pub(crate) internal_snapshots: Vec<String>,
    pub(crate) has_checkpoints: bool,
}

/// The guest agent of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AgentSurvey {
    /// The machine has no agent channel.
    NoChannel,
    /// The agent cannot be queried because the machine is off, paused or being captured.
    NotAsked,
    /// There is a channel, but no agent is connected.
    Disconnected,
    /// The agent does not answer; the message is libvirt's.
    Silent(String),
    Answers,
}

/// What occupies a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum JobSurvey {
    Free,
    /// A block job of a disk.
    Block {
        disk: String,
        job: BlockJob,
    },
    /// A capture of kvmb, until its lease ends.
    Captured {
        capture: String,
        until: DateTime<FixedOffset>,
        /// Whether the machine is off and cannot start while the capture exists.
        holds_off: bool,
        /// Whether its guard is alive. Without one, the scratch space is not watched.
        is_guarded: bool,
    },
    /// The leftovers of a killed run.
    LeftOver {
        capture: String,
        /// Whether the machine is off and cannot start while they exist.
        holds_off: bool,
    },
    /// A backup job of another program.
    Foreign {
        /// Its socket, or its disks.
        job: String,
    },
    /// libvirt has lost track of a job.
    Wedged {
        message: String,
    },
    /// The state could not be determined.
    Unknown {
        error: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DiskSurvey {
    pub(crate) target: String,
    /// Why a backup leaves it out.
    pub(crate) exclusion: Option<String>,
    /// Whether that is expected because it is a drive for removable media.
    pub(crate) is_drive: bool,
    /// The path of its image or device.
    pub(crate) path: Option<PathBuf>,
    /// Whether the path is a regular file.
    pub(crate) is_file: bool,
    /// The storage of its content.
    pub(crate) storage: DiskStorage,
    /// The encryption format.
    pub(crate) encryption: Option<String>,
    /// Why libvirt does not reveal the passphrase, without which the disk can only be read while the machine runs.
    pub(crate) secret_error: Option<String>,
    /// The size of the virtual disk, if known.
    pub(crate) capacity_bytes: Option<u64>,
}

/// The storage of a disk's content, and whether QEMU can track changes in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DiskStorage {
    /// A qcow2 image that keeps bitmaps.
    KeepsBitmaps,
    /// A qcow2 image of version 2.
    OldQcow2,
    /// A qcow2 image that is marked as corrupt, or has such a backing file.
    Corrupt,
    /// A qcow2 image that ends before its data, or has such a backing file.
    CutOff,
    /// A qcow2 image with its data in an external raw file.
    DataFile,
    /// Another format, usually `raw`.
    Format(String),
    /// The image cannot be inspected.
    Unreadable(String),
    /// QEMU has no driver for network storage of this kind.
    NoDriver(String),
}

/// A bitmap that is missing, or that was not closed properly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BrokenBitmap {
    pub(crate) disk: String,
    /// The image that contains the bitmap, if the machine is off and the bitmap exists.
    pub(crate) image: Option<PathBuf>,
    /// The name, which is also that of its checkpoint.
    pub(crate) name: String,
}

/// Returns the programs that are not in `PATH`.
pub(crate) fn missing_programs() -> Vec<&'static str> {
    PROGRAMS.into_iter().filter(|program| !is_on_path(program)).collect()
}

impl Hypervisor {
    /// Inspects the host.
    pub(crate) fn survey(&self) -> Result<HostSurvey> {
        let action = || "query the capabilities of the host".to_owned();
        let capabilities = self.link.call(action, |connect| connect.capabilities());
        let security = capabilities.and_then(|xml| read_security(&xml)).unwrap_or_else(|error| {
            tracing::debug!("{error}");
            Security::default()
        });
        Ok(HostSurvey {
            uri: self.uri().to_owned(),
            is_local: self.is_local(),
            libvirt: self.libvirt_version()?,
            qemu: self.qemu_version().ok(),
            confined_by: security.confined_by,
            qemu_owner: security.qemu_owner,
        })
    }
}

impl Machine {
    /// Inspects the machine. Its guest agent is queried for the time.
    pub(crate) fn survey(&self, runtime: &RuntimeDirs, host: &HostSurvey) -> Result<MachineSurvey> {
        let definition = self.definition(Which::Live)?;
        let state = self.state()?;
        let is_running = self.is_running()?;
        let agent = match (definition.has_agent_channel, &state, definition.agent_connected) {
            (false, ..) => AgentSurvey::NoChannel,
            (true, MachineState::Running, true) => self.ask_agent(runtime),
            (true, MachineState::Running, false) => AgentSurvey::Disconnected,
            (true, ..) => AgentSurvey::NotAsked,
        };
        let looked: Vec<(DiskSurvey, Option<Header>)> =
            definition.disks.iter().map(|disk| look_at_disk(self, &definition, disk)).collect();
        let broken_bitmaps = match is_running {
            true => self.broken_while_running(),
            false => self.broken_while_off(&looked),
        };
        let confined = definition
            .seclabel_models
            .iter()
            .find(|model| confines(model))
            .filter(|_| is_running)
            .map(|model| (model.clone(), domain_folder(self).is_some()));
        let owner = definition.dac_owner.or(host.qemu_owner);
        let (missing, outside_left_out) = self.missing_parts()?;
        Ok(MachineSurvey {
            name: self.name().to_owned(),
            has_saved_memory: !is_running && self.has_saved_memory().unwrap_or(false),
            state,
            agent,
            job: self.survey_job(runtime, &definition),
            missing,
            outside_left_out,
            internal_snapshots: self.internal_snapshots().unwrap_or_default(),
            has_checkpoints: self.checkpoints().is_ok_and(|names| !names.is_empty()),
            confined,
            closed_folder: owner.and_then(|owner| closed_folder(runtime, owner)),
            qemu_user: owner.map(|(user, _)| user),
            broken_bitmaps: broken_bitmaps.unwrap_or_else(|error| {
                tracing::debug!("{error}");
                Vec::new()
            }),
            disks: looked.into_iter().map(|(disk, _)| disk).collect(),
        })
    }

    fn ask_agent(&self, runtime: &RuntimeDirs) -> AgentSurvey {
        // libvirt has one time limit per machine for its agent. This must not change the limit of a run that is about
        // to freeze.
        let Ok(_lock) = lock_machine(runtime, self) else {
            return AgentSurvey::NotAsked;
        };
        match self.agent_time(AGENT_LIMIT) {
            // An agent that is configured not to report the time still answers.
            Err(error) if error.meaning() != LibvirtErrorKind::AgentFailed => AgentSurvey::Silent(error.to_string()),
            _ => AgentSurvey::Answers,
        }
    }

    fn survey_job(&self, runtime: &RuntimeDirs, definition: &Definition) -> JobSurvey {
        match self.find_capture(runtime).and_then(|captured| Ok((captured, self.running_backup()?))) {
            Ok((Some(captured), _)) => captured,
            Ok((None, None)) => match self.expect_no_job() {
                Err(Error::Wedged { message, .. }) => JobSurvey::Wedged { message },
                _ => self.survey_block_jobs(definition),
            },
            Ok((None, Some(job))) => match &job.socket {
                Some(socket) => match capture_of_socket(runtime, socket) {
                    Some(capture) => JobSurvey::LeftOver { capture, holds_off: false },
                    None => JobSurvey::Foreign { job: format!("on socket {}", socket.display()) },
                },
                None => JobSurvey::Foreign { job: format!("of disks {}", job.disks.join(", ")) },
            },
            Err(error) => JobSurvey::Unknown { error: error.to_string() },
        }
    }

    fn survey_block_jobs(&self, definition: &Definition) -> JobSurvey {
        for disk in definition.disks.iter().filter(|disk| disk.exclusion().is_none()) {
            match self.block_job(&disk.target) {
                Ok(None) => {}
                Ok(Some(job)) => return JobSurvey::Block { disk: disk.target.clone(), job },
                Err(error) => return JobSurvey::Unknown { error: error.to_string() },
            }
        }
        JobSurvey::Free
    }

    fn find_capture(&self, runtime: &RuntimeDirs) -> Result<Option<JobSurvey>> {
        let mut left_over = None;
        for file in CaptureFile::open_all(runtime)? {
            let Ok(state) = file.load() else { continue };
            if !state.uuid.eq_ignore_ascii_case(self.uuid()) {
                continue;
            }
            let serves = |server: &DiskServer| is_ours(&server.process, &server.socket);
            let holds_off = state.offline().is_some_and(|reader| reader.servers.iter().any(serves));
            if state.phase != Phase::Open || state.is_expired() || state.is_orphaned() {
                left_over = Some(JobSurvey::LeftOver { capture: state.id, holds_off });
            } else {
                let until = state.lease_ends_at;
                let is_guarded = file.guard().is_some_and(|guard| guard.process.is_alive());
                return Ok(Some(JobSurvey::Captured { capture: state.id, until, holds_off, is_guarded }));
            }
        }
        Ok(left_over)
    }

    fn broken_while_running(&self) -> Result<Vec<BrokenBitmap>> {
        let mut broken = Vec::new();
        for name in self.checkpoints()? {
            let usable = self.usable_bitmaps(&name)?;
            let disks = self.disks_of_checkpoint(&name)?.into_iter().filter(|disk| !usable.contains_key(disk));
            broken.extend(disks.map(|disk| BrokenBitmap { disk, image: None, name: name.clone() }));
        }
        Ok(broken)
    }

    /// Finds broken bitmaps of a stopped machine: those that were open when QEMU died, and those that were lost with
    /// it.
    fn broken_while_off(&self, disks: &[(DiskSurvey, Option<Header>)]) -> Result<Vec<BrokenBitmap>> {
        let mut broken = Vec::new();
        for (disk, top) in disks {
            let open = top.iter().flat_map(|top| &top.bitmaps).filter(|bitmap| !bitmap.was_closed());
            broken.extend(open.map(|bitmap| BrokenBitmap {
                disk: disk.target.clone(),
                image: disk.path.clone(),
                name: bitmap.name.clone(),
            }));
        }
        for name in self.checkpoints()? {
            for target in self.disks_of_checkpoint(&name)? {
                let top = disks.iter().find(|(disk, _)| disk.target == target).and_then(|(_, top)| top.as_ref());
                if top.is_some_and(|top| top.bitmaps.iter().all(|bitmap| bitmap.name != name)) {
                    broken.push(BrokenBitmap { disk: target, image: None, name: name.clone() });
                }
            }
        }
        Ok(broken)
    }
}

impl MachineSurvey {
    /// Whether its QEMU runs.
    pub(crate) fn is_on(&self) -> bool {
        !matches!(self.state, MachineState::Off | MachineState::Crashed)
    }

    /// Whether it is paused because a disk failed.
    pub(crate) fn is_stopped_by_io_error(&self) -> bool {
        self.state == MachineState::Paused(PausedReason::IoError)
    }
}

fn secret_error(machine: &Machine, encryption: &Encryption) -> Option<String> {
    let Some(secret) = &encryption.secret else {
        return Some("the definition names no secret".to_owned());
    };
    let secret = secret.clone();
    let value =
        machine.call(|| "read the secret".to_owned(), move |domain| ffi::secret_value(&domain.connect()?, &secret));
    value.err().map(|error| error.to_string())
}

fn look_at_disk(machine: &Machine, definition: &Definition, disk: &DefinedDisk) -> (DiskSurvey, Option<Header>) {
    let exclusion = machine.skip_reason(disk);
    let source = machine.resolve(&disk.source).unwrap_or_else(|_| disk.source.clone());
    let format = disk.format.as_deref().unwrap_or("raw");
    let user = QemuUser::of(machine, definition, std::iter::once(disk));
    let chain = user.and_then(|user| block_graph::chain(disk, &HostImages { machine, user }));
    let (storage, top) = match (&exclusion, chain) {
        (Some(_), _) => (DiskStorage::Format(format.to_owned()), None),
        (None, Err(error)) => (DiskStorage::Unreadable(error.to_string()), None),
        (None, Ok(layers)) => {
            let is_corrupt = layers.iter().any(|layer| layer.header.is_corrupt);
            let is_cut_off = layers.iter().any(|layer| layer.header.is_cut_off);
            let protocols = layers.iter().filter_map(|layer| layer.storage.protocol());
            let unknown = protocols.map(str::to_owned).find(|protocol| image_lookup::is_unknown_to_qemu(protocol));
            let top = layers.into_iter().next().map(|layer| layer.header).filter(|_| source.path().is_some());
            let storage = match &top {
                _ if unknown.is_some() => DiskStorage::NoDriver(unknown.unwrap_or_default()),
                _ if is_corrupt => DiskStorage::Corrupt,
                _ if is_cut_off => DiskStorage::CutOff,
                Some(top) if format == "qcow2" && (top.data_file.is_some() || disk.data_file.is_some()) => {
                    DiskStorage::DataFile
                }
                Some(top) if top.keeps_bitmaps && disk.keeps_bitmaps() => DiskStorage::KeepsBitmaps,
                Some(_) if format == "qcow2" => DiskStorage::OldQcow2,
                None if disk.keeps_bitmaps() => DiskStorage::KeepsBitmaps,
                _ => DiskStorage::Format(format.to_owned()),
            };
            (storage, top)
        }
    };
    let survey = DiskSurvey {
        target: disk.target.clone(),
        exclusion,
        is_drive: matches!(disk.device, Device::Cdrom | Device::Floppy) || disk.source == DiskSource::Empty,
        path: source.path().cloned(),
        is_file: matches!(source, DiskSource::File { .. }),
        storage,
        encryption: disk.encryption.as_ref().map(|encryption| encryption.format.clone()),
        secret_error: disk.encryption.as_ref().and_then(|encryption| secret_error(machine, encryption)),
        capacity_bytes: machine.disk_info(&disk.target).ok().map(|info| info.capacity_bytes),
    };
    (survey, top)
}

/// Returns the first folder on the paths to sockets and scratch files that this user cannot traverse.
fn closed_folder(runtime: &RuntimeDirs, owner: (u32, u32)) -> Option<PathBuf> {
    [runtime.socket_folder(), runtime.scratch_folder()].into_iter().find_map(|folder| {
        // Missing folders will be created so that every user can traverse them.
        let existing = folder.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
        match runtime::check_reachable(existing, owner) {
            Err(Error::Unreachable { path, .. }) => Some(path),
            _ => None,
        }
    })
}

fn confines(model: &str) -> bool {
    matches!(model, "apparmor" | "selinux")
}

/// The security settings of the host's machines.
#[derive(Debug, Default, PartialEq, Eq)]
struct Security {
    confined_by: Option<String>,
    qemu_owner: Option<(u32, u32)>,
}

fn read_security(capabilities: &str) -> Result<Security> {
    let document = parse_xml(capabilities)?;
    let models = child(document.root_element(), "host").into_iter().flat_map(|host| children(host, "secmodel"));
    let mut names = models.filter_map(|secmodel| child(secmodel, "model")?.text());
    let confined_by = names.find(|model| confines(model)).map(str::to_owned);
    let security = Security { confined_by, qemu_owner: base_owner(capabilities)? };
    Ok(security)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn security_module_and_qemu_owner_are_read_from_capabilities() {
        let capabilities = |model: &str| {
            format!(
                "<capabilities><host><secmodel><model>{model}</model><doi>0</doi></secmodel><secmodel>\
                 <model>dac</model>\
                 <doi>0</doi><baselabel type='kvm'>+64055:+109</baselabel></secmodel></host></capabilities>"
            )
        };
        let read = |model: &str| read_security(&capabilities(model)).unwrap();
        let qemu_owner = Some((64055, 109));
        assert_eq!(read("apparmor"), Security { confined_by: Some("apparmor".into()), qemu_owner });
        assert_eq!(read("none"), Security { confined_by: None, qemu_owner });
        assert_eq!(read_security("<capabilities/>").unwrap(), Security::default());
    }
}
