//! The rules of the watermark: how it advances, when it waits, and when a window may close.
//!
//! Pure: told what a relay reports and what time it is.

use std::time::Duration;

use super::window::{StoredWindow, WindowStatus};
use crate::wire::{PipelineReport, Timestamp};

/// A Redis identity that was left so short a time ago is told by a report that was overtaken.
const OVERTAKEN: Duration = Duration::from_secs(10);

/// When some relay has reported so short a time before another one reached Redis again, it was not
/// Redis that could not be reached.
const OUTAGE: Duration = Duration::from_secs(3);

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
    /// Redis, or its data, is another: entries may be lost.
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
                self.previous =
                    Some(std::mem::replace(&mut self.identity, report.redis_identity.clone()));
                self.changed_at = Some(now);
                self.frozen_until = Some(now.plus(replay_grace));
                // Another Redis may have another clock; to wait for longer is always safe.
                self.watermark = self.watermark.min(report.watermark);
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
        if report.redis_time <= self.redis_time {
            News::Overtaken
        } else if report.recovered_at > self.recovered_at
            && self.redis_time.plus(OUTAGE) < report.redis_time
        {
            News::Recovery
        } else {
            News::Advance
        }
    }
}

/// What decides whether windows may close, at one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tide {
    /// The monitor's clock.
    pub now: Timestamp,
    /// The smallest watermark; none if no relay has ever reported one.
    pub watermark: Option<Timestamp>,
    /// How long monitors have been running, in microseconds.
    pub running_us: i64,
    /// How long after the end of its last slot a window stays open.
    pub grace: Duration,
    /// How long a window may be held, while a monitor runs.
    pub max_hold: Duration,
}

/// Whether a window may close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// It was closed before.
    Done,
    /// Nothing of it can be on its way any more.
    Due,
    /// It has waited for too long: what is missing could not be observed.
    Unobserved,
    /// Its time is not over.
    NotOver,
    /// Something of it may still be on its way.
    OnItsWay,
    /// One of its own messages makes the monitor fail.
    Suspect,
}

impl Closing {
    /// Whether the window closes, one way or the other.
    #[must_use]
    pub const fn is_now(self) -> bool {
        matches!(self, Self::Due | Self::Unobserved)
    }
}

impl Tide {
    /// Windows that go by the clock alone may close if they end before this instant.
    #[must_use]
    pub fn by_clock(&self) -> Timestamp {
        self.now.minus(self.grace)
    }

    /// Windows that came through the stream may close if they end before this instant.
    #[must_use]
    pub fn by_watermark(&self) -> Timestamp {
        self.watermark.map_or(self.now, |watermark| watermark.min(self.now)).minus(self.grace)
    }

    /// Windows that are held since before monitors had been running for so long, in microseconds,
    /// have waited long enough.
    #[must_use]
    pub fn held_too_long_us(&self) -> i64 {
        self.running_us.saturating_sub(i64::try_from(self.max_hold.as_micros()).unwrap_or(i64::MAX))
    }

    /// Whether a window may close, and if not, what it waits for.
    #[must_use]
    pub fn closing(&self, window: &StoredWindow, is_suspect: bool) -> Closing {
        let held_too_long = window.held_from_us.is_some_and(|from| from <= self.held_too_long_us());
        if window.status != WindowStatus::Open {
            Closing::Done
        } else if window.due_at() > self.by_clock() {
            Closing::NotOver
        } else if !window.via_stream || (window.due_at() <= self.by_watermark() && !is_suspect) {
            Closing::Due
        } else if held_too_long {
            Closing::Unobserved
        } else if is_suspect {
            Closing::Suspect
        } else {
            Closing::OnItsWay
        }
    }

    /// Whether a heartbeat of a slot would have been seen by now, had it been sent in time.
    #[must_use]
    pub fn observes(&self, window: &StoredWindow, slot: u32) -> bool {
        window.window.due(slot).plus_micros(window.clock_offset_us.unwrap_or(0))
            <= self.by_watermark()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::window::Counts;
    use crate::wire::{Breaker, Rates, StreamState, Tick, Window};

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

    fn window(ends_at: i64) -> StoredWindow {
        let span = (at(ends_at - 20), at(ends_at));
        let service = "payments-a".parse().unwrap();
        let window = Window::new(uuid::Uuid::nil(), service, span, Tick::DEFAULT, Rates::default());
        StoredWindow {
            id: 1,
            window: window.unwrap(),
            status: WindowStatus::Open,
            counts: Counts::default(),
            unscheduled: 0,
            via_stream: true,
            clock_offset_us: None,
            held_from_us: None,
            created_at: at(0),
            updated_at: at(0),
            closed_at: None,
        }
    }

    fn tide(now: i64, watermark: Option<i64>) -> Tide {
        Tide {
            now: at(now),
            watermark: watermark.map(at),
            running_us: 1_000_000_000,
            grace: Duration::from_secs(2),
            max_hold: Duration::from_mins(10),
        }
    }

    #[test]
    fn a_window_waits_for_clock_and_watermark() {
        let table = [
            // now, watermark, closes at 102
            (101, Some(110), Closing::NotOver),
            (102, Some(110), Closing::Due),
            (110, Some(101), Closing::OnItsWay),
            (110, Some(102), Closing::Due),
            (101, None, Closing::NotOver),
            (102, None, Closing::Due),
        ];
        for (now, watermark, closing) in table {
            let found = tide(now, watermark).closing(&window(100), false);
            assert_eq!(found, closing, "now {now}, watermark {watermark:?}");
        }
    }

    #[test]
    fn one_that_never_came_through_the_stream_goes_by_the_clock() {
        let direct = StoredWindow { via_stream: false, ..window(100) };
        assert_eq!(tide(102, Some(0)).closing(&direct, false), Closing::Due);
    }

    #[test]
    fn the_senders_clock_moves_the_end() {
        for (offset, closes_at) in [(3, 105), (-3, 99)] {
            let offset = StoredWindow { clock_offset_us: Some(offset * 1_000_000), ..window(100) };
            let closing = |second| tide(second, Some(second)).closing(&offset, false);
            assert_eq!(closing(closes_at - 1), Closing::NotOver);
            assert_eq!(closing(closes_at), Closing::Due);
        }
    }

    #[test]
    fn a_suspect_holds_up_its_own_window_for_a_time() {
        let mut held = window(100);
        assert_eq!(tide(200, Some(200)).closing(&held, true), Closing::Suspect);
        for (from_us, closing) in
            [(400_000_001, Closing::Suspect), (400_000_000, Closing::Unobserved)]
        {
            held.held_from_us = Some(from_us);
            assert_eq!(tide(200, Some(200)).closing(&held, true), closing);
        }
        assert_eq!(tide(200, Some(200)).closing(&held, false), Closing::Due);
        assert_eq!(tide(200, Some(90)).closing(&held, false), Closing::Unobserved);
        held.status = WindowStatus::Alert;
        assert_eq!(tide(200, Some(90)).closing(&held, false), Closing::Done);
    }

    #[test]
    fn a_slot_is_observed_once_the_watermark_has_passed_it() {
        // Slots are due at 80 and 90.
        let observed =
            |watermark| [0, 1].map(|slot| tide(200, Some(watermark)).observes(&window(100), slot));
        assert_eq!(observed(81), [false, false]);
        assert_eq!(observed(82), [true, false]);
        assert_eq!(observed(92), [true, true]);
    }
}
