//! What a run does when: its faults, drawn from a seed. Pure.
//!
//! Faults are drawn minute by minute, in lanes whose faults follow each other and which run side by
//! side: one per role, one for the network, one for the servers. So at most one process of a role,
//! one server and one pair are away at a time, except in the stall, which stops every relay.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

/// The shortest run, and the span in which every kind reaches its fewest faults.
pub const MINUTE: Duration = Duration::from_mins(1);
/// How long after the start the first fault may come, and how long before the end the last is over.
const QUIET: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(8));

/// How many processes of each role there are, in the order in which they are numbered.
pub const PAYMENTS: std::ops::Range<usize> = 0..3;
/// The relays' numbers.
pub const RELAYS: std::ops::Range<usize> = 3..5;
/// The monitors' numbers.
pub const MONITORS: std::ops::Range<usize> = 5..7;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Kill,
    Stop,
    Cut,
    Slow,
    BlackHole,
    HalfClose,
    RedisKill,
    RedisStop,
    RedisFlush,
    RedisReplace,
    DatabaseKill,
    DatabaseStop,
    DatabaseReadOnly,
    Stall,
}

impl Kind {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 14] = [
        Self::Kill,
        Self::Stop,
        Self::Stall,
        Self::Cut,
        Self::Slow,
        Self::BlackHole,
        Self::HalfClose,
        Self::RedisKill,
        Self::RedisStop,
        Self::RedisFlush,
        Self::RedisReplace,
        Self::DatabaseKill,
        Self::DatabaseStop,
        Self::DatabaseReadOnly,
    ];

    /// The kind in words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kill => "process killed",
            Self::Stop => "process stopped",
            Self::Cut => "connections cut",
            Self::Slow => "connections slow",
            Self::BlackHole => "connections black-holed",
            Self::HalfClose => "connections half-closed",
            Self::RedisKill => "Redis killed",
            Self::RedisStop => "Redis stopped",
            Self::RedisFlush => "Redis flushed",
            Self::RedisReplace => "Redis replaced by an empty one",
            Self::DatabaseKill => "database killed",
            Self::DatabaseStop => "database stopped",
            Self::DatabaseReadOnly => "database read-only",
            Self::Stall => "all relays stopped beyond max-hold",
        }
    }

    /// How many a minute must have for the run to count.
    pub const fn required(self) -> usize {
        match self {
            Self::Stall => 1,
            Self::RedisKill
            | Self::RedisStop
            | Self::RedisFlush
            | Self::RedisReplace
            | Self::DatabaseKill
            | Self::DatabaseStop
            | Self::DatabaseReadOnly => 2,
            _ => 5,
        }
    }
}

/// One fault.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// What happens.
    pub kind: Kind,
    /// To which process or pair; of no meaning for servers and the stall.
    pub target: usize,
    /// When, from the start of the run on.
    pub begins: Duration,
    /// For how long the part is away, not counting the time that it takes to start.
    pub lasts: Duration,
    /// How a network fault is to be, from 0 to 1.
    pub strength: f64,
}

impl Fault {
    fn ends(&self) -> Duration {
        self.begins + self.lasts
    }
}

/// Faults that follow each other.
pub type Lane = Vec<Fault>;

/// The lanes of a run of so many seconds, with so many pairs, and a stall of this length.
pub fn lanes(seed: u64, seconds: u64, pairs: usize, stall: Duration) -> Vec<Lane> {
    let mut random = StdRng::seed_from_u64(seed);
    let minutes = u32::try_from(seconds / MINUTE.as_secs()).unwrap();
    assert!(minutes > 0, "a run takes at least {MINUTE:?}, or it has no room for its faults");
    let span = Duration::from_secs(seconds).saturating_sub(QUIET.0 + QUIET.1) / minutes;
    let mut lanes = vec![Lane::new(); 5];
    for minute in 0..minutes {
        let start = QUIET.0 + span * minute;
        let drawn = minute_of(&mut random, (start, span), pairs, stall);
        for (lane, faults) in lanes.iter_mut().zip(drawn) {
            lane.extend(faults);
        }
    }
    lanes
}

fn minute_of(
    random: &mut StdRng,
    (start, span): (Duration, Duration),
    pairs: usize,
    stall: Duration,
) -> [Lane; 5] {
    let mut relays = role(random, RELAYS, 4.0);
    relays.push(fault(Kind::Stall, 0, stall));
    let monitors = role(random, MONITORS, 4.0);
    let payments = role(random, PAYMENTS, 7.0);
    let mut lanes = [servers(random), network(random, pairs), relays, monitors, payments];
    for lane in &mut lanes[1..] {
        lane.shuffle(random);
    }
    for lane in &mut lanes {
        spread(random, lane, (start, span));
    }
    lanes
}

