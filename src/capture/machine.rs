//! A domain of libvirt.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::{Error as VirtError, ErrorNumber};
use zeroize::Zeroizing;

use crate::capture::domain_xml::definition::Definition;
use crate::capture::domain_xml::source::SecretRef;
use crate::capture::error::{Error, LibvirtContext, LibvirtErrorKind, Result};
use crate::capture::ffi;
use crate::capture::limits::CallLimits;
use crate::capture::link::SharedConnection;

/// A machine that libvirt knows. Cheap to clone. Keeps its connection open.
#[derive(Clone)]
pub struct Machine {
    domain: Domain,
    name: String,
    uuid: String,
    link: Arc<SharedConnection>,
    /// Opened when another machine blocks the shared connection.
    own: Arc<Mutex<Option<(Domain, SharedConnection)>>>,
}

/// The time limit for calls that are made even though the machine does not answer.
const SILENT_LIMIT: Duration = Duration::from_secs(2);

/// The state of a machine.
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
    /// Suspended by its guest's power management. QEMU runs.
    Suspended,
    /// Unknown to libvirt.
    Unknown,
}

/// Why a machine is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PausedReason {
    /// Paused by a user.
    User,
    /// A disk failed, or a file system was full.
    IoError,
    /// Started from a saved state or a migration, and not resumed yet.
    Migration,
    /// It is being started.
    StartingUp,
    /// A snapshot is being created.
    Snapshot,
    /// Any other reason, as libvirt's number.
    Other(i32),
}

/// One of a machine's two definitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The current one. If the machine is off, the same as `Inactive`.
    Live,
    /// The one that applies at the next start.
    Inactive,
}

/// The memory and processors of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineInfo {
    /// The maximum memory.
    pub max_memory_bytes: u64,
    pub(crate) vcpus: u32,
}

