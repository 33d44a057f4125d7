//! The records: the output of kvmb's commands, for other commands, scripts and Ansible.
//!
//! One JSON object per line, with `"type"` first. Fields that end in `_bytes` are sizes in bytes; times are RFC 3339
//! with offset, in whole milliseconds. A field that does not apply is omitted. A reader ignores unknown fields and
//! passes them on: every type keeps unknown fields in `extra`, and [`Record::Other`] keeps unknown types whole.
//!
//! The fields below *are* the documentation of the wire format; `tests/records.rs` compares the commands' output with
//! it.

mod check;
mod filesystem;
mod job;
mod outcome;
mod parts;
mod time;
mod usage;
mod values;

pub use check::{Check, Status};
pub use filesystem::Filesystem;
pub use job::{Job, JobStep, Log, Progress};
pub use outcome::Damage;
pub use outcome::{Copied, DamagedPoint, LiveRestore, RestoredDisk, RestoredTo};
pub use parts::{LeftOut, PointFile};
pub use time::Time;
pub use time::time_value;
pub use usage::Usage;
pub use values::{Extra, plain_text, steers_terminal, without_steering};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Any record.
// Records are handled one at a time, so their size does not matter.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// `"type":"machine"`
    Machine(Machine),
    /// `"type":"disk"`
    Disk(Disk),
    /// `"type":"file"`
    File(File),
    /// `"type":"filesystem"`
    Filesystem(Filesystem),
    /// `"type":"point"`
    Point(Point),
    /// `"type":"action"`
    Action(Action),
    /// `"type":"check"`
    Check(Check),
    /// `"type":"setting"`
    Setting(Setting),
    /// `"type":"job"`
    Job(Job),
    /// `"type":"log"`
    Log(Log),
    /// `"type":"usage"`
    Usage(Usage),
    /// `"type":"failure"`
    Failure(Failure),
    /// A type that this version does not know.
    Other(Map<String, Value>),
}

/// A machine (libvirt domain); printed by `vms`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Machine {
    /// The libvirt connection URI.
    pub connect: String,
    /// The machine's name.
    pub machine: String,
    /// Its UUID.
    pub uuid: String,
    /// Its state in virsh's words: `running`, `paused`, `shut off` …
    pub state: String,
    /// Whether libvirt keeps its definition while it is shut off.
    pub persistent: bool,
    /// Whether it starts with the host; null if the driver does not report this.
    pub autostart: Option<bool>,
    /// The maximum memory that it may use.
    pub memory_bytes: u64,
    /// The number of virtual processors.
    pub vcpus: u32,
    /// The targets of its disks, in the order of the definition.
    pub disks: Vec<String>,
    /// The guest agent: `none` (no channel for one), `disconnected` or `connected`.
    pub agent: String,
    /// Unknown fields.
    #[serde(flatten)]
    #[schemars(!flatten)]
    pub extra: Extra,
}

