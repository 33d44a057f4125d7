//! One domain of libvirt.

use std::fmt;

use virt::domain::Domain;
use virt::error::Error as VirtError;

use super::definition::Definition;
use super::error::{Error, LibvirtContext, Result};
use super::ffi;

/// A machine that libvirt knows. Cheap to clone; keeps its connection open.
#[derive(Clone)]
pub struct Machine {
    pub(super) domain: Domain,
    name: String,
    uuid: String,
    uri: String,
}

/// What a machine is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineState {
    /// Running (or blocked on a resource).
    Running,
    /// Paused, with libvirt's reason.
    Paused(PausedReason),
    /// Being shut down by its guest.
    ShuttingDown,
    /// Off.
    Off,
    /// Crashed; not running.
    Crashed,
    /// Suspended by its guest's power management; QEMU runs.
    Suspended,
    /// libvirt does not know.
    Unknown,
}

/// Why a machine is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PausedReason {
    /// Somebody paused it.
    User,
    /// A disk failed, or a file system was full.
    IoError,
    /// It was started from a saved state or a migration and waits to go on.
    Migration,
    /// It is just being started.
    StartingUp,
    /// A snapshot is being made.
    Snapshot,
    /// Anything else: libvirt's number.
    Other(i32),
}

/// Which of a machine's two definitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// As it runs now; the inactive one when it is off.
    Live,
    /// As it will start next time.
    Inactive,
}

/// Memory and processors of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineInfo {
    /// The most memory it may have.
    pub max_memory_bytes: u64,
    /// Virtual CPUs.
    pub vcpus: u32,
}

/// How large a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskInfo {
    /// What the guest sees.
    pub capacity_bytes: u64,
    /// What it takes up on the host.
    pub allocated_bytes: u64,
    /// How far its file or device reaches.
    pub physical_bytes: u64,
}

impl MachineState {
    fn from_numbers(state: i32, reason: i32) -> MachineState {
        match state {
            1 | 2 => MachineState::Running,
            3 => MachineState::Paused(PausedReason::from_number(reason)),
            4 => MachineState::ShuttingDown,
            5 => MachineState::Off,
            6 => MachineState::Crashed,
            7 => MachineState::Suspended,
            _ => MachineState::Unknown,
        }
    }

    /// The word for it: `running`, `paused`, `off` …
    pub fn as_str(&self) -> &'static str {
        match self {
            MachineState::Running => "running",
            MachineState::Paused(_) => "paused",
            MachineState::ShuttingDown => "in shutdown",
            MachineState::Off => "shut off",
            MachineState::Crashed => "crashed",
            MachineState::Suspended => "pmsuspended",
            MachineState::Unknown => "no state",
        }
    }
}

impl PausedReason {
    fn from_number(reason: i32) -> PausedReason {
        match reason {
            1 => PausedReason::User,
            2 => PausedReason::Migration,
            5 => PausedReason::IoError,
            9 => PausedReason::Snapshot,
            11 => PausedReason::StartingUp,
            other => PausedReason::Other(other),
        }
    }
}

