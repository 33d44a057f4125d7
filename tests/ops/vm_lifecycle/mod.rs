//! Random events in a machine's life, for the model test.

mod story;

pub use story::Story;

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::Duration;

use rand::RngCore;
use rand::rngs::StdRng;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::chains::{MIB, assert_restores, disk_of, id_of, init_at, ours, stopped_at, try_backup};
use crate::support::{Disk, DiskModel, Env, Machine, Output};
use kvmb::failpoint::Failpoint;

const CLUSTER: u64 = 64 * 1024;
const SECTOR: u64 = 512;

/// The permanent disks of the machine; those on the SCSI bus are added and removed.
const FIXED: [&str; 3] = ["vda", "vdb", "vdc"];
const PLUGGABLE: [&str; 2] = ["sda", "sdb"];

type Models = BTreeMap<String, DiskModel>;

/// A repository and its expected state.
struct Repo {
    path: String,
    /// Its points, oldest first, with the SHA-256 of each disk.
    points: Vec<(String, BTreeMap<String, String>)>,
    /// The disks of which the next backup must read only changes.
    continues: BTreeSet<String>,
    /// Disks that were shrunk since its last checkpoint. A bitmap does not record that, so an audit may report it.
    cut: BTreeSet<String>,
}

/// The machine, the repositories and the random numbers.
pub struct Life<'e> {
    env: &'e Env,
    machine: Machine<'e>,
    repos: Vec<Repo>,
    random: StdRng,
    /// Whether a run was killed and its leftovers are not removed yet.
    has_leftovers: bool,
    /// Whether libvirtd was killed since the last successful backup: its lost state may show only after a release.
    may_be_wedged: bool,
    kills_libvirtd: bool,
}

impl<'e> Life<'e> {
    /// Starts a machine with a qcow2 image of round size, one of odd size, and a raw image.
    pub fn begin(env: &'e Env) -> Life<'e> {
        let repo = |name: &str| Repo {
            path: init_at(env, name),
            points: Vec::new(),
            continues: BTreeSet::new(),
            cut: BTreeSet::new(),
        };
        let repos = vec![repo("a"), repo("b")];
        let machine = env
            .machine("vm")
            .devices_xml("<controller type='scsi' model='virtio-scsi'/>")
            .disk(Disk::qcow2(16 * MIB))
            .disk(Disk::qcow2(5 * MIB + 3 * CLUSTER).option("cluster_size=4k"))
            .disk(Disk::raw(2 * MIB + SECTOR))
            .start_paused();
        Life {
            env,
            machine,
            repos,
            random: story::random(0, 0),
            has_leftovers: false,
            may_be_wedged: false,
            kills_libvirtd: false,
        }
    }

    /// Makes its libvirt a daemon that may be killed as well.
    pub fn with_a_mortal_libvirtd(self) -> Life<'e> {
        Life { kills_libvirtd: true, ..self }
    }

    /// Executes the sequence, and verifies the result at the end.
    pub fn live(mut self, story: &Story) {
        for number in story.steps() {
            self.random = story::random(story.seed(), number);
            let told = self.step(story);
            story.tell(format!("{number}: {told}"));
        }
        self.random = story::random(story.seed(), 0);
        for at in 0..self.repos.len() {
            let told = self.back_up(at, &[]);
            story.tell(format!("the end: {told}"));
        }
        self.env.assert_nothing_left();
        for at in 0..self.repos.len() {
            // Each point was correct when it was made. In the end, restic checks some of them again, and all of their
            // blobs.
            let some: Vec<usize> = (0..2).map(|_| self.below(self.repos[at].points.len() as u64) as usize).collect();
            let repo = &self.repos[at];
            let restic = self.env.restic(&*repo.path);
            assert_eq!(restic.snapshots().len(), repo.points.len(), "points of {}", repo.path);
            for (id, sums) in some.into_iter().map(|number| &repo.points[number]) {
                for (disk, sum) in sums {
                    let path = format!("/vm/{disk}/{disk}.raw");
                    assert_eq!(restic.dump_sha256(id, &path), *sum, "{disk} of point {id}");
                }
            }
            restic.check();
        }
    }

