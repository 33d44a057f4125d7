//! What to do about what goes wrong with a capture: hints that name machine, disk and process.

use std::borrow::Cow;

use crate::capture::block_job::BlockJob;
use crate::capture::holders::Holder;

type Hint = Option<Cow<'static, str>>;

fn quoted(text: &str) -> Option<String> {
    shlex::try_quote(text).ok().map(Cow::into_owned)
}

/// A block job: what ends it.
pub fn block_job(machine: &str, disk: &str, job: &BlockJob) -> Hint {
    let (machine, disk) = (quoted(machine)?, quoted(disk)?);
    let hint = match job.waits_for_pivot() {
        true => format!(
            "end it: 'virsh blockjob {machine} {disk} --pivot' goes over to what it made, 'virsh blockjob {machine} \
             {disk} --abort' stays with what is"
        ),
        false => format!(
            "wait until it is done ('virsh blockjob {machine} {disk} --info'), or end it: virsh blockjob {machine} {disk} \
             --abort"
        ),
    };
    Some(hint.into())
}

/// Memory that is saved on disk.
pub fn saved_memory(machine: &str) -> Hint {
    let machine = quoted(machine)?;
    let hint = format!(
        "start it ('virsh start {machine}') and back it up while it runs, or discard its memory: virsh \
         managedsave-remove {machine}"
    );
    Some(hint.into())
}

/// A job that is no backup.
pub fn other_job(machine: &str) -> Hint {
    Some(format!("wait until it is done ('virsh domjobinfo {}' shows it)", quoted(machine)?).into())
}

/// A backup of somebody else.
pub fn foreign_job(machine: &str) -> Hint {
    Some(format!("let the other backup finish, or end it: virsh domjobabort {}", quoted(machine)?).into())
}

/// What to do about the processes that have an image open.
pub fn image_held(machine: &str, holders: &[Holder]) -> Hint {
    let machine = quoted(machine)?;
    let pids: Vec<String> = holders.iter().map(|holder| holder.pid.to_string()).collect();
    let again = format!("then: kvmb backup {machine}");
    let hint = match (holders.is_empty(), holders.iter().any(Holder::is_qemu)) {
        (true, _) => format!("no process of this host has it open: look on the hosts that share its storage; {again}"),
        (false, true) => {
            format!("shut down the machine that uses it ('ps -fp {}' shows which); {again}", pids.join(","))
        }
        (false, false) => format!(
            "wait until it is done ('ps -fp {}' shows what it is), or end it: kill {}; {again}",
            pids.join(","),
            pids.join(" ")
        ),
    };
    Some(hint.into())
}
