//! Correct histories out of a naive store: one map, clients whose operations overlap in time, answers
//! that get lost, retries. The checker must accept each, and find every fault planted into it.
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::checker::Reducers;
use crate::fold::Fold;
use crate::history::{
    Append, AppendOutcome, Consistency, Event, Expected, FinalLog, History, Lookup, LookupOutcome,
    Read, SeenEvent, SeenState, Span,
};

#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub clients: u32,
    pub streams: u32,
    pub operations: u32,
}

impl Default for Shape {
    fn default() -> Self {
        Self { clients: 5, streams: 3, operations: 160 }
    }
}

/// The category that folds by `last`.
pub const LAST_CATEGORY: &str = "last";

pub fn reducers() -> Reducers {
    Reducers { last: [LAST_CATEGORY.to_string()].into() }
}

enum Intent {
    Append(Append),
    Read(Read),
    Lookup(Lookup),
}

enum Step {
    Start(u32),
    Effect(u32),
    End(u32),
}

struct Store {
    logs: BTreeMap<Arc<str>, Vec<SeenEvent>>,
    clock: u64,
}

impl Store {
    fn append(&mut self, a: &Append) -> AppendOutcome {
        let partition = partition_of(&a.stream);
        let log = self.logs.entry(a.stream.clone()).or_default();
        let stored = |from: usize, log: &[SeenEvent]| AppendOutcome::Acknowledged {
            first_revision: from as u64,
            last_revision: (from + a.events.len() - 1) as u64,
            first_position: log[from].position,
            last_position: log[from + a.events.len() - 1].position,
            partition,
        };
        if let Some(at) = log.iter().position(|e| e.id == a.events[0].id) {
            return stored(at, log);
        }
        let ok = match a.expected {
            Expected::Any => true,
            Expected::NoStream => log.is_empty(),
            Expected::StreamExists => !log.is_empty(),
            Expected::Exact(n) => log.len() as u64 == n + 1,
        };
        if !ok {
            return AppendOutcome::Refused {
                reason: "WRONG_EXPECTED_REVISION".into(),
                actual: Some(log.last().map(|e| e.revision)),
                for_good: true,
            };
        }
        let from = log.len();
        for e in a.events.iter() {
            self.clock += 1;
            log.push(SeenEvent {
                revision: log.len() as u64,
                position: self.clock << 10 | u64::from(partition),
                id: e.id,
                data: e.data.clone(),
            });
        }
        stored(from, log)
    }

    fn log(&self, stream: &Arc<str>) -> &[SeenEvent] {
        self.logs.get(stream).map_or(&[], Vec::as_slice)
    }

    /// What a call may see: all, or for a stale one some prefix that has `min_position`.
    fn visible(
        &self,
        stream: &Arc<str>,
        consistency: Consistency,
        min_position: u64,
        rng: &mut StdRng,
    ) -> &[SeenEvent] {
        let log = self.log(stream);
        if consistency != Consistency::Stale {
            return log;
        }
        let least = log.partition_point(|e| e.position <= min_position);
        &log[..rng.random_range(least..=log.len())]
    }
}

/// Streams 0 and 2 share a partition, so that order across streams is checked too.
pub fn partition_of(stream: &str) -> u32 {
    let number: u32 = stream.rsplit('-').next().and_then(|n| n.parse().ok()).unwrap_or(0);
    number % 2
}

fn stream_name(i: u32) -> Arc<str> {
    let category = if i % 3 == 1 { LAST_CATEGORY } else { "merge" };
    format!("{category}-{i}").into()
}

pub fn random_data(rng: &mut impl Rng) -> Bytes {
    let field = ["a", "b", "c", "d"][rng.random_range(0..4usize)];
    let number: u64 = rng.random();
    let json = match rng.random_range(0..6) {
        0 => format!("{{\"{field}\":null,\"n\":{number}}}"),
        1 => format!("{{\"{field}\":{{\"x\":{number},\"y\":null}}}}"),
        2 => format!("{{\"{field}\":[{number}]}}"),
        _ => format!("{{\"{field}\":{number}}}"),
    };
    json.into()
}

