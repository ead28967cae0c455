//! Progress bars of moves: one in all, one for each partition that is being copied.
use super::node_name;
use crate::output::{bar, bytes, say};
use indicatif::{MultiProgress, ProgressBar};
use ringfold_client::Move;
use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

/// Bars of single partitions; a terminal has some thirty lines.
const BARS_MAX: usize = 12;

type Key = (u32, u64, u64);

/// What the moves of all plans so far amount to. A move that a plan does not have any more is done.
#[derive(Default)]
pub struct Tally {
    open: BTreeMap<Key, Move>,
    moves_done: u64,
    bytes_done: u64,
}

fn key(m: &Move) -> Key {
    (m.partition, m.from_node_id, m.to_node_id)
}

impl Tally {
    pub fn take(&mut self, moves: &[Move]) {
        let now: BTreeMap<Key, Move> = moves.iter().map(|m| (key(m), m.clone())).collect();
        for (key, m) in &self.open {
            if !now.contains_key(key) {
                self.moves_done += 1;
                self.bytes_done += m.bytes;
            }
        }
        self.open = now;
    }

    /// Done and in all.
    pub fn moves(&self) -> (u64, u64) {
        (self.moves_done, self.moves_done + self.open.len() as u64)
    }

    /// Done and in all.
    pub fn bytes(&self) -> (u64, u64) {
        let (done, all) = self
            .open
            .values()
            .fold((0, 0), |(done, all), m| (done + m.bytes_done.min(m.bytes), all + m.bytes));
        (self.bytes_done + done, self.bytes_done + all)
    }

    /// Copies that have begun, the rest being a matter of moments.
    fn shown(&self) -> impl Iterator<Item = (&Key, &Move)> {
        self.open.iter().filter(|(_, m)| m.bytes > 0 && m.bytes_done > 0).take(BARS_MAX)
    }
}

/// Bars on a terminal, nothing elsewhere.
pub struct Progress {
    names: BTreeMap<u64, String>,
    tally: Tally,
    bars: MultiProgress,
    total: ProgressBar,
    of_move: BTreeMap<Key, ProgressBar>,
    started: Instant,
}

impl Progress {
    pub fn new(names: BTreeMap<u64, String>) -> Self {
        let bars = MultiProgress::with_draw_target(crate::output::draw_target());
        let total = bars.add(bar("{bar:30} {percent:>3} %  {msg}  {eta} left"));
        total.set_message("looking at the cluster");
        total.enable_steady_tick(Duration::from_millis(200));
        Self {
            names,
            tally: Tally::default(),
            bars,
            total,
            of_move: BTreeMap::new(),
            started: Instant::now(),
        }
    }

    pub fn take(&mut self, moves: &[Move], waiting: &[String]) {
        self.tally.take(moves);
        let ((moves, moves_all), (done, all)) = (self.tally.moves(), self.tally.bytes());
        // A move counts for itself as well: one of an empty partition has no bytes.
        self.total.set_length(all + moves_all);
        self.total.set_position(done + moves);
        let waits = waiting.first().map(|w| format!("  waits: {w}")).unwrap_or_default();
        self.total.set_message(format!(
            "{moves} of {moves_all} moves, {} of {}{waits}",
            bytes(done),
            bytes(all)
        ));
        let shown: BTreeMap<Key, Move> = self.tally.shown().map(|(k, m)| (*k, m.clone())).collect();
        self.of_move.retain(|key, bar| {
            let keep = shown.contains_key(key);
            if !keep {
                bar.finish_and_clear();
                self.bars.remove(bar);
            }
            keep
        });
        for (key, m) in shown {
            let name = |id: u64| node_name(&self.names, (id != 0).then_some(id));
            let bar = self.of_move.entry(key).or_insert_with(|| {
                let bar = bar("  {bar:28} {percent:>3} %  {msg}");
                self.bars.insert_before(&self.total, bar)
            });
            bar.set_length(m.bytes);
            bar.set_position(m.bytes_done.min(m.bytes));
            bar.set_message(format!(
                "partition {}: {} -> {}, {}, {}",
                m.partition,
                name(m.from_node_id),
                name(m.to_node_id),
                bytes(m.bytes),
                m.phase
            ));
        }
    }

    /// A line on stderr, above the bars.
    pub fn say(&self, what: fmt::Arguments<'_>) {
        self.bars.suspend(|| say(what));
    }

    /// Clears the bars. What was done, to follow on another text: empty if nothing was.
    pub fn finish(self) -> String {
        let _ = self.bars.clear();
        self.total.finish_and_clear();
        let ((moves, _), (done, _)) = (self.tally.moves(), self.tally.bytes());
        if moves == 0 {
            return String::new();
        }
        let seconds = self.started.elapsed().as_secs_f64();
        format!(" after {moves} moves of {} in {seconds:.1} s", bytes(done))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a_move(partition: u32, bytes: u64, bytes_done: u64) -> Move {
        Move { partition, from_node_id: 1, to_node_id: 2, bytes, bytes_done, ..Move::default() }
    }

    #[test]
    fn a_move_that_has_gone_from_the_plan_is_done() {
        let mut tally = Tally::default();
        tally.take(&[a_move(0, 100, 0), a_move(1, 50, 50), a_move(2, 0, 0)]);
        assert_eq!((tally.moves(), tally.bytes()), ((0, 3), (50, 150)));
        tally.take(&[a_move(0, 100, 30)]);
        assert_eq!((tally.moves(), tally.bytes()), ((2, 3), (80, 150)));
        // Another target, more to do.
        tally.take(&[a_move(0, 100, 30), a_move(7, 20, 0)]);
        assert_eq!((tally.moves(), tally.bytes()), ((2, 4), (80, 170)));
        tally.take(&[]);
        assert_eq!((tally.moves(), tally.bytes()), ((4, 4), (170, 170)));
    }

    #[test]
    fn a_report_of_more_than_all_counts_as_all() {
        let mut tally = Tally::default();
        tally.take(&[a_move(0, 100, 120)]);
        assert_eq!(tally.bytes(), (100, 100));
    }

    #[test]
    fn the_end_tells_what_was_done() {
        let mut progress = Progress::new(BTreeMap::new());
        progress.take(&[a_move(0, 2048, 1)], &["x".into()]);
        progress.take(&[], &[]);
        let said = progress.finish();
        assert!(said.starts_with(" after 1 moves of 2.00 KiB in "), "{said}");
        assert_eq!(Progress::new(BTreeMap::new()).finish(), "");
    }
}
