//! Calls of libvirt that the `virt` crate lacks. All unsafe code of kvmb is in this file.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::Error;
use virt_sys as sys;
use zeroize::{Zeroize, Zeroizing};

use crate::capture::domain_xml::source::{SecretName, SecretRef, SecretUsage};
use crate::capture::first_schema::SCHEMA;

type Result<T> = std::result::Result<T, Error>;

/// `virDomainCheckpointXMLFlags`: without the domain's definition.
pub(super) const CHECKPOINT_XML_NO_DOMAIN: u32 = sys::VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN;
/// `virDomainCheckpointXMLFlags`: with the size of the changes since the checkpoint.
pub(super) const CHECKPOINT_XML_SIZE: u32 = sys::VIR_DOMAIN_CHECKPOINT_XML_SIZE;
/// `virDomainCheckpointDeleteFlags`: keep the bitmap.
pub(super) const CHECKPOINT_DELETE_METADATA_ONLY: u32 = sys::VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY;
/// `virDomainCheckpointCreateFlags`: redefine an existing checkpoint, and check that its bitmaps exist.
pub(super) const CHECKPOINT_REDEFINE_VALIDATE: u32 =
    sys::VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE | sys::VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE;
/// `virDomainCheckpointCreateFlags`: redefine an existing checkpoint.
pub(super) const CHECKPOINT_REDEFINE: u32 = sys::VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE;
/// `virDomainAgentResponseTimeoutValues`: wait forever, libvirt's default.
pub(super) const AGENT_TIMEOUT_BLOCK: i32 = sys::VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK;

/// Starts a backup job, with a checkpoint created at the same instant.
pub(super) fn backup_begin(domain: &Domain, backup_xml: &str, checkpoint_xml: Option<&str>) -> Result<()> {
    let backup = CString::new(backup_xml)?;
    let checkpoint = checkpoint_xml.map(CString::new).transpose()?;
    let checkpoint_ptr = checkpoint.as_ref().map_or(ptr::null(), |xml| xml.as_ptr());
    SCHEMA.read(|| {
        // SAFETY: the domain and both strings live until the call returns; libvirt copies what it keeps.
        check(unsafe { sys::virDomainBackupBegin(domain.as_ptr(), backup.as_ptr(), checkpoint_ptr, 0) })
    })
}

/// Returns the XML of the running backup job.
pub(super) fn backup_xml(domain: &Domain) -> Result<String> {
    // SAFETY: the domain lives until the call returns.
    let text = unsafe { sys::virDomainBackupGetXMLDesc(domain.as_ptr(), 0) };
    take_string(text)
}

/// Asks the running job to end.
pub(super) fn abort_job(domain: &Domain) -> Result<()> {
    // SAFETY: the domain lives until the call returns.
    check(unsafe { sys::virDomainAbortJob(domain.as_ptr()) })
}

/// Whether libvirt is working on a job for the domain, such as a backup, a migration or a snapshot. The `virt` crate's
/// own call reads memory after freeing it.
pub(super) fn has_job(domain: &Domain) -> Result<bool> {
    let mut info = MaybeUninit::<sys::virDomainJobInfo>::zeroed();
    // SAFETY: all-zero is a valid value of this plain structure, which the call fills in.
    let info = unsafe {
        check(sys::virDomainGetJobInfo(domain.as_ptr(), info.as_mut_ptr()))?;
        info.assume_init()
    };
    Ok(matches!(info.type_.unsigned_abs(), sys::VIR_DOMAIN_JOB_BOUNDED | sys::VIR_DOMAIN_JOB_UNBOUNDED))
}

/// Returns the kind (`virDomainBlockJobType`), position and end of a disk's block job, or `None` if there is none.
pub(super) fn block_job(domain: &Domain, disk: &str) -> Result<Option<(i32, u64, u64)>> {
    let disk = CString::new(disk)?;
    let mut info = MaybeUninit::<sys::virDomainBlockJobInfo>::zeroed();
    // SAFETY: all-zero is a valid value of this plain structure, which the call fills in when there is a job.
    let (found, info) = unsafe {
        let found = sys::virDomainGetBlockJobInfo(domain.as_ptr(), disk.as_ptr(), info.as_mut_ptr(), 0);
        (found, info.assume_init())
    };
    check(found)?;
    Ok((found > 0).then_some((info.type_, info.cur, info.end)))
}

