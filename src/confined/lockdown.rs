//! Permanently drops all privileges that parsing does not need.

use rustix::process::{DumpableBehavior, Resource, Rlimit, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, Uid};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use std::collections::BTreeMap;

/// The user and group `nobody`, which own no files, on every Linux.
const NOBODY: u32 = 65_534;

/// Memory limit, including the program itself.
const MEMORY_BYTES: u64 = 1 << 30;

/// Limit of processor time.
const PROCESSOR_SECONDS: u64 = 3600;

/// The system calls that remain allowed: reading and writing the socket, memory, time and exit; also `tgkill`, but only
/// on itself.
const ALLOWED: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_sched_yield,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    libc::SYS_sigaltstack,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Why a process could not be confined. It must then end.
#[derive(Debug, thiserror::Error)]
pub enum LockdownError {
    /// The system refused a step.
    #[error("cannot {step}: {source}")]
    System {
        /// The step that failed.
        step: &'static str,
        /// The error of the system.
        source: std::io::Error,
    },
    /// The system calls cannot be limited.
    #[error("cannot limit the system calls: {0}")]
    Seccomp(String),
}

fn step<E: Into<std::io::Error>>(step: &'static str) -> impl Fn(E) -> LockdownError {
    move |source| LockdownError::System { step, source: source.into() }
}

/// Confines this process, which must have a single thread. Open files stay usable, so only those that are needed may be
/// open.
pub fn confine() -> Result<(), LockdownError> {
    let limit = |resource, most: u64| {
        // Without privileges, a lower limit cannot be raised.
        let allowed = rustix::process::getrlimit(resource).maximum;
        let most = Some(allowed.map_or(most, |allowed| most.min(allowed)));
        rustix::process::setrlimit(resource, Rlimit { current: most, maximum: most })
    };
    for (resource, most) in [
        (Resource::As, MEMORY_BYTES),
        (Resource::Cpu, PROCESSOR_SECONDS),
        (Resource::Fsize, 0),
        (Resource::Nofile, 0),
        (Resource::Nproc, 0),
        (Resource::Core, 0),
        (Resource::Memlock, 0),
    ] {
        limit(resource, most).map_err(step("limit resources"))?;
    }
    if rustix::process::geteuid().is_root() {
        drop_privileges()?;
    }
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::clear_ambient_capability_set().map_err(step("give up ambient capabilities"))?;
    rustix::thread::set_capabilities(None, none).map_err(step("give up capabilities"))?;
    rustix::thread::set_no_new_privs(true).map_err(step("refuse new privileges"))?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(step("refuse debuggers"))?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(step("end with its parent"))?;
    limit_system_calls()
}

/// If run as root, switches to another user who cannot regain any capability.
fn drop_privileges() -> Result<(), LockdownError> {
    for capability in CapabilitySet::all().iter() {
        // A capability that is unknown to this kernel, or already dropped, causes an error that does not matter.
        let _ = rustix::thread::remove_capability_from_bounding_set(capability);
    }
    rustix::thread::set_thread_groups(&[]).map_err(step("leave its groups"))?;
    let (gid, uid) = (Gid::from_raw(NOBODY), Uid::from_raw(NOBODY));
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(step("become group nogroup"))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(step("become user nobody"))
}

fn limit_system_calls() -> Result<(), LockdownError> {
    let failed = |error: &dyn std::fmt::Display| LockdownError::Seccomp(error.to_string());
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    // abort() calls it. Without the restriction, the process could send signals to every process of the same user.
    let itself = rustix::process::getpid().as_raw_nonzero().get();
    let is_itself =
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, u64::from(itself.cast_unsigned()));
    let rule = is_itself.and_then(|condition| SeccompRule::new(vec![condition]));
    rules.insert(libc::SYS_tgkill, vec![rule.map_err(|error| failed(&error))?]);
    let arch = std::env::consts::ARCH.try_into().map_err(|error: seccompiler::BackendError| failed(&error))?;
    let filter = SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, arch);
    let program: Result<BpfProgram, _> = filter.map_err(|error| failed(&error))?.try_into();
    let program = program.map_err(|error: seccompiler::BackendError| failed(&error))?;
    seccompiler::apply_filter(&program).map_err(|error| failed(&error))
}
