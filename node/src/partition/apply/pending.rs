//! What an entry has done so far and the store does not hold yet.
use crate::partition::heads::{Head, Heads};
use crate::partition::keys::{self, encode_value};
use crate::partition::position;
use crate::partition::store::Batch;
use ringfold_proto::internal::{IdRecord, PositionRun, PositionsRecord};
use std::collections::HashMap;
use std::sync::Arc;

/// Room for ids that stays between batches.
const IDS_KEPT: usize = 1_024;

/// One batch as it grows: events, ids and snapshots in `batch`, heads and positions beside it.
#[derive(Default)]
pub struct Pending {
    pub batch: Batch,
    pub heads: Vec<PendingHead>,
    by_stream: HashMap<Arc<str>, usize>,
    /// Ids stored by this batch, by their head.
    pub ids: HashMap<(usize, [u8; keys::ID_BYTES]), IdRecord>,
    runs: Vec<Run>,
    /// Bytes that the changed states will have, at most. A function of the entries alone, as the
    /// bounds of batches must be.
    pub state_bytes: usize,
}

/// A stream that the batch has looked at.
pub struct PendingHead {
    pub stream: Arc<str>,
    pub hash: u64,
    /// `None`: there is no such stream.
    pub head: Option<Head>,
    /// The store knows the stream.
    pub in_store: bool,
    pub changed: bool,
}

/// Events that follow each other in their stream and in position.
pub struct Run {
    pub head: usize,
    pub first_revision: u64,
    pub first_position: u64,
    pub events: u64,
}

impl PendingHead {
    pub fn next_revision(&self) -> u64 {
        match &self.head {
            Some(head) if self.in_store || self.changed => head.record.revision + 1,
            _ => 0,
        }
    }

    /// What the state weighs in the batch.
    pub fn state_bytes(&self) -> usize {
        self.head.as_ref().filter(|_| self.changed).map_or(0, |h| h.fold.bytes_max())
    }
}

impl Pending {
    pub fn find(&self, stream: &str) -> Option<usize> {
        self.by_stream.get(stream).copied()
    }

    pub fn add(&mut self, stream: Arc<str>, head: Option<Head>) -> usize {
        let at = self.heads.len();
        self.heads.push(PendingHead {
            hash: keys::stream_hash(&stream),
            in_store: head.is_some(),
            stream: stream.clone(),
            head,
            changed: false,
        });
        self.by_stream.insert(stream, at);
        at
    }

    /// An id that this batch has stored.
    pub fn id(&self, head: usize, id: &[u8]) -> Option<&IdRecord> {
        self.ids.get(&(head, id.try_into().ok()?))
    }

    pub fn run(&mut self, run: Run) {
        if let Some(last) = self.runs.last_mut()
            && last.head == run.head
            && last.first_position + last.events * position::STEP == run.first_position
        {
            last.events += run.events;
            return;
        }
        self.runs.push(run);
    }

    /// Bytes that the batch will have, about.
    pub fn bytes(&self) -> usize {
        self.batch.bytes() + self.state_bytes
    }

    /// Adds heads, states, names and positions to the batch.
    pub fn finish(&mut self) -> Result<(), String> {
        for slot in self.heads.iter_mut().filter(|s| s.changed) {
            let Some(head) = &mut slot.head else { continue };
            head.fold.save(&mut head.record)?;
            self.batch.put_with(
                |k| keys::stream(k, slot.hash, &slot.stream),
                |v| encode_value(v, &head.record),
            );
            if !slot.in_store {
                self.batch.put_with(|k| keys::name(k, &slot.stream), |v| v.push(keys::FORMAT));
            }
        }
        if let Some(first) = self.runs.first().map(|r| r.first_position) {
            let run = |r: &Run| PositionRun {
                stream: self.heads[r.head].stream.to_string(),
                first_revision: r.first_revision,
                first_step: (r.first_position - first) / position::STEP,
                events: r.events,
            };
            let record = PositionsRecord { runs: self.runs.iter().map(run).collect() };
            self.batch.put_with(|k| keys::position(k, first), |v| encode_value(v, &record));
        }
        Ok(())
    }

    /// Forgets what the store holds now, but for the heads.
    pub fn clear_into(&mut self, heads: &mut Heads) {
        self.by_stream.clear();
        for slot in self.heads.drain(..) {
            if let Some(mut head) = slot.head {
                if slot.changed {
                    head.fold.detach(&mut head.record);
                }
                heads.put(slot.stream, head);
            }
        }
        self.runs.clear();
        self.ids.clear();
        self.ids.shrink_to(IDS_KEPT);
        self.state_bytes = 0;
        self.batch.clear();
    }
}