/// Starts to copy the top image of a disk to an existing image, which has the content of everything below it. Until the
/// job ends, what the guest writes goes to both.
pub(super) fn block_copy_top(domain: &Domain, disk: &str, destination_xml: &str) -> Result<()> {
    let (disk, destination) = (CString::new(disk)?, CString::new(destination_xml)?);
    let flags = sys::VIR_DOMAIN_BLOCK_COPY_SHALLOW
        | sys::VIR_DOMAIN_BLOCK_COPY_REUSE_EXT
        | sys::VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB
        | sys::VIR_DOMAIN_BLOCK_COPY_SYNCHRONOUS_WRITES;
    // SAFETY: the domain and both strings live until the call returns; there are no parameters.
    check(unsafe {
        sys::virDomainBlockCopy(domain.as_ptr(), disk.as_ptr(), destination.as_ptr(), ptr::null_mut(), 0, flags)
    })
}

/// Makes the copy of a disk, which must be complete, the disk of the machine.
pub(super) fn block_pivot(domain: &Domain, disk: &str) -> Result<()> {
    let disk = CString::new(disk)?;
    // SAFETY: the domain and the name live until the call returns.
    check(unsafe { sys::virDomainBlockJobAbort(domain.as_ptr(), disk.as_ptr(), sys::VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT) })
}

/// Freezes all file systems of the guest and returns their number.
pub(super) fn freeze(domain: &Domain) -> Result<u32> {
    // SAFETY: a null list of zero entries means all; the domain lives until the call returns.
    let count = unsafe { sys::virDomainFSFreeze(domain.as_ptr(), ptr::null_mut(), 0, 0) };
    check(count).map(|()| count.unsigned_abs())
}

/// Thaws all file systems of the guest and returns the number of those that were frozen.
pub(super) fn thaw(domain: &Domain) -> Result<u32> {
    // SAFETY: a null list of zero entries means all; the domain lives until the call returns.
    let count = unsafe { sys::virDomainFSThaw(domain.as_ptr(), ptr::null_mut(), 0, 0) };
    check(count).map(|()| count.unsigned_abs())
}

/// Sets how long libvirt waits for an answer of the guest agent.
pub(super) fn set_agent_timeout(domain: &Domain, seconds: i32) -> Result<()> {
    // SAFETY: the domain lives until the call returns.
    check(unsafe { sys::virDomainAgentSetResponseTimeout(domain.as_ptr(), seconds, 0) })
}

/// Returns the state and reason as libvirt's numbers (`virDomainState`). The `virt` crate's own call ignores errors.
pub(super) fn state(domain: &Domain) -> Result<(i32, i32)> {
    let (mut state, mut reason) = (0, 0);
    // SAFETY: the domain lives until the call returns, which fills in both numbers.
    check(unsafe { sys::virDomainGetState(domain.as_ptr(), &mut state, &mut reason, 0) })?;
    Ok((state, reason))
}

/// Returns the maximum memory in KiB and the number of virtual CPUs.
pub(super) fn info(domain: &Domain) -> Result<(u64, u32)> {
    let mut info = MaybeUninit::<sys::virDomainInfo>::zeroed();
    // SAFETY: all-zero is a valid value of this plain structure, which the call fills in.
    let info = unsafe {
        check(sys::virDomainGetInfo(domain.as_ptr(), info.as_mut_ptr()))?;
        info.assume_init()
    };
    Ok((info.maxMem, u32::from(info.nrVirtCpu)))
}

