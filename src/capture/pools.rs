//! Volumes of storage pools, for a restore: finding and creating them.

use std::path::PathBuf;

use virt::storage_pool::StoragePool;
use virt::storage_vol::StorageVol;

use crate::capture::connection::Hypervisor;
use crate::capture::domain_xml::definition::{child, parse_xml};
use crate::capture::domain_xml::xml::escape;
use crate::capture::error::{LibvirtErrorKind, Result};

/// The place of a storage pool's volume on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum VolumePlace {
    There(PathBuf),
    /// The pool exists. The volume would be this file: it is enough to write it and refresh the pool.
    NewFile(PathBuf),
    /// The pool exists. The volume would be this device, which libvirt must create.
    NewDevice(PathBuf),
    /// The pool is defined but not started.
    PoolNotStarted,
    /// The pool does not exist.
    NoPool,
}

impl Hypervisor {
    /// Looks up a volume.
    pub(crate) fn volume_place(&self, pool: &str, volume: &str) -> Result<VolumePlace> {
        let (action, wanted, name) = (|| format!("look up storage pool {pool}"), pool.to_owned(), volume.to_owned());
        let looked_up =
            self.link.call(action, move |connect| look_up(&connect.lookup_storage_pool_by_name(&wanted)?, &name));
        match looked_up {
            Ok(FoundVolume::Volume(path)) => Ok(VolumePlace::There(path)),
            Ok(FoundVolume::Pool(xml)) => new_place(&xml, volume),
            Ok(FoundVolume::NotStarted) => Ok(VolumePlace::PoolNotStarted),
            // A libvirt without a storage driver has no pools.
            Err(error) if matches!(error.meaning(), LibvirtErrorKind::NotFound | LibvirtErrorKind::Unsupported) => {
                Ok(VolumePlace::NoPool)
            }
            Err(error) => Err(error),
        }
    }

    /// Creates a volume that is a device.
    pub(crate) fn create_volume(&self, pool: &str, volume: &str, capacity_bytes: u64) -> Result<PathBuf> {
        let name = escape(volume);
        let xml = format!("<volume><name>{name}</name><capacity unit='bytes'>{capacity_bytes}</capacity></volume>");
        self.with_pool(
            pool,
            || format!("create volume {volume} of storage pool {pool}"),
            move |pool| StorageVol::create_xml(pool, &xml, 0)?.path().map(PathBuf::from),
        )
    }

    pub(crate) fn delete_volume(&self, pool: &str, volume: &str) -> Result<()> {
        let (action, name) = (|| format!("delete volume {volume} of storage pool {pool}"), volume.to_owned());
        self.with_pool(pool, action, move |pool| pool.lookup_storage_vol_by_name(&name)?.delete(0).map(drop))
    }

    /// Makes libvirt update its list of a pool's volumes.
    pub(crate) fn refresh_pool(&self, pool: &str) -> Result<()> {
        self.with_pool(pool, || format!("refresh storage pool {pool}"), |pool| pool.refresh(0).map(drop))
    }

    fn with_pool<T: Send + 'static>(
        &self,
        pool: &str,
        action: impl FnOnce() -> String,
        work: impl FnOnce(&StoragePool) -> std::result::Result<T, virt::error::Error> + Send + 'static,
    ) -> Result<T> {
        let name = pool.to_owned();
        self.link.call(action, move |connect| work(&connect.lookup_storage_pool_by_name(&name)?))
    }
}

/// The result of looking up a volume.
enum FoundVolume {
    Volume(PathBuf),
    /// The volume does not exist. This is the XML of its pool.
    Pool(String),
    /// The pool is not started.
    NotStarted,
}

fn look_up(pool: &StoragePool, volume: &str) -> std::result::Result<FoundVolume, virt::error::Error> {
    if !pool.is_active()? {
        return Ok(FoundVolume::NotStarted);
    }
    // The refresh finds files that were added or removed since.
    if let Err(error) = pool.refresh(0) {
        tracing::debug!("{error}");
    }
    match pool.lookup_storage_vol_by_name(volume) {
        Ok(there) => there.path().map(PathBuf::from).map(FoundVolume::Volume),
        Err(_) => pool.xml_desc(0).map(FoundVolume::Pool),
    }
}

/// Determines where a missing volume would be, from the XML of its pool.
fn new_place(pool_xml: &str, volume: &str) -> Result<VolumePlace> {
    let document = parse_xml(pool_xml)?;
    let pool = document.root_element();
    let folder = child(pool, "target").and_then(|target| child(target, "path")).and_then(|path| path.text());
    let is_plain = !matches!(volume, "" | "." | "..") && !volume.contains('/');
    let Some(path) = folder.filter(|_| is_plain).map(|folder| PathBuf::from(folder.trim()).join(volume)) else {
        return Ok(VolumePlace::NoPool);
    };
    Ok(match pool.attribute("type") {
        Some("dir" | "fs" | "netfs" | "vstorage") => VolumePlace::NewFile(path),
        Some("logical" | "zfs") => VolumePlace::NewDevice(path),
        // libvirt finds devices of these pools but cannot create them: iSCSI, multipath, whole disks.
        _ => VolumePlace::NoPool,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_volumes_are_placed_inside_the_folder_of_the_pool() {
        let place = |kind: &str, volume: &str| {
            let xml = format!("<pool type='{kind}'><name>p</name><target><path>/pool</path></target></pool>");
            new_place(&xml, volume).unwrap()
        };
        assert_eq!(place("dir", "a.qcow2"), VolumePlace::NewFile("/pool/a.qcow2".into()));
        assert_eq!(place("netfs", "a"), VolumePlace::NewFile("/pool/a".into()));
        assert_eq!(place("logical", "a"), VolumePlace::NewDevice("/pool/a".into()));
        assert_eq!(place("iscsi", "unit:0:0:1"), VolumePlace::NoPool);
        for hostile in ["../a", "", "..", "/etc/passwd"] {
            assert_eq!(place("dir", hostile), VolumePlace::NoPool, "{hostile:?}");
        }
    }
}
