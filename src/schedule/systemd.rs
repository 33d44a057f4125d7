//! systemd services and timers, a pair for the backup and a pair for the drill. They do what cron's entry does, plus
//! what systemd adds: a missed run is caught up, and the run is sandboxed.
//!
//! The sandbox permits what kvmb and its hooks need: disks and images anywhere, the network, the sockets of libvirt and
//! QEMU in `/run`, root's SSH keys, and repositories wherever they are.

use super::error::CronField;
use super::field::Values;
use super::units::{self, quoted, quoted_setting};
use super::{Cron, Error, JobKind, ScheduledJob};
use std::collections::BTreeSet;
use std::fmt::Write;

/// The names and descriptions of the units for a kind of job.
struct UnitNames {
    service: &'static str,
    timer: &'static str,
    service_description: &'static str,
    timer_description: &'static str,
}

fn names(kind: JobKind) -> UnitNames {
    match kind {
        JobKind::Backup => UnitNames {
            service: "kvmb.service",
            timer: "kvmb.timer",
            service_description: "Backup of virtual machines",
            timer_description: "Timer for the backup of virtual machines",
        },
        JobKind::Drill => UnitNames {
            service: "kvmb-drill.service",
            timer: "kvmb-drill.timer",
            service_description: "Drill of backups of virtual machines",
            timer_description: "Timer for the drill of backups of virtual machines",
        },
    }
}

/// The path of the backup's timer.
pub(crate) const TIMER: &str = "/etc/systemd/system/kvmb.timer";

/// The path of the drill's timer.
pub(crate) const DRILL_TIMER: &str = "/etc/systemd/system/kvmb-drill.timer";

/// The key in the timer that stores the cron expression; systemd ignores keys that begin with `X-`.
const EXPRESSION: &str = "X-Cron=";

const SANDBOX: &str = "\
NoNewPrivileges=yes
ProtectSystem=full
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
LockPersonality=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
CapabilityBoundingSet=~CAP_SYS_MODULE CAP_SYS_BOOT CAP_SYS_TIME CAP_WAKE_ALARM CAP_AUDIT_CONTROL CAP_MAC_ADMIN
CapabilityBoundingSet=~CAP_SYSLOG CAP_SYS_TTY_CONFIG CAP_SYS_PACCT CAP_BPF CAP_PERFMON CAP_LEASE CAP_MKNOD
";

/// The two units of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Units {
    /// `kvmb.service`, or `kvmb-drill.service`.
    pub(crate) service: String,
    /// `kvmb.timer`, or `kvmb-drill.timer`.
    pub(crate) timer: String,
}

impl Units {
    /// Creates the units for a job.
    pub(crate) fn new(job: &ScheduledJob) -> Result<Units, Error> {
        let command = job.command.iter().map(|word| quoted(word)).collect::<Result<Vec<_>, _>>()?.join(" ");
        let mut environment = String::new();
        for (name, value) in &job.environment {
            let _ = writeln!(environment, "Environment={}", quoted_setting(&format!("{name}={value}"))?);
        }
        let names = names(job.kind);
        let (service_unit, description) = (names.service, names.service_description);
        let service = format!(
            "# Created by 'kvmb schedule install --systemd', removed by 'kvmb schedule remove --systemd'.\n\
             # Put your own settings into a drop-in: systemctl edit {service_unit}\n\
             [Unit]\n\
             Description={description}\n\
             Documentation=https://github.com/kvmb/kvmb\n\
             Wants=network-online.target\n\
             After=network-online.target libvirtd.service virtqemud.service\n\
             \n\
             [Service]\n\
             Type=oneshot\n\
             ExecStart={command}\n\
             {environment}\
             # Records. Errors go to standard error, and so to the journal.\n\
             StandardOutput=null\n\
             Nice=10\n\
             IOSchedulingClass=idle\n\
             # On stop, only kvmb itself gets the signal, so that it can clean up.\n\
             KillMode=mixed\n\
             {SANDBOX}"
        );
        let mut timer = format!(
            "# Created by 'kvmb schedule install --systemd', removed by 'kvmb schedule remove --systemd'.\n\
             [Unit]\n\
             Description={}\n\
             \n\
             [Timer]\n\
             {EXPRESSION}{}\n",
            names.timer_description, job.cron
        );
        for line in triggers(&job.cron) {
            let _ = writeln!(timer, "{line}");
        }
        if let Some(delay) = job.random_delay {
            let _ = writeln!(timer, "RandomizedDelaySec={}s", delay.as_secs());
        }
        timer.push_str("Persistent=true\n\n[Install]\nWantedBy=timers.target\n");
        Ok(Units { service, timer })
    }