/// Every process of a role killed once and stopped once, for longer than its leases hold.
fn role(random: &mut StdRng, processes: std::ops::Range<usize>, stopped_seconds: f64) -> Lane {
    let killed = |random: &mut StdRng| Duration::from_millis(random.random_range(300..1_500));
    let stopped = Duration::from_secs_f64(stopped_seconds);
    processes
        .flat_map(|process| {
            [fault(Kind::Kill, process, killed(random)), fault(Kind::Stop, process, stopped)]
        })
        .collect()
}

fn network(random: &mut StdRng, pairs: usize) -> Lane {
    let kinds = [
        (Kind::Cut, 500..1_500),
        (Kind::Slow, 1_500..3_000),
        (Kind::BlackHole, 1_500..3_500),
        (Kind::HalfClose, 100..300),
    ];
    let mut order: Vec<usize> = (0..pairs).collect();
    order.shuffle(random);
    let mut targets = order.into_iter().cycle();
    let mut lane = Lane::new();
    for (kind, millis) in kinds {
        for _ in 0..kind.required() {
            let lasts = Duration::from_millis(random.random_range(millis.clone()));
            let target = targets.next().unwrap();
            lane.push(Fault { strength: random.random(), ..fault(kind, target, lasts) });
        }
    }
    lane
}

/// Server faults in random order, except that those which lose Redis' data lie apart.
fn servers(random: &mut StdRng) -> Lane {
    let harmless = [
        (Kind::RedisKill, 500..1_500),
        (Kind::RedisStop, 1_500..3_000),
        (Kind::DatabaseKill, 500..1_000),
        (Kind::DatabaseStop, 1_500..2_500),
        (Kind::DatabaseReadOnly, 1_500..2_500),
    ];
    let losses = [(Kind::RedisFlush, 0..1), (Kind::RedisReplace, 300..1_000)];
    let mut drawn = |kinds: &[(Kind, std::ops::Range<u64>)]| {
        let mut faults = Lane::new();
        for (kind, millis) in kinds {
            for _ in 0..kind.required() {
                let lasts = Duration::from_millis(random.random_range(millis.clone()));
                faults.push(fault(*kind, 0, lasts));
            }
        }
        faults.shuffle(random);
        faults
    };
    let (mut lane, losses) = (drawn(&harmless), drawn(&losses));
    let apart = lane.len() / losses.len() + 1;
    for (place, loss) in losses.into_iter().enumerate() {
        lane.insert(1 + place * apart, loss);
    }
    lane
}

fn fault(kind: Kind, target: usize, lasts: Duration) -> Fault {
    Fault { kind, target, begins: Duration::ZERO, lasts, strength: 0.0 }
}

/// Gives each fault its beginning: in order, with pauses of random lengths between them.
fn spread(random: &mut StdRng, lane: &mut Lane, (start, span): (Duration, Duration)) {
    // A killed part takes a moment to start again.
    let away = |fault: &Fault| fault.lasts + Duration::from_millis(600);
    let busy: Duration = lane.iter().map(away).sum();
    let free = span.checked_sub(busy).expect("the faults of a lane fit into their span");
    let mut shares: Vec<f64> = (0..=lane.len()).map(|_| random.random()).collect();
    let total: f64 = shares.iter().sum();
    let mut at = start;
    shares.pop();
    for (fault, share) in lane.iter_mut().zip(shares) {
        at += free.mul_f64(share / total);
        fault.begins = at;
        at += away(fault);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALL: Duration = Duration::from_secs(20);
    const PAIRS: usize = 14;

    #[test]
    fn every_minute_has_enough_faults_of_each_kind_in_order_and_ends_quietly() {
        for (seed, seconds) in [(1, 60), (2, 60), (3, 90), (4, 240)] {
            let lanes = lanes(seed, seconds, PAIRS, STALL);
            let minutes = usize::try_from(seconds / 60).unwrap();
            for kind in Kind::ALL {
                let count = lanes.iter().flatten().filter(|fault| fault.kind == kind).count();
                assert!(count >= kind.required() * minutes, "{seconds} s: {count} {kind:?}");
            }
            let last = Duration::from_secs(seconds).saturating_sub(QUIET.1);
            assert!(lanes.iter().flatten().all(|fault| fault.ends() <= last));
            for lane in &lanes {
                assert!(lane.windows(2).all(|pair| pair[0].ends() < pair[1].begins));
            }
        }
    }

    #[test]
    fn every_process_is_killed_and_stopped() {
        for process in 0..MONITORS.end {
            let lanes = lanes(5, 60, PAIRS, STALL);
            let hit = |kind| move |fault: &&Fault| fault.kind == kind && fault.target == process;
            for kind in [Kind::Kill, Kind::Stop] {
                assert_eq!(lanes.iter().flatten().filter(hit(kind)).count(), 1, "{process}");
            }
        }
    }

    #[test]
    fn a_seed_gives_the_same_run_again() {
        assert_eq!(lanes(7, 60, PAIRS, STALL), lanes(7, 60, PAIRS, STALL));
        assert_ne!(lanes(7, 60, PAIRS, STALL), lanes(8, 60, PAIRS, STALL));
    }
}
