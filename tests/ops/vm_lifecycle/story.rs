//! The steps of a random sequence, a record of what happened, and a search for the steps that a failure needs.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::str::FromStr;

use rand::SeedableRng;
use rand::rngs::StdRng;

/// The steps of one sequence.
pub struct Story {
    seed: u64,
    steps: Vec<usize>,
    /// The number of additional runs for finding the steps that a failure needs.
    tries: usize,
    lines: RefCell<Vec<String>>,
    /// The current step: those after a failure are not needed.
    at: RefCell<usize>,
}

/// Returns a step's own random numbers, which do not depend on the other steps.
pub fn random(seed: u64, step: usize) -> StdRng {
    StdRng::seed_from_u64(seed ^ (step as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

impl Story {
    /// Creates a sequence with this seed and length, unless the environment overrides them.
    pub fn new(seed: u64, steps: usize) -> Story {
        let seed = match variable("KVMB_MODEL_SEED").as_deref() {
            None => seed,
            Some("random") => u64::from(rand::random::<u32>()),
            Some(seed) => number("KVMB_MODEL_SEED", seed),
        };
        let steps = match variable("KVMB_MODEL_ONLY") {
            Some(only) => only.split(',').map(|step| number("KVMB_MODEL_ONLY", step)).collect(),
            None => {
                (1..=variable("KVMB_MODEL_STEPS").map_or(steps, |steps| number("KVMB_MODEL_STEPS", &steps))).collect()
            }
        };
        let tries = variable("KVMB_MODEL_SHRINK").map_or(0, |tries| number("KVMB_MODEL_SHRINK", &tries));
        Story::of(seed, steps, tries)
    }

    fn of(seed: u64, steps: Vec<usize>, tries: usize) -> Story {
        Story { seed, steps, tries, lines: RefCell::default(), at: RefCell::default() }
    }

    /// Returns the seed of all random numbers.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Returns the numbers of the steps, one after the other.
    pub fn steps(&self) -> impl Iterator<Item = usize> {
        self.steps.iter().map(|step| {
            *self.at.borrow_mut() = *step;
            *step
        })
    }

    /// Records what happened.
    pub fn tell(&self, line: String) {
        println!("{line}");
        self.lines.borrow_mut().push(line);
    }

    /// Executes the sequence. After a failure, prints how to repeat it, with as few steps as were found to be
    /// sufficient.
    pub fn live(&self, life: impl Fn(&Story)) {
        println!("{}", self.again(&self.steps));
        let Err(failure) = catch_unwind(AssertUnwindSafe(|| life(self))) else { return };
        let lines = self.lines.borrow();
        eprintln!("the end of the story:\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        let last = *self.at.borrow();
        let needed: Vec<usize> = self.steps.iter().copied().take_while(|step| *step <= last).collect();
        eprintln!("to do it again: {}", self.again(&needed));
        if self.tries > 0 {
            let fewest = shrink(needed, self.tries, |steps| {
                println!("trying it with {} steps", steps.len());
                catch_unwind(AssertUnwindSafe(|| life(&Story::of(self.seed, steps.to_vec(), 0)))).is_err()
            });
            eprintln!("{} steps are enough: {}", fewest.len(), self.again(&fewest));
        }
        resume_unwind(failure);
    }

    fn again(&self, steps: &[usize]) -> String {
        let seed = format!("KVMB_MODEL_SEED={}", self.seed);
        if steps.iter().copied().eq(1..=steps.len()) {
            return format!("{seed} KVMB_MODEL_STEPS={}", steps.len());
        }
        let steps: Vec<String> = steps.iter().map(ToString::to_string).collect();
        format!("{seed} KVMB_MODEL_ONLY={}", steps.join(","))
    }
}

/// Returns a smaller set of steps that still fails: omits first halves, then ever smaller parts, at most `tries` times.
fn shrink(mut steps: Vec<usize>, tries: usize, fails: impl Fn(&[usize]) -> bool) -> Vec<usize> {
    let mut left = tries;
    let mut size = steps.len().div_ceil(2);
    while size > 0 {
        let mut start = 0;
        while start < steps.len() {
            if left == 0 {
                return steps;
            }
            left -= 1;
            let mut fewer = steps.clone();
            fewer.drain(start..(start + size).min(steps.len()));
            if fails(&fewer) {
                steps = fewer;
            } else {
                start += size;
            }
        }
        size /= 2;
    }
    steps
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn number<T: FromStr>(name: &str, text: &str) -> T {
    text.parse().unwrap_or_else(|_| panic!("{name}: {text:?} is no number"))
}

#[test]
fn failing_story_is_shrunk_to_its_necessary_steps() {
    let needs_two = |steps: &[usize]| steps.contains(&7) && steps.contains(&93);
    assert_eq!(shrink((1..=100).collect(), 100, needs_two), [7, 93]);
    assert_eq!(shrink((1..=100).collect(), 0, needs_two).len(), 100);
    let story = Story::of(3, vec![1, 2, 3], 0);
    assert_eq!(story.again(&[1, 2, 3]), "KVMB_MODEL_SEED=3 KVMB_MODEL_STEPS=3");
    assert_eq!(story.again(&[2, 5]), "KVMB_MODEL_SEED=3 KVMB_MODEL_ONLY=2,5");
}
