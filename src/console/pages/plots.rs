//! Plots: inline SVG with a title, a description and a table of the same numbers. Two series differ by hatching, and no
//! information depends on colour alone.

use crate::console::html;
use crate::console::visit::Visit;
use maud::{Markup, html};

/// The plotted area of a figure, in its own units.
const LEFT: f64 = 58.0;
const RIGHT: f64 = 340.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 130.0;

/// The number of bars per date label.
const LABELS: usize = 5;

/// The unit of values.
#[derive(Debug, Clone, Copy)]
pub(super) enum PlotUnit {
    Bytes,
    Seconds,
}

impl PlotUnit {
    pub(super) fn words(self, visit: &Visit, value: f64) -> String {
        match self {
            PlotUnit::Bytes => visit.language.bytes(value as u64),
            PlotUnit::Seconds => visit.language.duration(value),
        }
    }

    /// Returns the smallest round value that is not below this one.
    fn round_up(self, value: f64) -> f64 {
        let steps: &[f64] = &[1.0, 2.0, 4.0, 10.0, 20.0, 40.0, 100.0, 200.0, 400.0, 1000.0];
        let (base, steps) = match self {
            PlotUnit::Bytes => (1024.0, steps),
            // Seconds, minutes, hours.
            PlotUnit::Seconds => (60.0, &steps[..6]),
        };
        let mut unit = 1.0;
        loop {
            if let Some(step) = steps.iter().find(|step| **step * unit >= value) {
                return step * unit;
            }
            unit *= base;
        }
    }
}

/// A named series of values.
pub(super) struct Series {
    pub(super) name: &'static str,
    pub(super) values: Vec<f64>,
}

/// A plot.
pub(super) struct Plot<'p> {
    /// The id of its elements; unique on the page.
    pub(super) id: &'p str,
    pub(super) title: &'p str,
    /// The meaning of the labels.
    pub(super) axis: &'p str,
    /// One label for each value.
    pub(super) labels: &'p [String],
    pub(super) series: &'p [Series],
    pub(super) unit: PlotUnit,
}