    /// Returns a number below `end`. This is always a single draw, so that the same seed and step give the same
    /// numbers.
    fn below(&mut self, end: u64) -> u64 {
        self.random.next_u64() % end
    }

    fn one_of(&mut self, names: &[String]) -> String {
        let at = self.below(names.len() as u64);
        names[at as usize].clone()
    }

    fn repo(&mut self) -> usize {
        self.below(self.repos.len() as u64) as usize
    }

    fn step(&mut self, story: &Story) -> String {
        let (chance, at) = (self.below(100), self.repo());
        if self.has_leftovers {
            return self.step_after_a_kill(chance, at);
        }
        match chance {
            0..55 => self.change(),
            55..60 => self.resize(),
            60..63 => self.plug(),
            63..66 => self.unplug(),
            66..72 => self.turn_on_or_off(),
            72..74 => self.crash(),
            74..83 => self.back_up(at, &[]),
            83..84 => self.back_up(at, &["--full"]),
            84..86 => self.back_up_by_pipe(at),
            86..94 => self.back_up_with_an_accident(at, story),
            94..97 => self.kill_a_backup(at),
            _ => self.prune(at),
        }
    }

    /// The first to act after a kill: the guest, the operator, or the next backup.
    fn step_after_a_kill(&mut self, chance: u64, at: usize) -> String {
        match (chance, self.machine.is_on()) {
            (0..30, true) => self.change(),
            (30..40, true) => self.turn_on_or_off(),
            (40..45, true) => self.crash(),
            (0..60, _) => {
                let release = || self.env.kvmb(["release", "vm"]).run();
                let output = release();
                let healed = self.heal_if_wedged(&output);
                if healed { release() } else { output }.assert_ok();
                self.has_leftovers = false;
                format!("release{}", if healed { ", once libvirt was healed" } else { "" })
            }
            _ => self.back_up(at, &[]),
        }
    }

    // --- the guest

    /// Writes, zeroes or discards a part of a disk.
    fn change(&mut self) -> String {
        let disk = self.one_of(&self.machine.targets());
        let capacity = self.machine.model(&disk).capacity_bytes();
        let (kind, size, pattern) = (self.below(8), self.below(10), self.below(255) as u8 + 1);
        let most = match size {
            0..5 => 16 * SECTOR,
            5..9 => 4 * CLUSTER,
            _ => 4 * MIB,
        };
        let offset = self.below(capacity / SECTOR) * SECTOR;
        let length = ((self.below(most / SECTOR) + 1) * SECTOR).min(capacity - offset);
        let whole = (offset / CLUSTER * CLUSTER, length.next_multiple_of(CLUSTER));
        let machine = &self.machine;
        let what = match kind {
            0 => {
                machine.zero_keeping(&disk, offset, length);
                "zeroed, keeping its clusters"
            }
            1 => {
                machine.zero(&disk, offset, length);
                "zeroed, letting go"
            }
            // On a file system without holes, a raw image would keep its content.
            2 | 3 if machine.format(&disk) == "qcow2" && whole.0 + whole.1 <= capacity => {
                match machine.try_discard(&disk, whole.0, whole.1) {
                    true => "discarded",
                    false => "not discarded, although asked for",
                }
            }
            4 => {
                machine.write(&disk, offset, length, 0);
                "zeros written"
            }
            5 => {
                let mut bytes = vec![0; length.min(CLUSTER) as usize];
                self.random.fill_bytes(&mut bytes);
                self.machine.write_bytes(&disk, offset, &bytes);
                "noise written"
            }
            _ => {
                machine.write(&disk, offset, length, pattern);
                "written"
            }
        };
        format!("{disk}: {length} bytes from {offset} {what}")
    }