    /// Reads the installed units.
    pub(crate) fn read(kind: JobKind) -> Result<Option<Units>, Error> {
        let names = names(kind);
        match (units::read(names.service)?, units::read(names.timer)?) {
            (None, None) => Ok(None),
            (service, timer) => {
                Ok(Some(Units { service: service.unwrap_or_default(), timer: timer.unwrap_or_default() }))
            }
        }
    }

    /// Returns the expression and the command, if they can be parsed.
    pub(crate) fn job(&self) -> Option<(Cron, String)> {
        let value = |text: &str, key: &str| text.lines().find_map(|line| line.strip_prefix(key).map(str::to_owned));
        Some((value(&self.timer, EXPRESSION)?.parse().ok()?, value(&self.service, "ExecStart=")?))
    }

    /// Refuses to change installed units that kvmb did not create.
    pub(crate) fn check_own(kind: JobKind) -> Result<(), Error> {
        let names = names(kind);
        units::check_own(&[names.service, names.timer])
    }

    /// Writes the units and activates them, at once or, if systemd is not running, at the next boot.
    pub(crate) fn install(&self, kind: JobKind) -> Result<(), Error> {
        let names = names(kind);
        units::install(&[(names.service, &self.service), (names.timer, &self.timer)], names.timer)
    }

    pub(crate) fn remove(kind: JobKind) -> Result<(), Error> {
        let names = names(kind);
        units::remove(&[names.timer, names.service], names.timer)
    }
}

/// Returns whether the timer is enabled.
pub(crate) fn is_enabled(kind: JobKind) -> bool {
    units::is_enabled(names(kind).timer, "timers.target")
}

/// Returns the lines of a timer that are equivalent to an expression: two if either of two days is sufficient.
fn triggers(cron: &Cron) -> Vec<String> {
    let Some(times) = cron.times() else { return vec!["OnBootSec=1min".into()] };
    let list = |field: CronField, values: &Values| list(field, &values.numbers);
    let clock = format!("{}:{}:00", list(CronField::Hour, &times.hours), list(CronField::Minute, &times.minutes));
    let months = list(CronField::Month, &times.months);
    let (days, weekdays) =
        (list(CronField::DayOfMonth, &times.days_of_month), list(CronField::DayOfWeek, &times.days_of_week));
    let line = |days: &str, weekdays: &str| {
        let weekdays = if weekdays == "*" { String::new() } else { format!("{weekdays} ") };
        format!("OnCalendar={weekdays}*-{months}-{days} {clock}")
    };
    if times.either_day() { vec![line(&days, "*"), line("*", &weekdays)] } else { vec![line(&days, &weekdays)] }
}

/// Formats numbers for systemd: `*` for all, `1..5,9` for some, names for days of the week.
fn list(field: CronField, numbers: &BTreeSet<u32>) -> String {
    const WEEKDAYS: [&str; 7] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];
    let (low, high) = field.bounds();
    // Sunday is always 0 here, never 7.
    let high = if field == CronField::DayOfWeek { 6 } else { high };
    if (low..=high).all(|number| numbers.contains(&number)) {
        return "*".into();
    }
    let name = |number: u32| match field {
        CronField::DayOfWeek => WEEKDAYS[number as usize].to_owned(),
        _ => format!("{number:02}"),
    };
    let numbers: Vec<u32> = numbers.iter().copied().collect();
    let runs = numbers.chunk_by(|a, b| a + 1 == *b).map(|run| match run {
        // systemd's week begins on Monday: a range that starts on Sunday would be reversed.
        [first, .., last] if field != CronField::DayOfWeek => format!("{}..{}", name(*first), name(*last)),
        run => run.iter().map(|number| name(*number)).collect::<Vec<_>>().join(","),
    });
    runs.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_becomes_calendar_events() {
        for (expression, lines) in [
            ("0 2 * * *", vec!["OnCalendar=*-*-* 02:00:00"]),
            ("*/20 9-17 * * mon-fri", vec!["OnCalendar=Mon,Tue,Wed,Thu,Fri *-*-* 09..17:00,20,40:00"]),
            ("0 0 1,15 jan 7", vec!["OnCalendar=*-01-01,15 00:00:00", "OnCalendar=Sun *-01-* 00:00:00"]),
            ("0 0 */2 * fri", vec!["OnCalendar=Fri *-*-01,03,05,07,09,11,13,15,17,19,21,23,25,27,29,31 00:00:00"]),
            ("@hourly", vec!["OnCalendar=*-*-* *:00:00"]),
            ("@reboot", vec!["OnBootSec=1min"]),
        ] {
            assert_eq!(triggers(&expression.parse().unwrap()), lines, "{expression}");
        }
    }
}