/// Returns the capacity, allocation and physical size of a disk. The `virt` crate's own call ignores errors.
pub(super) fn block_info(domain: &Domain, disk: &str) -> Result<(u64, u64, u64)> {
    let disk = CString::new(disk)?;
    let mut info = MaybeUninit::<sys::virDomainBlockInfo>::zeroed();
    // SAFETY: all-zero is a valid value of this plain structure, which the call fills in.
    let info = unsafe {
        check(sys::virDomainGetBlockInfo(domain.as_ptr(), disk.as_ptr(), info.as_mut_ptr(), 0))?;
        info.assume_init()
    };
    Ok((info.capacity, info.allocation, info.physical))
}

/// Returns the names of all checkpoints of this domain that libvirt knows.
pub(super) fn checkpoint_names(domain: &Domain) -> Result<Vec<String>> {
    CheckpointRef::list(domain)?.iter().map(CheckpointRef::name).collect()
}

/// Returns the definition of a checkpoint.
pub(super) fn checkpoint_xml(domain: &Domain, name: &str, flags: u32) -> Result<String> {
    CheckpointRef::lookup(domain, name)?.xml(flags)
}

/// Creates a checkpoint, or redefines one, depending on the flags.
pub(super) fn create_checkpoint(domain: &Domain, xml: &str, flags: u32) -> Result<()> {
    CheckpointRef::create(domain, xml, flags).map(drop)
}

/// Deletes the bitmaps and metadata of a checkpoint, or what the flags specify.
pub(super) fn delete_checkpoint(domain: &Domain, name: &str, flags: u32) -> Result<()> {
    CheckpointRef::lookup(domain, name)?.delete(flags)
}

/// An owned reference to a checkpoint of a domain.
struct CheckpointRef {
    raw: sys::virDomainCheckpointPtr,
}

impl Drop for CheckpointRef {
    fn drop(&mut self) {
        // SAFETY: this value owns one reference, which nobody uses after this.
        unsafe { sys::virDomainCheckpointFree(self.raw) };
    }
}

impl CheckpointRef {
    /// Returns all checkpoints of this domain that libvirt knows.
    fn list(domain: &Domain) -> Result<Vec<CheckpointRef>> {
        let mut list: *mut sys::virDomainCheckpointPtr = ptr::null_mut();
        // SAFETY: libvirt sets `list` to an array of as many entries as it returns; the domain lives until then.
        let count = unsafe { sys::virDomainListAllCheckpoints(domain.as_ptr(), &mut list, 0) };
        check(count)?;
        let checkpoints = (0..count.unsigned_abs() as usize)
            .map(|at| CheckpointRef {
                // SAFETY: `at` is within the array; each entry is a reference that is ours now.
                raw: unsafe { *list.add(at) },
            })
            .collect();
        // SAFETY: the array (not its entries) was allocated by libvirt with malloc for us to free.
        unsafe { libc_free(list.cast()) };
        Ok(checkpoints)
    }

    /// Returns the checkpoint with this name.
    fn lookup(domain: &Domain, name: &str) -> Result<CheckpointRef> {
        let name = CString::new(name)?;
        // SAFETY: the domain and the name live until the call returns.
        let raw = unsafe { sys::virDomainCheckpointLookupByName(domain.as_ptr(), name.as_ptr(), 0) };
        CheckpointRef::own(raw)
    }

    /// Creates a checkpoint, or redefines one, depending on the flags.
    fn create(domain: &Domain, xml: &str, flags: u32) -> Result<CheckpointRef> {
        let xml = CString::new(xml)?;
        SCHEMA.read(|| {
            // SAFETY: the domain and the XML live until the call returns.
            CheckpointRef::own(unsafe { sys::virDomainCheckpointCreateXML(domain.as_ptr(), xml.as_ptr(), flags) })
        })
    }

    fn name(&self) -> Result<String> {
        // SAFETY: the reference is ours; the text belongs to it and is copied at once.
        unsafe {
            let name = sys::virDomainCheckpointGetName(self.raw);
            if name.is_null() {
                return Err(Error::last_error());
            }
            Ok(CStr::from_ptr(name).to_string_lossy().into_owned())
        }
    }

    fn xml(&self, flags: u32) -> Result<String> {
        // SAFETY: the reference is ours.
        take_string(unsafe { sys::virDomainCheckpointGetXMLDesc(self.raw, flags) })
    }

