//! The rules that the host's security module needs for a machine to run on a served point: QEMU opens the socket, which
//! the profiles that libvirt generates do not cover. Pure except for [`missing_rule`].

use crate::capture::RuntimeDirs;
use std::fs;
use std::path::Path;

/// The files with site-specific AppArmor rules for all machines.
const APPARMOR: [&str; 2] =
    ["etc/apparmor.d/abstractions/libvirt-qemu", "etc/apparmor.d/local/abstractions/libvirt-qemu"];
/// A folder whose files are included too.
const APPARMOR_FOLDER: &str = "etc/apparmor.d/abstractions/libvirt-qemu.d";

/// The folder of the installed SELinux modules.
const SELINUX: &str = "var/lib/selinux";

/// A missing rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MissingRule {
    /// The security module.
    pub(crate) module: String,
    /// The rule, in the language of the security module.
    pub(crate) rule: String,
    /// The command that adds it.
    pub(crate) command: String,
}

/// Returns the rule that this module lacks, if any.
pub(crate) fn missing_rule(module: &str, runtime: &RuntimeDirs) -> Option<MissingRule> {
    missing_below(Path::new("/"), module, &runtime.live_restore_sockets())
}

/// The same for a host whose files are below `root`.
fn missing_below(root: &Path, module: &str, sockets: &str) -> Option<MissingRule> {
    match module {
        "apparmor" => {
            let in_folder = fs::read_dir(root.join(APPARMOR_FOLDER)).into_iter().flatten().flatten();
            let files = APPARMOR.iter().map(|path| root.join(path)).chain(in_folder.map(|entry| entry.path()));
            let text: String = files.filter_map(|path| fs::read_to_string(path).ok()).collect();
            apparmor(&text, sockets)
        }
        "selinux" => selinux(has_selinux_module(&root.join(SELINUX))),
        _ => None,
    }
}

fn apparmor(profile: &str, sockets: &str) -> Option<MissingRule> {
    let rules = profile.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let permits = |line: &str| {
        let mut words = line.trim_end_matches(',').split_whitespace().filter(|word| *word != "owner");
        words.next().is_some_and(|path| path.trim_matches('"') == sockets)
            && words.next().is_some_and(|modes| modes.contains('r') && modes.contains('w'))
    };
    let mut rules = rules.filter(|line| permits(line));
    let rule = format!("{sockets} rw,");
    let command = format!("mkdir -p /{APPARMOR_FOLDER} && echo '{rule}' >> /{APPARMOR_FOLDER}/kvmb");
    rules.next().is_none().then(|| MissingRule { module: "AppArmor".to_owned(), rule, command })
}

fn selinux(has_module: bool) -> Option<MissingRule> {
    let rule = "(allow svirt_t unconfined_t (unix_stream_socket (connectto))) \
                (allow svirt_t var_run_t (sock_file (write)))";
    let command = format!("echo '{rule}' > kvmb.cil && semodule -i kvmb.cil");
    (!has_module).then(|| MissingRule { module: "SELinux".to_owned(), rule: rule.to_owned(), command })
}

/// Whether a module `kvmb` is installed: `<policy>/active/modules/<priority>/kvmb`.
fn has_selinux_module(folder: &Path) -> bool {
    let entries = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let modules = entries(folder).map(|policy| policy.join("active/modules"));
    modules
        .collect::<Vec<_>>()
        .iter()
        .flat_map(|modules| entries(modules))
        .any(|priority| priority.join("kvmb").is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apparmor_rule_is_found_or_reported_missing() {
        let sockets = "/run/kvmb-nbd/live-*/nbd";
        let profile = |rule: &str| format!("  # {sockets} rw,\n  /dev/null rw,\n  {rule}\n  /run/other r,\n");
        for missing in ["", "/run/kvmb-nbd/live-*/nbd r,", "/run/kvmb-nbd/*/nbd rw,"] {
            let found = apparmor(&profile(missing), sockets).unwrap();
            assert_eq!(found.rule, "/run/kvmb-nbd/live-*/nbd rw,");
            assert!(found.command.contains("echo '/run/kvmb-nbd/live-*/nbd rw,' >> "), "{}", found.command);
        }
        for there in ["/run/kvmb-nbd/live-*/nbd rw,", "owner \"/run/kvmb-nbd/live-*/nbd\" rwk,"] {
            assert_eq!(apparmor(&profile(there), sockets), None, "{there}");
        }
    }

    #[test]
    fn suggested_command_adds_the_apparmor_rule() {
        let (root, sockets) = (tempfile::tempdir().unwrap(), "/run/kvmb-nbd/live-*/nbd");
        let profile = root.path().join(APPARMOR[0]);
        fs::create_dir_all(profile.parent().unwrap()).unwrap();
        fs::write(&profile, "  /dev/null rw,\n").unwrap();
        let missing = |module| missing_below(root.path(), module, sockets);
        let command = missing("apparmor").unwrap().command;
        let below = command.replace(" /etc", &format!(" {}/etc", root.path().display()));
        assert!(std::process::Command::new("sh").args(["-c", &below]).status().unwrap().success(), "{below}");
        assert_eq!(missing("apparmor"), None);
        assert_eq!(missing("dac"), None);
        assert!(missing("selinux").is_some());
    }

    #[test]
    fn selinux_access_requires_the_kvmb_module() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!has_selinux_module(folder.path()));
        assert!(selinux(false).unwrap().command.ends_with("> kvmb.cil && semodule -i kvmb.cil"));
        fs::create_dir_all(folder.path().join("targeted/active/modules/400/kvmb")).unwrap();
        assert!(has_selinux_module(folder.path()) && selinux(true).is_none());
    }
}
