//! The configuration file: a JSON object whose keys are all optional.
//!
//! The fields of [`Config`] are its documentation, and `kvmb config schema` prints them as a JSON Schema. A key that does
//! not apply is left out; an empty text or null is as good as none. Keys that begin with `//` are comments.
//!
//! | module | what |
//! | --- | --- |
//! | [`rules`] | what a value may be: host names, paths, sizes … |
//! | [`document`] | a text becomes a [`Config`], or the list of all its faults |
//! | [`repairs`] | the nearest right spelling of a wrong value |
//! | [`mod@file`] | where the file is looked for, and who may read and write it |
//! | [`schema`] | the JSON Schema |

pub mod document;
pub mod file;
mod key_error;
pub mod repairs;
pub mod rules;
pub mod schema;

pub use file::{Error, Loaded, load};
pub use key_error::KeyError;

use crate::retention::Policy;
use crate::schedule::Cron;
use rules::{
    AbsolutePath, Bounded, ChunkSizeText, CommandLine, HostName, LibvirtUri, MachineName, PositiveSize, PositiveSpan,
    RepoAddress, ShareText, UserName, WithText,
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
    pub schema: Option<String>,

    /// The backup server: a host name or an IP address. Empty: local only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup_host: Option<WithText<HostName>>,
    /// The user to log in as on the backup server; without it, the one that kvmb runs as.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup_user: Option<WithText<UserName>>,
    /// The folder on the backup server that holds the repository; if it holds other things, that is the folder kvmb in there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup_path: Option<WithText<AbsolutePath>>,
    /// Whether backups run by themselves, at backup_freq.
    pub auto_backup: bool,
    /// When they run, as in crontab(5); without it, at two in the night: "0 2 * * *".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup_freq: Option<WithText<Cron>>,
    /// The machines that 'kvmb backup' takes when it is given no names: true takes a machine, false leaves it out. A
    /// name may be a glob ("web*"); false wins over true.
    pub selected_vms: BTreeMap<WithText<MachineName>, bool>,

    /// The libvirt connection, as virsh takes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect: Option<WithText<LibvirtUri>>,
    /// The local repository: a folder. Without it, this host's own in /var/lib/kvmb/repo. Empty: none, backups go
    /// straight to the backup server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repo: Option<WithText<RepoAddress>>,
    /// A file that holds the password of the local repository in its first line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<WithText<AbsolutePath>>,
    /// A command whose first line of output is that password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_command: Option<WithText<CommandLine>>,
    /// A file that holds the password of the repository on the backup server in its first line; without it, that of the
    /// local one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote_password_file: Option<WithText<AbsolutePath>>,
    /// How to log in on the backup server.
    pub ssh: Ssh,

    /// How many machines are backed up at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jobs: Option<Bounded<1, 64>>,
    /// Whether the guest's file systems are frozen through its agent for the moment of the capture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freeze: Option<FreezePolicy>,
    /// How long the guest agent may take to answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freeze_timeout: Option<WithText<PositiveSpan>>,
    /// How long a capture may stay open while nobody reads it; then its guard ends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<WithText<PositiveSpan>>,
    /// The folder for what guests overwrite while they are backed up; without it /var/lib/kvmb/scratch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scratch: Option<WithText<AbsolutePath>>,
    /// The share of unchanged chunks that is read all the same and compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit: Option<WithText<ShareText>>,
    /// The size of the pieces in which disks are compared and stored; without it a disk keeps what its last point has, 1M at first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunk_size: Option<WithText<ChunkSizeText>>,
    /// A disk that was last read in full so long ago is read in full again, and compared; without it, never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_every: Option<WithText<PositiveSpan>>,
    /// Disks are read no faster than this many bytes a second, all together; without it, as fast as they can be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_read: Option<WithText<PositiveSize>>,
    /// Repositories are written to no faster than this many bytes a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_upload: Option<WithText<PositiveSize>>,
    /// How long to wait for what may never answer.
    pub limits: Limits,
    /// How long to try again when the connection to a repository is lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_for: Option<WithText<PositiveSpan>>,
    /// Whether each new point is read back and proven.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verify: Option<bool>,
    /// The share of all chunks of a repository that is read back and proven after each backup, each time the next one; without
    /// it, none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verify_sample: Option<WithText<ShareText>>,

    /// Which points are kept when 'kvmb prune' is given no rules.
    pub retention: Retention,
    /// Commands that run before and after a backup.
    pub hooks: Hooks,
    /// Where and how kvmb keeps its log.
    pub log: Log,
    /// When 'kvmb status' alarms, and whom a backup tells how it went.
    pub status: StatusConfig,
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
            connect: None,
            repo: None,
            password_file: None,
            password_command: None,
            remote_password_file: None,
            ssh: Ssh::default(),
            jobs: None,
            freeze: None,
            freeze_timeout: None,
            lease: None,
            scratch: None,
            audit: None,
            chunk_size: None,
            full_every: None,
            limit_read: None,
            limit_upload: None,
            limits: Limits::default(),
            retry_for: None,
            verify: None,
            verify_sample: None,
            retention: Retention::default(),
            hooks: Hooks::default(),
            log: Log::default(),
            status: StatusConfig::default(),
        }
    }
}

