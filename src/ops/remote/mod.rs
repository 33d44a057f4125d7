//! The backup server as such: making friends with it, and looking whether all is well.

mod examine;
mod setup;
mod speed;

pub use examine::{Finding, Place, Step, Subject, examine};
pub use setup::{Change, setup};

use super::Error;
use crate::repo;
use crate::storage;
use crate::storage::sftp::fault::Fault;
use crate::storage::sftp::{self, Target};

/// A failure on the way to the server.
fn unreached(target: &Target) -> impl Fn(sftp::Error) -> Error {
    move |source| {
        let error = storage::Error::Server { url: target.to_string(), source: Box::new(source) };
        repo::Error::Storage(error).into()
    }
}

/// A failure with a file there.
fn failed(target: &Target, action: &'static str, path: &str) -> impl Fn(Fault) -> Error {
    let path = path.to_owned();
    move |fault| repo::Error::Storage(fault.explain(&target.to_string(), action, &path)).into()
}
