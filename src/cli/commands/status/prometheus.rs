//! Metrics in Prometheus's text format, <https://prometheus.io/docs/instrumenting/exposition_formats/>: gauges, times
//! in seconds since 1970, sizes in bytes. An unknown value has no sample.

use super::gather::{Asked, HostFacts, StatusReport, StatusRequest, gather};
use super::judge::{MachineFacts, Standing, status_of};
use super::nagios::number;
use super::thresholds::ThresholdArgs;
use crate::atomic_file;
use crate::cli::context::Context;
use crate::cli::failure::CliError;
use crate::history::{DrillRun, MachineMemory, MachineRun, RunOutcome};
use crate::ops::{Error, Monitor};
use crate::record::{Status, Time};
use std::fmt::Write;
use std::path::Path;

/// Readable by everyone: the node exporter runs as its own user.
const MODE: u32 = 0o644;

/// A label and its value.
type Label<'a> = (&'static str, &'a str);

/// Returns the value of a metric for a machine, if it is known.
type OfMachine = fn(&MachineFacts) -> Option<f64>;

/// The metrics of a machine: name, help text, value.
const OF_MACHINE: [(&str, &str, OfMachine); 17] = [
    ("newest_point_timestamp_seconds", "Time of the newest restore point of the machine.", |facts| {
        Some(seconds(facts.newest.as_ref()?.captured_at))
    }),
    ("points", "Number of restore points of the machine.", |facts| {
        facts.from_repository.then(|| facts.newest.as_ref().map_or(0.0, |newest| newest.points as f64))
    }),
    ("last_run_timestamp_seconds", "Time at which the last run for the machine ended, whatever its result.", |facts| {
        Some(seconds(last_run(facts)?.ended_at))
    }),
    ("last_run_success", "Whether the last run for the machine succeeded.", |facts| {
        Some(f64::from(u8::from(last_run(facts)?.result == RunOutcome::Done)))
    }),
    ("last_success_timestamp_seconds", "Time at which the last successful run for the machine ended.", |facts| {
        Some(seconds(last_success(facts)?.ended_at))
    }),
    ("last_success_duration_seconds", "Duration of the last successful run.", |facts| {
        Some(last_success(facts)?.duration_seconds())
    }),
    ("last_success_read_bytes", "How much the last successful run read from the disks.", |facts| {
        Some(last_success(facts)?.read_bytes as f64)
    }),
    ("last_success_new_bytes", "How much of that was new to the repository.", |facts| {
        Some(last_success(facts)?.new_bytes as f64)
    }),
    ("last_success_stored_bytes", "Space used by the new data, compressed and encrypted.", |facts| {
        Some(last_success(facts)?.stored_bytes as f64)
    }),
    (
        "last_verification_timestamp_seconds",
        "Time at which a point of the machine was last verified without damage.",
        |facts| Some(seconds(facts.memory.as_ref()?.verified.as_ref()?.at)),
    ),
    ("last_drill_timestamp_seconds", "Time of the last drill of the machine.", |facts| {
        Some(seconds(last_drill(facts)?.ended_at))
    }),
    ("last_drill_success", "Whether the last drill reached its goal.", |facts| {
        Some(f64::from(u8::from(last_drill(facts)?.status == Status::Ok.as_str())))
    }),
    ("last_drill_rung_seconds", "Time from the start until the highest rung of the last drill.", |facts| {
        last_drill(facts)?.rung_seconds
    }),
    ("damaged_points", "Number of points of the machine that are known to be damaged.", |facts| {
        Some(facts.damaged.len() as f64)
    }),
    ("next_run_timestamp_seconds", "Time of the next scheduled backup of the machine on this host.", |facts| {
        facts.next_run.map(seconds)
    }),
    ("selected", "Whether the machine is selected for backup.", |facts| {
        Some(f64::from(u8::from(facts.standing.counts())))
    }),
    (
        "known_from_repository",
        "Whether the values come from the repository; otherwise they come from the history of this host.",
        |facts| Some(f64::from(u8::from(facts.from_repository))),
    ),
];

fn last_run(facts: &MachineFacts) -> Option<&MachineRun> {
    facts.memory.as_ref()?.last_run.as_ref()
}

fn last_drill(facts: &MachineFacts) -> Option<&DrillRun> {
    facts.memory.as_ref()?.last_drill.as_ref()
}

fn last_success(facts: &MachineFacts) -> Option<&MachineRun> {
    facts.memory.as_ref().and_then(|memory: &MachineMemory| memory.last_success.as_ref())
}

fn seconds(time: Time) -> f64 {
    time.timestamp_millis() as f64 / 1000.0
}

