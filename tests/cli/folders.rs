//! The default locations of a new user's files; existing files keep their locations.

use crate::support::Env;
use crate::support::call::{Call, Output};
use std::fs;

/// Runs a script as a user other than root. The files of the test belong to that user.
fn as_user(env: &Env, script: &str) -> Output {
    let call: Call = env.program("unshare").args(["--user", "--map-user=1000", "--map-group=1000", "sh", "-c", script]);
    let call = ["XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "KVMB_DATA_DIR", "KVMB_CONFIG", "KVMB_LOG_FILE"]
        .into_iter()
        .fold(call, Call::without_env);
    call.env("R", env.repo()).env("HOME", env.path("home")).run()
}

#[test]
fn new_user_files_follow_the_xdg_specification() {
    let env = Env::new("new user");
    as_user(&env, "kvmb init -r $R && kvmb verify --all -r $R").assert_ok();
    let home = |path: &str| env.path("home").join(path);
    assert!(fs::read_dir(home(".local/state/kvmb/jobs")).unwrap().count() > 0);
    assert!(!home(".local/share/kvmb/jobs").exists());
    let jobs = as_user(&env, "kvmb jobs").assert_ok();
    assert_eq!(jobs.record_of("job")["command"], "verify");
    // The repository and its key are data.
    let settings = as_user(&env, "kvmb config show --all").assert_ok().records_of("setting");
    let repo = settings.iter().find(|setting| setting["key"] == "repo").unwrap();
    assert_eq!(repo["value"], home(".local/share/kvmb/repo").to_str().unwrap());
    // Variables of the XDG specification; a relative path is ignored.
    as_user(&env, "XDG_STATE_HOME=$HOME/state kvmb verify --all -r $R").assert_ok();
    assert!(home("state/kvmb/jobs").exists());
    as_user(&env, "XDG_STATE_HOME=relative kvmb verify --all -r $R").assert_ok();
    assert!(!env.path("relative").exists());
    assert_eq!(as_user(&env, "kvmb jobs").assert_ok().records_of("job").len(), 2);
}

#[test]
fn existing_history_is_continued_in_place() {
    let env = Env::new("old user");
    fs::create_dir_all(env.path("home/.local/share/kvmb/history")).unwrap();
    as_user(&env, "kvmb init -r $R && kvmb verify --all -r $R").assert_ok();
    assert!(env.path("home/.local/share/kvmb/jobs").exists());
    assert!(!env.path("home/.local/state").exists());
}

#[test]
fn new_config_goes_to_the_xdg_folder_and_legacy_file_is_kept() {
    let env = Env::new("new configuration");
    let home = |path: &str| env.path("home").join(path);
    as_user(&env, "kvmb config set jobs=2").assert_ok();
    assert_eq!(fs::read_to_string(home(".config/kvmb/config.json")).unwrap().matches("jobs").count(), 1);
    as_user(&env, "XDG_CONFIG_HOME=$HOME/other kvmb config set jobs=3").assert_ok();
    assert!(home("other/kvmb/config.json").exists());
    // The path of kvm_backup takes precedence if it exists.
    fs::write(home(".kvm_backup_config.json"), "{}\n").unwrap();
    as_user(&env, "kvmb config set jobs=4").assert_ok();
    assert!(fs::read_to_string(home(".kvm_backup_config.json")).unwrap().contains("\"jobs\": 4"));
    assert!(fs::read_to_string(home(".config/kvmb/config.json")).unwrap().contains("\"jobs\": 2"));
}

#[test]
fn doctor_refers_users_without_machines_to_qemu_system() {
    let env = Env::new("doctor of a user");
    let uri = env.uri();
    let output = as_user(&env, &format!("kvmb -c '{uri}' doctor"));
    let check =
        output.records_of("check").into_iter().find(|check| check["check"] == "connection" && check["status"] != "ok");
    let check = check.unwrap_or_else(|| panic!("{output}"));
    assert!(check["detail"].as_str().unwrap().contains("kvmb does not run as root"), "{check}");
    assert!(check["hint"].as_str().unwrap().contains("-c qemu:///system"), "{check}");
}

#[test]
fn config_is_found_through_the_password_database_without_home() {
    let env = Env::new("no home");
    fs::write(env.path("home/.kvm_backup_config.json"), "{\"jobs\": 7}\n").unwrap();
    let line = format!("root:x:0:0:root:{}:/bin/sh\n", env.path("home").display());
    fs::write(env.path("passwd"), line).unwrap();
    // systemd starts system services like this.
    let script = "mount --bind \"$1\" /etc/passwd && exec kvmb config show";
    let call = env.program("unshare").args(["--mount", "sh", "-c", script, "sh"]).args([env.path("passwd")]);
    let call = ["HOME", "XDG_CONFIG_HOME", "KVMB_CONFIG"].into_iter().fold(call, Call::without_env);
    let settings = call.run().assert_ok().records_of("setting");
    assert!(settings.iter().any(|setting| setting["key"] == "jobs" && setting["value"] == 7), "{settings:#?}");
}

#[test]
fn missing_temporary_folder_is_not_reported_as_an_error_of_ssh_config() {
    let env = Env::new("no tmp");
    let call = env.kvmb(["points", "-r", "sftp://127.0.0.1:1//x"]).env("TMPDIR", "/proc/none");
    call.run().assert_code(2).assert_stderr_has("/proc/none: cannot create a temporary file: No such file");
}
