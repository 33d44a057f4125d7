//! The one place where flags, environment, configuration file and defaults are combined.
//!
//! A configuration key with a flag becomes that flag's default, in every command that has the flag. After that, clap
//! decides: flag before environment before default. No other code has to check.

use crate::config::file::value_of;
use crate::config::{Config, DEFAULT_BACKUP_FREQ, Loaded, SECRET_KEYS, schema};
use crate::record::Setting;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The configuration keys that provide defaults of flags, with the ids of those flags in clap.
const FLAGS: &[(&str, &str)] = &[
    ("connect", "connect"),
    ("repo", "repo"),
    ("password_file", "password_file"),
    ("http.ca_file", "cacert"),
    ("http.client_certificate", "tls_client_cert"),
    ("jobs", "jobs"),
    ("freeze", "freeze"),
    ("freeze_timeout", "freeze_timeout"),
    ("lease", "lease"),
    ("scratch", "scratch"),
    ("audit", "audit"),
    ("chunk_size", "chunk_size"),
    ("compression", "compression"),
    ("full_every", "full_every"),
    ("limit_read", "limit_read"),
    ("limit_upload", "limit_upload"),
    ("retry_for", "retry_for"),
    ("cache_dir", "cache_dir"),
    ("key_cache", "key_cache"),
    ("threads", "threads"),
    ("verify", "verify"),
    ("verify_sample", "verify_sample"),
    ("prune_after_backup", "prune"),
    ("log.file", "log_file"),
    ("log.format", "log_format"),
    ("status.warning", "warning"),
    ("status.critical", "critical"),
    ("status.verify_warning", "verify_warning"),
    ("drill.max_age", "drill_max_age"),
    ("drill.until", "drill_until"),
    ("drill.timeout", "drill_timeout"),
    ("drill.memory", "drill_memory"),
    ("drill.vcpus", "drill_vcpus"),
];

/// A password has its own order (see [`crate::cli::args::repo`]): the variables of all its sources take precedence over
/// the configuration file.
const OF_PASSWORD: &str = "password_file";

/// The flag of the second repository, which several keys together configure.
const SECOND: &str = "copy_to";

/// Variables of keys that have no flag.
const VARIABLES: [(&str, &str); 1] = [("password_command", "KVMB_PASSWORD_COMMAND")];

/// The configuration, and what the command line overrides.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings {
    pub(crate) loaded: Loaded,
    pub(crate) is_dry_run: bool,
    /// Values given with flags, by key.
    flags: BTreeMap<&'static str, String>,
}

/// The variable that is the default of `--output`. It is not the argument's own `env`, so that `--json` and `--table`,
/// which conflict with the argument, override it.
const OUTPUT_VARIABLE: (&str, &str) = ("output", "KVMB_OUTPUT");

/// Adds the output format of the environment as the default.
pub(crate) fn with_output_variable(command: Command) -> Command {
    let (id, variable) = OUTPUT_VARIABLE;
    match std::env::var(variable).ok().filter(|format| !format.is_empty()) {
        Some(format) => command.mut_arg(id, |arg| arg.default_value(format)),
        None => command,
    }
}

