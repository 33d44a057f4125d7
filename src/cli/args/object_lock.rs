//! How long the files that a command writes are locked.

use crate::cli::args::copy::CopyToArgs;
use crate::cli::args::repo::RepoArgs;
use crate::cli::args::value_parsers::duration;
use crate::cli::context::Context;
use crate::cli::failure::CliError;
use clap::Args;
use std::time::Duration;

/// Object Lock.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Repository")]
pub(crate) struct LockForArgs {
    /// Lock files that are written to a bucket for this long (example: 30d), so that nobody can remove or change them.
    ///
    /// This is S3 Object Lock in COMPLIANCE mode, which nobody can end early. Older data that a new point needs is
    /// locked again when less than half of the time remains. Default: s3.lock_for of the configuration, otherwise
    /// nothing is locked.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    lock_for: Option<Duration>,
}

impl LockForArgs {
    /// Requests object locks for everything written to the first and the second repository. One of them must be in a
    /// bucket. Must be called before either is opened.
    pub(crate) fn apply(
        &self,
        context: &Context,
        repo: &mut RepoArgs,
        copy: Option<&CopyToArgs>,
    ) -> Result<(), CliError> {
        if self.lock_for.is_none() {
            return Ok(());
        }
        repo.lock_for = self.lock_for;
        let second = copy.map(|copy| copy.tiers(context, repo)).transpose()?.and_then(|(_, second)| second);
        let mut urls = vec![repo.url()?];
        urls.extend(second.map(|second| second.url()).transpose()?);
        match urls.iter().any(|url| url.starts_with("s3:")) {
            true => Ok(()),
            false => Err(CliError::usage(format!("cannot lock files in {}: not a bucket", urls.join(" and ")))
                .hint("use --lock-for with a repository in a bucket: -r s3:https://HOST/BUCKET/FOLDER")),
        }
    }
}
