//! Drills: boot a point in isolation and watch how far it gets.
//!
//! ```text
//!  point ─ served over NBD, writes discarded ─────────────┐
//!   └ definition ─ isolated, own name, UUID, MACs ─→ transient machine ─ started ─ console ─ agent ─ check
//!                                                         └ ends with this process and leaves nothing behind
//! ```
//!
//! | file | content |
//! | --- | --- |
//! | `definition.rs` | the isolated machine and its small files |
//! | `result.rs` | the goal of a drill, and its result |
//! | `watch.rs` | the rungs, one after the other |
//! | `verdict.rs` | the interpretation of the observations (pure) |
//! | `console.rs` | the console output of the guest |
//! | `guest.rs` | queries to the guest agent |
//! | `leftovers.rs` | the leftovers of killed drills |

mod console;
mod definition;
mod guest;
pub(crate) mod leftovers;
mod result;
mod verdict;
mod watch;

use super::points::OpenPoint;
use super::serve::socket::PrivateSocket;
use super::serve::{ServeRequest, ServedPoint};
use super::{Error, Result, Stop};
use crate::capture::process::ServerProcess;
use crate::capture::{self, Definition, Hypervisor, RuntimeDirs};
use crate::failpoint::{self, Failpoint};
use crate::record::Damage;
use crate::repo::{Index, Repository};
use console::ConsoleText;
use definition::{CONSOLE_SOCKET, DrillSource, FIRMWARE_SOCKET, NBD_SOCKET, Prepared};
use leftovers::DrillState;
pub(crate) use result::{DrillRequest, DrillResult};
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;
pub(crate) use verdict::Rung;

/// The default time limits of a drill, with and without hardware virtualization.
const LIMIT: Duration = Duration::from_secs(10 * 60);
const EMULATED_LIMIT: Duration = Duration::from_secs(40 * 60);

/// The resources of a drill.
pub(crate) struct Drill<'a> {
    pub(crate) hypervisor: &'a Hypervisor,
    pub(crate) runtime: &'a RuntimeDirs,
    pub(crate) repo: &'a Repository,
    pub(crate) index: Arc<Index>,
    pub(crate) stop: &'a Stop,
}

/// Removes the leftovers of killed drills of this connection.
pub(crate) fn clear_abandoned(hypervisor: &Hypervisor, runtime: &RuntimeDirs) -> Result<()> {
    for state in DrillState::abandoned(runtime)?.iter().filter(|state| state.connect == hypervisor.uri()) {
        tracing::warn!(machine = state.machine, "removing the leftovers of a killed drill: {}", state.drill_machine());
        state.clear(hypervisor, runtime)?;
    }
    Ok(())
}

