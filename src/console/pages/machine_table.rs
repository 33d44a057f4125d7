//! The table of machines on the overview page. Filter, order and page are set by links and a GET form.

use super::machine_status::MachineStatus;
use super::past_runs;
use crate::console::html;
use crate::console::visit::Visit;
use maud::{Markup, html};

/// The number of machines on a page.
const PAGE: usize = 100;

/// Number of rows from which on each row is a single line.
const DENSE: usize = 50;

/// The columns: sort key, English and French head.
const COLUMNS: [(&str, &str, &str); 8] = [
    ("name", "Machine", "Machine"),
    ("state", "State", "État"),
    ("newest", "Newest point", "Point le plus récent"),
    ("age", "Age against limit", "Âge et limite"),
    ("", "Last 14 nights", "14 dernières nuits"),
    ("last", "Last run", "Dernière exécution"),
    ("verified", "Verified", "Vérifié"),
    ("next", "Next run", "Prochaine exécution"),
];

/// The filter, order and page that were requested.
struct Wish<'v> {
    filter: &'v str,
    state: &'v str,
    sort: &'v str,
    page: usize,
}

impl<'v> Wish<'v> {
    fn of(visit: &'v Visit) -> Wish<'v> {
        let field = |name| visit.query.get(name).unwrap_or_default();
        let page = field("page").parse().unwrap_or(1).max(1);
        Wish { filter: field("q"), state: field("state"), sort: field("sort"), page }
    }

    fn takes(&self, machine: &MachineStatus<'_>) -> bool {
        let text = format!("{} {} {}", machine.name(), machine.word(), machine.0.detail).to_lowercase();
        let has_words = self.filter.to_lowercase().split_whitespace().all(|word| text.contains(word));
        has_words && (self.state.is_empty() || machine.0.status == self.state)
    }

    /// Returns the address of the table with these changes.
    fn link(&self, sort: &str, page: usize) -> String {
        let page = if page > 1 { page.to_string() } else { String::new() };
        let fields = [("q", self.filter), ("state", self.state), ("sort", sort), ("page", &page)];
        let fields = fields.iter().filter(|(_, value)| !value.is_empty());
        let fields: Vec<String> = fields.map(|(name, value)| format!("{name}={}", html::segment(value))).collect();
        format!("?{}", fields.join("&"))
    }
}

fn sort(machines: &mut [&MachineStatus<'_>], by: &str) {
    machines.sort_by(|a, b| a.name().cmp(b.name()));
    let by_time = |key: &'static str| move |machine: &&MachineStatus<'_>| machine.time(key);
    match by {
        "name" => {}
        // Oldest first.
        "newest" => machines.sort_by_key(by_time("captured_at")),
        "last" => machines.sort_by_key(by_time("last_run_at")),
        "verified" => machines.sort_by_key(by_time("verified_at")),
        "next" => machines.sort_by_key(by_time("next_run_at")),
        // The machine that has used most of its limit first.
        "age" => machines.sort_by(|a, b| b.share_of_limit().total_cmp(&a.share_of_limit())),
        _ => machines.sort_by_key(|machine| machine.urgency()),
    }
}

/// Returns the section with the form, the table and the links to its pages.
pub(super) fn section(visit: &Visit, all: &[MachineStatus<'_>]) -> Markup {
    let wish = Wish::of(visit);
    let mut found: Vec<&MachineStatus<'_>> = all.iter().filter(|machine| wish.takes(machine)).collect();
    sort(&mut found, wish.sort);
    let pages = found.len().div_ceil(PAGE).max(1);
    let page = wish.page.min(pages);
    let shown: Vec<&MachineStatus<'_>> = found.iter().skip((page - 1) * PAGE).take(PAGE).copied().collect();
    let (count, total) = (found.len(), all.len());
    // French counts 0 and 1 in the singular.
    let machines = if count < 2 { "machine" } else { "machines" };
    let caption = match wish.sort {
        "" | "state" => visit.language.say(
            format!("{count} of {total} machines, most urgent first"),
            format!("{count} {machines} sur {total}, les plus urgentes d’abord"),
        ),
        _ => visit.language.say(format!("{count} of {total} machines"), format!("{count} {machines} sur {total}")),
    };
    html! {
        section class="sec" {
            div class="sechead" {
                h2 { (visit.say("Machines", "Machines")) }
                div class="right row" { (form(visit, &wish)) }
            }
            @if shown.is_empty() {
                p { (visit.say("No machine matches.", "Aucune machine ne correspond.")) }
            } @else { (table(visit, &wish, &shown, &caption)) }
            @if pages > 1 { (page_links(visit, &wish, page, pages)) }
        }
    }
}

fn form(visit: &Visit, wish: &Wish<'_>) -> Markup {
    let states = [
        ("", visit.say("all", "tous")),
        ("critical", visit.say("critical", "critique")),
        ("warning", visit.say("warning", "attention")),
        ("unknown", visit.say("unknown", "inconnu")),
        ("ok", visit.say("ok", "bon")),
    ];
    html! {
        form method="get" class="filter" role="search" aria-label=(visit.say("Machines", "Machines")) {
            div class="field" {
                label for="q" { (visit.say("Filter", "Filtre")) }
                input type="search" id="q" name="q" data-filters="machines" value=(wish.filter);
            }
            div class="field" {
                label for="state" { (visit.say("State", "État")) }
                select id="state" name="state" class="w-m" {
                    @for (value, word) in states { option value=(value) selected[value == wish.state] { (word) } }
                }
            }
            @if !wish.sort.is_empty() { input type="hidden" name="sort" value=(wish.sort); }
            button type="submit" { (visit.say("Apply", "Appliquer")) }
        }
    }
}

fn page_links(visit: &Visit, wish: &Wish<'_>, page: usize, pages: usize) -> Markup {
    html! {
        nav class="tabs" aria-label=(visit.say("Pages of the table", "Pages du tableau")) {
            @for number in 1..=pages {
                a href=(wish.link(wish.sort, number)) aria-current=[(number == page).then_some("page")] {
                    span class="vh" { (visit.say("Page ", "Page ")) } (number)
                }
            }
        }
    }
}

fn table(visit: &Visit, wish: &Wish<'_>, shown: &[&MachineStatus<'_>], caption: &str) -> Markup {
    let class = if shown.len() > DENSE { "stack dense" } else { "tight stack" };
    let sorted = |key: &str| key == wish.sort || (key == "state" && wish.sort.is_empty());
    html! {
        div class="scroll" role="region" tabindex="0" aria-label=(caption) {
            table role="table" class=(class) id="machines" {
                caption { (caption) }
                thead role="rowgroup" {
                    tr role="row" {
                        @for (key, english, french) in COLUMNS {
                            th scope="col" role="columnheader" aria-sort=[sorted(key).then_some("other")] {
                                @if key.is_empty() { (visit.say(english, french)) }
                                @else { a href=(wish.link(key, 1)) { (visit.say(english, french)) } }
                            }
                        }
                    }
                }
                tbody role="rowgroup" { @for machine in shown { (row(visit, machine)) } }
            }
        }
    }
}

fn row(visit: &Visit, machine: &MachineStatus<'_>) -> Markup {
    let language = visit.language;
    let head = |at: usize| visit.say(COLUMNS[at].1, COLUMNS[at].2);
    html! {
        tr role="row" {
            th scope="row" role="rowheader" {
                a class="brk" href={"/machines/" (html::segment(machine.name()))} { (machine.name()) }
            }
            td role="cell" data-l=(head(1)) { (state(visit, machine)) }
            td role="cell" data-l=(head(2)) {
                @if let Some(at) = machine.time("captured_at") { (language.moment(at)) }
                @else { (visit.say("none", "aucun")) }
            }
            td role="cell" data-l=(head(3)) { (age_bar(visit, machine)) }
            td role="cell" data-l=(head(4)) { (past_runs::strip(visit, machine)) }
            td role="cell" data-l=(head(5)) {
                @match (machine.text("last_result"), machine.time("last_run_at")) {
                    (Some(result), Some(at)) => {
                        (html::state(language, result))
                        span class="two" {
                            @if let Some(code) = machine.text("last_code") { code { (code) } ", " }
                            (language.ago(at))
                        }
                    },
                    _ => "-",
                }
            }
            td role="cell" data-l=(head(6)) {
                @if let Some(at) = machine.time("verified_at") {
                    (language.ago(at))
                    span class="two" { (depth(visit, machine.text("verified_depth").unwrap_or_default())) }
                } @else { "-" }
            }
            td role="cell" data-l=(head(7)) {
                @if let Some(at) = machine.time("next_run_at") { (language.moment(at)) } @else { "-" }
            }
        }
    }
}

/// Returns the state as its most informative word.
pub(super) fn state(visit: &Visit, machine: &MachineStatus<'_>) -> Markup {
    if !machine.counts() {
        return html! { span class="st quiet" { (html::icon("off")) (visit.say("not selected", "non choisie")) } };
    }
    let (class, shape) = match machine.0.status.as_str() {
        "ok" => ("ok", "ok"),
        "warning" => ("warn", "warn"),
        "critical" => ("crit", "crit"),
        _ => ("unk", "off"),
    };
    let word = match machine.word() {
        "no point" => visit.say("no point", "sans point").to_owned(),
        "overdue" => visit.say("overdue", "en retard").to_owned(),
        word => visit.language.state(word),
    };
    html! { span class={"st " (class)} { (html::icon(shape)) (word) } }
}

fn depth(visit: &Visit, word: &str) -> &'static str {
    match word {
        "full" => visit.say("in full", "en entier"),
        "sample" => visit.say("a sample", "un échantillon"),
        "quick" => visit.say("its structure", "sa structure"),
        _ => "",
    }
}

/// Returns the age of the newest point relative to its limits: the first tick means overdue, the end far overdue.
fn age_bar(visit: &Visit, machine: &MachineStatus<'_>) -> Markup {
    let (Some(age), Some(limit)) = (machine.number("age_seconds"), machine.number("warning_seconds")) else {
        return html! { "-" };
    };
    let end = machine.number("critical_seconds").unwrap_or(limit * 2.0).max(1.0);
    let at = |seconds: f64| format!("{:.1}", (seconds / end * 92.0).clamp(0.0, 92.0));
    let language = visit.language;
    let words = language.say(
        format!("{} of {}", language.duration(age), language.duration(limit)),
        format!("{} sur {}", language.duration(age), language.duration(limit)),
    );
    html! {
        svg class="mini" width="92" height="12" viewBox="0 0 92 12" aria-hidden="true" focusable="false" {
            rect class="trk" x="0" y="3" width="92" height="6" {}
            rect class="b1" x="0" y="3" width=(at(age.min(limit))) height="6" {}
            @if age > limit {
                rect class="over" fill="url(#hatch-over)" x=(at(limit)) y="3" width=(at(age.min(end) - limit))
                    height="6" {}
            }
            path class="lim" d={"M" (at(limit)) " 0v12M91.25 2v8"} {}
        }
        span class="two" {
            @if age > limit {
                @let over = language.duration(age - limit);
                b { (language.say(format!("overdue by {over}"), format!("en retard de {over}"))) }
            } @else { (words) }
        }
    }
}
