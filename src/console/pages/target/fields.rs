//! Fields that several forms of the page share, and their errors.

use crate::console::html;
use crate::console::pages::server_address::FIELDS;
use maud::{Markup, html};

/// The error of a field.
pub(super) type FieldError = (&'static str, String);

/// The fields for a typed fingerprint and the password, for their errors.
pub(super) const FINGERPRINT: &str = "fingerprint";
pub(super) const PASSWORD: &str = "ssh_password";

/// Returns the error of a field.
pub(super) fn error_of<'e>(errors: &'e [FieldError], key: &str) -> Option<&'e str> {
    errors.iter().find(|(known, _)| *known == key).map(|(_, error)| error.as_str())
}

/// Returns the error as a line below the field.
pub(super) fn error_line(id: &str, error: Option<&str>) -> Markup {
    html! {
        @if let Some(error) = error {
            p class="err" id={(id) "-e"} { (html::icon("crit")) span class="brk" { (error) } }
        }
    }
}

/// Returns the address as hidden fields of another form.
pub(super) fn hidden_address(values: &dyn Fn(&str) -> String) -> Markup {
    html! { @for of in &FIELDS { input type="hidden" name={"k." (of.key)} value=(values(of.key)); } }
}
