//! The actions on files and folders of a repository that errors name.

use std::fmt;

/// An action that failed: the verb of a message, which also decides what the user may have to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileAction {
    /// Locating the folder of the repository.
    Find,
    /// Listing a folder.
    List,
    /// Reading a file or its size.
    Read,
    /// Writing a file.
    Write,
    /// Creating a folder.
    Create,
    /// Removing a file.
    Remove,
    /// Making a change durable.
    Sync,
    /// Querying the properties of the storage, or its free space.
    Examine,
    /// Measuring the speed of writes and reads.
    Measure,
    /// Adding a key to a server's `authorized_keys`.
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
