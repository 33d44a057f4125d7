//! The exit codes of kvmb.

/// The exit codes of every command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Everything asked for was done.
    Done = 0,
    /// It failed; nothing was done, or not all of it.
    Failed = 1,
    /// Wrong usage or configuration: nothing was tried.
    Usage = 2,
    /// Partly done: some machines failed, or a machine was stored without a part that it needs.
    Partial = 3,
    /// Damage was found: in a repository, or in the chain of a machine's points.
    Damage = 4,
    /// Another run holds what is needed.
    Busy = 5,
    /// Interrupted (Ctrl-C, SIGINT), after cleaning up.
    Interrupted = 130,
    /// Terminated (SIGTERM), after cleaning up.
    Terminated = 143,
}

impl ExitCode {
    /// Every code with the sentence that the manual gives it.
    pub const ALL: [(ExitCode, &'static str); 8] = [
        (ExitCode::Done, "done"),
        (ExitCode::Failed, "failed"),
        (ExitCode::Usage, "wrong usage or configuration"),
        (ExitCode::Partial, "partially done: some machines failed, or a point lacks a part that the machine needs"),
        (ExitCode::Damage, "damage found"),
        (ExitCode::Busy, "busy: locked by another run"),
        (ExitCode::Interrupted, "interrupted (SIGINT), after cleaning up"),
        (ExitCode::Terminated, "terminated (SIGTERM), after cleaning up"),
    ];
}

/// The one exception: what `kvmb status --nagios` exits with, as every monitoring plugin does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum PluginState {
    /// All is well.
    Ok = 0,
    /// Something will need a hand.
    Warning = 1,
    /// Something is wrong.
    Critical = 2,
    /// It could not be found out; wrong usage, too.
    Unknown = 3,
}

impl PluginState {
    /// Every state with the sentence that the manual gives it.
    pub(crate) const ALL: [(PluginState, &'static str); 4] = [
        (PluginState::Ok, "OK"),
        (PluginState::Warning, "WARNING"),
        (PluginState::Critical, "CRITICAL"),
        (PluginState::Unknown, "UNKNOWN; also wrong usage or configuration"),
    ];
}

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// As a command.
    Code(ExitCode),
    /// As a monitoring plugin.
    Plugin(PluginState),
}

impl Exit {
    /// The number for the system.
    pub fn number(self) -> u8 {
        match self {
            Exit::Code(code) => code as u8,
            Exit::Plugin(state) => state as u8,
        }
    }
}

impl From<u8> for Exit {
    /// How another process of ours ended; a number that is none of ours means that it failed.
    fn from(number: u8) -> Exit {
        let known = ExitCode::ALL.iter().find(|(code, _)| *code as u8 == number);
        Exit::Code(known.map_or(ExitCode::Failed, |(code, _)| *code))
    }
}

/// Counts how the machines of one command fared, and sums it up as one exit code.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    done: usize,
    failed: usize,
    busy: usize,
    usage: usize,
    damaged: bool,
}

impl Tally {
    /// One machine (point, disk, file) was dealt with.
    pub(crate) fn done(&mut self) {
        self.done += 1;
    }

    /// One failed, with this code of its own.
    pub(crate) fn failed(&mut self, code: ExitCode) {
        match code {
            ExitCode::Damage => self.damaged = true,
            ExitCode::Busy => self.busy += 1,
            ExitCode::Usage => self.usage += 1,
            _ => {}
        }
        self.failed += 1;
    }

    /// Damage wins over "some failed", that over "failed"; "busy" and "usage" only speak when nothing else happened.
    pub(crate) fn code(&self) -> ExitCode {
        match (self.damaged, self.done, self.failed) {
            (true, ..) => ExitCode::Damage,
            (_, _, 0) => ExitCode::Done,
            (_, 0, failed) if failed == self.busy => ExitCode::Busy,
            (_, 0, failed) if failed == self.usage => ExitCode::Usage,
            (_, 0, _) => ExitCode::Failed,
            _ => ExitCode::Partial,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::cli::failure::exit_code::*;

    #[test]
    fn four_wins_over_three_and_three_over_one() {
        let code = |done: usize, failures: &[ExitCode]| {
            let mut tally = Tally::default();
            (0..done).for_each(|_| tally.done());
            failures.iter().for_each(|code| tally.failed(*code));
            tally.code()
        };
        assert_eq!(code(0, &[]), ExitCode::Done);
        assert_eq!(code(2, &[]), ExitCode::Done);
        assert_eq!(code(0, &[ExitCode::Failed]), ExitCode::Failed);
        assert_eq!(code(1, &[ExitCode::Failed]), ExitCode::Partial);
        assert_eq!(code(1, &[ExitCode::Failed, ExitCode::Damage]), ExitCode::Damage);
        assert_eq!(code(0, &[ExitCode::Busy, ExitCode::Busy]), ExitCode::Busy);
        assert_eq!(code(0, &[ExitCode::Busy, ExitCode::Failed]), ExitCode::Failed);
        assert_eq!(code(1, &[ExitCode::Busy]), ExitCode::Partial);
    }
}
