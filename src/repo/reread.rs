//! What came over a network and is not what its name says is read once more before it counts as damage: it may have
//! been changed on the way.

use super::Result;
use crate::storage::{Storage, Transit};

/// Reads; once more where the first time has come to damage that the network may have done.
pub(super) fn read<T>(storage: &dyn Storage, mut read: impl FnMut() -> Result<T>) -> Result<T> {
    match read() {
        Err(first) if first.is_mismatch() && storage.transit() != Transit::Local => {
            let second = read();
            if second.is_ok() {
                tracing::warn!("{first}; read again, it is whole: the network or the server's memory is unreliable");
            }
            second
        }
        result => result,
    }
}
