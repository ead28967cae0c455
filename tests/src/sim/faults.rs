//! Which faults a seed has. Each seed draws its own mix, and many have none of a kind: what only
//! shows while messages are not lost shows too.
use super::Options;
use rand::Rng;
use rand::rngs::StdRng;

/// Bugs planted to prove that the simulation finds them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planted {
    AcknowledgedBeforeSync,
    ReplicaIdUsedTwice,
    AppliedOutOfOrder,
    LeaseKeptOverPause,
    RevisionCheckedBeforeIds,
    CommitBackAtRestart,
    MembershipLostAtRestart,
    ChangeWithoutCommit,
    /// The records forget a replica that no leader has confirmed to be without.
    ForgottenUnconfirmed,
    /// Steps are taken whatever epoch and membership they were planned on.
    StaleStepTaken,
    /// A node that starts does not know which replicas it has destroyed.
    DestroyedForgotten,
    CheckpointWithoutReceiver,
    CompactionPastTransfer,
}

/// What strikes now and then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Strike {
    Crash,
    Pause,
    Cut,
    ClockJump,
    Transfer,
    /// A replica goes to another node, under a new id.
    Move,
    /// A node loses its disk: its replicas are made anew under new ids.
    LoseDisk,
    // Where the planner moves replicas:
    /// Members come, drain, drain no more, and go.
    Scale,
    /// Somebody says another target.
    Retarget,
    /// Another node leads the meta group.
    Depose,
    /// A node is away for longer than it is waited for.
    Outage,
    /// A node and its disk are gone for good.
    LoseMember,
}

pub const STRIKES: [Strike; 12] = [
    Strike::Crash,
    Strike::Pause,
    Strike::Cut,
    Strike::ClockJump,
    Strike::Transfer,
    Strike::Move,
    Strike::LoseDisk,
    Strike::Scale,
    Strike::Retarget,
    Strike::Depose,
    Strike::Outage,
    Strike::LoseMember,
];

#[derive(Debug, Clone)]
pub struct Faults {
    pub loss: f64,
    pub duplicate: f64,
    pub damage: f64,
    /// Frames that take far longer than others.
    pub late: f64,
    pub in_order: bool,
    delay_us: (u64, u64),
    sync_us: (u64, u64),
    apply_us: (u64, u64),
    /// How late ticks are.
    late_us: (u64, u64),
    /// Between what a read checks and what it reads.
    read_us: (u64, u64),
    /// Mean time between strikes of each kind in ms; 0: none.
    gaps_ms: [u64; STRIKES.len()],
    /// Of crashes: the machine's, whose boot-time clock begins anew.
    pub power_loss: f64,
    pub flush_gap_ms: u64,
    pub kept_log_bytes: u64,
    pub catch_up_bytes: u64,
    pub cache_bytes: u64,
    pub entry_bytes: usize,
    /// Size of some events.
    pub event_bytes: usize,
    pub heartbeat_ticks: usize,
    pub election_ticks: usize,
    /// How far boot-time clocks go wrong, in parts per million.
    pub clock_ppm: i64,
    pub partitions: u32,
    pub streams: u32,
    pub clients: u32,
    /// How often moves are looked at.
    pub look_gap_ms: u64,
    /// Of membership changes: that a follower crashes behind the sync of one.
    pub change_crash: f64,
    /// Of the plan's steps: that it reaches its node when others have long gone on.
    pub late_step: f64,
    /// A node beside those that hold replicas at first.
    pub spare_node: bool,
}

impl Faults {
    pub fn of_seed(rng: &mut StdRng, options: Options) -> Faults {
        let mut faults = Faults {
            loss: some(rng, 0.6, 0.001, 0.15),
            duplicate: some(rng, 0.6, 0.001, 0.2),
            damage: some(rng, 0.2, 0.001, 0.05),
            late: some(rng, 0.5, 0.001, 0.1),
            in_order: rng.random_bool(0.3),
            delay_us: span(rng, 50, 8_000),
            sync_us: span(rng, 50, 12_000),
            apply_us: span(rng, 20, 6_000),
            late_us: [(0, 100), (0, 1_000), (0, 6_000)][rng.random_range(0..3)],
            read_us: match rng.random_range(0..3) {
                0 => (20, 40_000),
                _ => (20, 300),
            },
            gaps_ms: [0; STRIKES.len()],
            power_loss: [0.0, 0.5, 1.0][rng.random_range(0..3)],
            flush_gap_ms: [15, 60, 250][rng.random_range(0..3)],
            kept_log_bytes: [0, 0, 20_000, 32 << 20][rng.random_range(0..4)],
            catch_up_bytes: [0, 3_000, 2 << 20][rng.random_range(0..3)],
            cache_bytes: [0, 4_000, 512 << 10][rng.random_range(0..3)],
            entry_bytes: [1, 2_000, 1 << 20][rng.random_range(0..3)],
            event_bytes: [0, 0, 3_000][rng.random_range(0..3)],
            clock_ppm: [0, 1_000, 10_000][rng.random_range(0..3)],
            heartbeat_ticks: 3,
            election_ticks: 10,
            partitions: rng.random_range(1..=3),
            streams: rng.random_range(2..=5),
            clients: rng.random_range(3..=5),
            look_gap_ms: 15,
            change_crash: 0.0,
            late_step: 0.02,
            spare_node: false,
        };
        for (gap, (chance, least, most)) in faults.gaps_ms.iter_mut().zip([
            (0.7, 150, 1_000),
            (0.5, 150, 1_000),
            (0.5, 200, 1_000),
            (0.4, 100, 800),
            (0.4, 80, 800),
            (0.35, 150, 600),
            (0.25, 300, 1_000),
        ]) {
            if rng.random_bool(chance) {
                *gap = rng.random_range(least..most);
            }
        }
        if rng.random_bool(0.3) {
            (faults.heartbeat_ticks, faults.election_ticks) = (2, 5);
        }
        match options.planted {
            Some(Planted::ReplicaIdUsedTwice) => faults.always(Strike::LoseDisk, 250),
            Some(Planted::LeaseKeptOverPause) => faults.always(Strike::Pause, 250),
            Some(Planted::MembershipLostAtRestart) => {
                faults.always(Strike::Move, 200);
                faults.always(Strike::Crash, 200);
            }
            Some(Planted::AcknowledgedBeforeSync | Planted::CommitBackAtRestart) => {
                faults.always(Strike::Crash, 200);
            }
            _ => {}
        }
        if options.quick_changes {
            faults.quicken_changes();
        }
        if options.planner {
            faults.plan_moves(rng, options.planted);
        }
        faults.spare_node = faults.gap_ms(Strike::Move) > 0;
        faults
    }

