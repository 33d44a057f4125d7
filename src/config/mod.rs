//! The configuration file: a JSON object whose keys are all optional.
//!
//! The fields of [`Config`] are its documentation, and `kvmb config schema` prints them as a JSON Schema. A key that
//! does not apply is omitted; an empty string or null counts as omitted. Keys that begin with `//` are comments.
//!
//! | module | what |
//! | --- | --- |
//! | [`rules`] | what a value may be: host names, paths, sizes … |
//! | [`document`] | parses a text into a [`Config`], or lists all its errors |
//! | [`edit`] | changes of the file that leave the rest of it as it is |
//! | [`repairs`] | suggestions for an invalid value |
//! | [`mod@file`] | where the file is searched for, and who may read and write it |
//! | [`schema`] | the JSON Schema |

pub mod document;
mod duplicate_keys;
pub(crate) mod edit;
pub(crate) mod file;
mod key_error;
pub(crate) mod repairs;
pub(crate) mod rules;
pub(crate) mod schema;

pub use file::Error;
pub(crate) use file::{Loaded, load};
pub(crate) use key_error::KeyError;

use crate::retention::Policy;
use crate::schedule::Cron;
use rules::{
    AbsolutePath, Bounded, ChunkSizeText, CommandLine, DiskName, HostName, LibvirtUri, MachineName, PositiveSize,
    PositiveSpan, RepoAddress, ServerEncryption, ShareText, StorageClass, UserName, WithText,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The configuration of kvmb. Every key is optional.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Config {
    /// The JSON Schema that editors use; kvmb does not read it.
    #[serde(rename = "$schema", skip_serializing_if = "Option::is_none")]
    pub(crate) schema: Option<String>,

    /// The backup server: a host name or an IP address. Empty: local only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) backup_host: Option<WithText<HostName>>,
    /// The user to log in as on the backup server. Default: the user that runs kvmb.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) backup_user: Option<WithText<UserName>>,
    /// The folder on the backup server that holds the repository. If it contains other files, the repository is in its
    /// subfolder kvmb.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) backup_path: Option<WithText<AbsolutePath>>,
    /// Whether to schedule backups at backup_freq.
    pub(crate) auto_backup: bool,
    /// Schedule of the backups, as in crontab(5). Default: "0 2 * * *".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) backup_freq: Option<WithText<Cron>>,
    /// The machines that 'kvmb backup' backs up when no names are given: true includes a machine, false excludes it. A
    /// name may be a glob ("web*"); false takes precedence over true.
    pub(crate) selected_vms: BTreeMap<WithText<MachineName>, bool>,
    /// Disks to exclude from backups, by machine: {"vm1": ["vdb"]}. A name may be a glob; the lists of all matching
    /// names are combined. --disk includes such a disk anyway.
    pub(crate) excluded_disks: BTreeMap<WithText<MachineName>, Vec<WithText<DiskName>>>,

    /// The libvirt connection, as for virsh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) connect: Option<WithText<LibvirtUri>>,
    /// The local repository: a folder. Default: /var/lib/kvmb/repo. Empty: none, backups go directly to the backup
    /// server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) repo: Option<WithText<RepoAddress>>,
    /// A file whose first line is the password of the local repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) password_file: Option<WithText<AbsolutePath>>,
    /// A command whose first line of output is that password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) password_command: Option<WithText<CommandLine>>,
    /// A file whose first line is the password of the repository on the backup server. Default: the password of the
    /// local repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) remote_password_file: Option<WithText<AbsolutePath>>,
    /// The second repository, to which points are copied. Default: the backup server of backup_host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) copy_to: Option<WithText<RepoAddress>>,
    /// How to log in to the backup server.
    pub(crate) ssh: Ssh,
    /// How to reach servers over HTTP: rest: and s3: repositories.
    pub(crate) http: Http,
    /// How to use object storages.
    pub(crate) s3: S3,

    /// Number of machines to back up at the same time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) jobs: Option<Bounded<1, 64>>,
    /// Number of threads that hash and compress, for each machine. Default: one for each processor, at most 8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) threads: Option<Bounded<1, 64>>,
    /// Whether to freeze the guest's file systems through the guest agent during the capture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) freeze: Option<FreezePolicy>,
    /// How long to wait for the guest agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) freeze_timeout: Option<WithText<PositiveSpan>>,
    /// How long a capture may stay open while no one reads it. After that, its guard process closes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) lease: Option<WithText<PositiveSpan>>,
    /// Folder for the blocks that guests overwrite during a backup. Default: /var/lib/kvmb/scratch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) scratch: Option<WithText<AbsolutePath>>,
    /// Share of unchanged chunks to read again and compare, as a check of the dirty bitmap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) audit: Option<WithText<ShareText>>,
    /// Size of the chunks in which disks are compared and stored. Default: that of the previous point; for a new
    /// disk 1M up to 64 GiB, 2M up to 1 TiB and 4M above.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) chunk_size: Option<WithText<ChunkSizeText>>,
    /// Compression of new data. Default: "auto", which compresses harder while the repository is the bottleneck.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) compression: Option<CompressionMode>,
    /// Read a disk in full, and compare, if it has not been read in full for this long. Default: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) full_every: Option<WithText<PositiveSpan>>,
    /// Limit reads from all disks together, in bytes per second. Default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) limit_read: Option<WithText<PositiveSize>>,
    /// Limit writes to repositories, in bytes per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) limit_upload: Option<WithText<PositiveSize>>,
    /// Time limits for operations that may never finish.
    pub(crate) limits: Limits,
    /// How long to retry after the connection to a repository is lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retry_for: Option<WithText<PositiveSpan>>,
    /// Folder for copies of the index. Default: /var/cache/kvmb.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cache_dir: Option<WithText<AbsolutePath>>,
    /// How long keys that are derived from passwords stay in the kernel's keyring, so that later runs start faster.
    /// Default: off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key_cache: Option<WithText<PositiveSpan>>,
    /// Whether to verify each new point by reading it back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) verify: Option<bool>,
    /// Share of all chunks of a repository to verify after each backup. Each run continues where the previous one
    /// ended. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) verify_sample: Option<WithText<ShareText>>,
    /// Whether to remove old points after each backup, according to the retention rules. Requires such rules.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prune_after_backup: Option<bool>,

    /// Retention rules for 'kvmb prune', and for backups with prune_after_backup.
    pub(crate) retention: Retention,
    /// Commands that run before and after a backup.
    pub(crate) hooks: Hooks,
    /// The log.
    pub(crate) log: Log,
    /// How 'kvmb drill' boots points, and how often it should.
    pub(crate) drill: DrillConfig,
    /// Thresholds of 'kvmb status', and where backups write metrics.
    pub(crate) status: StatusConfig,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            schema: None,
            backup_host: None,
            backup_user: None,
            backup_path: None,
            auto_backup: true,
            backup_freq: None,
            selected_vms: BTreeMap::new(),
            excluded_disks: BTreeMap::new(),
            connect: None,
            repo: None,
            password_file: None,
            password_command: None,
            remote_password_file: None,
            copy_to: None,
            ssh: Ssh::default(),
            http: Http::default(),
            s3: S3::default(),
            jobs: None,
            threads: None,
            freeze: None,
            freeze_timeout: None,
            lease: None,
            scratch: None,
            audit: None,
            chunk_size: None,
            compression: None,
            full_every: None,
            limit_read: None,
            limit_upload: None,
            limits: Limits::default(),
            retry_for: None,
            cache_dir: None,
            key_cache: None,
            verify: None,
            verify_sample: None,
            prune_after_backup: None,
            retention: Retention::default(),
            hooks: Hooks::default(),
            log: Log::default(),
            drill: DrillConfig::default(),
            status: StatusConfig::default(),
        }
    }
}

