//! The first section of the manual: what to do in the first week.

use super::roff::Text;

/// A step: its title, its purpose and its commands.
struct WeekStep {
    title: &'static str,
    words: &'static str,
    commands: &'static [&'static str],
}

const STEPS: &[WeekStep] = &[
    WeekStep {
        title: "Day 1: first backup",
        words: "Start on the host of the machines, as root. Nothing is changed until the first backup, which creates \
                a repository in /var/lib/kvmb/repo. Keep a copy of its key elsewhere: without it, the backups are \
                lost with the host.",
        commands: &[
            "kvmb vms",
            "kvmb disks vm1",
            "kvmb doctor",
            "kvmb backup vm1",
            "kvmb key export /mnt/usb/kvmb.key",
        ],
    },
    WeekStep {
        title: "Day 1: first restore",
        words: "Check that it can be restored, as a copy beside the original: the copy gets its own name, UUID and MAC \
                addresses. Log in to it, then remove it with virsh.",
        commands: &["kvmb points", "kvmb restore vm1 --as vm1-copy --into /var/lib/libvirt/images --start"],
    },
    WeekStep {
        title: "Day 2: scheduled backups",
        words: "Choose the machines and the rules in the configuration, and check it. Then install the schedule. Only \
                changes are read from now on, if the dirty bitmaps of QEMU are reliable.",
        commands: &[
            "kvmb config check",
            "kvmb schedule install --cron '0 2 * * *' --all --dry-run",
            "kvmb schedule install --cron '0 2 * * *' --all",
        ],
    },
    WeekStep {
        title: "Day 3: a second copy on a backup server",
        words: "The server needs SSH with SFTP, and nothing else. The set-up asks for its host key and for the \
            password \
                once, and creates a key for the schedule. A server in the configuration is copied to after each \
                backup.",
        commands: &[
            "kvmb remote setup -r sftp://kvm@backup.example.com//srv/kvm",
            "kvmb remote test -r sftp://kvm@backup.example.com//srv/kvm",
            "kvmb init -r sftp://kvm@backup.example.com//srv/kvm --password-file /root/kvmb.pass",
            "kvmb backup --all --copy-to sftp://kvm@backup.example.com//srv/kvm --copy-to-password-file \
             /root/kvmb.pass",
        ],
    },
    WeekStep {
        title: "Day 5: retention",
        words: "Without rules no point is ever removed. First check what the rules would remove, then write them to \
            the configuration. A pinned point always stays.",
        commands: &["kvmb prune --keep-daily 7 --keep-weekly 4 --dry-run", "kvmb pin vm1@latest"],
    },
    WeekStep {
        title: "Day 7: verification and monitoring",
        words: "Let each run verify a share of the repository, and let your monitoring check the state.",
        commands: &["kvmb verify --all --sample 5%", "kvmb status", "kvmb status --nagios"],
    },
    WeekStep {
        title: "Recovery",
        words: "On a new host, the repository and its password are enough. On a terminal, the restore asks for \
            everything it needs.",
        commands: &["kvmb restore"],
    },
];

pub(crate) fn section(text: &mut Text) {
    text.section("A FIRST WEEK");
    for step in STEPS {
        text.subsection(step.title);
        text.paragraph(step.words);
        text.literal(step.commands.iter().copied());
    }
}

#[cfg(test)]
mod tests {
    use super::STEPS;

    #[test]
    fn every_command_in_the_first_week_parses() {
        for command in STEPS.iter().flat_map(|step| step.commands) {
            let words = shlex::split(command).unwrap();
            crate::cli::command().try_get_matches_from(words).unwrap_or_else(|error| panic!("{command}: {error}"));
        }
    }
}
