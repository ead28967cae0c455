//! What raft reads back of one group: the log's tail from memory, older entries from the log.
use crate::ids::ReplicaId;
use crate::raft::log::{LogError, RaftLog};
use crate::raft::membership::Membership;
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Result, Storage, StorageError};
use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

/// A replica's log as raft sees it. Indexes: `truncated < cached <= last + 1`; the entries from
/// `truncated + 1` to `cached - 1` are read from the shared log.
pub struct GroupStore {
    replica: ReplicaId,
    log: Arc<dyn RaftLog>,
    /// Entries from `cached` on.
    entries: VecDeque<Entry>,
    cached: u64,
    entries_bytes: u64,
    truncated: (u64, u64),
    /// Terms as runs: (first index, term), rising. Covers `truncated + 1 ..= last`.
    terms: VecDeque<(u64, u64)>,
    /// Bytes of kept entries in segments: (last index, bytes).
    segments: VecDeque<(u64, u64)>,
    kept_bytes: u64,
    /// The largest log that is sent as a whole.
    pub catch_up_bytes: u64,
    pub hard_state: HardState,
    pub conf_state: ConfState,
    /// Replicas that raft wants a checkpoint for: they are behind the kept log.
    pub wanted: RefCell<BTreeSet<u64>>,
}

/// Bytes after which a new segment of the size index begins.
const SEGMENT_BYTES: u64 = 64 << 10;

fn size_of(e: &Entry) -> u64 {
    e.data.len() as u64 + e.context.len() as u64 + 32
}

impl GroupStore {
    /// A replica that starts from an empty log at `truncated` (0, 0 at genesis).
    pub fn new(
        replica: ReplicaId,
        log: Arc<dyn RaftLog>,
        truncated: (u64, u64),
        membership: &Membership,
    ) -> GroupStore {
        GroupStore {
            replica,
            log,
            entries: VecDeque::new(),
            cached: truncated.0 + 1,
            entries_bytes: 0,
            truncated,
            terms: VecDeque::new(),
            segments: VecDeque::new(),
            kept_bytes: 0,
            catch_up_bytes: u64::MAX,
            hard_state: HardState::default(),
            conf_state: membership.conf_state(),
            wanted: RefCell::new(BTreeSet::new()),
        }
    }

    /// Takes over what the shared log holds: entries `truncated + 1 ..= last`.
    pub fn load(&mut self, last: u64, assumed_bytes: u64) -> std::result::Result<(), LogError> {
        let first = self.truncated.0 + 1;
        self.cached = last + 1;
        if last < first {
            return Ok(());
        }
        // Terms rise, so the end of each run is found by halving.
        let term_at = |i: u64| -> std::result::Result<u64, LogError> {
            let found = self.log.fetch(self.replica, i, i + 1, 1)?;
            found
                .first()
                .map(|e| e.term)
                .ok_or(LogError::Missing { replica: self.replica, index: i })
        };
        let mut terms = VecDeque::new();
        let mut at = first;
        let last_term = term_at(last)?;
        while at <= last {
            let term = term_at(at)?;
            terms.push_back((at, term));
            if term == last_term {
                break;
            }
            let (mut low, mut high) = (at, last);
            while low + 1 < high {
                let mid = low + (high - low) / 2;
                if term_at(mid)? == term { low = mid } else { high = mid }
            }
            at = high;
        }
        self.terms = terms;
        self.segments.push_back((last, assumed_bytes));
        self.kept_bytes = assumed_bytes;
        Ok(())
    }

    pub fn first(&self) -> u64 {
        self.truncated.0 + 1
    }

    pub fn last(&self) -> u64 {
        self.cached + self.entries.len() as u64 - 1
    }

    pub fn truncated(&self) -> (u64, u64) {
        self.truncated
    }

    /// Bytes of the entries kept in the shared log, about.
    pub fn kept_bytes(&self) -> u64 {
        self.kept_bytes
    }

    fn term_of(&self, index: u64) -> Option<u64> {
        if index == self.truncated.0 {
            return Some(self.truncated.1);
        }
        if index < self.first() || index > self.last() {
            return None;
        }
        let after = self.terms.partition_point(|(first, _)| *first <= index);
        self.terms.get(after.checked_sub(1)?).map(|(_, term)| *term)
    }

