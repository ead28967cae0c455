//! Progress bars of moves: one in all, one for each partition that is being copied.
use super::{named, node_name};
use crate::output::{bar, bytes, say};
use indicatif::{MultiProgress, ProgressBar};
use ringfold_client::Move;
use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

/// Bars of single partitions; a terminal has some thirty lines.
const BARS_MAX: usize = 12;

/// What a move counts beside its bytes: a change of the membership takes about as long as copying so
/// many, and one of an empty partition has none.
const WEIGHT_BYTES: u64 = 1 << 20;

type Key = (u32, u64, u64);

/// What the moves of all plans so far amount to. A move that a plan does not have any more is done.
/// What is only taken away (the last of a move is that of the old replica's data) is none.
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
        let copies = moves.iter().filter(|m| m.to_node_id != 0);
        let now: BTreeMap<Key, Move> = copies.map(|m| (key(m), m.clone())).collect();
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

    /// Of the total bar: position and length.
    fn weighed(&self) -> (u64, u64) {
        let ((moves, moves_all), (done, all)) = (self.moves(), self.bytes());
        (done + moves * WEIGHT_BYTES, all + moves_all * WEIGHT_BYTES)
    }

    /// Copies that have begun, the rest being a matter of moments.
    fn shown(&self) -> impl Iterator<Item = (&Key, &Move)> {
        self.open.iter().filter(|(_, m)| m.bytes > 0 && m.bytes_done > 0).take(BARS_MAX)
    }
}

/// What waits, or this where nothing says that it does.
pub fn or_one<'a>(waiting: &'a [String], other: &'a String) -> &'a [String] {
    match waiting {
        [] => std::slice::from_ref(other),
        waiting => waiting,
    }
}

/// Bars on a terminal, nothing elsewhere.
pub struct Progress {
    names: BTreeMap<u64, String>,
    tally: Tally,
    bars: MultiProgress,
    total: ProgressBar,
    /// What waits, where nothing is being copied; below the total.
    waits: ProgressBar,
    of_move: BTreeMap<Key, ProgressBar>,
    started: Instant,
}

impl Progress {
    pub fn new(names: BTreeMap<u64, String>) -> Self {
        let bars = MultiProgress::with_draw_target(crate::output::draw_target());
        let total = bars.add(bar("{bar:30} {percent:>3} %  {wide_msg}"));
        total.set_length(1);
        total.set_message("looking at the cluster");
        total.enable_steady_tick(Duration::from_millis(200));
        let waits = bars.add(bar("{wide_msg}"));
        Self {
            names,
            tally: Tally::default(),
            bars,
            total,
            waits,
            of_move: BTreeMap::new(),
            started: Instant::now(),
        }
    }

    /// Whether nodes have joined that it has no name of.
    pub fn misses_names(&self, moves: &[Move]) -> bool {
        let nodes = moves.iter().flat_map(|m| [m.from_node_id, m.to_node_id]);
        nodes.into_iter().any(|id| id != 0 && !self.names.contains_key(&id))
    }

    pub fn rename(&mut self, names: BTreeMap<u64, String>) {
        self.names = names;
    }

    pub fn take(&mut self, moves: &[Move], waiting: &[String]) {
        self.tally.take(moves);
        let ((moves, moves_all), (done, all)) = (self.tally.moves(), self.tally.bytes());
        if moves_all > 0 {
            let (position, length) = self.tally.weighed();
            self.total.set_length(length);
            self.total.set_position(position);
            let left = match self.total.eta() {
                // Nothing to reckon from, or copied and to be handed over.
                _ if done == 0 || done == all => String::new(),
                left => format!(", {}s left", left.as_secs() + 1),
            };
            self.total.set_message(format!(
                "{moves} of {moves_all} moves, {} of {}{left}",
                bytes(done),
                bytes(all)
            ));
        }
        let shown: BTreeMap<Key, Move> = self.tally.shown().map(|(k, m)| (*k, m.clone())).collect();
        self.of_move.retain(|key, bar| {
            let keep = shown.contains_key(key);
            if !keep {
                bar.finish_and_clear();
                self.bars.remove(bar);
            }
            keep
        });
        self.waits.set_message(match waiting.first() {
            Some(first) if shown.is_empty() => format!("waits: {}", named(first, &self.names)),
            _ => String::new(),
        });
        for (key, m) in shown {
            let name = |id: u64| node_name(&self.names, (id != 0).then_some(id));
            let bar = self.of_move.entry(key).or_insert_with(|| {
                let bar = bar("  {bar:28} {percent:>3} %  {wide_msg}");
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
        self.waits.finish_and_clear();
        let ((moves, _), (done, _)) = (self.tally.moves(), self.tally.bytes());
        if moves == 0 {
            return String::new();
        }
        let seconds = self.started.elapsed().as_secs_f64();
        let moves = if moves == 1 { "1 move".into() } else { format!("{moves} moves") };
        format!(" after {moves} of {} in {seconds:.1} s", bytes(done))
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
    fn taking_the_old_replica_away_is_not_another_move() {
        let mut tally = Tally::default();
        tally.take(&[a_move(0, 100, 100)]);
        tally.take(&[Move { to_node_id: 0, ..a_move(0, 0, 0) }]);
        assert_eq!((tally.moves(), tally.bytes()), ((1, 1), (100, 100)));
        tally.take(&[]);
        assert_eq!(tally.moves(), (1, 1));
    }

    #[test]
    fn all_is_done_only_with_the_last_change_of_a_membership() {
        let mut tally = Tally::default();
        tally.take(&[a_move(0, 100, 100), a_move(1, 0, 0)]);
        assert_eq!(tally.weighed(), (100, 100 + 2 * WEIGHT_BYTES));
        tally.take(&[]);
        let (position, length) = tally.weighed();
        assert_eq!(position, length);
    }

    #[test]
    fn nodes_that_join_meanwhile_are_named() {
        let mut progress = Progress::new(BTreeMap::from([(1, "node-0".to_string())]));
        assert!(progress.misses_names(&[a_move(0, 1, 0)]));
        assert!(!progress.misses_names(&[Move { to_node_id: 0, ..a_move(0, 1, 0) }]));
        progress.rename(BTreeMap::from([(1, "node-0".into()), (2, "node-1".into())]));
        assert!(!progress.misses_names(&[a_move(0, 1, 0)]));
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
        assert!(said.starts_with(" after 1 move of 2.00 KiB in "), "{said}");
        assert_eq!(Progress::new(BTreeMap::new()).finish(), "");
    }
}
