//! A private host with regard to cron and systemd: private folders in a mount namespace.

use std::fs;
use std::os::unix::fs::chown;
use std::path::PathBuf;

use super::{Call, Env, parts};

/// Replaces the folders of cron and systemd by private ones, then runs a command.
const INSIDE: &str = r#"
    mount --bind "$1/spool" /var/spool/cron/crontabs && mount --bind "$1/cron.d" /etc/cron.d &&
    mount --bind "$1/crontab" /etc/crontab && mount --bind "$1/units" /etc/systemd/system &&
    mount --bind "$1/var-run" /run || exit 99
    shift
    exec "$@""#;

pub struct Host {
    /// The rest of the host.
    pub env: Env,
}

impl Host {
    pub fn new(name: &str) -> Host {
        parts::require(&["cron", "crontab", "faketime", "unshare", "systemd-analyze", "flock", "ionice"]);
        let env = Env::new(name);
        for folder in ["spool", "cron.d", "units", "var-run"] {
            fs::create_dir(env.path(folder)).expect("cannot make a folder");
        }
        fs::write(env.path("crontab"), "").expect("cannot write");
        let groups = fs::read_to_string("/etc/group").expect("groups");
        let group = groups.lines().find_map(|line| line.strip_prefix("crontab:x:")?.split(':').next()?.parse().ok());
        chown(env.path("spool"), Some(0), Some(group.expect("a group crontab"))).expect("root");
        super::set_mode(&env.path("spool"), 0o1730);
        Host { env }
    }

    /// Runs a program in this host.
    pub fn program(&self, words: &[&str]) -> Call {
        let call = self.env.program("unshare").args(["--mount", "/bin/sh", "-c", INSIDE, "inside"]);
        call.arg(self.env.path("")).args(words).env("KVMB_DATA_DIR", self.data_dir())
    }

    /// Returns kvmb's folder for persistent data.
    pub fn data_dir(&self) -> PathBuf {
        self.env.path("data")
    }

    /// Returns root's crontab, without the header that crontab(1) writes.
    pub fn crontab(&self) -> String {
        let text = fs::read_to_string(self.env.path("spool/root")).unwrap_or_default();
        let header = text.lines().take(3).filter(|line| line.starts_with("# ")).count();
        assert!(text.is_empty() || header == 3, "{text}");
        text.split_inclusive('\n').skip(header).collect()
    }

    /// Installs a crontab with crontab(1).
    pub fn set_crontab(&self, text: &str) {
        self.program(&["crontab", "-"]).stdin(text).run().assert_ok();
    }
}
