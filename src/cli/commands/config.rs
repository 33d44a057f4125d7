//! `kvmb config`

use crate::cli::args::repo::DefaultRepo;
use crate::cli::commands::config_set::ConfigSetArgs;
use crate::cli::context::Context;
use crate::cli::failure::exit_code::ExitCode;
use crate::cli::failure::{CliError, of_config};
use crate::cli::folders::data_folder;
use crate::cli::session::Session;
use crate::config::rules::{AbsolutePath, WithText};
use crate::config::{Config, Loaded, schema};
use crate::record::{Check, Record, Status};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Show, check, change and describe the configuration.
///
/// The configuration is a JSON file: --config, $KVMB_CONFIG, otherwise the first of ~/.kvm_backup_config.json,
/// ~/.config/kvmb/config.json and /etc/kvmb/config.json that exists. Without a file, the defaults apply. Options take
/// precedence over environment variables, and those over the file.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb config show
  kvmb config check --config example_config.json
  kvmb config set jobs=4
  kvmb config schema > config.schema.json")]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, clap::Subcommand)]
enum ConfigCommand {
    /// Show every key with its value and where the value comes from.
    ///
    /// Prints a 'setting' record for each key; a table only has the keys that are set and the paths. Values that may
    /// reveal a password are hidden.
    #[command(after_help = "Examples:
  kvmb config show
  kvmb config show --all
  kvmb config show --json | jq -r 'select(.source != \"default\") | .key'")]
    Show {
        /// In a table, show the keys with default values as well.
        #[arg(long)]
        all: bool,
    },
    /// Check the configuration and the files and programs that it refers to.
    ///
    /// Prints a 'check' record for each problem, or a single one if there is none. Exits with code 2 if kvmb would
    /// reject the file.
    #[command(after_help = "Examples:
  kvmb config check
  kvmb config check --config example_config.json")]
    Check,
    Set(ConfigSetArgs),
    /// Print the JSON Schema of the configuration, for editors.
    #[command(after_help = "Examples:
  kvmb config schema > config.schema.json")]
    Schema,
}

impl ConfigArgs {
    /// Whether the command needs a valid configuration. The command that checks it does not.
    pub(crate) fn needs_config(&self) -> bool {
        matches!(self.command, ConfigCommand::Show { .. })
    }

    /// Whether the command changes the file.
    pub(crate) fn changes(&self) -> bool {
        matches!(self.command, ConfigCommand::Set(_))
    }

    pub(crate) fn run(self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        match self.command {
            ConfigCommand::Show { all } => {
                let all = all || !session.is_table();
                for mut setting in context.settings.all(&(context.grammar)()) {
                    let path = default_path(context, &setting.key)?;
                    if let Some(path) = path.as_ref().filter(|_| setting.value.is_null()) {
                        setting.value = path.to_string_lossy().into();
                    }
                    if all || path.is_some() || setting.source != "default" {
                        session.done(Record::Setting(setting));
                    }
                }
            }
            ConfigCommand::Check => check(context, session),
            ConfigCommand::Set(args) => args.run(context, session)?,
            ConfigCommand::Schema => {
                let text = serde_json::to_string_pretty(schema::of_config()).unwrap_or_default() + "\n";
                session.text(text.as_bytes());
            }
        }
        Ok(())
    }
}

/// Returns the default of a key that names a file or folder; None for other keys.
fn default_path(context: &Context, key: &str) -> Result<Option<PathBuf>, CliError> {
    Ok(match key {
        "repo" => Some(DefaultRepo::locate()?.folder),
        "scratch" => Some(data_folder()?.join("scratch")),
        "log.file" => context.global.log.places().into_iter().next(),
        _ => None,
    })
}

fn check(context: &Context, session: &mut Session) {
    let target = |path: &Path| path.to_string_lossy().into_owned();
    let loaded = match context.global.load_config() {
        Ok(loaded) => loaded,
        Err(error) => {
            let file = target(error.path());
            for fault in of_config(error) {
                let check = Check { hint: fault.hint, ..Check::new("config", &file, Status::Critical, fault.message) };
                session.pass(&Record::Check(check));
                session.count_failure(ExitCode::Usage);
            }
            return;
        }
    };
    let file = loaded.file.as_deref().map_or("none".into(), target);
    let missing = missing(&loaded.config);
    if missing.is_empty() {
        session.check(Check::new("config", &file, Status::Ok, summary(&loaded)));
    }
    for (detail, hint) in missing {
        session.check(Check::new("config", &file, Status::Warning, detail).hint(hint));
    }
}

fn summary(loaded: &Loaded) -> String {
    match (&loaded.file, loaded.said.as_object().map_or(0, serde_json::Map::len)) {
        (None, _) => "no configuration file; the defaults apply".into(),
        (Some(_), 1) => "1 key, no problems".into(),
        (Some(_), count) => format!("{count} keys, no problems"),
    }
}

/// Returns the paths and programs of the configuration that do not exist on this host, with hints. They may exist when
/// the backup runs.
fn missing(config: &Config) -> Vec<(String, &'static str)> {
    let mut found = Vec::new();
    let files: [(&str, &Option<WithText<AbsolutePath>>); 4] = [
        ("password_file", &config.password_file),
        ("remote_password_file", &config.remote_password_file),
        ("ssh.identity_file", &config.ssh.identity_file),
        ("ssh.password_file", &config.ssh.password_file),
    ];
    for (key, path) in files {
        if let Some(path) = path.as_ref().filter(|path| !path.value().0.is_file()) {
            found.push((
                format!("the key \"{key}\" refers to {}, which is not a file", path.text()),
                "create the file, or correct the path",
            ));
        }
    }
    for (name, hooks) in config.hooks.lists() {
        for program in hooks.iter().filter_map(|hook| hook.command.first()).filter(|program| !is_program(program)) {
            let detail = format!("the key \"hooks.{name}\" refers to {program}, which is not an executable program");
            found.push((detail, "install it, or use its full path"));
        }
    }
    found
}

/// Whether this is a path to an executable file, or the name of one on the search path.
fn is_program(name: &str) -> bool {
    let executable =
        |path: &Path| path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0);
    if name.contains('/') {
        return executable(Path::new(name));
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).any(|folder| executable(&folder.join(name)))
}
