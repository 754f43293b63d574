//! When to try again: a pure schedule of growing, jittered delays, and a [circuit
//! breaker](breaker).
//!
//! Equal jitter after "Exponential Backoff And Jitter" (Marc Brooker, AWS Architecture Blog,
//! 2015): half of each delay is fixed, so that throttling never collapses to no wait at all, and
//! half is random, so that many clients do not come back together.

pub mod breaker;

use std::time::Duration;

/// Delays that double from `first` up to `cap`.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    attempts: u32,
}

impl Backoff {
    /// A schedule whose first delay is at most `first`, and no delay more than `cap`.
    #[must_use]
    pub const fn new(first: Duration, cap: Duration) -> Self {
        Self { first, cap, attempts: 0 }
    }

    /// The delay before the next attempt. `random` is uniform in `0.0..1.0`.
    pub fn next_delay(&mut self, random: f64) -> Duration {
        let doubled = self.first.saturating_mul(2_u32.saturating_pow(self.attempts));
        self.attempts = self.attempts.saturating_add(1);
        doubled.min(self.cap).mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
    }

    /// How many delays were handed out since the start or the last reset.
    #[must_use]
    pub const fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Starts over, after a success.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_cap_and_start_over() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_mins(5));
        let seconds: Vec<u64> = (0..11).map(|_| backoff.next_delay(1.0).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!(backoff.attempts(), 11);
        backoff.reset();
        assert_eq!(backoff.next_delay(0.0), Duration::from_millis(500));
    }

    #[test]
    fn no_number_of_attempts_overflows() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(10));
        for _ in 0..1_000 {
            assert!(backoff.next_delay(0.5) <= Duration::from_secs(10));
        }
    }
}
