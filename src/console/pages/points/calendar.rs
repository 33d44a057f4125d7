//! The calendar of points, one month at a time: each day with points is a link that shows their number.

use crate::console::dates::day_of;
use crate::console::html;
use crate::console::pages::fields::{query_of, with_query};
use crate::console::visit::{Fields, Visit};
use crate::record::Point;
use chrono::{Datelike, Days, Local, NaiveDate};
use maud::{Markup, html};
use std::collections::BTreeMap;

/// Returns the day of a query: `2026-11-20`.
pub(in crate::console) fn day_in(query: &Fields) -> Option<NaiveDate> {
    query.get("day")?.parse().ok()
}

/// Returns the first day of the displayed month: the one in the query, else that of the day, else that of the newest
/// point.
fn month_in(query: &Fields, points: &[&Point]) -> NaiveDate {
    let asked = query.get("month").and_then(|month| format!("{month}-01").parse().ok());
    let newest = || points.first().map(|point| day_of(point.captured_at));
    let day = asked.or_else(|| day_in(query)).or_else(newest).unwrap_or_else(|| Local::now().date_naive());
    day.with_day(1).unwrap_or(day)
}

/// Returns the points of the query's day, or all points.
pub(in crate::console) fn of_day<'p>(query: &Fields, points: &[&'p Point]) -> Vec<&'p Point> {
    let day = day_in(query);
    let is_of_day = |point: &&&Point| day.is_none_or(|day| day_of(point.captured_at) == day);
    points.iter().filter(is_of_day).copied().collect()
}

/// Returns a link to the same page with another field; the old `day` and `month` are dropped.
fn link(visit: &Visit, field: &str, value: &str) -> String {
    let kept = visit.query.iter().filter(|(name, _)| !["day", "month", "again", "page"].contains(name));
    with_query("", &query_of(kept.chain([(field, value)])))
}

/// Returns the month of the query. `points` are sorted newest first.
pub(in crate::console) fn calendar(visit: &Visit, points: &[&Point]) -> Markup {
    let language = visit.language;
    let (first, chosen) = (month_in(&visit.query, points), day_in(&visit.query));
    let mut days = BTreeMap::<NaiveDate, (usize, bool)>::new();
    for point in points {
        let (count, is_pinned) = days.entry(day_of(point.captured_at)).or_default();
        *count += 1;
        *is_pinned |= point.pinned;
    }
    let month_of = |day: NaiveDate| format!("{:04}-{:02}", day.year(), day.month());
    let previous = first.pred_opt().map(month_of);
    let next = first.checked_add_days(Days::new(31)).map(month_of);
    let caption = language.month_of_year(first.year(), first.month());
    // From the Monday of the first week to the end of the month.
    let monday = first - Days::new(u64::from(first.weekday().num_days_from_monday()));
    let weeks = (0u64..6)
        .map(|week| monday + Days::new(7 * week))
        .filter(|monday| *monday <= first || (monday.month() == first.month() && monday.year() == first.year()));
    html! {
        table class="cal" {
            caption { (caption) }
            thead {
                tr {
                    @for (short, name) in language.week() { th scope="col" { abbr title=(name) { (short) } } }
                }
            }
            tbody {
                @for monday in weeks {
                    tr {
                        @for day in (0u64..7).map(|day| monday + Days::new(day)) {
                            td {
                                @if day.month() == first.month() {
                                    (cell(visit, day, days.get(&day).copied(), chosen == Some(day)))
                                }
                            }
                        }
                    }
                }
            }
        }
        nav class="row" aria-label=(visit.say("Months", "Mois")) {
            @if let Some(previous) = previous {
                a href=(link(visit, "month", &previous)) rel="prev" { (visit.say("Previous month", "Mois précédent")) }
            }
            @if let Some(next) = next {
                a href=(link(visit, "month", &next)) rel="next" { (visit.say("Next month", "Mois suivant")) }
            }
            @if chosen.is_some() {
                a href=(link(visit, "month", &month_of(first))) { (visit.say("All days", "Tous les jours")) }
            }
        }
    }
}

fn cell(visit: &Visit, day: NaiveDate, points: Option<(usize, bool)>, is_chosen: bool) -> Markup {
    let Some((count, is_pinned)) = points else {
        return html! { span class="d" { (day.day()) span {} } };
    };
    let language = visit.language;
    let pinned = if is_pinned { visit.say(", pinned", ", protégé") } else { "" };
    let words = format!("{}, {}{pinned}", language.day(day), language.points(count));
    html! {
        a href=(link(visit, "day", &day.to_string())) aria-label=(words) aria-current=[is_chosen.then_some("date")] {
            span aria-hidden="true" { (day.day()) }
            @if is_pinned { (html::icon("pin")) } @else { span class="b" {} }
        }
    }
}
