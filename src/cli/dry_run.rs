//! `--dry-run` of the commands that capture: which disks, and where they would be stored.

use crate::capture::machine::Which;
use crate::cli::args::capture::CaptureArgs;
use crate::cli::args::machine::Selection;
use crate::cli::context::Context;
use crate::cli::failure::CliError;
use crate::cli::session::{About, Session};
use crate::ops::snapshot;
use crate::record::{Action, Record};
use serde_json::json;
use std::path::Path;

/// The message of `snapshot` for a machine without disks.
pub(crate) const NO_DISK_TO_CAPTURE: &str = "it has no disk to capture; 'kvmb backup' stores its definition";

/// Where points would be stored.
#[derive(Debug)]
pub(crate) struct DryRunTarget {
    pub(crate) repo: String,
    /// The second repository, to which they would be copied.
    pub(crate) copy_to: Option<String>,
}

/// Prints for each machine what would be captured, and where it would be stored, if anywhere.
pub(crate) fn show_dry_run(
    context: &Context,
    selected: Vec<Selection>,
    capture: &CaptureArgs,
    to: Option<&DryRunTarget>,
    session: &mut Session,
) {
    for selection in selected {
        match planned(context, &selection, capture, session.command(), to) {
            Ok(action) => session.done(Record::Action(action)),
            Err(error) => {
                let about = About { connect: selection.connect, machine: Some(selection.name), ..About::default() };
                session.fail(about, error);
            }
        }
    }
}

fn planned(
    context: &Context,
    selection: &Selection,
    capture: &CaptureArgs,
    command: &str,
    to: Option<&DryRunTarget>,
) -> Result<Action, CliError> {
    let hypervisor = context.hypervisor(selection.connect.as_deref())?;
    let machine = hypervisor.machine(&selection.machine)?;
    let definition = machine.definition(Which::Live)?;
    let request = capture.request(context, selection)?;
    let (disks, skipped) = snapshot::choose(&machine, &definition, &request)?;
    let mut skipped: Vec<_> =
        skipped.iter().map(|disk| json!({ "disk": disk.target, "reason": disk.reason })).collect();
    let (missing, outside) = machine.missing_parts()?;
    let part = |part: &str, path: &Path, reason: &str| json!({ "part": part, "path": path, "reason": reason });
    skipped.extend(missing.iter().map(|missing| part(missing.role.as_str(), &missing.origin, &missing.reason)));
    skipped.extend(outside.iter().map(|other| part(&other.part, &other.origin, &other.reason)));
    let count = format!("{} disk{}", disks.len(), if disks.len() == 1 { "" } else { "s" });
    let reason = match (disks.len(), to) {
        (0, Some(to)) => format!("its definition, which has no disk to back up, would be stored in {}", to.repo),
        (0, None) => NO_DISK_TO_CAPTURE.to_owned(),
        (_, Some(to)) => format!("{count} would be backed up to {}", to.repo),
        (_, None) => format!("{count} would be captured"),
    };
    let mut extra = json!({ "connect": hypervisor.uri(), "disks": disks, "skipped": skipped });
    if let Some(to) = to {
        extra["repo"] = to.repo.as_str().into();
        if let Some(second) = &to.copy_to {
            extra["copy_to"] = second.as_str().into();
        }
    }
    Ok(Action {
        action: command.to_owned(),
        target: machine.name().to_owned(),
        changed: !disks.is_empty() || to.is_some(),
        reason,
        dry_run: true,
        extra: extra.as_object().cloned().unwrap_or_default(),
    })
}
