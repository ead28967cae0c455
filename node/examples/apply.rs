//! What apply costs: microseconds of CPU per append, RocksDB below or memory.
//!
//! `cargo run --release -p ringfold-node --example apply -- [APPENDS] [STREAMS] [APPENDS_PER_ENTRY]`
#![allow(clippy::print_stdout)] // a program whose output is its figures
use bytes::Bytes;
use prost::Message;
use ringfold_node::partition::apply::{Genesis, PartitionMachine};
use ringfold_node::partition::content::hash_of_event;
use ringfold_node::partition::store::{MemoryDisk, SharedResources, SharedStore, open_rocks};
use ringfold_node::raft::apply::StateMachine;
use ringfold_proto::internal::{Append, Command, Entry, Event, command};
use std::path::Path;
use std::time::{Duration, Instant};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1).map(|a| a.parse::<usize>());
    let mut arg = |default| args.next().unwrap_or(Ok(default));
    let (appends, streams, per_entry) = (arg(200_000)?, arg(1_000)?, arg(16)?);
    println!(
        "{appends} appends of a 256-byte event over {streams} streams, {per_entry} to an entry"
    );

    let dir = std::env::temp_dir().join(format!("ringfold-apply-{}", std::process::id()));
    let resources = SharedResources::new(64 << 20, 2);
    for reducer in [2, 1] {
        let path = dir.join(reducer.to_string());
        let rocks = open_rocks(&path, &resources, true)?;
        let memory: SharedStore = MemoryDisk::default().open(Path::new("/p"), true)?;
        for (name, store) in [("rocksdb", rocks), ("memory", memory)] {
            if std::env::var("ONLY").is_ok_and(|only| only != name) {
                continue;
            }
            let mut machine =
                PartitionMachine::with_store(store, &Genesis::new(0, reducer, []), true)?;
            let entries = entries(appends, streams, per_entry);
            let (start, cpu) = (Instant::now(), thread_cpu());
            for (i, data) in entries.into_iter().enumerate() {
                machine.apply(i as u64 + 1, 1, data)?;
            }
            let (wall, cpu) = (start.elapsed(), thread_cpu() - cpu);
            let per = |t: Duration| t.as_secs_f64() * 1e6 / appends as f64;
            let rule = if reducer == 1 { "last" } else { "merge-patch" };
            println!(
                "{name:8} {rule:12} {:6.2} us CPU, {:6.2} us wall per append",
                per(cpu),
                per(wall)
            );
            if name == "rocksdb" {
                lookups(&machine, streams)?;
            }
        }
    }
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

fn lookups(machine: &PartitionMachine, streams: usize) -> Result<(), Box<dyn std::error::Error>> {
    let reader = machine.reader();
    for flushed in [false, true] {
        if flushed {
            reader.flush()?;
            (0..streams).try_for_each(|i| reader.stream(&name(i)).map(drop))?;
        }
        let (count, cpu) = (200_000, thread_cpu());
        let mut missed = 0;
        for i in 0..count {
            missed += u32::from(reader.stream_cached(&name(i % streams))?.is_none());
        }
        let each = (thread_cpu() - cpu).as_secs_f64() * 1e6 / count as f64;
        println!("         lookup inline {each:6.2} us CPU, {missed} missed, flushed: {flushed}");
    }
    Ok(())
}

fn name(i: usize) -> String {
    format!("customer-{i}")
}

fn entries(appends: usize, streams: usize, per_entry: usize) -> Vec<Bytes> {
    let mut entries = Vec::new();
    let mut entry = Entry { snapshot_every: 100, ..Default::default() };
    for i in 0..appends {
        let filler = "x".repeat(190);
        let data = format!(r#"{{"n":{i},"name":"Ada","address":"{filler}","field{}":{i}}}"#, i % 3);
        let mut event = Event {
            id: Bytes::copy_from_slice(uuid::Uuid::new_v4().as_bytes()),
            r#type: "CustomerChanged".into(),
            content_type: "application/json".into(),
            data: data.into(),
            ..Default::default()
        };
        event.content_hash = hash_of_event(&event);
        let append =
            Append { stream: name(i * 7919 % streams), events: vec![event], ..Default::default() };
        entry.commands.push(Command { command: Some(command::Command::Append(append)) });
        if entry.commands.len() == per_entry || i + 1 == appends {
            entry.stamp = (i as u64) << 21;
            let mut data = vec![1];
            entry.encode_raw(&mut data);
            entries.push(data.into());
            entry.commands.clear();
        }
    }
    entries
}

fn thread_cpu() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
}
