//! Queries to the guest agent: whether it answers, what system the guest is, and the result of a command.

use crate::capture::Result;
use crate::capture::transient::TransientMachine;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The time limit for one answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// The number of characters kept of a command's output.
const OUTPUT_CHARS: usize = 2000;

/// Information about the guest, from its agent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct GuestFacts {
    /// The name of the operating system.
    pub(super) system: Option<String>,
    /// Whether the guest is Windows.
    pub(super) is_windows: bool,
    /// The mount points of the file systems.
    pub(super) mount_points: Vec<String>,
}

/// The result of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CommandResult {
    pub(super) is_success: bool,
    /// The output, preceded by the exit status if the command failed.
    pub(super) output: String,
}

impl CommandResult {
    /// The result of a command with this exit code, or `None` if a signal ended it.
    pub(super) fn new(code: Option<i64>, output: &str) -> CommandResult {
        let output: String = output.trim().chars().take(OUTPUT_CHARS).collect();
        match code {
            Some(0) => CommandResult { is_success: true, output },
            code => {
                let how = code.map_or("ended by a signal".to_owned(), |code| format!("exit code {code}"));
                let output = if output.is_empty() { how } else { format!("{how}: {output}") };
                CommandResult { is_success: false, output }
            }
        }
    }
}

fn ask(machine: &TransientMachine, command: Value) -> Result<Value> {
    let answer = machine.ask_agent(&command.to_string(), ANSWER_LIMIT)?;
    let answer: Value = serde_json::from_str(&answer).unwrap_or_default();
    Ok(answer.get("return").cloned().unwrap_or_default())
}

/// Whether the agent answers.
pub(super) fn answers(machine: &TransientMachine) -> bool {
    ask(machine, json!({"execute": "guest-ping"})).is_ok()
}

/// Returns the information that the agent provides. Each item is optional.
pub(super) fn facts(machine: &TransientMachine) -> GuestFacts {
    let system = ask(machine, json!({"execute": "guest-get-osinfo"})).unwrap_or_default();
    let mounts = ask(machine, json!({"execute": "guest-get-fsinfo"})).unwrap_or_default();
    let text = |name: &str| system.get(name).and_then(Value::as_str);
    let mounted = mounts.as_array().into_iter().flatten();
    let mut mount_points: Vec<String> =
        mounted.filter_map(|mount| Some(mount.get("mountpoint")?.as_str()?.to_owned())).collect();
    mount_points.sort();
    GuestFacts {
        system: text("pretty-name").or_else(|| text("name")).or_else(|| text("kernel-release")).map(str::to_owned),
        is_windows: text("id") == Some("mswindows"),
        mount_points,
    }
}

/// Runs a command in the guest's shell. Returns `None` if it does not end in time.
pub(super) fn run(
    machine: &TransientMachine,
    facts: &GuestFacts,
    command: &str,
    limit: Duration,
) -> Result<Option<CommandResult>> {
    let (shell, flag) = if facts.is_windows { ("cmd.exe", "/c") } else { ("/bin/sh", "-c") };
    let started = ask(
        machine,
        json!({
            "execute": "guest-exec",
            "arguments": {"path": shell, "arg": [flag, command], "capture-output": true},
        }),
    )?;
    let pid = started.get("pid").cloned().unwrap_or_default();
    let end = Instant::now() + limit;
    loop {
        let status = ask(machine, json!({"execute": "guest-exec-status", "arguments": {"pid": pid}}))?;
        if status.get("exited").and_then(Value::as_bool) == Some(true) {
            let code = status.get("exitcode").and_then(Value::as_i64);
            let output: String = ["out-data", "err-data"]
                .into_iter()
                .filter_map(|name| STANDARD.decode(status.get(name)?.as_str()?).ok())
                .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
                .collect();
            return Ok(Some(CommandResult::new(code, &output)));
        }
        if Instant::now() > end {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}
