//! The rules of the watermark: how it advances, and when it waits.
//!
//! Pure: told what a relay reports and what time it is.

use std::time::Duration;

use crate::wire::{PipelineReport, Timestamp};

/// A Redis identity that was left so short a time ago is told by a report that was overtaken.
/// An earlier clock is one that went back if it is off by more.
const OVERTAKEN: Duration = Duration::from_secs(10);

/// When some relay has reported so short a time before another one reached Redis again, it was not
/// Redis that could not be reached.
const OUTAGE: Duration = Duration::from_secs(2);

/// How far delivery through one consumer group has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Which Redis, and which data.
    pub identity: String,
    /// The one before.
    pub previous: Option<String>,
    /// When it changed, by the monitor's clock.
    pub changed_at: Option<Timestamp>,
    /// Redis' clock when it was asked last.
    pub redis_time: Timestamp,
    /// Everything written before is delivered or dead.
    pub watermark: Timestamp,
    /// Until when the watermark stands still, by the monitor's clock.
    pub frozen_until: Option<Timestamp>,
    /// When the relays last reached Redis again after they could not, by Redis' clock.
    pub recovered_at: Option<Timestamp>,
}

/// What a report changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// Nothing: a later one was here before it.
    Overtaken,
    /// How far delivery has come.
    Advance,
    /// No relay could reach Redis for a while.
    Recovery,
    /// Redis, its data or its clock is another: entries may be lost.
    Replacement,
}

impl Progress {
    /// Before anything was reported.
    #[must_use]
    pub fn unknown(identity: &str) -> Self {
        let long_ago = Timestamp::from_micros(0);
        Self {
            identity: identity.to_owned(),
            previous: None,
            changed_at: None,
            redis_time: long_ago,
            watermark: long_ago,
            frozen_until: None,
            recovered_at: None,
        }
    }

    /// Learns from a report.
    ///
    /// When entries may be lost, or senders may not have been able to write, the watermark waits
    /// for `replay_grace`, in which they send (again).
    pub fn learn(
        &mut self,
        report: &PipelineReport,
        now: Timestamp,
        replay_grace: Duration,
    ) -> News {
        let news = self.news(report, now);
        match news {
            News::Overtaken => return news,
            News::Advance => (),
            News::Recovery => self.frozen_until = Some(now.plus(replay_grace)),
            News::Replacement => {
                if report.redis_identity != self.identity {
                    self.previous =
                        Some(std::mem::replace(&mut self.identity, report.redis_identity.clone()));
                    self.changed_at = Some(now);
                }
                self.frozen_until = Some(now.plus(replay_grace));
                // Another Redis may have another clock; to wait for longer is always safe.
                self.watermark = self.watermark.min(report.watermark);
                self.recovered_at = report.recovered_at;
            }
        }
        self.redis_time = report.redis_time;
        self.recovered_at = report.recovered_at.max(self.recovered_at);
        if self.frozen_until.is_none_or(|until| until <= now) {
            self.frozen_until = None;
            self.watermark = self.watermark.max(report.watermark);
        }
        news
    }

    fn news(&self, report: &PipelineReport, now: Timestamp) -> News {
        if report.redis_identity != self.identity {
            let just_left = self.changed_at.is_some_and(|at| now < at.plus(OVERTAKEN));
            let was_left = self.previous.as_ref() == Some(&report.redis_identity);
            return if just_left && was_left { News::Overtaken } else { News::Replacement };
        }
        if report.redis_time.plus(OVERTAKEN) < self.redis_time {
            News::Replacement
        } else if report.redis_time <= self.redis_time {
            News::Overtaken
        } else if self.redis_time == Self::unknown("").redis_time {
            News::Advance
        } else if report.recovered_at > self.recovered_at
            && self.redis_time.plus(OUTAGE) < report.redis_time
        {
            News::Recovery
        } else {
            News::Advance
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Breaker, StreamState};

    const GRACE: Duration = Duration::from_secs(30);

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(1_795_000_000_000_000 + seconds * 1_000_000)
    }