    /// Little else strikes than what makes a follower fall behind by two changes.
    fn quicken_changes(&mut self) {
        (self.loss, self.late, self.damage) = (0.0, 0.0, 0.0);
        self.gaps_ms = [0; STRIKES.len()];
        self.always(Strike::Move, 30);
        self.always(Strike::Pause, 60);
        self.look_gap_ms = 3;
        self.change_crash = 0.3;
        self.partitions = 1;
    }

    /// The planner moves replicas, not a script.
    fn plan_moves(&mut self, rng: &mut StdRng, planted: Option<Planted>) {
        self.partitions = [1, 1, 2, 2, 4][rng.random_range(0..5)];
        self.always(Strike::Move, 0);
        self.always(Strike::LoseDisk, 0);
        if self.kept_log_bytes == 20_000 {
            // The log goes in pieces of 64 KiB, and what transfers hold of it is bounded.
            self.kept_log_bytes = 60_000;
        }
        for (strike, chance, least, most) in [
            (Strike::Scale, 0.9, 60, 400),
            (Strike::Retarget, 0.4, 60, 400),
            (Strike::Depose, 0.4, 80, 600),
            (Strike::Outage, 0.3, 300, 1_000),
            (Strike::LoseMember, 0.3, 300, 1_000),
        ] {
            if rng.random_bool(chance) {
                self.always(strike, rng.random_range(least..most));
            }
        }
        match planted {
            Some(Planted::StaleStepTaken) => self.always(Strike::Depose, 100),
            Some(Planted::ForgottenUnconfirmed) => {
                self.always(Strike::Depose, 100);
                self.always(Strike::Retarget, 100);
                self.late_step = 0.3;
            }
            Some(Planted::DestroyedForgotten) => self.always(Strike::Crash, 150),
            Some(Planted::CheckpointWithoutReceiver) => self.kept_log_bytes = 0,
            Some(Planted::CompactionPastTransfer) => {
                (self.kept_log_bytes, self.event_bytes, self.flush_gap_ms) = (60_000, 6_000, 15);
                self.partitions = 1;
            }
            _ => {}
        }
    }

    fn always(&mut self, strike: Strike, gap_ms: u64) {
        self.gaps_ms[strike as usize] = gap_ms;
    }

    pub fn gap_ms(&self, strike: Strike) -> u64 {
        self.gaps_ms[strike as usize]
    }

    /// Everything is over: what is left is an ordinary network.
    pub fn end(&mut self) {
        self.late_step = 0.0;
        self.loss = 0.0;
        self.duplicate = 0.0;
        self.damage = 0.0;
        self.late = 0.0;
        self.gaps_ms = [0; STRIKES.len()];
    }

    pub fn delay_ns(&self, rng: &mut StdRng) -> u64 {
        let ns = draw(rng, self.delay_us);
        if self.late > 0.0 && rng.random_bool(self.late) {
            return ns + draw(rng, (5_000, 400_000));
        }
        ns
    }

    pub fn sync_ns(&self, rng: &mut StdRng) -> u64 {
        draw(rng, self.sync_us)
    }

    pub fn apply_ns(&self, rng: &mut StdRng) -> u64 {
        draw(rng, self.apply_us)
    }

    pub fn late_ns(&self, rng: &mut StdRng) -> u64 {
        draw(rng, self.late_us)
    }

    pub fn read_ns(&self, rng: &mut StdRng) -> u64 {
        draw(rng, self.read_us)
    }
}

/// Between half of the mean and three halves.
pub fn around_ms(rng: &mut StdRng, mean_ms: u64) -> u64 {
    let mean_ns = mean_ms * 1_000_000;
    rng.random_range(mean_ns / 2..=mean_ns * 3 / 2)
}

fn some(rng: &mut StdRng, chance: f64, least: f64, most: f64) -> f64 {
    if rng.random_bool(chance) { rng.random_range(least..most) } else { 0.0 }
}

fn span(rng: &mut StdRng, least_us: u64, most_us: u64) -> (u64, u64) {
    // Most seeds are quick, so that much happens.
    let most_us = most_us >> rng.random_range(0..6);
    (least_us, most_us.max(least_us + 20))
}

fn draw(rng: &mut StdRng, (least_us, most_us): (u64, u64)) -> u64 {
    rng.random_range(least_us * 1_000..=most_us * 1_000)
}
