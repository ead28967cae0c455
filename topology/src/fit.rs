//! Fills rows from columns: each row takes as many different columns as it demands, each column
//! goes to as many rows as its quota. Partitions take zones this way, then nodes.

use std::collections::VecDeque;

pub(crate) struct Fit<'a> {
    /// By row: how many columns it takes. As much in sum as the quotas.
    pub demands: &'a [usize],
    /// By column: how many rows it goes to.
    pub quotas: &'a [usize],
    /// By row: the columns that it has now, without repeats.
    pub kept: &'a [Vec<usize>],
}

impl Fit<'_> {
    /// `walk`: a row's candidates, the best first, repeats allowed, every column among them.
    /// `gives_up`: whether a row rather than another gives up a column that has too many.
    ///
    /// Finds a filling wherever there is one; None where there is none.
    pub(crate) fn fill<W: Iterator<Item = usize>>(
        &self,
        walk: impl Fn(usize) -> W,
        gives_up: impl Fn(usize, usize) -> bool,
    ) -> Option<Vec<Vec<usize>>> {
        let mut rows = self.kept.to_vec();
        let mut loads = vec![0; self.quotas.len()];
        for &c in rows.iter().flatten() {
            loads[c] += 1;
        }
        self.trim(&mut rows, &mut loads, gives_up);
        for (r, row) in rows.iter_mut().enumerate() {
            if row.len() == self.demands[r] {
                continue;
            }
            for c in walk(r) {
                if loads[c] < self.quotas[c] && !row.contains(&c) {
                    row.push(c);
                    loads[c] += 1;
                    if row.len() == self.demands[r] {
                        break;
                    }
                }
            }
        }
        // Swaps of what came only now cost nothing; only then those of what was there.
        for swaps in [Swaps::New, Swaps::Any] {
            for r in 0..rows.len() {
                while rows[r].len() < self.demands[r] && self.swap(&mut rows, &mut loads, r, swaps)
                {
                }
            }
        }
        let full = |(row, &demand): (&Vec<usize>, &usize)| row.len() == demand;
        rows.iter().zip(self.demands).all(full).then_some(rows)
    }

    /// Takes away what is too much in rows and in columns.
    fn trim(
        &self,
        rows: &mut [Vec<usize>],
        loads: &mut [usize],
        gives_up: impl Fn(usize, usize) -> bool,
    ) {
        for (row, &demand) in rows.iter_mut().zip(self.demands) {
            while row.len() > demand {
                let fullest = (0..row.len())
                    .max_by_key(|&i| loads[row[i]] as isize - self.quotas[row[i]] as isize);
                let Some(i) = fullest else { break };
                loads[row.remove(i)] -= 1;
            }
        }
        let mut holders = vec![Vec::new(); self.quotas.len()];
        for (r, row) in rows.iter().enumerate() {
            for &c in row {
                if loads[c] > self.quotas[c] {
                    holders[c].push(r);
                }
            }
        }
        for (c, mut holding) in holders.into_iter().enumerate() {
            // Rows that lack the least first: a column with room can go to a row only once.
            holding.sort_by_key(|&r| (self.demands[r] - rows[r].len(), !gives_up(r, c), r));
            for &r in &holding[..loads[c].saturating_sub(self.quotas[c]).min(holding.len())] {
                rows[r].retain(|&other| other != c);
                loads[c] -= 1;
            }
        }
    }

    /// Gives row `start` one more column where every column with room is in it already: it takes
    /// a full one, which another row gives up for another, and so on to one with room. The
    /// shortest such chain, so no row is in it twice. False where there is none.
    fn swap(
        &self,
        rows: &mut [Vec<usize>],
        loads: &mut [usize],
        start: usize,
        swaps: Swaps,
    ) -> bool {
        let columns = self.quotas.len();
        let mut holders = vec![Vec::new(); columns];
        for (r, row) in rows.iter().enumerate() {
            for &c in row {
                if swaps == Swaps::Any || !self.kept[r].contains(&c) {
                    holders[c].push(r);
                }
            }
        }
        // By column: the row that would take it, and the column that the row would give up.
        let mut via: Vec<Option<(usize, Option<usize>)>> = vec![None; columns];
        let mut queue = VecDeque::new();
        for c in (0..columns).filter(|c| !rows[start].contains(c)) {
            via[c] = Some((start, None));
            queue.push_back(c);
        }
        while let Some(c) = queue.pop_front() {
            if loads[c] < self.quotas[c] {
                loads[c] += 1;
                self.follow(rows, &via, c);
                return true;
            }
            for &r in &holders[c] {
                for (next, reached) in via.iter_mut().enumerate() {
                    if reached.is_none() && !rows[r].contains(&next) {
                        *reached = Some((r, Some(c)));
                        queue.push_back(next);
                    }
                }
            }
        }
        false
    }

    /// Carries a chain of swaps out, from the column with room back to the row that lacks one.
    fn follow(&self, rows: &mut [Vec<usize>], via: &[Option<(usize, Option<usize>)>], open: usize) {
        let mut gained = open;
        while let Some((r, given_up)) = via[gained] {
            rows[r].push(gained);
            let Some(c) = given_up else { return };
            rows[r].retain(|&other| other != c);
            gained = c;
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Swaps {
    /// Of columns that the row did not have at first.
    New,
    Any,
}