    /// A report of this Redis' at this second, with a watermark one second behind.
    fn report(identity: &str, second: i64) -> PipelineReport {
        PipelineReport {
            relay: "relay-1".to_owned(),
            group: "group".to_owned(),
            stream: "reports".to_owned(),
            redis_identity: identity.to_owned(),
            redis_time: at(second),
            watermark: at(second - 1),
            recovered_at: None,
            windows: StreamState::default(),
            heartbeats: StreamState::default(),
            breaker: Breaker::Closed,
            suspects: Vec::new(),
            resending: Vec::new(),
            resent: Vec::new(),
            dead_letters_total: 0,
            dead_letters: Vec::new(),
            silent_groups: Vec::new(),
        }
    }

    fn known() -> Progress {
        let mut progress = Progress::unknown("one");
        assert_eq!(progress.learn(&report("one", 10), at(10), GRACE), News::Advance);
        assert_eq!(progress.watermark, at(9));
        progress
    }

    #[test]
    fn within_one_redis_it_never_goes_back() {
        let mut progress = known();
        let lower = PipelineReport { watermark: at(5), ..report("one", 11) };
        assert_eq!(progress.learn(&lower, at(11), GRACE), News::Advance);
        assert_eq!(progress.watermark, at(9));
        assert_eq!(progress.learn(&report("one", 11), at(12), GRACE), News::Overtaken);
        assert_eq!(progress.learn(&report("one", 12), at(12), GRACE), News::Advance);
        assert_eq!(progress.watermark, at(11));
    }

    #[test]
    fn with_another_redis_it_waits_for_what_is_sent_again() {
        let mut progress = known();
        assert_eq!(progress.learn(&report("two", 20), at(20), GRACE), News::Replacement);
        for second in [21, 35, 49] {
            progress.learn(&report("two", second), at(second), GRACE);
            assert_eq!(progress.watermark, at(9), "second {second}");
        }
        progress.learn(&report("two", 50), at(50), GRACE);
        assert_eq!((progress.watermark, progress.frozen_until), (at(49), None));
    }

    #[test]
    fn a_report_from_before_the_change_does_not_change_it_back() {
        let mut progress = known();
        progress.learn(&report("two", 20), at(20), GRACE);
        assert_eq!(progress.learn(&report("one", 21), at(21), GRACE), News::Overtaken);
        assert_eq!(progress.identity, "two");
        assert_eq!(progress.learn(&report("one", 31), at(31), GRACE), News::Replacement);
    }

    #[test]
    fn another_redis_may_have_an_earlier_clock() {
        let mut progress = known();
        progress.learn(&report("two", 4), at(20), GRACE);
        assert_eq!(progress.watermark, at(3));
        progress.learn(&report("two", 40), at(56), GRACE);
        assert_eq!(progress.watermark, at(39));
    }

    #[test]
    fn a_clock_that_goes_back_is_another_clock() {
        let mut progress = known();
        progress.learn(&report("one", 100), at(100), GRACE);
        assert_eq!(progress.learn(&report("one", 91), at(101), GRACE), News::Overtaken);
        assert_eq!(progress.learn(&report("one", 40), at(102), GRACE), News::Replacement);
        assert_eq!((progress.watermark, progress.previous.clone()), (at(39), None));
        progress.learn(&report("one", 71), at(133), GRACE);
        assert_eq!(progress.watermark, at(70));
    }

    #[test]
    fn after_an_outage_of_redis_it_waits_once() {
        let mut progress = known();
        let recovered =
            |second| PipelineReport { recovered_at: Some(at(20)), ..report("one", second) };
        assert_eq!(progress.learn(&recovered(20), at(20), GRACE), News::Recovery);
        assert_eq!(progress.learn(&recovered(40), at(40), GRACE), News::Advance);
        assert_eq!(progress.watermark, at(9));
        // Another relay, which has not noticed.
        assert_eq!(progress.learn(&report("one", 41), at(41), GRACE), News::Advance);
        progress.learn(&recovered(51), at(51), GRACE);
        assert_eq!(progress.watermark, at(50));
    }

    #[test]
    fn one_relay_that_is_cut_off_is_no_outage() {
        let mut progress = known();
        for second in 11..20 {
            progress.learn(&report("one", second), at(second), GRACE);
        }
        let recovered = PipelineReport { recovered_at: Some(at(20)), ..report("one", 20) };
        assert_eq!(progress.learn(&recovered, at(20), GRACE), News::Advance);
        assert_eq!(progress.watermark, at(19));
    }
}
