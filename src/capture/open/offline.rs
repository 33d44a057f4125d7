//! Opens a capture of a stopped machine.
//!
//! ```text
//!  definition + headers → layers → block graph ─┬─ named in the definition ─► daemon that may read all ─► socket "nbd"
//!                                               └─ named only in headers ───► unprivileged daemon ─────► socket "side"
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use chrono::Local;
use serde_json::Value;
use zeroize::Zeroizing;

use super::plan::{
    CUT_OFF, DiskRequest, OpenRequest, format_of, identity_at, read_mode, targets_with_new_bitmap, wanted_disks,
    warn_of_cut_off,
};
use crate::capture::agent::Consistency;
use crate::capture::domain_xml::definition::{DefinedDisk, Definition};
use crate::capture::domain_xml::source::SecretRef;
use crate::capture::error::{Error, Result};
use crate::capture::ffi;
use crate::capture::holders::{self, Holder};
use crate::capture::images::{self, Bitmap};
use crate::capture::machine::{Machine, Which};
use crate::capture::offline::block_graph::{self, Found, Graph, LayerStorage};
use crate::capture::offline::image_lookup::HostImages;
use crate::capture::offline::offline_fingerprint::OfflineFingerprint;
use crate::capture::offline::qemu_user::{Privilege, QemuUser};
use crate::capture::offline::storage_daemon::{self, DaemonExport, DaemonRequest, Refused, SERVER_SOCKETS};
use crate::capture::own_changes;
use crate::capture::parts::copies;
use crate::capture::runtime::{self, RuntimeDirs};
use crate::capture::state::{CaptureFile, CaptureMethod, CaptureState, CapturedDisk, DiskServer, OfflineReader};
use crate::failpoint::{self, Failpoint};

/// Why a disk with an external data file is read in full.
const DATA_FILE_UNWATCHED: &str = "while the machine is off, other programs can write to its external data file";

/// Why a disk whose image is marked as corrupt is read in full.
const CORRUPT: &str = "the image is marked as corrupt";

/// A disk that will be served.
struct OffDisk {
    captured: CapturedDisk,
    layers: Vec<Found>,
    graph: Graph,
    keeps_bitmaps: bool,
}

/// Opens the disks of a stopped machine. `state` always describes what exists, even after an error.
pub(super) fn open_off(
    runtime: &RuntimeDirs,
    machine: &Machine,
    definition: &Definition,
    request: &OpenRequest,
    file: &CaptureFile,
    state: &mut CaptureState,
) -> Result<()> {
    if machine.has_saved_memory().unwrap_or(false) {
        return Err(Error::SavedMemory { machine: machine.name().to_owned() });
    }
    state.method = CaptureMethod::Offline(OfflineReader::default());
    state.consistency = match machine.was_saved() {
        false => Consistency::Offline,
        true => {
            tracing::warn!(
                "{} was saved while it was running ('virsh save'): its disks are as after a power failure, and what \
                 the guest had only in memory is not in the point",
                machine.name()
            );
            Consistency::Crash
        }
    };
    state.socket_folder = runtime.socket_folder().join(file.id());
    // The state is saved before the folder is created, because cleanup after a kill depends on it.
    file.save(state)?;
    let user = QemuUser::of(machine, definition, wanted_disks(definition, request).map(|(disk, _)| disk))?;
    runtime::make_daemon_folder(&state.socket_folder, user.owner)?;
    let images = HostImages { machine, user };
    let mut disks = Vec::new();
    for (at, (disk, wanted)) in wanted_disks(definition, request).enumerate() {
        let off = off_disk(runtime, &images, at, disk, wanted, &state.socket_folder)?;
        runtime::check_socket_path(&off.captured.socket)?;
        state.disks.push(CapturedDisk { has_new_bitmap: off.keeps_bitmaps, ..off.captured.clone() });
        disks.push(off);
    }
    if !request.moving {
        refuse_held_devices(machine, &disks)?;
    }
    start_chain(request, file, state)?;
    // This comes before anybody can read, and after our own bitmaps were added to the images.
    let before = (!request.moving).then(|| OfflineFingerprint::note(machine, state));
    let opening = Opening { machine, request, file, user, disks: &disks };
    opening.serve(state)?;
    failpoint::hit(Failpoint::Begun);
    state.captured_at = Local::now().fixed_offset();
    // The first server's image locks keep the machine from starting. It may have been started just before.
    if !request.moving && machine.is_running()? {
        return Err(Error::StartedMeanwhile { machine: machine.name().to_owned() });
    }
    state.definition_xml = machine.definition_xml(Which::Inactive, true)?;
    let fingerprint = before.map(|mut fingerprint| {
        fingerprint.note_opened(state, file.folder());
        fingerprint
    });
    if let CaptureMethod::Offline(reader) = &mut state.method {
        reader.fingerprint = fingerprint;
    }
    copies::copy_files(machine, definition, false, file, state);
    Ok(())
}

