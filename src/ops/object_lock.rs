//! Points in a place that locks files.

use super::points::PointRef;
use super::{Result, Stop};
use crate::record::Time;
use crate::repo::{self, Id, Repository};
use crate::storage::FileKind;
use chrono::{DateTime, Local};
use std::time::SystemTime;

/// Locks what new points need for as long as new data is locked, where less than half of that is left.
pub(crate) fn extend_locks(repo: &Repository, points: &[Id], stop: &Stop) -> Result<()> {
    let mut roots = Vec::new();
    for point in points {
        roots.push(repo.snapshot(point)?.tree);
    }
    repo::extend_locks(repo, &roots, &stop.flag())?;
    stop.check()
}

/// Until when each of these points cannot be removed.
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

/// As records and people have it.
pub(crate) fn local_time(time: SystemTime) -> Time {
    DateTime::<Local>::from(time).fixed_offset()
}
