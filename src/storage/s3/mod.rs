//! Repositories in S3 object storages: Ceph RGW, Garage, SeaweedFS, AWS and compatible ones.
//!
//! | file | contents |
//! | --- | --- |
//! | [`address`] | the address, as restic reads it |
//! | [`s3_options`] | further configuration |
//! | [`sign`] | requests signed with AWS Signature Version 4 |
//! | [`bucket`] | requests to one bucket, and the interpretation of refusals |
//! | [`xml`] | listings and error messages of the server |
//! | [`lock_headers`] | headers that lock an object |
//! | [`batch`] | removal of many files at once |
//! | [`multipart`] | multipart uploads |
//! | [`object_lock`] | locks against removal and changes |
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
