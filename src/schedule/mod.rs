//! When backups run: what crontab(5) expressions mean.

mod cron;
mod field;

pub use cron::{Cron, CronError};
pub use field::Field;
