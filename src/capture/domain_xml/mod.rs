//! Domain XML: parsing definitions, and changing them for a restore.
//!
//! | module | subject |
//! | --- | --- |
//! | [`definition`] | parses domain XML (pure) |
//! | [`outside_files`] | the files that a definition references (pure) |
//! | [`references`] | the resources of a host that a definition references (pure) |
//! | [`mod@rewrite`] | changes domain XML for a restore (pure) |
//! | [`source`] | the location of a disk's content, layer by layer (pure) |
//! | [`tpm`] | the location of the state of an emulated TPM |

pub mod definition;
pub(crate) mod outside_files;
pub mod references;
pub mod rewrite;
pub(crate) mod source;
pub(crate) mod tpm;
pub(super) mod xml;
