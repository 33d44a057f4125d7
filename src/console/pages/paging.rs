//! Links to the pages of a long list.

use super::fields::{query_of, with_query};
use crate::console::visit::Visit;
use maud::{Markup, html};

/// Returns links to the other pages of a list.
pub(super) fn paging(visit: &Visit, page: usize, pages: usize) -> Markup {
    let link = |page: usize| {
        let kept = visit.query.iter().filter(|(name, _)| !["page", "again"].contains(name));
        with_query("", &query_of(kept.chain([("page", page.to_string().as_str())])))
    };
    let language = visit.language;
    html! {
        @if pages > 1 {
            nav class="row" aria-label=(visit.say("Pages", "Pages")) {
                @if page > 1 { a href=(link(page - 1)) rel="prev" { (visit.say("Newer", "Plus récents")) } }
                span { (language.say(format!("page {page} of {pages}"), format!("page {page} sur {pages}"))) }
                @if page < pages { a href=(link(page + 1)) rel="next" { (visit.say("Older", "Plus anciens")) } }
            }
        }
    }
}
