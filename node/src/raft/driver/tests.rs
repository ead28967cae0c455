//! How proposals become entries. What drivers do among each other is in `tests/tests/simulation.rs`.
use super::*;
use crate::partition::apply::{Genesis, PartitionMachine};
use crate::partition::store::MemoryDisk;
use crate::raft::handle::Applied;
use crate::raft::log::LogBatch;
use crate::raft::log::memory::MemoryLog;
use bytes::Bytes;

const GROUP: GroupId = GroupId(1);

/// A driver whose only replica is alone in its group.
struct Alone {
    driver: Driver,
    log: Arc<MemoryLog>,
    number: u64,
    view: Arc<ReplicaView>,
    ms: u64,
}

impl Alone {
    fn leader(settings: DriverSettings) -> Alone {
        let log = Arc::new(MemoryLog::default());
        let store = MemoryDisk::default().open("1.1".as_ref(), true).unwrap();
        let machine = PartitionMachine::with_store(store, &Genesis::new(0, 2, []), true).unwrap();
        let reader = crate::raft::apply::StateMachine::reader(&machine);
        let view = Arc::new(ReplicaView::new(GROUP, ReplicaId(1), reader, Applied::default()));
        let record = ReplicaRecord {
            group: GROUP,
            replica: ReplicaId(1),
            directory: 1,
            membership: Membership::genesis(&[(ReplicaId(1), NodeId(1))]),
            membership_index: 0,
            truncated_index: 0,
            truncated_term: 0,
            destroyed: false,
            first_placed: true,
        };
        let driver = Driver::new(settings, log.clone(), Now::default());
        let mut alone = Alone { driver, log, number: 0, view: view.clone(), ms: 1 };
        let (machine, fresh) = (Box::new(machine), true);
        let new = NewGroup { record, vote: None, last_index: 0, fresh, machine, view };
        let round = alone.step(vec![Input::Create(Box::new(new))]);
        alone.sync(round);
        assert_eq!(alone.driver.role(GROUP), Some(Role::Leader));
        alone
    }

    fn step(&mut self, mut inputs: Vec<Input>) -> Round {
        let now = Now { boot_ns: self.ms * 1_000_000, wall_ms: EPOCH_UNIX_MS + self.ms };
        self.driver.step(now, &mut inputs)
    }

    /// The round's writes and all that follows from them are synced. Entries that are applied then.
    fn sync(&mut self, mut round: Round) -> Vec<(u64, usize)> {
        let mut applied = Vec::new();
        loop {
            for task in std::mem::take(&mut round.apply) {
                if let ApplyTask::Entries { entries, .. } = task {
                    applied.extend(entries.iter().map(|e| (e.index, e.replies.len())));
                }
            }
            if round.write.is_empty() {
                applied.retain(|(_, replies)| *replies > 0);
                return applied;
            }
            round = self.sync_once(round);
        }
    }

    /// The round after the sync of this one's writes.
    fn sync_once(&mut self, round: Round) -> Round {
        self.number += 1;
        self.log.write(self.number, LogBatch { ops: round.write.ops }).unwrap();
        self.step(vec![Input::Persisted(round.write.persisted)])
    }

    fn propose(&mut self, bytes: usize) -> Input {
        let (reply, _) = oneshot::channel();
        let commands = vec![Bytes::from(vec![0; bytes])];
        Input::Request(Request::Propose { group: GROUP, commands, after_position: 0, reply })
    }

    fn propose_many(&mut self, count: usize, bytes: usize) -> Vec<Input> {
        (0..count).map(|_| self.propose(bytes)).collect()
    }

    fn entry_in_flight(&self) -> bool {
        self.view.entry_in_flight.load(Ordering::Acquire)
    }
}

fn entries(round: &Round) -> usize {
    let count = |op: &LogOp| match op {
        LogOp::Entries { entries, .. } => entries.len(),
        _ => 0,
    };
    round.write.ops.iter().map(count).sum()
}

#[test]
fn what_waits_while_an_entry_is_under_way_becomes_one_entry() {
    let mut alone = Alone::leader(DriverSettings::new(NodeId(1)));
    assert!(!alone.entry_in_flight());
    let inputs = alone.propose_many(3, 100);
    let first = alone.step(inputs);
    assert_eq!(entries(&first), 1);
    assert!(alone.entry_in_flight());
    for _ in 0..5 {
        let inputs = alone.propose_many(2, 100);
        let round = alone.step(inputs);
        assert_eq!(entries(&round), 0, "a small entry overtook the sync");
    }
    // The sync of the first one makes room for the second, in the same round.
    let second = alone.sync_once(first);
    assert_eq!(entries(&second), 1);
    let replies: Vec<usize> = alone.sync(second).into_iter().map(|(_, r)| r).collect();
    assert_eq!(replies, [3, 10]);
    assert!(!alone.entry_in_flight());
}

#[test]
fn full_entries_go_one_behind_the_other_up_to_the_window() {
    let settings = DriverSettings::new(NodeId(1));
    let full = settings.entry_joins_bytes as usize;
    let window = settings.entries_in_flight as usize;
    let mut alone = Alone::leader(settings);
    let mut made = 0;
    for _ in 0..window + 2 {
        let inputs = alone.propose_many(1, full);
        let round = alone.step(inputs);
        made += entries(&round);
    }
    assert_eq!(made, window);
}
