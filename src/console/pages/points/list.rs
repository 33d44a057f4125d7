//! A list of points, in pages.

use crate::console::html;
use crate::console::pages::paging::paging;
use crate::console::pages::repos::Repos;
use crate::console::visit::Visit;
use crate::record::{Point, PointDisk};
use maud::{Markup, html};

/// The number of points on a page.
const PAGE: usize = 50;

/// Returns a page of one machine's points, and links to the other pages. `points` are sorted newest first; `link`
/// returns the address of a point.
pub(in crate::console) fn list(
    visit: &Visit,
    points: &[&Point],
    repos: &Repos,
    damaged: &[String],
    link: impl Fn(&Point) -> String,
) -> Markup {
    let language = visit.language;
    let pages = points.len().div_ceil(PAGE).max(1);
    let page = visit.query.get("page").and_then(|page| page.parse().ok()).unwrap_or(1usize).clamp(1, pages);
    let shown = points.iter().skip((page - 1) * PAGE).take(PAGE);
    let caption = language.say(
        format!("{}, newest first", language.points(points.len())),
        format!("{}, les plus récents d’abord", language.points(points.len())),
    );
    let row = |point: &&Point| {
        let sum = |of: fn(&PointDisk) -> u64| language.bytes(point.disks.iter().map(of).sum());
        vec![
            html! {
                a href=(link(point)) { (language.moment(point.captured_at)) }
                span class="two" { code { (html::short(&point.point)) } }
            },
            html! {
                (state(visit, point, damaged))
                span class="two" { (html::consistency(visit, &point.consistency)) }
            },
            html! { (sum(|disk| disk.capacity_bytes)) },
            html! { (language.bytes(point.read_bytes)) },
            html! { (language.bytes(point.new_bytes)) span class="two" { (stored(visit, point)) } },
            html! { (repos.label(visit, &point.repo)) },
        ]
    };
    let heads = [
        visit.say("Captured", "Capturé"),
        visit.say("State", "État"),
        visit.say("Size", "Taille"),
        visit.say("Read", "Lu"),
        visit.say("New", "Nouveau"),
        visit.say("Repository", "Dépôt"),
    ];
    html! {
        (html::table(&caption, &heads, shown.map(row).collect()))
        (paging(visit, page, pages))
    }
}

/// Formats the space that a point uses in the repository.
fn stored(visit: &Visit, point: &Point) -> String {
    let stored = visit.language.bytes(point.stored_bytes);
    visit.language.say(format!("{stored} stored"), format!("{stored} stockés"))
}

/// Returns the state of a point: damaged, how it was verified, pinned.
pub(in crate::console) fn state(visit: &Visit, point: &Point, damaged: &[String]) -> Markup {
    let is_damaged = damaged.contains(&point.point)
        || point.original.as_ref().is_some_and(|original| damaged.contains(original))
        || !point.damage.is_empty()
        || point.verified == Some(false.into());
    html! {
        @if is_damaged { (html::state(visit.language, "damaged")) }
        @else if let Some(depth) = depth(visit, point) { span class="st ok" { (html::icon("ok")) (depth) } }
        @else { span class="quiet" { (visit.say("not verified", "non vérifié")) } }
        @if point.pinned { " " span class="tag" { (visit.say("pinned", "protégé")) } }
    }
}

/// Describes the depth of a point's verification.
pub(in crate::console) fn depth(visit: &Visit, point: &Point) -> Option<String> {
    let depth = point.verified.as_ref()?.as_str()?;
    let words = match depth {
        "full" => visit.say("verified in full", "vérifié en entier"),
        "sample" => visit.say("verified by samples", "vérifié par échantillons"),
        "quick" => visit.say("verified quickly", "vérifié rapidement"),
        other => return Some(other.to_owned()),
    };
    Some(words.to_owned())
}