impl Drill<'_> {
    /// Boots a point and watches it until it reaches the goal, fails, or runs out of time. Nothing of it remains.
    pub(crate) fn run(&self, point: &OpenPoint, request: &DrillRequest) -> Result<DrillResult> {
        let (xml, _) = point.definition_of_disks(self.repo, &self.index)?;
        let definition = Definition::parse(&xml).map_err(capture::Error::from)?;
        let id = format!("{:08x}", rand::random::<u32>());
        let folder = self.runtime.socket_folder().join(format!("drill-{id}"));
        let mut state = DrillState {
            id,
            machine: point.manifest.machine.clone(),
            connect: self.hypervisor.uri().to_owned(),
            uuid: uuid::Uuid::new_v4().to_string(),
            paths: vec![folder.clone()],
            process: ServerProcess::this(),
        };
        let name = state.drill_machine();
        state.paths.extend(definition::outside_paths(self.hypervisor, &definition, &name, &state.uuid));
        let remains = Remains { state, runtime: self.runtime };
        remains.state.save(self.runtime)?;
        failpoint::hit(Failpoint::DrillNoted);
        fs::DirBuilder::new().mode(0o711).create(&folder).map_err(Error::io("create", &folder))?;
        let source = DrillSource {
            repo: self.repo,
            index: &self.index,
            point,
            hypervisor: self.hypervisor,
            folder: &folder,
            name: &name,
            uuid: &remains.state.uuid,
            memory_bytes: request.memory_bytes,
            vcpus: request.vcpus,
        };
        let prepared = source.prepare()?;
        failpoint::hit(Failpoint::DrillPrepared);
        let limit = request.limit.unwrap_or(if prepared.is_accelerated { LIMIT } else { EMULATED_LIMIT });
        if !prepared.is_accelerated {
            tracing::info!(machine = remains.state.machine, "the drill runs without KVM: it may take {limit:?}");
        }
        let result = self.boot(point, request, &prepared, &folder, limit);
        failpoint::hit(Failpoint::DrillEnded);
        result
    }

    fn boot(
        &self,
        point: &OpenPoint,
        request: &DrillRequest,
        prepared: &Prepared,
        folder: &Path,
        limit: Duration,
    ) -> Result<DrillResult> {
        let disks: Vec<_> = prepared.disks.iter().collect();
        let overlays = Some(self.runtime.scratch_folder());
        let over = Stop::default();
        let served = ServedPoint::new(
            self.repo,
            Arc::clone(&self.index),
            point,
            ServeRequest { disks: &disks, overlays },
            &over,
        )?;
        let socket = |name: &str| PrivateSocket::bind(&folder.join(name), Some(prepared.owner));
        let (nbd, console_socket, firmware_socket) =
            (socket(NBD_SOCKET)?, socket(CONSOLE_SOCKET)?, socket(FIRMWARE_SOCKET)?);
        let (console, firmware, damage) =
            (ConsoleText::default(), ConsoleText::default(), Mutex::<Vec<Damage>>::default());
        let is_over = &AtomicBool::new(false);
        thread::scope(|threads| {
            // If a thread is refused, those already started are ended.
            let ended = EndOfDrill { is_over, over: &over };
            let server = thread::Builder::new().spawn_scoped(threads, || {
                served.run(&nbd, |met, _| {
                    damage.lock().unwrap_or_else(PoisonError::into_inner).extend(met);
                    !is_over.load(Ordering::Relaxed)
                })
            });
            let server = server.map_err(Error::NoThread)?;
            let mut readers = Vec::new();
            for (text, socket) in [(&console, &console_socket), (&firmware, &firmware_socket)] {
                let collect = move || text.collect(socket, is_over);
                let reader = thread::Builder::new().spawn_scoped(threads, collect);
                readers.push((socket, reader.map_err(Error::NoThread)?));
            }
            let watch = watch::DrillWatch {
                hypervisor: self.hypervisor,
                request,
                prepared,
                limit,
                console: &console,
                firmware: &firmware,
                damage: &damage,
                stop: self.stop,
            };
            let result = watch.run(|reached| self.monitor_rung(point, reached));
            drop(ended);
            let served = server.join().unwrap_or(Ok(()));
            for (socket, reader) in readers {
                if let Ok(Err(error)) = reader.join() {
                    return Err(Error::io("read", socket.path())(error));
                }
            }
            // The first error is the cause; an error of the server is only a consequence.
            let result = result?;
            served.map(|()| result)
        })
    }

    fn monitor_rung(&self, point: &OpenPoint, rung: Rung) {
        tracing::info!(machine = point.manifest.machine, "the drill reached '{}'", rung.word());
    }
}

/// Ends the threads of a drill when dropped.
struct EndOfDrill<'a> {
    is_over: &'a AtomicBool,
    over: &'a Stop,
}

impl Drop for EndOfDrill<'_> {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.over.raise();
    }
}

/// The resources of a drill. Dropping this removes them.
struct Remains<'a> {
    state: DrillState,
    runtime: &'a RuntimeDirs,
}

impl Drop for Remains<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.state.remove_files(self.runtime) {
            tracing::warn!("{error}");
        }
    }
}

/// Saves the console log and the screenshot of a drill, replacing those of this machine's previous drill. Returns their
/// paths.
pub(crate) fn keep(folder: &Path, machine_uuid: &str, result: &DrillResult) -> Result<(PathBuf, Option<PathBuf>)> {
    let uuid = uuid::Uuid::parse_str(machine_uuid).unwrap_or_default();
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(Error::io("create", folder))?;
    let write = |extension: &str, bytes: &[u8]| {
        let path = folder.join(format!("{uuid}.{extension}"));
        crate::atomic_file::write(&path, bytes, 0o600).map_err(Error::io("write", &path))?;
        Ok::<_, Error>(path)
    };
    let log = write("log", &result.console)?;
    let picture = match &result.screenshot {
        None => None,
        Some(picture) => {
            let extension = if picture.mime_type == "image/png" { "png" } else { "ppm" };
            Some(write(extension, &picture.bytes)?)
        }
    };
    Ok((log, picture))
}
