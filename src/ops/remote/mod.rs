//! The backup server as such: making friends with it, and looking whether all is well.

mod examine;
mod setup;
mod speed;

pub use examine::{ExamineFinding, ExamineStep, ExamineTarget, FolderKind, examine};
pub use setup::{SetupChange, setup};
pub use speed::Speed;

use super::Error;
use crate::repo;
use crate::storage::sftp::fault::SftpFault;
use crate::storage::sftp::{self, SftpAddress};
use crate::storage::{self, FileAction};

/// A failure on the way to the server.
fn unreachable_host(target: &SftpAddress) -> impl Fn(sftp::Error) -> Error {
    move |source| {
        let error = storage::Error::Server { url: target.to_string(), source: Box::new(source) };
        repo::Error::Storage(error).into()
    }
}

/// A failure with a file there.
fn failed(target: &SftpAddress, action: FileAction, path: &str) -> impl Fn(SftpFault) -> Error {
    let path = path.to_owned();
    move |fault| repo::Error::Storage(fault.explain(&target.to_string(), action, &path)).into()
}
