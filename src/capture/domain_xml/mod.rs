//! Domain XML: what a definition says, and how it is changed for a restore.
//!
//! | module | its subject |
//! | --- | --- |
//! | [`definition`] | domain XML, read (pure) |
//! | [`outside_files`] | the files that a definition mentions (pure) |
//! | [`references`] | what a definition refers to on its host (pure) |
//! | [`mod@rewrite`] | domain XML, changed for a restore (pure) |
//! | [`source`] | where a disk's contents are, layer by layer (pure) |
//! | [`tpm`] | where the state of an emulated TPM is |

pub mod definition;
pub(crate) mod outside_files;
pub mod references;
pub mod rewrite;
pub(crate) mod source;
pub(crate) mod tpm;
pub(super) mod xml;
