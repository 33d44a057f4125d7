//! Object locks for the data of a run's new points.

use crate::cli::context::Context;
use crate::cli::failure::{CliError, Code};
use crate::cli::session::{About, Session};
use crate::ops::object_lock::extend_locks;
use crate::record::Record;
use crate::repo::{Id, Repository};

/// Extends the locks of data that the new points of this run need, if new files in the repository are locked. The
/// points are stored: a failure is reported, and the exit code says that the run was incomplete.
pub(crate) fn extend_for_new_points(
    context: &Context,
    repo: &Repository,
    session: &mut Session,
) -> Result<(), CliError> {
    if repo.storage().lock_period().is_none() {
        return Ok(());
    }
    let url = repo.url();
    let stored = session.kept_records().iter().filter_map(|record| match record {
        Record::Point(point) if point.repo == url => point.point.parse().ok(),
        _ => None,
    });
    let points: Vec<Id> = stored.collect();
    if points.is_empty() {
        return Ok(());
    }
    context.stop.check()?;
    match extend_locks(repo, &points, &context.stop).map_err(CliError::from) {
        Err(error) if error.code != Code::Interrupted => {
            let message =
                format!("the points are complete, but not all older data that they need is locked: {}", error.message);
            session.warn(About::default(), CliError { message, ..error });
            Ok(())
        }
        other => other,
    }
}
