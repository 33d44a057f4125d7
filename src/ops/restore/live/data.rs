//! The new images of a live restore. Each is written next to its place, like that of any restore, while the machine
//! runs on an overlay of its point. A complete image replaces the old one.
//!
//! An interrupted copy is continued: what an unfinished image contains is compared with the point, so neither a crash
//! nor a loss of power can leave wrong data in it.

use super::super::disk_copy::{DiskCopy, RestoreSource};
use super::super::planned::{PlannedDisk, TargetKind};
use super::super::preconditions::refuse_in_use;
use super::super::target::{Destination, TargetDisk, give_to, look_like};
use super::state::{LiveDisk, LiveState};
use crate::atomic_file;
use crate::capture::images::ImageOwner;
use crate::ops::points::OpenPoint;
use crate::ops::{Error, Monitor, Result, Stop};
use crate::rate_limiter::RateLimiter;
use rustix::fs::OFlags;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::num::NonZeroU32;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread::{self, Scope, ScopedJoinHandle};

/// How far the copy yields to the machine, its server and the rest of the host: a "nice" value.
const NICENESS: i32 = 5;

impl LiveDisk {
    /// Whether the new image is in its place.
    pub(super) fn is_placed(&self) -> bool {
        self.inode.is_some() && inode_of(&self.path) == self.inode
    }

    /// Records that the machine has moved to the image in its place, which another program may have replaced since.
    pub(super) fn set_moved(&mut self) {
        self.inode = inode_of(&self.path);
    }

    /// The disk as one to be written.
    fn planned(&self, point: &OpenPoint) -> Result<PlannedDisk> {
        let described = point.manifest.disks.iter().find(|disk| disk.disk == self.disk).ok_or_else(|| {
            Error::BadPoint { point: point.id.to_string(), reason: format!("it lacks disk {}", self.disk) }
        })?;
        Ok(PlannedDisk {
            disk: self.disk.clone(),
            path: self.path.clone(),
            real_path: self.path.clone(),
            kind: TargetKind::File,
            is_unmoved: false,
            volume: None,
            format: self.format,
            capacity_bytes: self.capacity_bytes,
            chunk_bytes: described.chunk_bytes,
            map: point.chunk_map(described)?,
            overwrite: self.had_image,
            owner: self.owner,
        })
    }
}

/// Creates an empty file with mode 0600 or this owner.
pub(super) fn new_file(path: &Path, owner: Option<ImageOwner>) -> Result<File> {
    let options = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
    let file = options.map_err(Error::io("create", path))?;
    if let Some(owner) = owner {
        give_to(&file, owner, path)?;
    }
    Ok(file)
}

/// Creates the files of images that are not in their places and do not exist yet. The state must be saved before
/// anything is written to them.
pub(super) fn create_files(state: &mut LiveState) -> Result<()> {
    for disk in state.disks.iter_mut().filter(|disk| !disk.is_placed()) {
        if disk.inode.is_some() && inode_of(&disk.data) == disk.inode {
            continue;
        }
        // A file that is not the recorded one is not trusted.
        remove(&disk.data)?;
        let found = new_file(&disk.data, disk.owner)?.metadata().map_err(Error::io("read", &disk.data))?;
        disk.inode = Some(found.ino());
    }
    Ok(())
}

/// The thread that writes the images. Dropping this asks it to end.
pub(super) struct Writer<'scope> {
    thread: Option<io::Result<ScopedJoinHandle<'scope, Result<()>>>>,
    halt: &'scope Stop,
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        self.halt.raise();
    }
}

impl<'scope> Writer<'scope> {
    pub(super) fn spawn<'env>(
        scope: &'scope Scope<'scope, 'env>,
        source: RestoreSource<'scope>,
        disks: &'scope [LiveDisk],
        limit_read: Option<u32>,
        monitor: &'scope dyn Monitor,
        halt: &'scope Stop,
    ) -> Writer<'scope> {
        let write = move || write_all(&source, disks, limit_read, monitor, halt);
        Writer { thread: Some(thread::Builder::new().spawn_scoped(scope, write)), halt }
    }

    pub(super) fn is_finished(&self) -> bool {
        !matches!(&self.thread, Some(Ok(thread)) if !thread.is_finished())
    }

    /// Returns the result. Ends the thread if it is not finished.
    pub(super) fn end(mut self) -> Result<()> {
        self.halt.raise();
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.map_err(Error::NoThread)?.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Writes and makes durable all images that are not in their places, until `halt` is raised.
fn write_all(
    source: &RestoreSource,
    disks: &[LiveDisk],
    limit_read: Option<u32>,
    monitor: &dyn Monitor,
    halt: &Stop,
) -> Result<()> {
    if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
        tracing::debug!("nice: {error}");
    }
    let limit = limit_read.and_then(NonZeroU32::new).map(|limit| RateLimiter::new(limit, halt.flag()));
    for disk in disks.iter().filter(|disk| !disk.is_placed()) {
        let file = open_unfinished(disk)?;
        let is_resumed = file.metadata().map_err(Error::io("read", &disk.data))?.len() > 0;
        let planned = disk.planned(source.point)?;
        let target = TargetDisk::continue_in(file, &planned)?;
        DiskCopy::new(source, &planned, monitor, halt).live(limit.as_ref(), is_resumed).write(&target)?;
        target.finish()?;
    }
    Ok(())
}

