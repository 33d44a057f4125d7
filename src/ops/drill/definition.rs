//! Prepares the test machine of a drill: the point's definition, isolated, and the small files that the machine needs.
//!
//! ```text
//!  domain.xml ─ as a copy: new name, UUID, MACs ─ isolated: disks over NBD, no network link, consoles on sockets
//!  nvram, kernel, initrd, loader … ─→ private files
//!  TPM state ─→ the folder that libvirt uses for the new UUID
//! ```

use crate::capture::connection::log_files;
use crate::capture::domain_xml::definition::{Definition, Device};
use crate::capture::domain_xml::references::{MachineType, Reference, references};
use crate::capture::domain_xml::rewrite::isolated::{Isolation, isolate};
use crate::capture::domain_xml::tpm::{self, StatePlace};
use crate::capture::offline::qemu_user::named_owner;
use crate::capture::runtime::make_qemu_folder;
use crate::capture::{self, Changes, Hypervisor, NewDisk, NewDiskKind, rewrite_with_notes};
use crate::ops::manifest::{ManifestDisk, Role};
use crate::ops::points::OpenPoint;
use crate::ops::{Error, Result};
use crate::repo::{Index, Repository};
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};

/// The names in the folder of a drill.
pub(super) const NBD_SOCKET: &str = "nbd";
pub(super) const CONSOLE_SOCKET: &str = "console";
pub(super) const FIRMWARE_SOCKET: &str = "firmware";
const QEMU_FOLDER: &str = "own";
const NVRAM_FILE: &str = "nvram";

/// The source of a drill and where it is prepared.
pub(super) struct DrillSource<'a> {
    pub(super) repo: &'a Repository,
    pub(super) index: &'a Index,
    pub(super) point: &'a OpenPoint,
    pub(super) hypervisor: &'a Hypervisor,
    /// The drill's private folder.
    pub(super) folder: &'a Path,
    pub(super) name: &'a str,
    pub(super) uuid: &'a str,
    pub(super) memory_bytes: u64,
    pub(super) vcpus: u32,
}

/// A machine that is ready to start.
pub(super) struct Prepared {
    pub(super) name: String,
    pub(super) xml: String,
    /// The disks of the point that the machine has.
    pub(super) disks: Vec<ManifestDisk>,
    /// Whether hardware virtualization is used.
    pub(super) is_accelerated: bool,
    /// Whether the machine has a channel for the guest agent.
    pub(super) has_agent_channel: bool,
    /// The user and group of its QEMU.
    pub(super) owner: (u32, u32),
    /// What the machine lacks compared with the original, one sentence each.
    pub(super) notes: Vec<String>,
}

/// The paths outside its folder that a drill of a machine with this name and UUID may create.
pub(super) fn outside_paths(hypervisor: &Hypervisor, definition: &Definition, name: &str, uuid: &str) -> Vec<PathBuf> {
    let mut paths = log_files(hypervisor.uri(), name);
    if let Some(StatePlace::Folder(state)) = tpm_place(definition, hypervisor.uri(), uuid) {
        paths.extend(state.parent().map(Path::to_owned));
    }
    paths
}

/// Where libvirt looks for the TPM state of the new machine, whose definition does not set a path.
fn tpm_place(definition: &Definition, uri: &str, uuid: &str) -> Option<StatePlace> {
    let mut definition = definition.clone();
    if let Some(tpm) = &mut definition.tpm {
        tpm.state_path = None;
    }
    tpm::state_place(&definition, uri, uuid)
}

