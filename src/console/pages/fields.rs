//! Fields of forms, with their errors.

use crate::console::html;
use crate::console::toolbox::Answer;
use crate::console::visit::{Fields, Visit};
use maud::{Markup, html};

/// The errors of a form's values.
#[derive(Debug, Default)]
pub(super) struct FieldErrors(Vec<(String, String)>);

impl FieldErrors {
    pub(super) fn one(field: &str, error: impl Into<String>) -> FieldErrors {
        FieldErrors(vec![(field.to_owned(), error.into())])
    }

    pub(super) fn add(&mut self, field: &str, error: impl Into<String>) {
        self.0.push((field.to_owned(), error.into()));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the error of a field.
    pub(super) fn of(&self, field: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == field).map(|(_, error)| error.as_str())
    }

    /// Assigns the errors of an answer to the fields whose options they mention. Other errors have no field.
    pub(super) fn of_answer(answer: &Answer, fields: &[(&str, &str)]) -> FieldErrors {
        let mut errors = FieldErrors::default();
        for failure in answer.failures() {
            // Take the longest matching option: `--limit-read` is not `--limit`.
            let named = fields.iter().filter(|(_, option)| failure.error.contains(option));
            let field = named.max_by_key(|(_, option)| option.len()).map_or("", |(field, _)| field);
            errors.add(field, failure.error.clone());
        }
        errors
    }

    /// Returns the errors without a field in this form, to be shown above it.
    pub(super) fn above(&self, fields: &[(&str, &str)]) -> Markup {
        let is_elsewhere = |name: &str| !fields.iter().any(|(field, _)| *field == name);
        html! {
            @for (_, error) in self.0.iter().filter(|(field, _)| is_elsewhere(field)) {
                div class="note crit" role="alert" { (html::icon("crit")) p class="brk" { (error) } }
            }
        }
    }
}

/// A form: its values and their errors.
pub(super) struct Form<'f> {
    pub(super) typed: &'f Fields,
    pub(super) errors: &'f FieldErrors,
}

impl Form<'_> {
    /// Returns the value of a field.
    pub(super) fn value(&self, name: &str) -> &str {
        self.typed.get(name).unwrap_or_default()
    }

    /// Returns a text field.
    pub(super) fn text(&self, name: &str, label: &str, help: &str, placeholder: &str) -> Markup {
        self.text_with(name, label, help, placeholder, "")
    }

    /// Like `text`, with a default value.
    pub(super) fn text_with(&self, name: &str, label: &str, help: &str, placeholder: &str, value: &str) -> Markup {
        self.text_at(&format!("f-{name}"), name, [label, help, placeholder, value])
    }

    /// Like `text_with`, for an element with this id: label, help, placeholder and value.
    pub(super) fn text_at(&self, id: &str, name: &str, [label, help, placeholder, value]: [&str; 4]) -> Markup {
        let error = self.errors.of(name);
        let described = [(!help.is_empty()).then(|| format!("{id}-h")), error.map(|_| format!("{id}-e"))];
        let described: Vec<String> = described.into_iter().flatten().collect();
        html! {
            div class="field" {
                label for=(id) { (label) }
                input id=(id) name=(name) class="w-m mono" autocomplete="off" spellcheck="false"
                    value=(self.typed.get(name).unwrap_or(value))
                    placeholder=[(!placeholder.is_empty()).then_some(placeholder)]
                    aria-invalid=[error.map(|_| "true")]
                    aria-describedby=[(!described.is_empty()).then(|| described.join(" "))];
                @if !help.is_empty() { span class="help" id={(id) "-h"} { (help) } }
                (self.error(id, name))
            }
        }
    }

    /// Returns a selection: values and their labels. The first is selected by default.
    pub(super) fn select(&self, name: &str, label: &str, help: &str, choices: &[(&str, &str)]) -> Markup {
        let (id, chosen) = (format!("f-{name}"), self.value(name));
        html! {
            div class="field" {
                label for=(id) { (label) }
                select id=(id) name=(name) aria-describedby=[(!help.is_empty()).then(|| format!("{id}-h"))] {
                    @for (value, words) in choices { option value=(value) selected[*value == chosen] { (words) } }
                }
                @if !help.is_empty() { span class="help" id={(id) "-h"} { (help) } }
                (self.error(&id, name))
            }
        }
    }

    /// Returns a checkbox.
    pub(super) fn check(&self, name: &str, label: &str, help: &str) -> Markup {
        html! {
            label class="check" {
                input type="checkbox" name=(name) value="1" checked[self.typed.is_set(name)];
                span { (label) @if !help.is_empty() { " " span class="help nw" { (help) } } }
            }
        }
    }

    fn error(&self, id: &str, name: &str) -> Markup {
        html! {
            @if let Some(error) = self.errors.of(name) {
                p class="err" id={(id) "-e"} { (html::icon("crit")) span class="brk" { (error) } }
            }
        }
    }
}

/// Returns a radio button, with the fields that belong to it.
pub(super) fn choice(value: &str, checked: bool, title: &str, help: &str, more: Markup) -> Markup {
    html! {
        div class="choice" {
            label {
                input type="radio" name="where" value=(value) checked[checked];
                b { (title) }
                span class="help" { (help) }
            }
            div class="more" { (more) }
        }
    }
}

/// Returns a field in which the user confirms a destructive action by typing the machine's name.
pub(super) fn typed_name(label: &str, machine: &str, error: Option<&str>) -> Markup {
    html! {
        div class="field" {
            label for="confirm" { (label) code class="brk" { (machine) } }
            input id="confirm" name="confirm" class="w-m mono" required autocomplete="off" spellcheck="false"
                aria-invalid=[error.map(|_| "true")] aria-describedby=[error.map(|_| "confirm-e")];
            @if let Some(error) = error {
                p class="err" id="confirm-e" role="alert" { (html::icon("crit")) span { (error) } }
            }
        }
    }
}

/// Encodes fields as a query: `a=1&b=2`.
pub(super) fn query_of<'f>(fields: impl Iterator<Item = (&'f str, &'f str)>) -> String {
    let fields: Vec<String> =
        fields.map(|(name, value)| format!("{}={}", html::segment(name), html::segment(value))).collect();
    fields.join("&")
}

/// Appends a query to a path, unless it is empty.
pub(super) fn with_query(path: &str, query: &str) -> String {
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}

/// Returns a note that a list is empty, with the command that creates the first entry.
pub(super) fn none_yet(visit: &Visit, sentence: &str, words: &[&str]) -> Markup {
    html! { p { (sentence) } (html::command(visit, words)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_round_trips_special_characters() {
        let fields = Fields::parse("a=x%26y&b=%3Cb%3E&c=+");
        let query = query_of(fields.iter());
        assert_eq!(query, "a=x%26y&b=%3Cb%3E&c=%20");
        assert_eq!(Fields::parse(&query), fields);
    }
}
