//! The contract that both logs keep.
use super::engine::{EngineLog, EngineSettings};
use super::memory::MemoryLog;
use super::*;
use crate::ids::NodeId;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn entry(index: u64, term: u64, bytes: usize) -> Vec<u8> {
    Entry { index, term, data: vec![term as u8; bytes], ..Default::default() }.encode_to_vec()
}

fn record(replica: u64, truncated_index: u64) -> ReplicaRecord {
    ReplicaRecord {
        group: GroupId(3),
        replica: ReplicaId(replica),
        directory: 1,
        membership: Membership::genesis(&[(ReplicaId(replica), NodeId(1))]),
        membership_index: 0,
        truncated_index,
        truncated_term: 1,
        destroyed: false,
        first_placed: true,
    }
}

#[derive(Debug, Clone)]
enum Step {
    Append { replica: u64, back: u64, count: u64, bytes: usize },
    Vote { replica: u64, term: u64 },
    Compact { replica: u64, keep: u64 },
    Clear { replica: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..4u64, 0..4u64, 1..6u64, 0..300usize)
            .prop_map(|(replica, back, count, bytes)| Step::Append { replica, back, count, bytes }),
        1 => (1..4u64, 1..9u64).prop_map(|(replica, term)| Step::Vote { replica, term }),
        1 => (1..4u64, 0..5u64).prop_map(|(replica, keep)| Step::Compact { replica, keep }),
        1 => (1..4u64).prop_map(|replica| Step::Clear { replica }),
    ]
}

/// Runs the steps on a log and on a naive model, reopening it now and then.
fn conforms(
    steps: &[Step],
    rounds: u64,
    mut log: Box<dyn RaftLog>,
    mut reopen: impl FnMut(Box<dyn RaftLog>) -> Box<dyn RaftLog>,
) {
    /// First kept index, terms by index, vote.
    type Kept = (u64, BTreeMap<u64, u64>, Option<Vote>);
    let mut model: BTreeMap<u64, Kept> = BTreeMap::new();
    let mut number = 0;
    let mut ops = vec![];
    for (term, s) in steps.iter().enumerate() {
        let term = term as u64 + 1;
        match s {
            Step::Append { replica, back, count, bytes } => {
                let m = model.entry(*replica).or_insert((1, BTreeMap::new(), None));
                ops.push(LogOp::Record(Box::new(record(*replica, m.0 - 1))));
                let end = m.1.last_key_value().map_or(m.0, |(k, _)| k + 1);
                let first = end.saturating_sub(*back).max(m.0);
                m.1.retain(|k, _| *k < first);
                m.1.extend((first..first + count).map(|i| (i, term)));
                ops.push(LogOp::Entries {
                    replica: ReplicaId(*replica),
                    first_index: first,
                    entries: (first..first + count).map(|i| entry(i, term, *bytes)).collect(),
                });
            }
            Step::Vote { replica, term } => {
                let m = model.entry(*replica).or_insert((1, BTreeMap::new(), None));
                ops.push(LogOp::Record(Box::new(record(*replica, m.0 - 1))));
                let vote = Vote { term: *term, vote: 1, commit: 0 };
                m.2 = Some(vote);
                ops.push(LogOp::Vote { replica: ReplicaId(*replica), vote });
            }
            Step::Compact { replica, keep } => {
                let Some(m) = model.get_mut(replica) else { continue };
                let Some(last) = m.1.last_key_value().map(|(k, _)| *k) else { continue };
                let first_kept = last.saturating_sub(*keep).max(m.0);
                m.1.retain(|k, _| *k >= first_kept);
                m.0 = first_kept;
                ops.push(LogOp::Record(Box::new(record(*replica, m.0 - 1))));
                ops.push(LogOp::Compact { replica: ReplicaId(*replica), first_kept });
            }
            Step::Clear { replica } => {
                let Some(m) = model.get_mut(replica) else { continue };
                m.0 = m.1.last_key_value().map_or(m.0, |(k, _)| k + 10);
                m.1.clear();
                ops.push(LogOp::Clear { replica: ReplicaId(*replica) });
                ops.push(LogOp::Record(Box::new(record(*replica, m.0 - 1))));
            }
        }
        // Several rounds may share a batch, as the log thread merges them.
        if !term.is_multiple_of(rounds) && term < steps.len() as u64 {
            continue;
        }
        number += 1;
        log.write(number, LogBatch { ops: std::mem::take(&mut ops) }).unwrap();
        if term.is_multiple_of(5) {
            log = reopen(log);
        }
        assert_eq!(log.last_number(), number);
        let loaded: BTreeMap<u64, LoadedReplica> =
            log.load().unwrap().into_iter().map(|l| (l.record.replica.0, l)).collect();
        assert_eq!(loaded.len(), model.len());
        for (replica, (first, entries, vote)) in &model {
            let l = &loaded[replica];
            assert_eq!(l.record.truncated_index + 1, *first);
            assert_eq!(l.vote, *vote);
            let ends = entries.first_key_value().zip(entries.last_key_value());
            assert_eq!(l.entries, ends.map(|((a, _), (b, _))| (*a, *b)));
            if let Some((a, b)) = l.entries {
                let got = log.fetch(ReplicaId(*replica), a, b + 1, u64::MAX >> 1).unwrap();
                let got: BTreeMap<u64, u64> = got.iter().map(|e| (e.index, e.term)).collect();
                assert_eq!(got, *entries);
                assert_eq!(log.fetch(ReplicaId(*replica), a, b + 1, 1).unwrap().len(), 1);
            }
            assert!(log.fetch(ReplicaId(*replica), 1_000_000, 1_000_001, 1).is_err());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn memory_log_keeps_the_contract(steps in prop::collection::vec(step(), 1..40), rounds in 1..5u64) {
        conforms(&steps, rounds, Box::new(MemoryLog::default()), |log| log);
    }

    #[test]
    fn engine_log_keeps_the_contract(steps in prop::collection::vec(step(), 1..40), rounds in 1..5u64) {
        let dir = tempfile::tempdir().unwrap();
        let open = || Box::new(EngineLog::open(dir.path(), EngineSettings::default()).unwrap());
        conforms(&steps, rounds, open(), |log| { drop(log); open() });
    }
}

#[test]
fn records_and_votes_refuse_unknown_formats() {
    let mut r = record(1, 0).encode();
    assert_eq!(ReplicaRecord::decode(&r).unwrap(), record(1, 0));
    r[0] = 99;
    assert!(ReplicaRecord::decode(&r).is_err());
    let mut v = Vote { term: 3, vote: 2, commit: 1 }.encode();
    assert_eq!(Vote::decode(&v).unwrap().term, 3);
    v.truncate(10);
    assert!(Vote::decode(&v).is_err());
    assert!(Vote::decode(&[]).is_err());
}