/// One disk of a machine; printed by `disks`, extended by `snapshot` and `hash`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Disk {
    /// The libvirt connection URI.
    pub connect: String,
    /// The machine's name.
    pub machine: String,
    /// The machine's UUID.
    pub uuid: String,
    /// The machine's state when the record was made.
    #[serde(default)]
    pub state: String,
    /// The disk's target name: `vda`.
    pub disk: String,
    /// Where its content is stored.
    pub source: Source,
    /// The local path of its image or device, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The image format that the definition names: `qcow2`, `raw` …
    pub format: String,
    /// The bus through which the guest sees it: `virtio`, `scsi` …
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bus: Option<String>,
    /// The size that the guest sees; null if unknown.
    pub capacity_bytes: Option<u64>,
    /// The space that it uses on the host; null if unknown.
    pub allocated_bytes: Option<u64>,
    /// Whether a backup includes it.
    pub included: bool,
    /// Why a backup excludes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skip_reason: Option<String>,
    /// The capture's id (from here on: added by `snapshot`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capture: Option<String>,
    /// How many disks belong to the capture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capture_disks: Option<usize>,
    /// The id of the `snapshot` run that opened the capture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<String>,
    /// How many machines that run covers. If fewer arrive, the stream was cut off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_machines: Option<usize>,
    /// The point that the disk belongs to (added by `serve`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub point: Option<String>,
    /// The detached server, which `release` stops (added by `serve --detach`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub served: Option<String>,
    /// The NBD URI from which the content of the capture or the point can be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nbd: Option<String>,
    /// The time of the capture.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "time::serialize_option")]
    pub captured_at: Option<Time>,
    /// `filesystem` (frozen by the guest agent), `crash` (crash-consistent), `offline` (the machine was stopped), or
    /// `moving` (no capture: the guest may have written to the disk while it was hashed).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consistency: Option<String>,
    /// The libvirt checkpoint created at the same instant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
    /// The point that the capture continues.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// What a backup reads of the disk: `changed` or `full`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_mode: Option<String>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_mode_reason: Option<String>,
    /// SHA-256 of the whole disk as the guest sees it, in hexadecimal (added by `hash`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Unknown fields.
    #[serde(flatten)]
    #[schemars(!flatten)]
    pub extra: Extra,
}

/// Where the content of a disk is stored, according to the definition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Source {
    /// An image file.
    File {
        /// Its path.
        path: String,
    },
    /// A block device of the host.
    Block {
        /// Its path.
        path: String,
    },
    /// A folder shown as a FAT disk.
    Dir {
        /// Its path.
        path: String,
    },
    /// Storage that QEMU reaches over the network.
    Network {
        /// `rbd`, `iscsi`, `nbd`, `https` …
        protocol: String,
        /// The volume's name there.
        name: String,
        /// `host:port` of the servers.
        hosts: Vec<String>,
    },
    /// A volume of a libvirt storage pool.
    Volume {
        /// The pool.
        pool: String,
        /// The volume.
        volume: String,
    },
    /// An NVMe namespace assigned to QEMU.
    Nvme {
        /// Its PCI address and namespace.
        address: String,
    },
    /// A vhost-user server.
    VhostUser {
        /// Its socket.
        path: String,
    },
    /// Nothing: an empty drive.
    None {},
    /// A kind that this version does not know.
    #[serde(other)]
    #[default]
    Unknown,
}

/// A file of the host, printed by `hash FILE…`; or a file of a point, printed by `files ls` and `files find`, with
/// `machine` and `point`. Attributes that its file system does not support are omitted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct File {
    /// Its path as given; in a guest its full path, with invalid UTF-8 replaced.
    pub path: String,
    /// Its size.
    pub size_bytes: u64,
    /// SHA-256 of its bytes, as `sha256sum` prints it (by `hash`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// The machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// The point's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub point: Option<String>,
    /// The file system that contains it: `vda2`; omitted for files of file systems mounted below it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filesystem: Option<String>,
    /// `file`, `directory`, `symlink`, `char_device`, `block_device`, `fifo` or `socket`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The permission bits in octal, as for `chmod`: `0644`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// The numeric ID of the user that owns it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The numeric ID of its group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// The number of hard links.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub links: Option<u32>,
    /// When its content was last changed.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "time::serialize_option", default)]
    pub modified_at: Option<Time>,
    /// What a symbolic link points to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Unknown fields.
    #[serde(flatten)]
    #[schemars(!flatten)]
    pub extra: Extra,
}

