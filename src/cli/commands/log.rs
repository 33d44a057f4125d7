//! `kvmb log`

use crate::cli::context::Context;
use crate::cli::failure::{CliError, Code};
use crate::cli::session::Session;
use crate::log::reader::lines_of_run;
use std::io::ErrorKind;

/// Show the log of one run.
///
/// Prints the lines of the log file as they are, also those in rotated files. The ID of a run is in each line of the
/// log and in 'kvmb status --json' (last_run). Runs under systemd are in the journal: journalctl -t kvmb RUN=ID.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb log
  kvmb log 5f0c2a9e
  kvmb log 5f0c2a9e --log-file /var/log/kvm_backup.log")]
pub(crate) struct LogCommandArgs {
    /// The ID of the run. Default: the last run in the log.
    #[arg(value_name = "RUN", value_parser = run_id)]
    run: Option<String>,
}

fn run_id(text: &str) -> Result<String, String> {
    match text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        true => Ok(text.to_ascii_lowercase()),
        false => Err("expected 8 hexadecimal digits, as in a line of the log: 5f0c2a9e".to_owned()),
    }
}

impl LogCommandArgs {
    pub(crate) fn run(self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        let places = context.global.log.places();
        let mut any = false;
        for path in &places {
            let lines = lines_of_run(path, self.run.as_deref(), &mut |line| {
                any = true;
                session.text(format!("{line}\n").as_bytes());
                !session.is_pointless() && !context.stop.requested()
            });
            lines.map_err(|error| {
                let code = if error.kind() == ErrorKind::PermissionDenied { Code::Permission } else { Code::Failed };
                CliError::new(code, format!("cannot read the log {}: {error}", path.display()))
            })?;
            context.stop.check()?;
            if any {
                return Ok(());
            }
        }
        let places: Vec<String> = places.iter().map(|path| path.display().to_string()).collect();
        let places = places.join(" and ");
        Err(match &self.run {
            Some(run) => CliError::new(Code::NotFound, format!("no run {run} in {places}"))
                .hint(format!("for a run under systemd: journalctl -t kvmb RUN={run}")),
            None => CliError::new(Code::NotFound, format!("no run in {places}"))
                .hint("for runs under systemd: journalctl -t kvmb"),
        })
    }
}