/// How to log in on the backup server.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Ssh {
    /// The port of its SSH server; without it, 22 or what ~/.ssh/config says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<Bounded<1, 65535>>,
    /// The private key; without it, kvmb's own, those of the agent and of ~/.ssh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity_file: Option<WithText<AbsolutePath>>,
    /// A file that holds the password of the login in its first line, where there is no key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<WithText<AbsolutePath>>,
    /// A command whose first line of output is that password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_command: Option<WithText<CommandLine>>,
    /// How many connections are open at once, 6 unless set; each may hold 16 MiB in memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<Bounded<1, 16>>,
    /// How long a server that is connected may make no progress before the connection is given up and made again; two minutes
    /// unless set. A slow disk needs more, a link of less than 512 bytes a second too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress_timeout: Option<WithText<PositiveSpan>>,
}

/// How long to wait for what may never answer. A machine whose QEMU hangs fails, and the others go on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Limits {
    /// For libvirt to answer a call.
    pub libvirt: WithText<PositiveSpan>,
    /// For libvirt and QEMU to begin a backup.
    pub backup_begin: WithText<PositiveSpan>,
    /// For a command that prints a password, or a password file that is a named pipe.
    pub password: WithText<PositiveSpan>,
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

/// Which points are kept. Without rules, all are.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Retention {
    /// In the local repository, and in any other folder.
    pub local: Policy,
    /// In the repository on the backup server. A backup does not copy there again what these rules removed.
    pub remote: Policy,
}

impl Retention {
    /// The rules of the repository at this address.
    pub fn of(&self, url: &str) -> &Policy {
        if url.starts_with("sftp:") { &self.remote } else { &self.local }
    }
}

/// When to freeze a guest's file systems.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum FreezePolicy {
    /// If there is an agent that answers.
    Auto,
    /// Not at all.
    Never,
    /// Always: without it the backup of the machine fails.
    Required,
}

/// Commands that run before and after a backup. See the manual for what they find in their environment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Hooks {
    /// Before anything else. One that fails ends the run before any machine is touched.
    pub before_run: Vec<Hook>,
    /// When all is done, however it went.
    pub after_run: Vec<Hook>,
    /// Before each machine. One that fails makes the backup of that machine fail.
    pub before_machine: Vec<Hook>,
    /// After each machine, however it went.
    pub after_machine: Vec<Hook>,
}

/// A command that runs before or after a backup. No shell reads it: it is a program and its arguments.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(inline)]
pub struct Hook {
    /// The program and its arguments, each a text of its own.
    pub command: Vec<String>,
    /// How long it may take; then it is ended, with all that it started, and counts as failed. Without it, one minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<WithText<PositiveSpan>>,
    /// After which outcome it runs; of no meaning before a backup.
    pub when: When,
}

/// After which outcome a hook runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum When {
    /// After any.
    #[default]
    Always,
    /// Only if all went well.
    Done,
    /// Only if something failed.
    Failed,
}