/// A correct history and its final log, the same for the same seed.
pub fn correct(seed: u64, shape: Shape) -> (History, FinalLog) {
    let mut rng = StdRng::seed_from_u64(seed);
    let reducers = reducers();
    let mut store = Store { logs: BTreeMap::new(), clock: 1_000 };
    let mut history = History::default();
    let mut queue: BinaryHeap<Reverse<(u64, u64)>> = BinaryHeap::new();
    let mut steps: BTreeMap<u64, Step> = BTreeMap::new();
    let mut next_step = 0;
    let mut push = |queue: &mut BinaryHeap<_>, steps: &mut BTreeMap<u64, Step>, at: u64, step| {
        next_step += 1;
        steps.insert(next_step, step);
        queue.push(Reverse((at, next_step)));
    };
    let mut busy: BTreeMap<u32, (Intent, Option<AppendOutcome>)> = BTreeMap::new();
    let mut retry: BTreeMap<u32, Append> = BTreeMap::new();
    let mut last_position: BTreeMap<u32, u64> = BTreeMap::new();
    // A client's pipeline ends with its first failure.
    let mut pipelines: BTreeMap<u32, u64> = BTreeMap::new();
    let mut sequences = 0;
    for c in 0..shape.clients {
        push(&mut queue, &mut steps, u64::from(c), Step::Start(c));
    }
    let mut started = 0;
    // Distinct instants, so that no two are equal by chance.
    let mut now = 0;
    while let Some(Reverse((at, key))) = queue.pop() {
        now = at.max(now + 1);
        match steps.remove(&key).expect("pushed with the key") {
            Step::Start(c) => {
                if started >= shape.operations {
                    continue;
                }
                started += 1;
                let span = Span { start_ns: now, end_ns: 0 };
                let stream = stream_name(rng.random_range(0..shape.streams));
                let consistency = match rng.random_range(0..3) {
                    0 => Consistency::Linearizable,
                    1 => Consistency::Lease,
                    _ => Consistency::Stale,
                };
                let known = last_position.get(&c).copied().unwrap_or(0);
                let min_position = if consistency == Consistency::Stale && rng.random_bool(0.5) {
                    known
                } else {
                    0
                };
                let intent = if let Some(mut a) = retry.remove(&c) {
                    a.span = span;
                    Intent::Append(a)
                } else if rng.random_bool(0.5) {
                    let length = store.log(&stream).len() as u64;
                    let expected = match rng.random_range(0..6) {
                        0 => Expected::NoStream,
                        1 => Expected::StreamExists,
                        2 | 3 if length > 0 => Expected::Exact(length - 1),
                        _ => Expected::Any,
                    };
                    sequences += 1;
                    let pipeline = *pipelines.entry(c).or_default() << 8 | u64::from(c);
                    Intent::Append(Append {
                        client: c,
                        stream,
                        events: (0..rng.random_range(1..4))
                            .map(|_| Event { id: rng.random(), data: random_data(&mut rng) })
                            .collect(),
                        expected,
                        after_position: 0,
                        pipeline: rng.random_bool(0.3).then_some((pipeline, sequences)),
                        span,
                        outcome: AppendOutcome::Unknown { why: String::new() },
                    })
                } else if rng.random_bool(0.4) {
                    Intent::Read(Read {
                        client: c,
                        from_revision: rng
                            .random_bool(0.3)
                            .then(|| rng.random_range(0..=store.log(&stream).len() as u64)),
                        stream,
                        consistency,
                        min_position,
                        backwards: rng.random_bool(0.3),
                        max_count: if rng.random_bool(0.3) { 3 } else { 0 },
                        span,
                        seen: None,
                    })
                } else {
                    Intent::Lookup(Lookup {
                        client: c,
                        stream,
                        consistency,
                        min_position,
                        span,
                        outcome: LookupOutcome::None,
                    })
                };
                busy.insert(c, (intent, None));
                let effect = now + rng.random_range(1..60);
                push(&mut queue, &mut steps, effect, Step::Effect(c));
                push(&mut queue, &mut steps, effect + rng.random_range(1..60), Step::End(c));
            }
            Step::Effect(c) => {
                let (intent, outcome) = busy.get_mut(&c).expect("started");
                match intent {
                    // Now and then the request itself is lost.
                    Intent::Append(_) if rng.random_bool(0.05) => {}
                    Intent::Append(a) => *outcome = Some(store.append(a)),
                    Intent::Read(r) => {
                        let log = store.visible(&r.stream, r.consistency, r.min_position, &mut rng);
                        let mut seen: Vec<SeenEvent> = log
                            .iter()
                            .filter(|e| match (r.from_revision, r.backwards) {
                                (None, _) => true,
                                (Some(f), false) => e.revision >= f,
                                (Some(f), true) => e.revision <= f,
                            })
                            .cloned()
                            .collect();
                        if r.backwards {
                            seen.reverse();
                        }
                        if r.max_count > 0 {
                            seen.truncate(r.max_count as usize);
                        }
                        r.seen = Some(seen);
                    }
                    Intent::Lookup(l) => {
                        let log = store.visible(&l.stream, l.consistency, l.min_position, &mut rng);
                        if let Some(last) = log.last() {
                            let mut fold = Fold::new(reducers.of(&l.stream));
                            log.iter().for_each(|e| fold.push(&e.data));
                            l.outcome = LookupOutcome::State(SeenState {
                                revision: last.revision,
                                position: last.position,
                                data: fold.to_bytes(),
                            });
                        }
                    }
                }
            }
            Step::End(c) => {
                let (intent, outcome) = busy.remove(&c).expect("started");
                match intent {
                    Intent::Append(mut a) => {
                        a.span.end_ns = now;
                        // Now and then the answer is lost.
                        let outcome = outcome.filter(|_| !rng.random_bool(0.15));
                        match outcome {
                            Some(outcome) => {
                                if let AppendOutcome::Acknowledged { last_position: p, .. } =
                                    &outcome
                                {
                                    last_position.insert(c, *p);
                                }
                                // Sometimes one that was acknowledged is sent again.
                                if rng.random_bool(0.1)
                                    && matches!(outcome, AppendOutcome::Acknowledged { .. })
                                {
                                    retry.insert(c, Append { pipeline: None, ..a.clone() });
                                }
                                a.outcome = outcome;
                            }
                            None => {
                                a.outcome = AppendOutcome::Unknown { why: "no answer".into() };
                                if rng.random_bool(0.7) {
                                    retry.insert(c, Append { pipeline: None, ..a.clone() });
                                }
                            }
                        }
                        if !matches!(a.outcome, AppendOutcome::Acknowledged { .. }) {
                            *pipelines.entry(c).or_default() += 1;
                        }
                        history.appends.push(a);
                    }
                    Intent::Read(mut r) => {
                        r.span.end_ns = now;
                        history.reads.push(r);
                    }
                    Intent::Lookup(mut l) => {
                        l.span.end_ns = now;
                        history.lookups.push(l);
                    }
                }
                push(&mut queue, &mut steps, now + rng.random_range(1..20), Step::Start(c));
            }
        }
    }
    let streams = store.logs.into_iter().filter(|(_, log)| !log.is_empty()).collect();
    (history, FinalLog { streams })
}