impl DrillSource<'_> {
    /// Writes the small files and creates the definition.
    pub(super) fn prepare(&self) -> Result<Prepared> {
        let (xml, _) = self.point.definition_of_disks(self.repo, self.index)?;
        let definition = Definition::parse(&xml).map_err(capture::Error::from)?;
        let owner = match definition.dac_label.as_deref().and_then(named_owner) {
            Some(owner) => owner,
            None => self.hypervisor.qemu_owner()?,
        };
        let disks = self.disks(&definition)?;
        let mut changes = self.changes(&definition, &disks);
        self.small_files(&definition, owner, &mut changes)?;
        let is_emulated = self.choose_hypervisor(&xml, &mut changes)?;
        let copy = rewrite_with_notes(&xml, &changes).map_err(capture::Error::from)?;
        let served: BTreeSet<String> = disks.iter().map(|disk| disk.disk.clone()).collect();
        let isolation = Isolation {
            disks: &served,
            nbd: &self.folder.join(NBD_SOCKET),
            console: &self.folder.join(CONSOLE_SOCKET),
            firmware: &self.folder.join(FIRMWARE_SOCKET),
            nvram: &self.nvram(),
            memory_bytes: self.memory_bytes,
            vcpus: self.vcpus,
            is_emulated,
        };
        let isolated = isolate(&copy.xml, &isolation).map_err(capture::Error::from)?;
        Ok(Prepared {
            name: self.name.to_owned(),
            xml: isolated.xml,
            disks,
            is_accelerated: !is_emulated && definition.domain_type == "kvm",
            has_agent_channel: definition.has_agent_channel,
            owner,
            notes: isolated.notes,
        })
    }

    /// Returns the disks of the point. A disk that the definition lacks was not written by kvmb and is refused.
    fn disks(&self, definition: &Definition) -> Result<Vec<ManifestDisk>> {
        let mut disks: Vec<ManifestDisk> = Vec::new();
        for disk in &self.point.manifest.disks {
            let is_known = definition.disk(&disk.disk).is_some_and(|known| known.device == Device::Disk);
            if !is_known || disks.iter().any(|known| known.disk == disk.disk) {
                let reason = format!("{:?} is not a disk of the definition", disk.disk);
                return Err(Error::UntrustedPoint { point: self.point.id.to_string(), reason });
            }
            disks.push(disk.clone());
        }
        Ok(disks)
    }

    fn changes(&self, definition: &Definition, disks: &[ManifestDisk]) -> Changes {
        // The path is replaced when the definition is isolated. It only marks the disk as one that the test machine
        // has.
        let new = |disk: &ManifestDisk| NewDisk {
            path: self.folder.join(&disk.disk),
            kind: NewDiskKind::File,
            format: "raw".to_owned(),
        };
        let is_drive = |device| matches!(device, Device::Cdrom | Device::Floppy);
        let drives = definition.disks.iter().filter(|disk| is_drive(disk.device));
        Changes {
            name: Some(self.name.to_owned()),
            uuid: Some(self.uuid.to_owned()),
            new_macs: true,
            own_resources: true,
            disks: disks.iter().map(|disk| (disk.disk.clone(), new(disk))).collect(),
            eject: drives.map(|disk| disk.target.clone()).collect(),
            nvram: Some(self.nvram()),
            ..Changes::default()
        }
    }

    fn nvram(&self) -> PathBuf {
        self.folder.join(QEMU_FOLDER).join(NVRAM_FILE)
    }

    /// Writes the files of the point other than disks.
    fn small_files(&self, definition: &Definition, owner: (u32, u32), changes: &mut Changes) -> Result<()> {
        let own = self.folder.join(QEMU_FOLDER);
        fs::DirBuilder::new().mode(0o700).create(&own).map_err(Error::io("create", &own))?;
        for file in &self.point.manifest.files {
            let read = || self.point.read_file(self.repo, self.index, &file.name);
            match file.role {
                Role::Nvram => write_private(&self.nvram(), &read()?, owner)?,
                Role::Kernel if definition.kernel.is_some() => {
                    let path = self.folder.join("kernel");
                    write_private(&path, &read()?, owner)?;
                    changes.kernel = Some(path);
                }
                Role::Initrd if definition.initrd.is_some() => {
                    let path = self.folder.join("initrd");
                    write_private(&path, &read()?, owner)?;
                    changes.initrd = Some(path);
                }
                Role::Tpm => self.tpm_file(definition, &file.name, &read)?,
                Role::Kernel | Role::Initrd => {}
            }
        }
        for (number, file) in self.point.manifest.outside_files.iter().enumerate() {
            let original = Path::new(&file.path);
            if !original.exists() {
                let path = self.folder.join(format!("file-{number}"));
                write_private(&path, &self.point.read_file(self.repo, self.index, &file.name)?, owner)?;
                changes.files.insert(original.to_owned(), path);
            }
        }
        // From now on QEMU's user can write to the folder, so nothing else opens a file there.
        Ok(make_qemu_folder(&own, owner)?)
    }

    /// Writes a file of the TPM state into a new folder, where libvirt looks for it. libvirt gives it to swtpm's user.
    fn tpm_file(&self, definition: &Definition, name: &str, read: &dyn Fn() -> Result<Vec<u8>>) -> Result<()> {
        let place = tpm_place(definition, self.hypervisor.uri(), self.uuid);
        let (Some(StatePlace::Folder(folder)), true) = (place, name != tpm::SINGLE_FILE) else { return Ok(()) };
        let file_name = Path::new(name).file_name().unwrap_or_default();
        let parent = folder.parent().unwrap_or(Path::new("/"));
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o711).create(parent).map_err(Error::io("create", parent))?;
        builder.mode(0o700).create(&folder).map_err(Error::io("create", &folder))?;
        write_private(&folder.join(file_name), &read()?, (0, 0))
    }

    /// Selects an alternative if this host lacks the original's QEMU or machine type. Returns whether a machine that
    /// used KVM is emulated.
    fn choose_hypervisor(&self, xml: &str, changes: &mut Changes) -> Result<bool> {
        let kind = references(xml).map_err(capture::Error::from)?.into_iter().find_map(|reference| match reference {
            Reference::MachineType(kind) => Some(kind),
            _ => None,
        });
        let Some(mut kind) = kind else { return Ok(false) };
        if kind.emulator.as_ref().is_some_and(|path| !path.exists()) {
            changes.emulator = self.hypervisor.own_emulator()?;
            kind.emulator.clone_from(&changes.emulator);
        }
        if self.hypervisor.runs(&kind)? {
            return Ok(false);
        }
        let emulated = MachineType { virt_type: "qemu".to_owned(), ..kind.clone() };
        let newest = |kind: &MachineType| kind.family().map(|name| MachineType { name: name.into(), ..kind.clone() });
        for other in [newest(&kind), Some(emulated.clone()), newest(&emulated)].into_iter().flatten() {
            if self.hypervisor.runs(&other)? {
                changes.machine_type = (other.name != kind.name).then_some(other.name);
                return Ok(other.virt_type != kind.virt_type);
            }
        }
        // libvirt will report what is missing.
        Ok(false)
    }
}

/// Creates a file that belongs to `owner` and that only its owner can read.
fn write_private(path: &Path, bytes: &[u8], owner: (u32, u32)) -> Result<()> {
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path).map_err(Error::io("create", path))?;
    file.write_all(bytes).map_err(Error::io("write", path))?;
    if rustix::process::geteuid().is_root() {
        chown(path, Some(owner.0), Some(owner.1)).map_err(Error::io("change the owner of", path))?;
    }
    Ok(())
}
