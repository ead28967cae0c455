//! The loads against a cluster, through the client crate.
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use futures::{StreamExt as _, stream::FuturesUnordered};
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use ringfold_client::{
    Appender, Client, ClientConfig, ClientError, Consistency, Expected, NewEvent, Uuid,
};

use crate::measure::{self, LoadArgs, Report, Samples};

/// Answers of the setup that are not looked at yet.
const SETUP_PENDING_MAX: usize = 4_096;

/// The cluster.
#[derive(Clone, Debug, clap::Args)]
pub struct TargetArgs {
    /// URLs of nodes, comma-separated
    #[arg(
        long,
        env = "RINGFOLD_ENDPOINTS",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:2600"
    )]
    pub endpoints: Vec<String>,
    /// Connections to each node
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub channels: u32,
}

impl TargetArgs {
    /// Connects with room for `in_flight` pipelined appends.
    ///
    /// # Errors
    /// No endpoint answers.
    pub async fn connect(&self, in_flight: u32) -> Result<Client, ClientError> {
        let mut config = ClientConfig::new(self.endpoints.clone());
        config.channels_per_node = self.channels as usize;
        config.in_flight_max = in_flight.max(1) as usize;
        config.in_flight_bytes_max = 64 << 20;
        Client::connect(config).await
    }
}

#[derive(Clone, Debug, clap::Args)]
pub struct LookupArgs {
    /// Streams that are looked up at random; made beforehand where they are missing
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub streams: u32,
    /// Bytes of each state
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(32..=1_000_000))]
    pub bytes: u32,
    #[arg(long, default_value_t = Consistency::Linearizable)]
    pub consistency: Consistency,
    /// The streams are known to be there
    #[arg(long)]
    pub no_setup: bool,
}

#[derive(Clone, Debug, clap::Args)]
pub struct AppendArgs {
    /// Streams that are appended to at random
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub streams: u32,
    /// Bytes of each event's data
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(32..=1_000_000))]
    pub bytes: u32,
}

#[derive(Clone, Debug, clap::Args)]
pub struct ImportArgs {
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub events: u32,
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub streams: u32,
    /// Events of each append
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    pub events_per_append: u32,
    /// Bytes of each event's data
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(32..=1_000_000))]
    pub bytes: u32,
    /// Appends in flight
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub in_flight: u32,
    /// Makes other events than another run of the same number
    #[arg(long, default_value_t = 0)]
    pub run: u64,
}

/// A JSON object of exactly `bytes` bytes (at least 32) that says `n`.
pub fn document(n: u64, bytes: u32) -> Bytes {
    let head = format!("{{\"n\":{n},\"pad\":\"");
    let mut text = head.into_bytes();
    let pad = (bytes as usize).saturating_sub(text.len() + 2);
    text.resize(text.len() + pad, b'x');
    text.extend_from_slice(b"\"}");
    Bytes::from(text)
}

fn names(prefix: &str, count: u32) -> std::sync::Arc<[String]> {
    (0..count).map(|n| format!("{prefix}-{n}")).collect()
}

/// Makes the streams that lookups ask for, each with one event whose id is derived from its name.
///
/// # Errors
/// An append failed.
pub async fn setup_lookup(client: &Client, args: &LookupArgs) -> anyhow::Result<()> {
    let appender = client.appender();
    let mut pending = FuturesUnordered::new();
    let namespace = Uuid::from_u128(0x72696e67_666f_6c64_8000_6c6f6f6b7570);
    for n in 0..args.streams {
        let name = lookup_stream(args.bytes, n);
        let event = NewEvent::new("Made", document(n.into(), args.bytes))
            .id(Uuid::new_v5(&namespace, name.as_bytes()));
        pending.push(appender.push(&name, vec![event], Expected::Any).await);
        while pending.len() >= SETUP_PENDING_MAX {
            answered(pending.next().await)?;
        }
    }
    while let Some(answer) = pending.next().await {
        answered(Some(answer))?;
    }
    Ok(())
}

fn answered<T>(answer: Option<Result<T, ClientError>>) -> anyhow::Result<()> {
    match answer {
        Some(Err(e)) => Err(e).context("an append of the setup failed"),
        _ => Ok(()),
    }
}

fn lookup_stream(bytes: u32, n: u32) -> String {
    format!("bench_lookup_{bytes}-{n}")
}

/// Lookups of random streams.
///
/// # Errors
/// The streams could not be made.
pub async fn lookup(client: &Client, load: &LoadArgs, args: &LookupArgs) -> anyhow::Result<Report> {
    if !args.no_setup {
        setup_lookup(client, args).await?;
    }
    let names: std::sync::Arc<[String]> =
        (0..args.streams).map(|n| lookup_stream(args.bytes, n)).collect();
    let (consistency, bytes) = (args.consistency, args.bytes as usize);
    let title = format!("lookup, {consistency}, {} streams", args.streams);
    let report = measure::calls(&title, load, |worker| {
        let (client, names) = (client.clone(), names.clone());
        let mut rng = SmallRng::seed_from_u64(worker.into());
        move || {
            let (client, names) = (client.clone(), names.clone());
            let at = rng.random_range(0..names.len());
            async move {
                match client.lookup(&names[at], consistency).await {
                    Ok(Some(state)) if state.data.len() == bytes => Ok(0),
                    Ok(Some(state)) => Err(format!(
                        "{} has a state of {} bytes instead of {bytes}",
                        names[at],
                        state.data.len()
                    )),
                    Ok(None) => Err(format!("{} is missing", names[at])),
                    Err(e) => Err(e.to_string()),
                }
            }
        }
    })
    .await;
    Ok(report)
}

