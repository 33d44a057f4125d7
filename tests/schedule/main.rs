//! Cron expressions, crontabs and systemd timers.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod cron_expressions;
mod installation;
