//! A libvirt connection, shared by a hypervisor and its machines.
//!
//! Only one process at a time can use a root of `qemu:///embed`, and a process can only use one root in its lifetime:
//! libvirt releases it only when the process exits, even if the connection is closed. A process that needs the root
//! waits for the previous one to exit.
//!
//! libvirtd handles five calls of a connection in parallel. A call that waits for a hung QEMU occupies one of them. A
//! connection with such a call is left to the machine that made it, and other machines open their own.

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

/// How long to wait for another process that holds an embedded root.
const EMBED_WAIT: Duration = Duration::from_secs(30);
const EMBED_RETRY: Duration = Duration::from_millis(100);

/// The time limit for closing a connection, which involves libvirtd, and libvirtd may hang.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// A connection that a hypervisor and its machines share.
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
        // The crate panics if the URI contains a zero byte.
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

    /// Makes a libvirt call that does not concern a machine.
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

    /// Records that a call timed out and still occupies a worker.
    pub(super) fn note_blocked(&self) {
        self.is_blocked.store(true, Ordering::Relaxed);
    }

    /// Whether machines other than the one that does not answer need their own connection.
    pub(super) fn is_blocked(&self) -> bool {
        self.is_blocked.load(Ordering::Relaxed) && embedded_root(&self.uri).is_none()
    }
}

impl Drop for SharedConnection {
    fn drop(&mut self) {
        if let Some(connect) = self.connect.take() {
            // A close that does not finish is abandoned.
            let _ = bounded::call(CLOSE_LIMIT, &self.limits.stop, move || drop(connect));
        }
    }
}

/// Whether this user lacks write access to the sockets of this host's libvirt, for which libvirt has no error code.
fn is_refused(uri: Option<&str>) -> bool {
    let is_of_system = match uri {
        Some(uri) => uri == "qemu:///system",
        None => rustix::process::geteuid().is_root(),
    };
    let sockets = ["/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock"].map(Path::new);
    let refused = |socket: &&Path| rustix::fs::access(*socket, Access::WRITE_OK) == Err(Errno::ACCESS);
    is_of_system && sockets.iter().any(refused)
}

/// Prepares libvirt once per process: it must not print errors, and the embedded driver needs an event loop to
/// communicate with QEMU.
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

/// Opens the embedded driver. Only the first attempt in a process counts: if it fails because the root is in use, every
/// later one fails with "qemu state driver is not active". It is therefore only made when no process holds the root.
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

/// Serializes kvmb's own processes that use an embedded root: a lock on its folder, held as long as the driver is open,
/// which is until the process exits.
struct Queue(#[allow(dead_code)] Option<File>);

impl Queue {
    /// Waits for its turn. A root that does not exist yet, or that this user cannot open, has no queue.
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

/// Returns the root folder of `qemu:///embed?root=…`.
pub(super) fn embedded_root(uri: &str) -> Option<PathBuf> {
    let query = uri.strip_prefix("qemu:///embed")?.split_once('?')?.1;
    let root = query.split('&').find_map(|pair| pair.strip_prefix("root="))?;
    let root = percent_encoding::percent_decode_str(root).decode_utf8().ok()?;
    Some(PathBuf::from(root.as_ref()))
}

/// Whether another process has locked this file. This reads the kernel's list, because opening and closing the file
/// would release a lock of this process.
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

/// Returns the URI that `virsh` uses before libvirt's own default.
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
