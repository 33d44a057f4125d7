//! An open repository: its keys, its config, and its small files.

use std::any::Any;
use std::fmt;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::cache_folder::CacheFolder;
use super::config::RepoConfig;
use super::creation::{self, Created};
use super::crypto::{self, SealKey};
use super::handed_key::HandedKey;
use super::kept_key::KeptKey;
use super::kept_records::KeptRecords;
use super::key::KeyFile;
use super::key_cache::KeyCache;
use super::{Error, Flaw, Id, Password, Presence, RepoCacheDir, Result, reread};
use crate::helper_thread;
use crate::storage::{self, FileInfo, FileKind, Storage};

/// The first byte of an "unpacked" file in format 2: zstd-compressed JSON follows.
const ENCODING_ZSTD: u8 = 2;
/// The compression level for index, snapshot and lock files, which are small.
const UNPACKED_LEVEL: i32 = 3;
/// The maximum decompressed size of such a file. An index of 50,000 blobs has some 10 MB of JSON.
const UNPACKED_LIMIT: u64 = 1 << 30;
/// How long the list of locks from the opening is recent enough to check whether requesting a lock is worthwhile.
const RECENT: Duration = Duration::from_secs(30);
/// The number of threads that read and remove small files, to hide the latency of a remote storage.
const SMALL_FILE_THREADS: usize = 8;

/// An open repository. Cheap to clone; may be used from any thread.
#[derive(Clone)]
pub struct Repository {
    inner: Arc<Inner>,
    host_folder: Option<Arc<RepoCacheDir>>,
    cache: Option<Cache>,
}

/// The cache on this host.
#[derive(Clone)]
struct Cache {
    folder: Arc<CacheFolder>,
    records: Arc<KeptRecords>,
}

struct Inner {
    storage: Arc<dyn Storage>,
    url: String,
    key: SealKey,
    key_id: Id,
    config: RepoConfig,
    /// The index as it was last read. Its type is known only to the index.
    last_index: LastIndex,
    /// The locks as listed when the repository was opened; `None` if listing them would have taken extra time.
    locks_at_opening: Mutex<Option<ListedLocks>>,
}

/// Locks, and when they were listed.
type ListedLocks = (Instant, Vec<FileInfo>);

/// A value that all clones of a repository share.
pub(super) type LastIndex = Mutex<Option<Arc<dyn Any + Send + Sync>>>;

/// The result of opening: the id of the key file, the key in it, and the config.
type Unlocked = (Id, SealKey, RepoConfig);

impl Inner {
    fn new(storage: Arc<dyn Storage>, url: String, (key_id, key, config): Unlocked) -> Arc<Inner> {
        let (last_index, locks_at_opening) = (LastIndex::default(), Mutex::default());
        Arc::new(Inner { storage, url, key, key_id, config, last_index, locks_at_opening })
    }
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repository")
            .field("url", &self.inner.url)
            .field("id", &self.inner.config.id)
            .finish_non_exhaustive()
    }
}

impl Repository {
    /// Creates a repository. Fails with [`Error::AlreadyExists`] if there is one, or remains of one, even if another
    /// process creates it at the same moment. An interrupted creation is completed after a wait of ten seconds.
    pub fn create(storage: Arc<dyn Storage>, password: &Password) -> Result<Repository> {
        let url = storage.url();
        let Created { key, key_id, config } = creation::create(&*storage, password)?;
        Ok(Repository { inner: Inner::new(storage, url, (key_id, key, config)), host_folder: None, cache: None })
    }

    /// Returns the state of a place. Without a config this is [`Presence::Nothing`], because the folders of a
    /// repository may be missing, too.
    pub(crate) fn presence(storage: &dyn Storage) -> Result<Presence> {
        match storage.size(FileKind::Config, "") {
            Err(error) if error.is_not_found() => Ok(Presence::Nothing),
            Err(error) => Err(error.into()),
            Ok(_) => Presence::of(storage),
        }
    }

    /// Opens a repository with the first key that the password opens. Waits up to ten seconds for one that is being
    /// created.
    pub fn open(storage: Arc<dyn Storage>, password: &Password) -> Result<Repository> {
        Repository::open_with(storage, password, None, None)
    }

    /// Like [`Repository::open`], with a cache of derived keys, and with a copy of a key file below `cache`, as for
    /// [`Repository::cached_in`].
    pub fn open_with(
        storage: Arc<dyn Storage>,
        password: &Password,
        key_cache: Option<&KeyCache>,
        cache: Option<&Path>,
    ) -> Result<Repository> {
        let url = storage.url();
        let kept_key = cache.map(|base| KeptKey::open(base, &url));
        let caches = (key_cache, kept_key.as_ref());
        let (opened, locks) = creation::wait_for_creator(&*storage, || open_config(&*storage, &url, password, caches))?;
        let inner = Inner::new(storage, url, opened);
        *inner.locks_at_opening.lock().unwrap_or_else(PoisonError::into_inner) = locks;
        Ok(Repository { inner, host_folder: None, cache: None })
    }

