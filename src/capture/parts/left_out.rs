//! The disks and other parts that a backup excludes, and why.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use crate::bounded;
use crate::capture::domain_xml::definition::{DefinedDisk, Definition, Device, DiskSource};
use crate::capture::error::Result;
use crate::capture::machine::{Machine, Which};
use crate::capture::parts::copies;
use crate::capture::state::{MissingPart, OutsideLeftOut, SkippedDisk};

/// The time limit for inspecting storage, because dead storage never answers.
const LOOK_LIMIT: Duration = Duration::from_secs(2);

impl Machine {
    /// Why a backup leaves out a disk by default, or `None` if it is included.
    pub(crate) fn skip_reason(&self, disk: &DefinedDisk) -> Option<String> {
        let is_drive = matches!(disk.device, Device::Cdrom | Device::Floppy);
        match disk.exclusion() {
            Some(reason) if is_drive && disk.path().is_some_and(|path| is_missing(path)) => {
                Some(format!("{reason}, its medium is missing"))
            }
            Some(reason) => Some(reason.to_owned()),
            None if disk.is_optional && self.has_lost(disk) => Some("optional, its image is missing".to_owned()),
            None => None,
        }
    }

    /// Returns the record of a disk that is left out for this reason.
    pub(crate) fn skipped(&self, disk: &DefinedDisk, reason: String) -> SkippedDisk {
        SkippedDisk { target: disk.target.clone(), reason, path: disk.path().cloned(), is_absent: false }
    }

    /// Returns the disks that a running machine lacks and will have at its next start.
    pub(crate) fn absent_disks(&self, live: &Definition) -> Result<Vec<SkippedDisk>> {
        let inactive = self.definition(Which::Inactive)?;
        let absent = inactive.disks.iter().filter(|disk| live.disk(&disk.target).is_none());
        let skipped = absent.map(|disk| {
            let reason = disk.exclusion().unwrap_or("not attached to the running machine").to_owned();
            SkippedDisk { is_absent: true, ..self.skipped(disk, reason) }
        });
        Ok(skipped.collect())
    }

    /// Returns what a backup would lack besides disks, without copying anything: parts that the machine needs, and
    /// other files that its definition references.
    pub(crate) fn missing_parts(&self) -> Result<(Vec<MissingPart>, Vec<OutsideLeftOut>)> {
        let (live, xml) = (self.definition(Which::Live)?, self.definition_xml(Which::Inactive, false)?);
        Ok(copies::missing_parts(self, &live, self.is_running()?, &xml))
    }

    /// Whether nothing exists at the disk's location in the definition.
    fn has_lost(&self, disk: &DefinedDisk) -> bool {
        match (&disk.source, self.resolve(&disk.source)) {
            (DiskSource::Volume { .. }, Err(error)) => error.is_not_found(),
            (_, Ok(source)) => source.path().is_some_and(|path| is_missing(path)),
            _ => false,
        }
    }
}

/// Whether nothing exists at the path. If it cannot be inspected, something may exist.
fn is_missing(path: &Path) -> bool {
    let path = path.to_owned();
    let looked = bounded::call(LOOK_LIMIT, &bounded::ending(), move || fs::metadata(path));
    looked.is_ok_and(|found| found.is_err_and(|error| error.kind() == ErrorKind::NotFound))
}
