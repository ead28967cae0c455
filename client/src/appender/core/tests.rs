//! The core against a model of the cluster that delays, loses, repeats and fails what it likes.
use std::collections::BTreeMap;

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::*;

const STREAMS: usize = 3;
const NODES: usize = 3;

/// One `AppendStream` call, as the cluster sees it. It goes on after the client gave it up.
#[derive(Default)]
struct Call {
    frames: VecDeque<v1::AppendStreamRequest>,
    answers: VecDeque<(u64, Result<v1::AppendResponse, ServerError>)>,
    failed: HashSet<String>,
    closed: bool,
}

/// What is stored: by stream, the appends in the order in which they took effect.
#[derive(Default)]
struct Cluster {
    stored: HashMap<String, Vec<u64>>,
    /// Proposals without an outcome: each takes effect later, or never.
    limbo: Vec<(String, u64)>,
}

impl Cluster {
    fn store(&mut self, stream: &str, id: u64) {
        let stored = self.stored.entry(stream.to_owned()).or_default();
        if !stored.contains(&id) {
            stored.push(id);
        }
    }
}

fn id_of(request: &v1::AppendRequest) -> u64 {
    u64::from_be_bytes(request.events[0].id[..8].try_into().unwrap())
}

fn error(code: Code, reason: &str, retry: &str) -> ServerError {
    ServerError {
        reason: reason.into(),
        metadata: [("retry".to_owned(), retry.to_owned())].into(),
        ..ServerError::local(code, "planned")
    }
}

struct World {
    rng: StdRng,
    now: Instant,
    core: Core<u64>,
    calls: BTreeMap<LaneId, Call>,
    cluster: Cluster,
    leader_of: [NodeKey; STREAMS],
    /// Appends in the order of their pushes, by stream, and their answers.
    pushed: Vec<Vec<u64>>,
    answers: HashMap<u64, Result<Appended, ClientError>>,
    next_id: u64,
    faults: bool,
}

fn stream_index(name: &str) -> usize {
    name[2..].parse().unwrap()
}

impl World {
    fn new(seed: u64) -> World {
        World {
            rng: StdRng::seed_from_u64(seed),
            now: Instant::now(),
            core: Core::new(RetryConfig {
                try_timeout: Duration::from_millis(500),
                backoff_min: Duration::from_millis(10),
                backoff_max: Duration::from_millis(100),
            }),
            calls: BTreeMap::new(),
            cluster: Cluster::default(),
            leader_of: [0; STREAMS],
            pushed: vec![Vec::new(); STREAMS],
            answers: HashMap::new(),
            next_id: 1,
            faults: true,
        }
    }

    fn act(&mut self) {
        for action in std::mem::take(&mut self.core.actions) {
            match action {
                Action::Open(lane, _) => {
                    assert!(self.calls.insert(lane, Call::default()).is_none());
                }
                Action::Send(lane, frame) => {
                    let call = self.calls.get_mut(&lane).unwrap();
                    assert!(!call.closed, "sent into a closed lane");
                    call.frames.push_back(frame);
                }
                Action::Close(lane) => self.calls.get_mut(&lane).unwrap().closed = true,
                Action::Answer(id, result) => {
                    assert!(self.answers.insert(id, result).is_none(), "answered twice");
                }
            }
        }
    }

