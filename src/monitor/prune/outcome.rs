//! What a step of pruning has done, and how long to rest after it.

use std::collections::BTreeMap;
use std::time::Duration;

/// Pause when nothing is left to do, and after a failure.
pub(super) const INTERVAL: Duration = Duration::from_mins(1);
/// Pause where something has to wait for the count.
const SOON: Duration = Duration::from_secs(1);
/// How many times as long as a step took the pause after it is: a fifth of the time at the most.
const PAUSES_PER_STEP: u32 = 4;

/// What a step has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Windows whose events were taken out of the ledger.
    pub let_go: usize,
    /// Windows that had not been counted, and are to be.
    pub to_count: usize,
    /// Windows that are old enough and have to wait, while there may be others behind them.
    pub passed_over: usize,
    /// Whether nothing could be let go for now, because another is counting or much is to be counted.
    pub has_to_wait: bool,
    /// Rows that were deleted, by table.
    pub deleted: BTreeMap<&'static str, u64>,
}

impl Outcome {
    /// Whether there was nothing that could be done.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        *self == Self { has_to_wait: self.has_to_wait, ..Self::default() }
    }

    /// How long to rest after a step that took so long.
    pub(super) fn pause(&self, took: Duration) -> Duration {
        match (self.is_idle(), self.has_to_wait) {
            (true, false) => INTERVAL,
            (true, true) => SOON,
            (false, _) => took * PAUSES_PER_STEP,
        }
    }

    /// How many rows were deleted.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.deleted.values().sum()
    }

    pub(super) fn count(&mut self, table: &'static str, rows: u64) {
        if rows > 0 {
            *self.deleted.entry(table).or_default() += rows;
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.let_go += other.let_go;
        self.to_count += other.to_count;
        self.passed_over += other.passed_over;
        self.has_to_wait |= other.has_to_wait;
        for (table, rows) in &other.deleted {
            self.count(table, *rows);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_rests_in_proportion_and_one_that_waits_comes_back_soon() {
        let took = Duration::from_millis(50);
        let idle = Outcome::default();
        let waiting = Outcome { has_to_wait: true, ..Outcome::default() };
        let busy = Outcome { let_go: 1, ..waiting.clone() };
        assert_eq!(idle.pause(took), INTERVAL);
        assert_eq!(waiting.pause(took), SOON);
        assert_eq!(busy.pause(took), Duration::from_millis(200));
        assert!(idle.is_idle() && waiting.is_idle() && !busy.is_idle());
    }
}