/// Refuses block devices that another program of QEMU writes to, such as a second machine with the same disk. For
/// files, image locks do this.
fn refuse_held_devices(machine: &Machine, disks: &[OffDisk]) -> Result<()> {
    let paths = disks.iter().flat_map(|disk| disk.layers.iter().flat_map(Found::paths));
    let mut holders = holders::writers_of_devices(paths);
    holders.retain(Holder::locks_files);
    if holders.is_empty() {
        return Ok(());
    }
    let message = "a block device is open for writing".to_owned();
    Err(Error::ImageHeld { machine: machine.name().to_owned(), holders, message })
}

/// The parameters of the daemons of one capture.
struct Opening<'a> {
    machine: &'a Machine,
    request: &'a OpenRequest,
    file: &'a CaptureFile,
    user: QemuUser,
    disks: &'a [OffDisk],
}

impl Opening<'_> {
    /// Starts the daemons, the unprivileged one first because the other reads from it.
    fn serve(&self, state: &mut CaptureState) -> Result<()> {
        for privilege in [Privilege::None, Privilege::ReadAll] {
            self.start(privilege, state)?;
        }
        for disk in state.disks.iter_mut().filter(|disk| disk.capacity_bytes == 0) {
            disk.capacity_bytes = images::size_of_export(&disk.nbd_uri)?;
        }
        Ok(())
    }

    fn start(&self, privilege: Privilege, state: &mut CaptureState) -> Result<()> {
        let is_side = privilege == Privilege::None;
        let (mut nodes, mut exports, mut secrets) = (Vec::new(), Vec::new(), Vec::new());
        for (disk, captured) in self.disks.iter().zip(&state.disks) {
            if disk.graph.is_unprivileged == is_side {
                nodes.extend(disk.graph.nodes.iter().cloned());
                exports.push(DaemonExport {
                    name: captured.export.clone(),
                    node: disk.graph.top.clone(),
                    bitmap: captured.parent_checkpoint.clone(),
                });
                secrets.extend(disk.graph.secrets.iter().map(|(id, secret)| (captured.target.as_str(), id, secret)));
            } else if is_side {
                for side in &disk.graph.sides {
                    nodes.push(side.node.clone());
                    exports.push(DaemonExport { name: side.name.clone(), node: side.name.clone(), bitmap: None });
                }
            }
        }
        if exports.is_empty() {
            return Ok(());
        }
        if self.request.moving {
            nodes.iter_mut().for_each(|node| node["force-share"] = Value::Bool(true));
        }
        let socket = socket_of(&state.socket_folder, is_side);
        let mut files = SecretFiles::default();
        for (target, id, secret) in secrets {
            let value = self.secret_value(target, id, secret)?;
            files.add(state.socket_folder.join(format!("{id}.secret")), id, &value, self.user)?;
        }
        let served = storage_daemon::serve(&DaemonRequest {
            nodes,
            exports,
            secrets: files.0.clone(),
            socket: socket.clone(),
            log: self.file.folder().join(if is_side { "side.log" } else { "disks.log" }),
            lease: self.request.server_lease(),
            dies_with_us: self.request.owned,
            user: self.user,
            privilege,
        })?;
        drop(files);
        let process = served.map_err(|refused| self.explain(refused, is_side))?;
        if let CaptureMethod::Offline(reader) = &mut state.method {
            reader.servers.push(DiskServer { process, socket });
        }
        self.file.save(state)
    }

    fn secret_value(&self, target: &str, id: &str, secret: &SecretRef) -> Result<Zeroizing<Vec<u8>>> {
        if id.ends_with("-key")
            && let Some(path) = self.request.luks_key_files.get(target)
        {
            return fs::read(path).map(Zeroizing::new).map_err(Error::io("read", path));
        }
        let secret = secret.clone();
        let action = || format!("read the secret of disk {target}");
        self.machine.call(action, move |domain| ffi::secret_value(&domain.connect()?, &secret)).map_err(|error| {
            if error.is_no_answer() {
                return error;
            }
            Error::SecretUnavailable {
                machine: self.machine.name().to_owned(),
                disk: target.to_owned(),
                message: error.to_string(),
            }
        })
    }

    /// Explains why a daemon could not open all of its files.
    fn explain(&self, Refused(message): Refused, is_side: bool) -> Error {
        let machine = self.machine.name().to_owned();
        let concerned = self.disks.iter().filter(|disk| match is_side {
            true => disk.graph.is_unprivileged || !disk.graph.sides.is_empty(),
            false => !disk.graph.is_unprivileged,
        });
        // The message names a file, which identifies the disk.
        let names = |disk: &&OffDisk| disk.layers.iter().flat_map(Found::paths).any(|path| names_file(&message, path));
        let all: Vec<&OffDisk> = concerned.collect();
        let named: Vec<&OffDisk> = all.iter().copied().filter(names).collect();
        let disks = if named.is_empty() { &all } else { &named };
        let disk = disks.iter().map(|disk| disk.captured.target.as_str()).collect::<Vec<_>>().join(", ");
        if message.contains("Permission denied") {
            return Error::DiskNotReadable { machine, disk, message, is_of_header: is_side };
        }
        if message.contains("another process using the image") {
            let paths = disks.iter().flat_map(|disk| disk.layers.iter().flat_map(Found::paths));
            return Error::ImageHeld { machine, holders: holders::writers_of(paths), message };
        }
        if message.contains("Unknown driver") || message.contains("does not accept value") {
            let layers = || disks.iter().flat_map(|disk| &disk.layers);
            let lacks_driver = |layer: &&Found| {
                let protocol = layer.storage.protocol();
                protocol.is_some_and(|protocol| message.contains(&format!("'{protocol}'")))
            };
            let mut images: Vec<_> = layers().filter(lacks_driver).map(|layer| layer.storage.address()).collect();
            if images.is_empty() {
                images = disks.iter().map(|disk| disk.layers[0].storage.address()).collect();
            }
            return Error::NoBlockDriver { image: images.join(", "), message };
        }
        if message.contains("Invalid password") {
            // QEMU does not report which of them.
            let encrypted = all.iter().filter(|disk| !disk.graph.secrets.is_empty());
            let disk = encrypted.map(|disk| disk.captured.target.as_str()).collect::<Vec<_>>().join(" or ");
            return Error::WrongPassphrase { machine, disk };
        }
        let subject = if disk.is_empty() { machine } else { format!("{machine}/{disk}") };
        Error::Program { program: storage_daemon::PROGRAM, subject, message }
    }
}