    /// Appends, first cutting what `entries` overwrites. False: there would be a gap.
    pub fn append(&mut self, entries: Vec<Entry>) -> bool {
        let Some(first) = entries.first().map(|e| e.index) else { return true };
        if first < self.first() || first > self.last() + 1 {
            return false;
        }
        if first <= self.last() {
            self.cut_from(first);
        }
        for e in entries {
            if self.terms.back().is_none_or(|(_, term)| *term != e.term) {
                self.terms.push_back((e.index, e.term));
            }
            let bytes = size_of(&e);
            match self.segments.back_mut() {
                Some((last, sum)) if *sum < SEGMENT_BYTES => {
                    *last = e.index;
                    *sum += bytes;
                }
                _ => self.segments.push_back((e.index, bytes)),
            }
            self.kept_bytes += bytes;
            self.entries_bytes += bytes;
            self.entries.push_back(e);
        }
        true
    }

    fn cut_from(&mut self, first: u64) {
        if first < self.cached {
            self.entries.clear();
            self.entries_bytes = 0;
            self.cached = first;
        } else {
            for e in self.entries.drain((first - self.cached) as usize..) {
                self.entries_bytes -= size_of(&e);
            }
        }
        while self.terms.back().is_some_and(|(i, _)| *i >= first) {
            self.terms.pop_back();
        }
        // The size index keeps its sums: they may be too high until the next compaction.
        if let Some((last, _)) = self.segments.back_mut() {
            *last = (*last).min(first.saturating_sub(1));
        }
    }

    /// Drops cached entries up to `index` (synced and applied) while the cache is above `max_bytes`.
    pub fn evict(&mut self, index: u64, max_bytes: u64) {
        while self.entries_bytes > max_bytes && self.cached <= index {
            let Some(e) = self.entries.pop_front() else { return };
            self.entries_bytes -= size_of(&e);
            self.cached += 1;
        }
    }

    /// The highest index up to which entries can go while at least `keep_bytes` stay.
    pub fn compactable(&self, upto: u64, keep_bytes: u64) -> Option<u64> {
        let mut left = self.kept_bytes;
        let mut to = None;
        for (last, bytes) in &self.segments {
            if *last > upto || left - (*bytes).min(left) < keep_bytes {
                break;
            }
            left -= (*bytes).min(left);
            to = Some(*last);
        }
        to.filter(|to| *to > self.truncated.0)
    }

    /// Forgets entries up to `to`.
    pub fn compact(&mut self, to: u64) {
        let Some(term) = self.term_of(to) else { return };
        if to <= self.truncated.0 {
            return;
        }
        while self.cached <= to {
            let Some(e) = self.entries.pop_front() else { break };
            self.entries_bytes -= size_of(&e);
            self.cached += 1;
        }
        self.cached = self.cached.max(to + 1);
        while self.terms.get(1).is_some_and(|(i, _)| *i <= to + 1) {
            self.terms.pop_front();
        }
        if let Some(run) = self.terms.front_mut() {
            run.0 = run.0.max(to + 1);
        }
        if to >= self.last() {
            self.terms.clear();
        }
        while self.segments.front().is_some_and(|(last, _)| *last <= to) {
            if let Some((_, bytes)) = self.segments.pop_front() {
                self.kept_bytes -= bytes.min(self.kept_bytes);
            }
        }
        self.truncated = (to, term);
    }

    /// Starts anew behind an installed checkpoint.
    pub fn install(&mut self, index: u64, term: u64, conf_state: ConfState) {
        self.entries.clear();
        self.entries_bytes = 0;
        self.terms.clear();
        self.segments.clear();
        self.kept_bytes = 0;
        self.truncated = (index, term);
        self.cached = index + 1;
        self.conf_state = conf_state;
        self.hard_state.commit = self.hard_state.commit.max(index);
    }
}

impl Storage for GroupStore {
    fn initial_state(&self) -> Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.conf_state.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> Result<Vec<Entry>> {
        // Only what is sent to others may be had later; raft says so of nothing else.
        let is_sent = context.can_async();
        // While nothing is committed no checkpoint has anything, and the first entries may wait for this
        // very replica.
        let is_much = low == 1
            && is_sent
            && self.hard_state.commit > 0
            && self.kept_bytes > self.catch_up_bytes;
        if low < self.first() || is_much {
            return Err(Error::Store(StorageError::Compacted));
        }
        if high > self.last() + 1 {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let max = max_size.into().unwrap_or(u64::MAX);
        let mut out = Vec::new();
        let mut bytes = 0;
        if low < self.cached {
            let to = high.min(self.cached);
            out = self
                .log
                .fetch(self.replica, low, to, max)
                .map_err(|e| Error::Store(StorageError::Other(Box::new(e))))?;
            bytes = out.iter().map(size_of).sum();
            if (out.len() as u64) < to - low {
                return Ok(out);
            }
        }
        let from = low.max(self.cached);
        for i in from..high {
            let e = &self.entries[(i - self.cached) as usize];
            bytes += size_of(e);
            if bytes > max && !out.is_empty() {
                break;
            }
            out.push(e.clone());
        }
        Ok(out)
    }

    fn term(&self, index: u64) -> Result<u64> {
        if index < self.truncated.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        self.term_of(index).ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.last())
    }