    /// Resizes a disk by whole clusters, because the rest of a truncated one would reappear.
    fn resize(&mut self) -> String {
        let disk = self.one_of(&self.machine.targets());
        let capacity = (self.below(18 * MIB / CLUSTER) + 2 * MIB / CLUSTER) * CLUSTER;
        let before = self.machine.model(&disk).capacity_bytes();
        match self.machine.try_resize(&disk, capacity) {
            Ok(()) => {
                if capacity < before {
                    self.forget(|name| name == disk);
                    self.repos.iter_mut().for_each(|repo| {
                        repo.cut.insert(disk.clone());
                    });
                }
                format!("{disk}: {before} bytes, now {capacity}")
            }
            // QEMU refuses to truncate bitmaps from before a crash.
            Err(error) => format!("{disk}: not resized: {error}"),
        }
    }

    fn plug(&mut self) -> String {
        let (disk, size) = (PLUGGABLE[self.below(2) as usize], self.below(6) + 1);
        if self.machine.targets().iter().any(|there| there == disk) {
            return format!("{disk} is there already");
        }
        let image = Disk::qcow2(size * MIB).bus("scsi");
        self.machine.attach(disk, image);
        self.forget(|name| name == disk);
        format!("{disk} plugged in")
    }

    fn unplug(&mut self) -> String {
        let there: Vec<String> =
            self.machine.targets().into_iter().filter(|disk| !FIXED.contains(&disk.as_str())).collect();
        if there.is_empty() {
            return "nothing to unplug".into();
        }
        let disk = self.one_of(&there);
        self.machine.detach(&disk);
        self.forget(|name| name == disk);
        format!("{disk} unplugged")
    }

    fn turn_on_or_off(&mut self) -> String {
        if self.machine.is_on() {
            self.machine.stop();
            return "stopped".into();
        }
        self.machine.start_again();
        "started".into()
    }

    /// Kills QEMU. The images become the new reference, and no bitmap is valid any more.
    fn crash(&mut self) -> String {
        if !self.machine.is_on() {
            return "off, nothing to crash".into();
        }
        self.machine.kill();
        for disk in self.machine.targets() {
            self.machine.believe_image(&disk);
        }
        self.forget(|_| true);
        "QEMU killed".into()
    }

    /// The next backup may read these disks in full.
    fn forget(&mut self, which: impl Fn(&str) -> bool) {
        for repo in &mut self.repos {
            repo.continues.retain(|disk| !which(disk));
        }
    }

    // --- backups

    /// Makes an undisturbed backup, which must succeed and be correct.
    fn back_up(&mut self, at: usize, args: &[&str]) -> String {
        let output = try_backup(&self.machine, &self.repos[at].path, args);
        self.finish_backup(at, output, args)
    }

    /// Completes a backup that must succeed, and repeats it once if libvirt had to be fixed.
    fn finish_backup(&mut self, at: usize, output: Output, args: &[&str]) -> String {
        let healed = self.heal_if_wedged(&output);
        let output = if healed { try_backup(&self.machine, &self.repos[at].path, args) } else { output };
        self.accept(at, output, args);
        let healed = if healed { ", once libvirt was healed" } else { "" };
        format!("backed up to {} {}{healed}", self.repos[at].path, args.join(" "))
    }

    /// If libvirtd is killed while a job begins, with kvmb or alone, it may lose track of the job. Then kvmb must
    /// report exactly that, with the operator's commands, which are executed here. No other failure is accepted.
    fn heal_if_wedged(&mut self, output: &Output) -> bool {
        let says_so = |failure: &Value| {
            let has = |field: &str, words: &str| failure[field].as_str().is_some_and(|said| said.contains(words));
            has("error", "libvirt has lost track of the backup job") && has("hint", "restart libvirtd")
        };
        if !self.may_be_wedged || output.code() != 1 || !output.records_of("failure").iter().any(says_so) {
            return false;
        }
        assert!(self.machine.is_on(), "a machine that is off has no job: {output}");
        self.machine.stop();
        // Each process starts a new embedded libvirt.
        if self.kills_libvirtd {
            self.env.kill_libvirtd();
            self.env.start_libvirtd();
        }
        self.machine.start_paused();
        self.forget(|_| true);
        true
    }

