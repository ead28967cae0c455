//! Who leads: each node as many of its partitions as its replicas say, rounded either way.

use std::collections::VecDeque;

/// The leader of each partition, as an index of a node. `rows`: by partition, its nodes.
/// `current`: by partition, who led; kept where the balance allows it.
pub(crate) fn leaders(
    rows: &[Vec<usize>],
    current: &[Option<usize>],
    node_count: usize,
    replication_factor: usize,
) -> Vec<usize> {
    let mut loads = vec![0usize; node_count];
    for &n in rows.iter().flatten() {
        loads[n] += 1;
    }
    let least = |n: usize| loads[n] / replication_factor;
    let most = |n: usize| loads[n].div_ceil(replication_factor);

    let mut leads = vec![0usize; node_count];
    let mut chosen: Vec<Option<usize>> =
        rows.iter().zip(current).map(|(row, led)| led.filter(|n| row.contains(n))).collect();
    for &n in chosen.iter().flatten() {
        leads[n] += 1;
    }
    let mut leaders = Vec::with_capacity(rows.len());
    for (p, row) in rows.iter().enumerate() {
        // Rows are in the ring's order, so equal nodes take turns.
        let leader = chosen[p].take().or_else(|| {
            let next = row.iter().copied().min_by(|&a, &b| {
                // leads / loads, without a division
                (leads[a] * loads[b]).cmp(&(leads[b] * loads[a]))
            });
            if let Some(n) = next {
                leads[n] += 1;
            }
            next
        });
        leaders.push(leader.unwrap_or_default());
    }

    // Even leaderships exist for whatever rows (each replica could lead one part in
    // `replication_factor`, and flows round to whole numbers), so chains of hand-overs reach them.
    for n in 0..node_count {
        while leads[n] > most(n)
            && shift(rows, &mut leaders, &mut leads, n, true, &|w, l| l < most(w))
        {}
    }
    for n in 0..node_count {
        while leads[n] < least(n)
            && shift(rows, &mut leaders, &mut leads, n, false, &|w, l| l > least(w))
        {}
    }
    leaders
}

/// Hands one leadership from node `start` along the shortest chain to a node that `fits` (called
/// with the node and what it leads), or, not `away`, from such a node to `start`.
fn shift(
    rows: &[Vec<usize>],
    leaders: &mut [usize],
    leads: &mut [usize],
    start: usize,
    away: bool,
    fits: &dyn Fn(usize, usize) -> bool,
) -> bool {
    let mut via: Vec<Option<(usize, usize)>> = vec![None; leads.len()];
    let mut seen = vec![false; leads.len()];
    seen[start] = true;
    // By node: the partitions over which a leadership can go on from it.
    let mut steps = vec![Vec::new(); leads.len()];
    for (p, row) in rows.iter().enumerate() {
        if away {
            steps[leaders[p]].push(p);
        } else {
            for &n in row.iter().filter(|&&n| n != leaders[p]) {
                steps[n].push(p);
            }
        }
    }
    let mut queue = VecDeque::from([start]);
    while let Some(n) = queue.pop_front() {
        if n != start && fits(n, leads[n]) {
            let (gains, loses) = if away { (n, start) } else { (start, n) };
            leads[gains] += 1;
            leads[loses] -= 1;
            let mut at = n;
            while let Some((p, before)) = via[at] {
                leaders[p] = if away { at } else { before };
                at = before;
            }
            return true;
        }
        for &p in &steps[n] {
            let leader = [leaders[p]];
            let nexts = if away { &rows[p][..] } else { &leader[..] };
            for &next in nexts {
                if !seen[next] {
                    seen[next] = true;
                    via[next] = Some((p, n));
                    queue.push_back(next);
                }
            }
        }
    }
    false
}
