//! Apply alone: entries of appends into real databases, flushed as a node flushes them.
use std::{path::Path, time::Instant};

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use prost::Message as _;
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use ringfold_node::{
    api::validate::partition_of,
    clock,
    partition::{
        apply::{CommandOutcome, Genesis, PartitionMachine},
        position,
        store::SharedResources,
    },
    raft::{ENTRY_FORMAT, apply::StateMachine as _, runtime::FlushSettings},
};
use ringfold_proto::internal::Entry;

use super::{PARTITIONS, command, stream};
use crate::measure::{self, LoadArgs, Report, Samples};

#[derive(Clone, Debug, clap::Args)]
pub struct ApplyArgs {
    #[arg(long, default_value_t = 300_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub appends: u32,
    /// Appends that one entry carries
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    pub appends_per_entry: u32,
    /// Streams that are appended to at random
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub streams: u32,
    /// A power of two
    #[arg(long, default_value_t = PARTITIONS, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    pub partitions: u32,
    /// Bytes of each event's data
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(32..=1_000_000))]
    pub bytes: u32,
}

/// Each partition's entries, in order, and how many appends each has.
fn entries(args: &ApplyArgs) -> Vec<(usize, Bytes, u64)> {
    let mut rng = SmallRng::seed_from_u64(1);
    let mut waiting: Vec<Vec<_>> = vec![Vec::new(); args.partitions as usize];
    let mut out = Vec::new();
    let mut pack = |partition: usize, commands: Vec<_>| {
        let count = commands.len() as u64;
        let entry = Entry {
            stamp: position::stamp(clock::wall_ms()),
            max_state_bytes: 1 << 20,
            snapshot_every: 100,
            commands,
        };
        let mut data = vec![ENTRY_FORMAT];
        entry.encode_raw(&mut data);
        out.push((partition, Bytes::from(data), count));
    };
    for id in 0..args.appends {
        let n = rng.random_range(0..args.streams);
        let partition = partition_of(&stream(n), args.partitions) as usize;
        let commands = &mut waiting[partition];
        commands.push(command(n, id.into(), args.bytes));
        if commands.len() >= args.appends_per_entry as usize {
            pack(partition, std::mem::take(commands));
        }
    }
    for (partition, commands) in waiting.into_iter().enumerate().filter(|(_, c)| !c.is_empty()) {
        pack(partition, commands);
    }
    out
}

/// Applies entries made beforehand into databases below `dir`.
///
/// # Errors
/// A database cannot be opened or written, or an append is refused.
pub async fn run(dir: &Path, args: &ApplyArgs) -> anyhow::Result<Report> {
    if !args.partitions.is_power_of_two() {
        return Err(anyhow!("--partitions {} is not a power of two", args.partitions));
    }
    let entries = entries(args);
    let resources = SharedResources::new(256 << 20, 2);
    let machines = (0..args.partitions).map(|p| {
        let path = dir.join(p.to_string());
        PartitionMachine::open(&path, &resources, &Genesis::new(p, 2, []), true)
    });
    let mut machines = machines
        .collect::<Result<Vec<_>, _>>()
        .with_context(|| format!("cannot open databases in {}", dir.display()))?;
    let mut failed = None;
    let title = format!("apply, {} appends to an entry", args.appends_per_entry);
    let load = LoadArgs::new(1, 0.0, &[]);
    let report = measure::once(&title, &load, async |phase| {
        let mut samples = Samples::new(&phase);
        failed = apply(&mut machines, entries, &mut samples).err();
        samples
    })
    .await;
    match failed {
        Some(e) => Err(e),
        None => Ok(report),
    }
}

fn apply(
    machines: &mut [PartitionMachine],
    entries: Vec<(usize, Bytes, u64)>,
    samples: &mut Samples,
) -> anyhow::Result<()> {
    let flush = FlushSettings::default();
    for (partition, data, count) in entries {
        let since = Instant::now();
        let machine = &mut machines[partition];
        let (index, ..) = machine.applied();
        let outcomes = machine.apply(index + 1, 1, data).map_err(|e| anyhow!(e))?;
        let stored = outcomes.iter().filter(|o| matches!(o, CommandOutcome::Appended(_)));
        if stored.count() as u64 != count {
            return Err(anyhow!("an append was refused: {outcomes:?}"));
        }
        for _ in 0..count {
            samples.record(since, Ok(1));
        }
        if machine.unflushed_bytes() >= flush.bytes {
            machine.reader().flush()?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_append_is_applied() {
        let dir = tempfile::tempdir().unwrap();
        let args =
            ApplyArgs { appends: 101, appends_per_entry: 8, streams: 5, partitions: 4, bytes: 64 };
        let report = run(dir.path(), &args).await.unwrap();
        assert_eq!((report.calls, report.errors), (101, 0));
        assert_eq!(report.events_per_s.map(|e| e > 0.0), Some(true));
    }
}
