//! The exit codes of kvmb.

/// The exit codes of every command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Everything asked for was done.
    Done = 0,
    /// The command failed; nothing was done, or not everything.
    Failed = 1,
    /// Wrong usage or configuration: nothing was attempted.
    Usage = 2,
    /// Partly done: some machines failed, or a machine was stored without a part that it needs.
    Partial = 3,
    /// Damage was found: in a repository, or in the chain of a machine's points.
    Damage = 4,
    /// Another run holds the machine or the repository.
    Busy = 5,
    /// Interrupted (Ctrl-C, SIGINT), after cleaning up.
    Interrupted = 130,
    /// Terminated (SIGTERM), after cleaning up.
    Terminated = 143,
}

impl ExitCode {
    /// Every code with its sentence in the manual.
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

/// The one exception: the exit code of `kvmb status --nagios`, as for every monitoring plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum PluginState {
    /// All is well.
    Ok = 0,
    /// Something will need attention.
    Warning = 1,
    /// Something is wrong.
    Critical = 2,
    /// The state could not be determined, or the usage was wrong.
    Unknown = 3,
}

impl PluginState {
    /// Every state with its sentence in the manual.
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
    /// The exit code of a command.
    Code(ExitCode),
    /// The exit code of a monitoring plugin.
    Plugin(PluginState),
}

impl Exit {
    /// Returns the process exit code.
    pub fn number(self) -> u8 {
        match self {
            Exit::Code(code) => code as u8,
            Exit::Plugin(state) => state as u8,
        }
    }
}

impl From<u8> for Exit {
    /// Converts the exit code of another kvmb process; an unknown number counts as a failure.
    fn from(number: u8) -> Exit {
        let known = ExitCode::ALL.iter().find(|(code, _)| *code as u8 == number);
        Exit::Code(known.map_or(ExitCode::Failed, |(code, _)| *code))
    }
}

/// Counts the results of a command's machines, and combines them into one exit code.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    done: usize,
    failed: usize,
    busy: usize,
    usage: usize,
    damaged: bool,
}

impl Tally {
    /// Counts a machine (point, disk, file) that succeeded.
    pub(crate) fn done(&mut self) {
        self.done += 1;
    }

    /// Counts a failure with this code.
    pub(crate) fn failed(&mut self, code: ExitCode) {
        match code {
            ExitCode::Damage => self.damaged = true,
            ExitCode::Busy => self.busy += 1,
            ExitCode::Usage => self.usage += 1,
            _ => {}
        }
        self.failed += 1;
    }

    /// Damage takes precedence over a partial failure, and that over a complete failure; "busy" and "usage" apply only
    /// if nothing else happened.
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
    fn exit_code_of_several_results_follows_their_precedence() {
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
