//! `kvmb doctor`

use crate::capture::domain_xml::outside_files::OutsideKind;
use crate::capture::offline::storage_daemon::package;
use crate::capture::runtime::free_bytes;
use crate::capture::survey::{AgentSurvey, DiskStorage, DiskSurvey, JobSurvey, missing_programs};
use crate::capture::{Hypervisor, Machine};
use crate::cli::args::capture::ScratchArgs;
use crate::cli::args::copy::CopyToArgs;
use crate::cli::args::machine;
use crate::cli::args::repo::RepoArgs;
use crate::cli::commands::key;
use crate::cli::commands::remote::of_object_lock;
use crate::cli::commands::restore_live;
use crate::cli::complete;
use crate::cli::context::Context;
use crate::cli::failure::{CliError, Code};
use crate::cli::session::{About, Session};
use crate::cli::table::bytes;
use crate::ops::doctor::{CheckSubject, Finding, judge_host, judge_live_restores, judge_machine};
use crate::ops::inventory::host_name;
use crate::ops::restore::live::confinement::{MissingRule, missing_rule};
use crate::record::{Check, Status};
use std::borrow::Cow;
use std::path::Path;

/// Check for problems that would prevent backups, and show how to fix them.
///
/// Checks this host and its machines without changing anything. Prints a 'check' record for each result: 'ok',
/// 'warning' (backups work, but could work better), 'critical' or 'unknown'. The table shows problems first, and only
/// counts the checks that are ok. Exits with code 1 if a result is critical.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb doctor
  kvmb doctor vm1 'web*'
  kvmb doctor --json | jq -r 'select(.status != \"ok\") | [.target, .detail, .hint] | @tsv'")]
pub(crate) struct DoctorArgs {
    /// Machine names or globs. Default: all machines.
    #[arg(value_name = "NAME", add = complete::machines())]
    names: Vec<String>,

    /// Show all checks, including those without a problem.
    #[arg(long)]
    all: bool,

    #[command(flatten)]
    scratch: ScratchArgs,

    #[command(flatten)]
    repo: RepoArgs,

    #[command(flatten)]
    copy: CopyToArgs,
}

impl DoctorArgs {
    pub(crate) fn run(self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        session.summarize_checks(self.all);
        let hypervisor = match context.hypervisor(None) {
            Ok(hypervisor) => hypervisor,
            Err(error) => {
                session.check(refused("connection", error));
                session.check(programs(&missing_programs()));
                self.check_repositories(context, session)?;
                return check_key(session);
            }
        };
        let host = hypervisor.survey()?;
        let mut checks: Vec<Check> =
            judge_host(&host, &missing_programs()).into_iter().map(|finding| check(finding, context)).collect();
        let runtime = match (context.runtime(), self.scratch.folder()?) {
            (Ok(runtime), Some(folder)) => Some(runtime.with_scratch_folder(folder)),
            (Ok(runtime), None) => Some(runtime),
            (Err(error), _) => {
                checks.push(refused("folders", error));
                None
            }
        };
        if let (Some(module), Some(runtime)) = (&host.confined_by, &runtime) {
            let is_unfinished = !restore_live::checks(runtime).is_empty();
            let finding = judge_live_restores(missing_rule(module, runtime), is_unfinished);
            checks.extend(finding.map(|finding| check(finding, context)));
        }
        let machines = match &self.names[..] {
            [] if rustix::process::geteuid().is_root() => machine::all(&hypervisor, context)?,
            [] => hypervisor.machines(&[])?,
            names => machine::find(&hypervisor, names, session),
        };
        checks.extend(has_no_machines(&hypervisor, &self.names, &machines));
        for check in checks {
            session.check(check);
        }
        self.check_repositories(context, session)?;
        check_key(session)?;
        let Some(runtime) = runtime else { return Ok(()) };
        restore_live::checks(&runtime).into_iter().for_each(|check| session.check(check));
        let room = free_bytes(runtime.scratch_folder()).ok();
        let scratch = room.map(|free_bytes| (runtime.scratch_folder().to_owned(), free_bytes));
        for machine in &machines {
            match machine.survey(&runtime, &host) {
                Ok(survey) => {
                    for finding in judge_machine(&survey, scratch.clone()) {
                        session.check(check(finding, context));
                    }
                }
                Err(error) => session.fail(About::machine(&host.uri, machine.name()), error),
            }
            if session.is_pointless() {
                break;
            }
        }
        Ok(())
    }

