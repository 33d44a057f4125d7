//! Arguments that several commands share.

pub(crate) mod capture;
pub(crate) mod copy;
pub(crate) mod global;
pub(crate) mod log;
pub(crate) mod machine;
pub(crate) mod object_lock;
pub(crate) mod repo;
pub(crate) mod value_parsers;