    /// Never builds one: notes who needs it, and raft asks again at the next heartbeat's answer.
    fn snapshot(&self, _request_index: u64, to: u64) -> Result<Snapshot> {
        self.wanted.borrow_mut().insert(to);
        Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::log::memory::MemoryLog;
    use crate::raft::log::{LogBatch, LogOp};
    use proptest::prelude::*;
    use prost_raft::Message as _;
    use std::collections::BTreeMap;

    const R: ReplicaId = ReplicaId(7);

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, data: vec![0; 40_000], ..Default::default() }
    }

    #[test]
    fn the_whole_of_a_long_log_is_not_sent_and_is_there_for_its_own_replica() {
        let log = Arc::new(MemoryLog::default());
        let mut store = GroupStore::new(R, log, (0, 0), &Membership::default());
        assert!(store.append(vec![entry(1, 1), entry(2, 1)]));
        let sent = || GetEntriesContext::empty(true);
        store.catch_up_bytes = 0;
        assert_eq!(store.entries(1, 3, None, sent()).unwrap().len(), 2, "nothing is committed");
        store.hard_state.commit = 1;
        let compacted =
            |r: Result<Vec<Entry>>| matches!(r, Err(Error::Store(StorageError::Compacted)));
        for (catch_up_bytes, is_refused) in [(200_000, false), (50_000, true)] {
            store.catch_up_bytes = catch_up_bytes;
            assert_eq!(compacted(store.entries(1, 3, None, sent())), is_refused);
            // To one that has something, and to be applied.
            assert_eq!(store.entries(2, 3, None, sent()).unwrap().len(), 1);
            assert_eq!(
                store.entries(1, 3, None, GetEntriesContext::empty(false)).unwrap().len(),
                2
            );
        }
    }

    proptest! {
        /// A map is the naive model; the log behind it gets every entry, as the driver does.
        #[test]
        fn reads_back_what_was_appended(
            steps in prop::collection::vec((0..5u8, 0..6u64, 1..5u64), 1..60)
        ) {
            let log = Arc::new(MemoryLog::default());
            let mut store = GroupStore::new(R, log.clone(), (0, 0), &Membership::default());
            let mut model: BTreeMap<u64, u64> = BTreeMap::new();
            let (mut truncated, mut number, mut term) = ((0, 0), 0, 1);
            for (kind, a, n) in steps {
                let last = truncated.0.max(model.last_key_value().map_or(0, |(k, _)| *k));
                match kind {
                    0 | 1 => {
                        term += u64::from(kind);
                        let first = (last + 1).saturating_sub(if kind == 1 { a } else { 0 })
                            .max(truncated.0 + 1);
                        let new: Vec<Entry> = (first..first + n).map(|i| entry(i, term)).collect();
                        model.retain(|k, _| *k < first);
                        model.extend(new.iter().map(|e| (e.index, e.term)));
                        number += 1;
                        log.write(number, LogBatch { ops: vec![LogOp::Entries {
                            replica: R, first_index: first,
                            entries: new.iter().map(|e| e.encode_to_vec()).collect() }] }).unwrap();
                        prop_assert!(store.append(new));
                    }
                    2 => store.evict(last.saturating_sub(a), 50_000),
                    3 => {
                        let to = (truncated.0 + a).min(last);
                        if to > truncated.0 {
                            truncated = (to, model[&to]);
                            model.retain(|k, _| *k > to);
                            store.compact(to);
                        }
                    }
                    _ => {
                        if let Some(to) = store.compactable(last.saturating_sub(a), 100_000) {
                            prop_assert!(to <= last && to > truncated.0);
                        }
                        // A restart.
                        let mut again =
                            GroupStore::new(R, log.clone(), truncated, &Membership::default());
                        again.load(last, 1).unwrap();
                        store = again;
                    }
                }
                let last = truncated.0.max(model.last_key_value().map_or(0, |(k, _)| *k));
                prop_assert_eq!(store.last(), last);
                prop_assert_eq!(store.first(), truncated.0 + 1);
                prop_assert_eq!(store.term(truncated.0).unwrap(), truncated.1);
                for (i, t) in &model {
                    prop_assert_eq!(store.term(*i).unwrap(), *t);
                }
                prop_assert!(store.term(last + 1).is_err());
                let all = store.entries(truncated.0 + 1, last + 1, None,
                    GetEntriesContext::empty(false)).unwrap();
                let all: BTreeMap<u64, u64> = all.iter().map(|e| (e.index, e.term)).collect();
                prop_assert_eq!(&all, &model);
            }
        }
    }
}