    /// Deletes the bitmaps and metadata of the checkpoint, or what the flags specify.
    fn delete(&self, flags: u32) -> Result<()> {
        // SAFETY: the reference is ours and stays valid, whatever becomes of the checkpoint.
        check(unsafe { sys::virDomainCheckpointDelete(self.raw, flags) })
    }

    fn own(raw: sys::virDomainCheckpointPtr) -> Result<CheckpointRef> {
        if raw.is_null() { Err(Error::last_error()) } else { Ok(CheckpointRef { raw }) }
    }
}

/// Looks up a secret, which the caller must free.
fn lookup_secret(connect: &Connect, secret: &SecretRef) -> Result<sys::virSecretPtr> {
    let usage = match secret.usage {
        SecretUsage::Volume => sys::VIR_SECRET_USAGE_TYPE_VOLUME,
        SecretUsage::Ceph => sys::VIR_SECRET_USAGE_TYPE_CEPH,
        SecretUsage::Iscsi => sys::VIR_SECRET_USAGE_TYPE_ISCSI,
        SecretUsage::Vtpm => sys::VIR_SECRET_USAGE_TYPE_VTPM,
    };
    let name = match &secret.name {
        SecretName::Uuid(name) | SecretName::Usage(name) => CString::new(name.as_str())?,
    };
    // SAFETY: the connection and the name live until the call returns.
    let found = unsafe {
        match secret.name {
            SecretName::Uuid(_) => sys::virSecretLookupByUUIDString(connect.as_ptr(), name.as_ptr()),
            SecretName::Usage(_) => sys::virSecretLookupByUsage(connect.as_ptr(), usage as i32, name.as_ptr()),
        }
    };
    if found.is_null() { Err(Error::last_error()) } else { Ok(found) }
}

/// Fails if there is no such secret.
pub(super) fn find_secret(connect: &Connect, secret: &SecretRef) -> Result<()> {
    let found = lookup_secret(connect, secret)?;
    // SAFETY: the secret is ours, and is freed once.
    unsafe { sys::virSecretFree(found) };
    Ok(())
}

/// Returns the value of a secret. libvirt does not reveal private ones.
pub(super) fn secret_value(connect: &Connect, secret: &SecretRef) -> Result<Zeroizing<Vec<u8>>> {
    let found = lookup_secret(connect, secret)?;
    let mut length = 0;
    // SAFETY: the secret is ours until it is freed, once; the value has as many bytes as libvirt says, and is ours to
    // free.
    unsafe {
        let value = sys::virSecretGetValue(found, &mut length, 0);
        let error = Error::last_error();
        sys::virSecretFree(found);
        if value.is_null() {
            return Err(error);
        }
        let copy = Zeroizing::new(std::slice::from_raw_parts(value, length).to_vec());
        std::slice::from_raw_parts_mut(value, length).zeroize();
        libc_free(value.cast());
        Ok(copy)
    }
}

/// Counts the restarts of a guest, as reported by libvirt.
#[derive(Debug)]
pub(super) struct RebootCounter {
    connect: Connect,
    callback: c_int,
    count: Arc<AtomicU32>,
}

impl RebootCounter {
    /// Starts counting.
    pub(super) fn start(domain: &Domain) -> Result<RebootCounter> {
        let (connect, count) = (domain.connect()?, Arc::new(AtomicU32::new(0)));
        let opaque = Arc::into_raw(Arc::clone(&count)).cast_mut().cast::<c_void>();
        // SAFETY: connection and domain live until the call returns. The pointer is a reference owned by libvirt until
        // it calls the second function. If libvirt does not accept it, it is reclaimed below.
        let callback = unsafe {
            let registered = sys::virConnectDomainEventRegisterAny(
                connect.as_ptr(),
                domain.as_ptr(),
                sys::VIR_DOMAIN_EVENT_ID_REBOOT as c_int,
                Some(count_reboot),
                opaque,
                Some(forget_counter),
            );
            if registered < 0 {
                let error = Error::last_error();
                forget_counter(opaque);
                return Err(error);
            }
            registered
        };
        Ok(RebootCounter { connect, callback, count })
    }

