//! Drills: the form that starts one, and the result, screen and console of a machine's last one.

mod form;
mod kept;
mod last;
mod outcome;
mod overview;
mod served;

pub(super) use form::{Wish, form, start};
pub(super) use last::page;
pub(super) use outcome::{Drilled, line, of_job, panel};
pub(super) use overview::{last_ones, section, ways};
pub(super) use served::{console_of_job, console_of_machine, screenshot_of_job, screenshot_of_machine};
