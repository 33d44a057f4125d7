//! The places in which a schedule can be installed, as the form shows them.

/// A location for a schedule: its flag, its names, and the target in its records.
pub(super) struct SchedulePlace {
    pub(super) flag: &'static str,
    pub(super) english: &'static str,
    pub(super) french: &'static str,
    pub(super) english_help: &'static str,
    pub(super) french_help: &'static str,
    pub(super) target: &'static str,
}

/// All locations, in the order of the form.
pub(super) const PLACES: [SchedulePlace; 3] = [
    SchedulePlace {
        flag: "--systemd",
        english: "systemd timer",
        french: "timer systemd",
        english_help: "kvmb.timer; missed runs are caught up",
        french_help: "kvmb.timer\u{202f}; les exécutions manquées sont rattrapées",
        target: "/etc/systemd/system/kvmb.timer",
    },
    SchedulePlace {
        flag: "--system",
        english: "/etc/cron.d/kvmb",
        french: "/etc/cron.d/kvmb",
        english_help: "crontab of the system",
        french_help: "crontab du système",
        target: "/etc/cron.d/kvmb",
    },
    SchedulePlace {
        flag: "",
        english: "crontab of this user",
        french: "crontab de cet utilisateur",
        english_help: "between two marker lines",
        french_help: "entre deux lignes de repère",
        target: "crontab",
    },
];