    /// The number of restarts since the start of counting.
    pub(super) fn count(&self) -> u32 {
        self.count.load(Ordering::Relaxed)
    }

    /// Stops counting. This is a call of libvirt.
    pub(super) fn end(self) -> Result<()> {
        // SAFETY: the connection lives until the call returns; the number is one that it gave out, and is used once.
        check(unsafe { sys::virConnectDomainEventDeregisterAny(self.connect.as_ptr(), self.callback) })
    }
}

unsafe extern "C" fn count_reboot(_: sys::virConnectPtr, _: sys::virDomainPtr, counter: *mut c_void) {
    // SAFETY: libvirt hands back the pointer that it was given, which is a counter until `forget_counter` was called.
    let counter = unsafe { &*counter.cast::<AtomicU32>() };
    counter.fetch_add(1, Ordering::Relaxed);
}

unsafe extern "C" fn forget_counter(counter: *mut c_void) {
    // SAFETY: the pointer came from `Arc::into_raw`, and libvirt calls this once.
    drop(unsafe { Arc::from_raw(counter.cast::<AtomicU32>()) });
}

/// Sets an environment variable if that is safe because this process has a single thread. Returns whether it was set.
pub(super) fn set_env_while_single_threaded(key: &str, value: &str) -> bool {
    let threads = std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    if threads != 1 {
        return false;
    }
    // SAFETY: this thread is the only one, so nobody reads the environment meanwhile.
    unsafe { std::env::set_var(key, value) };
    true
}

/// Detaches this process from terminals and pipes: it gets its own session and closes everything but the standard
/// streams. Only for a process that has opened nothing yet; a descriptor in use would be closed.
pub(crate) fn detach_from_terminal() {
    // This fails if the process is a group leader, in which case it has already left its parent's session.
    let _ = rustix::process::setsid();
    // SAFETY: descriptors above the standard streams were inherited; nobody in this process has opened or keeps one.
    unsafe { close_range(3, std::ffi::c_uint::MAX, 0) };
}

/// Lets threads share freed memory, and returns large blocks to the system at once. This is for a process in which many
/// threads handle large buffers for a long time: by default, the C library gives each thread its own arena and keeps
/// all of the memory. It slows down processes that allocate a lot in a short time.
pub(crate) fn share_freed_memory() {
    const LARGE_BYTES: c_int = 4 << 20;
    // SAFETY: this changes malloc's behaviour from now on, and is valid in any state of the process. An old C library
    // that refuses it continues as before.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES);
    }
}

/// Forks this process and returns the child's id to the parent. Only for a process with a single thread: other threads
/// would not exist in the child, and locks that they held would never be released.
pub(crate) fn fork() -> std::io::Result<Option<rustix::process::Pid>> {
    // SAFETY: it has no arguments, and with a single thread the child may do whatever the parent may.
    match unsafe { libc_fork() } {
        -1 => Err(std::io::Error::last_os_error()),
        number => Ok(rustix::process::Pid::from_raw(number)),
    }
}

fn check(result: i32) -> Result<()> {
    if result < 0 { Err(Error::last_error()) } else { Ok(()) }
}

/// Copies and frees a string that libvirt allocated.
fn take_string(text: *mut c_char) -> Result<String> {
    if text.is_null() {
        return Err(Error::last_error());
    }
    // SAFETY: libvirt returned a string that ends with a zero byte and is ours to free.
    unsafe {
        let copy = CStr::from_ptr(text).to_string_lossy().into_owned();
        libc_free(text.cast());
        Ok(copy)
    }
}

unsafe extern "C" {
    unsafe fn close_range(first: std::ffi::c_uint, last: std::ffi::c_uint, flags: std::ffi::c_int) -> std::ffi::c_int;
    #[link_name = "fork"]
    unsafe fn libc_fork() -> std::ffi::c_int;
    #[link_name = "free"]
    unsafe fn libc_free(pointer: *mut std::ffi::c_void);
}