    /// Opens a repository with a key from another process of this host. Returns `None` if the repository no longer
    /// lists that key, or is a different one.
    pub(crate) fn open_handed(storage: Arc<dyn Storage>, handed: HandedKey) -> Result<Option<Repository>> {
        let (url, begun) = (storage.url(), Instant::now());
        let (sealed, lists) = read_config_and_list(&*storage).map_err(Error::unread)?;
        let mut lists = lists.into_iter();
        let keys = with_sizes(FileKind::Key, lists.next().unwrap_or_default());
        let Ok(config) = RepoConfig::open(&sealed, &handed.key, &url) else { return Ok(None) };
        if keys.iter().all(|(id, _)| *id != handed.id) {
            return Ok(None);
        }
        let inner = Inner::new(storage, url, (handed.id, handed.key, config));
        let locks = lists.next().map(|locks| (begun, locks));
        *inner.locks_at_opening.lock().unwrap_or_else(PoisonError::into_inner) = locks;
        Ok(Some(Repository { inner, host_folder: None, cache: None }))
    }

    /// Returns the key that opened the repository, for a child process.
    pub(crate) fn handed_key(&self) -> HandedKey {
        HandedKey { id: *self.key_id(), key: self.key().clone() }
    }

    /// Returns the same repository with data that this host keeps about it between runs, below kvmb's data folder.
    pub fn remembered_in(self, data_folder: &Path) -> Repository {
        let host_folder = self.id().parse().ok().map(|id| Arc::new(RepoCacheDir::new(data_folder, id)));
        Repository { host_folder, ..self }
    }

    /// Returns the same repository with a cache in its own folder below `base`. If that is unusable, there is no cache.
    pub fn cached_in(self, base: &Path) -> Repository {
        let Ok(id) = self.id().parse() else { return self };
        match CacheFolder::open(base, id) {
            Ok(folder) => {
                let folder = Arc::new(folder);
                let records = Arc::new(KeptRecords::new(Arc::clone(&folder), self.key().clone()));
                Repository { cache: Some(Cache { folder, records }), ..self }
            }
            Err(error) => {
                tracing::debug!("no cache in {}: {error}", base.display());
                self
            }
        }
    }

    /// Returns the cache folder, if there is one.
    pub(super) fn cache_folder(&self) -> Option<&Arc<CacheFolder>> {
        self.cache.as_ref().map(|cache| &cache.folder)
    }

    /// Returns the small records in the cache, if there is one.
    pub(super) fn kept_records(&self) -> Option<&KeptRecords> {
        self.cache.as_ref().map(|cache| &*cache.records)
    }

    /// Returns the same repository without a cache, for callers that remove data or look for damage.
    pub(crate) fn uncached(&self) -> Repository {
        Repository { cache: None, ..self.clone() }
    }

    /// Returns a repository with the same storage and key, but without shared state, for values that this one owns.
    pub(super) fn apart(&self) -> Repository {
        let Inner { storage, url, key, key_id, config, .. } = &*self.inner;
        let inner = Inner::new(Arc::clone(storage), url.clone(), (*key_id, key.clone(), config.clone()));
        Repository { inner, host_folder: None, cache: None }
    }

    /// Returns the data that this host keeps about the repository, if its location is known.
    pub fn host_folder(&self) -> Option<&RepoCacheDir> {
        self.host_folder.as_deref()
    }

    /// Returns the repository's id, which copies of the repository share.
    pub fn id(&self) -> &str {
        &self.inner.config.id
    }

    /// Returns the address, without secrets.
    pub(crate) fn url(&self) -> String {
        self.inner.url.clone()
    }

