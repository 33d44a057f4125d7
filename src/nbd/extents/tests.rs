//! Compares the map with a model that knows every single byte.

use proptest::prelude::*;

use super::*;

/// The properties of a byte: zero, dirty.
type Byte = (bool, Option<bool>);

fn status(runs: &[(u32, u32)]) -> Vec<StatusExtent> {
    runs.iter().map(|&(length, flags)| StatusExtent { length, flags }).collect()
}

fn flags_of_bytes(extents: &[StatusExtent]) -> Vec<u32> {
    extents.iter().flat_map(|extent| std::iter::repeat_n(extent.flags, extent.length as usize)).collect()
}

fn bytes_of(extents: &[Extent]) -> Vec<Byte> {
    extents.iter().flat_map(|extent| std::iter::repeat_n((extent.zero, extent.dirty), extent.length as usize)).collect()
}

fn extents_of(bytes: &[Byte], cut_at: &[usize]) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::new();
    for (offset, &(zero, dirty)) in bytes.iter().enumerate() {
        match extents.last_mut() {
            Some(last) if (last.zero, last.dirty) == (zero, dirty) && !cut_at.contains(&offset) => {
                last.length += 1;
            }
            _ => extents.push(Extent { offset: offset as u64, length: 1, zero, dirty }),
        }
    }
    extents
}

fn naive_state(chunk: &[Byte]) -> ChunkState {
    let zero = chunk.iter().all(|byte| byte.0);
    if chunk.iter().all(|byte| byte.1 == Some(false)) {
        ChunkState::Clean { zero }
    } else if zero {
        ChunkState::Zero
    } else {
        ChunkState::Data
    }
}

fn mapper(size_bytes: u64, block: u64, allocation: bool, bitmap: bool) -> Mapper {
    Mapper {
        size_bytes,
        position: 0,
        block,
        has_allocation: allocation,
        bitmap: bitmap.then(|| "qemu:dirty-bitmap:b".to_owned()),
    }
}

fn answer(allocation: &[(u32, u32)], bitmap: &[(u32, u32)]) -> Vec<ContextStatus> {
    let context = |name: &str, runs| ContextStatus { context: name.to_owned(), extents: status(runs) };
    vec![context("qemu:dirty-bitmap:b", bitmap), context(BASE_ALLOCATION, allocation)]
}

#[test]
fn disk_without_contexts_is_all_data_with_unknown_dirtiness() {
    let mut mapper = mapper(1 << 40, 1, false, false);
    assert_eq!(mapper.next_step(), MapperStep::Known(Extent { offset: 0, length: 1 << 40, zero: false, dirty: None }));
    assert_eq!(mapper.next_step(), MapperStep::Complete);
}

#[test]
fn empty_disk_is_not_queried() {
    assert_eq!(mapper(0, 512, true, true).next_step(), MapperStep::Complete);
}

#[test]
fn hole_without_the_zero_flag_is_data() {
    let merged = intersect(0, Some(&status(&[(4, 1), (4, 3)])), None);
    assert_eq!(bytes_of(&merged)[..4], [(false, None); 4]);
    assert_eq!(bytes_of(&merged)[4..], [(true, None); 4]);
}

#[test]
fn next_query_starts_where_all_contexts_have_answered() {
    let mut mapper = mapper(1000, 1, true, true);
    let extents = mapper.accept(&answer(&[(100, 0), (200, 3)], &[(150, 0), (30, 1)])).unwrap();
    assert_eq!(extents.iter().map(|e| e.length).collect::<Vec<_>>(), [100, 50, 30]);
    assert_eq!(mapper.next_step(), MapperStep::Ask { offset: 180, length: 820 });
}

#[test]
fn answer_that_ends_inside_a_block_is_rounded_conservatively() {
    let mut mapper = mapper(10_000, 4096, true, true);
    let extents = mapper.accept(&answer(&[(5000, 3)], &[(10_000, 0)])).unwrap();
    assert_eq!((extents[0].length, extents[0].zero), (4096, true));
    let extents = mapper.accept(&answer(&[(100, 3)], &[(5904, 0)])).unwrap();
    assert_eq!(extents, [Extent { offset: 4096, length: 4096, zero: false, dirty: Some(true) }]);
    let extents = mapper.accept(&answer(&[(1808, 3)], &[(1808, 0)])).unwrap();
    assert_eq!((extents[0].length, extents[0].zero), (1808, true));
    assert_eq!(mapper.next_step(), MapperStep::Complete);
}

