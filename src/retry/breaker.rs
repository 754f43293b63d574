//! A circuit breaker that says when to stop asking, and when to ask once more.
//!
//! After Michael Nygard, "Release It!" (2007). Where others fail calls while open, the user of this
//! one stops taking work: what waits stays where it is kept anyway. Pure: told the time and what
//! came of each call.

use std::time::Duration;

use tokio::time::Instant;

/// Failures in a row that open the breaker.
const FAILURES_TO_OPEN: u32 = 3;
/// The time between two probes, which doubles from the first to the last.
const PROBE_INTERVAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// What a caller may do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permit {
    /// Call.
    Call,
    /// Call, as the one probe that shows whether the other side is back.
    Probe,
    /// Wait until this instant, or until the breaker closes, and ask again.
    Wait(Instant),
}

/// Counts failures in a row, and spaces the probes that end an outage.
#[derive(Clone, Debug, Default)]
pub struct Breaker {
    failures: u32,
    open: Option<Open>,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    interval: Duration,
    probe_at: Instant,
}

impl Breaker {
    /// Whether calls are held back.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Asks for leave to call. A probe that is granted takes the place of the next one: nobody
    /// else gets one until its interval has passed, even if its outcome is never reported.
    pub fn permit(&mut self, now: Instant) -> Permit {
        match &mut self.open {
            None => Permit::Call,
            Some(open) if now < open.probe_at => Permit::Wait(open.probe_at),
            Some(open) => {
                open.interval = (open.interval * 2).min(PROBE_INTERVAL.1);
                open.probe_at = now + open.interval;
                Permit::Probe
            }
        }
    }

    /// Notes that a call was answered. Answers whether that closes the breaker.
    pub fn succeeded(&mut self) -> bool {
        self.failures = 0;
        self.open.take().is_some()
    }

    /// Notes that the other side could not take a call. Answers whether that opens the breaker.
    pub fn failed(&mut self, now: Instant) -> bool {
        self.failures = self.failures.saturating_add(1);
        if self.open.is_some() || self.failures < FAILURES_TO_OPEN {
            return false;
        }
        let interval = PROBE_INTERVAL.0;
        self.open = Some(Open { interval, probe_at: now + interval });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::default();
        assert!(!breaker.failed(now) && !breaker.failed(now));
        assert!(breaker.failed(now) && breaker.is_open());
        breaker
    }

    #[test]
    fn only_failures_in_a_row_open_it() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 0..10 {
            breaker.failed(now);
            breaker.failed(now);
            assert!(!breaker.succeeded(), "it was not open");
        }
        assert_eq!(breaker.permit(now), Permit::Call);
        assert!(opened(now).is_open());
    }

    #[test]
    fn one_probe_at_a_time_is_let_through_at_growing_intervals() {
        let start = Instant::now();
        let mut breaker = opened(start);
        let mut now = start;
        let mut waits = Vec::new();
        for _ in 0..6 {
            let Permit::Wait(until) = breaker.permit(now) else { panic!("it must wait") };
            waits.push((until - now).as_secs());
            now = until;
            assert_eq!(breaker.permit(now), Permit::Probe);
            assert!(!breaker.failed(now), "it is open already");
        }
        assert_eq!(waits, [1, 2, 4, 8, 10, 10]);
    }

    #[test]
    fn a_probe_that_is_answered_closes_it() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert_eq!(breaker.permit(now + seconds(1)), Permit::Probe);
        assert!(breaker.succeeded());
        assert_eq!(breaker.permit(now + seconds(1)), Permit::Call);
        assert!(!breaker.failed(now) && !breaker.failed(now), "it counts from nothing again");
    }
}
