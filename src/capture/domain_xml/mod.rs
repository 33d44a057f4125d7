//! Domain XML: what a definition says, and how it is changed for a restore.
//!
//! | module | its subject |
//! | --- | --- |
//! | [`definition`] | domain XML, read (pure) |
//! | [`references`] | what a definition refers to on its host (pure) |
//! | [`mod@rewrite`] | domain XML, changed for a restore (pure) |
//! | [`source`] | where a disk's contents are, layer by layer (pure) |
//! | [`tpm`] | where the state of an emulated TPM is |

pub mod definition;
pub mod references;
pub mod rewrite;
pub mod source;
pub mod tpm;
pub(super) mod xml;