/// A restore point; printed by `push`, `backup` and `points`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Point {
    /// The point's ID, which is the ID of the restic snapshot.
    pub point: String,
    /// The beginning of the ID, as shown in tables. It can be used in place of the ID while it is unambiguous.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub short_id: String,
    /// The repository that holds it.
    pub repo: String,
    /// The machine's name.
    pub machine: String,
    /// The machine's UUID.
    pub uuid: String,
    /// The libvirt host on which it was captured.
    pub host: String,
    /// The time of the capture.
    #[serde(serialize_with = "time::serialize")]
    pub captured_at: Time,
    /// `filesystem`, `crash` or `offline`.
    pub consistency: String,
    /// The point that it continued, by its ID in the repository in which it was first stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Its original ID, if a copy to another repository or a `pin` gave it a new one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original: Option<String>,
    /// Statistics of the copy (by `push` of points, and `backup --copy-to`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copied: Option<Copied>,
    /// Whether it is protected from pruning (set by `pin`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pinned: bool,
    /// The capture that it was made from (by `push`, for `release`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capture: Option<String>,
    /// The `snapshot` run that opened that capture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<String>,
    /// How many machines that run covers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_machines: Option<usize>,
    /// Its disks.
    pub disks: Vec<PointDisk>,
    /// How much was read of all disks.
    #[serde(default)]
    pub read_bytes: u64,
    /// How much of that was new to the repository.
    #[serde(default)]
    pub new_bytes: u64,
    /// Space used by the new data, compressed and encrypted.
    #[serde(default)]
    pub stored_bytes: u64,
    /// The files of the host that are stored in the point in addition to the disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<PointFile>,
    /// Parts of the machine that are not in the point: disks and other parts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOut>,
    /// How long it took to store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_seconds: Option<f64>,
    /// Changes that the dirty bitmap missed: this point is correct, but the parent and older points may not be (by
    /// `push` and `backup`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chain_damage: Vec<Damage>,
    /// Older points, of any machine, whose chunks are missing from the repository (by `push` and `backup`, if they find
    /// any). This point is intact: the data that it shares with them was read and stored again. A `failure` with the
    /// code `damage` follows the record.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damaged_points: Vec<DamagedPoint>,
    /// How `verify` verified it: `full`, `sample` or `quick`; false if damage was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified: Option<Value>,
    /// When it was verified.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "time::serialize_option")]
    pub verified_at: Option<Time>,
    /// The damage that `verify` or `restore` found.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damage: Vec<Damage>,
    /// The name of the machine that `restore` defined, or its folder with `--no-define`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restored_to: Option<RestoredTo>,
    /// Unknown fields.
    #[serde(flatten)]
    #[schemars(!flatten)]
    pub extra: Extra,
}

/// One disk of a point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PointDisk {
    /// The disk's target name.
    pub disk: String,
    /// Its size as the guest sees it.
    pub capacity_bytes: u64,
    /// `changed` or `full`.
    pub read_mode: String,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_mode_reason: Option<String>,
    /// How much of it was read.
    pub read_bytes: u64,
    /// How much of that was new to the repository.
    pub new_bytes: u64,
    /// Space used by the new data, compressed and encrypted.
    pub stored_bytes: u64,
    /// SHA-256 of the whole disk as the guest saw it, if `hash` was in the pipe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Unknown fields.
    #[serde(flatten)]
    #[schemars(!flatten)]
    pub extra: Extra,
}

