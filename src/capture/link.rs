//! A libvirt connection, shared by a hypervisor and its machines.
//!
//! `qemu:///embed` admits one process at a time for a root, and one root in the life of a process: libvirt lets go of
//! it only when the process ends, whatever is closed. So a process that needs it waits for the one before to end.
//!
//! libvirtd works on five calls of a connection at a time. One that a hung QEMU does not answer keeps its place, so a
//! connection with such a call is left to the machine that made it, and the others open their own.

use crate::bounded;
use crate::capture::error::{Error, LibvirtContext, Result};
use crate::capture::limits::{CallLimits, Wait};
use rustix::fs::{Access, FlockOperation, flock};
use rustix::io::Errno;
use std::ffi::CString;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::thread;
use std::time::Duration;
use virt::connect::Connect;

/// How long another process may hold an embedded root before we give up.
const EMBED_WAIT: Duration = Duration::from_secs(30);
const EMBED_RETRY: Duration = Duration::from_millis(100);

/// How long closing a connection may take: libvirtd is told, and may be the one that hangs.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// A connection, which a hypervisor and its machines share.
#[derive(Debug)]
pub(super) struct SharedConnection {
    connect: Option<Connect>,
    pub(super) uri: String,
    pub(super) limits: CallLimits,
    is_blocked: AtomicBool,
}

impl SharedConnection {
    pub(super) fn open(uri: Option<&str>, limits: &CallLimits) -> Result<SharedConnection> {
        prepare_libvirt();
        let uri = uri.map(str::to_owned).or_else(default_uri);
        let shown = uri.as_deref().unwrap_or("the default hypervisor").to_owned();
        let context = || format!("open {shown}");
        // The crate panics on a zero byte.
        uri.as_deref().map(CString::new).transpose().map_err(virt::error::Error::from).context(context)?;
        let connect = match uri.as_deref().and_then(embedded_root) {
            Some(root) => open_embedded(uri.as_deref().unwrap_or_default(), &root, limits)?,
            None => {
                let opened = {
                    let uri = uri.clone();
                    limits.run(limits.call, context, move || Connect::open(uri.as_deref()))?
                };
                opened.context(context).map_err(|error| error.of_opening(is_refused(uri.as_deref())))?
            }
        };
        let uri = connect.uri().unwrap_or_else(|_| shown.clone());
        Ok(SharedConnection { connect: Some(connect), uri, limits: limits.clone(), is_blocked: AtomicBool::new(false) })
    }

    /// Makes a call of libvirt's that is about no machine.
    pub(super) fn call<T: Send + 'static>(
        &self,
        action: impl FnOnce() -> String,
        work: impl FnOnce(&Connect) -> std::result::Result<T, virt::error::Error> + Send + 'static,
    ) -> Result<T> {
        let action = action();
        let Some(connect) = self.connect.clone() else {
            return Err(Error::Silent { action, machine: self.uri.clone() });
        };
        self.limits.run(self.limits.call, || action.clone(), move || work(&connect))?.context(|| action)
    }

    /// Notes that a call was given up, and keeps its place.
    pub(super) fn note_blocked(&self) {
        self.is_blocked.store(true, Ordering::Relaxed);
    }

    /// Whether others than the machine that does not answer need a connection of their own.
    pub(super) fn is_blocked(&self) -> bool {
        self.is_blocked.load(Ordering::Relaxed) && embedded_root(&self.uri).is_none()
    }
}

impl Drop for SharedConnection {
    fn drop(&mut self) {
        if let Some(connect) = self.connect.take() {
            // What does not end is left behind.
            let _ = bounded::call(CLOSE_LIMIT, &self.limits.stop, move || drop(connect));
        }
    }
}

/// Whether this user may not write to the sockets of this host's libvirt, which have no number for that.
fn is_refused(uri: Option<&str>) -> bool {
    let is_of_system = match uri {
        Some(uri) => uri == "qemu:///system",
        None => rustix::process::geteuid().is_root(),
    };
    let sockets = ["/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock"].map(Path::new);
    let refused = |socket: &&Path| rustix::fs::access(*socket, Access::WRITE_OK) == Err(Errno::ACCESS);
    is_of_system && sockets.iter().any(refused)
}

