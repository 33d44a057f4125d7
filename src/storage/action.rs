//! What was tried with a file or folder of a repository.

use std::fmt;

/// What was tried: the verb of a message, and what the message's reader may have to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileAction {
    /// The folder of the repository was looked for.
    Find,
    /// The names in a folder.
    List,
    /// A file or its size.
    Read,
    /// A new or another content.
    Write,
    /// A folder.
    Create,
    /// A file.
    Remove,
    /// Making it durable.
    Sync,
    /// What a place is, or how much room it has.
    Examine,
    /// Writing and reading to see how fast that is.
    Measure,
    /// A key into a server's list of those it lets in.
    AddKey,
    /// Any of these, in a test.
    Reach,
}

impl fmt::Display for FileAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FileAction::Find => "find",
            FileAction::List => "list",
            FileAction::Read => "read",
            FileAction::Write => "write",
            FileAction::Create => "create",
            FileAction::Remove => "remove",
            FileAction::Sync => "sync",
            FileAction::Examine => "examine",
            FileAction::Measure => "measure in",
            FileAction::AddKey => "add the key to",
            FileAction::Reach => "reach",
        })
    }
}
