//! Finds the point that a backup continues: the machine's newest point in *this* repository that has a checkpoint.
//!
//! "Changed since X" only applies to the point that checkpoint X was made with. A point without a checkpoint (the
//! machine was off) is therefore skipped, and an earlier one is continued. Each repository has its own chain,
//! identified by the names of its checkpoints: `kvmb-<repository>-<moment>`. A point copied from another repository
//! keeps the name of a checkpoint of that repository's chain, which decides when that checkpoint is distrusted and
//! deleted, so copied points are skipped too.

use super::Result;
use super::locked_repo::RepoView;
use super::manifest::{Manifest, ManifestDisk};
use super::points::PointRef;
use crate::capture::CapturedDisk;
use crate::capture::images;
use crate::record::Time;
use std::collections::{BTreeMap, BTreeSet};

/// How many points of this host, and how many of other hosts, are searched for a checkpoint.
const DEPTH: usize = 200;

/// A point that a backup can continue.
#[derive(Debug)]
pub(crate) struct Chain {
    pub(crate) point: PointRef,
    /// The checkpoint made with it.
    pub(crate) checkpoint: String,
    /// The point's manifest.
    pub(crate) manifest: Manifest,
    /// Disks whose bitmap a later point found to be wrong, and the id of that point.
    pub(crate) distrusted: BTreeMap<String, String>,
}

/// The prefix of the names of a repository's checkpoints.
pub(crate) fn prefix(repository: &str) -> String {
    let short: String = repository.chars().filter(char::is_ascii_alphanumeric).take(16).collect();
    format!("{}{short}-", crate::capture::checkpoint::PREFIX)
}

/// Returns a name for a checkpoint made now. Names are unique and sort by time.
pub(crate) fn checkpoint_name(repository: &str, now: Time) -> String {
    format!("{}{}", prefix(repository), now.to_utc().format("%Y%m%dT%H%M%S%6fZ"))
}

/// Finds the chain of a machine. `known` are the checkpoints that libvirt lists. libvirt may not know a checkpoint
/// because its metadata was lost or because the machine came from another host. For the newest unknown checkpoint of
/// each host, `is_alive` checks whether its bitmaps are in the images: if so, the images hold that point's content and
/// the changes since then, whichever host it was made on. If no checkpoint is known or alive, the newest one of this
/// host is returned. Those of other hosts are not, because another host may have a different machine with the same
/// UUID.
pub(crate) fn find(
    open: &RepoView,
    uuid: &str,
    machine: &str,
    known: &[String],
    is_alive: impl Fn(&str) -> bool,
) -> Result<Option<Chain>> {
    let (named, others): (Vec<_>, Vec<_>) = open.points()?.iter().rev().partition(|point| point.machine() == machine);
    let (mut newest, mut looked, mut distrusts) = (None, BTreeSet::new(), Vec::new());
    let (own, this_host) = (prefix(open.repo.id()), super::inventory::host_name());
    // Points of other hosts must not use up this host's share of the search depth.
    let mut left = BTreeMap::from([(true, DEPTH), (false, DEPTH)]);
    let mut is_near = |point: &PointRef| {
        let left = left.entry(point.snapshot.hostname == this_host).or_insert(0);
        *left > 0 && {
            *left -= 1;
            true
        }
    };
    // The machine may have been renamed, so its UUID decides.
    for point in named.into_iter().chain(others).filter(|point| is_near(point)) {
        // A damaged point cannot be continued. `verify` reports it.
        let Ok(manifest) = open.manifest(point) else { continue };
        if manifest.uuid != uuid {
            continue;
        }
        for disk in &manifest.disks {
            distrusts.extend(disk.distrusts.clone().map(|bitmap| (bitmap, disk.disk.clone(), point.id.short())));
        }
        let Some(checkpoint) = manifest.checkpoint.clone().filter(|name| name.starts_with(&own)) else { continue };
        let is_known = known.contains(&checkpoint) || (looked.insert(manifest.host.clone()) && is_alive(&checkpoint));
        let distrusted =
            distrusts.iter().filter(|d| d.0 == checkpoint).map(|(_, disk, by)| (disk.clone(), by.clone())).collect();
        let chain = Chain { point: point.clone(), checkpoint, manifest, distrusted };
        if is_known {
            return Ok(Some(chain));
        }
        if newest.is_none() && chain.manifest.host == this_host {
            newest = Some(chain);
        }
    }
    Ok(newest)
}

/// Returns why a disk cannot continue the parent's, by comparing the image now and then. `None` if it can.
pub(crate) fn mismatch(now: &CapturedDisk, then: &ManifestDisk) -> Option<String> {
    if let Some(reason) = images::mismatch(&now.image, &now.own_changes, &then.images()) {
        return Some(reason);
    }
    if now.has_data_file && (now.session.is_none() || now.session != then.session) {
        return Some(
            "the machine was started, or the disk attached, after the parent point; before that other programs could \
             write to its external data file"
                .into(),
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoint_names_have_the_repository_prefix_and_sort_by_time() {
        let at = |text: &str| checkpoint_name("0123456789abcdef0123", text.parse().unwrap());
        let (a, b) = (at("2026-11-23T15:00:00.000001+01:00"), at("2026-11-23T14:00:00.000002Z"));
        assert_eq!(a, "kvmb-0123456789abcdef-20261123T140000000001Z");
        assert!(a < b && a.starts_with(&prefix("0123456789abcdef0123")));
    }
}
