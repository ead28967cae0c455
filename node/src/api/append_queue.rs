//! The order of the appends of one AppendStream call. Pure.
//!
//! Each stream is a lane: at most one run of it is in flight, and what came in meanwhile goes as
//! the next run. Runs of different streams of one partition travel together as a unit. After an
//! append fails, later ones of its lane fail too, until one says `resume`.
#[cfg(test)]
mod tests;

use ringfold_proto::v1;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

/// Appends of one call that wait or are in flight, and their bytes.
const APPENDS_MAX: usize = 1_024;
const BYTES_MAX: usize = 16 << 20;
/// Of one unit; a single append may be larger.
const UNIT_APPENDS_MAX: usize = 256;
const UNIT_BYTES_MAX: usize = 512 << 10;
/// Lanes that are remembered, most of them because an append of theirs failed.
const LANES_MAX: usize = 16_384;

/// A checked append.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    pub sequence: u64,
    pub resume: bool,
    pub partition: u32,
    pub request: v1::AppendRequest,
}

impl Item {
    /// Bytes that it holds in memory, about.
    fn bytes(&self) -> usize {
        let event = |e: &v1::NewEvent| {
            e.data.len() + e.metadata.len() + e.r#type.len() + e.content_type.len() + 64
        };
        self.request.stream.len() + self.request.events.iter().map(event).sum::<usize>()
    }
}

/// Appends of one stream, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    pub stream: Arc<str>,
    pub items: Vec<Item>,
}

impl Run {
    /// Each append, and whether it fails when the one before it did.
    pub fn chained(&self) -> impl Iterator<Item = (&Item, bool)> {
        self.items.iter().enumerate().map(|(i, item)| (item, i > 0 && !item.resume))
    }
}

/// Runs of one partition that are proposed together.
#[derive(Debug, Clone, PartialEq)]
pub struct Unit {
    pub partition: u32,
    pub runs: Vec<Run>,
}

impl Unit {
    pub fn appends(&self) -> usize {
        self.runs.iter().map(|r| r.items.len()).sum()
    }

    /// Positions of all its events lie above this one.
    pub fn after_position(&self) -> u64 {
        let items = self.runs.iter().flat_map(|r| &r.items);
        items.map(|i| i.request.after_position).max().unwrap_or(0)
    }
}

/// What became of an append that was pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    Waits,
    /// An earlier one of its stream failed: this one fails too.
    EarlierFailed,
}

/// So many streams had failures that they cannot all be remembered: the call must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyLanes;

#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<Item>,
    in_flight: bool,
    /// The append before the next one that comes in failed.
    tail_failed: bool,
}

/// The appends of one call.
#[derive(Debug, Default)]
pub struct AppendQueue {
    lanes: HashMap<Arc<str>, Lane>,
    /// By partition: lanes with something that waits and nothing in flight.
    ready: BTreeMap<u32, VecDeque<Arc<str>>>,
    appends: usize,
    bytes: usize,
}

impl AppendQueue {
    /// Whether one more append may be read.
    pub fn has_room(&self) -> bool {
        self.appends < APPENDS_MAX && self.bytes < BYTES_MAX
    }

    /// Nothing waits and nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.appends == 0
    }

    pub fn push(&mut self, item: Item) -> Result<Pushed, TooManyLanes> {
        let (name, lane) = self.lane(&item.request.stream)?;
        if lane.tail_failed && !item.resume {
            return Ok(Pushed::EarlierFailed);
        }
        lane.tail_failed = false;
        let becomes_ready = !lane.in_flight && lane.waiting.is_empty();
        let (partition, bytes) = (item.partition, item.bytes());
        lane.waiting.push_back(item);
        self.appends += 1;
        self.bytes += bytes;
        if becomes_ready {
            self.ready.entry(partition).or_default().push_back(name);
        }
        Ok(Pushed::Waits)
    }

    /// An append of this stream failed before it could be pushed.
    pub fn fail(&mut self, stream: &str) -> Result<(), TooManyLanes> {
        self.lane(stream)?.1.tail_failed = true;
        Ok(())
    }

    fn lane(&mut self, stream: &str) -> Result<(Arc<str>, &mut Lane), TooManyLanes> {
        let name = match self.lanes.get_key_value(stream) {
            Some((name, _)) => name.clone(),
            None if self.lanes.len() >= LANES_MAX => return Err(TooManyLanes),
            None => Arc::from(stream),
        };
        Ok((name.clone(), self.lanes.entry(name).or_default()))
    }

    /// What can be proposed now. `now`: stamp of the clock; a run that asks for positions beyond
    /// it travels alone, for it may be refused.
    pub fn next_unit(&mut self, now: u64) -> Option<Unit> {
        let mut ready = self.ready.first_entry()?;
        let mut unit = Unit { partition: *ready.key(), runs: Vec::new() };
        let (mut appends, mut bytes) = (0, 0);
        while let Some(name) = ready.get().front() {
            let Some(lane) = self.lanes.get_mut(name) else {
                ready.get_mut().pop_front();
                continue;
            };
            let ahead = lane.waiting.iter().any(|i| i.request.after_position > now);
            if ahead && !unit.runs.is_empty() {
                break;
            }
            let mut items = Vec::new();
            while let Some(next) = lane.waiting.front() {
                let size = next.bytes();
                let fits = appends < UNIT_APPENDS_MAX && bytes + size <= UNIT_BYTES_MAX;
                if !fits && appends > 0 {
                    break;
                }
                appends += 1;
                bytes += size;
                items.extend(lane.waiting.pop_front());
            }
            if items.is_empty() {
                break;
            }
            lane.in_flight = true;
            unit.runs.extend(ready.get_mut().pop_front().map(|stream| Run { stream, items }));
            if ahead {
                break;
            }
        }
        if ready.get().is_empty() {
            ready.remove();
        }
        Some(unit)
    }

    /// A run has its answers; `failed`: its last append failed. Returns what fails because of it.
    pub fn finish(&mut self, run: &Run, failed: bool) -> Vec<Item> {
        self.appends -= run.items.len();
        self.bytes -= run.items.iter().map(Item::bytes).sum::<usize>();
        let Some(lane) = self.lanes.get_mut(&run.stream) else {
            return Vec::new();
        };
        lane.in_flight = false;
        let mut dropped = Vec::new();
        if failed {
            let until = lane.waiting.iter().position(|i| i.resume).unwrap_or(lane.waiting.len());
            dropped.extend(lane.waiting.drain(..until));
            lane.tail_failed |= lane.waiting.is_empty();
            self.appends -= dropped.len();
            self.bytes -= dropped.iter().map(Item::bytes).sum::<usize>();
        }
        if let Some(next) = lane.waiting.front() {
            self.ready.entry(next.partition).or_default().push_back(run.stream.clone());
        } else if !lane.tail_failed {
            self.lanes.remove(&run.stream);
        }
        dropped
    }
}
