//! Restore points: a calendar and a list, one point, and actions on it.

pub(super) mod actions;
pub(super) mod calendar;
pub(super) mod list;
pub(super) mod lookup;
mod one;

pub(super) use one::page;
