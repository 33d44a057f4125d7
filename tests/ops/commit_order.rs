//! Interruptions at every step of the commit order: kvmb is killed, or its storage fails. After each step, the next run
//! is correct and continues where it should, and nothing is left behind.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::support::call::Running;
use crate::support::chains::*;
use crate::support::change::bitmaps;
use crate::support::{Env, Machine, Output, process};
use kvmb::failpoint::Failpoint;
use serde_json::Value;

/// The machine that is backed up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scene {
    /// A running machine whose chain continues.
    Running,
    /// A stopped machine whose chain continues.
    Off,
    /// A stopped machine that starts a chain.
    BegunOff,
}

/// What happens at the step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Accident {
    /// `kill -9` of kvmb.
    Killed,
    /// The repository's folder disappears, like a share that was disconnected.
    Gone,
    /// The repository becomes read-only.
    ReadOnly,
}

impl Scene {
    /// Whether a run reaches a step. The match is exhaustive, so that a new step must be added here.
    fn passes(self, step: Failpoint) -> bool {
        match step {
            Failpoint::RepositoryOpened
            | Failpoint::ParentFound
            | Failpoint::MachineLocked
            | Failpoint::LeftoversCleared
            | Failpoint::CaptureNoted
            | Failpoint::Begun
            | Failpoint::CaptureOpen
            | Failpoint::FirstChunk
            | Failpoint::AllRead
            | Failpoint::JobEnded
            | Failpoint::IndexStored
            | Failpoint::PointStored
            | Failpoint::CommitNoted
            | Failpoint::CheckpointsSettled
            | Failpoint::CaptureForgotten => true,
            Failpoint::BitmapsAdded => self == Scene::BegunOff,
            // Requires a guest with an agent: see tests/capture/guest.rs.
            Failpoint::Frozen => false,
            // Steps of the creation of a repository: see tests/together/creation.rs.
            Failpoint::ConfigCreated | Failpoint::KeyCreated => false,
            // Steps of a prune: see tests/repo/retention.rs.
            Failpoint::PrunePlanned
            | Failpoint::UnnamedPackRemoved
            | Failpoint::PointForgotten
            | Failpoint::PointsForgotten
            | Failpoint::BlobsCopied
            | Failpoint::CopiesStored
            | Failpoint::NewIndexStored
            | Failpoint::OldIndexRemoved
            | Failpoint::OldIndexGone
            | Failpoint::PackRemoved
            | Failpoint::PacksGone => false,
            // Steps of other commands.
            Failpoint::LockTaken
            | Failpoint::PinStored
            | Failpoint::DrillNoted
            | Failpoint::DrillPrepared
            | Failpoint::DrillCreated
            | Failpoint::DrillRuns
            | Failpoint::DrillEnded
            | Failpoint::KeyAdded
            | Failpoint::KeyExported
            | Failpoint::CopyBegun
            | Failpoint::CopyTransferred
            | Failpoint::CopyStored
            | Failpoint::RestoreWritten
            | Failpoint::RestorePlacedFirst
            | Failpoint::RestorePlaced
            | Failpoint::RestoreDefined
            | Failpoint::RestoreKept
            | Failpoint::RestoreCopied
            | Failpoint::RestoreSwitched => false,
        }
    }
}

fn is_at_or_after(step: Failpoint, other: Failpoint) -> bool {
    let place = |wanted| Failpoint::ALL.iter().position(|step| *step == wanted);
    place(step) >= place(other)
}

#[test]
fn running_backup_recovers_from_a_kill_at_every_step() {
    every_step(Scene::Running, Accident::Killed);
}

#[test]
fn running_backup_recovers_from_lost_storage_at_every_step() {
    every_step(Scene::Running, Accident::Gone);
}

#[test]
fn running_backup_recovers_from_read_only_storage_at_every_step() {
    every_step(Scene::Running, Accident::ReadOnly);
}

#[test]
fn offline_backup_recovers_from_a_kill_at_every_step() {
    every_step(Scene::Off, Accident::Killed);
}

#[test]
fn offline_backup_recovers_from_lost_storage_at_every_step() {
    every_step(Scene::Off, Accident::Gone);
}

#[test]
fn new_offline_chain_recovers_from_a_kill_at_every_step() {
    every_step(Scene::BegunOff, Accident::Killed);
}

#[test]
fn new_offline_chain_recovers_from_read_only_storage_at_every_step() {
    every_step(Scene::BegunOff, Accident::ReadOnly);
}

fn every_step(scene: Scene, accident: Accident) {
    let env = Env::new("commit order");
    let machine = two_disks(&env, "vm");
    if scene == Scene::BegunOff {
        machine.stop();
    }
    let mut repo = init(&env);
    if scene != Scene::BegunOff {
        verified(&machine, &repo);
    }
    if scene == Scene::Off {
        machine.stop();
    }
    for (number, step) in (0..).zip(Failpoint::ALL.into_iter().filter(|step| scene.passes(*step))) {
        if scene == Scene::BegunOff && number > 0 {
            repo = init_at(&env, &format!("repo-{step:?}"));
        }
        eprintln!("{step:?}");
        Try { env: &env, machine: &machine, repo: &repo, scene, accident, step, number }.run();
    }
    // A chain that started while the machine was off continues when it runs.
    if scene != Scene::Running {
        machine.start_paused();
        machine.write("vdb", MIB, 512, 0x33);
        let point = verified(&machine, &repo);
        assert_changed(&point, "vdb", CHUNK);
    }
    finish(&env, &[&repo]);
}

