//! What came over a network and is not what its name says is read again before it counts as damage: it may have been
//! changed on the way.

use super::Result;
use crate::storage::{Storage, Transit};

/// Reads; again where that has come to damage that the network may have done.
pub(super) fn read<T>(storage: &dyn Storage, mut read: impl FnMut() -> Result<T>) -> Result<T> {
    let result = read();
    until_whole(result, more_reads(storage), read)
}

/// The same of what was wrong when it was read a first time: it is read once more from wherever it is.
pub(super) fn read_again<T>(storage: &dyn Storage, mut read: impl FnMut() -> Result<T>) -> Result<T> {
    let result = read();
    until_whole(result, more_reads(storage).saturating_sub(1), read)
}

fn until_whole<T>(mut result: Result<T>, more: usize, mut read: impl FnMut() -> Result<T>) -> Result<T> {
    for _ in 0..more {
        match result {
            Err(damage) if damage.is_mismatch() => {
                result = read();
                if result.is_ok() {
                    tracing::warn!(
                        "{damage}; a second read was intact: the network or the server's memory is unreliable"
                    );
                }
            }
            result => return result,
        }
    }
    result
}

/// How many more reads show that the damage is the storage's own. With TLS or SSH a wrong bit ends the connection, so
/// one tells; without, each connection of a bad network may have its own.
fn more_reads(storage: &dyn Storage) -> usize {
    match storage.transit() {
        Transit::Local => 0,
        Transit::Protected => 1,
        Transit::Unprotected => 7,
    }
}