#[test]
fn an_answer_without_one_of_the_contexts_is_refused() {
    let mut mapper = mapper(1000, 1, true, true);
    let mut halved = answer(&[(1000, 0)], &[(1000, 0)]);
    halved.pop();
    assert!(matches!(mapper.accept(&halved), Err(Error::Protocol(Violation::Extents { offset: 0 }))));
}

#[test]
fn largest_query_is_a_block_multiple_within_32_bits() {
    let MapperStep::Ask { length, .. } = mapper(u64::MAX >> 1, 65536, true, false).next_step() else {
        panic!("nothing to ask");
    };
    assert_eq!(length % 65536, 0);
    assert!(length > 4_000_000_000);
}

#[test]
fn map_with_a_gap_overlap_or_wrong_end_is_an_error() {
    let extent = |offset, length| Ok(Extent { offset, length, zero: true, dirty: None });
    for (broken, at) in [
        (vec![extent(0, 4), extent(5, 5)], 4),
        (vec![extent(0, 4), extent(3, 7)], 4),
        (vec![extent(0, 9)], 9),
        (vec![extent(0, 11)], 0),
        (vec![extent(0, u64::MAX)], 0),
        (vec![], 0),
    ] {
        let results: Vec<_> = chunk_runs(broken.into_iter(), 10, 4).collect();
        let last = results.last().unwrap();
        assert!(matches!(last, Err(Error::Protocol(Violation::Map { offset })) if *offset == at), "{last:?}");
    }
    let failing = vec![extent(0, 4), Err(Error::Disconnected), extent(4, 6)];
    let results: Vec<_> = chunk_runs(failing.into_iter(), 10, 4).collect();
    assert!(matches!(results.as_slice(), [Err(Error::Disconnected)]));
}

#[test]
fn huge_extent_is_cut_into_a_single_run() {
    let size_bytes = (1u64 << 62) + 5;
    let whole = Extent { offset: 0, length: size_bytes, zero: true, dirty: Some(true) };
    let runs: Vec<_> = chunk_runs(std::iter::once(Ok(whole)), size_bytes, 1 << 20).map(|run| run.unwrap()).collect();
    assert_eq!(runs, [ChunkRun { first: 0, count: (1 << 42) + 1, state: ChunkState::Zero }]);
}

fn runs_of_flags() -> impl Strategy<Value = Vec<(u32, u32)>> {
    proptest::collection::vec((1u32..40, 0u32..4), 1..12)
}

fn disk() -> impl Strategy<Value = Vec<Byte>> {
    let state = (any::<bool>(), prop_oneof![Just(None), Just(Some(true)), Just(Some(false))]);
    proptest::collection::vec((1usize..30, state), 0..20)
        .prop_map(|runs| runs.into_iter().flat_map(|(length, state)| std::iter::repeat_n(state, length)).collect())
}

