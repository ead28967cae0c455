//! Events that only make partitions large: appended before a test, each read back at its end. They
//! are made from a seed, so that nobody keeps them in memory, and do not compress.
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use ringfold_proto::v1;
use tokio::task::JoinSet;

use crate::cluster::{LocalCluster, partition_of, timed, within};
use crate::history::{AppendOutcome, Event, Expected};
use crate::load::{Store, append_request, outcome_of};

/// Streams of this category are no part of a load's history.
pub const CATEGORY: &str = "ballast";
const APPEND_BYTES: usize = 1 << 20;
const ATTEMPT_MAX: Duration = Duration::from_secs(10);
const GIVE_UP: Duration = Duration::from_secs(120);
const WRITERS: u64 = 4;

#[derive(Clone, Debug)]
pub struct Ballast {
    seed: u64,
    /// One in each partition.
    streams: Vec<Arc<str>>,
    events: u64,
    event_bytes: usize,
}

impl Ballast {
    /// About `bytes` of events over all partitions alike.
    pub fn new(seed: u64, partitions: u32, bytes: u64, event_bytes: usize) -> Self {
        let streams = (0..partitions).map(|p| {
            let mut names = (0..).map(|i| format!("{CATEGORY}-{i}"));
            names.find(|n| partition_of(n, partitions) == p).expect("some name").into()
        });
        let events = bytes / u64::from(partitions) / event_bytes as u64;
        Self { seed, streams: streams.collect(), events, event_bytes }
    }

    pub fn bytes(&self) -> u64 {
        self.streams.len() as u64 * self.events * self.event_bytes as u64
    }

    fn event(&self, stream: usize, revision: u64) -> Event {
        const LETTERS: &[u8; 64] =
            b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";
        let seed = self.seed ^ ((stream as u64 + 1) << 32) ^ revision;
        let mut rng = StdRng::seed_from_u64(seed);
        let id = rng.random();
        let mut data = b"{\"pad\":\"".to_vec();
        let start = data.len();
        data.resize(self.event_bytes - 2, 0);
        rng.fill_bytes(&mut data[start..]);
        data[start..].iter_mut().for_each(|b| *b = LETTERS[usize::from(*b % 64)]);
        data.extend_from_slice(b"\"}");
        Event { id, data: Bytes::from(data) }
    }

    /// Appends all of it.
    ///
    /// # Panics
    /// When an append has not succeeded within two minutes.
    pub async fn append(&self, cluster: &LocalCluster) {
        self.append_on(cluster.stores()).await;
    }

    /// The same on whatever answers as nodes do.
    ///
    /// # Panics
    /// Likewise.
    pub async fn append_on(&self, stores: Vec<Store>) {
        self.spread(stores, |me, store, stream| async move {
            let per_append = (APPEND_BYTES / me.event_bytes).max(1) as u64;
            let mut next = 0;
            while next < me.events {
                let to = (next + per_append).min(me.events);
                let events: Vec<Event> = (next..to).map(|r| me.event(stream, r)).collect();
                me.append_all(&store, stream, &events).await;
                next = to;
            }
        })
        .await;
    }

    async fn append_all(&self, stores: &[Store], stream: usize, events: &[Event]) {
        let start = Instant::now();
        for turn in stream.. {
            // The same ids again: what was stored already is answered again.
            let request = append_request(&self.streams[stream], events, Expected::Any, 0);
            let mut store = stores[turn % stores.len()].clone();
            let answer = within(store.append(timed(request, ATTEMPT_MAX)), ATTEMPT_MAX).await;
            let outcome = outcome_of(answer);
            if matches!(outcome, AppendOutcome::Acknowledged { .. }) {
                return;
            }
            assert!(start.elapsed() < GIVE_UP, "ballast is not taken: {outcome:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Reads all of it back.
    ///
    /// # Panics
    /// When an event is missing, another, or twice there.
    pub async fn verify(&self, cluster: &LocalCluster) {
        self.verify_on(cluster.running().map(|n| n.store()).collect()).await;
    }

    /// The same on whatever answers as nodes do.
    ///
    /// # Panics
    /// Likewise.
    pub async fn verify_on(&self, stores: Vec<Store>) {
        self.spread(stores, |me, store, stream| async move {
            let start = Instant::now();
            let mut turn = stream;
            let mut next = 0;
            while next < me.events {
                let request = v1::ReadRequest {
                    stream: me.streams[stream].to_string(),
                    from_revision: Some(next),
                    ..Default::default()
                };
                let mut store = store[turn % store.len()].clone();
                turn += 1;
                assert!(start.elapsed() < GIVE_UP, "{}: {next} read", me.streams[stream]);
                let Ok(pages) = store.read(request).await else { continue };
                let mut pages = pages.into_inner();
                while let Ok(Some(page)) = pages.message().await {
                    for e in page.events {
                        let expected = me.event(stream, next);
                        let name = &me.streams[stream];
                        assert_eq!(e.revision, next, "{name}");
                        assert_eq!(e.id[..], expected.id.to_be_bytes(), "{name} at {next}");
                        assert!(e.data == expected.data, "{name} at {next}: other data");
                        next += 1;
                    }
                }
            }
            assert_eq!(next, me.events, "{}: more than was appended", me.streams[stream]);
        })
        .await;
    }

    /// Runs `f` on every stream, a few at a time.
    async fn spread<F>(&self, stores: Vec<Store>, f: impl Fn(Self, Vec<Store>, usize) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let streams = 0..self.streams.len();
        let all: Vec<F> = streams.map(|s| f(self.clone(), stores.clone(), s)).collect();
        let queue = Arc::new(std::sync::Mutex::new(all));
        let mut workers = JoinSet::new();
        for _ in 0..WRITERS {
            let queue = queue.clone();
            workers.spawn(async move {
                loop {
                    let next = queue.lock().unwrap().pop();
                    let Some(next) = next else { return };
                    next.await;
                }
            });
        }
        while let Some(worker) = workers.join_next().await {
            worker.expect("ballast");
        }
    }
}