    fn back_up_by_pipe(&mut self, at: usize) -> String {
        let script = "kvmb snapshot vm -r $A | kvmb hash | kvmb push -r $A | kvmb release";
        let output = self.env.sh(script).env("A", &self.repos[at].path).run();
        self.accept(at, output, &[]);
        format!("backed up to {} by a pipe", self.repos[at].path)
    }

    /// Checks a finished backup of the machine's current state.
    fn accept(&mut self, at: usize, output: Output, args: &[&str]) {
        // For a disk that was shrunk and grown again, an audit may report the bitmap, which could not record that.
        let output = if self.repos[at].cut.is_empty() || output.code() != 4 { output.assert_ok() } else { output };
        let point = output.record_of("point");
        if output.code() == 4 {
            for damage in point["chain_damage"].as_array().expect("damage") {
                let disk = damage["disk"].as_str().expect("a disk");
                assert!(self.repos[at].cut.contains(disk), "the bitmap of {disk} was caught lying: {point:#}");
            }
        }
        for disk in self.repos[at].continues.iter().filter(|_| !args.contains(&"--full")) {
            assert_eq!(disk_of(&point, disk)["read_mode"], "changed", "{disk} was read in full: {point:#}");
        }
        let models = self.machine.models();
        self.keep(at, &point, &models);
        (self.has_leftovers, self.may_be_wedged) = (false, false);
        self.env.assert_nothing_left();
        let machine = &self.machine;
        let repo = &mut self.repos[at];
        // A stopped machine creates no checkpoint: the next backup continues from the earlier one.
        if machine.is_on() {
            repo.cut.clear();
        }
        let bitmaps = machine.targets().into_iter().filter(|disk| machine.format(disk) == "qcow2");
        let trusted = bitmaps.filter(|disk| output.code() != 4 && !repo.cut.contains(disk));
        repo.continues = trusted.collect();
        if self.machine.is_on() {
            assert_eq!(self.machine.status(), "prelaunch", "the machine is not as it was");
        }
        let ours = ours(&self.machine);
        assert!(ours.len() <= 2 * self.repos.len(), "too many checkpoints: {ours:?}");
    }

    /// Restores a point, compares it, and records it.
    fn keep(&mut self, at: usize, point: &Value, models: &Models) {
        assert_restores(self.env, &self.repos[at].path, point, models);
        let sums = models.iter().map(|(disk, model)| (disk.clone(), model.sha256())).collect();
        self.repos[at].points.push((id_of(point).to_owned(), sums));
    }

    /// Holds a backup at a random step of the commit order, lets the guest write, and then continues the backup, or
    /// kills it or its machine.
    fn back_up_with_an_accident(&mut self, at: usize, story: &Story) -> String {
        let step = Failpoint::ALL[self.below(Failpoint::ALL.len() as u64) as usize];
        let (accident, writes) = (self.below(10), self.below(4));
        let path = self.repos[at].path.clone();
        let was_on = self.machine.is_on();
        let name = step.name();
        let run = match stopped_at(&self.machine, &path, &name, &[]) {
            Ok(run) => run,
            Err(output) => {
                let told = self.finish_backup(at, output, &[]);
                return format!("{told}, not passing {name}");
            }
        };
        let position = |step: Failpoint| Failpoint::ALL.iter().position(|known| *known == step);
        let captured = (position(step) >= position(Failpoint::Begun)).then(|| self.machine.models());
        if was_on {
            for _ in 0..writes {
                let told = self.change();
                story.tell(format!("   while a backup to {path} is at {name}: {told}"));
            }
        }
        let accident = match accident {
            0..4 => "goes on",
            4..6 if self.kills_libvirtd => {
                self.env.kill_libvirtd();
                self.env.start_libvirtd();
                "libvirtd killed, goes on"
            }
            4..8 => {
                run.kill();
                "killed"
            }
            8 if was_on && position(step) >= position(Failpoint::AllRead) => {
                self.machine.quit();
                "machine stopped, goes on"
            }
            _ if was_on => {
                self.crash();
                "QEMU killed, goes on"
            }
            _ => "goes on",
        };
        story.tell(format!("   a backup to {path} at {name}: {accident}"));
        run.signal(Signal::CONT);
        let output = run.wait();
        if accident == "goes on" {
            assert!([0, 4].contains(&output.code()), "nothing kept it from its work: {output}");
        }
        let shown = Shown { captured, was_on };
        self.settle(at, &shown, &output);
        self.has_leftovers = accident != "goes on";
        self.may_be_wedged |= self.has_leftovers;
        format!("a backup to {path} with an accident at {name}: exit code {}", output.code())
    }