impl fmt::Display for MachineState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Machine {
    pub(super) fn new(domain: Domain, uri: &str) -> Result<Machine> {
        let context = || "look at a machine".to_owned();
        let name = domain.name().context(context)?;
        let uuid = domain.uuid_string().context(context)?;
        Ok(Machine { domain, name, uuid, uri: uri.to_owned() })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its UUID.
    pub fn uuid(&self) -> &str {
        &self.uuid
    }

    /// The URI of the connection that it was found through.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// Whether this is its name or UUID.
    pub fn is_called(&self, name_or_uuid: &str) -> bool {
        self.name == name_or_uuid || self.uuid.eq_ignore_ascii_case(name_or_uuid)
    }

    /// libvirt's number of the running machine; none when it is off.
    pub fn id(&self) -> Option<u32> {
        self.domain.id()
    }

    /// Whether QEMU runs for it, paused or not.
    pub fn is_running(&self) -> Result<bool> {
        self.domain.is_active().context(|| format!("ask whether {} runs", self.name))
    }

    /// What it is doing.
    pub fn state(&self) -> Result<MachineState> {
        let (state, reason) = ffi::state(&self.domain).context(|| format!("ask for the state of {}", self.name))?;
        Ok(MachineState::from_numbers(state, reason))
    }

    /// libvirt's number for why it is off, or for why it is in whatever state it is in.
    pub(super) fn off_reason(&self) -> Result<i32> {
        let state = ffi::state(&self.domain).context(|| format!("ask for the state of {}", self.name))?;
        Ok(state.1)
    }

    /// Whether it has a definition that outlives its run.
    pub fn is_persistent(&self) -> Result<bool> {
        self.domain.is_persistent().context(|| format!("ask whether {} is persistent", self.name))
    }

    /// Whether it starts with the host; false for a transient machine.
    pub fn autostart(&self) -> Result<bool> {
        self.domain.autostart().context(|| format!("ask whether {} starts with the host", self.name))
    }

    /// Makes it start with the host, or not.
    pub fn set_autostart(&self, autostart: bool) -> Result<()> {
        self.domain.set_autostart(autostart).context(|| format!("set the autostart of {}", self.name))
    }

    /// Whether its memory is saved on disk: its next start continues from there.
    pub fn has_saved_memory(&self) -> Result<bool> {
        self.domain.has_managed_save(0).context(|| format!("look for saved memory of {}", self.name))
    }

    /// Removes its saved memory: its next start boots.
    pub fn discard_saved_memory(&self) -> Result<()> {
        self.domain.managed_save_remove(0).context(|| format!("remove the saved memory of {}", self.name))
    }

    /// The names of its snapshots, internal and external.
    pub fn snapshots(&self) -> Result<Vec<String>> {
        let context = || format!("list the snapshots of {}", self.name);
        let snapshots = self.domain.list_all_snapshots(0).context(context)?;
        snapshots.iter().map(|snapshot| snapshot.name().context(context)).collect()
    }

    /// Memory and processors.
    pub fn info(&self) -> Result<MachineInfo> {
        let (max_memory_kib, vcpus) =
            ffi::info(&self.domain).context(|| format!("ask for the size of {}", self.name))?;
        Ok(MachineInfo { max_memory_bytes: max_memory_kib.saturating_mul(1024), vcpus })
    }

    /// Its definition as XML. With `secure`, passwords are in it where the connection permits that, else they are left out.
    pub fn definition_xml(&self, which: Which, secure: bool) -> Result<String> {
        let base = match which {
            Which::Live => 0,
            Which::Inactive => virt_sys::VIR_DOMAIN_XML_INACTIVE,
        };
        if secure {
            match self.domain.xml_desc(base | virt_sys::VIR_DOMAIN_XML_SECURE) {
                Ok(xml) => return Ok(xml),
                Err(error) => tracing::debug!("the definition of {} without its secrets: {error}", self.name),
            }
        }
        self.domain.xml_desc(base).context(|| format!("read the definition of {}", self.name))
    }

    /// Its definition, read.
    pub fn definition(&self, which: Which) -> Result<Definition> {
        Ok(Definition::parse(&self.definition_xml(which, false)?)?)
    }

    /// How large one of its disks is; an error when the file is missing or libvirt cannot tell.
    pub fn disk_info(&self, target: &str) -> Result<DiskInfo> {
        let (capacity_bytes, allocated_bytes, physical_bytes) = ffi::block_info(&self.domain, target)
            .context(|| format!("ask for the size of {}'s disk {target}", self.name))?;
        Ok(DiskInfo { capacity_bytes, allocated_bytes, physical_bytes })
    }

    /// Starts it.
    pub fn start(&self) -> Result<()> {
        self.domain.create().context(|| format!("start {}", self.name))
    }

    /// Starts it without letting it run: a machine that needs no operating system.
    pub fn start_paused(&self) -> Result<()> {
        self.domain
            .create_with_flags(virt_sys::VIR_DOMAIN_START_PAUSED)
            .map(|_| ())
            .context(|| format!("start {}", self.name))
    }

    /// Lets it go on.
    pub fn resume(&self) -> Result<()> {
        self.domain.resume().context(|| format!("resume {}", self.name))
    }

    /// Forgets its definition, with what libvirt keeps beside it (checkpoints' and snapshots' metadata, firmware variables only when
    /// `nvram` says so). Disks stay.
    pub fn undefine(&self, nvram: bool) -> Result<()> {
        let nvram_flag =
            if nvram { virt_sys::VIR_DOMAIN_UNDEFINE_NVRAM } else { virt_sys::VIR_DOMAIN_UNDEFINE_KEEP_NVRAM };
        self.domain
            .undefine_flags(
                nvram_flag
                    | virt_sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
                    | virt_sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA,
            )
            .context(|| format!("undefine {}", self.name))
    }

    pub(super) fn error(&self, action: &str, error: &VirtError) -> Error {
        Error::libvirt(format!("{action} {}", self.name), error)
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("name", &self.name)
            .field("uuid", &self.uuid)
            .field("uri", &self.uri)
            .finish_non_exhaustive()
    }
}
