//! Changes that kvmb itself makes to the backing files of a machine.
//!
//! A point records the size and modification time of each layer, and a backing file that has changed since is
//! distrusted. After an external snapshot, the bitmaps of superseded checkpoints are in the backing file, and deleting
//! them changes both, right after the point recorded them:
//!
//! ```text
//!  snapshot ─► backup: point records the backing file ─► checkpoint deleted: file changes ─► backup: changed?
//!                                      └───────── before ─── noted ─── after ─────────┘
//! ```
//!
//! A deletion is only noted if the file was still as the capture recorded it just before. QEMU has the file open
//! meanwhile, with its image locks, so nobody else writes to it. Without the note (after a reboot, or if kvmb was
//! killed), the next backup reads the disk in full.

use std::fs;
use std::path::Path;

use crate::atomic_file;
use crate::capture::images::{self, ImageIdentity, OwnChange};
use crate::capture::runtime::RuntimeDirs;
use crate::capture::state::CaptureState;

/// Returns the noted changes of these layers.
pub(super) fn of_layers(runtime: &RuntimeDirs, uuid: &str, layers: &[ImageIdentity]) -> Vec<OwnChange> {
    let mut changes = load(runtime, uuid);
    changes.retain(|change| layers.contains(&change.after));
    changes
}

/// The backing files of a capture that nobody has changed since it was opened.
#[derive(Debug)]
pub(super) struct UnchangedLayers(Vec<ImageIdentity>);

impl UnchangedLayers {
    /// Compares the backing files with what the capture recorded, and with the noted changes since.
    pub(super) fn of(runtime: &RuntimeDirs, state: &CaptureState) -> UnchangedLayers {
        let known = load(runtime, &state.uuid);
        let layers = state.disks.iter().flat_map(|disk| disk.image.iter().skip(1));
        let files = layers.filter(|layer| layer.inode != 0 && !layer.is_data_file);
        let unchanged = files.filter_map(|recorded| {
            let now = identify(recorded)?;
            let is_ours = |change: &OwnChange| change.before == *recorded && change.after == now;
            (now == *recorded || known.iter().any(is_ours)).then_some(now)
        });
        UnchangedLayers(unchanged.collect())
    }

    /// Notes how these files have changed since, because a checkpoint of the running machine was deleted.
    pub(super) fn note_changes(self, runtime: &RuntimeDirs, uuid: &str) {
        let changes = self.0.into_iter().filter_map(|before| {
            let after = identify(&before)?;
            (after != before).then_some(OwnChange { before, after })
        });
        let changes: Vec<_> = changes.collect();
        let (path, known) = (runtime.own_changes(uuid), load(runtime, uuid));
        let all = joined(known.clone(), changes);
        let written = match all.as_slice() {
            _ if all == known => Ok(()),
            [] => fs::remove_file(&path),
            _ => serde_json::to_vec(&all).map_err(Into::into).and_then(|text| atomic_file::write(&path, &text, 0o600)),
        };
        if let Err(error) = written {
            tracing::debug!("{}: {error}", path.display());
        }
    }
}

/// Adds changes to the known ones. A file may be changed for several repositories in turn, so what led to the state
/// before a change leads to the state after it. Other changes of the same file are of no use any more.
fn joined(known: Vec<OwnChange>, new: Vec<OwnChange>) -> Vec<OwnChange> {
    let mut all = Vec::new();
    for change in known {
        match new.iter().find(|new| new.before.path == change.after.path) {
            Some(new) if new.before == change.after => all.push(OwnChange { after: new.after.clone(), ..change }),
            Some(_) => {}
            None => all.push(change),
        }
    }
    all.extend(new);
    all.retain(|change| identify(&change.after).as_ref() == Some(&change.after));
    all
}

fn identify(layer: &ImageIdentity) -> Option<ImageIdentity> {
    images::identify(Path::new(&layer.path), &layer.format).ok()
}

fn load(runtime: &RuntimeDirs, uuid: &str) -> Vec<OwnChange> {
    let text = atomic_file::read(&runtime.own_changes(uuid)).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}
