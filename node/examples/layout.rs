//! Event bytes in the order of streams or of positions: what each costs to write and to read.
//!
//! `cargo run --release -p ringfold-node --example layout -- [EVENTS] [STREAMS]`
#![allow(clippy::print_stdout)] // a program whose output is its figures
use ringfold_node::partition::keys;
use ringfold_node::partition::store::{Batch, Order, SharedResources, SharedStore, open_rocks};
use std::time::Instant;

/// Of an event's value; half of it cannot be compressed.
const EVENT_BYTES: usize = 330;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1).map(|a| a.parse::<u64>());
    let mut arg = |default| args.next().unwrap_or(Ok(default));
    let (events, streams) = (arg(1_000_000)?, arg(10_000)?);
    println!("{events} events of {EVENT_BYTES} bytes over {streams} streams");
    let dir = std::env::temp_dir().join(format!("ringfold-layout-{}", std::process::id()));
    for by_stream in [true, false] {
        let resources = SharedResources::with_memtables(32 << 20, 64 << 20, 2);
        let store = open_rocks(&dir.join(by_stream.to_string()), &resources, true)?;
        let before = written_bytes()?;
        let start = Instant::now();
        write(&store, by_stream, events, streams)?;
        // What compaction still owes belongs to the price.
        std::thread::sleep(std::time::Duration::from_secs(5));
        let amplification =
            (written_bytes()? - before) as f64 / (events as usize * EVENT_BYTES) as f64;
        let name = if by_stream { "streams" } else { "positions" };
        println!(
            "in the order of {name}: {:.1} s, {amplification:.2} bytes written per byte",
            start.elapsed().as_secs_f64() - 5.0
        );
        read(&store, by_stream, events, streams)?;
    }
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

fn stream_of(i: u64, streams: u64) -> String {
    format!("customer-{}", i.wrapping_mul(0x9e37_79b9_7f4a_7c15) % streams)
}

fn event_key(stream: &str, revision: u64) -> Vec<u8> {
    keys::owned(|k| keys::event(k, keys::stream_hash(stream), stream, revision))
}

/// In both layouts a small record in the other order leads to the event.
fn write(
    store: &SharedStore,
    by_stream: bool,
    events: u64,
    streams: u64,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut batch = Batch::default();
    let mut value = vec![0u8; EVENT_BYTES];
    let mut random = 1u64;
    let mut revisions = std::collections::HashMap::new();
    for i in 0..events {
        for b in &mut value[..EVENT_BYTES / 2] {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *b = (random >> 56) as u8;
        }
        let stream = stream_of(i, streams);
        let revision = revisions.entry(stream.clone()).or_insert(0u64);
        let (by_stream_key, by_position_key) =
            (event_key(&stream, *revision), keys::owned(|k| keys::position(k, i)));
        *revision += 1;
        if by_stream {
            batch.put(&by_stream_key, &value);
            batch.put(&by_position_key, &by_stream_key);
        } else {
            batch.put(&by_stream_key, &by_position_key);
            batch.put(&by_position_key, &value);
        }
        if i % 16 == 15 {
            store.write(&batch)?;
            batch.clear();
        }
    }
    store.write(&batch)?;
    Ok(store.flush()?)
}

/// One stream after the other, then all in the order of positions.
fn read(
    store: &SharedStore,
    by_stream: bool,
    events: u64,
    streams: u64,
) -> Result<(), Box<dyn std::error::Error>> {
    let follow =
        |from: &[u8], to: &[u8], direct: bool| -> Result<usize, Box<dyn std::error::Error>> {
            let (mut count, mut pointers) = (0, Vec::new());
            store.scan(from, to, Order::Ascending, &mut |_, value| {
                count += 1;
                if !direct {
                    pointers.push(value.to_vec());
                }
                true
            })?;
            for key in pointers {
                store.get(&key)?.ok_or("an event is missing")?;
            }
            Ok(count)
        };
    let (start, mut count) = (Instant::now(), 0);
    for i in 0..(streams / 10) {
        let name = format!("customer-{}", i * 7 % streams);
        count += follow(&event_key(&name, 0), &event_key(&name, u64::MAX), by_stream)?;
    }
    println!(
        "  streams, one by one:    {:.2} us per event",
        start.elapsed().as_secs_f64() * 1e6 / count as f64
    );
    let (start, mut count) = (Instant::now(), 0);
    for page in 0..(events / 10_000) {
        let key = |i| keys::owned(|k| keys::position(k, i));
        count += follow(&key(page * 10_000), &key(page * 10_000 + 1_000), !by_stream)?;
    }
    println!(
        "  all, in their positions: {:.2} us per event",
        start.elapsed().as_secs_f64() * 1e6 / count as f64
    );
    Ok(())
}

fn written_bytes() -> Result<u64, Box<dyn std::error::Error>> {
    let io = std::fs::read_to_string("/proc/self/io")?;
    let line =
        io.lines().find_map(|l| l.strip_prefix("write_bytes: ")).ok_or("no /proc/self/io")?;
    Ok(line.parse()?)
}
