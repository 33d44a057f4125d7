//! `kvmb restore --live`: starts a machine before its data is restored, and resumes or aborts interrupted live
//! restores.

use crate::capture::RuntimeDirs;
use crate::cli::args::repo::RepoArgs;
use crate::cli::args::value_parsers::rate;
use crate::cli::commands::live_unit::LiveUnit;
use crate::cli::context::Context;
use crate::cli::failure::{CliError, Code};
use crate::cli::folders::state_folder;
use crate::cli::session::{About, Session};
use crate::cli::terminal::stderr::say;
use crate::ops;
use crate::ops::points::{self, OpenPoint, PointName};
use crate::ops::repo_lock::lock_and_list;
use crate::ops::restore::live::state::{LiveFolder, LiveState, ServerAccess};
use crate::ops::restore::live::{
    ContinuedBy, LiveContext, LivePoint, LiveSource, abort_live, continue_live, is_served, is_supervised, restore_live,
};
use crate::ops::restore::plan::RestorePlan;
use crate::record::{Action, Check, Point, Record, Status};
use crate::repo::{Index, Permit, Repository};
use serde_json::json;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

/// A restore while the machine runs.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Live restore")]
pub(super) struct LiveArgs {
    /// Start the machine at once, and copy its data to this host while it runs.
    ///
    /// The machine reads from the repository what has not been copied yet, so it needs the repository until the end.
    /// Old images are kept until then. The password of the repository must come from a file, a variable or the
    /// configuration: a server in the background needs it too.
    #[arg(long, group = "live_restore", conflicts_with_all = ["no_define", "disk"])]
    pub(super) live: bool,

    /// Continue the unfinished live restore of a machine.
    ///
    /// Starts the server of the point if it does not run, and the machine if it is off.
    #[arg(long = "continue", group = "live_restore", requires = "point")]
    resume: bool,

    /// Continue it as its supervisor does: what a person has stopped stays stopped.
    #[arg(long, hide = true, requires = "resume")]
    unattended: bool,

    /// Abort the unfinished live restore of a machine that is off.
    ///
    /// The previous images and definition are restored. Everything that the machine has written since the restore is
    /// lost.
    #[arg(long, group = "live_restore", requires = "point")]
    abort: bool,

    /// Limit the copying of a live restore, in bytes per second (example: 500K, 10M).
    #[arg(long, value_name = "RATE", value_parser = rate, requires = "live_restore")]
    limit_read: Option<NonZeroU32>,
}

impl LiveArgs {
    /// Whether the command refers to an unfinished restore, and not to a point.
    pub(super) fn is_about_unfinished(&self) -> bool {
        self.resume || self.abort
    }

    /// Resumes or aborts an unfinished restore.
    pub(super) fn settle(
        &self,
        context: &Context,
        repo_args: &RepoArgs,
        machine: &str,
        session: &mut Session,
    ) -> Result<(), CliError> {
        let (folder, runtime) = (live_folder()?, context.runtime()?);
        let unit = LiveUnit::new()?;
        let live = self.context(context, &folder, &runtime, &unit);
        let connect = |uri: &str| context.open_hypervisor(Some(uri));
        let open = |state: &LiveState| {
            let not_served =
                |error: CliError| ops::Error::NotServed { point: state.point.clone(), message: error.message };
            open_point(context, repo_args, state).map_err(not_served)
        };
        let by = if self.unattended { ContinuedBy::Supervisor } else { ContinuedBy::Person };
        let (done, reason) = match self.abort {
            true => (abort_live(machine, &connect, &live), "the images and the definition before the restore are back"),
            false => (continue_live(machine, by, &connect, &open, &live), "all data is on the disks of this host"),
        };
        match done {
            Ok(state) => session.done(action(&state, reason)),
            Err(error) => {
                session.fail(About { machine: Some(machine.to_owned()), ..About::default() }, with_way(error, machine))
            }
        }
        Ok(())
    }

    /// Restores a point while its machine runs.
    pub(super) fn restore(
        &self,
        context: &Context,
        repo_args: &RepoArgs,
        (repo, permit, index, point): (&Repository, Option<Permit>, &Index, &OpenPoint),
        plan: &RestorePlan,
    ) -> Result<Point, CliError> {
        if !repo_args.can_open_unasked(context) {
            return Err(CliError::usage("a live restore needs the repository password from a file or a variable")
                .hint("add --password-file FILE"));
        }
        let (folder, runtime) = (live_folder()?, context.runtime()?);
        let access = ServerAccess {
            repo: repo.url(),
            password_file: absolute(repo_args.password_file.as_deref())?,
            ssh_password_file: absolute(repo_args.ssh_password_file.as_deref())?,
            cacert: absolute(repo_args.cacert.as_deref())?,
            tls_client_cert: absolute(repo_args.tls_client_cert.as_deref())?,
            config: absolute(context.global.config.as_deref())?,
        };
        let source = LiveSource { repo, index, point, access, permit, began: context.run.began };
        let connect = || context.open_hypervisor(None);
        let on_running = |seconds: f64| {
            if !context.global.quiet {
                say(&format!("kvmb: {} is running after {seconds:.1} s; its data is being copied", plan.machine));
            }
        };
        let unit = LiveUnit::new()?;
        let live = self.context(context, &folder, &runtime, &unit);
        restore_live(&source, plan, &connect, &live, &on_running).map_err(|error| with_way(error, &plan.machine))
    }