    /// Returns the storage.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.inner.storage
    }

    /// Returns the locks that were listed when the repository was opened, if that was recent. They are returned only
    /// once.
    pub(super) fn take_locks_at_opening(&self) -> Option<Vec<FileInfo>> {
        let (at, files) = self.inner.locks_at_opening.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        (at.elapsed() < RECENT).then_some(files)
    }

    pub(super) fn last_index(&self) -> &LastIndex {
        &self.inner.last_index
    }

    pub(super) fn key_id(&self) -> &Id {
        &self.inner.key_id
    }

    pub(super) fn key(&self) -> &SealKey {
        &self.inner.key
    }

    /// Returns the ids of all files of a kind, sorted. Files whose name is not an id are ignored.
    pub(super) fn list(&self, kind: FileKind) -> Result<Vec<Id>> {
        Ok(self.list_with_sizes(kind)?.into_iter().map(|(id, _)| id).collect())
    }

    /// Like [`Repository::list`], with the sizes of the files.
    pub(super) fn list_with_sizes(&self, kind: FileKind) -> Result<Vec<(Id, u64)>> {
        Ok(with_sizes(kind, self.storage().list(kind)?))
    }

    /// Like [`Repository::list_with_sizes`], for two kinds at once, except packs.
    pub(super) fn list_both_with_sizes(&self, kinds: [FileKind; 2]) -> Result<[Vec<(Id, u64)>; 2]> {
        let mut lists = self.storage().list_several(&kinds)?.into_iter();
        Ok(kinds.map(|kind| with_sizes(kind, lists.next().unwrap_or_default())))
    }

    /// Seals and stores an index, snapshot or lock.
    pub(super) fn save_unpacked(&self, kind: FileKind, value: &impl serde::Serialize) -> Result<Id> {
        let json = serde_json::to_vec(value).map_err(|e| Error::damaged(kind, "new", Flaw::NotJson(e.to_string())))?;
        let mut buffer = vec![0; crypto::IV_LENGTH];
        buffer.push(ENCODING_ZSTD);
        let compressed = zstd::bulk::compress(&json, UNPACKED_LEVEL).map_err(Error::Compress)?;
        buffer.extend_from_slice(&compressed);
        self.key().seal_in_place(&mut buffer)?;
        let id = Id::hash(&buffer);
        self.inner.storage.write(kind, &id.to_string(), &buffer)?;
        Ok(id)
    }

    /// Reads an index, snapshot or lock, and verifies and unseals it.
    pub(super) fn load_unpacked<T: serde::de::DeserializeOwned>(&self, kind: FileKind, id: &Id) -> Result<T> {
        reread::read(&**self.storage(), || self.load_unpacked_once(kind, id))
    }

    fn load_unpacked_once<T: serde::de::DeserializeOwned>(&self, kind: FileKind, id: &Id) -> Result<T> {
        let damaged = |flaw| Error::damaged(kind, id, flaw);
        let mut sealed = self.inner.storage.read(kind, &id.to_string()).map_err(Error::unread)?;
        if Id::hash(&sealed) != *id {
            return Err(damaged(Flaw::NotItsName));
        }
        let plain = self.key().open_in_place(&mut sealed).map_err(|e| damaged(e.into()))?;
        let not_json = |e: serde_json::Error| damaged(Flaw::NotJson(e.to_string()));
        match plain.split_first() {
            None => Err(damaged(Flaw::TooShort)),
            Some((b'{' | b'[', _)) => serde_json::from_slice(plain).map_err(not_json),
            Some((&ENCODING_ZSTD, compressed)) => {
                let mut json = Vec::new();
                zstd::Decoder::with_buffer(compressed)
                    .and_then(|decoder| decoder.take(UNPACKED_LIMIT).read_to_end(&mut json))
                    .map_err(|_| damaged(Flaw::NotDecompressable))?;
                serde_json::from_slice(&json).map_err(not_json)
            }
            Some((other, _)) => Err(damaged(Flaw::UnknownEncoding(*other))),
        }
    }

    /// Runs `work` for every item (a small file) on a few threads. The results are in the order of the items.
    pub(super) fn for_each<I: Sync, T: Send>(&self, items: &[I], work: impl Fn(&I) -> T + Sync) -> Vec<T> {
        let next = std::sync::atomic::AtomicUsize::new(0);
        let worker = || {
            let mut results = Vec::new();
            while let Some((position, item)) = {
                let position = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                items.get(position).map(|item| (position, item))
            } {
                results.push((position, work(item)));
            }
            results
        };
        let mut results: Vec<(usize, T)> = std::thread::scope(|scope| {
            let helpers: Vec<_> =
                (1..SMALL_FILE_THREADS.min(items.len())).map(|_| helper_thread::start(scope, worker)).collect();
            let mut results = worker();
            for helper in helpers {
                match helper.join() {
                    Ok(more) => results.extend(more),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            results
        });
        results.sort_unstable_by_key(|(position, _)| *position);
        results.into_iter().map(|(_, result)| result).collect()
    }
}

/// Returns the files whose name is an id, sorted.
pub(super) fn with_sizes(kind: FileKind, files: Vec<FileInfo>) -> Vec<(Id, u64)> {
    let mut ids = Vec::new();
    for file in files {
        match file.name.parse() {
            Ok(id) => ids.push((id, file.size_bytes)),
            // Probably a copy that a folder synchronization program made.
            Err(_) if looks_like_id(&file.name) => {
                tracing::warn!(%kind, name = file.name, "ignoring a file with an unexpected name")
            }
            // NAS and desktop systems add such files to every folder.
            Err(_) => tracing::debug!(%kind, name = file.name, "ignoring a file of another program"),
        }
    }
    ids.sort_unstable();
    ids
}

/// Returns whether a name begins like an id.
fn looks_like_id(name: &str) -> bool {
    name.bytes().take_while(u8::is_ascii_hexdigit).count() >= 8
}

/// Reads the config and lists the keys, and the locks if that takes no extra time.
fn read_config_and_list(storage: &dyn Storage) -> storage::Result<(Vec<u8>, Vec<Vec<FileInfo>>)> {
    if storage.lists_several_at_once() {
        match storage.read_config_and_list(&[FileKind::Key, FileKind::Lock]) {
            // The locks may be unreadable for this user: read the rest.
            Err(storage::Error::Io { .. }) => {}
            other => return other,
        }
    }
    storage.read_config_and_list(&[FileKind::Key])
}

/// Opens the config from the bytes that were read, or from another read.
fn open_sealed(storage: &dyn Storage, sealed: &[u8], key: &SealKey, url: &str) -> Result<RepoConfig> {
    let mut first = Some(sealed);
    reread::read(storage, || match first.take() {
        Some(sealed) => RepoConfig::open(sealed, key, url),
        None => RepoConfig::open(&storage.read(FileKind::Config, "").map_err(Error::unread)?, key, url),
    })
}

/// Returns the config, and the key that opens it, with the locks if they were listed. A key that the password opens,
/// but that does not open the config, belongs to a creator that gave up.
fn open_config(
    storage: &dyn Storage,
    url: &str,
    password: &Password,
    (key_cache, kept_key): (Option<&KeyCache>, Option<&KeptKey>),
) -> Result<(Unlocked, Option<ListedLocks>)> {
    let url = url.to_owned();
    let begun = Instant::now();
    let (sealed, mut keys, locks) = match read_config_and_list(storage) {
        Ok((sealed, lists)) => {
            let mut lists = lists.into_iter();
            let keys = with_sizes(FileKind::Key, lists.next().unwrap_or_default());
            (sealed, keys, lists.next().map(|locks| (begun, locks)))
        }
        Err(e) if e.is_not_found() => {
            let keys = storage.list(FileKind::Key).unwrap_or_default();
            return Err(match keys.is_empty() {
                true => Error::NoRepository { url },
                false => Error::ConfigMissing { url },
            });
        }
        Err(e) => return Err(Error::unread(e)),
    };
    let kept = |id: &Id, size_bytes: u64| {
        let contents = kept_key.and_then(|kept| kept.contents(id));
        contents.filter(|contents| contents.len() as u64 == size_bytes)
    };
    // Try cached keys first: deriving another one takes time.
    keys.sort_by_cached_key(|(id, size_bytes)| {
        (!key_cache.is_some_and(|cache| cache.has(id)), kept(id, *size_bytes).is_none())
    });
    if keys.is_empty() && creation::is_unfinished(storage)? {
        return Err(Error::Unfinished { url });
    }
    let (mut damaged, mut tried, mut unfit) = (Vec::new(), false, None);
    for (id, size_bytes) in keys {
        let read = || -> Result<(KeyFile, Vec<u8>)> {
            let contents = match kept(&id, size_bytes) {
                Some(kept) => kept.to_vec(),
                None => KeyFile::contents(storage, &id)?,
            };
            Ok((KeyFile::parse(&id, &contents)?, contents))
        };
        match reread::read(storage, read) {
            Ok((file, contents)) => {
                tried = true;
                let Some(key) = file.unlock(&id, password, key_cache)? else { continue };
                match open_sealed(storage, &sealed, &key, &url) {
                    Ok(config) => {
                        kept_key.into_iter().for_each(|kept| kept.keep(&id, &contents));
                        return Ok(((id, key, config), locks));
                    }
                    Err(error) => unfit = Some(error),
                }
            }
            Err(error @ Error::Damaged { .. }) => {
                tracing::warn!(key = %id, %error, "skipping a key");
                damaged.push(id);
            }
            // A creator that gave up removed it.
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Err(match (unfit, tried) {
        (Some(error), _) => error,
        (None, true) => Error::WrongPassword { url, damaged },
        (None, false) => Error::NoKey { url, damaged },
    })
}
