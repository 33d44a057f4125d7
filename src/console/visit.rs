//! What every page knows of its request.

pub(super) use super::fields::Fields;
use super::language::Language;
use super::state::Console;
use std::sync::Arc;

/// Who asks for what: what every page knows of its request.
#[derive(Debug, Clone)]
pub(super) struct Visit {
    pub(super) console: Arc<Console>,
    pub(super) language: Language,
    /// The token of this session's forms.
    pub(super) form_token: String,
    /// The path, as it was asked for.
    pub(super) path: String,
    /// The path with what is behind it, as it was asked for.
    pub(super) address: String,
    /// The fields behind `?`.
    pub(super) query: Fields,
    /// The fields of the form.
    pub(super) form: Fields,
    /// The cookie of this session.
    pub(super) cookie: String,
}

impl Visit {
    /// Whether buttons that change something are shown.
    pub(super) fn may_change(&self) -> bool {
        !self.console.options.read_only
    }

    /// The text in the language of the page.
    pub(super) fn say(&self, english: &'static str, french: &'static str) -> &'static str {
        self.language.say(english, french)
    }

    pub(super) fn end_session(&self) {
        self.console.sessions().close(&self.cookie);
    }
}