/// How to log in on the backup server.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Ssh {
    /// SSH port. Default: the port in ~/.ssh/config, otherwise 22.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) port: Option<Bounded<1, 65535>>,
    /// Private key. Default: the key of kvmb, those of the agent and of ~/.ssh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) identity_file: Option<WithText<AbsolutePath>>,
    /// A file whose first line is the password for the login, if there is no key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) password_file: Option<WithText<AbsolutePath>>,
    /// A command whose first line of output is that password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) password_command: Option<WithText<CommandLine>>,
    /// Number of connections (default: 6). Each uses up to 16 MiB of memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) connections: Option<Bounded<1, 16>>,
    /// How long a connected server may make no progress before kvmb reconnects (default: two minutes). Increase it for
    /// a slow disk, or a link slower than 512 bytes per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) progress_timeout: Option<WithText<PositiveSpan>>,
}

/// How to reach servers over HTTP.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Http {
    /// File with the certificates (PEM) to verify servers with. Default: those of the system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca_file: Option<WithText<AbsolutePath>>,
    /// File with a certificate and its private key (PEM) to show to servers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) client_certificate: Option<WithText<AbsolutePath>>,
    /// Account on a REST server, if its address does not name one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<WithText<UserName>>,
    /// A file whose first line is the password of that account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) password_file: Option<WithText<AbsolutePath>>,
    /// A command whose first line of output is that password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) password_command: Option<WithText<CommandLine>>,
    /// How long a server may take to send or accept the next bytes (default: two minutes).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) timeout: Option<WithText<PositiveSpan>>,
}

