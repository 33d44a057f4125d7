//! Passes the key of an open repository to a child process, which then need not derive it from the password again. The
//! key goes through a pipe to which nobody else has access, never through arguments, the environment or a file.

use std::io::{self, Read};

use zeroize::Zeroizing;

use super::Id;
use super::crypto::SealKey;

const ID_BYTES: usize = 32;
/// The maximum length of a key as JSON.
const LONGEST_BYTES: u64 = 1024;

/// A master key, and the id of the key file that contained it.
pub(crate) struct HandedKey {
    pub(super) id: Id,
    pub(super) key: SealKey,
}

impl HandedKey {
    /// Reads a key from a pipe, up to its end. Returns `None` if the data is not a key.
    pub(crate) fn receive(pipe: impl Read) -> io::Result<Option<HandedKey>> {
        // The capacity is never exceeded: a reallocation would leave a copy of the key behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(2 * LONGEST_BYTES as usize));
        pipe.take(LONGEST_BYTES).read_to_end(&mut bytes)?;
        let parts = bytes.split_first_chunk::<ID_BYTES>();
        Ok(parts.and_then(|(id, json)| Some(HandedKey { id: Id::from_bytes(*id), key: SealKey::from_json(json)? })))
    }

    /// Returns the bytes to send through the pipe.
    pub(crate) fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(LONGEST_BYTES as usize));
        bytes.extend_from_slice(self.id.as_bytes());
        bytes.extend_from_slice(&self.key.to_json());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::{Password, Repository};
    use crate::storage::testing::MemoryStorage;
    use crate::storage::{FileKind, Storage};
    use std::sync::Arc;

    fn repository() -> (Arc<dyn Storage>, Repository) {
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
        let repo = Repository::create(Arc::clone(&storage), &Password::new("first".to_owned())).expect("create");
        (storage, repo)
    }

    fn through_pipe(repo: &Repository) -> HandedKey {
        HandedKey::receive(&**repo.handed_key().to_bytes()).expect("read").expect("a key")
    }

    #[test]
    fn handed_key_opens_only_its_repository() {
        let (storage, repo) = repository();
        let opened = Repository::open_handed(storage, through_pipe(&repo)).expect("open").expect("it fits");
        assert_eq!((opened.id(), opened.key_id()), (repo.id(), repo.key_id()));
        let (other, _) = repository();
        assert!(Repository::open_handed(other, through_pipe(&repo)).expect("look").is_none());
    }

    #[test]
    fn handed_key_is_refused_after_its_removal() {
        let (storage, repo) = repository();
        let handed = through_pipe(&repo);
        storage.remove(FileKind::Key, &repo.key_id().to_string()).expect("remove");
        assert!(Repository::open_handed(storage, handed).expect("look").is_none());
    }

    #[test]
    fn truncated_key_is_refused() {
        let (_, repo) = repository();
        let bytes = repo.handed_key().to_bytes();
        for part in [&bytes[..0], &bytes[..31], &bytes[..40], &bytes[1..]] {
            assert!(HandedKey::receive(part).expect("read").is_none(), "{} bytes", part.len());
        }
    }
}