/// Appends of one event each, each waiting for its answer.
pub async fn append(client: &Client, load: &LoadArgs, args: &AppendArgs) -> Report {
    let names = names("bench_append", args.streams);
    let data = document(0, args.bytes);
    let title = format!("append, {} bytes, {} streams", args.bytes, args.streams);
    measure::calls(&title, load, |worker| {
        let (client, names, data) = (client.clone(), names.clone(), data.clone());
        let mut rng = SmallRng::seed_from_u64(worker.into());
        move || {
            let (client, names) = (client.clone(), names.clone());
            let at = rng.random_range(0..names.len());
            let event = NewEvent::new("Counted", data.clone());
            async move {
                match client.append(&names[at], vec![event], Expected::Any).await {
                    Ok(_) => Ok(1),
                    Err(e) => Err(e.to_string()),
                }
            }
        }
    })
    .await
}

/// Pipelined appends of one event each.
pub async fn append_stream(client: &Client, load: &LoadArgs, args: &AppendArgs) -> Report {
    let names = names("bench_append", args.streams);
    let data = document(0, args.bytes);
    let title = format!("append-stream, {} bytes, {} streams", args.bytes, args.streams);
    let appender = client.appender();
    // A few workers share the room of one appender.
    let count = load.in_flight.clamp(1, 4);
    measure::workers(&title, load, count, |worker, phase| {
        let (appender, names, data) = (appender.clone(), names.clone(), data.clone());
        let mut rng = SmallRng::seed_from_u64(worker.into());
        let room = (load.in_flight / count) as usize;
        async move {
            let mut samples = Samples::new(&phase);
            let mut pending = FuturesUnordered::new();
            while !phase.is_ended() {
                let at = rng.random_range(0..names.len());
                let event = NewEvent::new("Counted", data.clone());
                pending.push(timed_push(&appender, &names[at], at, vec![event]).await);
                while pending.len() >= room
                    && let Some(ended) = pending.next().await
                {
                    if let Some(failed) = take(&mut samples, ended) {
                        recover(&appender, &names[failed]).await;
                    }
                }
            }
            while pending.next().await.is_some() {}
            samples
        }
    })
    .await
}

/// An append that ended: when it began, the caller's key, its number of events.
type Ended<K> = (Instant, K, Result<u64, ClientError>);

async fn timed_push<K>(
    appender: &Appender,
    name: &str,
    key: K,
    events: Vec<NewEvent>,
) -> impl Future<Output = Ended<K>> + use<K> {
    let since = Instant::now();
    let count = events.len() as u64;
    let pending = appender.push(name, events, Expected::Any).await;
    async move { (since, key, pending.await.map(|_| count)) }
}

/// The key of an append that failed.
fn take<K>(samples: &mut Samples, (since, key, result): Ended<K>) -> Option<K> {
    let failed = result.is_err();
    samples.record(since, result.map_err(|e| e.to_string()));
    failed.then_some(key)
}

async fn recover(appender: &Appender, name: &str) {
    appender.resume(name);
    tokio::time::sleep(Duration::from_millis(10)).await;
}

/// Appends a given number of events over a given number of streams, as fast as they are taken.
pub async fn import(client: &Client, pids: &[u32], args: &ImportArgs) -> Report {
    let load = LoadArgs::new(args.in_flight, 0.0, pids);
    let title = format!(
        "import, {} events of {} bytes, {} streams, {} to an append",
        args.events, args.bytes, args.streams, args.events_per_append
    );
    let appender = client.appender();
    measure::once(&title, &load, async |phase| {
        let mut samples = Samples::new(&phase);
        let mut pending = FuturesUnordered::new();
        for (n, range) in import_batches(args).enumerate() {
            let stream = n as u32 % args.streams;
            let name = import_stream(args.run, stream);
            let events = range
                .map(|e| {
                    let id = Uuid::from_u64_pair(args.run, e.into());
                    NewEvent::new("Counted", document(e.into(), args.bytes)).id(id)
                })
                .collect();
            pending.push(timed_push(&appender, &name, stream, events).await);
            while pending.len() >= args.in_flight as usize
                && let Some(ended) = pending.next().await
            {
                if let Some(failed) = take(&mut samples, ended) {
                    recover(&appender, &import_stream(args.run, failed)).await;
                }
            }
        }
        while let Some(ended) = pending.next().await {
            take(&mut samples, ended);
        }
        samples
    })
    .await
}

/// The name of an import's stream.
pub fn import_stream(run: u64, stream: u32) -> String {
    format!("bench_import_{run}-{stream}")
}

/// The events of each append of an import; the appends go over the streams in turn.
pub fn import_batches(args: &ImportArgs) -> impl Iterator<Item = std::ops::Range<u32>> + use<> {
    let (events, each) = (args.events, args.events_per_append);
    (0..events.div_ceil(each)).map(move |n| n * each..(n * each + each).min(events))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_json_of_its_size() {
        for (n, bytes) in [(0, 32), (7, 64), (u64::from(u32::MAX), 300)] {
            let d = document(n, bytes);
            assert_eq!(d.len(), bytes as usize);
            let v: serde_json::Value = serde_json::from_slice(&d).unwrap();
            assert_eq!(v["n"], n);
        }
    }

    #[test]
    fn an_import_is_cut_without_a_rest() {
        let args = ImportArgs {
            events: 25,
            streams: 3,
            events_per_append: 10,
            bytes: 64,
            in_flight: 1,
            run: 0,
        };
        let cut: Vec<_> = import_batches(&args).collect();
        assert_eq!(cut, [0..10, 10..20, 20..25]);
    }
}
