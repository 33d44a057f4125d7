//! Repositories in an object storage that speaks S3: Ceph RGW, Garage, SeaweedFS, AWS and what is compatible.
//!
//! | file | what |
//! | --- | --- |
//! | [`address`] | the address, as restic reads it |
//! | [`s3_options`] | what is configured besides |
//! | [`sign`] | requests signed by AWS's version 4 |
//! | [`bucket`] | requests to one bucket, and what its refusals mean |
//! | [`xml`] | what the server lists and says |
//! | [`lock_headers`] | how a lock of an object is asked for |
//! | [`batch`] | many files removed at once |
//! | [`multipart`] | files that are sent in parts |
//! | [`object_lock`] | files that nobody can remove or change for a time |
//! | [`storage`] | the repository |

pub(crate) mod address;
pub(crate) mod batch;
pub(crate) mod bucket;
pub(crate) mod lock_headers;
pub(crate) mod multipart;
pub(crate) mod object_lock;
pub(crate) mod s3_options;
pub(crate) mod sign;
pub(crate) mod storage;
pub(crate) mod xml;

pub use address::S3Address;
pub use s3_options::{BucketLookup, S3Options, ServerSideEncryption};
pub use storage::S3Storage;

pub(super) use bucket::{Bucket, BucketRequest};