/// How to use object storages.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct S3 {
    /// File with access keys, in the format of the AWS tools. Default: ~/.aws/credentials.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) credentials_file: Option<WithText<AbsolutePath>>,
    /// Profile in that file. Default: default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) profile: Option<String>,
    /// Region to sign requests for. Default: the region in the name of the server, otherwise us-east-1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) region: Option<String>,
    /// Position of the bucket name in a request: before the host name (dns), in the path (path), or as usual for the
    /// server (auto).
    pub(crate) bucket_lookup: S3Lookup,
    /// Storage class of packs. Archive classes cannot be used, because backups read older packs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) storage_class: Option<WithText<StorageClass>>,
    /// Encryption by the server: AES256, aws:kms, or aws:kms:KEY.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) encryption: Option<WithText<ServerEncryption>>,
    /// How long files that are written to a bucket are locked, so that nobody can remove or change them (S3 Object
    /// Lock): 30d. Default: not locked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) lock_for: Option<WithText<PositiveSpan>>,
}

/// Position of the bucket name in a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(crate) enum S3Lookup {
    /// As usual for the server.
    #[default]
    Auto,
    /// Before the host name.
    Dns,
    /// In the path.
    Path,
}

/// Time limits for operations that may never finish. If the QEMU of one machine hangs, the other machines continue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Limits {
    /// Limit for a libvirt call.
    pub(crate) libvirt: WithText<PositiveSpan>,
    /// Limit for libvirt and QEMU to start a backup.
    pub(crate) backup_begin: WithText<PositiveSpan>,
    /// Limit for a command that prints a password, or a password file that is a named pipe.
    pub(crate) password: WithText<PositiveSpan>,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            libvirt: PositiveSpan::written(60),
            backup_begin: PositiveSpan::written(120),
            password: PositiveSpan::written(60),
        }
    }
}

/// Retention rules. Without rules, all points are kept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Retention {
    /// Rules for the local repository and for any other folder.
    pub(crate) local: Policy,
    /// Rules for repositories on a server. Points that these rules removed are not copied there again.
    pub(crate) remote: Policy,
}

/// Whether a repository's address refers to a server.
pub(crate) fn is_on_server(url: &str) -> bool {
    ["sftp:", "rest:", "s3:"].iter().any(|scheme| url.starts_with(scheme))
}

impl Retention {
    /// Returns the rules of the repository at this address.
    pub(crate) fn of(&self, url: &str) -> &Policy {
        if is_on_server(url) { &self.remote } else { &self.local }
    }
}

/// When to freeze a guest's file systems.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(crate) enum FreezePolicy {
    /// If a guest agent answers.
    Auto,
    /// Not at all.
    Never,
    /// Always: if it fails, the backup of the machine fails.
    Required,
}

