//! The positions of blobs on a disk.

use super::super::chunk_map::BlobRun;
use crate::repo::Id;

/// The runs of a disk. They cover it from its start to its end.
#[derive(Debug)]
pub(super) struct BlobRuns(Vec<BlobRun>);

impl BlobRuns {
    /// Takes the runs in the order of their offsets.
    pub(super) fn new(runs: impl Iterator<Item = BlobRun>) -> BlobRuns {
        BlobRuns(runs.collect())
    }

    /// The run that contains this offset.
    pub(super) fn at(&self, offset: u64) -> Option<&BlobRun> {
        let after = self.0.partition_point(|run| run.offset <= offset);
        self.0.get(after.checked_sub(1)?)
    }

    /// The first offset from `offset` on that is not in a run of zeros.
    pub(super) fn next_data(&self, offset: u64) -> u64 {
        self.at(offset).filter(|run| run.id.is_none()).map_or(offset, BlobRun::end)
    }

    /// The blobs of the next `data_bytes` bytes of data from `offset` on. A run of equal blobs counts once.
    pub(super) fn blobs_from(&self, offset: u64, data_bytes: u64) -> Vec<Id> {
        let first = self.0.partition_point(|run| run.end() <= offset);
        let (mut ids, mut found_bytes) = (Vec::new(), 0);
        for run in &self.0[first..] {
            if found_bytes >= data_bytes {
                break;
            }
            if let Some(id) = run.id {
                ids.push(id);
                found_bytes += run.blob_bytes.min(run.length);
            }
        }
        ids
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_runs_are_skipped_when_looking_for_data() {
        let id = |number: u8| Id::hash(&[number]);
        let run = |offset, length, id| BlobRun { offset, length, blob_bytes: 10, id };
        let runs = BlobRuns::new(
            [
                run(0, 10, Some(id(1))),
                run(10, 1000, None),
                run(1010, 10, Some(id(2))),
                run(1020, 30, Some(id(3))),
                run(1050, 10, Some(id(4))),
                run(1060, 5, None),
            ]
            .into_iter(),
        );
        assert_eq!(
            [0, 9, 10, 500, 1010, 1060, 1065].map(|at| runs.next_data(at)),
            [0, 9, 1010, 1010, 1010, 1065, 1065]
        );
        assert_eq!(runs.blobs_from(0, 20), [id(1), id(2)]);
        assert_eq!(runs.blobs_from(10, 20), [id(2), id(3)], "equal blobs are read once");
        assert_eq!(runs.blobs_from(1030, 100), [id(3), id(4)]);
        assert_eq!(runs.blobs_from(1060, 100), []);
        assert_eq!(runs.at(1049).map(|run| run.id), Some(Some(id(3))));
    }
}
