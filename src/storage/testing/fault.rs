//! A decorator that records every call and injects faults.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crate::storage::{Error, FileAction, FileInfo, FileKind, Result, Storage, Transit};

/// The methods of [`Storage`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// [`Storage::create_layout`]
    CreateLayout,
    /// [`Storage::list`]
    List,
    /// [`Storage::size`]
    Size,
    /// [`Storage::read`]
    Read,
    /// [`Storage::read_range`]
    ReadRange,
    /// [`Storage::write`]
    Write,
    /// [`Storage::create`]
    Create,
    /// [`Storage::remove_exact`]
    RemoveExact,
    /// [`Storage::remove`]
    Remove,
    /// [`Storage::sync_folder`]
    SyncFolder,
    /// [`Storage::free_bytes`]
    FreeBytes,
}

/// A recorded call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedCall {
    pub operation: Operation,
    /// The kind of file, if the call is about one.
    pub kind: Option<FileKind>,
    pub(crate) name: String,
    /// The number of bytes that were requested or written.
    pub length: usize,
}

/// The effect of a fault on a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultEffect {
    /// The call fails without being executed.
    Fail,
    /// The call fails because the storage is full, without being executed.
    NoSpace,
    /// The call fails with a missing permission, without being executed.
    Refuse,
    /// The call is executed, but fails: the response was lost.
    FailAfter,
    /// Like [`FaultEffect::Fail`], but with a lost connection: a retry may succeed.
    Cut,
    /// Like [`FaultEffect::FailAfter`], but with a lost connection.
    CutAfter,
    /// The call is not executed. The file seems to be missing, and a folder seems to be empty.
    Hide,
    /// The call takes this much longer.
    Delay(Duration),
    /// The data that is read (or written) loses its last bytes.
    Truncate(usize),
    /// The lowest bit of this byte is flipped in the data that is read (or written).
    FlipBit(usize),
}

/// A fault: which calls it affects, and how.
#[derive(Debug, Clone)]
pub struct InjectedFault {
    operation: Operation,
    kind: Option<FileKind>,
    skip: u64,
    times: u64,
    effect: FaultEffect,
}

impl InjectedFault {
    /// Applies `effect` to every such call.
    pub fn every(operation: Operation, effect: FaultEffect) -> Self {
        InjectedFault { operation, kind: None, skip: 0, times: u64::MAX, effect }
    }

    /// Restricts the fault to files of this kind.
    pub fn on(mut self, kind: FileKind) -> Self {
        self.kind = Some(kind);
        self
    }

    /// Restricts the fault to calls from the `n`-th matching one on, counted from 1.
    pub fn from_nth(mut self, n: u64) -> Self {
        self.skip = n.saturating_sub(1);
        self
    }

    /// Restricts the fault to the `n`-th matching call, counted from 1.
    pub fn nth(self, n: u64) -> Self {
        let mut fault = self.from_nth(n);
        fault.times = 1;
        fault
    }
}

#[derive(Debug, Default)]
struct FaultState {
    calls: Vec<RecordedCall>,
    faults: Vec<InjectedFault>,
}

/// A storage with injected faults.
#[derive(Debug)]
pub struct FaultStorage {
    inner: Arc<dyn Storage>,
    state: Mutex<FaultState>,
}

