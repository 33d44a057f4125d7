//! Points in storages that lock files.

use super::points::PointRef;
use super::{Result, Stop};
use crate::record::Time;
use crate::repo::{self, Id, Repository};
use crate::storage::FileKind;
use chrono::{DateTime, Local};
use std::time::SystemTime;

/// Extends the locks of the files that new points need to the full lock time, if less than half of it is left.
pub(crate) fn extend_locks(repo: &Repository, points: &[Id], stop: &Stop) -> Result<()> {
    let mut roots = Vec::new();
    for point in points {
        roots.push(repo.snapshot(point)?.tree);
    }
    repo::extend_locks(repo, &roots, &stop.flag())?;
    stop.check()
}

/// Returns until when each of these points cannot be removed.
pub(super) fn locked_until(repo: &Repository, points: &[&PointRef], stop: &Stop) -> Result<Vec<Option<Time>>> {
    if !repo.storage().can_lock().map_err(repo::Error::from)? {
        return Ok(vec![None; points.len()]);
    }
    let mut ends = Vec::new();
    for point in points {
        stop.check()?;
        let end = repo.storage().locked_until(FileKind::Snapshot, &point.id.to_string());
        ends.push(end.map_err(repo::Error::from)?.map(local_time));
    }
    Ok(ends)
}

/// Converts a time to local time, as shown in records and output.
pub(crate) fn local_time(time: SystemTime) -> Time {
    DateTime::<Local>::from(time).fixed_offset()
}
