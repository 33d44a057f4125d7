//! The thresholds of `kvmb status`.

use crate::cli::failure::CliError;
use crate::config::Config;
use crate::config::rules::{PositiveSpan, WithText};
use crate::units::ShortDuration;
use clap::Args;
use std::time::Duration;

/// Time for a run and for a late start, in addition to the time between two runs.
const GRACE: Duration = Duration::from_secs(2 * 60 * 60);

/// The time between two runs if it is unknown.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The default age after which a verification is a warning.
const VERIFY_WARNING: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// The thresholds of `kvmb status`.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Thresholds")]
pub(crate) struct ThresholdArgs {
    /// Warn if the latest point of a machine is older than this (example: 26h).
    ///
    /// Default: the longest time between two runs of the schedule (or of backup_freq, or one day) plus two hours.
    #[arg(long, value_name = "TIME", value_parser = span)]
    warning: Option<Duration>,

    /// Report a critical state if it is older than this (example: 50h).
    ///
    /// Default: twice the value of --warning if given, otherwise twice the longest time between two runs plus two
    /// hours.
    #[arg(long, value_name = "TIME", value_parser = span)]
    critical: Option<Duration>,

    /// Warn if no point of a machine has been verified for this long (default: 30d).
    ///
    /// For a machine that was never verified, the time counts from its first backup.
    #[arg(long, value_name = "TIME", value_parser = span)]
    verify_warning: Option<Duration>,

    /// Warn if no point of a machine was booted by 'kvmb drill' for this long (default: never).
    ///
    /// For a machine that was never booted, the time counts from its first backup.
    #[arg(long, value_name = "TIME", value_parser = span)]
    drill_max_age: Option<Duration>,
}

/// Parses a duration, which may be zero.
fn span(text: &str) -> Result<Duration, String> {
    text.parse::<ShortDuration>().map(|span| span.0).map_err(|error| error.to_string())
}

/// The thresholds that apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Thresholds {
    /// Age of the newest point above which there is a warning.
    pub(crate) warning: Duration,
    /// Age of the newest point above which the status is critical.
    pub(crate) critical: Duration,
    /// Age of the last verification above which there is a warning.
    pub(crate) verify_warning: Duration,
    /// Age of the last drill above which there is a warning, if set.
    pub(crate) drill_max_age: Option<Duration>,
}

impl ThresholdArgs {
    /// Returns the configured thresholds, for a command without these flags.
    pub(crate) fn from_config(config: &Config) -> ThresholdArgs {
        let span = |span: &Option<WithText<PositiveSpan>>| span.as_ref().map(|span| span.value().0);
        ThresholdArgs {
            warning: span(&config.status.warning),
            critical: span(&config.status.critical),
            verify_warning: span(&config.status.verify_warning),
            drill_max_age: span(&config.drill.max_age),
        }
    }

    /// Returns the thresholds that apply if runs are at most this far apart.
    pub(crate) fn thresholds(&self, gap: Option<Duration>) -> Result<Thresholds, CliError> {
        let gap = gap.unwrap_or(DAY);
        let (warning, critical) = match (self.warning, self.critical) {
            (Some(warning), Some(critical)) if warning > critical => {
                return Err(CliError::usage("--warning must not be longer than --critical"));
            }
            (Some(warning), Some(critical)) => (warning, critical),
            (Some(warning), None) => (warning, 2 * warning),
            (None, Some(critical)) => (critical.min(gap + GRACE), critical),
            (None, None) => (gap + GRACE, 2 * gap + GRACE),
        };
        let verify_warning = self.verify_warning.unwrap_or(VERIFY_WARNING);
        Ok(Thresholds { warning, critical, verify_warning, drill_max_age: self.drill_max_age })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hours(warning: Option<u64>, critical: Option<u64>, gap: Option<u64>) -> Option<(u64, u64)> {
        let span = |hours: Option<u64>| hours.map(|hours| Duration::from_secs(hours * 3600));
        let args = ThresholdArgs {
            warning: span(warning),
            critical: span(critical),
            verify_warning: None,
            drill_max_age: None,
        };
        let found = args.thresholds(span(gap)).ok()?;
        Some((found.warning.as_secs() / 3600, found.critical.as_secs() / 3600))
    }

    #[test]
    fn default_thresholds_follow_from_the_backup_interval() {
        assert_eq!(hours(None, None, None), Some((26, 50)));
        assert_eq!(hours(None, None, Some(1)), Some((3, 4)));
        assert_eq!(hours(None, None, Some(168)), Some((170, 338)));
        assert_eq!(hours(Some(72), None, None), Some((72, 144)));
        assert_eq!(hours(None, Some(40), None), Some((26, 40)));
        assert_eq!(hours(None, Some(10), None), Some((10, 10)));
        assert_eq!(hours(Some(5), Some(5), None), Some((5, 5)));
        assert_eq!(hours(Some(6), Some(5), None), None);
    }
}
