//! Restore points: a calendar and a list, one point, and actions on it.

pub(super) mod actions;
pub(super) mod calendar;
pub(super) mod list;
mod one;

pub(super) use one::page;

use crate::console::pages::repos::KnownPoints;
use crate::console::visit::Visit;
use crate::record::Point;

/// Whether a text is a valid point id. Nothing else may be passed on to commands.
fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Returns the point with this id, and all known points.
pub(super) async fn find(visit: &Visit, id: &str) -> Option<(Point, KnownPoints)> {
    if !is_id(id) {
        return None;
    }
    for again in [false, true] {
        let known = KnownPoints::of(visit, again).await;
        let found = known.newest_first().into_iter().find(|point| point.point == id).cloned();
        if let Some(point) = found {
            return Some((point, known));
        }
    }
    None
}