/// An interruption at one step.
struct Try<'a> {
    env: &'a Env,
    machine: &'a Machine<'a>,
    repo: &'a str,
    scene: Scene,
    accident: Accident,
    step: Failpoint,
    number: u8,
}

impl Try<'_> {
    fn run(&self) {
        let machine = self.machine;
        // A stopped machine continues from the same point each time, so it changes in the same place.
        let place = if self.scene == Scene::Running { u64::from(self.number) } else { 3 };
        machine.write("vda", place * MIB, 4096, 0x40 + self.number);
        let points_before = self.points();
        let run = stopped_at(machine, self.repo, &self.step.name(), &[]).unwrap_or_else(|output| {
            panic!("{:?} was not passed: {output}", self.step);
        });
        self.have_the_accident(run);

        let is_committed = is_at_or_after(self.step, Failpoint::PointStored);
        assert_eq!(self.points() - points_before, usize::from(is_committed), "the snapshot file is the commit");
        self.assert_few_checkpoints(2);
        if self.scene == Scene::Running {
            machine.write("vdb", place % 8 * MIB, 4096, 0x40 + self.number);
        }
        let point = verified(machine, self.repo);
        self.assert_goes_on(&point);
        self.assert_nothing_left();

        if self.scene == Scene::BegunOff {
            machine.write("vda", place * MIB, 4096, 0x80 + self.number);
            assert_changed(&backup(machine, self.repo), "vda", CHUNK);
        }
    }

    fn have_the_accident(&self, run: Running) {
        match self.accident {
            Accident::Killed => {
                // Only kvmb itself, without its child processes.
                process::kill(run.pid());
                run.wait();
            }
            Accident::Gone => {
                let elsewhere = format!("{}-elsewhere", self.repo);
                fs::rename(self.repo, &elsewhere).expect("rename");
                let output = go_on(run);
                assert!(!Path::new(self.repo).exists(), "it was made anew in the wrong place");
                fs::rename(&elsewhere, self.repo).expect("rename");
                self.judge(&output);
            }
            Accident::ReadOnly => {
                let read_only = crate::support::mount::ReadOnly::make(self.repo);
                let output = go_on(run);
                drop(read_only);
                self.judge(&output);
            }
        }
    }

    /// A run without its storage fails, unless the point is already stored, and cleans up in either case.
    fn judge(&self, output: &Output) {
        if is_at_or_after(self.step, Failpoint::PointStored) {
            assert_eq!(output.code(), 0, "{output}");
            output.record_of("point");
        } else {
            assert_eq!(output.code(), 1, "{output}");
            output.record_of("failure");
        }
        self.env.assert_nothing_left();
        self.assert_few_checkpoints(1);
    }

    /// Fails unless the next run reads only what changed since the point of its checkpoint.
    #[track_caller]
    fn assert_goes_on(&self, point: &Value) {
        let noted = match self.accident {
            Accident::Killed => is_at_or_after(self.step, Failpoint::CommitNoted),
            // Its own end is orderly.
            _ => is_at_or_after(self.step, Failpoint::PointStored),
        };
        match self.scene {
            Scene::Running => {
                assert_changed(point, "vda", if noted { 0 } else { CHUNK });
                assert_changed(point, "vdb", CHUNK);
            }
            Scene::Off => assert_changed(point, "vda", CHUNK),
            Scene::BegunOff if noted => assert_changed(point, "vda", 0),
            Scene::BegunOff => assert_full(point, "vda", ""),
        }
    }

    fn assert_nothing_left(&self) {
        self.env.assert_nothing_left();
        self.assert_few_checkpoints(1);
        assert_eq!(names_in(self.repo, "locks"), [""; 0], "a lock is left in the repository");
        match self.scene {
            Scene::Running => {
                assert!(!self.machine.is_captured(), "a job is left");
                assert_eq!(self.machine.status(), "prelaunch");
            }
            _ => assert!(self.machine.servers().is_empty()),
        }
    }

    /// Fails if there are more checkpoints than this, in libvirt or in the images.
    #[track_caller]
    fn assert_few_checkpoints(&self, most: usize) {
        let mut places = vec![self.machine.checkpoints()];
        if self.scene != Scene::Running {
            places.extend(["vda", "vdb"].map(|disk| bitmaps(self.machine.image(disk))));
        }
        for names in places {
            let mut chains = BTreeMap::<&str, usize>::new();
            for (chain, _) in names.iter().filter_map(|name| name.rsplit_once('-')) {
                *chains.entry(chain).or_default() += 1;
            }
            assert!(chains.values().all(|count| *count <= most), "{names:?}");
        }
    }

    fn points(&self) -> usize {
        names_in(self.repo, "snapshots").len()
    }
}

fn names_in(repo: &str, folder: &str) -> Vec<String> {
    let entries = fs::read_dir(Path::new(repo).join(folder)).expect("a repository");
    entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}
