//! A machine with continuous writes, and a check which instant of it an image shows.
//!
//! A single writer works through a random sequence of writes over all disks. A set of images shows one instant of the
//! machine if and only if it equals the state after some number of these writes, which is the same for every disk.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::model::blocks_of;
use super::{DiskModel, Machine};

struct Write {
    target: String,
    offset: u64,
    length: u64,
    pattern: u8,
}

/// The writer, as seen by the test that runs concurrently.
pub struct Writer<'w> {
    done: &'w Mutex<Vec<Write>>,
}

impl Writer<'_> {
    /// Returns the number of completed writes.
    pub fn position(&self) -> usize {
        self.done.lock().expect("lock").len()
    }

    /// Waits for this many more writes.
    pub fn wait_for_more(&self, count: usize) {
        let wanted = self.position() + count;
        super::wait_until("the writer goes on", Duration::from_secs(60), || self.position() >= wanted);
    }
}

/// The log of all writes.
pub struct WriteLog {
    start: BTreeMap<String, DiskModel>,
    writes: Vec<Write>,
}

impl Machine<'_> {
    /// Runs `body` during random writes to all disks of this machine.
    pub fn while_writing<T>(&self, seed: u64, body: impl FnOnce(&Writer<'_>) -> T) -> (T, WriteLog) {
        let start = self.models();
        let done = Mutex::new(Vec::new());
        let stop = AtomicBool::new(false);
        let result = thread::scope(|scope| {
            scope.spawn(|| self.write_until(&stop, &done, seed));
            // Stop the writer even if the body panics, because the scope waits for it.
            let _stop = StopOnDrop(&stop);
            body(&Writer { done: &done })
        });
        let writes = done.into_inner().expect("lock");
        (result, WriteLog { start, writes })
    }

    fn write_until(&self, stop: &AtomicBool, done: &Mutex<Vec<Write>>, seed: u64) {
        let mut random = StdRng::seed_from_u64(seed);
        let targets = self.targets();
        let sectors: Vec<u64> = self.models().values().map(|m| m.capacity_bytes() / 512).collect();
        while !stop.load(Ordering::Relaxed) {
            let disk = random.random_range(0..targets.len());
            let length = random.random_range(1..=256).min(sectors[disk]);
            let write = Write {
                target: targets[disk].clone(),
                offset: random.random_range(0..=sectors[disk] - length) * 512,
                length: length * 512,
                // One in eight writes zeros.
                pattern: if random.random_ratio(1, 8) { 0 } else { random.random() },
            };
            self.write(&write.target, write.offset, write.length, write.pattern);
            done.lock().expect("lock").push(write);
            thread::sleep(Duration::from_millis(2));
        }
    }
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl WriteLog {
    /// Returns the number of writes.
    pub fn len(&self) -> usize {
        self.writes.len()
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// Fails unless these images (target, path, format) show the machine at one instant. Returns the first and the last
    /// number of writes for which that is true (they differ if a write changed nothing).
    #[track_caller]
    pub fn assert_one_instant(&self, images: &[(&str, &Path, &str)]) -> (usize, usize) {
        let shown: BTreeMap<&str, DiskModel> =
            images.iter().map(|(target, path, format)| (*target, DiskModel::from_image(path, format))).collect();
        let mut state = self.start.clone();
        let mut differing: BTreeSet<(String, u64)> = BTreeSet::new();
        for (target, image) in &shown {
            let blocks = state[*target].differing_blocks(image);
            differing.extend(blocks.into_iter().map(|block| ((*target).to_owned(), block)));
        }
        let mut matching = Vec::new();
        let mut least = (differing.len(), 0);
        if differing.is_empty() {
            matching.push(0);
        }
        for (index, write) in self.writes.iter().enumerate() {
            let model = state.get_mut(&write.target).expect("disk");
            model.fill(write.offset, write.length, write.pattern);
            let Some(image) = shown.get(write.target.as_str()) else {
                continue;
            };
            for block in blocks_of(write.offset, write.length) {
                let key = (write.target.clone(), block);
                if model.same_block(image, block) {
                    differing.remove(&key);
                } else {
                    differing.insert(key);
                }
            }
            if differing.is_empty() {
                matching.push(index + 1);
            }
            least = least.min((differing.len(), index + 1));
        }
        match (matching.first(), matching.last()) {
            (Some(first), Some(last)) => (*first, *last),
            _ => panic!(
                "the images show no instant of the machine: nearest is the state after {} of {} writes, {} blocks of \
                 64 KiB differ",
                least.1,
                self.writes.len(),
                least.0
            ),
        }
    }
}
