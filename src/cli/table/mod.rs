//! Records as tables.
//!
//! | module | what |
//! | --- | --- |
//! | `cells` | formatting of cells: sizes, ages, times, names |
//! | `checks` | checks with problems first |
//! | `layout` | columns that fit the width of the terminal |
//! | `rows` | the columns of each kind of record, and their content |
//! | `schedules` | the columns of schedules |

mod cells;
mod checks;
pub(crate) mod layout;
mod rows;
mod schedules;

use crate::record::{Action, Record, Time};
use cells::{TableKind, as_action, kind};
use layout::TableLayout;

pub(crate) use cells::{age, bytes, duration, moment, printable};
pub(crate) use checks::render_checks;
pub use layout::{TableOptions, View};

/// Renders any mix of records: one table for each sequence of the same kind.
pub fn render(records: &[Record], now: Time, options: TableOptions) -> String {
    let mut text = String::new();
    // Failures are already on standard error.
    let shown: Vec<&Record> = records.iter().filter(|record| !matches!(record, Record::Failure(_))).collect();
    for run in shown.chunk_by(|a, b| kind(a) == kind(b)) {
        if !text.is_empty() {
            text.push('\n');
        }
        match (kind(run[0]), run) {
            (TableKind::PruneResult, run) => {
                let results = run.iter().filter_map(|record| as_action(record));
                text.extend(results.map(|action| printable(&prune_result(action)) + "\n"));
            }
            (TableKind::ScheduleChange, run) => {
                let changes = run.iter().filter_map(|record| as_action(record));
                text.extend(changes.map(|action| schedules::sentence(action, now)));
            }
            _ => {
                let (columns, rows) = rows::of(run, options.view, now);
                text.push_str(&TableLayout { columns, rows }.render(options));
            }
        }
    }
    text
}

/// Describes the result of `prune`, or of its dry run, in a sentence.
fn prune_result(prune: &Action) -> String {
    let number = |key: &str| prune.extra.get(key).and_then(serde_json::Value::as_u64);
    let (Some(removed), Some(kept)) = (number("removed_points"), number("kept_points")) else {
        return format!("{}: {}", prune.target, prune.reason);
    };
    let all = removed + kept;
    let points = if all == 1 { "point" } else { "points" };
    let freed = number("freed_bytes").unwrap_or(0);
    match (prune.dry_run, removed, freed) {
        (_, 0, 0) => format!("nothing to remove from {}: {}", prune.target, prune.reason),
        (true, ..) => format!("would remove {removed} of {all} {points}, freeing about {}", bytes(freed)),
        (false, ..) => format!("removed {removed} of {all} {points}, freed {}", bytes(freed)),
    }
}
