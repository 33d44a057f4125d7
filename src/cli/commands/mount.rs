//! `kvmb mount`

use super::serving::{Serving, ServingPhase, ServingRequest};
use crate::capture::runtime::nbd_uri;
use crate::capture::share_freed_memory;
use crate::cli::args::repo::RepoArgs;
use crate::cli::args::value_parsers::duration;
use crate::cli::complete;
use crate::cli::context::Context;
use crate::cli::failure::{CliError, Code};
use crate::cli::session::Session;
use crate::cli::terminal::stderr::say;
use crate::ops::mount::{Mount, MountProgram, MountState, check_target};
use crate::record::{Action, Record};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Mount a restore point: read its files without restoring it.
///
/// With guestmount (libguestfs), shows the file systems as the guest mounts them; otherwise, with nbdfuse, shows each
/// disk as a file. Everything is read-only, and each chunk is verified before it is read. Prints an 'action' record and
/// stays until Ctrl-C or until the folder is unmounted.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb mount vm1@latest /mnt -r /backup/kvm
  kvmb mount vm1 /mnt --detach && cp /mnt/etc/fstab . && kvmb release vm1
  kvmb mount 4f2a91c7 /mnt --disks --disk vda          /mnt/vda/vda.raw is the disk")]
pub(crate) struct MountArgs {
    /// A point: an ID or its beginning, NAME, NAME@latest, NAME@2026-11-20, NAME@-2h.
    #[arg(value_name = "POINT", add = complete::points())]
    point: String,

    /// An empty folder to mount on.
    #[arg(value_name = "DIR")]
    folder: PathBuf,

    /// Mount only this disk (can be repeated).
    #[arg(long = "disk", value_name = "DISK", add = complete::disks())]
    only: Vec<String>,

    /// Show disks as files even if guestmount is installed.
    #[arg(long)]
    disks: bool,

    /// Mount in the background, until 'kvmb release' or until the folder is unmounted.
    #[arg(long)]
    detach: bool,

    /// How long mounting may take.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "5m")]
    timeout: Duration,

    #[command(flatten)]
    repo: RepoArgs,
}

impl MountArgs {
    /// Whether the process should detach from its terminal.
    pub(crate) fn wants_to_detach(&self) -> bool {
        self.detach
    }

    pub(crate) fn run(self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        let program = self.program()?;
        share_freed_memory();
        let folder = std::fs::canonicalize(&self.folder).map_err(crate::ops::Error::io("find", &self.folder))?;
        check_target(&folder)?;
        let request = ServingRequest {
            point: &self.point,
            disks: &self.only,
            socket: None,
            owner: None,
            writable: false,
            // While it is mounted, its program is connected, and the lease does not run out.
            lease: self.detach.then_some(self.timeout),
        };
        let serving = Serving::open(context, self.repo.open(context)?, request, session)?;
        let uris: Vec<String> = serving.disks().iter().map(|disk| nbd_uri(serving.socket(), &disk.disk)).collect();
        let mut mounts = match program {
            MountProgram::Guestmount => vec![Mount::of_file_systems(&folder, &uris)?],
            MountProgram::Nbdfuse => {
                let disks = serving.disks().iter().zip(&uris);
                disks.map(|(disk, uri)| Mount::of_disk(&folder, &disk.disk, uri)).collect::<Result<_, _>>()?
            }
        };
        let record = self.record(&serving, program, &folder);
        let (end, mut failure, mut is_ready) = (Instant::now() + self.timeout, None, false);
        serving.run(session, |session| match look(&mut mounts) {
            Ok(MountState::Mounted) if !is_ready => {
                is_ready = true;
                session.done(record.clone());
                if !self.detach {
                    say(&format!("kvmb: mounted on {}; Ctrl-C unmounts", folder.display()));
                }
                ServingPhase::Ready
            }
            Ok(MountState::Mounted) => ServingPhase::Ready,
            Ok(MountState::Starting) if Instant::now() < end => ServingPhase::Preparing,
            Ok(MountState::Starting) => {
                let seconds = self.timeout.as_secs();
                let message = format!("{} did not mount {} within {seconds} s", program.name(), folder.display());
                failure = Some(CliError::new(Code::Timeout, message).hint("allow more time with --timeout 15m"));
                ServingPhase::End
            }
            Ok(MountState::Ended) => ServingPhase::End,
            Err(error) => {
                failure = Some(error.into());
                ServingPhase::End
            }
        })?;
        failure.map_or(Ok(()), Err)
    }

    fn program(&self) -> Result<MountProgram, CliError> {
        if !self.disks && MountProgram::Guestmount.is_installed() {
            return Ok(MountProgram::Guestmount);
        }
        if !MountProgram::Nbdfuse.is_installed() {
            return Err(CliError::new(Code::Unsupported, "neither guestmount nor nbdfuse is installed").hint(
                "install guestmount for file systems, or nbdfuse for whole disks (Debian, Ubuntu: guestmount, \
                 libnbd-bin)",
            ));
        }
        if !self.disks {
            say("kvmb: guestmount is not installed; mounting whole disks as files");
        }
        Ok(MountProgram::Nbdfuse)
    }

    fn record(&self, serving: &Serving, program: MountProgram, folder: &Path) -> Record {
        let point = serving.point();
        let files: Vec<String> = match program {
            MountProgram::Guestmount => Vec::new(),
            MountProgram::Nbdfuse => {
                let file = |disk: &str| folder.join(disk).join(format!("{disk}.raw")).display().to_string();
                serving.disks().iter().map(|disk| file(&disk.disk)).collect()
            }
        };
        let reason = match program {
            MountProgram::Guestmount => "the file systems of the guest are mounted, read-only",
            MountProgram::Nbdfuse => "the disks are mounted as files, read-only",
        };
        let extra = json!({
            "machine": point.manifest.machine,
            "point": point.id.to_string(),
            "program": program.name(),
            "files": files,
            "served": serving.served(),
        });
        Record::Action(Action {
            action: "mount".into(),
            target: folder.display().to_string(),
            changed: true,
            reason: reason.into(),
            dry_run: false,
            extra: extra.as_object().cloned().unwrap_or_default(),
        })
    }
}

/// Returns the combined state: mounted when every mount is, ended when any one is.
fn look(mounts: &mut [Mount]) -> crate::ops::Result<MountState> {
    let mut all = MountState::Mounted;
    for mount in mounts {
        match mount.state()? {
            MountState::Ended => {
                tracing::info!("{} was unmounted", mount.target().display());
                return Ok(MountState::Ended);
            }
            MountState::Starting => all = MountState::Starting,
            MountState::Mounted => {}
        }
    }
    Ok(all)
}