/// The compression of data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(crate) enum CompressionMode {
    /// Not at all.
    Off,
    /// As fast as possible.
    Fastest,
    /// Adaptive: harder while the repository is the bottleneck.
    Auto,
    /// Smaller, and slower.
    Better,
    /// As small as possible.
    Max,
}

/// Commands to run before and after a backup. The manual describes their environment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Hooks {
    /// Run first. If one fails, no machine is backed up.
    pub(crate) before_run: Vec<Hook>,
    /// Run at the end, whatever the result.
    pub(crate) after_run: Vec<Hook>,
    /// Run before each machine. If one fails, that machine is not backed up.
    pub(crate) before_machine: Vec<Hook>,
    /// Run after each machine, whatever the result.
    pub(crate) after_machine: Vec<Hook>,
}

/// A command to run before or after a backup: a program and its arguments, without a shell.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(inline)]
pub(crate) struct Hook {
    /// The program and its arguments, as separate strings.
    pub(crate) command: Vec<String>,
    /// Time limit (default: one minute). After that, the command and its child processes are stopped, and the hook has
    /// failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) timeout: Option<WithText<PositiveSpan>>,
    /// After which result it runs. Ignored for hooks that run before.
    pub(crate) when: When,
}

/// After which outcome a hook runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(crate) enum When {
    /// After any.
    #[default]
    Always,
    /// Only if everything succeeded.
    Done,
    /// Only if something failed.
    Failed,
}

/// Where and how kvmb keeps its log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Log {
    /// Log file. Default: /var/log/kvm_backup.log or, if that cannot be written, ~/.local/state/kvmb/kvmb.log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) file: Option<WithText<AbsolutePath>>,
    /// Text or JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) format: Option<LogFormat>,
    /// Rotate the file when it is larger than this.
    pub(crate) max_size: WithText<PositiveSize>,
    /// Number of rotated files to keep.
    pub(crate) keep: Bounded<1, 1000>,
}

impl Default for Log {
    fn default() -> Log {
        Log { file: None, format: None, max_size: PositiveSize::written(10 << 20), keep: Bounded::of::<5>() }
    }
}

/// How a line of the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(crate) enum LogFormat {
    /// `2025-08-06 14:30:15,123 - INFO - …`, local time.
    Text,
    /// One JSON object a line.
    Json,
}

/// How 'kvmb drill' boots points, and how often it should.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct DrillConfig {
    /// Warn if no point of a machine has been booted for this long. Default: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_age: Option<WithText<PositiveSpan>>,
    /// Rung that machines without a check must reach: started, console or agent. Default: the highest rung that the
    /// machine supports, at most agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) until: Option<DrillRung>,
    /// Time limit for a machine. Default: 10m, or 40m without KVM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) timeout: Option<WithText<PositiveSpan>>,
    /// Maximum memory of the machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory: Option<WithText<PositiveSize>>,
    /// Maximum number of processors of the machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) vcpus: Option<Bounded<1, 1024>>,
    /// Commands that must succeed in the guest, by machine: {"db1": "systemctl is-active postgresql"}. A name may be a
    /// glob; the name itself takes precedence.
    pub(crate) check: BTreeMap<WithText<MachineName>, WithText<CommandLine>>,
    /// Texts that must appear on the console, by machine: {"web*": "login:"}. A name may be a glob; the name itself
    /// takes precedence.
    pub(crate) expect: BTreeMap<WithText<MachineName>, String>,
}

/// The rungs of a drill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(crate) enum DrillRung {
    /// QEMU runs the machine.
    Started,
    /// The guest shows signs of life.
    Console,
    /// The guest agent answers.
    Agent,
}

/// Thresholds of `kvmb status`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct StatusConfig {
    /// Warn if the latest point of a machine is older than this. Default: the longest time between two runs plus two
    /// hours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) warning: Option<WithText<PositiveSpan>>,
    /// Report a critical state if it is older than this. Default: twice the warning if set, otherwise twice the longest
    /// time between two runs plus two hours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) critical: Option<WithText<PositiveSpan>>,
    /// Warn if no point of a machine has been verified for this long. Default: 30 days.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) verify_warning: Option<WithText<PositiveSpan>>,
    /// File to which 'kvmb backup' writes Prometheus metrics after each run. For the node exporter, use a name that
    /// ends in .prom in its textfile folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prometheus_textfile: Option<WithText<AbsolutePath>>,
}

