//! Data from a network that does not match its name is read again before it is considered damaged: it may have been
//! altered in transit.

use super::Result;
use crate::storage::{Storage, Transit};

/// Reads data, repeatedly if the result is damage that the network may have caused.
pub(super) fn read<T>(storage: &dyn Storage, mut read: impl FnMut() -> Result<T>) -> Result<T> {
    let result = read();
    until_whole(result, more_reads(storage), read)
}

/// Like [`read`], for data that was wrong in an earlier read: makes one attempt less.
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

/// Returns how many more reads are needed to establish that the damage is in the storage. With TLS or SSH an altered
/// bit ends the connection, so one is enough. Without, each connection over a bad network may alter data.
fn more_reads(storage: &dyn Storage) -> usize {
    match storage.transit() {
        Transit::Local => 0,
        Transit::Protected => 1,
        Transit::Unprotected => 7,
    }
}
