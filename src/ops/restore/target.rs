//! Where a restored disk is written: a raw file, a block device, or - through QEMU - an image of another format.

use super::plan::{ImageFormat, PlannedDisk, TargetKind};
use crate::capture::image_server::ImageServer;
use crate::nbd::{Client, Options};
use crate::ops::{Error, Result};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// How many connections write an image at once.
const CONNECTIONS: usize = 2;

/// A disk being written.
#[derive(Debug)]
pub struct Target {
    disk: String,
    path: PathBuf,
    overwrite: bool,
    temporary: Option<tempfile::TempPath>,
    writer: Writer,
}

#[derive(Debug)]
enum Writer {
    File { file: File, is_device: bool },
    Image { server: ImageServer, clients: Mutex<Vec<Client>>, available: std::sync::Condvar },
}

/// A disk that is complete and durable, still under its temporary name.
#[derive(Debug)]
pub struct Written {
    path: PathBuf,
    overwrite: bool,
    temporary: Option<tempfile::TempPath>,
}

/// A file that took its place; what it replaced comes back unless [`Placed::keep`] is called.
#[derive(Debug)]
pub struct Placed {
    path: PathBuf,
    replaced: Option<PathBuf>,
    kept: bool,
}

impl Target {
    /// Makes the empty image beside its place, or opens the device.
    pub fn create(disk: &PlannedDisk) -> Result<Target> {
        let path = disk.path.clone();
        if let TargetKind::Device = disk.kind {
            return Target::device(disk);
        }
        let folder = path.parent().unwrap_or(Path::new("/"));
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let made = tempfile::Builder::new()
            .prefix(".kvmb-")
            .suffix(".partial")
            .make_in(folder, |path| options.open(path))
            .map_err(Error::io("create", &path))?;
        let (file, temporary) = made.into_parts();
        let writer = match disk.format {
            ImageFormat::Raw => {
                file.set_len(disk.capacity_bytes).map_err(Error::io("size", &path))?;
                Writer::File { file, is_device: false }
            }
            ImageFormat::Qcow2 => {
                drop(file);
                image_writer(&temporary, disk)?
            }
        };
        Ok(Target { disk: disk.disk.clone(), path, overwrite: disk.overwrite, temporary: Some(temporary), writer })
    }

    fn device(disk: &PlannedDisk) -> Result<Target> {
        let path = disk.path.clone();
        // O_EXCL on a block device fails when it is mounted or otherwise taken.
        let flags = rustix::fs::OFlags::EXCL.bits() as i32;
        let opened = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path);
        let mut file = opened.map_err(Error::io("open", &path))?;
        let size = std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0)).map_err(Error::io("size", &path))?;
        if size < disk.capacity_bytes {
            let reason = format!("it has {size} bytes and the disk has {}", disk.capacity_bytes);
            return Err(Error::BadTarget { disk: disk.disk.clone(), path, reason });
        }
        let writer = Writer::File { file, is_device: true };
        Ok(Target { disk: disk.disk.clone(), path, overwrite: true, temporary: None, writer })
    }

    /// The disk's target name.
    pub fn disk(&self) -> &str {
        &self.disk
    }

    /// Writes data; from several threads at once.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        match &self.writer {
            Writer::File { file, .. } => file.write_all_at(bytes, offset).map_err(Error::io("write", &self.path)),
            Writer::Image { .. } => self.with_client(|client| client.write(offset, bytes)),
        }
    }

    /// Makes a range read as zeros. In a new image it does already.
    pub fn write_zeros(&self, offset: u64, length: u64) -> Result<()> {
        let Writer::File { file, is_device: true } = &self.writer else {
            return Ok(());
        };
        let flags = rustix::fs::FallocateFlags::ZERO_RANGE | rustix::fs::FallocateFlags::KEEP_SIZE;
        if rustix::fs::fallocate(file, flags, offset, length).is_ok() {
            return Ok(());
        }
        let zeros = vec![0; (1 << 20).min(length as usize)];
        let mut done = 0;
        while done < length {
            let part = (length - done).min(zeros.len() as u64) as usize;
            file.write_all_at(&zeros[..part], offset + done).map_err(Error::io("write", &self.path))?;
            done += part as u64;
        }
        Ok(())
    }

    fn with_client(&self, write: impl FnOnce(&mut Client) -> crate::nbd::Result<()>) -> Result<()> {
        let Writer::Image { clients, available, .. } = &self.writer else {
            return Ok(());
        };
        let lock = || clients.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut free = lock();
        let mut client = loop {
            match free.pop() {
                Some(client) => break client,
                None => free = available.wait(free).unwrap_or_else(|poisoned| poisoned.into_inner()),
            }
        };
        drop(free);
        let result = write(&mut client);
        // A connection that broke goes back as well: whoever takes it gets the error instead of waiting for ever.
        lock().push(client);
        available.notify_one();
        result.map_err(Error::disk(&self.disk))
    }

    /// Makes what was written durable.
    pub fn finish(self) -> Result<Written> {
        let path = self.path.clone();
        let failed = Error::io("sync", &path);
        match self.writer {
            Writer::File { file, .. } => file.sync_all().map_err(failed)?,
            Writer::Image { server, clients, .. } => {
                let mut clients = clients.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
                if let Some(client) = clients.first_mut() {
                    client.flush().map_err(Error::disk(&self.disk))?;
                }
                clients.into_iter().for_each(Client::disconnect);
                server.finish()?;
                if let Some(temporary) = &self.temporary {
                    File::open(temporary).and_then(|file| file.sync_all()).map_err(failed)?;
                }
            }
        }
        Ok(Written { path: self.path, overwrite: self.overwrite, temporary: self.temporary })
    }
}

