//! Machines and disks as records.

use super::Result;
use crate::capture::domain_xml::definition::Host;
use crate::capture::machine::Which;
use crate::capture::state::ReadMode;
use crate::capture::{self, CaptureState, Definition, Hypervisor, Machine};
use crate::record;

/// The name of this host, as restic and the records have it.
pub(crate) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

pub(crate) fn machine(hypervisor: &Hypervisor, machine: &Machine) -> Result<record::Machine> {
    let definition = machine.definition(Which::Live)?;
    let info = machine.info()?;
    let agent = match (definition.has_agent_channel, definition.agent_connected) {
        (false, _) => "none",
        (true, false) => "disconnected",
        (true, true) => "connected",
    };
    Ok(record::Machine {
        connect: hypervisor.uri().to_owned(),
        machine: machine.name().to_owned(),
        uuid: machine.uuid().to_owned(),
        state: machine.state()?.as_str().to_owned(),
        persistent: machine.is_persistent()?,
        autostart: machine.autostart().ok(),
        memory_bytes: info.max_memory_bytes,
        vcpus: info.vcpus,
        disks: definition.disks.into_iter().map(|disk| disk.target).collect(),
        agent: agent.to_owned(),
        extra: Default::default(),
    })
}

/// Returns the records of a machine's disks, in the order of its definition.
pub(crate) fn disks(hypervisor: &Hypervisor, machine: &Machine) -> Result<Vec<record::Disk>> {
    let definition = machine.definition(Which::Live)?;
    let state = machine.state()?.as_str().to_owned();
    definition.disks.iter().map(|disk| one_disk(hypervisor, machine, &state, disk)).collect()
}

fn one_disk(
    hypervisor: &Hypervisor,
    machine: &Machine,
    state: &str,
    disk: &capture::DefinedDisk,
) -> Result<record::Disk> {
    // A missing image or a driver that does not report sizes leaves the sizes empty, but does not hide the disk.
    let info = match machine.disk_info(&disk.target) {
        Err(error) if error.is_no_answer() => return Err(error.into()),
        info => info.ok(),
    };
    let skip_reason = machine.skip_reason(disk);
    let path = machine.resolve(&disk.source).ok().and_then(|source| source.path().cloned());
    Ok(record::Disk {
        connect: hypervisor.uri().to_owned(),
        machine: machine.name().to_owned(),
        uuid: machine.uuid().to_owned(),
        state: state.to_owned(),
        disk: disk.target.clone(),
        source: source(&disk.source),
        path: path.map(|path| path.to_string_lossy().into_owned()),
        format: disk.format.clone().unwrap_or_else(|| "raw".into()),
        bus: disk.bus.clone(),
        capacity_bytes: info.as_ref().map(|info| info.capacity_bytes),
        allocated_bytes: info.as_ref().map(|info| info.allocated_bytes),
        included: skip_reason.is_none(),
        skip_reason,
        ..record::Disk::default()
    })
}

/// Returns the records of a capture's disks.
pub(crate) fn captured(state: &CaptureState) -> Result<Vec<record::Disk>> {
    let definition = Definition::parse(state.definition_of_disks()).map_err(capture::Error::from)?;
    let record = |disk: &capture::CapturedDisk| {
        let described = definition.disk(&disk.target);
        record::Disk {
            connect: state.connect.clone(),
            machine: state.machine.clone(),
            uuid: state.uuid.clone(),
            state: match state.method {
                capture::CaptureMethod::Job(_) => "running".into(),
                capture::CaptureMethod::Offline(_) | capture::CaptureMethod::Definition => {
                    capture::machine::MachineState::Off.as_str().to_owned()
                }
            },
            disk: disk.target.clone(),
            source: described.map_or(record::Source::Unknown, |disk| source(&disk.source)),
            path: disk.image.first().map(|image| image.path.clone()),
            format: disk.format.clone(),
            bus: described.and_then(|disk| disk.bus.clone()),
            capacity_bytes: Some(disk.capacity_bytes),
            included: true,
            capture: Some(state.id.clone()),
            capture_disks: Some(state.disks.len()),
            nbd: Some(disk.nbd_uri.clone()),
            captured_at: Some(state.captured_at),
            consistency: Some(state.consistency.as_str().to_owned()),
            checkpoint: state.checkpoint.clone(),
            parent: state.parent_point.clone(),
            read_mode: Some(read_mode(disk.read_mode).into()),
            read_mode_reason: disk.read_mode_reason.clone(),
            ..record::Disk::default()
        }
    };
    Ok(state.disks.iter().map(record).collect())
}

/// The word for a read mode in records.
pub(crate) fn read_mode(mode: ReadMode) -> &'static str {
    match mode {
        ReadMode::Changed => "changed",
        ReadMode::Full => "full",
    }
}

/// Converts a source to its form in records.
pub(crate) fn source(source: &capture::DiskSource) -> record::Source {
    let text = |path: &std::path::Path| path.to_string_lossy().into_owned();
    match source {
        capture::DiskSource::File { path } => record::Source::File { path: text(path) },
        capture::DiskSource::Block { path } => record::Source::Block { path: text(path) },
        capture::DiskSource::Dir { path } => record::Source::Dir { path: text(path) },
        capture::DiskSource::Network { protocol, name, hosts, .. } => record::Source::Network {
            protocol: protocol.clone(),
            name: name.clone().unwrap_or_default(),
            hosts: hosts.iter().map(host).collect(),
        },
        capture::DiskSource::Volume { pool, volume } => {
            record::Source::Volume { pool: pool.clone(), volume: volume.clone() }
        }
        capture::DiskSource::Nvme { address } => record::Source::Nvme { address: address.clone() },
        capture::DiskSource::Vhost { path } => record::Source::VhostUser { path: text(path) },
        capture::DiskSource::Empty => record::Source::None {},
        capture::DiskSource::Other { .. } => record::Source::Unknown,
    }
}

fn host(host: &Host) -> String {
    if let Some(socket) = &host.socket {
        return socket.to_string_lossy().into_owned();
    }
    let name = host.name.as_deref().unwrap_or("");
    match host.port {
        Some(port) if name.contains(':') => format!("[{name}]:{port}"),
        Some(port) => format!("{name}:{port}"),
        None => name.to_owned(),
    }
}