/// The sizes of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskInfo {
    /// The size of the virtual disk.
    pub capacity_bytes: u64,
    /// The space used on the host.
    pub(crate) allocated_bytes: u64,
    /// The size of the file or device.
    pub(crate) physical_bytes: u64,
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

    /// The word for the state: `running`, `paused`, `off` …
    pub(crate) fn as_str(&self) -> &'static str {
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
    pub(super) fn new(domain: Domain, link: &Arc<SharedConnection>) -> Result<Machine> {
        let context = || "inspect a machine".to_owned();
        let name = domain.name().context(context)?;
        let uuid = domain.uuid_string().context(context)?;
        Ok(Machine { domain, name, uuid, link: Arc::clone(link), own: Arc::default() })
    }

    /// The time limits for libvirt calls.
    pub(super) fn limits(&self) -> &CallLimits {
        &self.link.limits
    }

    /// Makes a libvirt call about this machine. Fails at once while an earlier call that timed out is pending.
    pub(super) fn call<T: Send + 'static>(
        &self,
        action: impl FnOnce() -> String,
        work: impl FnOnce(&Domain) -> std::result::Result<T, VirtError> + Send + 'static,
    ) -> Result<T> {
        self.call_within(self.limits().call, action, work)
    }

    /// The same with another time limit.
    pub(super) fn call_within<T: Send + 'static>(
        &self,
        limit: Duration,
        action: impl FnOnce() -> String,
        work: impl FnOnce(&Domain) -> std::result::Result<T, VirtError> + Send + 'static,
    ) -> Result<T> {
        if self.limits().is_silent(&self.uuid) {
            return Err(Error::Silent { action: action(), machine: self.name.clone() });
        }
        self.call_regardless(limit, action, work)
    }

    /// The same even while another call is pending, for calls that libvirt answers without QEMU and for calls that must
    /// be attempted.
    pub(super) fn call_regardless<T: Send + 'static>(
        &self,
        limit: Duration,
        action: impl FnOnce() -> String,
        work: impl FnOnce(&Domain) -> std::result::Result<T, VirtError> + Send + 'static,
    ) -> Result<T> {
        let (action, domain) = (action(), self.domain()?);
        let limit = if self.limits().is_silent(&self.uuid) { limit.min(SILENT_LIMIT) } else { limit };
        match self.limits().run_for(&self.uuid, limit, || action.clone(), move || work(&domain)) {
            Ok(result) => result.context(|| action),
            Err(error) => {
                self.link.note_blocked();
                Err(error)
            }
        }
    }

    /// Returns the machine on a connection that no other machine blocks.
    fn domain(&self) -> Result<Domain> {
        if !self.link.is_blocked() {
            return Ok(self.domain.clone());
        }
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((domain, _)) = &*own {
            return Ok(domain.clone());
        }
        let (link, uuid) = (SharedConnection::open(Some(&self.link.uri), self.limits())?, self.uuid.clone());
        let domain =
            link.call(|| format!("look up {}", self.name), move |connect| connect.lookup_domain_by_uuid_string(&uuid))?;
        Ok(own.insert((domain, link)).0.clone())
    }

    /// The machine's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The machine's UUID.
    pub fn uuid(&self) -> &str {
        &self.uuid
    }

    /// The URI of the connection through which the machine was found.
    pub fn uri(&self) -> &str {
        &self.link.uri
    }

    /// Whether this is the machine's name or UUID.
    pub(crate) fn is_called(&self, name_or_uuid: &str) -> bool {
        self.name == name_or_uuid || self.uuid.eq_ignore_ascii_case(name_or_uuid)
    }

    /// libvirt's id of the running machine; `None` if it is off.
    pub(crate) fn id(&self) -> Option<u32> {
        self.domain.id()
    }

    /// The process id of the machine's QEMU, found by its command line. `None` if it is off or not on this host.
    pub(super) fn qemu_pid(&self) -> Option<u32> {
        let is_its = |pid: &u32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut arguments = line.split(|&byte| byte == 0);
            arguments.any(|argument| argument == b"-uuid") && arguments.next() == Some(self.uuid.as_bytes())
        };
        let processes = std::fs::read_dir("/proc").ok()?.flatten();
        processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(is_its)
    }

    /// Whether QEMU runs for the machine, paused or not.
    pub fn is_running(&self) -> Result<bool> {
        let action = || format!("check whether {} runs", self.name);
        self.call_regardless(self.limits().call, action, |domain| domain.is_active())
    }

    /// The state of the machine.
    pub fn state(&self) -> Result<MachineState> {
        let (state, reason) = self.state_numbers()?;
        Ok(MachineState::from_numbers(state, reason))
    }

    /// libvirt's number for the reason of the current state, such as why the machine is off.
    pub(super) fn off_reason(&self) -> Result<i32> {
        Ok(self.state_numbers()?.1)
    }

    /// Whether the stopped machine was saved while it ran (`virsh save`), so that its guest did not shut down. libvirt
    /// does not reveal the file, and forgets all of this when it restarts.
    pub(super) fn was_saved(&self) -> bool {
        /// `VIR_DOMAIN_SHUTOFF_SAVED`
        const REASON_SAVED: i32 = 5;
        self.off_reason().is_ok_and(|reason| reason == REASON_SAVED)
    }

    fn state_numbers(&self) -> Result<(i32, i32)> {
        self.call_regardless(self.limits().call, || format!("read the state of {}", self.name), ffi::state)
    }

    /// Whether the machine is persistent, that is, has a definition that outlives its run.
    pub(crate) fn is_persistent(&self) -> Result<bool> {
        self.call(|| format!("check whether {} is persistent", self.name), |domain| domain.is_persistent())
    }

    /// Whether the machine starts with the host. False for a transient machine.
    pub(crate) fn autostart(&self) -> Result<bool> {
        self.call(|| format!("check whether {} starts with the host", self.name), |domain| domain.autostart())
    }

    /// Sets whether the machine starts with the host.
    pub(crate) fn set_autostart(&self, autostart: bool) -> Result<()> {
        let set = move |domain: &Domain| domain.set_autostart(autostart).map(drop);
        self.call(|| format!("set the autostart of {}", self.name), set)
    }

    /// Whether the machine has a managed save image, from which its next start resumes.
    pub(crate) fn has_saved_memory(&self) -> Result<bool> {
        self.call(|| format!("check for saved memory of {}", self.name), |domain| domain.has_managed_save(0))
    }

    /// Removes the managed save image, so that the next start boots.
    pub(crate) fn discard_saved_memory(&self) -> Result<()> {
        let remove = |domain: &Domain| domain.managed_save_remove(0).map(drop);
        self.call(|| format!("remove the saved memory of {}", self.name), remove)
    }

    /// The names of the machine's snapshots, internal and external.
    pub(crate) fn snapshots(&self) -> Result<Vec<String>> {
        let names = |domain: &Domain| domain.list_all_snapshots(0)?.iter().map(|snapshot| snapshot.name()).collect();
        self.call(|| format!("list the snapshots of {}", self.name), names)
    }

    /// The names of the machine's internal snapshots.
    pub(crate) fn internal_snapshots(&self) -> Result<Vec<String>> {
        let flags = virt_sys::VIR_DOMAIN_SNAPSHOT_LIST_INTERNAL;
        let names =
            move |domain: &Domain| domain.list_all_snapshots(flags)?.iter().map(|snapshot| snapshot.name()).collect();
        self.call(|| format!("list the snapshots of {}", self.name), names)
    }

    /// The memory and processors of the machine.
    pub fn info(&self) -> Result<MachineInfo> {
        let (max_memory_kib, vcpus) = self.call(|| format!("read the size of {}", self.name), ffi::info)?;
        Ok(MachineInfo { max_memory_bytes: max_memory_kib.saturating_mul(1024), vcpus })
    }

    /// The definition as XML. With `secure`, it includes passwords if the connection permits that.
    pub fn definition_xml(&self, which: Which, secure: bool) -> Result<String> {
        let base = match which {
            Which::Live => 0,
            Which::Inactive => virt_sys::VIR_DOMAIN_XML_INACTIVE,
        };
        let action = || format!("read the definition of {}", self.name);
        if secure {
            match self.call(action, move |domain| domain.xml_desc(base | virt_sys::VIR_DOMAIN_XML_SECURE)) {
                Err(error) if error.is_no_answer() => return Err(error),
                Err(error) => tracing::debug!("the definition of {} without its secrets: {error}", self.name),
                found => return found,
            }
        }
        self.call(action, move |domain| domain.xml_desc(base))
    }

    /// The parsed definition.
    pub fn definition(&self, which: Which) -> Result<Definition> {
        Ok(Definition::parse(&self.definition_xml(which, false)?)?)
    }

    /// The sizes of one of the disks. Fails if the file is missing or libvirt cannot tell.
    pub fn disk_info(&self, target: &str) -> Result<DiskInfo> {
        let (action, disk) = (|| format!("read the size of {}'s disk {target}", self.name), target.to_owned());
        let (capacity_bytes, allocated_bytes, physical_bytes) =
            self.call(action, move |domain| ffi::block_info(domain, &disk))?;
        Ok(DiskInfo { capacity_bytes, allocated_bytes, physical_bytes })
    }

    /// The value of a secret.
    pub(super) fn secret_value(&self, secret: &SecretRef) -> Result<Zeroizing<Vec<u8>>> {
        let secret = secret.clone();
        self.call(|| "read a secret".to_owned(), move |domain| ffi::secret_value(&domain.connect()?, &secret))
    }

    pub(crate) fn start(&self) -> Result<()> {
        self.call(|| format!("start {}", self.name), |domain| domain.create())
    }

    /// Starts the machine paused. Useful for machines without an operating system.
    pub fn start_paused(&self) -> Result<()> {
        let paused = |domain: &Domain| domain.create_with_flags(virt_sys::VIR_DOMAIN_START_PAUSED).map(drop);
        self.call(|| format!("start {}", self.name), paused)
    }

    /// Pauses the machine. QEMU then writes its cached metadata of the images.
    pub(crate) fn suspend(&self) -> Result<()> {
        self.call(|| format!("pause {}", self.name), |domain| domain.suspend())
    }

    /// Resumes the machine.
    pub(crate) fn resume(&self) -> Result<()> {
        self.call(|| format!("resume {}", self.name), |domain| domain.resume())
    }

    /// Resumes the machine after an I/O error. It is not an error if it was resumed already or is paused again.
    pub(crate) fn resume_stopped(&self) -> Result<()> {
        match self.resume() {
            Err(error) if error.meaning() == LibvirtErrorKind::InvalidState => Ok(()),
            resumed => resumed,
        }
    }

    /// Replaces the definition, which must be of the same machine. A running machine is not affected.
    pub(crate) fn redefine(&self, xml: &str) -> Result<()> {
        let xml = xml.to_owned();
        let define = move |domain: &Domain| define(&domain.connect()?, &xml).map(drop);
        self.call(|| format!("change the definition of {}", self.name), define)
    }

    /// Removes the definition and what libvirt keeps with it: the metadata of checkpoints and snapshots, and, with
    /// `nvram`, the firmware variables. Disks stay.
    pub fn undefine(&self, nvram: bool) -> Result<()> {
        let nvram_flag =
            if nvram { virt_sys::VIR_DOMAIN_UNDEFINE_NVRAM } else { virt_sys::VIR_DOMAIN_UNDEFINE_KEEP_NVRAM };
        let flags = nvram_flag
            | virt_sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
            | virt_sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA;
        self.call(|| format!("undefine {}", self.name), move |domain| domain.undefine_flags(flags))
    }
}

/// Defines a machine. If only the schema check fails, the definition is passed to libvirt without it.
pub(super) fn define(connect: &Connect, xml: &str) -> std::result::Result<Domain, VirtError> {
    match connect.define_domain_xml_flags(xml, virt_sys::VIR_DOMAIN_DEFINE_VALIDATE) {
        // The machine ran with this definition before, so libvirt itself decides.
        Err(error) if error.code().is(ErrorNumber::XmlInvalidSchema) => {
            tracing::debug!("libvirt's schema does not know this definition: {error}");
            connect.define_domain_xml_flags(xml, 0)
        }
        other => other,
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("name", &self.name)
            .field("uuid", &self.uuid)
            .field("uri", &self.link.uri)
            .finish_non_exhaustive()
    }
}
