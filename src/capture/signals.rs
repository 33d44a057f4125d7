//! Prevents signals from ending the program between freeze and thaw.
//!
//! A program that handles its signals itself is not affected. In other programs, SIGINT, SIGTERM and SIGHUP are held
//! back while a [`Shield`] exists, and have their default effect when the last one is dropped, so that an interrupt
//! does not leave the guest frozen. SIGKILL cannot be held back; the capture's state file records that a thaw is due.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

const SIGNALS: [i32; 3] = [SIGINT, SIGTERM, SIGHUP];

/// Holds back the signals that end a program.
#[derive(Debug)]
pub(super) struct Shield(());

struct HeldSignals {
    /// Whether a signal ends the program at once.
    default: Arc<AtomicBool>,
    /// Which signals arrived, in the order of [`SIGNALS`].
    came: [Arc<AtomicBool>; 3],
    shields: Mutex<usize>,
}

static HELD: OnceLock<HeldSignals> = OnceLock::new();

impl Shield {
    pub(super) fn raise() -> Shield {
        let held = HELD.get_or_init(HeldSignals::install);
        let mut shields = lock(&held.shields);
        *shields += 1;
        held.default.store(false, Ordering::SeqCst);
        Shield(())
    }
}

impl Drop for Shield {
    fn drop(&mut self) {
        let Some(held) = HELD.get() else { return };
        let mut shields = lock(&held.shields);
        *shields -= 1;
        if *shields > 0 {
            return;
        }
        held.default.store(true, Ordering::SeqCst);
        for (signal, came) in SIGNALS.iter().zip(&held.came) {
            if came.swap(false, Ordering::SeqCst) {
                // This only fails for signals that cannot be handled.
                let _ = signal_hook::low_level::emulate_default_handler(*signal);
            }
        }
    }
}

impl HeldSignals {
    fn install() -> HeldSignals {
        let held =
            HeldSignals { default: Arc::new(AtomicBool::new(true)), came: Default::default(), shields: Mutex::new(0) };
        let taken = signals_taken();
        for (signal, came) in SIGNALS.iter().zip(&held.came) {
            if taken & (1 << (signal - 1)) != 0 {
                continue;
            }
            // Both calls only fail for signals that cannot be handled. The order matters: the default action comes
            // before the record.
            let _ = signal_hook::flag::register_conditional_default(*signal, held.default.clone());
            let _ = signal_hook::flag::register(*signal, came.clone());
        }
        held
    }
}

/// The signals that this process already handles or ignores, as the kernel's mask.
fn signals_taken() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    ["SigCgt:", "SigIgn:"]
        .iter()
        .filter_map(|key| status.lines().find_map(|line| line.strip_prefix(key)))
        .filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .fold(0, |all, mask| all | mask)
}

fn lock(mutex: &Mutex<usize>) -> std::sync::MutexGuard<'_, usize> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