    fn context<'a>(
        &self,
        context: &'a Context,
        folder: &'a LiveFolder,
        runtime: &'a RuntimeDirs,
        service: &'a LiveUnit,
    ) -> LiveContext<'a> {
        let limit_read = self.limit_read.map(NonZeroU32::get);
        LiveContext { folder, runtime, limit_read, service, monitor: &context.monitor, stop: &context.stop }
    }
}

/// Opens the point of an unfinished restore with the access that its server has.
fn open_point(context: &Context, given: &RepoArgs, state: &LiveState) -> Result<LivePoint, CliError> {
    let access = state.access.clone();
    let args = RepoArgs {
        repo: Some(access.repo),
        password_file: access.password_file.or(given.password_file.clone()),
        ssh_password_file: access.ssh_password_file.or(given.ssh_password_file.clone()),
        cacert: access.cacert.or(given.cacert.clone()),
        tls_client_cert: access.tls_client_cert.or(given.tls_client_cert.clone()),
        ..given.clone()
    };
    let repo = args.open(context)?;
    let (lock, snapshots) = lock_and_list(&repo, &context.monitor, &context.stop)?;
    let (found, damaged) = points::of_snapshots(snapshots);
    let index = points::load_index_for_reading(&repo, &context.monitor)?;
    let found = points::find_surely(&repo, &found, &damaged, &PointName::Plain(state.point.clone()))?;
    let point = points::open_with_damage(&repo, &index, &found)?;
    Ok(LivePoint { repo, index, point, lock })
}

/// Refuses to overwrite a machine that still needs its point.
pub(super) fn refuse_unfinished(plan: &RestorePlan) -> Result<(), CliError> {
    match live_folder()?.find(&plan.uuid)? {
        Some(state) if plan.define => Err(ops::Error::LiveRestoreUnfinished { machine: state.machine }.into()),
        _ => Ok(()),
    }
}

/// Returns checks for the unfinished restores of this host, for `status` and `doctor`.
pub(super) fn checks(runtime: &RuntimeDirs) -> Vec<Check> {
    let found = live_folder().and_then(|folder| Ok((folder.all()?, folder)));
    match found {
        Ok((states, folder)) => {
            states.iter().map(|state| check(state, runtime, is_supervised(&folder, state))).collect()
        }
        Err(error) => vec![Check::new("restore", "live restores", Status::Unknown, error.message)],
    }
}

fn check(state: &LiveState, runtime: &RuntimeDirs, is_supervised: bool) -> Check {
    let machine = &state.machine;
    let since = state.began_at.with_timezone(&chrono::Local).format("%Y-%m-%d %H:%M");
    let (status, detail) = match (state.process.is_alive(), is_served(runtime, state)) {
        (true, _) => (Status::Ok, format!("process {} has been copying its data since {since}", state.process.pid)),
        (false, Ok(true)) if is_supervised => {
            (Status::Warning, format!("its restore of {since} is not finished; it still reads from the repository"))
        }
        (false, Ok(true)) => (
            Status::Warning,
            format!(
                "its restore of {since} is not finished; it still reads from the repository, and nothing restarts the \
                 server of its point if it exits"
            ),
        ),
        (false, Ok(false)) if is_supervised => (
            Status::Warning,
            format!("its restore of {since} is not finished; the server of its point is being restarted"),
        ),
        (false, Ok(false)) => (
            Status::Critical,
            format!(
                "its restore of {since} is not finished, and its point is not served: the machine is waiting or \
                 cannot start"
            ),
        ),
        (false, Err(error)) => (Status::Unknown, error.to_string()),
    };
    let check = Check::new("restore", machine.clone(), status, detail);
    match shlex::try_quote(machine) {
        Ok(machine) if status != Status::Ok => check.hint(format!("kvmb restore --continue {machine}")),
        _ => check,
    }
}

/// Adds to an error how to resume the restore, if it is unfinished.
fn with_way(error: ops::Error, machine: &str) -> CliError {
    let is_unfinished = live_folder().ok().and_then(|folder| folder.find(machine).ok()).flatten().is_some();
    let error = CliError::from(error);
    match shlex::try_quote(machine) {
        Ok(machine) if is_unfinished && error.code == Code::Interrupted => error.hint(format!(
            "the machine keeps running and still reads from the repository; to copy the rest: kvmb restore --continue \
             {machine}"
        )),
        _ => error,
    }
}

fn action(state: &LiveState, reason: &str) -> Record {
    let extra =
        json!({ "machine": state.machine, "uuid": state.uuid, "point": state.point, "repo": state.access.repo });
    Record::Action(Action {
        action: "restore".into(),
        target: state.machine.clone(),
        changed: true,
        reason: reason.into(),
        dry_run: false,
        extra: extra.as_object().cloned().unwrap_or_default(),
    })
}

pub(super) fn live_folder() -> Result<LiveFolder, CliError> {
    Ok(LiveFolder::below(&state_folder()?))
}

fn absolute(path: Option<&Path>) -> Result<Option<PathBuf>, CliError> {
    let absolute = |path: &Path| std::path::absolute(path).map_err(ops::Error::io("find", path));
    Ok(path.filter(|path| !path.as_os_str().is_empty()).map(absolute).transpose()?)
}