    /// Checks whether the repositories are reachable, and opens them if that needs no password prompt.
    fn check_repositories(&self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        let (first, second) = self.copy.tiers(context, &self.repo)?;
        for (name, repo) in [("repository", Some(first)), ("copy", second)] {
            let Some(repo) = repo.map(|repo| repo.in_a_hurry()) else { continue };
            let storage = repo.storage(context)?;
            let url = storage.url();
            match repo.probe(context) {
                Ok(found) => {
                    session.check(Check::new(name, url.clone(), Status::Ok, found.words()));
                    if storage.lock_period().is_some() {
                        session.check(of_object_lock(&*storage, &url)?);
                    }
                }
                Err(error) if error.code == Code::Interrupted => return Err(error),
                Err(error) => {
                    session.check(Check { hint: error.hint, ..Check::new(name, url, Status::Critical, error.message) })
                }
            }
        }
        Ok(())
    }
}

/// Reports that a user other than root sees no machines at all: the host's machines belong to root's libvirt.
fn has_no_machines(hypervisor: &Hypervisor, names: &[String], machines: &[Machine]) -> Option<Check> {
    let is_unexpected = names.is_empty() && machines.is_empty() && !rustix::process::geteuid().is_root();
    let detail = format!("no machines on {}, and kvmb does not run as root", hypervisor.uri());
    let hint =
        "run 'sudo kvmb doctor', or join the group libvirt and choose the connection of the host: -c qemu:///system";
    is_unexpected.then(|| Check::new("connection", host_name(), Status::Warning, detail).hint(hint))
}

fn check_key(session: &mut Session) -> Result<(), CliError> {
    if let Some((_, check)) = key::kept_elsewhere()? {
        session.check(check);
    }
    Ok(())
}

/// Returns the check for resources that could not be inspected.
fn refused(check: &str, error: CliError) -> Check {
    let refused = Check::new(check, host_name(), Status::Critical, error.message);
    match error.hint {
        Some(hint) => refused.hint(hint),
        None => refused,
    }
}

/// The text of a check, and its hint.
struct CheckWords {
    check: &'static str,
    detail: String,
    hint: Option<String>,
}

impl CheckWords {
    fn new(check: &'static str, detail: impl Into<String>) -> CheckWords {
        CheckWords { check, detail: detail.into(), hint: None }
    }

    fn hint(self, hint: impl Into<String>) -> CheckWords {
        CheckWords { hint: Some(hint.into()), ..self }
    }
}

fn check(finding: Finding, context: &Context) -> Check {
    let machine = finding.machine.as_deref().unwrap_or_default();
    let CheckWords { check, detail, hint } =
        words(&finding, &ShellCommands { machine, connect: context.global.connect.as_deref() });
    let target = match (&finding.machine, &finding.disk) {
        (Some(machine), Some(disk)) => format!("{machine}/{disk}"),
        (Some(machine), None) => machine.clone(),
        (None, _) => host_name(),
    };
    Check { hint, ..Check::new(check, target, finding.status, detail) }
}

/// Builds commands that can be pasted into a shell, whatever the machine's name.
struct ShellCommands<'a> {
    machine: &'a str,
    connect: Option<&'a str>,
}

impl ShellCommands<'_> {
    fn machine(&self) -> Cow<'_, str> {
        quoted(self.machine)
    }

    fn virsh(&self, command: &str) -> String {
        match self.connect {
            Some(uri) => format!("virsh -c {} {command}", quoted(uri)),
            None => format!("virsh {command}"),
        }
    }
}

/// Quotes a word for a shell. A word with a NUL byte cannot be quoted.
fn quoted(word: &str) -> Cow<'_, str> {
    shlex::try_quote(word).unwrap_or(Cow::Borrowed("…"))
}

fn quoted_path(path: Option<&Path>) -> String {
    path.map_or_else(|| "IMAGE".to_owned(), |path| quoted(&path.to_string_lossy()).into_owned())
}