/// Returns the metrics of a report.
pub(crate) fn text(report: &StatusReport) -> String {
    let mut text = Exposition::default();
    let repo = ("repo", report.repo.as_str());
    text.metric("kvmb_build_info", "Version of kvmb.");
    text.sample("kvmb_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    text.metric("kvmb_status_timestamp_seconds", "Time at which these metrics were generated.");
    text.sample("kvmb_status_timestamp_seconds", &[repo], seconds(report.at));
    text.metric("kvmb_repository_reachable", "Whether the repository is reachable.");
    text.sample("kvmb_repository_reachable", &[repo], f64::from(u8::from(report.reachable)));
    if let Some(kept) = report.key_kept {
        text.metric("kvmb_key_exported", "Whether a copy of the generated key is kept elsewhere.");
        text.sample("kvmb_key_exported", &[], f64::from(u8::from(kept)));
    }
    let thresholds = [
        (
            "kvmb_age_warning_seconds",
            "Age of the newest point above which a warning is reported.",
            report.thresholds.warning,
        ),
        (
            "kvmb_age_critical_seconds",
            "Age of the newest point above which a critical state is reported.",
            report.thresholds.critical,
        ),
    ];
    for (name, help, length) in thresholds {
        text.metric(name, help);
        text.sample(name, &[repo], length.as_secs_f64());
    }
    if !report.hosts.is_empty() {
        hosts(&mut text, &report.hosts, repo);
    }
    let name = "kvmb_machine_status";
    text.metric(name, "State of the machine's backups: 0 ok, 1 warning, 2 critical, 3 unknown.");
    for (facts, check) in &report.machines {
        text.sample(name, &labels(facts, repo), f64::from(number(status_of(check))));
    }
    for (short, help, value) in OF_MACHINE {
        let name = format!("kvmb_machine_{short}");
        text.metric(&name, help);
        for (facts, _) in &report.machines {
            if let Some(value) = value(facts) {
                text.sample(&name, &labels(facts, repo), value);
            }
        }
    }
    if let Some((url, copies)) = &report.second {
        let name = "kvmb_copy_newest_point_timestamp_seconds";
        text.metric(name, "Time of the newest point of the machine in the second repository.");
        for copied in copies {
            if let Some(at) = copied.captured_at {
                let labels = [("machine", copied.machine.as_str()), ("uuid", &copied.uuid), ("repo", url)];
                text.sample(name, &labels, seconds(at));
            }
        }
    }
    text.0
}

/// Returns the labels of a machine's metrics. A status of all hosts adds the host, because machines of two hosts may
/// have the same UUID.
fn labels<'f>(facts: &'f MachineFacts, repo: Label<'f>) -> Vec<Label<'f>> {
    let mut labels = vec![("machine", &*facts.machine), ("uuid", facts.uuid.as_deref().unwrap_or_default()), repo];
    if facts.standing == Standing::Stored {
        labels.insert(2, ("host", facts.newest.as_ref().map(|newest| &*newest.host).unwrap_or_default()));
    }
    labels
}

/// Adds the metrics of all hosts.
fn hosts(text: &mut Exposition, hosts: &[HostFacts], repo: Label) {
    let name = "kvmb_host_status";
    text.metric(name, "State of the newest point of the host: 0 ok, 1 warning, 2 critical.");
    for host in hosts {
        text.sample(name, &[("host", &host.host), repo], f64::from(number(host.status)));
    }
    let name = "kvmb_host_newest_point_timestamp_seconds";
    text.metric(name, "Time of the newest restore point of any machine of the host.");
    for host in hosts {
        text.sample(name, &[("host", &host.host), repo], seconds(host.captured_at));
    }
}

/// Writes the metrics of a report to a file.
pub(crate) fn write(report: &StatusReport, file: &Path) -> Result<(), CliError> {
    atomic_file::write(file, text(report).as_bytes(), MODE).map_err(Error::io("write", file))?;
    Ok(())
}

/// After a run, writes the metrics file that the configuration names, if any, using the repositories that the run has
/// opened. A failure is reported, but does not affect the run.
pub(crate) fn write_textfile(context: &Context, repo: String, first: Asked, second: Option<(String, Asked)>) {
    let status = &context.config().status;
    let Some(file) = &status.prometheus_textfile else { return };
    let file = &file.value().0;
    let thresholds = ThresholdArgs::from_config(context.config());
    let request = StatusRequest { names: &[], thresholds: &thresholds, runs: 0, repo, first, second };
    if let Err(error) = gather(context, request).and_then(|report| write(&report, file)) {
        context.monitor.warn(&format!("the metrics in {} are not up to date: {error}", file.display()));
    }
}

#[derive(Debug, Default)]
struct Exposition(String);

impl Exposition {
    /// Starts a metric.
    fn metric(&mut self, name: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {}", help.replace('\\', r"\\").replace('\n', r"\n"));
        let _ = writeln!(self.0, "# TYPE {name} gauge");
    }

    /// Adds a sample to the current metric.
    fn sample(&mut self, name: &str, labels: &[Label], value: f64) {
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }
}

/// Escapes the value of a label.
fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_characters_in_names_are_escaped_in_metrics() {
        let mut text = Exposition::default();
        text.metric("kvmb_x", "a\\b\nc");
        text.sample("kvmb_x", &[("machine", "a\"b\\c\nd")], 1_763_630_000.5);
        assert_eq!(
            text.0,
            "# HELP kvmb_x a\\\\b\\nc\n# TYPE kvmb_x gauge\nkvmb_x{machine=\"a\\\"b\\\\c\\nd\"} 1763630000.5\n"
        );
    }
}
