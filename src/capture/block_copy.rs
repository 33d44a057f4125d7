//! Moves a running machine from an overlay to another image (`virsh blockcopy`).

use std::path::Path;

use crate::capture::domain_xml::xml::escape;
use crate::capture::error::Result;
use crate::capture::ffi;
use crate::capture::machine::Machine;

impl Machine {
    /// Starts copying what the top image of a disk contains to another image, which must have the content of everything
    /// below the top image. The copy keeps up with the guest's writes until [`Machine::pivot`].
    pub(crate) fn begin_copy(&self, disk: &str, image: &Path, format: &str) -> Result<()> {
        let action = || format!("copy what {} has written to its disk {disk}", self.name());
        let path = escape(&image.to_string_lossy());
        let xml = format!("<disk type='file'><driver type='{format}'/><source file='{path}'/></disk>");
        let target = disk.to_owned();
        self.call(action, move |domain| ffi::block_copy_top(domain, &target, &xml))
    }

    /// Ends a complete copy: from now on the disk is the other image, which QEMU has made durable.
    pub(crate) fn pivot(&self, disk: &str) -> Result<()> {
        let (action, target) = (|| format!("move {} to the copy of its disk {disk}", self.name()), disk.to_owned());
        self.call(action, move |domain| ffi::block_pivot(domain, &target))
    }
}