/// Makes the parser treat empty variables as unset.
pub(crate) fn without_empty_variables(command: Command) -> Command {
    let is_empty = |arg: &Arg| arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
    command
        .mut_args(|arg| if is_empty(&arg) { arg.env(None::<&'static str>) } else { arg })
        .mut_subcommands(without_empty_variables)
}

/// Adds the configuration's values as defaults of its flags.
pub(crate) fn with_defaults(command: Command, loaded: &Loaded) -> Command {
    let default_of = |arg: &Arg| -> Option<String> {
        if arg.get_id().as_str() == SECOND {
            return loaded.config.second_repo();
        }
        let (key, _) = FLAGS.iter().find(|(_, id)| *id == arg.get_id().as_str())?;
        match *key {
            "repo" => loaded.config.primary_repo(),
            OF_PASSWORD => None,
            key => value_of(&loaded.said, key).map(text_of),
        }
    };
    command
        .mut_args(|arg| match default_of(&arg) {
            Some(text) => arg.default_value(text),
            None => arg,
        })
        .mut_subcommands(|inner| with_defaults(inner, loaded))
}

impl Settings {
    /// Combines the configuration with the flags that override it.
    pub(crate) fn new(loaded: Loaded, matches: &ArgMatches) -> Settings {
        let given = |id: &str| {
            // Flags of subcommands are unknown at this level.
            let known = matches.try_contains_id(id).unwrap_or(false);
            (known && matches.value_source(id) == Some(ValueSource::CommandLine))
                .then(|| matches.get_raw(id)?.next())?
        };
        let flags = FLAGS.iter().filter_map(|(key, id)| Some((*key, given(id)?.to_string_lossy().into_owned())));
        Settings { is_dry_run: has_flag(matches, "dry_run"), flags: flags.collect(), loaded }
    }

    /// Returns every key with its effective value and where it comes from. `command` provides the defaults.
    pub(crate) fn all(&self, command: &Command) -> Vec<Setting> {
        let mut defaults = serde_json::to_value(Config::default()).unwrap_or_default();
        defaults["backup_freq"] = json!(DEFAULT_BACKUP_FREQ);
        let mut settings = Vec::new();
        schema::each_key(&mut |key, schema| settings.push(self.one(key, schema, command, &defaults)));
        settings
    }

    fn one(&self, key: &str, schema: &Value, command: &Command, defaults: &Value) -> Setting {
        let flag = FLAGS.iter().find(|(known, _)| *known == key).and_then(|(_, id)| find(command, id));
        let flag_variable = flag.and_then(Arg::get_env).map(|name| name.to_string_lossy().into_owned());
        let own_variable = VARIABLES.iter().find(|(known, _)| *known == key).map(|(_, name)| (*name).to_owned());
        let from_variable = flag_variable.or(own_variable).and_then(|name| {
            let value = std::env::var(&name).ok().filter(|value| !value.is_empty())?;
            Some((name, value))
        });
        let (value, source, origin) = if let Some(text) = self.flags.get(key) {
            (typed(text, schema), "flag", flag.and_then(Arg::get_long).map(|long| format!("--{long}")))
        } else if let Some((name, text)) = from_variable {
            (typed(&text, schema), "environment", Some(name))
        } else if let Some(value) = value_of(&self.loaded.said, key) {
            let file = self.loaded.file.as_ref().map(|file| file.to_string_lossy().into_owned());
            (value.clone(), "file", file)
        } else {
            let of_flag = flag.and_then(|flag| flag.get_default_values().first());
            let value = of_flag.map(|text| typed(&text.to_string_lossy(), schema));
            (value.or_else(|| value_of(defaults, key).cloned()).unwrap_or_default(), "default", None)
        };
        let is_secret = SECRET_KEYS.contains(&key) && !value.is_null();
        let value = if is_secret { json!("(hidden)") } else { value };
        let (key, source, schema) = (key.to_owned(), source.to_owned(), schema.clone());
        Setting { key, value, source, origin, schema, extra: Default::default() }
    }
}

/// Whether a flag was given to the subcommand, or to one below it.
fn has_flag(matches: &ArgMatches, id: &str) -> bool {
    let own = matches.try_get_one::<bool>(id).ok().flatten().copied().unwrap_or(false);
    own || matches.subcommand().is_some_and(|(_, inner)| has_flag(inner, id))
}

/// Formats a value as on a command line.
fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Converts a text of the command line to the type of the configuration key.
fn typed(text: &str, schema: &Value) -> Value {
    let is = |wanted: &str| match schema.get("type") {
        Some(Value::Array(kinds)) => kinds.iter().any(|kind| kind == wanted),
        kind => kind.is_some_and(|kind| kind == wanted),
    };
    let is_plain = is("integer") || is("boolean");
    is_plain.then(|| serde_json::from_str(text).ok()).flatten().unwrap_or_else(|| json!(text))
}

/// Finds a flag, in the command or its subcommands.
fn find<'a>(command: &'a Command, id: &str) -> Option<&'a Arg> {
    let own = command.get_arguments().find(|arg| arg.get_id().as_str() == id);
    own.or_else(|| command.get_subcommands().find_map(|inner| find(inner, id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_the_settings_table_exists_and_has_its_flag() {
        let command = crate::cli::command();
        let mut keys = Vec::new();
        schema::each_key(&mut |key, _| keys.push(key.to_owned()));
        for (key, id) in FLAGS {
            assert!(keys.iter().any(|known| known == key), "{key}");
            assert!(find(&command, id).is_some(), "{id}");
        }
        assert!(VARIABLES.iter().all(|(key, _)| keys.iter().any(|known| known == key)));
        assert!(SECRET_KEYS.iter().all(|key| keys.iter().any(|known| known == key)));
    }
}
