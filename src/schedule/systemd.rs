//! A systemd service and its timer: what cron's entry does, with what systemd adds - a missed run is made up for, and
//! the run is shut off from what no backup needs.
//!
//! The sandbox leaves open what kvmb and its hooks do need: disks and images anywhere, the network, the sockets of
//! libvirt and QEMU in `/run`, root's keys for SSH, and repositories wherever they are.

use super::entry::{self, program};
use super::error::CronField;
use super::field::Values;
use super::{Cron, Error, ScheduledJob};
use crate::atomic_file;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Where the administrator's units are.
const FOLDER: &str = "/etc/systemd/system";
pub(crate) const SERVICE: &str = "/etc/systemd/system/kvmb.service";
pub(crate) const TIMER: &str = "/etc/systemd/system/kvmb.timer";

/// The key in the timer that keeps the cron expression; systemd passes over those that begin with `X-`.
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
    /// `kvmb.service`.
    pub(crate) service: String,
    /// `kvmb.timer`.
    pub(crate) timer: String,
}

impl Units {
    /// The units for a job.
    pub(crate) fn new(job: &ScheduledJob) -> Result<Units, Error> {
        let command = job.command.iter().map(|word| quoted(word)).collect::<Result<Vec<_>, _>>()?.join(" ");
        let mut environment = String::new();
        for (name, value) in &job.environment {
            let _ = writeln!(environment, "Environment={}", quoted_setting(&format!("{name}={value}"))?);
        }
        let service = format!(
            "# Created by 'kvmb schedule install --systemd', removed by 'kvmb schedule remove --systemd'.\n\
             # Your own settings belong into a drop-in: systemctl edit kvmb.service\n\
             [Unit]\n\
             Description=Backup of virtual machines\n\
             Documentation=https://github.com/kvmb/kvmb\n\
             Wants=network-online.target\n\
             After=network-online.target libvirtd.service virtqemud.service\n\
             \n\
             [Service]\n\
             Type=oneshot\n\
             ExecStart={command}\n\
             {environment}\
             # Records; what goes wrong is on standard error, and in the journal.\n\
             StandardOutput=null\n\
             Nice=10\n\
             IOSchedulingClass=idle\n\
             # On a stop kvmb alone is asked to end, and clears up.\n\
             KillMode=mixed\n\
             {SANDBOX}"
        );
        let mut timer = format!(
            "# Created by 'kvmb schedule install --systemd', removed by 'kvmb schedule remove --systemd'.\n\
             [Unit]\n\
             Description=Timer for the backup of virtual machines\n\
             \n\
             [Timer]\n\
             {EXPRESSION}{}\n",
            job.cron
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

    /// Those that are installed.
    pub(crate) fn read() -> Result<Option<Units>, Error> {
        let read = |path: &str| match atomic_file::read_to_string(Path::new(path)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("read", Path::new(path))(error)),
        };
        match (read(SERVICE)?, read(TIMER)?) {
            (None, None) => Ok(None),
            (service, timer) => {
                Ok(Some(Units { service: service.unwrap_or_default(), timer: timer.unwrap_or_default() }))
            }
        }
    }

    /// The expression and the command, as far as they can be read.
    pub(crate) fn job(&self) -> Option<(Cron, String)> {
        let value = |text: &str, key: &str| text.lines().find_map(|line| line.strip_prefix(key).map(str::to_owned));
        Some((value(&self.timer, EXPRESSION)?.parse().ok()?, value(&self.service, "ExecStart=")?))
    }

    /// Writes them, and has systemd take them up at once, or with the next boot where it does not run.
    pub(crate) fn install(&self) -> Result<(), Error> {
        super::write_file(Path::new(SERVICE), &self.service)?;
        super::write_file(Path::new(TIMER), &self.timer)?;
        if is_running() {
            systemctl(&["daemon-reload"])?;
            // A timer that runs already takes up its new times only when it is started again.
            systemctl(&["enable", "kvmb.timer"])?;
            systemctl(&["restart", "kvmb.timer"])
        } else {
            systemctl(&["enable", "kvmb.timer"])
        }
    }

    /// Takes them away.
    pub(crate) fn remove() -> Result<(), Error> {
        let mut disable = vec!["disable", "kvmb.timer"];
        if is_running() {
            disable.push("--now");
        }
        systemctl(&disable)?;
        for path in [TIMER, SERVICE].map(Path::new) {
            match fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", path)(error));
                }
                _ => {}
            }
        }
        if is_running() { systemctl(&["daemon-reload"]) } else { Ok(()) }
    }
}

/// Whether the timer is enabled.
pub(crate) fn is_enabled() -> bool {
    Path::new(FOLDER).join("timers.target.wants/kvmb.timer").exists()
}

fn is_running() -> bool {
    Path::new("/run/systemd/system").exists()
}

fn systemctl(arguments: &[&str]) -> Result<(), Error> {
    let failed = |message: String| Error::Program { program: format!("systemctl {}", arguments.join(" ")), message };
    let mut command = Command::new(program("systemctl")?);
    command.args(arguments);
    let output = entry::run("systemctl", command, None)?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// The lines of a timer that mean what an expression means; where either of two days will do, one for each.
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

/// Numbers as systemd lists them: `*` for all, `1..5,9` for some, by their names for days of the week.
fn list(field: CronField, numbers: &BTreeSet<u32>) -> String {
    const WEEKDAYS: [&str; 7] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];
    let (low, high) = field.bounds();
    // Sunday is 0 here, and never 7.
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
        // systemd's week begins with Monday: a range from Sunday on would go backwards.
        [first, .., last] if field != CronField::DayOfWeek => format!("{}..{}", name(*first), name(*last)),
        run => run.iter().map(|number| name(*number)).collect::<Vec<_>>().join(","),
    });
    runs.collect::<Vec<_>>().join(",")
}

/// A word of a command line in a unit.
fn quoted(word: &str) -> Result<String, Error> {
    Ok(quoted_setting(word)?.replace('$', "$$"))
}

/// A word of another setting: variables are not expanded there.
fn quoted_setting(word: &str) -> Result<String, Error> {
    if word.chars().any(char::is_control) {
        return Err(Error::Unspeakable { what: word.escape_debug().to_string() });
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@,+".contains(c);
    let escaped = word.replace('\\', r"\\").replace('"', r#"\""#).replace('%', "%%");
    Ok(if !word.is_empty() && word.chars().all(plain) { escaped } else { format!("\"{escaped}\"") })
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

    #[test]
    fn words_are_quoted_as_systemd_reads_them() {
        for (word, expected) in [
            ("/usr/bin/kvmb", "/usr/bin/kvmb"),
            ("my vm", "\"my vm\""),
            ("50%", "\"50%%\""),
            ("$HOME", "\"$$HOME\""),
            (r#"a"b\c'd"#, r#""a\"b\\c'd""#),
            ("", "\"\""),
        ] {
            assert_eq!(quoted(word).unwrap(), expected);
        }
        assert!(quoted("a\nb").is_err());
    }
}
