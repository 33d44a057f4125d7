//! Checkpoints. For each, libvirt tracks the changes since then in a dirty bitmap of the same name in every image.
//!
//! According to experiments, bitmaps are independent: "changed since X" is bitmap X alone, and deleting another bitmap
//! does not affect it. Checkpoints of other tools are listed but not changed.

use std::collections::HashMap;

use crate::capture::domain_xml::definition::{child, children, parse_xml};
use crate::capture::domain_xml::xml::escape;
use crate::capture::error::{LibvirtErrorKind, Result};
use crate::capture::ffi;
use crate::capture::machine::{Machine, Which};
use crate::capture::offline::image_lookup::read_header;

/// The prefix of the names of kvmb's checkpoints.
pub(crate) const PREFIX: &str = "kvmb-";

impl Machine {
    /// Returns the names of all checkpoints of this machine that libvirt knows, including those of other tools.
    pub fn checkpoints(&self) -> Result<Vec<String>> {
        let mut names = self.call(|| format!("list the checkpoints of {}", self.name()), ffi::checkpoint_names)?;
        names.sort();
        Ok(names)
    }

    /// Returns the disks whose bitmap of this checkpoint is usable, with the number of bytes changed since. Empty if
    /// the checkpoint is unknown or the machine is off.
    pub fn usable_bitmaps(&self, checkpoint: &str) -> Result<HashMap<String, u64>> {
        let xml = self.checkpoint_definition(checkpoint, ffi::CHECKPOINT_XML_SIZE | ffi::CHECKPOINT_XML_NO_DOMAIN);
        let xml = match xml {
            Ok(xml) => xml,
            Err(error) if error.meaning() == LibvirtErrorKind::CheckpointMissing => return Ok(HashMap::new()),
            Err(error)
                if matches!(
                    error.meaning(),
                    LibvirtErrorKind::BitmapBroken | LibvirtErrorKind::InvalidState | LibvirtErrorKind::Unsupported
                ) =>
            {
                tracing::debug!("{error}");
                return Ok(HashMap::new());
            }
            Err(error) => return Err(error),
        };
        read_sizes(&xml)
    }

    /// Returns the disks that, according to libvirt, have a bitmap of this checkpoint. The bitmaps may be unusable.
    pub(crate) fn disks_of_checkpoint(&self, name: &str) -> Result<Vec<String>> {
        read_disks(&self.checkpoint_definition(name, ffi::CHECKPOINT_XML_NO_DOMAIN)?)
    }

    fn checkpoint_definition(&self, name: &str, flags: u32) -> Result<String> {
        let (action, name) = (|| format!("inspect checkpoint {name} of {}", self.name()), name.to_owned());
        self.call(action, move |domain| ffi::checkpoint_xml(domain, &name, flags))
    }

    fn delete_checkpoint_with(&self, name: &str, flags: u32) -> Result<()> {
        let (action, name) = (|| format!("delete checkpoint {name} of {}", self.name()), name.to_owned());
        self.call(action, move |domain| ffi::delete_checkpoint(domain, &name, flags))
    }

    fn make_known(&self, xml: String, flags: u32, action: impl FnOnce() -> String) -> Result<()> {
        self.call(action, move |domain| ffi::create_checkpoint(domain, &xml, flags))
    }

    /// Whether the image of one of the disks has a bitmap of this name, even if libvirt does not know it. Unreadable
    /// images count as having none.
    pub(crate) fn has_bitmap(&self, name: &str) -> bool {
        let Ok(definition) = self.definition(Which::Live) else { return false };
        definition.disks.iter().filter(|disk| disk.keeps_bitmaps()).any(|disk| {
            let Ok(source) = self.resolve(&disk.source) else { return false };
            let header = source.path().and_then(|path| read_header(path, "qcow2").ok()).unwrap_or_default();
            header.bitmaps.iter().any(|bitmap| bitmap.name == name)
        })
    }

    /// Deletes a checkpoint and its bitmaps, even broken ones. Returns false if there was no such checkpoint. The
    /// machine must be running. If it stops meanwhile, this fails, and bitmaps may remain that libvirt no longer knows.
    pub fn delete_checkpoint(&self, name: &str) -> Result<bool> {
        let error = match self.delete_checkpoint_with(name, 0) {
            Ok(()) => return Ok(true),
            // Another program, or a libvirtd that was killed meanwhile, has deleted it.
            Err(error) if error.meaning() == LibvirtErrorKind::CheckpointMissing => return Ok(false),
            Err(error) => error,
        };
        let broken = matches!(
            error.meaning(),
            LibvirtErrorKind::BitmapBroken | LibvirtErrorKind::Internal | LibvirtErrorKind::Other
        );
        if !broken || !self.is_running()? {
            return Err(error);
        }
        tracing::info!("{error}; deleting it disk by disk");
        self.delete_disk_by_disk(name)?;
        Ok(true)
    }

