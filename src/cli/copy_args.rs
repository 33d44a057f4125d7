//! The second repository of a command that copies: where points come from, or where they go.

use crate::cli::Context;
use crate::cli::complete;
use crate::cli::failure::CliError;
use crate::cli::repo_args::{RepoArgs, path_or_nothing};
use clap::Args;
use std::path::PathBuf;

/// Where points are copied from.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Copies")]
pub struct CopyFromArgs {
    /// The repository that the points on standard input are in; without it, the one that each record names.
    #[arg(long, value_name = "URL", env = "KVMB_FROM_REPO", hide_env_values = true, add = complete::repositories())]
    from_repo: Option<String>,

    /// A file with that repository's password; without it, the password of the repository that is copied to.
    #[arg(long, value_name = "FILE", env = "KVMB_FROM_PASSWORD_FILE", hide_env_values = true, value_parser = path_or_nothing())]
    from_password_file: Option<PathBuf>,
}

impl CopyFromArgs {
    /// The source of a point that says that it is in `recorded`.
    pub fn source(&self, context: &Context, target: &RepoArgs, recorded: &str) -> Result<RepoArgs, CliError> {
        let named = self.from_repo.as_ref().filter(|repo| !repo.is_empty());
        let url = named.map_or(recorded, String::as_str).to_owned();
        Ok(RepoArgs { limit_upload: None, ..target.other(context, url, self.from_password_file.clone())? })
    }
}

/// Where new points are copied to.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Copies")]
pub struct CopyToArgs {
    /// Copy the machines' points to this repository as well, once they are stored: those that it does not have yet.
    ///
    /// Uploads are limited for this repository only (see --limit-upload).
    #[arg(long, value_name = "URL", env = "KVMB_COPY_TO", hide_env_values = true, add = complete::repositories())]
    copy_to: Option<String>,

    /// A file with that repository's password; without it, the password of the first repository.
    #[arg(long, value_name = "FILE", env = "KVMB_COPY_TO_PASSWORD_FILE", hide_env_values = true, value_parser = path_or_nothing())]
    copy_to_password_file: Option<PathBuf>,
}

impl CopyToArgs {
    /// The repositories of a backup: the first, and the second if there is one.
    pub fn tiers(&self, context: &Context, first: &RepoArgs) -> Result<(RepoArgs, Option<RepoArgs>), CliError> {
        match self.copy_to.as_ref().filter(|repo| !repo.is_empty()) {
            None => Ok((first.clone(), None)),
            Some(url) => {
                let second = first.other(context, url.clone(), self.copy_to_password_file.clone())?;
                Ok((RepoArgs { limit_upload: None, ..first.clone() }, Some(second)))
            }
        }
    }
}