fn words(finding: &Finding, shell: &ShellCommands) -> CheckWords {
    let is_well = finding.status == Status::Ok;
    let name = shell.machine();
    match &finding.subject {
        CheckSubject::Connection { uri } if is_well => CheckWords::new("connection", uri),
        CheckSubject::Connection { uri } => {
            CheckWords::new("connection", format!("{uri} is not a QEMU hypervisor of this host"))
                .hint("run kvmb on the host that runs the machines")
        }
        CheckSubject::Libvirt { version } => versioned("libvirt", Some(*version), finding.status),
        CheckSubject::Qemu { version } => versioned("qemu", *version, finding.status),
        CheckSubject::Programs { missing } => programs_words(missing),
        CheckSubject::Confinement { by, has_open_folder } => confinement(by, *has_open_folder),
        CheckSubject::LiveRestore(rule) => live_restore(rule),
        CheckSubject::Folders { closed: None, .. } => {
            CheckWords::new("folders", "QEMU's user can access the socket and scratch folders")
        }
        CheckSubject::Folders { closed: Some(folder), user } => {
            let user = user.map_or_else(|| "a user".to_owned(), |user| format!("user {user}"));
            CheckWords::new("folders", format!("QEMU runs as {user}, which has no access to {}", folder.display()))
                .hint(format!(
                    "chmod o+x {}; or choose other folders: --scratch DIR, $KVMB_RUNTIME_DIR",
                    quoted_path(Some(folder))
                ))
        }
        CheckSubject::Scratch(room) => {
            let free = format!("{} free in {}", bytes(room.free_bytes), room.folder.display());
            match finding.status {
                Status::Ok => CheckWords::new("scratch", free),
                Status::Critical => {
                    CheckWords::new("scratch", format!("only {free}; {} needed", bytes(room.needed_bytes)))
                        .hint("free some space, or choose another folder: --scratch DIR, $KVMB_SCRATCH")
                }
                _ => CheckWords::new("scratch", format!("{free}; this may be too little for a long backup"))
                    .hint("free some space, or choose another folder: --scratch DIR, $KVMB_SCRATCH"),
            }
        }
        CheckSubject::Agent(agent) => agent_words(agent, &name),
        CheckSubject::Job(job) => job_words(job, shell),
        CheckSubject::StoppedByIoError => CheckWords::new("machine", "paused because a disk failed or was full")
            .hint(format!("free some space, then run '{}'", shell.virsh(&format!("resume {name}")))),
        CheckSubject::SavedMemory => {
            CheckWords::new("machine", "its memory is saved on disk; it cannot be backed up until it has been started")
                .hint(format!(
                    "{}, or discard its memory: {}",
                    shell.virsh(&format!("start {name}")),
                    shell.virsh(&format!("managedsave-remove {name}"))
                ))
        }
        CheckSubject::NoDisks => {
            CheckWords::new("machine", "it has no disk to back up; a backup stores its definition")
        }
        CheckSubject::MissingPart(part) => {
            let (what, reason) = (part.role.words(), &part.reason);
            CheckWords::new("part", format!("a backup would lack its {what}: {reason}"))
                .hint("put a regular file there that kvmb can read; until then, backups exit with code 3")
        }
        CheckSubject::OutsideLeftOut(file) => {
            let part = file.part.replace('_', " ");
            CheckWords::new("part", format!("left out: {part} {}: {}", file.origin.display(), file.reason)).hint(
                match file.part == OutsideKind::SharedFolder.word() {
                    true => "back it up on this host, for example with restic",
                    false => "keep a copy of it elsewhere, or remove it from the definition",
                },
            )
        }
        CheckSubject::InternalSnapshots { names, has_checkpoints } => {
            let names = names.join(", ");
            let state = match has_checkpoints {
                true => {
                    "the dirty bitmaps of its checkpoints prevent reverting to them, and an attempt leaves the \
                     machine off"
                }
                false => "the dirty bitmaps that a backup creates prevent reverting to them",
            };
            CheckWords::new("snapshot", format!("it has internal snapshots ({names}): {state}"))
                .hint(revert_hint(shell))
        }
        CheckSubject::Checkpoints => CheckWords::new(
            "checkpoint",
            format!(
                "it has checkpoints: libvirt undefines it only with {}",
                shell.virsh(&format!("undefine {name} --checkpoints-metadata"))
            ),
        ),
        CheckSubject::Disk(disk) => disk_words(disk, shell),
        CheckSubject::EncryptedAndOff(disk) => CheckWords::new(
            "disk",
            format!(
                "encrypted ({}), and libvirt does not provide the passphrase: {}",
                disk.encryption.as_deref().unwrap_or("unknown"),
                disk.secret_error.as_deref().unwrap_or_default()
            ),
        )
        .hint(format!(
            "back up the machine while it is running, use --luks-key-file {0}=FILE, or exclude the disk with \
             --exclude-disk {0}",
            disk.target
        )),
        CheckSubject::Bitmap { bitmap, is_on } => {
            let broken = CheckWords::new(
                "bitmap",
                format!("bitmap {} is missing or was not closed properly, so changes cannot be tracked", bitmap.name),
            );
            let checkpoint = quoted(&bitmap.name);
            let forget = shell.virsh(&format!("checkpoint-delete --metadata {name} {checkpoint}"));
            match (&bitmap.image, is_on) {
                _ if bitmap.name.starts_with(crate::capture::checkpoint::PREFIX) => broken.hint(format!(
                    "run 'kvmb backup {name}': the disk is read in full once and the bitmap is replaced"
                )),
                (Some(image), false) => {
                    broken.hint(format!("qemu-img bitmap --remove -f qcow2 {} {checkpoint}", quoted_path(Some(image))))
                }
                (None, false) => broken.hint(forget),
                // libvirt deletes only checkpoints whose bitmap still exists; otherwise only the metadata can be
                // deleted.
                (_, true) => broken
                    .hint(format!("{} || {forget}", shell.virsh(&format!("checkpoint-delete {name} {checkpoint}")))),
            }
        }
    }
}

