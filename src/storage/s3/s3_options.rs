//! The configuration of an object storage, apart from its address.

use std::time::Duration;

/// How a repository uses a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Options {
    /// The region. By default the one in the name of an AWS server, else `us-east-1`, corrected by the server's
    /// response.
    pub region: Option<String>,
    /// Where the bucket's name appears in a request.
    pub lookup: BucketLookup,
    /// The storage class of packs. Small files are read often, and have the default class.
    pub storage_class: Option<String>,
    /// Server-side encryption, in addition to kvmb's.
    pub encryption: Option<ServerSideEncryption>,
    /// How long new files are locked against removal and changes.
    pub lock_for: Option<Duration>,
    /// Files longer than this are uploaded in parts of this size. Servers require at least 5 MiB.
    pub part_bytes: usize,
}

impl Default for S3Options {
    fn default() -> Self {
        S3Options {
            region: None,
            lookup: BucketLookup::Auto,
            storage_class: None,
            encryption: None,
            lock_for: None,
            part_bytes: 128 << 20,
        }
    }
}

/// Where a bucket's name appears in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BucketLookup {
    /// In the host name for AWS, in the path for others.
    Auto,
    /// `bucket.host`
    Dns,
    /// `host/bucket`
    Path,
}

/// Server-side encryption.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerSideEncryption {
    /// With keys that the storage manages (SSE-S3).
    Aes256,
    /// With a key of the server's key management (SSE-KMS): the default one, or the one with this name.
    Kms(Option<String>),
}