    /// Kills a backup (`kill -9`) at a random moment.
    fn kill_a_backup(&mut self, at: usize) -> String {
        let after = Duration::from_millis(self.below(1500));
        let path = self.repos[at].path.clone();
        let run = self.env.kvmb(["backup", "-r", &path, "--", "vm"]).spawn();
        thread::sleep(after);
        run.kill();
        let output = run.wait();
        let shown = Shown { captured: Some(self.machine.models()), was_on: self.machine.is_on() };
        self.settle(at, &shown, &output);
        format!("a backup to {path} killed after {after:?}: exit code {}", output.code())
    }

    /// After a run with any result: a point that it made must be correct; nothing else is checked yet.
    fn settle(&mut self, at: usize, shown: &Shown, output: &Output) {
        let path = self.repos[at].path.clone();
        let listed = self.env.kvmb(["points", "-r", &path]).run().assert_ok().records_of("point");
        let known = &self.repos[at].points;
        let new: Vec<&Value> = listed.iter().filter(|point| known.iter().all(|(id, _)| id != id_of(point))).collect();
        assert!(new.len() <= 1, "one run made {} points: {output}", new.len());
        assert!(output.code() != 0 || new.len() == 1, "it says that it is done and made no point: {output}");
        for point in new {
            let now = self.machine.models();
            // If the machine ended meanwhile, it was captured again while off.
            let again = shown.was_on && point["consistency"] == "offline";
            let models = if again { &now } else { shown.captured.as_ref().unwrap_or(&now) };
            let models = models.clone();
            self.keep(at, point, &models);
        }
        (self.has_leftovers, self.may_be_wedged) = (true, true);
    }

    /// Prunes by a rule of kvmb, or removes a random point with restic.
    fn prune(&mut self, at: usize) -> String {
        let (by_rule, draw) = (self.below(2) == 0, self.below(1 << 32) as usize);
        let repo = &mut self.repos[at];
        if repo.points.len() < 2 {
            return "nothing to prune".into();
        }
        // The next backup might have continued from it.
        repo.continues.clear();
        if by_rule {
            let kept = repo.points.len() - draw % repo.points.len();
            let gone = repo.points.len() - kept;
            repo.points.drain(..gone);
            let flags = ["--keep-last", &kept.to_string(), "--max-unused", "0%"];
            self.env.kvmb(["prune", "vm", "-r", &repo.path]).args(flags).run().assert_ok();
            return format!("{gone} points pruned from {}", repo.path);
        }
        let (id, _) = repo.points.remove(draw % repo.points.len());
        self.env.restic(&*repo.path).call(["forget", "--prune", &id]).run().assert_ok();
        format!("{id} pruned from {} by restic", repo.path)
    }
}

/// The possible content of a point from a disturbed run.
struct Shown {
    /// The disks at the instant of the capture, if that had passed before the incident; otherwise None, for their state
    /// after it.
    captured: Option<Models>,
    /// Whether the machine was running when the run began.
    was_on: bool,
}