/// Returns the commands that revert to an internal snapshot.
fn revert_hint(shell: &ShellCommands) -> String {
    let name = shell.machine();
    format!(
        "before reverting, delete its checkpoints while it runs: for c in $({}); do {}; done; the next backup reads \
         its disks in full",
        shell.virsh(&format!("checkpoint-list --name {name}")),
        shell.virsh(&format!("checkpoint-delete {name} \"$c\""))
    )
}

fn versioned(program: &'static str, version: Option<(u32, u32, u32)>, status: Status) -> CheckWords {
    let shown = if program == "qemu" { "QEMU" } else { program };
    let Some((major, minor, patch)) = version else {
        return CheckWords::new(program, format!("libvirt does not find {shown}"))
            .hint("install QEMU: apt install qemu-system-x86");
    };
    let words = format!("{shown} {major}.{minor}.{patch}");
    match status {
        Status::Ok => CheckWords::new(program, words),
        Status::Critical => CheckWords::new(program, format!("{words} is too old to back up a running machine"))
            .hint(format!("upgrade {shown}; Debian 12 and Ubuntu 24.04 include a suitable version")),
        _ => CheckWords::new(program, format!("{words} is older than the versions that kvmb supports"))
            .hint(format!("upgrade {shown}; Debian 12 and Ubuntu 24.04 include a suitable version")),
    }
}

