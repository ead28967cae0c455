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

/// (least, most)
type Limits = (usize, usize);

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
    let shares = stretch(total as f64, nodes.iter().map(|n| (f64::from(n.weight), 0.0, each)));
    let caps: Vec<usize> = shares.iter().map(|s| up(load_factor * s).min(partitions)).collect();

    // Zones: the same level everywhere, as far as their nodes' caps reach. Between the level
    // reached and the next one the shares decide.
    let by_zone: Vec<Vec<usize>> = (0..zone_count)
        .map(|z| (0..nodes.len()).filter(|&i| nodes[i].zone == z).collect())
        .collect();
    let rooms: Vec<usize> =
        by_zone.iter().map(|in_zone| in_zone.iter().map(|&i| caps[i]).sum()).collect();
    let filled = |level: usize| -> usize { rooms.iter().map(|&r| r.min(level * partitions)).sum() };
    let level =
        (0..=replication_factor).rev().find(|&level| filled(level) <= total).unwrap_or_default();
    let zone_bounds: Vec<Limits> = rooms
        .iter()
        .map(|&r| (r.min(level * partitions), r.min((level + 1) * partitions)))
        .collect();
    let zone_targets = stretch(
        total as f64,
        by_zone.iter().zip(&zone_bounds).map(|(in_zone, &(lo, hi))| {
            let share: f64 = in_zone.iter().map(|&i| shares[i]).sum();
            (share, lo as f64, hi as f64)
        }),
    );

    // Nodes: within 10 % of the share, rounded outwards; further off only as far as the zones
    // force it, and then in proportion.
    let rests: Vec<Limits> = shares
        .iter()
        .zip(&caps)
        .map(|(share, &cap)| (down(0.9 * share), up(1.1 * share).min(cap)))
        .collect();
    let clamped = |i: usize| kept[i].clamp(rests[i].0, rests[i].1);
    let zone_rests: Vec<Limits> = by_zone
        .iter()
        .zip(&zone_bounds)
        .map(|(in_zone, &(lo, hi))| {
            let least: usize = in_zone.iter().map(|&i| rests[i].0).sum();
            let most: usize = in_zone.iter().map(|&i| rests[i].1).sum();
            (least.clamp(lo, hi), most.clamp(lo, hi))
        })
        .collect();
    let starts: Vec<usize> =
        by_zone.iter().map(|in_zone| in_zone.iter().map(|&i| clamped(i)).sum()).collect();
    let zones = settle(total, &starts, &zone_rests, &zone_targets);
    let mut quotas = vec![0; nodes.len()];
    for (z, in_zone) in by_zone.iter().enumerate() {
        let targets =
            stretch(zone_targets[z], in_zone.iter().map(|&i| (shares[i], 0.0, caps[i] as f64)));
        let starts: Vec<usize> = in_zone.iter().map(|&i| kept[i]).collect();
        let rests: Vec<Limits> = in_zone.iter().map(|&i| rests[i]).collect();
        let settled = settle(zones[z], &starts, &rests, &targets);
        for (&i, quota) in in_zone.iter().zip(settled) {
            quotas[i] = quota;
        }
    }
    Quotas { shares, caps, zones, nodes: quotas }
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
        items.iter().map(move |&(weight, least, most)| (factor * weight).clamp(least, most))
    };
    let (mut low, mut high) = (0.0, items.iter().map(|&(w, _, most)| most / w).fold(0.0, f64::max));
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

/// Whole numbers that add up to `total`, as near to `starts` as they can be within the limits.
/// Where the limits leave no room they are passed as far as the targets, which add up to about
/// `total`.
fn settle(total: usize, starts: &[usize], rests: &[Limits], targets: &[f64]) -> Vec<usize> {
    let least: usize = rests.iter().map(|r| r.0).sum();
    let most: usize = rests.iter().map(|r| r.1).sum();
    let limits: Vec<Limits> = rests
        .iter()
        .zip(targets)
        .map(|(&(lo, hi), &target)| {
            if total < least {
                (lo.min(down(target)), lo)
            } else if total > most {
                (hi, hi.max(up(target)))
            } else {
                (lo, hi)
            }
        })
        .collect();
    let mut values: Vec<usize> =
        starts.iter().zip(&limits).map(|(start, &(lo, hi))| *start.clamp(&lo, &hi)).collect();
    let mut sum: usize = values.iter().sum();
    // Step by step, the one furthest from its target first.
    while sum < total {
        let fill = |&i: &usize| (values[i] as f64 + 0.5) / targets[i].max(EPSILON);
        let open = (0..values.len()).filter(|&i| values[i] < limits[i].1);
        let Some(i) = open.min_by(|a, b| fill(a).total_cmp(&fill(b))) else {
            break;
        };
        values[i] += 1;
        sum += 1;
    }
    while sum > total {
        let fill = |&i: &usize| (values[i] as f64 - 0.5) / targets[i].max(EPSILON);
        let open = (0..values.len()).filter(|&i| values[i] > limits[i].0);
        let Some(i) = open.max_by(|a, b| fill(a).total_cmp(&fill(b))) else {
            break;
        };
        values[i] -= 1;
        sum -= 1;
    }
    values
}
