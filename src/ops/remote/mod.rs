//! Setup and tests of a backup server.

mod examine;
mod failures;
mod setup;
mod speed;

pub(crate) use examine::{ExamineFinding, ExamineStep, ExamineTarget, FolderKind, examine};
pub(crate) use failures::refused_key;
pub(crate) use setup::{SetupChange, setup};
pub(crate) use speed::Speed;