fn programs(missing: &[&'static str]) -> Check {
    let CheckWords { check, detail, hint } = programs_words(missing);
    let status = if missing.is_empty() { Status::Ok } else { Status::Critical };
    Check { hint, ..Check::new(check, host_name(), status, detail) }
}

fn programs_words(missing: &[&'static str]) -> CheckWords {
    if missing.is_empty() {
        return CheckWords::new("programs", "qemu-img and qemu-storage-daemon are installed");
    }
    let package = match missing {
        ["qemu-storage-daemon"] => package(),
        _ => "qemu-utils",
    };
    CheckWords::new("programs", format!("not found in PATH: {}", missing.join(", ")))
        .hint(format!("apt install {package} (Debian, Ubuntu); dnf install qemu-img (Fedora, RHEL)"))
}

fn confinement(by: &str, has_open_folder: Option<bool>) -> CheckWords {
    let words =
        CheckWords::new("confinement", format!("{by} confines QEMU; kvmb puts its socket where libvirt permits it"));
    match (has_open_folder, by) {
        (Some(true), _) => words,
        (None, _) => CheckWords {
            detail: format!("{by} confines the machines; kvmb puts its sockets where libvirt permits them"),
            ..words
        },
        (Some(false), by) => CheckWords {
            detail: format!(
                "{by} confines QEMU, and the folder that libvirt permits was not found; QEMU may not be \
                able to create its socket"
            ),
            ..words
        }
        .hint(match by {
            "apparmor" => {
                "permit QEMU the folder in /etc/apparmor.d/local/abstractions/libvirt-qemu: '/run/kvmb-nbd/** rw,'"
            }
            _ => "semanage fcontext -a -t qemu_var_run_t '/run/kvmb-nbd(/.*)?'; restorecon -R /run/kvmb-nbd",
        }),
    }
}

fn live_restore(MissingRule { module, rule, command }: &MissingRule) -> CheckWords {
    let detail = format!("{module} does not permit live restores ('kvmb restore --live'): the rule {rule} is missing");
    CheckWords::new("confinement", detail).hint(command)
}

fn agent_words(agent: &AgentSurvey, name: &str) -> CheckWords {
    match agent {
        AgentSurvey::Answers => CheckWords::new("agent", "the guest agent responds"),
        AgentSurvey::NotAsked => {
            CheckWords::new("agent", "the guest agent can be checked only while the machine is running")
        }
        AgentSurvey::NoChannel => CheckWords::new("agent", "no guest agent channel; backups are crash-consistent only")
            .hint(format!(
                "virt-xml {name} --add-device --channel unix,target.type=virtio,target.name=org.qemu.guest_agent.0; \
                 then restart the machine and install qemu-guest-agent in the guest"
            )),
        AgentSurvey::Disconnected => {
            CheckWords::new("agent", "the guest agent is not running; backups are crash-consistent only")
                .hint("in the guest: apt install qemu-guest-agent; systemctl enable --now qemu-guest-agent")
        }
        AgentSurvey::Silent(error) => {
            CheckWords::new("agent", format!("the guest agent does not respond, so freezing will fail ({error})"))
                .hint("in the guest: systemctl restart qemu-guest-agent")
        }
    }
}

fn job_words(job: &JobSurvey, shell: &ShellCommands) -> CheckWords {
    let name = shell.machine();
    match job {
        JobSurvey::Free => CheckWords::new("job", "no backup job running"),
        JobSurvey::LeftOver { capture, holds_off } => {
            let left = format!("capture {capture} was left by an earlier run; the next backup closes it");
            match holds_off {
                true => CheckWords::new("job", format!("{left}; until then the machine cannot start"))
                    .hint(format!("kvmb release {name}")),
                false => CheckWords::new("job", left),
            }
        }
        JobSurvey::Captured { capture, until, holds_off, is_guarded } => {
            let meanwhile = match (holds_off, is_guarded) {
                (true, _) => "; the machine cannot start meanwhile",
                (false, false) => "; its guard process has ended, so the scratch space is not monitored",
                (false, true) => "",
            };
            let until = until.to_rfc3339();
            CheckWords::new("job", format!("capture {capture} is open until {until}{meanwhile}"))
                .hint(format!("kvmb release {name}"))
        }
        JobSurvey::Foreign { job } => {
            CheckWords::new("job", format!("a backup job of another program is running ({job})"))
                .hint(format!("wait for it, or cancel it with '{}'", shell.virsh(&format!("domjobabort {name}"))))
        }
        JobSurvey::Block { disk, job } => {
            let job_command = |flag: &str| shell.virsh(&format!("blockjob {name} {} --{flag}", quoted(disk)));
            let words = CheckWords::new(
                "job",
                format!("disk {disk} has a block job ({job}); it cannot be backed up until the job ends"),
            );
            match job.waits_for_pivot() {
                true => words.hint(format!("{}; or {}", job_command("pivot"), job_command("abort"))),
                false => words.hint(format!("wait until it finishes, or end it: {}", job_command("abort"))),
            }
        }
        JobSurvey::Wedged { message } => {
            CheckWords::new("job", format!("libvirt has lost track of a backup job ({message})")).hint(format!(
                "run '{}', then 'systemctl restart libvirtd' (or virtqemud)",
                shell.virsh(&format!("destroy {name}"))
            ))
        }
        JobSurvey::Unknown { error } => CheckWords::new("job", error),
    }
}

fn disk_words(disk: &DiskSurvey, shell: &ShellCommands) -> CheckWords {
    let name = shell.machine();
    let path = quoted_path(disk.path.as_deref());
    if let Some(reason) = &disk.exclusion {
        let left_out = CheckWords::new("disk", format!("excluded: {reason}"));
        return match disk.is_drive {
            true => left_out,
            false => left_out.hint("back up its content inside the guest, or on the host that owns it"),
        };
    }
    let in_full = |what: &str| {
        CheckWords::new("disk", format!("{what} cannot have a dirty bitmap, so it is read in full each time"))
    };
    let edit = || format!("set its type and path: {}", shell.virsh(&format!("edit {name}")));
    match &disk.storage {
        DiskStorage::KeepsBitmaps => CheckWords::new("disk", "only changes are read"),
        DiskStorage::OldQcow2 => in_full("a qcow2 image of version 2")
            .hint(format!("while it is off: qemu-img amend -f qcow2 -o compat=1.1 {path}")),
        DiskStorage::Corrupt => CheckWords::new("disk", "its image is marked as corrupt; the machine cannot start")
            .hint(format!("back it up, then, while it is off: qemu-img check -f qcow2 -r all {path}")),
        DiskStorage::CutOff => CheckWords::new("disk", "its image is cut off: what was beyond its end reads as zeros")
            .hint(format!("restore it from an older point; the extent of the loss: qemu-img check -U {path}")),
        DiskStorage::DataFile => CheckWords::new(
            "disk",
            "only changes are read, except in the first backup after each start: while the machine is off, other \
             programs can change its external data file, and no dirty bitmap records it",
        ),
        DiskStorage::Format(format) if disk.is_file => in_full(&format!("a {format} image")).hint(format!(
            "while it is off: qemu-img convert -f {format} -O qcow2 {path} NEW.qcow2; {}{}",
            edit(),
            data_file_way(disk, format, shell).unwrap_or_default()
        )),
        DiskStorage::Format(format) if disk.path.is_some() => {
            in_full(&format!("a {format} image on a device")).hint(format!(
                "while it is off, to a device that is 1% larger: qemu-img convert -f {format} -O qcow2 {path} \
                 /dev/NEW; {}{}",
                edit(),
                data_file_way(disk, format, shell).unwrap_or_default()
            ))
        }
        DiskStorage::Format(format) => in_full(&format!("a {format} image on network storage")),
        DiskStorage::NoDriver(protocol) => {
            CheckWords::new("disk", format!("QEMU has no driver for its storage ({protocol})"))
                .hint("apt install qemu-block-extra")
        }
        DiskStorage::Unreadable(error) => CheckWords::new("disk", format!("its image cannot be read: {error}"))
            .hint(format!("check its storage: {}", shell.virsh(&format!("domblklist {name}")))),
    }
}

/// Describes how to make a raw file or device the data file of a qcow2 image, which can store bitmaps.
/// `qemu-img create` truncates its data file, so the image is first created with another one.
fn data_file_way(disk: &DiskSurvey, format: &str, shell: &ShellCommands) -> Option<String> {
    let (path, size) = (disk.path.as_deref()?, disk.capacity_bytes?);
    if format != "raw" {
        return None;
    }
    let data = path.to_str()?;
    let (image, kind, attribute) = match disk.is_file {
        true => (format!("{data}.qcow2"), "file", "file"),
        false => (format!("/var/lib/libvirt/images/{}-{}.qcow2", shell.machine, disk.target), "block", "dev"),
    };
    let new = format!("{image}.new");
    let option = |file: &str| quoted(&format!("data_file={},data_file_raw=on", file.replace(',', ",,"))).into_owned();
    let xml = |text: &str| text.replace('&', "&amp;").replace('\'', "&apos;").replace('<', "&lt;");
    Some(format!(
        "; or keep it as the data file of a qcow2 image (libvirt 10.10 or later): qemu-img create -q -f qcow2 -o {} {} \
         {size} && qemu-img amend -f qcow2 -o {} {} && rm {}; then set <driver name='qemu' type='qcow2'/> \
         and <source file='{}'><dataStore type='{kind}'><format type='raw'/><source \
         {attribute}='{}'/></dataStore></source> in a <disk type='file'>: {}",
        option(&new),
        quoted(&image),
        option(data),
        quoted(&image),
        quoted(&new),
        xml(&image),
        xml(data),
        shell.virsh(&format!("edit {}", shell.machine())),
    ))
}
