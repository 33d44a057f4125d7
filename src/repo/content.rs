//! The blobs of one file, in order.

use std::ops::Range;

use super::Id;

/// A list of blob ids in which repetitions cost almost nothing: the zeros of a sparse disk are millions of copies of
/// the same id.
///
/// Memory: 32 bytes for each id that differs from the previous one, and 24 more if it is repeated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content {
    /// The first id of each run.
    heads: Vec<Id>,
    /// The runs longer than one, in order.
    repeats: Vec<Repeat>,
    length: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Repeat {
    head: usize,
    /// The position of the run in the file, in blobs.
    start: u64,
    /// The length of the run: at least 2.
    count: u64,
}

impl Content {
    /// Returns an empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends one blob.
    pub fn push(&mut self, id: Id) {
        self.push_run(id, 1);
    }

    /// Appends the same blob `count` times.
    pub(crate) fn push_run(&mut self, id: Id, count: u64) {
        if count == 0 {
            return;
        }
        let start = self.length;
        self.length += count;
        if self.heads.last() != Some(&id) {
            self.heads.push(id);
            if count > 1 {
                let head = self.heads.len() - 1;
                self.repeats.push(Repeat { head, start, count });
            }
            return;
        }
        let head = self.heads.len() - 1;
        match self.repeats.last_mut() {
            Some(repeat) if repeat.head == head => repeat.count += count,
            _ => self.repeats.push(Repeat { head, start: start - 1, count: count + 1 }),
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> u64 {
        self.length
    }

    /// Returns the id of the blob at `position`.
    #[cfg(test)]
    pub(crate) fn get(&self, position: u64) -> Option<Id> {
        self.runs_in(position..position.saturating_add(1)).next().map(|(id, _)| id)
    }

    /// Returns every id, repeated ones as often as they occur.
    pub fn iter(&self) -> impl Iterator<Item = Id> + '_ {
        self.runs().flat_map(|(id, count)| (0..count).map(move |_| id))
    }

    /// Returns the runs of equal ids with their lengths.
    pub(crate) fn runs(&self) -> impl Iterator<Item = (Id, u64)> + '_ {
        self.runs_in(0..self.length)
    }

    /// Like [`Content::runs`], for a part of the file, in blobs. Positions beyond the end are ignored.
    pub(crate) fn runs_in(&self, range: Range<u64>) -> impl Iterator<Item = (Id, u64)> + '_ {
        let end = range.end.min(self.length);
        let mut position = range.start;
        // The first repeat that does not end before the range. The position determines the head.
        let mut repeat = self.repeats.partition_point(|repeat| repeat.start + repeat.count <= position);
        std::iter::from_fn(move || {
            if position >= end {
                return None;
            }
            let here = self.repeats.get(repeat);
            let (head, run_end) = match here {
                Some(run) if run.start <= position => (run.head, run.start + run.count),
                _ => {
                    let (head, start) = match repeat.checked_sub(1).map(|i| &self.repeats[i]) {
                        Some(before) => (before.head + 1, before.start + before.count),
                        None => (0, 0),
                    };
                    // A head between two repeats stands for one blob.
                    (head + (position - start) as usize, position + 1)
                }
            };
            if here.is_some_and(|run| run_end == run.start + run.count) {
                repeat += 1;
            }
            let count = run_end.min(end) - position;
            position += count;
            Some((self.heads[head], count))
        })
    }
}

impl Extend<Id> for Content {
    fn extend<T: IntoIterator<Item = Id>>(&mut self, ids: T) {
        for id in ids {
            self.push(id);
        }
    }
}

impl FromIterator<Id> for Content {
    fn from_iter<T: IntoIterator<Item = Id>>(ids: T) -> Self {
        let mut content = Content::new();
        content.extend(ids);
        content
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(number: u8) -> Id {
        Id::from_bytes([number; 32])
    }

    proptest! {
        #[test]
        fn content_matches_a_plain_list(
            runs in proptest::collection::vec((0u8..4, 0u64..5), 0..40),
            start in 0u64..50,
            length in 0u64..50,
        ) {
            let mut content = Content::new();
            let mut model = Vec::new();
            for (number, count) in runs {
                content.push_run(id(number), count);
                model.extend((0..count).map(|_| id(number)));
            }
            prop_assert_eq!(content.len(), model.len() as u64);
            prop_assert_eq!(content.iter().collect::<Vec<_>>(), model.clone());
            prop_assert_eq!(&model.iter().copied().collect::<Content>(), &content);
            for position in 0..model.len() + 2 {
                prop_assert_eq!(content.get(position as u64), model.get(position).copied());
            }
            let end = (start + length).min(model.len() as u64);
            let wanted = model.get(start as usize..end.max(start) as usize).unwrap_or_default();
            let part: Vec<Id> = content
                .runs_in(start..start + length)
                .flat_map(|(id, count)| std::iter::repeat_n(id, count as usize))
                .collect();
            prop_assert_eq!(part, wanted);
            let runs: Vec<_> = content.runs().collect();
            prop_assert!(runs.windows(2).all(|pair| pair[0].0 != pair[1].0));
        }
    }

    #[test]
    fn two_tebibytes_of_zeros_are_one_run() {
        let mut content = Content::new();
        content.push_run(id(0), 4 << 20);
        content.push_run(id(0), 4 << 20);
        assert_eq!(content.runs().collect::<Vec<_>>(), [(id(0), 8 << 20)]);
        assert_eq!((content.heads.len(), content.repeats.len()), (1, 1));
    }
}