proptest! {
    #[test]
    fn intersection_matches_the_bytewise_model(
        allocation in runs_of_flags(),
        bitmap in runs_of_flags(),
        offset in 0u64..1000,
    ) {
        let (allocation, bitmap) = (status(&allocation), status(&bitmap));
        let merged = intersect(offset, Some(&allocation), Some(&bitmap));
        let expected: Vec<Byte> = flags_of_bytes(&allocation)
            .into_iter()
            .zip(flags_of_bytes(&bitmap))
            .map(|(allocation, bitmap)| (allocation & 2 != 0, Some(bitmap & 1 != 0)))
            .collect();
        prop_assert_eq!(bytes_of(&merged), expected);
        let mut position = offset;
        for extent in &merged {
            prop_assert_eq!(extent.offset, position);
            position += extent.length;
        }
        for pair in merged.windows(2) {
            prop_assert_ne!((pair[0].zero, pair[0].dirty), (pair[1].zero, pair[1].dirty));
        }
    }

    /// The map does not depend on how much of the requested range a server answers at a time, or on the lengths of
    /// extents. With larger blocks the map may be coarser, but only towards "dirty data".
    #[test]
    fn map_is_independent_of_answer_boundaries(
        disk in disk(),
        block in prop_oneof![Just(1u64), Just(4), Just(16)],
        lengths in proptest::collection::vec((1usize..60, 1usize..60), 1..20),
    ) {
        let disk: Vec<(bool, bool)> = disk.iter().map(|b| (b.0, b.1 == Some(true))).collect();
        let mut mapper = mapper(disk.len() as u64, block, true, true);
        let mut seen: Vec<Byte> = Vec::new();
        let mut lengths = lengths.iter().cycle();
        while let MapperStep::Ask { offset, length } = mapper.next_step() {
            prop_assert_eq!(offset as usize, seen.len());
            prop_assert_eq!(offset % block, 0);
            prop_assert!(offset + u64::from(length) <= disk.len() as u64);
            let rest = &disk[offset as usize..];
            let (a, b) = lengths.next().unwrap();
            let ones = |rest: &[(bool, bool)], pick: fn(&(bool, bool)) -> u32| {
                rest.iter().map(|byte| (1, pick(byte))).collect::<Vec<_>>()
            };
            let allocation = ones(&rest[..rest.len().min(*a)], |byte| u32::from(byte.0) * 3);
            let bitmap = ones(&rest[..rest.len().min(*b)], |byte| u32::from(byte.1));
            seen.extend(bytes_of(&mapper.accept(&answer(&allocation, &bitmap)).unwrap()));
        }
        prop_assert_eq!(seen.len(), disk.len());
        for (seen, real) in seen.iter().zip(&disk) {
            let exact = *seen == (real.0, Some(real.1));
            let coarse = block > 1 && *seen == (false, Some(true));
            prop_assert!(exact || coarse, "{seen:?} for {real:?}");
        }
    }

    #[test]
    fn partly_dirty_chunks_list_their_dirty_and_zero_pieces(
        disk in disk(),
        chunk in 1u32..50,
        piece in 1u32..20,
        cuts in proptest::collection::vec(0usize..300, 0..10),
    ) {
        let mut cutter = ChunkCutter::new(disk.len() as u64, chunk).with_pieces(Some(piece));
        for extent in extents_of(&disk, &cuts) {
            cutter.push(extent).unwrap();
        }
        cutter.finish().unwrap();
        let states: Vec<ChunkState> =
            cutter.take_runs().flat_map(|run| std::iter::repeat_n(run.state, run.count as usize)).collect();
        let expected: Vec<ChunkState> = disk.chunks(chunk as usize).map(|bytes| {
            let is_dirty = |piece: &[Byte]| piece.iter().any(|byte| byte.1 != Some(false));
            let is_clean_zeros = |piece: &[Byte]| piece.iter().all(|byte| byte.0 && byte.1 == Some(false));
            let bits = |holds: &dyn Fn(&[Byte]) -> bool| {
                bytes.chunks(piece as usize).enumerate().map(|(number, piece)| u64::from(holds(piece)) << number).sum()
            };
            match naive_state(bytes) {
                ChunkState::Data if !bytes.chunks(piece as usize).all(is_dirty) => {
                    ChunkState::Mixed { dirty: bits(&is_dirty), clean_zeros: bits(&is_clean_zeros) }
                }
                state => state,
            }
        }).collect();
        prop_assert_eq!(states, expected);
    }

    #[test]
    fn chunk_states_match_the_bytewise_model(
        disk in disk(),
        chunk in 1u32..50,
        cuts in proptest::collection::vec(0usize..300, 0..10),
    ) {
        let extents = extents_of(&disk, &cuts);
        let runs: Vec<ChunkRun> =
            chunk_runs(extents.iter().copied().map(Ok), disk.len() as u64, chunk)
                .map(|run| run.unwrap())
                .collect();
        let states: Vec<ChunkState> = runs
            .iter()
            .flat_map(|run| std::iter::repeat_n(run.state, run.count as usize))
            .collect();
        let expected: Vec<ChunkState> = disk.chunks(chunk as usize).map(naive_state).collect();
        prop_assert_eq!(&states, &expected);
        let mut index = 0;
        for run in &runs {
            prop_assert_eq!(run.first, index);
            prop_assert!(run.count > 0);
            index += run.count;
        }
        for pair in runs.windows(2) {
            prop_assert_ne!(pair[0].state, pair[1].state);
        }
        // If they are taken after each extent, the runs are shorter, but have the same states.
        let mut cutter = ChunkCutter::new(disk.len() as u64, chunk);
        let mut early = Vec::new();
        for extent in extents {
            cutter.push(extent).unwrap();
            early.extend(cutter.take_runs());
        }
        cutter.finish().unwrap();
        let states: Vec<ChunkState> = early
            .iter()
            .flat_map(|run| std::iter::repeat_n(run.state, run.count as usize))
            .collect();
        prop_assert_eq!(states, expected);
    }
}
