//! The backup server as such: making friends with it, and looking whether all is well.

mod examine;
mod failures;
mod setup;
mod speed;

pub use examine::{ExamineFinding, ExamineStep, ExamineTarget, FolderKind, examine};
pub use setup::{SetupChange, setup};
pub use speed::Speed;
