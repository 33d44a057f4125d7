//! Transient machines that end with this process: libvirt destroys them when the connection is lost, and keeps no
//! definition.

use std::io::Write;
use std::time::Duration;

use virt::connect::Connect;
use virt::domain::Domain;
use virt::stream::Stream;

use crate::capture::connection::Hypervisor;
use crate::capture::error::{LibvirtErrorKind, Result};
use crate::capture::ffi::RebootCounter;
use crate::capture::link::embedded_root;
use crate::capture::machine::{Machine, MachineState};
use crate::capture::offline::qemu_user::base_owner;
use crate::capture::runtime::our_owner;

/// The maximum size of a screenshot.
const LARGEST_SCREENSHOT_BYTES: usize = 32 << 20;

/// The time limit for a screenshot.
const SCREENSHOT_LIMIT: Duration = Duration::from_secs(20);

/// A machine that was started temporarily. Dropping this ends it.
#[derive(Debug)]
pub(crate) struct TransientMachine {
    machine: Machine,
    reboots: Option<RebootCounter>,
}

/// A screenshot of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Screenshot {
    /// `image/png`; older versions of QEMU only support `image/x-portable-pixmap`.
    pub(crate) mime_type: String,
    /// The content of the image file.
    pub(crate) bytes: Vec<u8>,
}

impl Hypervisor {
    /// Creates and starts a machine from a definition. Its guest waits for [`TransientMachine::run`].
    pub(crate) fn start_transient(&self, xml: &str) -> Result<TransientMachine> {
        let xml = xml.to_owned();
        // The embedded driver does not support this flag. There, the next command ends the machines of a killed
        // process.
        let ends_with_us = match embedded_root(self.uri()) {
            None => virt_sys::VIR_DOMAIN_START_AUTODESTROY,
            Some(_) => virt_sys::VIR_DOMAIN_NONE,
        };
        let flags = virt_sys::VIR_DOMAIN_START_PAUSED | ends_with_us;
        let create = move |connect: &Connect| connect.create_domain_xml(&xml, flags);
        let domain = self.link.call(|| "start the machine".to_owned(), create)?;
        let mut started = TransientMachine { machine: Machine::new(domain, &self.link)?, reboots: None };
        let watch = |domain: &Domain| RebootCounter::start(domain);
        started.reboots = Some(started.machine.call(|| format!("watch {}", started.machine.name()), watch)?);
        Ok(started)
    }

    /// Ends a machine that another process left. Returns false if there is none.
    pub(crate) fn end_abandoned(&self, uuid: &str) -> Result<bool> {
        let wanted = uuid.to_owned();
        let find = move |connect: &Connect| connect.lookup_domain_by_uuid_string(&wanted);
        match self.link.call(|| format!("look up {uuid}"), find) {
            Ok(domain) => destroy(&Machine::new(domain, &self.link)?).map(|()| true),
            Err(error) if error.meaning() == LibvirtErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Returns the default user and group of QEMU on this host.
    pub(crate) fn qemu_owner(&self) -> Result<(u32, u32)> {
        if our_owner().0 != 0 {
            return Ok(our_owner());
        }
        let capabilities = self.link.call(|| "query the capabilities of the host".to_owned(), Connect::capabilities)?;
        Ok(base_owner(&capabilities)?.unwrap_or_else(our_owner))
    }
}

impl TransientMachine {
    /// Lets the guest run.
    pub(crate) fn run(&self) -> Result<()> {
        self.machine.resume()
    }

    /// The state of the machine. It is off if it no longer exists.
    pub(crate) fn state(&self) -> Result<MachineState> {
        match self.machine.state() {
            Err(error) if error.meaning() == LibvirtErrorKind::NotFound => Ok(MachineState::Off),
            state => state,
        }
    }

    /// The number of times that its guest restarted.
    pub(crate) fn reboots(&self) -> u32 {
        self.reboots.as_ref().map_or(0, RebootCounter::count)
    }

    /// The sum of the bytes read from and written to its disks.
    pub(crate) fn moved_bytes(&self, disks: &[String]) -> Result<u64> {
        let disks = disks.to_owned();
        let ask = move |domain: &Domain| {
            let mut moved = 0u64;
            for disk in &disks {
                let stats = domain.block_stats(disk)?;
                moved =
                    moved.saturating_add(stats.rd_bytes.max(0).unsigned_abs() + stats.wr_bytes.max(0).unsigned_abs());
            }
            Ok(moved)
        };
        self.machine.call(|| format!("read the statistics of {}", self.machine.name()), ask)
    }

    /// Takes a screenshot.
    pub(crate) fn screenshot(&self) -> Result<Screenshot> {
        let take = |domain: &Domain| {
            let stream = Stream::new(&domain.connect()?, 0)?;
            let mime_type = domain.screenshot(&stream, 0, 0)?;
            let (mut bytes, mut buffer) = (Vec::new(), vec![0; 256 << 10]);
            loop {
                let count = stream.recv(&mut buffer)?.unsigned_abs();
                if count == 0 || bytes.len() > LARGEST_SCREENSHOT_BYTES {
                    break;
                }
                // Writing to memory does not fail.
                let _ = bytes.write_all(&buffer[..count]);
            }
            stream.finish()?;
            Ok(Screenshot { mime_type, bytes })
        };
        self.machine.call_within(SCREENSHOT_LIMIT, || format!("take a screenshot of {}", self.machine.name()), take)
    }

    /// Passes a command to the guest agent and returns its answer.
    pub(crate) fn ask_agent(&self, command: &str, limit: Duration) -> Result<String> {
        let seconds = i32::try_from(limit.as_secs().max(1)).unwrap_or(i32::MAX);
        let command = command.to_owned();
        let ask = move |domain: &Domain| domain.qemu_agent_command(&command, seconds, 0);
        let patience = limit.saturating_add(self.machine.limits().call);
        self.machine.call_within(patience, || format!("ask the guest agent of {}", self.machine.name()), ask)
    }
}

fn destroy(machine: &Machine) -> Result<()> {
    let end = |domain: &Domain| domain.destroy();
    match machine.call_regardless(machine.limits().call, || format!("end {}", machine.name()), end) {
        // The machine has already ended.
        Err(error) if matches!(error.meaning(), LibvirtErrorKind::NotFound) => Ok(()),
        // A transient machine that is off disappears a moment later.
        Err(error) => match machine.is_running() {
            Ok(true) => Err(error),
            _ => Ok(()),
        },
        Ok(()) => Ok(()),
    }
}

impl Drop for TransientMachine {
    fn drop(&mut self) {
        if let Err(error) = destroy(&self.machine) {
            tracing::error!("{error}");
        }
        if let Some(reboots) = self.reboots.take() {
            // It would also end with the connection.
            let _ = self.machine.call_regardless(
                self.machine.limits().call,
                || "end the watch of a machine".to_owned(),
                move |_| reboots.end(),
            );
        }
    }
}