/// Opens an unfinished image. QEMU's user may be able to write to its folder, so it must be the file that was created.
fn open_unfinished(disk: &LiveDisk) -> Result<File> {
    let flags = OFlags::NOFOLLOW.bits() as i32;
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&disk.data);
    let file = file.map_err(Error::io("open", &disk.data))?;
    let found = file.metadata().map_err(Error::io("read", &disk.data))?;
    if !found.is_file() || Some(found.ino()) != disk.inode {
        let replaced = io::Error::other("it was replaced by another file");
        return Err(Error::io("open", &disk.data)(replaced));
    }
    Ok(file)
}

/// Moves a complete image to its place. The old image, if there is one, is kept beside it. The path of the image exists
/// at every moment.
pub(super) fn place(disk: &LiveDisk) -> Result<()> {
    if disk.is_placed() {
        return Ok(());
    }
    let path = &disk.path;
    match fs::symlink_metadata(path) {
        Ok(old) if disk.had_image && old.is_file() => {
            refuse_in_use(&disk.disk, path)?;
            look_like(&open_unfinished(disk)?, &old, &Destination::new(path))?;
            match fs::hard_link(path, &disk.aside) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(Error::io("keep", path)(error)),
                _ => {}
            }
        }
        Ok(_) => return Err(Error::Exists { path: path.clone() }),
        Err(_) => {}
    }
    fs::rename(&disk.data, path).map_err(Error::io("create", path))?;
    sync_folder(path)
}

/// Restores the image that a disk replaced, and removes the new one.
pub(super) fn bring_back(disk: &LiveDisk) -> Result<()> {
    remove(&disk.overlay)?;
    remove(&disk.data)?;
    if disk.aside.exists() {
        fs::rename(&disk.aside, &disk.path).map_err(Error::io("replace", &disk.path))?;
        // If both were names of the old image, this was still there.
        remove(&disk.aside)?;
    } else if disk.is_placed() && !disk.had_image {
        remove(&disk.path)?;
    }
    sync_folder(&disk.path)
}

/// Removes a file if it exists.
pub(super) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

fn sync_folder(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    atomic_file::sync_folder(folder).map_err(Error::io("sync the folder of", path))
}

fn inode_of(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file).map(|found| found.ino())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::restore::ImageFormat;

    fn disk(folder: &Path) -> LiveDisk {
        let path = |name: &str| folder.join(name);
        LiveDisk {
            disk: "vda".to_owned(),
            path: path("image"),
            format: ImageFormat::Raw,
            capacity_bytes: 512,
            owner: None,
            overlay: path("overlay"),
            data: path("data"),
            inode: None,
            aside: path("aside"),
            had_image: path("image").exists(),
        }
    }

    fn with_data(folder: &Path) -> LiveDisk {
        let mut disk = disk(folder);
        fs::write(&disk.data, "new").unwrap();
        disk.inode = inode_of(&disk.data);
        disk
    }

    fn names(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    #[test]
    fn placed_image_replaces_the_old_one_until_it_is_brought_back() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("image"), "old").unwrap();
        let disk = with_data(folder.path());
        // A crash after the first half of the replacement.
        fs::hard_link(&disk.path, &disk.aside).unwrap();
        for _ in 0..2 {
            place(&disk).unwrap();
            assert_eq!((fs::read(&disk.path).unwrap(), fs::read(&disk.aside).unwrap()), (b"new".into(), b"old".into()));
        }
        for _ in 0..2 {
            bring_back(&disk).unwrap();
            assert_eq!((names(folder.path()), fs::read(&disk.path).unwrap()), (vec!["image".into()], b"old".into()));
        }
    }

    #[test]
    fn half_replaced_image_is_brought_back_without_leftovers() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("image"), "old").unwrap();
        let disk = with_data(folder.path());
        fs::hard_link(&disk.path, &disk.aside).unwrap();
        bring_back(&disk).unwrap();
        assert_eq!((names(folder.path()), fs::read(&disk.path).unwrap()), (vec!["image".into()], b"old".into()));
    }

    #[test]
    fn new_image_is_removed_where_there_was_none_but_not_a_foreign_file() {
        let folder = tempfile::tempdir().unwrap();
        let disk = with_data(folder.path());
        place(&disk).unwrap();
        bring_back(&disk).unwrap();
        assert_eq!(names(folder.path()), [""; 0]);
        let disk = with_data(folder.path());
        fs::write(&disk.path, "foreign").unwrap();
        assert!(matches!(place(&disk), Err(Error::Exists { .. })));
        bring_back(&disk).unwrap();
        assert_eq!(fs::read(&disk.path).unwrap(), b"foreign");
    }

    #[test]
    fn unfinished_image_that_was_replaced_is_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        let disk = with_data(folder.path());
        open_unfinished(&disk).unwrap();
        fs::rename(&disk.data, folder.path().join("x")).unwrap();
        std::os::unix::fs::symlink("x", &disk.data).unwrap();
        open_unfinished(&disk).unwrap_err();
        fs::remove_file(&disk.data).unwrap();
        fs::write(&disk.data, "another").unwrap();
        open_unfinished(&disk).unwrap_err();
    }
}
