//! The context of a request.

pub(super) use super::fields::Fields;
use super::language::Language;
use super::state::Console;
use std::sync::Arc;

/// The context of a request: who requests what.
#[derive(Debug, Clone)]
pub(super) struct Visit {
    pub(super) console: Arc<Console>,
    pub(super) language: Language,
    pub(super) form_token: String,
    /// The requested path.
    pub(super) path: String,
    /// The requested path with its query.
    pub(super) address: String,
    /// The fields of the query.
    pub(super) query: Fields,
    pub(super) form: Fields,
    pub(super) cookie: String,
}

impl Visit {
    /// Whether buttons that change something are shown.
    pub(super) fn may_change(&self) -> bool {
        !self.console.options.read_only
    }

    /// Returns the text in the language of the page.
    pub(super) fn say(&self, english: &'static str, french: &'static str) -> &'static str {
        self.language.say(english, french)
    }

    pub(super) fn end_session(&self) {
        self.console.sessions().close(&self.cookie);
    }
}
