//! How many replicas each zone and each node gets, before any partition is looked at.
//!
//! Three rules, the earlier ones stronger: no node above its cap; each partition spread over as
//! many zones as the caps allow; each node near its weighted share. The second depends on the
//! zones' totals alone: as long as a zone's total is shared out evenly over the partitions, a
//! placement with those totals exists, and none with other totals is spread better.

/// Guards roundings of quotients that should be whole.
const EPSILON: f64 = 1e-6;

pub(crate) struct Node {
    pub id: u64,
    /// Index into the list of zones.
    pub zone: usize,
    /// Above 0.
    pub weight: u32,
}

pub(crate) struct Quotas {
    /// By node: the replicas that its weight alone would give it.
    pub shares: Vec<f64>,
    /// By node: never more than this.
    pub caps: Vec<usize>,
    /// By zone: its replicas; they add up to partitions × replication factor.
    pub zones: Vec<usize>,
    /// By node: its replicas; those of a zone add up to the zone's.
    pub nodes: Vec<usize>,
}

/// `kept`: by node, the replicas that it has now and might keep. Quotas stay at that as far as
/// the rules allow, for each replica less is one that moves.
pub(crate) fn quotas(
    nodes: &[Node],
    zone_count: usize,
    partitions: usize,
    replication_factor: usize,
    load_factor: f64,
    kept: &[usize],
) -> Quotas {
    let total = partitions * replication_factor;
    let each = partitions as f64;
    let shares = stretch(
        total as f64,
        nodes.iter().map(|n| (f64::from(n.weight), 0.0, each)),
    );
    let caps: Vec<usize> = shares
        .iter()
        .map(|s| up(load_factor * s).min(partitions))
        .collect();

    // Zones: the same level everywhere, as far as their nodes' caps reach. Between the level
    // reached and the next one the shares decide.
    let by_zone: Vec<Vec<usize>> = (0..zone_count)
        .map(|z| (0..nodes.len()).filter(|&i| nodes[i].zone == z).collect())
        .collect();
    let rooms: Vec<usize> = by_zone
        .iter()
        .map(|in_zone| in_zone.iter().map(|&i| caps[i]).sum())
        .collect();
    let filled = |level: usize| -> usize { rooms.iter().map(|&r| r.min(level * partitions)).sum() };
    let level = (0..=replication_factor)
        .rev()
        .find(|&level| filled(level) <= total)
        .unwrap_or_default();
    let zone_bounds: Vec<(usize, usize)> = rooms
        .iter()
        .map(|&r| (r.min(level * partitions), r.min((level + 1) * partitions)))
        .collect();
    let zone_targets = stretch(
        total as f64,
        by_zone
            .iter()
            .zip(&zone_bounds)
            .map(|(in_zone, &(lo, hi))| {
                let share: f64 = in_zone.iter().map(|&i| shares[i]).sum();
                (share, lo as f64, hi as f64)
            }),
    );

    // Nodes: within 10 % of the share, rounded outwards; further off only as far as the zones
    // force it.
    let mut targets = vec![0.0; nodes.len()];
    let mut bounds = vec![(0, 0); nodes.len()];
    let mut zone_limits = Vec::with_capacity(zone_count);
    for (z, in_zone) in by_zone.iter().enumerate() {
        let in_targets = stretch(
            zone_targets[z],
            in_zone.iter().map(|&i| (shares[i], 0.0, caps[i] as f64)),
        );
        let (mut at_rest_least, mut at_rest_most) = (0, 0);
        for (&i, target) in in_zone.iter().zip(in_targets) {
            let (least, most) = (down(0.9 * shares[i]), up(1.1 * shares[i]).min(caps[i]));
            targets[i] = target;
            bounds[i] = (least.min(down(target)), most.max(up(target)));
            at_rest_least += least;
            at_rest_most += most;
        }
        let (lo, hi) = zone_bounds[z];
        zone_limits.push((
            down(zone_targets[z]).min(lo.max(at_rest_least)),
            up(zone_targets[z]).max(hi.min(at_rest_most)),
        ));
    }

    let clamped = |i: usize| kept[i].clamp(bounds[i].0, bounds[i].1);
    let zones = settle(
        total,
        (0..zone_count).map(|z| {
            let start = by_zone[z].iter().map(|&i| clamped(i)).sum();
            (start, zone_limits[z], zone_targets[z])
        }),
    );
    let mut quotas = vec![0; nodes.len()];
    for (z, in_zone) in by_zone.iter().enumerate() {
        let settled = settle(
            zones[z],
            in_zone.iter().map(|&i| (kept[i], bounds[i], targets[i])),
        );
        for (&i, quota) in in_zone.iter().zip(settled) {
            quotas[i] = quota;
        }
    }
    Quotas {
        shares,
        caps,
        zones,
        nodes: quotas,
    }
}

fn down(x: f64) -> usize {
    (x + EPSILON).floor() as usize
}

fn up(x: f64) -> usize {
    (x - EPSILON).ceil().max(0.0) as usize
}

/// Values proportional to the weights within their bounds, adding up to `total`. Items are
/// (weight above 0, least, most).
fn stretch(total: f64, items: impl Iterator<Item = (f64, f64, f64)>) -> Vec<f64> {
    let items: Vec<_> = items.collect();
    let at = |factor: f64| {
        items
            .iter()
            .map(move |&(weight, least, most)| (factor * weight).clamp(least, most))
    };
    let (mut low, mut high) = (
        0.0,
        items
            .iter()
            .map(|&(w, _, most)| most / w)
            .fold(0.0, f64::max),
    );
    // As many halvings as a float has bits, and some for its exponent.
    for _ in 0..100 {
        let middle = (low + high) / 2.0;
        if at(middle).sum::<f64>() < total {
            low = middle;
        } else {
            high = middle;
        }
    }
    at(high).collect()
}

/// Whole numbers within their bounds that add up to `total`, as near to where they start as that
/// allows, those furthest from their targets moved first. Items are (start, (least, most),
/// target).
fn settle(total: usize, items: impl Iterator<Item = (usize, (usize, usize), f64)>) -> Vec<usize> {
    let items: Vec<_> = items.collect();
    let mut values: Vec<usize> = items
        .iter()
        .map(|&(start, (least, most), _)| start.clamp(least, most))
        .collect();
    let mut sum: usize = values.iter().sum();
    while sum != total {
        let rising = sum < total;
        let fill = |i: usize| {
            let half = if rising { 0.5 } else { -0.5 };
            (values[i] as f64 + half) / items[i].2.max(EPSILON)
        };
        let next = (0..items.len())
            .filter(|&i| {
                let (least, most) = items[i].1;
                if rising {
                    values[i] < most
                } else {
                    values[i] > least
                }
            })
            .min_by(|&a, &b| {
                let order = fill(a).total_cmp(&fill(b));
                if rising { order } else { order.reverse() }
            });
        let Some(i) = next else { break };
        if rising {
            values[i] += 1;
            sum += 1;
        } else {
            values[i] -= 1;
            sum -= 1;
        }
    }
    values
}