/// Where and how kvmb keeps its log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Log {
    /// The file; without it /var/log/kvm_backup.log or, where that cannot be written, ~/kvm_backup.log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<WithText<AbsolutePath>>,
    /// Lines of text or of JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<LogFormat>,
    /// A file that has grown larger than this is set aside and a new one begun.
    pub max_size: WithText<PositiveSize>,
    /// How many files that were set aside are kept.
    pub keep: Bounded<1, 1000>,
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
pub enum LogFormat {
    /// `2025-08-06 14:30:15,123 - INFO - …`, local time.
    Text,
    /// One JSON object a line.
    Json,
}

/// When `kvmb status` alarms.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct StatusConfig {
    /// Warn of a machine whose newest point is older than this; without it, than the longest time between two runs and two
    /// hours more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<WithText<PositiveSpan>>,
    /// Alarm when it is older than this; without it, than twice the warning, if there is one, else twice the longest time
    /// between two runs and two hours more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub critical: Option<WithText<PositiveSpan>>,
    /// Warn of a machine none of whose points was proven for so long; without it, 30 days.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verify_warning: Option<WithText<PositiveSpan>>,
    /// The file that 'kvmb backup' writes metrics for Prometheus to after each run: one that ends in .prom in the node
    /// exporter's textfile folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prometheus_textfile: Option<WithText<AbsolutePath>>,
}

/// What `backup_freq` is by default: at two in the night.
pub const DEFAULT_BACKUP_FREQ: &str = "0 2 * * *";

/// The keys whose values may be or may give away a secret: `config show` hides them, and a file that has one must not be
/// readable by everybody.
pub const SECRET_KEYS: [&str; 2] = ["password_command", "ssh.password_command"];

impl Config {
    /// The address of the repository on the backup server; none without a backup_host.
    pub fn remote_url(&self) -> Option<String> {
        let (host, path) = (self.backup_host.as_ref()?, self.backup_path.as_ref()?);
        let user = self.backup_user.as_ref().map(|user| format!("{}@", user.text())).unwrap_or_default();
        let port = self.ssh.port.map(|port| format!(":{}", port.get())).unwrap_or_default();
        let host = match host.value() {
            HostName::V6 => format!("[{}]", host.text()),
            HostName::V4 | HostName::Name => host.text().to_owned(),
        };
        // Two slashes: after one, a folder would begin where the login leads to.
        Some(format!("sftp://{user}{host}{port}/{}", path.text()))
    }

    /// The repository that backups go to first; none where that is this host's own.
    pub fn primary_repo(&self) -> Option<String> {
        match &self.repo {
            Some(repo) if repo.text().is_empty() => self.remote_url(),
            repo => repo.as_ref().map(|repo| repo.text().to_owned()),
        }
    }

    /// The repository that points are copied to: the backup server's, unless backups go straight there.
    pub fn second_repo(&self) -> Option<String> {
        self.remote_url().filter(|remote| self.primary_repo().as_ref() != Some(remote))
    }

    /// What each value by itself cannot show: keys that contradict or need each other.
    fn contradictions(&self) -> Vec<KeyError> {
        let mut faults = Vec::new();
        let mut fault = |key: &str, rule: &str| faults.push(KeyError::rule(key, rule));
        if self.backup_host.is_some() && self.backup_path.is_none() {
            fault("backup_path", "must be there when there is a backup_host");
        }
        if self.password_file.is_some() && self.password_command.is_some() {
            fault("password_command", "must not be there together with password_file");
        }
        if self.ssh.password_file.is_some() && self.ssh.password_command.is_some() {
            fault("ssh.password_command", "must not be there together with ssh.password_file");
        }
        if self.repo.as_ref().is_some_and(|repo| repo.text().is_empty()) && self.backup_host.is_none() {
            fault("backup_host", "must be there when repo is empty: backups need a place");
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
    /// The four lists by name.
    pub fn lists(&self) -> [(&'static str, &[Hook]); 4] {
        [
            ("before_run", &self.before_run),
            ("after_run", &self.after_run),
            ("before_machine", &self.before_machine),
            ("after_machine", &self.after_machine),
        ]
    }
}