    fn push(&mut self, i: usize) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let event = crate::NewEvent::new("T", "{}").id(uuid::Uuid::from_u64_pair(id, 0)).inner;
        let push = Push {
            request: v1::AppendRequest {
                stream: format!("s-{i}"),
                events: vec![event],
                ..Default::default()
            },
            expected: Expected::Any,
            deadline: self.now + Duration::from_secs(3),
            reply: id,
        };
        self.pushed[i].push(id);
        let leaders = self.leader_of;
        self.core.push(self.now, push, |s| leaders[stream_index(s)]);
        id
    }

    /// One frame of a call reaches its node and is judged.
    fn process(&mut self, lane: LaneId) {
        let Some(frame) = self.calls.get_mut(&lane).and_then(|c| c.frames.pop_front()) else {
            return;
        };
        let append = frame.append.unwrap();
        let (stream, id) = (append.stream.clone(), id_of(&append));
        let call = self.calls.get_mut(&lane).unwrap();
        if frame.resume {
            call.failed.remove(&stream);
        }
        let result = if call.failed.contains(&stream) {
            Err(error(Code::FailedPrecondition, "EARLIER_APPEND_FAILED", "no"))
        } else {
            let fault = if self.faults { self.rng.random_range(0..100) } else { 99 };
            match fault {
                0..5 => Err(error(Code::ResourceExhausted, "OVERLOADED", "yes")),
                5..10 => {
                    self.cluster.store(&stream, id);
                    Err(error(Code::Unavailable, "OUTCOME_UNKNOWN", "same_ids"))
                }
                10..15 => {
                    self.cluster.limbo.push((stream.clone(), id));
                    Err(error(Code::Unavailable, "OUTCOME_UNKNOWN", "same_ids"))
                }
                15..18 => Err(error(Code::ResourceExhausted, "DISK_FULL", "no")),
                _ => {
                    self.cluster.store(&stream, id);
                    Ok(v1::AppendResponse::default())
                }
            }
        };
        let call = self.calls.get_mut(&lane).unwrap();
        if result.is_err() {
            call.failed.insert(stream);
        }
        call.answers.push_back((frame.sequence, result));
    }

    fn answer(&mut self, lane: LaneId) {
        let Some(call) = self.calls.get_mut(&lane) else {
            return;
        };
        // Answers come "in the order in which they end": now and then not in that of the frames.
        let at = if call.answers.len() > 1 && self.rng.random_bool(0.2) {
            self.rng.random_range(0..call.answers.len())
        } else {
            0
        };
        let Some((sequence, result)) = call.answers.remove(at) else {
            return;
        };
        let leaders = self.leader_of;
        self.core.answered(self.now, lane, sequence, result, 0.5, |s| leaders[stream_index(s)]);
    }

    fn break_lane(&mut self, lane: LaneId) {
        let Some(call) = self.calls.get_mut(&lane).filter(|c| !c.closed) else {
            return;
        };
        call.closed = true;
        // What was sent may still arrive, or a part of it.
        let kept = self.rng.random_range(0..=call.frames.len());
        call.frames.truncate(kept);
        let leaders = self.leader_of;
        // Whatever the call ends with says nothing about what is in flight.
        let e = match self.rng.random_range(0..4) {
            0 => error(Code::Unavailable, "NODE_STOPPING", "yes"),
            1 => ServerError::local(Code::OutOfRange, "an answer was too large"),
            _ => ServerError::local(Code::Unavailable, "broken"),
        };
        self.core.closed(self.now, lane, &e, true, 0.5, |s| leaders[stream_index(s)]);
    }

    fn tick(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
        let leaders = self.leader_of;
        self.core.tick(self.now, 0.5, |s| leaders[stream_index(s)]);
    }

    fn random_lane(&mut self) -> LaneId {
        let n = self.calls.len().max(1);
        let at = self.rng.random_range(0..n);
        // Young lanes are where things happen, old ones go on now and then.
        let at = at.max(self.rng.random_range(0..n));
        self.calls.keys().nth(at).copied().unwrap_or(0)
    }

    fn step(&mut self) {
        let lane = self.random_lane();
        match self.rng.random_range(0..1_000) {
            0..250 => {
                let i = self.rng.random_range(0..STREAMS);
                self.push(i);
            }
            250..600 => self.process(lane),
            600..900 => self.answer(lane),
            900..960 => {
                let ms = self.rng.random_range(0..60);
                self.tick(ms);
            }
            960..965 => self.tick(600),
            965..975 => self.break_lane(lane),
            975..985 => {
                let i = self.rng.random_range(0..STREAMS);
                self.leader_of[i] = self.rng.random_range(0..NODES);
            }
            985..995 => {
                let i = self.rng.random_range(0..STREAMS);
                self.core.resume(&format!("s-{i}"));
            }
            _ => {
                if let Some((stream, id)) = self.cluster.limbo.pop() {
                    self.cluster.store(&stream, id);
                }
            }
        }
        self.act();
    }

    /// Everything that is under way ends, and late copies arrive last of all.
    fn settle(&mut self) {
        self.faults = false;
        for _ in 0..2_000 {
            let open: Vec<LaneId> =
                self.calls.iter().filter(|(_, c)| !c.closed).map(|(&l, _)| l).collect();
            for lane in open {
                self.process(lane);
                self.answer(lane);
                self.act();
            }
            self.tick(5);
            self.act();
        }
        let all: Vec<LaneId> = self.calls.keys().copied().collect();
        for lane in all {
            while !self.calls[&lane].frames.is_empty() {
                self.process(lane);
            }
        }
        for (stream, id) in std::mem::take(&mut self.cluster.limbo) {
            self.cluster.store(&stream, id);
        }
    }

    fn check(&self, seed: u64) {
        assert!(self.core.items.is_empty(), "seed {seed}: left over");
        assert!(self.core.waiting.is_empty(), "seed {seed}: waits for nothing");
        assert!(self.core.lanes.values().all(|l| l.in_flight == 0));
        assert_eq!(self.core.streams.len(), self.core.failed, "seed {seed}");
        for (i, pushed) in self.pushed.iter().enumerate() {
            let none = Vec::new();
            let stored = self.cluster.stored.get(&format!("s-{i}")).unwrap_or(&none);
            for id in pushed {
                match &self.answers[id] {
                    Ok(_) => assert!(stored.contains(id), "seed {seed}: {id} is lost"),
                    Err(e) if e.is_not_stored() => {
                        assert!(!stored.contains(id), "seed {seed}: {id} is stored: {e}");
                    }
                    Err(_) => {}
                }
            }
            let acknowledged = |id: &&u64| self.answers[*id].is_ok();
            let order: Vec<_> = pushed.iter().filter(acknowledged).collect();
            let stored_order: Vec<_> = stored.iter().filter(acknowledged).collect();
            assert_eq!(order, stored_order, "seed {seed}: order of s-{i}");
        }
    }
}