impl FaultStorage {
    /// Passes all calls through to `inner` until a fault is added.
    pub fn new(inner: Arc<dyn Storage>) -> Self {
        FaultStorage { inner, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, FaultState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a fault.
    pub fn add(&self, fault: InjectedFault) {
        self.state().faults.push(fault);
    }

    /// Removes all faults.
    pub fn heal(&self) {
        self.state().faults.clear();
    }

    /// Returns every call so far, in order.
    pub fn calls(&self) -> Vec<RecordedCall> {
        self.state().calls.clone()
    }

    /// Returns the names of the files written and created so far, in order.
    pub fn written(&self) -> Vec<(FileKind, String)> {
        let calls = self.calls().into_iter();
        calls
            .filter(|call| matches!(call.operation, Operation::Write | Operation::Create))
            .filter_map(|call| call.kind.map(|kind| (kind, call.name)))
            .collect()
    }

    /// Records a call and returns the effects that apply to it.
    fn enter(&self, operation: Operation, kind: Option<FileKind>, name: &str, length: usize) -> Vec<FaultEffect> {
        let mut state = self.state();
        state.calls.push(RecordedCall { operation, kind, name: name.to_owned(), length });
        let mut effects = Vec::new();
        for fault in &mut state.faults {
            let matches = fault.operation == operation && (fault.kind.is_none() || fault.kind == kind);
            if !matches {
                continue;
            }
            if fault.skip > 0 {
                fault.skip -= 1;
            } else if fault.times > 0 {
                fault.times -= 1;
                effects.push(fault.effect);
            }
        }
        effects
    }

    fn hidden<T>(&self, effects: &[FaultEffect], kind: FileKind, name: &str) -> Option<Result<T>> {
        let not_found = || Error::NotFound { url: self.url(), kind, name: name.to_owned() };
        effects.contains(&FaultEffect::Hide).then(|| Err(not_found()))
    }

    fn run<T>(
        &self,
        operation: Operation,
        effects: &[FaultEffect],
        name: &str,
        call: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let io = |source| Error::Io { action: FileAction::Reach, path: PathBuf::from(name), source };
        let failure = || io(std::io::Error::other("failure wanted by a test"));
        let cut = || io(std::io::ErrorKind::ConnectionReset.into());
        for effect in effects {
            match effect {
                FaultEffect::Fail => return Err(failure()),
                FaultEffect::Cut => return Err(cut()),
                FaultEffect::NoSpace => {
                    return Err(Error::NoSpace {
                        url: self.url(),
                        path: PathBuf::from(name),
                        source: std::io::ErrorKind::StorageFull.into(),
                    });
                }
                FaultEffect::Refuse => {
                    let action = if operation == Operation::Remove { FileAction::Remove } else { FileAction::Reach };
                    let source = std::io::ErrorKind::PermissionDenied.into();
                    return Err(Error::Io { action, path: PathBuf::from(name), source });
                }
                FaultEffect::Delay(time) => std::thread::sleep(*time),
                FaultEffect::FailAfter
                | FaultEffect::CutAfter
                | FaultEffect::Hide
                | FaultEffect::Truncate(_)
                | FaultEffect::FlipBit(_) => {}
            }
        }
        let result = call();
        match effects.iter().find(|effect| matches!(effect, FaultEffect::FailAfter | FaultEffect::CutAfter)) {
            Some(FaultEffect::FailAfter) => Err(failure()),
            Some(_) => Err(cut()),
            None => result,
        }
    }
}

fn damage(mut bytes: Vec<u8>, effects: &[FaultEffect]) -> Vec<u8> {
    for effect in effects {
        match effect {
            FaultEffect::Truncate(count) => bytes.truncate(bytes.len().saturating_sub(*count)),
            FaultEffect::FlipBit(position) => {
                if let Some(byte) = bytes.get_mut(*position) {
                    *byte ^= 1;
                }
            }
            _ => {}
        }
    }
    bytes
}

impl Storage for FaultStorage {
    fn url(&self) -> String {
        self.inner.url()
    }

    fn transit(&self) -> Transit {
        self.inner.transit()
    }

    fn create_layout(&self) -> Result<()> {
        let effects = self.enter(Operation::CreateLayout, None, "", 0);
        self.run(Operation::CreateLayout, &effects, "", || self.inner.create_layout())
    }

    fn list(&self, kind: FileKind) -> Result<Vec<FileInfo>> {
        let effects = self.enter(Operation::List, Some(kind), "", 0);
        match effects.contains(&FaultEffect::Hide) {
            true => Ok(Vec::new()),
            false => self.run(Operation::List, &effects, "", || self.inner.list(kind)),
        }
    }

    fn size(&self, kind: FileKind, name: &str) -> Result<u64> {
        let effects = self.enter(Operation::Size, Some(kind), name, 0);
        let size = || self.run(Operation::Size, &effects, name, || self.inner.size(kind, name));
        self.hidden(&effects, kind, name).unwrap_or_else(size)
    }

    fn read(&self, kind: FileKind, name: &str) -> Result<Vec<u8>> {
        let effects = self.enter(Operation::Read, Some(kind), name, 0);
        let read = || self.run(Operation::Read, &effects, name, || self.inner.read(kind, name));
        self.hidden(&effects, kind, name).unwrap_or_else(read).map(|bytes| damage(bytes, &effects))
    }

    fn read_range(&self, kind: FileKind, name: &str, offset: u64, length: usize) -> Result<Vec<u8>> {
        let effects = self.enter(Operation::ReadRange, Some(kind), name, length);
        self.run(Operation::ReadRange, &effects, name, || self.inner.read_range(kind, name, offset, length))
            .map(|bytes| damage(bytes, &effects))
    }

    fn write(&self, kind: FileKind, name: &str, contents: &[u8]) -> Result<()> {
        let effects = self.enter(Operation::Write, Some(kind), name, contents.len());
        self.run(Operation::Write, &effects, name, || {
            if effects.is_empty() {
                return self.inner.write(kind, name, contents);
            }
            let contents = damage(contents.to_vec(), &effects);
            self.inner.write(kind, name, &contents)
        })
    }

    fn create(&self, kind: FileKind, name: &str, contents: &[u8]) -> Result<()> {
        let effects = self.enter(Operation::Create, Some(kind), name, contents.len());
        self.run(Operation::Create, &effects, name, || {
            self.inner.create(kind, name, &damage(contents.to_vec(), &effects))
        })
    }

    fn remove_exact(&self, kind: FileKind, name: &str, contents: &[u8]) -> Result<bool> {
        let effects = self.enter(Operation::RemoveExact, Some(kind), name, contents.len());
        self.run(Operation::RemoveExact, &effects, name, || self.inner.remove_exact(kind, name, contents))
    }

    fn remove(&self, kind: FileKind, name: &str) -> Result<()> {
        let effects = self.enter(Operation::Remove, Some(kind), name, 0);
        let remove = || self.run(Operation::Remove, &effects, name, || self.inner.remove(kind, name));
        self.hidden(&effects, kind, name).unwrap_or_else(remove)
    }

    fn sync_folder(&self, kind: FileKind, name: &str) -> Result<()> {
        let effects = self.enter(Operation::SyncFolder, Some(kind), name, 0);
        self.run(Operation::SyncFolder, &effects, name, || self.inner.sync_folder(kind, name))
    }

    fn remove_leftovers(&self) -> Result<()> {
        self.inner.remove_leftovers()
    }

    fn sees_writes_at_once(&self) -> bool {
        self.inner.sees_writes_at_once()
    }

    fn parallel(&self) -> usize {
        self.inner.parallel()
    }

    fn lock_period(&self) -> Option<Duration> {
        self.inner.lock_period()
    }

    fn can_lock(&self) -> Result<bool> {
        self.inner.can_lock()
    }

    fn locked_until(&self, kind: FileKind, name: &str) -> Result<Option<SystemTime>> {
        self.inner.locked_until(kind, name)
    }

    fn extend_lock(&self, kind: FileKind, name: &str) -> Result<Option<SystemTime>> {
        self.inner.extend_lock(kind, name)
    }

    fn free_bytes(&self) -> Result<Option<u64>> {
        let effects = self.enter(Operation::FreeBytes, None, "", 0);
        self.run(Operation::FreeBytes, &effects, "", || self.inner.free_bytes())
    }
}
