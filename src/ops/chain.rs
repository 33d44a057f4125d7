//! The point that a backup continues: the newest point of the machine in *this* repository with a checkpoint.
//!
//! «Changed since X» is only ever applied to the point that X was made with. So a point that made no checkpoint (the
//! machine was off) is passed over, and the one before it is continued; and every repository has a chain of its own, by
//! the names of its checkpoints: `kvmb-<repository>-<moment>`. A point that was copied from another repository brings
//! along the name of a checkpoint of that one's chain, which says when to distrust it and when to delete it: it is
//! passed over too.

use super::Result;
use super::locked_repo::RepoView;
use super::manifest::{Manifest, ManifestDisk};
use super::points::PointRef;
use crate::capture::CapturedDisk;
use crate::capture::images::ImageIdentity;
use crate::record::Time;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// How many points of this host, and of others, are looked at before a chain is given up for lost.
const DEPTH: usize = 200;

/// A point that can be continued.
#[derive(Debug)]
pub(crate) struct Chain {
    pub(crate) point: PointRef,
    /// The checkpoint made with it.
    pub(crate) checkpoint: String,
    /// What the point says of itself.
    pub(crate) manifest: Manifest,
    /// The disks whose bitmap a later point found wrong, and that point.
    pub(crate) distrusted: BTreeMap<String, String>,
}

/// What the names of a repository's checkpoints begin with.
pub(crate) fn prefix(repository: &str) -> String {
    let short: String = repository.chars().filter(char::is_ascii_alphanumeric).take(16).collect();
    format!("{}{short}-", crate::capture::checkpoint::PREFIX)
}

/// The name of a checkpoint made now: unique, and it sorts by time.
pub(crate) fn checkpoint_name(repository: &str, now: Time) -> String {
    format!("{}{}", prefix(repository), now.to_utc().format("%Y%m%dT%H%M%S%6fZ"))
}

/// The chain of a machine; `known` are the checkpoints that libvirt lists. Of the newest of each host that libvirt does
/// not know (it has forgotten it, or the machine came from there), `is_alive` says whether its bitmaps are in the
/// images: then what the images hold is that point and what changed since, whichever host it was made on. When none is
/// known or alive, the newest of this host is proposed; another host may have another machine with the same UUID.
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
    // Points of other hosts must not hide this host's.
    let mut left = BTreeMap::from([(true, DEPTH), (false, DEPTH)]);
    let mut is_near = |point: &PointRef| {
        let left = left.entry(point.snapshot.hostname == this_host).or_insert(0);
        *left > 0 && {
            *left -= 1;
            true
        }
    };
    // A machine may have been renamed: its UUID decides.
    for point in named.into_iter().chain(others).filter(|point| is_near(point)) {
        // A damaged point is no base; verify reports it.
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

/// Why a disk cannot continue the parent's, by what its image is now and was then; none when it can.
pub(crate) fn mismatch(now: &CapturedDisk, then: &ManifestDisk) -> Option<String> {
    let before: Vec<ImageIdentity> =
        then.layers.iter().filter_map(|layer| serde_json::from_value(layer.clone()).ok()).collect();
    let (Some(top_now), Some(top_then)) = (now.image.first(), before.first()) else {
        return Some("the parent point does not record its image".into());
    };
    let is_reborn = matches!((top_now.born_ns, top_then.born_ns), (Some(now), Some(then)) if now != then);
    if (&top_now.path, top_now.inode) != (&top_then.path, top_then.inode) || is_reborn {
        return Some(format!("the image is not the one of the parent point ({})", top_then.path));
    }
    let below = |layers: &[ImageIdentity]| -> Vec<(PathBuf, u64, u64, i64)> {
        let identity = |(at, layer): (usize, &ImageIdentity)| {
            // The guest writes to the data file of the topmost image.
            let is_written = at == 0 && layer.is_data_file;
            let (size_bytes, modified_ns) = if is_written { (0, 0) } else { (layer.size_bytes, layer.modified_ns) };
            (plain(&layer.path), layer.inode, size_bytes, modified_ns)
        };
        layers[1..].iter().enumerate().map(identity).collect()
    };
    if below(&now.image) != below(&before) {
        return Some("a backing file has changed since the parent point".into());
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

/// A path without its «.»: libvirt and we join the relative names of a backing chain differently.
fn plain(path: &str) -> PathBuf {
    match path.starts_with('/') {
        true => Path::new(path).components().collect(),
        false => path.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_repositorys_own_and_sort_by_time() {
        let at = |text: &str| checkpoint_name("0123456789abcdef0123", text.parse().unwrap());
        let (a, b) = (at("2026-11-23T15:00:00.000001+01:00"), at("2026-11-23T14:00:00.000002Z"));
        assert_eq!(a, "kvmb-0123456789abcdef-20261123T140000000001Z");
        assert!(a < b && a.starts_with(&prefix("0123456789abcdef0123")));
    }
}