/// A change that was made, or that would be made without `--dry-run`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Action {
    /// `init`, `release`, `prune`, `key` …
    pub action: String,
    /// The object of the action.
    pub target: String,
    /// Whether anything was changed.
    pub changed: bool,
    /// The reason, even if nothing was changed.
    pub reason: String,
    /// Whether this was a dry run.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// The subject's own fields. `init`: `repository_id`. `key`: `repo`, or `key` (the new key's id). `release`:
    /// `capture` and `machine`, `point` (stored from it, or null), `deleted_checkpoints`, `resumed` (the machine had
    /// been paused by a full scratch file system). `backup`, `snapshot`, `push`: `connect`, `repo`, `copy_to` (the
    /// second repository), `capture`, `point` (to be copied), `disks` (to be stored), `skipped` (each with `disk` and
    /// `reason`). `restore`: `disk`, `format`, `capacity_bytes`; `machine`, `uuid`. `forget` (by `prune`, one for each
    /// point; the target is its id, `changed` whether it is removed): `keep`, `machine`, `uuid`, `host`, `captured_at`,
    /// and `rules`: the rules that keep it - `last` `hourly` `daily` `weekly` `monthly` `yearly` `within`, `pinned`,
    /// `restoring` (a machine runs on it until its live restore has ended), `last_good`, `awaits_copy`, `machine_gone`,
    /// `future`, `locked` (by the bucket, until `locked_until`), `no_policy` - or `expired`. `prune` (the target is the
    /// repository): `removed_points`, `kept_points`, `size_bytes` before, `freed_bytes`, `unused_bytes` (unused data
    /// that stays in packs), `removed_packs`, `repacked_packs`, `copied_bytes`, `locked_packs` and `locked_bytes`
    /// (unused, and locked by the bucket until `locked_until`). `pin`, `unpin` (the target is the point's new id):
    /// `machine`, `captured_at`, `repo`, `previous` (its id before). `unlock` (the target is the lock's file): `repo`,
    /// `host` and `locked_at` of its holder. `remote setup`: `algorithm` and `fingerprint` of the server's host key;
    /// `authorized_keys_line` of this host's own key. `jobs cancel` (the target is the job): `pid`. `mount` (the target
    /// is the folder): `machine`, `point`, `program` (`guestmount`, `nbdfuse`), `files` (the disks, if they are mounted
    /// as files), `served` (the name by which `release` stops it, if it runs in the background). `files cp` (the target
    /// is what was written): `machine`, `point`, `path` (in the guest), `files`, `directories`, `copied_bytes`,
    /// `skipped` (devices and sockets). `config set` (the target is the configuration file): `changes` (each with
    /// `key`, `before` and `after`), `diff` (a unified diff), `file_sha256` (of the file before). `schedule`: `cron`
    /// (the expression), `command`, `backup_command` or `drill_command` (the command without its wrapper), `machines`
    /// (a list, `all` or `selected_vms`), `repo`, `description` (when it runs, in words), `longest_gap_seconds` (the
    /// longest time between two runs; none for @reboot), `next_runs` (the next three runs, or the number requested from
    /// `schedule describe`), `entry` (the text that is or would be installed), `drill` (the same fields for `--drill`).
    /// `ui`: `entry` (the text of the unit).
    #[serde(flatten)]
    #[schemars(!flatten)]
    pub extra: Extra,
}

/// One key of the configuration and its effective value; printed by `config show`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Setting {
    /// The key: `jobs`, `ssh.port`.
    pub key: String,
    /// The effective value, or null. Values that may reveal a password are hidden.
    pub value: Value,
    /// Where the value comes from: `flag`, `environment`, `file` or `default`.
    pub source: String,
    /// The flag, the variable or the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// The JSON Schema of the key: its description, type, default and limits.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub schema: Value,
    /// Unknown fields.
    #[serde(flatten)]
    #[schemars(!flatten)]
    pub extra: Extra,
}

/// The failure of one machine (or of the whole command). Other machines continue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
pub struct Failure {
    /// The subcommand that failed.
    pub command: String,
    /// The libvirt connection URI, if one was involved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect: Option<String>,
    /// The machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// The disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
    /// The capture that is still open, for `release`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capture: Option<String>,
    /// The kind of failure, one of the words in the manual.
    pub code: String,
    /// What happened.
    pub error: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Unknown fields.
    #[serde(flatten)]
    #[schemars(!flatten)]
    pub extra: Extra,
}

/// Why a line is not a record.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// The line is not a JSON object.
    #[error("not a JSON object: {}", words_of(.0))]
    Json(#[from] serde_json::Error),
    /// The line is JSON, but has no `"type"`.
    #[error("a record has a \"type\" and this line has none")]
    Untyped,
    /// The type is known, but a field is missing or invalid.
    #[error("not a valid {kind} record: {source}")]
    Fields {
        /// The record's type.
        kind: String,
        /// Which field, and why.
        source: serde_json::Error,
    },
}

impl Point {
    /// Whether damage was found, in this point or an earlier one.
    pub fn is_damage_known(&self) -> bool {
        !(self.damage.is_empty() && self.chain_damage.is_empty() && self.damaged_points.is_empty())
    }
}