/// An empty image of the wanted format, served writable by `qemu-nbd` on a private socket.
fn image_writer(image: &Path, disk: &PlannedDisk) -> Result<Writer> {
    let output = Command::new("qemu-img")
        .args(["create", "-q", "-f", disk.format.name()])
        .arg(image)
        .arg(disk.capacity_bytes.to_string())
        .output()
        .map_err(|error| Error::Program { program: "qemu-img", message: error.to_string() })?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::Program { program: "qemu-img", message });
    }
    let server = ImageServer::writable(image, disk.format.name())?;
    let uri =
        server.uri().parse().map_err(|_| Error::Program { program: "qemu-nbd", message: "bad address".into() })?;
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        let client = Client::connect(&uri, &Options::default()).map_err(Error::disk(&disk.disk))?;
        let several = client.multi_conn();
        clients.push(client);
        if !several {
            break;
        }
    }
    Ok(Writer::Image { server, clients: Mutex::new(clients), available: std::sync::Condvar::new() })
}

impl Written {
    /// Puts the disk in its place.
    pub fn place(self) -> Result<Placed> {
        match self.temporary {
            Some(temporary) => Placed::put(temporary, &self.path, self.overwrite),
            None => Ok(Placed { path: self.path, replaced: None, kept: true }),
        }
    }
}

impl Placed {
    /// Renames `temporary` to `path`. What is there is an error, or - with `overwrite` - moved aside for now; its owner
    /// and mode pass to the new file.
    pub fn put(temporary: tempfile::TempPath, path: &Path, overwrite: bool) -> Result<Placed> {
        let mut replaced = None;
        if overwrite && let Ok(old) = fs::symlink_metadata(path) {
            fs::set_permissions(&temporary, fs::Permissions::from_mode(old.mode() & 0o7777))
                .map_err(Error::io("set the mode of", &temporary))?;
            std::os::unix::fs::chown(&temporary, Some(old.uid()), Some(old.gid()))
                .map_err(Error::io("set the owner of", &temporary))?;
            let aside = temporary.with_extension("replaced");
            fs::rename(path, &aside).map_err(Error::io("replace", path))?;
            replaced = Some(aside);
        }
        let placed = Placed { path: path.to_owned(), replaced, kept: false };
        match temporary.persist_noclobber(path) {
            Ok(()) => {
                if let Some(folder) = path.parent() {
                    File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::io("sync", folder))?;
                }
                Ok(placed)
            }
            Err(error) => {
                placed.put_back();
                match error.error.kind() {
                    std::io::ErrorKind::AlreadyExists => Err(Error::Exists { path: path.to_owned() }),
                    _ => Err(Error::Io { action: "create", path: path.to_owned(), source: error.error }),
                }
            }
        }
    }

    /// The file stays, and what it replaced goes.
    pub fn keep(mut self) {
        self.kept = true;
        if let Some(replaced) = self.replaced.take() {
            let _ = fs::remove_file(replaced);
        }
    }

    fn put_back(mut self) {
        if let Some(replaced) = self.replaced.take() {
            let _ = fs::rename(replaced, &self.path);
        }
        self.kept = true;
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        match self.replaced.take() {
            Some(replaced) => drop(fs::rename(replaced, &self.path)),
            None => drop(fs::remove_file(&self.path)),
        }
    }
}
