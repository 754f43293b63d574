//! The rule that says whether a window may close, and if not, what it waits for.
//!
//! Pure: told the time, the watermark, and what is in the way.

use std::collections::BTreeSet;
use std::time::Duration;

use uuid::Uuid;

use super::window::{StoredWindow, WindowStatus};
use crate::wire::{Timestamp, Window};

/// The watermark while the first report is awaited: 1970-01-02, which every database takes.
pub(super) const NOTHING_DELIVERED: Timestamp = Timestamp::from_micros(24 * 3_600 * 1_000_000);

/// What decides whether windows may close, at one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClosingRules {
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
    Unobserved {
        /// Something is in the way that the watermark does not tell of, so that nothing of what is
        /// missing can be called observed.
        is_obstructed: bool,
    },
    /// Its time is not over.
    NotOver,
    /// Something of it may still be on its way.
    OnItsWay,
    /// Its service is sending again what a lost Redis took along.
    BeingResent,
    /// One of its own messages makes the monitor fail.
    Suspect,
}

/// What keeps windows open although the watermark has passed them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Obstacles {
    /// Windows that a suspect belongs to.
    pub suspects: BTreeSet<Uuid>,
    /// Services that send again what a lost Redis took along.
    pub resending: BTreeSet<String>,
}

impl Obstacles {
    /// What is in the way of a window, if anything is.
    pub(super) fn before(&self, window: &Window) -> Option<Closing> {
        if self.resending.contains(window.service.as_str()) {
            Some(Closing::BeingResent)
        } else {
            self.suspects.contains(&window.uuid).then_some(Closing::Suspect)
        }
    }
}

impl Closing {
    /// Whether the window closes, one way or the other.
    #[must_use]
    pub const fn is_now(self) -> bool {
        matches!(self, Self::Due | Self::Unobserved { .. })
    }
}

impl ClosingRules {
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

    /// Whether nothing counts as delivered, because no relay has reported yet and windows were taken
    /// over from another monitor.
    #[must_use]
    pub fn awaits_first_report(&self) -> bool {
        self.watermark == Some(NOTHING_DELIVERED)
    }

    /// Windows that are held since before monitors had been running for so long, in microseconds,
    /// have waited long enough.
    #[must_use]
    pub fn held_too_long_us(&self) -> i64 {
        self.running_us.saturating_sub(i64::try_from(self.max_hold.as_micros()).unwrap_or(i64::MAX))
    }

    /// Whether a window may close, and if not, what it waits for.
    #[must_use]
    pub fn closing(&self, window: &StoredWindow, obstacles: &Obstacles) -> Closing {
        let obstacle = obstacles.before(&window.window);
        let held_too_long = window.held_from_us.is_some_and(|from| from <= self.held_too_long_us());
        if window.status != WindowStatus::Open {
            Closing::Done
        } else if window.due_at() > self.by_clock() {
            Closing::NotOver
        } else if !window.via_stream
            || (window.due_at() <= self.by_watermark() && obstacle.is_none())
        {
            Closing::Due
        } else if held_too_long {
            Closing::Unobserved { is_obstructed: obstacle.is_some() }
        } else {
            obstacle.unwrap_or(Closing::OnItsWay)
        }
    }

    /// Whether a slot of a window that closes in a way is missing for certain: its heartbeat would have
    /// been seen by now, had it been sent in time.
    #[must_use]
    pub fn observes(&self, closing: Closing, window: &StoredWindow, slot: u32) -> bool {
        match closing {
            Closing::Unobserved { is_obstructed } => {
                !is_obstructed && self.has_passed(window, slot)
            }
            _ => true,
        }
    }

    fn has_passed(&self, window: &StoredWindow, slot: u32) -> bool {
        window.window.due(slot).plus_micros(window.clock_offset_us.unwrap_or(0))
            <= self.by_watermark()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::window::Counts;
    use crate::wire::{Rates, Tick};

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(1_795_000_000_000_000 + seconds * 1_000_000)
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
            events_kept: true,
            via_stream: true,
            clock_offset_us: None,
            held_from_us: None,
            created_at: at(0),
            updated_at: at(0),
            closed_at: None,
        }
    }

    fn none() -> Obstacles {
        Obstacles::default()
    }

    fn rules(now: i64, watermark: Option<i64>) -> ClosingRules {
        ClosingRules {
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
            let found = rules(now, watermark).closing(&window(100), &none());
            assert_eq!(found, closing, "now {now}, watermark {watermark:?}");
        }
    }

    #[test]
    fn one_that_never_came_through_the_stream_goes_by_the_clock() {
        let direct = StoredWindow { via_stream: false, ..window(100) };
        assert_eq!(rules(102, Some(0)).closing(&direct, &none()), Closing::Due);
    }

    #[test]
    fn the_senders_clock_moves_the_end() {
        for (offset, closes_at) in [(3, 105), (-3, 99)] {
            let offset = StoredWindow { clock_offset_us: Some(offset * 1_000_000), ..window(100) };
            let closing = |second| rules(second, Some(second)).closing(&offset, &none());
            assert_eq!(closing(closes_at - 1), Closing::NotOver);
            assert_eq!(closing(closes_at), Closing::Due);
        }
    }

    #[test]
    fn what_is_in_the_way_holds_up_a_window_for_a_time() {
        let mut held = window(100);
        let suspect = Obstacles { suspects: BTreeSet::from([held.window.uuid]), ..none() };
        let resending = BTreeSet::from([held.window.service.to_string()]);
        let resent = Obstacles { resending, ..suspect.clone() };
        assert_eq!(rules(200, Some(200)).closing(&held, &suspect), Closing::Suspect);
        assert_eq!(rules(200, Some(200)).closing(&held, &resent), Closing::BeingResent);
        for (from_us, closing) in [
            (400_000_001, Closing::Suspect),
            (400_000_000, Closing::Unobserved { is_obstructed: true }),
        ] {
            held.held_from_us = Some(from_us);
            assert_eq!(rules(200, Some(200)).closing(&held, &suspect), closing);
        }
        assert_eq!(rules(200, Some(200)).closing(&held, &none()), Closing::Due);
        assert_eq!(
            rules(200, Some(90)).closing(&held, &none()),
            Closing::Unobserved { is_obstructed: false }
        );
        held.status = WindowStatus::Alert;
        assert_eq!(rules(200, Some(90)).closing(&held, &none()), Closing::Done);
    }

    #[test]
    fn a_slot_is_observed_once_the_watermark_has_passed_it() {
        // Slots are due at 80 and 90.
        let observed = |watermark| {
            [0, 1].map(|slot| {
                let closing = Closing::Unobserved { is_obstructed: false };
                rules(200, Some(watermark)).observes(closing, &window(100), slot)
            })
        };
        assert_eq!(observed(81), [false, false]);
        assert_eq!(observed(82), [true, false]);
        assert_eq!(observed(92), [true, true]);
        let obstructed = Closing::Unobserved { is_obstructed: true };
        assert!(!rules(200, Some(200)).observes(obstructed, &window(100), 0));
        assert!(rules(200, Some(200)).observes(Closing::Due, &window(100), 0));
    }
}