impl Plot<'_> {
    fn largest(&self) -> f64 {
        self.series.iter().flat_map(|series| &series.values).copied().fold(0.0, f64::max)
    }

    /// Returns a one-sentence description for people who cannot see the plot.
    fn description(&self, visit: &Visit) -> String {
        let of_series = |series: &Series| {
            let last = self.unit.words(visit, series.values.last().copied().unwrap_or_default());
            let least = self.unit.words(visit, series.values.iter().copied().fold(f64::INFINITY, f64::min));
            let most = self.unit.words(visit, series.values.iter().copied().fold(0.0, f64::max));
            let name = series.name;
            visit.language.say(
                format!("{name}: between {least} and {most}, last {last}."),
                format!("{name} : entre {least} et {most}, en dernier {last}."),
            )
        };
        self.series.iter().map(of_series).collect::<Vec<_>>().join(" ")
    }

    /// Returns the grid lines, their numbers, and some of the labels.
    fn grid(&self, visit: &Visit, top: f64) -> Markup {
        let count = self.labels.len();
        let step = count.div_ceil(LABELS).max(1);
        html! {
            @for part in [0.0, 0.5, 1.0] {
                @let y = BOTTOM - part * (BOTTOM - TOP);
                path class=(if part == 0.0 { "axis" } else { "grid" }) d={"M" (LEFT) " " (number(y)) "H" (RIGHT)} {}
                text x=(LEFT - 5.0) y=(number(y + 3.5)) text-anchor="end" {
                    (if part == 0.0 { "0".to_owned() } else { self.unit.words(visit, top * part) })
                }
            }
            // Counted from the end, so that the newest value has its label.
            @for (at, label) in self.labels.iter().enumerate().filter(|(at, _)| (count - 1 - at).is_multiple_of(step)) {
                text x=(number(self.middle(at))) y="145" text-anchor="middle" { (label) }
            }
        }
    }

    fn width(&self) -> f64 {
        (RIGHT - LEFT) / self.labels.len().max(1) as f64
    }

    fn middle(&self, at: usize) -> f64 {
        LEFT + (at as f64 + 0.5) * self.width()
    }

    /// Returns bars side by side: the first series hatched, the second one filled.
    pub(super) fn bars(&self, visit: &Visit) -> Markup {
        let top = self.unit.round_up(self.largest());
        let bar = self.width() * 0.8 / self.series.len().max(1) as f64;
        let height = |value: f64| value / top * (BOTTOM - TOP);
        let left = |at: usize, of: usize| self.middle(at) - self.width() * 0.4 + of as f64 * bar;
        let single = self.series.len() == 1;
        let drawn = html! {
            @for (of, series) in self.series.iter().enumerate() {
                @for (at, value) in series.values.iter().enumerate().filter(|(_, value)| **value > 0.0) {
                    @let is_full = single || of > 0;
                    rect class=(if is_full { "b1" } else { "b2" }) fill=[(!is_full).then_some("url(#hatch)")]
                        x=(number(left(at, of))) y=(number(BOTTOM - height(*value)))
                        width=(number(bar * 0.92)) height=(number(height(*value))) {}
                }
            }
        };
        self.figure(visit, top, drawn)
    }

    /// Returns a line with a dot for each value.
    pub(super) fn line(&self, visit: &Visit) -> Markup {
        let top = self.unit.round_up(self.largest());
        let y = |value: f64| number(BOTTOM - value / top * (BOTTOM - TOP));
        let path = |series: &Series| {
            let points = series.values.iter().enumerate();
            let points = points.map(|(at, value)| format!("{} {}", number(self.middle(at)), y(*value)));
            format!("M{}", points.collect::<Vec<_>>().join("L"))
        };
        let drawn = html! {
            @for series in self.series {
                path class="ln" d=(path(series)) {}
                @for (at, value) in series.values.iter().enumerate() {
                    @let radius = if at + 1 == series.values.len() { "2.5" } else { "1.6" };
                    circle class="dot" cx=(number(self.middle(at))) cy=(y(*value)) r=(radius) {}
                }
            }
        };
        self.figure(visit, top, drawn)
    }

    fn figure(&self, visit: &Visit, top: f64, drawn: Markup) -> Markup {
        let last = |series: &Series| self.unit.words(visit, series.values.last().copied().unwrap_or_default());
        let lasts: Vec<String> = self.series.iter().map(|series| format!("{} {}", series.name, last(series))).collect();
        html! {
            figure class="plot" {
                figcaption {
                    (self.title)
                    span class="two" { (visit.say("last: ", "en dernier : ")) (lasts.join(", ")) }
                }
                svg class="p" viewBox="0 0 340 150" role="img" aria-labelledby={(self.id) "-t " (self.id) "-d"} {
                    title id={(self.id) "-t"} { (self.title) }
                    desc id={(self.id) "-d"} { (self.description(visit)) }
                    (self.grid(visit, top))
                    (drawn)
                }
                @if self.series.len() > 1 { (self.key()) }
                details {
                    summary { (visit.say("Show as table", "Montrer en tableau")) }
                    (self.table(visit))
                }
            }
        }
    }

    fn key(&self) -> Markup {
        html! {
            ul class="key" {
                @for (of, series) in self.series.iter().enumerate() {
                    li {
                        svg class="p keyp" width="12" height="12" aria-hidden="true" focusable="false" {
                            rect class=(if of == 0 { "b2" } else { "b1" }) fill=[(of == 0).then_some("url(#hatch)")]
                                x="1" y="1" width="10" height="10" {}
                        }
                        (series.name)
                    }
                }
            }
        }
    }

    fn table(&self, visit: &Visit) -> Markup {
        let heads: Vec<&str> = [self.axis].into_iter().chain(self.series.iter().map(|series| series.name)).collect();
        let row = |at: usize| {
            let label = html! { (self.labels[at]) };
            let value = |series: &Series| self.unit.words(visit, series.values.get(at).copied().unwrap_or_default());
            [label].into_iter().chain(self.series.iter().map(|series| html! { (value(series)) })).collect()
        };
        html::table(self.title, &heads, (0..self.labels.len()).rev().map(row).collect())
    }
}

/// Returns the pattern of the first series. Must be on each page with plots, once.
pub(super) fn hatching() -> Markup {
    html! {
        svg class="sprite" width="0" height="0" aria-hidden="true" focusable="false" {
            defs {
                pattern id="hatch" width="4" height="4" patternUnits="userSpaceOnUse" patternTransform="rotate(45)" {
                    path class="hat" d="M0 0v4" {}
                }
                pattern id="hatch-over" width="4" height="4" patternUnits="userSpaceOnUse"
                    patternTransform="rotate(45)" { path class="hatw" d="M0 0v4" {} }
            }
        }
    }
}

/// Formats a coordinate: one decimal is finer than any screen.
fn number(value: f64) -> String {
    format!("{value:.1}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axis_maximum_is_rounded_up() {
        let mib = f64::from(1 << 20);
        for (unit, value, rounded) in [
            (PlotUnit::Bytes, 0.0, 1.0),
            (PlotUnit::Bytes, 3.0 * mib, 4.0 * mib),
            (PlotUnit::Bytes, 1001.0 * mib, 1024.0 * mib),
            (PlotUnit::Seconds, 41.0, 60.0),
            (PlotUnit::Seconds, 61.0, 120.0),
            (PlotUnit::Seconds, 9000.0, 14_400.0),
        ] {
            assert_eq!(unit.round_up(value), rounded, "{unit:?} {value}");
        }
    }
}