    /// Deletes the metadata of a checkpoint whose bitmaps are gone with their images, if libvirt still knows it. The
    /// machine may be off.
    pub(crate) fn forget_checkpoint(&self, name: &str) -> Result<()> {
        let (action, name) =
            (|| format!("remove the metadata of checkpoint {name} of {}", self.name()), name.to_owned());
        let forget = move |domain: &_| ffi::delete_checkpoint(domain, &name, ffi::CHECKPOINT_DELETE_METADATA_ONLY);
        forgotten(self.call(action, forget))
    }

    /// Deletes a checkpoint disk by disk, because libvirt stops at the first missing bitmap: deletes its metadata, then
    /// redefines and deletes it for each disk.
    fn delete_disk_by_disk(&self, name: &str) -> Result<()> {
        let disks = self.disks_of_checkpoint(name)?;
        forgotten(self.delete_checkpoint_with(name, ffi::CHECKPOINT_DELETE_METADATA_ONLY))?;
        let all = self.targets()?;
        for disk in disks {
            let one = [disk.as_str()];
            let xml = known_checkpoint_xml(name, &one, &all);
            let redefined = self
                .make_known(xml, ffi::CHECKPOINT_REDEFINE, || format!("delete checkpoint {name} of {}", self.name()));
            match redefined {
                Err(error) if error.is_no_answer() => return Err(error),
                // The disk was detached, and its bitmap is gone with it.
                Err(error) => {
                    tracing::debug!("disk {disk}: {error}");
                    continue;
                }
                Ok(()) => {}
            }
            if let Err(error) = self.delete_checkpoint_with(name, 0) {
                tracing::debug!("disk {disk}: {error}");
                forgotten(self.delete_checkpoint_with(name, ffi::CHECKPOINT_DELETE_METADATA_ONLY))?;
                // QEMU has exited and left the bitmaps in the images. The caller removes them from there.
                if !self.is_running()? {
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Redefines a checkpoint whose bitmaps are still in the images, for example after an undefine or on another host.
    /// If the machine runs, libvirt checks that they exist.
    pub(crate) fn redefine_checkpoint(&self, name: &str, disks: &[&str]) -> Result<()> {
        let flags = if self.is_running()? { ffi::CHECKPOINT_REDEFINE_VALIDATE } else { ffi::CHECKPOINT_REDEFINE };
        let xml = known_checkpoint_xml(name, disks, &self.targets()?);
        self.make_known(xml, flags, || format!("define checkpoint {name} of {} again", self.name()))
    }

    fn targets(&self) -> Result<Vec<String>> {
        Ok(self.definition(Which::Live)?.disks.into_iter().map(|disk| disk.target).collect())
    }
}

/// Treats a checkpoint that libvirt no longer knows as a success.
fn forgotten(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if error.meaning() == LibvirtErrorKind::CheckpointMissing => Ok(()),
        other => other,
    }
}

/// Returns a `<domaincheckpoint>` that lists every disk of the machine, because libvirt includes disks that are not
/// listed.
pub(super) fn checkpoint_xml(name: &str, disks: &[&str], all: &[String]) -> String {
    let mut xml = format!("<domaincheckpoint><name>{}</name><disks>", escape(name));
    for target in all {
        let kind = if disks.contains(&target.as_str()) { "bitmap" } else { "no" };
        xml += &format!("<disk name='{}' checkpoint='{kind}'/>", escape(target));
    }
    xml += "</disks></domaincheckpoint>";
    xml
}

/// The same for an existing checkpoint. libvirt requires a creation time, which has no meaning here.
fn known_checkpoint_xml(name: &str, disks: &[&str], all: &[String]) -> String {
    let time = format!("</name><creationTime>{}</creationTime>", chrono::Utc::now().timestamp());
    checkpoint_xml(name, disks, all).replacen("</name>", &time, 1)
}

/// Returns the disks with a `size`, which libvirt reports only for usable bitmaps.
fn read_sizes(xml: &str) -> Result<HashMap<String, u64>> {
    let document = parse_xml(xml)?;
    Ok(child(document.root_element(), "disks")
        .into_iter()
        .flat_map(|disks| children(disks, "disk"))
        .filter(|disk| disk.attribute("checkpoint") == Some("bitmap"))
        .filter_map(|disk| Some((disk.attribute("name")?.to_owned(), disk.attribute("size")?.parse().ok()?)))
        .collect())
}

/// Returns the disks that have a bitmap.
fn read_disks(xml: &str) -> Result<Vec<String>> {
    let document = parse_xml(xml)?;
    Ok(child(document.root_element(), "disks")
        .into_iter()
        .flat_map(|disks| children(disks, "disk"))
        .filter(|disk| disk.attribute("checkpoint") == Some("bitmap"))
        .filter_map(|disk| disk.attribute("name").map(str::to_owned))
        .collect())
}