/// The default of `backup_freq`: 02:00 every day.
pub(crate) const DEFAULT_BACKUP_FREQ: &str = "0 2 * * *";

/// The keys whose values may be or reveal a secret: `config show` hides them, and a file that contains one must not be
/// readable by everybody.
pub(crate) const SECRET_KEYS: [&str; 3] = ["password_command", "ssh.password_command", "http.password_command"];

impl Config {
    /// Returns the address of the repository on the backup server; None without a backup_host.
    pub(crate) fn remote_url(&self) -> Option<String> {
        let (host, path) = (self.backup_host.as_ref()?, self.backup_path.as_ref()?);
        let user = self.backup_user.as_ref().map(|user| format!("{}@", user.text())).unwrap_or_default();
        let port = self.ssh.port.map(|port| format!(":{}", port.get())).unwrap_or_default();
        let host = match host.value() {
            HostName::V6 => format!("[{}]", host.text()),
            HostName::V4 | HostName::Name => host.text().to_owned(),
        };
        // Two slashes: after a single one, the path would be relative to the login's home folder.
        Some(format!("sftp://{user}{host}{port}/{}", path.text()))
    }

    /// Returns the first repository of backups; None if that is the host's default repository.
    pub(crate) fn primary_repo(&self) -> Option<String> {
        match &self.repo {
            Some(repo) if repo.text().is_empty() => self.remote_url(),
            repo => repo.as_ref().map(|repo| repo.text().to_owned()),
        }
    }

    /// Returns the repository that points are copied to: `copy_to` if set, otherwise that of the backup server, unless
    /// backups go there directly.
    pub(crate) fn second_repo(&self) -> Option<String> {
        let named = self.copy_to.as_ref().filter(|repo| !repo.text().is_empty()).map(|repo| repo.text().to_owned());
        named.or_else(|| self.remote_url()).filter(|second| self.primary_repo().as_ref() != Some(second))
    }

    /// Checks rules that involve several keys: those that contradict or require each other.
    fn contradictions(&self) -> Vec<KeyError> {
        let mut faults = Vec::new();
        let mut fault = |key: &str, rule: &str| faults.push(KeyError::rule(key, rule));
        if self.backup_host.is_some() && self.backup_path.is_none() {
            fault("backup_path", "is required when backup_host is set");
        }
        if self.password_file.is_some() && self.password_command.is_some() {
            fault("password_command", "cannot be used together with password_file");
        }
        if self.ssh.password_file.is_some() && self.ssh.password_command.is_some() {
            fault("ssh.password_command", "cannot be used together with ssh.password_file");
        }
        if self.http.password_file.is_some() && self.http.password_command.is_some() {
            fault("http.password_command", "cannot be used together with http.password_file");
        }
        if self.repo.as_ref().is_some_and(|repo| repo.text().is_empty()) && self.backup_host.is_none() {
            fault("backup_host", "is required when repo is empty");
        }
        let (warning, critical) = (&self.status.warning, &self.status.critical);
        if let (Some(warning), Some(critical)) = (warning, critical)
            && warning.value().0 > critical.value().0
        {
            fault("status.warning", "must not be longer than status.critical");
        }
        for (name, hooks) in self.hooks.lists() {
            for (at, hook) in hooks.iter().enumerate() {
                if hook.command.first().is_none_or(String::is_empty) {
                    fault(&format!("hooks.{name}.{at}.command"), "must name a program");
                }
            }
        }
        faults
    }
}

impl Hooks {
    /// Returns the four lists by name.
    pub(crate) fn lists(&self) -> [(&'static str, &[Hook]); 4] {
        [
            ("before_run", &self.before_run),
            ("after_run", &self.after_run),
            ("before_machine", &self.before_machine),
            ("after_machine", &self.after_machine),
        ]
    }
}
