//! The model test: a machine's life at random, and after every backup the point is restored and every byte compared
//! with what the model in memory says.
//!
//! A sequence is made of writes, zeros with and without letting go, discards, resizes, disks that come and go, stops,
//! starts, crashes, backups into two repositories - left alone, killed at a random moment, or held at a random step of
//! the commit order while the guest goes on writing, stops or crashes - and points that are pruned.
//!
//! | variable | means |
//! | --- | --- |
//! | `KVMB_MODEL_SEED` | another sequence than CI's; `random` is one that nobody has seen |
//! | `KVMB_MODEL_STEPS` | another length |
//! | `KVMB_MODEL_ONLY` | only these steps: `3,17,90` |
//! | `KVMB_MODEL_SHRINK` | after a failure, so many lives more to find the steps that it needs |
//!
//! `make model-night` is a good night's work. A failure prints the seed and the story until then. The same seed is the
//! same story, but for what a kill at a moment of the clock comes to; each step draws its own numbers, whichever others
//! are left out.

use crate::support::Env;
use crate::vm_lifecycle::{Life, Story};

#[test]
fn every_point_of_a_random_life_with_the_embedded_driver_is_right() {
    Story::new(20_261_125, 220).live(|story| {
        let env = Env::new("model");
        Life::begin(&env).live(story);
    });
}

#[test]
fn every_point_of_a_random_life_with_a_libvirtd_that_is_killed_is_right() {
    Story::new(7_112_026, 60).live(|story| {
        let env = Env::with_libvirtd("model libvirtd");
        Life::begin(&env).with_a_mortal_libvirtd().live(story);
    });
}
