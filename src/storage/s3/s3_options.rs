//! What is configured of an object storage besides its address.

use std::time::Duration;

/// How a repository uses a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Options {
    /// The region; without one, that in the name of an AWS server, `us-east-1`, or what the server says it is.
    pub region: Option<String>,
    /// Where a bucket's name stands in a request.
    pub lookup: BucketLookup,
    /// The storage class of packs. The small files are read often, and stay in the usual one.
    pub storage_class: Option<String>,
    /// What the server is asked to encrypt by, besides what kvmb encrypts.
    pub encryption: Option<ServerSideEncryption>,
    /// How long nobody can remove or change what is written.
    pub lock_for: Option<Duration>,
    /// Files that are longer are sent in parts of this size; servers want 5 MiB or more.
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

/// Where a bucket's name stands in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BucketLookup {
    /// In the host name for AWS, in the path for others.
    Auto,
    /// `bucket.host`
    Dns,
    /// `host/bucket`
    Path,
}

/// What the server is asked to encrypt by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerSideEncryption {
    /// A key that the storage manages.
    Aes256,
    /// A key of the server's key management: the default one, or the one of this name.
    Kms(Option<String>),
}
