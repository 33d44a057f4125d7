//! `kvmb man`

mod first_week;
mod page;
mod records;
mod roff;

use crate::cli::failure::CliError;
use crate::cli::session::{About, Session};
use crate::ops::Error;
use crate::record::{Action, Record};
use page::pages;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Show the manual page, or write all manual pages to a folder.
///
/// Packages install the pages for you. With a folder, prints an 'action' record for each page.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb man | man -l -
  kvmb man /usr/local/share/man/man1")]
pub(crate) struct ManArgs {
    /// Folder for the pages (kvmb.1, kvmb-backup.1 and so on).
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,

    /// Show what would be done without doing it.
    #[arg(short = 'n', long, requires = "folder")]
    dry_run: bool,
}

impl ManArgs {
    pub(crate) fn run(self, session: &mut Session, grammar: clap::Command) -> Result<(), CliError> {
        let Some(folder) = &self.folder else {
            if let Some(main) = pages(grammar)?.into_iter().next() {
                session.text(main.text.as_bytes());
            }
            return Ok(());
        };
        for page in pages(grammar)? {
            match self.write(&folder.join(&page.file), &page.text) {
                Ok(action) => session.done(Record::Action(action)),
                Err(error) => session.fail(About::default(), error),
            }
        }
        Ok(())
    }

    fn write(&self, path: &Path, text: &str) -> Result<Action, Error> {
        let old = match fs::read(path) {
            Ok(old) => Some(old),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(Error::io("read", path)(error)),
        };
        let changed = old.as_deref() != Some(text.as_bytes());
        if changed && !self.dry_run {
            fs::write(path, text).map_err(Error::io("write", path))?;
        }
        Ok(Action {
            action: "man".into(),
            target: path.to_string_lossy().into_owned(),
            changed,
            reason: match (changed, self.dry_run) {
                (false, _) => "the page is up to date",
                (true, true) => "the page would be written",
                (true, false) => "the page was written",
            }
            .into(),
            dry_run: self.dry_run,
            extra: Default::default(),
        })
    }
}
