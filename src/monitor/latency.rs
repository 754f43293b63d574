//! How long heartbeats took from their sender to the monitor, counted in fixed classes, so that
//! percentiles of any span of time come from adding counts.
//!
//! Sixteen classes for each doubling, as in `HdrHistogram`: a class is never wider than a sixteenth
//! of what it begins with, so that a percentile is right to about 6 %.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Classes for each doubling, as a power of two.
const CLASSES_LOG2: u32 = 4;

/// Heartbeats by the class of their latency.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Latencies(BTreeMap<u16, i64>);

impl Latencies {
    /// Adds one that took so many microseconds. A sender whose clock is ahead took no time.
    pub fn add_one(&mut self, latency_us: i64) {
        *self.0.entry(class(latency_us.max(0).unsigned_abs())).or_default() += 1;
    }

    /// Adds those of another, `sign` times.
    pub fn add(&mut self, other: &Self, sign: i64) {
        for (class, heartbeats) in &other.0 {
            *self.0.entry(*class).or_default() += sign * heartbeats;
        }
        self.0.retain(|_, heartbeats| *heartbeats != 0);
    }

    /// The latency that so many of a hundred did not exceed, in seconds; none if there are none. It
    /// is rounded up to the end of its class.
    #[must_use]
    pub fn percentile_seconds(&self, percent: i64) -> Option<f64> {
        self.percentile_us(percent).map(seconds)
    }

    fn percentile_us(&self, percent: i64) -> Option<u64> {
        let all: i64 = self.0.values().sum();
        let mut seen = 0;
        self.0.iter().find_map(|(class, heartbeats)| {
            seen += heartbeats;
            (seen * 100 >= percent * all).then(|| last_of(*class))
        })
    }
}

/// The class of a latency in microseconds.
fn class(latency_us: u64) -> u16 {
    let doublings = latency_us.checked_ilog2().unwrap_or(0).saturating_sub(CLASSES_LOG2);
    let within = latency_us >> doublings;
    u16::try_from((u64::from(doublings) << CLASSES_LOG2) + within).unwrap_or(u16::MAX)
}

/// The longest latency of a class, in microseconds.
fn last_of(class: u16) -> u64 {
    let class = u64::from(class);
    let doublings = (class >> CLASSES_LOG2).saturating_sub(1);
    let within = class - (doublings << CLASSES_LOG2);
    let first_of_next = u128::from(within + 1) << doublings;
    u64::try_from(first_of_next - 1).unwrap_or(u64::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "it is rounded to a class anyway")]
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_class_holds_what_is_at_most_a_sixteenth_apart(latency_us in 0..10_u64.pow(15)) {
            let class = class(latency_us);
            let last = last_of(class);
            prop_assert!(latency_us <= last && last - latency_us <= latency_us / 16);
            prop_assert_eq!(super::class(last), class);
            prop_assert_eq!(super::class(last + 1), class + 1);
        }

        #[test]
        fn percentiles_are_those_of_the_sorted_list(
            mut list in proptest::collection::vec(0..10_i64.pow(9), 1..200), percent in 1..=100_u16,
        ) {
            let mut latencies = Latencies::default();
            for latency_us in &list {
                latencies.add_one(*latency_us);
            }
            list.sort_unstable();
            let exact = list[(list.len() * usize::from(percent)).div_ceil(100) - 1];
            let found = latencies.percentile_us(percent.into());
            prop_assert_eq!(found, Some(last_of(class(exact.unsigned_abs()))));
        }
    }

    #[test]
    fn what_is_taken_away_leaves_nothing_behind() {
        let (mut some, mut more) = (Latencies::default(), Latencies::default());
        some.add_one(-5);
        more.add_one(1_000_000);
        let before = some.clone();
        some.add(&more, 1);
        assert_ne!(some, before);
        some.add(&more, -1);
        assert_eq!(some, before);
        assert_eq!(Latencies::default().percentile_us(50), None);
        assert_eq!(before.percentile_us(99), Some(0));
    }
}