fn names_file(message: &str, path: &Path) -> bool {
    message.contains(&format!("'{}'", path.display())) || message.contains(&format!("[{}]", path.display()))
}

fn socket_of(folder: &Path, is_side: bool) -> PathBuf {
    folder.join(SERVER_SOCKETS[usize::from(is_side)])
}

/// Files with secrets, by the names of their QEMU objects. Dropping this removes them.
#[derive(Default)]
struct SecretFiles(Vec<(String, PathBuf)>);

impl SecretFiles {
    fn add(&mut self, path: PathBuf, id: &str, value: &[u8], user: QemuUser) -> Result<()> {
        let created = OpenOptions::new().write(true).create_new(true).mode(0o400).open(&path);
        let mut file = created.map_err(Error::io("create", &path))?;
        self.0.push((id.to_owned(), path.clone()));
        if user != QemuUser::ourselves() {
            fchown(&file, Some(user.owner.0), Some(user.owner.1)).map_err(Error::io("change the owner of", &path))?;
        }
        file.write_all(value).map_err(Error::io("write", &path))
    }
}

impl Drop for SecretFiles {
    fn drop(&mut self) {
        for (_, path) in &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

/// Adds new bitmaps to the images of a stopped machine, for disks that can have a bitmap and have none to continue.
/// What the guest writes after its next start is then tracked. On entry, `has_new_bitmap` marks the disks that can have
/// one.
fn start_chain(request: &OpenRequest, file: &CaptureFile, state: &mut CaptureState) -> Result<()> {
    let starts = state.disks.iter().any(|disk| disk.has_new_bitmap && disk.parent_checkpoint.is_none());
    let name = request.checkpoint.as_ref().filter(|_| starts);
    match name {
        Some(name) => {
            state.checkpoint = Some(name.clone());
            state.checkpoint_disks = targets_with_new_bitmap(state);
        }
        None => state.disks.iter_mut().for_each(|disk| disk.has_new_bitmap = false),
    }
    // Sockets and bitmaps are recorded before they are created.
    file.save(state)?;
    failpoint::hit(Failpoint::CaptureNoted);
    let Some(name) = name else {
        return Ok(());
    };
    for disk in state.disks.iter_mut().filter(|disk| disk.has_new_bitmap) {
        let Some(image) = disk.image.first() else { continue };
        if let Err(error) = images::add_bitmap(Path::new(&image.path), name) {
            // The image is open or read-only. The disk is read in full next time.
            tracing::debug!("{error}");
            disk.has_new_bitmap = false;
        }
    }
    state.checkpoint_disks = targets_with_new_bitmap(state);
    if state.checkpoint_disks.is_empty() {
        state.checkpoint = None;
    }
    file.save(state)?;
    failpoint::hit(Failpoint::BitmapsAdded);
    Ok(())
}

fn off_disk(
    runtime: &RuntimeDirs,
    images: &HostImages,
    at: usize,
    disk: &DefinedDisk,
    wanted: &DiskRequest,
    sockets: &Path,
) -> Result<OffDisk> {
    let layers = block_graph::chain(disk, images)?;
    let graph = block_graph::build(&format!("d{at}"), &layers, &socket_of(sockets, true))?;
    let top = &layers[0];
    let mut bitmap = None;
    let mut reason = wanted.full_reason.clone();
    if let Some(parent) = &wanted.parent {
        match top.header.bitmaps.iter().find(|bitmap| bitmap.name == *parent) {
            Some(found) if found.is_usable() => bitmap = Some(parent.clone()),
            Some(_) => reason = Some(format!("the bitmap {parent} was not closed properly")),
            None => reason = Some(format!("the bitmap {parent} is not in the image")),
        }
    }
    let image: Vec<_> = layers.iter().flat_map(identities_of).collect();
    let own_changes = own_changes::of_layers(runtime, images.machine.uuid(), &image);
    // A bitmap does not describe another image, such as a copy that has the same bitmaps, so a new one is started.
    if bitmap.is_some()
        && !wanted.parent_image.is_empty()
        && let Some(changed) = images::mismatch(&image, &own_changes, &wanted.parent_image)
    {
        bitmap = None;
        reason = Some(changed);
    }
    // A repair changes the content of the disk, and no bitmap records it. Neither this read nor the one after the
    // repair may continue an older point.
    let damage = layers.iter().find_map(|layer| match &layer.header {
        header if header.is_corrupt => {
            tracing::warn!(
                "{}: the image is marked as corrupt; the machine cannot start until 'qemu-img check -r all' repairs it",
                layer.storage.address()
            );
            Some(CORRUPT)
        }
        header if header.is_cut_off => {
            warn_of_cut_off(&layer.storage.address());
            Some(CUT_OFF)
        }
        _ => None,
    });
    if let Some(damage) = damage {
        bitmap = None;
        reason = Some(damage.to_owned());
    }
    // While the machine was off, any program could have written to the data file.
    let has_data_file = top.data_file.is_some();
    if has_data_file && bitmap.take().is_some() {
        reason = Some(DATA_FILE_UNWATCHED.to_owned());
    }
    let socket = socket_of(sockets, graph.is_unprivileged);
    let keeps_bitmaps = disk.keeps_bitmaps()
        && top.header.keeps_bitmaps
        && damage.is_none()
        && !has_data_file
        && top.slice.is_none()
        && top.encryption.is_none()
        && !may_be_open_elsewhere(top);
    let captured = CapturedDisk {
        target: disk.target.clone(),
        nbd_uri: runtime::nbd_uri(&socket, &disk.target),
        socket,
        export: disk.target.clone(),
        capacity_bytes: capacity_of(top),
        format: format_of(disk).to_owned(),
        read_mode: read_mode(bitmap.as_ref()),
        read_mode_reason: reason,
        dirty_context: bitmap.as_deref().map(storage_daemon::dirty_context),
        parent_checkpoint: bitmap,
        has_new_bitmap: false,
        scratch: None,
        owner: top.storage.path().filter(|_| disk.keeps_owner).and_then(images::owner_of),
        image,
        own_changes,
        has_data_file,
        session: None,
        distrusts: wanted.parent.clone().filter(|_| damage.is_some()),
    };
    Ok(OffDisk { captured, keeps_bitmaps: keeps_bitmaps && top.storage.path().is_some(), layers, graph })
}

/// Whether QEMU on another host may have the image open. On a shared block device, only the marks in bitmaps show this.
/// After a crash they are the same, and the first backup of the running machine starts a new bitmap.
fn may_be_open_elsewhere(top: &Found) -> bool {
    let is_device = matches!(top.storage, LayerStorage::Device(_));
    is_device && !top.header.bitmaps.iter().all(Bitmap::was_closed)
}

fn identities_of(layer: &Found) -> Vec<images::ImageIdentity> {
    let identity = |storage: &LayerStorage, format: &str| identity_at(storage.path(), storage.address(), format);
    let mut identities = vec![identity(&layer.storage, &layer.format)];
    let data_file = layer.data_file.iter().map(|data| identity(&data.storage, "raw"));
    identities.extend(data_file.map(|identity| images::ImageIdentity { is_data_file: true, ..identity }));
    identities
}

/// The size of the virtual disk; 0 if only the daemon can determine it.
fn capacity_of(top: &Found) -> u64 {
    const SECTOR_BYTES: u64 = 512;
    if let Some(capacity_bytes) = top.header.capacity_bytes {
        return capacity_bytes;
    }
    if top.format != "raw" || top.encryption.is_some() {
        return 0;
    }
    let length = || File::open(top.storage.path()?).ok()?.seek(SeekFrom::End(0)).ok();
    top.slice.map(|slice| slice.size_bytes).or_else(length).map_or(0, |bytes| bytes.next_multiple_of(SECTOR_BYTES))
}