/// Once a process: no errors printed by libvirt, and an event loop, which the embedded driver needs to talk to QEMU.
fn prepare_libvirt() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        virt::error::clear_error_callback();
        if let Err(error) = virt::event::event_register_default_impl() {
            tracing::warn!("libvirt's event loop could not be registered: {error}");
            return;
        }
        let spawned = thread::Builder::new().name("libvirt events".to_owned()).spawn(|| {
            virt::error::clear_error_callback();
            loop {
                if let Err(error) = virt::event::event_run_default_impl() {
                    tracing::warn!("libvirt's event loop: {error}");
                    thread::sleep(Duration::from_millis(100));
                }
            }
        });
        if let Err(error) = spawned {
            tracing::warn!("no thread for libvirt's event loop: {error}");
        }
    });
}

/// The embedded driver is opened once in the life of a process, and only one attempt counts: after one that came too
/// late, every other says «qemu state driver is not active». So it is made only when nobody holds the root.
fn open_embedded(uri: &str, root: &Path, limits: &CallLimits) -> Result<Connect> {
    static EMBEDDED: Mutex<Option<(String, Connect, Queue)>> = Mutex::new(None);
    let mut embedded = EMBEDDED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((open, connect, _)) = &*embedded
        && open == uri
    {
        return Ok(connect.clone());
    }
    let pid_file = root.join("run/qemu/driver.pid");
    let wait = limits.wait(EMBED_WAIT);
    let queue = Queue::enter(root, &wait)?;
    while is_locked_by_another(&pid_file) && !wait.is_over() {
        wait.check_stop()?;
        thread::sleep(EMBED_RETRY);
    }
    let (action, wanted) = (|| format!("open {uri}"), uri.to_owned());
    let connect = limits.run(limits.call, action, move || Connect::open(Some(&wanted)))?.context(action)?;
    *embedded = Some((uri.to_owned(), connect.clone(), queue));
    Ok(connect)
}

/// Our own processes come to an embedded root one after the other: a lock on its folder, held for as long as the driver
/// is, which is until the process ends.
struct Queue(#[allow(dead_code)] Option<File>);

impl Queue {
    /// Waits for its turn. A root that is not there yet, or is not ours to open, has no queue.
    fn enter(root: &Path, wait: &Wait) -> Result<Queue> {
        let Ok(folder) = File::open(root) else {
            return Ok(Queue(None));
        };
        while flock(&folder, FlockOperation::NonBlockingLockExclusive) == Err(rustix::io::Errno::WOULDBLOCK)
            && !wait.is_over()
        {
            wait.check_stop()?;
            thread::sleep(EMBED_RETRY);
        }
        Ok(Queue(Some(folder)))
    }
}

/// The folder of `qemu:///embed?root=…`.
pub(super) fn embedded_root(uri: &str) -> Option<PathBuf> {
    let query = uri.strip_prefix("qemu:///embed")?.split_once('?')?.1;
    let root = query.split('&').find_map(|pair| pair.strip_prefix("root="))?;
    let root = percent_encoding::percent_decode_str(root).decode_utf8().ok()?;
    Some(PathBuf::from(root.as_ref()))
}

/// Looked up in the kernel's list, because opening and closing the file ourselves would give up a lock of this very
/// process.
fn is_locked_by_another(file: &Path) -> bool {
    let Ok(inode) = std::fs::metadata(file).map(|found| found.ino()) else {
        return false;
    };
    let inode = format!(":{inode}");
    let us = std::process::id().to_string();
    std::fs::read_to_string("/proc/locks").unwrap_or_default().lines().any(|line| {
        // 1: POSIX  ADVISORY  WRITE 812 08:01:131234 0 0
        let words: Vec<&str> = line.split_whitespace().collect();
        words.len() > 5 && words[5].ends_with(&inode) && words[4] != us
    })
}

/// What `virsh` looks at before libvirt's own default.
pub(super) fn default_uri() -> Option<String> {
    ["VIRSH_DEFAULT_CONNECT_URI", "LIBVIRT_DEFAULT_URI"]
        .iter()
        .filter_map(|name| std::env::var(name).ok())
        .find(|uri| !uri.is_empty())
}

pub(super) fn is_local_uri(uri: &str) -> bool {
    let Some((scheme, rest)) = uri.split_once(':') else {
        return false;
    };
    let (driver, transport) = scheme.split_once('+').unwrap_or((scheme, "unix"));
    driver == "qemu" && transport == "unix" && rest.starts_with("///")
}
