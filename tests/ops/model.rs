//! The model test: random events in a machine's life. After every backup, the point is restored and every byte compared
//! with the model in memory.
//!
//! A sequence consists of writes, zeros with and without unmapping, discards, resizes, added and removed disks, stops,
//! starts, crashes, backups to two repositories - undisturbed, killed at a random moment, or held at a random step of
//! the commit order while the guest continues to write, stops or crashes - and prunes.
//!
//! | variable | means |
//! | --- | --- |
//! | `KVMB_MODEL_SEED` | another sequence than CI's; `random` for a new one |
//! | `KVMB_MODEL_STEPS` | another length |
//! | `KVMB_MODEL_ONLY` | only these steps: `3,17,90` |
//! | `KVMB_MODEL_SHRINK` | after a failure, the number of additional runs to find the steps that are needed |
//!
//! `make model-night` runs for a night. A failure prints the seed and the sequence so far. The same seed gives the same
//! sequence, except for the effects of kills at random moments. Each step draws its own random numbers, so that other
//! steps can be omitted.

use crate::support::Env;
use crate::vm_lifecycle::{Life, Story};

#[test]
fn random_lifecycle_points_are_correct_with_the_embedded_driver() {
    Story::new(20_261_125, 220).live(|story| {
        let env = Env::new("model");
        Life::begin(&env).live(story);
    });
}

#[test]
fn random_lifecycle_points_are_correct_with_a_killed_libvirtd() {
    Story::new(7_112_026, 60).live(|story| {
        let env = Env::with_libvirtd("model libvirtd");
        Life::begin(&env).with_a_mortal_libvirtd().live(story);
    });
}