#[test]
fn order_and_answers_are_right_whatever_the_cluster_does() {
    let (mut ok, mut unknown, mut refused) = (0, 0, 0);
    for seed in 0..1_000 {
        let mut world = World::new(seed);
        for _ in 0..1_500 {
            world.step();
        }
        world.settle();
        world.check(seed);
        for answer in world.answers.values() {
            match answer {
                Ok(_) => ok += 1,
                Err(ClientError::Unknown { .. }) => unknown += 1,
                Err(_) => refused += 1,
            }
        }
    }
    // Each kind of end was met, or the test shows less than it says.
    assert!(ok > 10_000 && unknown > 1_000 && refused > 1_000, "{ok} {unknown} {refused}");
}

#[test]
fn an_append_without_an_answer_by_its_deadline_is_unknown() {
    let mut world = World::new(1);
    let id = world.push(0);
    world.act();
    for _ in 0..400 {
        world.tick(10);
        world.act();
    }
    let answer = &world.answers[&id];
    assert!(matches!(answer, Err(ClientError::Unknown { .. })), "{answer:?}");
    // It was sent again on new lanes meanwhile, with the same id.
    let sent: Vec<u64> = world
        .calls
        .values()
        .flat_map(|c| &c.frames)
        .map(|f| id_of(f.append.as_ref().unwrap()))
        .collect();
    assert!(sent.len() > 2 && sent.iter().all(|&s| s == id), "{sent:?}");
}

#[test]
fn an_append_that_never_left_is_unavailable_and_not_stored() {
    let mut world = World::new(1);
    let id = world.push(0);
    world.act();
    let refused = ServerError {
        never_sent: true,
        ..ServerError::local(Code::Unavailable, "connection refused")
    };
    for _ in 0..400 {
        let open: Vec<LaneId> =
            world.calls.iter().filter(|(_, c)| !c.closed).map(|(&l, _)| l).collect();
        for lane in open {
            world.calls.get_mut(&lane).unwrap().closed = true;
            world.core.closed(world.now, lane, &refused, false, 0.5, |_| 0);
        }
        world.tick(10);
        world.act();
    }
    let answer = &world.answers[&id];
    assert!(matches!(answer, Err(ClientError::Unavailable { .. })), "{answer:?}");
}
