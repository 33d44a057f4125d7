//! A host of a test's own, as far as cron and systemd are concerned: private folders in a mount namespace.

use std::fs;
use std::os::unix::fs::chown;
use std::path::PathBuf;

use super::{Call, Env, parts};

/// Has the folders of cron and systemd replaced by private ones, then runs what follows.
const INSIDE: &str = r#"
    mount --bind "$1/spool" /var/spool/cron/crontabs && mount --bind "$1/cron.d" /etc/cron.d &&
    mount --bind "$1/crontab" /etc/crontab && mount --bind "$1/units" /etc/systemd/system &&
    mount --bind "$1/var-run" /run || exit 99
    shift
    exec "$@""#;

/// The host.
pub struct Host {
    /// Everything else of it.
    pub env: Env,
}

impl Host {
    /// Makes it.
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

    /// A program in this host.
    pub fn program(&self, words: &[&str]) -> Call {
        let call = self.env.program("unshare").args(["--mount", "/bin/sh", "-c", INSIDE, "inside"]);
        call.arg(self.env.path("")).args(words).env("KVMB_DATA_DIR", self.data_dir())
    }

    /// kvmb's folder for what outlives a run.
    pub fn data_dir(&self) -> PathBuf {
        self.env.path("data")
    }

    /// The file that crontab(1) keeps for root, without the header that it writes there.
    pub fn crontab(&self) -> String {
        let text = fs::read_to_string(self.env.path("spool/root")).unwrap_or_default();
        let header = text.lines().take(3).filter(|line| line.starts_with("# ")).count();
        assert!(text.is_empty() || header == 3, "{text}");
        text.split_inclusive('\n').skip(header).collect()
    }

    /// Has crontab(1) install a crontab.
    pub fn set_crontab(&self, text: &str) {
        self.program(&["crontab", "-"]).stdin(text).run().assert_ok();
    }
}
