//! The second repository of a command that copies: the source or the destination of points.

use crate::cli::args::repo::RepoArgs;
use crate::cli::args::value_parsers::{path_or_nothing, repositories};
use crate::cli::context::Context;
use crate::cli::failure::CliError;
use clap::Args;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where points are copied from.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Copies")]
pub(crate) struct CopyFromArgs {
    /// Repository to copy points from. Default: the repository that each record names.
    #[arg(long, value_name = "URL", env = "KVMB_FROM_REPO", hide_env_values = true, add = repositories())]
    from_repo: Option<String>,

    /// File with the password of that repository. Default: the password of the repository that is copied to.
    #[arg(long, value_name = "FILE", env = "KVMB_FROM_PASSWORD_FILE", hide_env_values = true,
        value_parser = path_or_nothing())]
    from_password_file: Option<PathBuf>,
}

impl CopyFromArgs {
    /// Returns the source of a point: the repository given with a flag, or else `recorded`, which its record names.
    pub(crate) fn source(&self, context: &Context, target: &RepoArgs, recorded: &str) -> Result<RepoArgs, CliError> {
        let named = self.from_repo.as_ref().filter(|repo| !repo.is_empty());
        self.source_at(context, target, named.map_or(recorded, String::as_str))
    }

    /// Returns the source that was given with a flag, if any.
    pub(crate) fn named_source(&self, context: &Context, target: &RepoArgs) -> Result<Option<RepoArgs>, CliError> {
        let named = self.from_repo.as_ref().filter(|repo| !repo.is_empty());
        named.map(|url| self.source_at(context, target, url)).transpose()
    }

    fn source_at(&self, context: &Context, target: &RepoArgs, url: &str) -> Result<RepoArgs, CliError> {
        let url = url.to_owned();
        Ok(RepoArgs { limit_upload: None, ..target.other(context, url, self.from_password_file.clone())? })
    }
}

/// The second repository, which has copies of the first one's points.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Copies")]
pub(crate) struct CopyToArgs {
    /// Second repository. 'backup' copies missing points to it, 'prune' keeps points that are not copied yet, and
    /// 'status' monitors it.
    ///
    /// A point is missing there if it is newer than all copies of its machine, or if the retention rules of the
    /// second repository (in the configuration) would keep it. Points that those rules removed are not copied
    /// again. Without such rules, all points are copied. The upload limit then applies to this repository only.
    ///
    /// Default: $KVMB_COPY_TO, otherwise the backup server of the configuration, unless backups go there directly.
    /// An empty value means no second repository.
    #[arg(long, value_name = "URL", env = "KVMB_COPY_TO", hide_env_values = true, add = repositories())]
    copy_to: Option<String>,

    /// File with the password of the second repository. Default: the password of the first repository.
    #[arg(long, value_name = "FILE", env = "KVMB_COPY_TO_PASSWORD_FILE", hide_env_values = true,
        value_parser = path_or_nothing())]
    copy_to_password_file: Option<PathBuf>,
}

impl CopyToArgs {
    /// Returns the repositories of a backup: the first one, and the second one if there is one.
    pub(crate) fn tiers(&self, context: &Context, first: &RepoArgs) -> Result<(RepoArgs, Option<RepoArgs>), CliError> {
        let Some(url) = self.copy_to.as_ref().filter(|repo| !repo.is_empty()) else {
            return Ok((first.clone(), None));
        };
        let config = context.config();
        let configured = || {
            let of_config = [config.remote_url(), config.second_repo()].contains(&Some(url.clone()));
            let of_server = config.remote_password_file.as_ref().filter(|_| of_config);
            of_server.map(|file| file.value().0.clone())
        };
        let second = first.other(context, url.clone(), self.copy_to_password_file.clone().or_else(configured))?;
        // The configured second repository may be the one that was given as the first.
        let both_of_server = second.is_of_server(context)? && first.is_of_server(context)?;
        if both_of_server || second.storage(context)?.url() == first.storage(context)?.url() {
            return Ok((first.clone(), None));
        }
        if let (Some(one), Some(other)) = (first.local_folder(context)?, second.local_folder(context)?)
            && is_same_folder(&one, &other)
        {
            tracing::warn!("{} and {} are the same folder: there is no second copy", one.display(), other.display());
            return Ok((first.clone(), None));
        }
        Ok((RepoArgs { limit_upload: None, ..first.clone() }, Some(second)))
    }
}

/// Returns whether two paths lead to the same folder, for example through a symbolic link or a bind mount.
fn is_same_folder(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    identity(one).is_some_and(|one| identity(other) == Some(one))
}