/// Returns the message without the position, which always refers to line 1 and would be mistaken for another line.
fn words_of(error: &serde_json::Error) -> String {
    let message = error.to_string();
    match message.rsplit_once(" at line ") {
        Some((words, _)) => format!("{words} at column {}", error.column()),
        None => message,
    }
}

impl Record {
    /// Parses one line (or one element of a JSON array).
    pub fn parse(line: &str) -> Result<Record, ParseError> {
        let mut object: Map<String, Value> = serde_json::from_str(line)?;
        let Some(Value::String(kind)) = object.get("type").cloned() else {
            return Err(ParseError::Untyped);
        };
        fn typed<T: serde::de::DeserializeOwned>(kind: &str, mut object: Map<String, Value>) -> Result<T, ParseError> {
            object.remove("type");
            serde_json::from_value(Value::Object(object))
                .map_err(|source| ParseError::Fields { kind: kind.to_owned(), source })
        }
        Ok(match kind.as_str() {
            "machine" => Record::Machine(typed(&kind, object)?),
            "disk" => Record::Disk(typed(&kind, object)?),
            "file" => Record::File(typed(&kind, object)?),
            "filesystem" => Record::Filesystem(typed(&kind, object)?),
            "point" => Record::Point(typed(&kind, object)?),
            "action" => Record::Action(typed(&kind, object)?),
            "check" => Record::Check(typed(&kind, object)?),
            "setting" => Record::Setting(typed(&kind, object)?),
            "job" => Record::Job(typed(&kind, object)?),
            "log" => Record::Log(typed(&kind, object)?),
            "usage" => Record::Usage(typed(&kind, object)?),
            "failure" => Record::Failure(typed(&kind, object)?),
            _ => {
                object.shift_remove("type");
                object.shift_insert(0, "type".into(), Value::String(kind));
                Record::Other(object)
            }
        })
    }

    /// Returns the value of `"type"`.
    pub fn kind(&self) -> &str {
        match self {
            Record::Machine(_) => "machine",
            Record::Disk(_) => "disk",
            Record::File(_) => "file",
            Record::Filesystem(_) => "filesystem",
            Record::Point(_) => "point",
            Record::Action(_) => "action",
            Record::Check(_) => "check",
            Record::Setting(_) => "setting",
            Record::Job(_) => "job",
            Record::Log(_) => "log",
            Record::Usage(_) => "usage",
            Record::Failure(_) => "failure",
            Record::Other(object) => object.get("type").and_then(Value::as_str).unwrap_or(""),
        }
    }

    /// Returns the record as a JSON object, `"type"` first.
    pub fn to_object(&self) -> Map<String, Value> {
        fn fields(record: &impl Serialize) -> Map<String, Value> {
            match serde_json::to_value(record) {
                Ok(Value::Object(fields)) => fields,
                // Every record is a struct of plain fields, which serde_json cannot fail to serialise.
                other => unreachable!("a record serialises to an object, not {other:?}"),
            }
        }
        let fields = match self {
            Record::Machine(record) => fields(record),
            Record::Disk(record) => fields(record),
            Record::File(record) => fields(record),
            Record::Filesystem(record) => fields(record),
            Record::Point(record) => fields(record),
            Record::Action(record) => fields(record),
            Record::Check(record) => fields(record),
            Record::Setting(record) => fields(record),
            Record::Job(record) => fields(record),
            Record::Log(record) => fields(record),
            Record::Usage(record) => fields(record),
            Record::Failure(record) => fields(record),
            Record::Other(object) => return object.clone(),
        };
        let mut object = Map::with_capacity(fields.len() + 1);
        object.insert("type".into(), Value::String(self.kind().to_owned()));
        object.extend(fields);
        object
    }

    /// Returns the record as one line of JSON, without the newline.
    pub fn to_line(&self) -> String {
        without_steering(Value::Object(self.to_object()).to_string())
    }
}

#[cfg(test)]
mod tests;
