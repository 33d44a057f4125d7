//! Hints for busy machines, with the machine, disk and process.

use crate::capture::Error;
use crate::capture::holders::Holder;

/// Returns the hint, with a command to copy; None for other errors.
pub(crate) fn way_out(error: &Error) -> Option<String> {
    let quoted = |text: &str| shlex::try_quote(text).ok().map(|text| text.into_owned());
    match error {
        Error::BlockJob { machine, disk, job } => {
            let (machine, disk) = (quoted(machine)?, quoted(disk)?);
            Some(match job.waits_for_pivot() {
                true => format!(
                    "end it: 'virsh blockjob {machine} {disk} --pivot' switches to the new image, 'virsh blockjob \
                     {machine} {disk} --abort' keeps the present one"
                ),
                false => format!(
                    "wait until it is done ('virsh blockjob {machine} {disk} --info'), or end it: virsh blockjob \
                     {machine} {disk} --abort"
                ),
            })
        }
        Error::LiveRestore { machine, .. } => Some(format!("kvmb restore --continue {}", quoted(machine)?)),
        Error::SavedMemory { machine } => {
            let machine = quoted(machine)?;
            Some(format!(
                "start it ('virsh start {machine}') and back it up while it runs, or discard its memory: virsh \
                 managedsave-remove {machine}"
            ))
        }
        Error::OtherJob { machine } => {
            Some(format!("wait until it is done ('virsh domjobinfo {}' shows it)", quoted(machine)?))
        }
        Error::ForeignJob { machine, .. } => {
            Some(format!("let the other backup finish, or end it: virsh domjobabort {}", quoted(machine)?))
        }
        Error::ImageHeld { machine, holders, .. } => Some(image_held(&quoted(machine)?, holders)),
        _ => None,
    }
}

/// Describes what to do about the processes that have an image open.
fn image_held(machine: &str, holders: &[Holder]) -> String {
    let pids: Vec<String> = holders.iter().map(|holder| holder.pid.to_string()).collect();
    let again = format!("then: kvmb backup {machine}");
    match (holders.is_empty(), holders.iter().any(Holder::is_qemu)) {
        (true, _) => format!("no process of this host has it open: look on the hosts that share its storage; {again}"),
        (false, true) => {
            format!("shut down the machine that uses it ('ps -fp {}' shows which); {again}", pids.join(","))
        }
        (false, false) => format!(
            "wait until it is done ('ps -fp {}' shows what it is), or end it: kill {}; {again}",
            pids.join(","),
            pids.join(" ")
        ),
    }
}
