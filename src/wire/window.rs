//! Windows and their slots: the one place that says how many heartbeats a window promises.

use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Serialize, Serializer};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{MAX_SLOTS_PER_WINDOW, ServiceName, Timestamp, WireError};

/// The time between two heartbeats of a window: 0.05 to 3600 seconds, in whole microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tick(i64);

impl Tick {
    /// What a sender means that does not name its tick: 10 seconds.
    pub const DEFAULT: Self = Self(10_000_000);

    pub(super) const MIN_MICROS: i64 = 50_000;
    pub(super) const MAX_MICROS: i64 = 3_600_000_000;

    /// A tick of so many seconds.
    ///
    /// # Errors
    /// A number outside 0.05 to 3600.
    pub fn from_seconds(seconds: f64) -> Result<Self, WireError> {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the cast saturates, and the range is checked next"
        )]
        let micros = (seconds * 1e6).round() as i64;
        Self::from_micros(micros)
    }

    /// A tick of so many microseconds.
    ///
    /// # Errors
    /// A number outside 0.05 to 3600 seconds.
    pub fn from_micros(micros: i64) -> Result<Self, WireError> {
        if (Self::MIN_MICROS..=Self::MAX_MICROS).contains(&micros) {
            Ok(Self(micros))
        } else {
            Err(WireError::invalid("must be a number from 0.05 to 3600"))
        }
    }

    /// The tick in microseconds.
    #[must_use]
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// The tick as a duration.
    #[must_use]
    pub fn duration(self) -> Duration {
        Duration::from_micros(self.0.unsigned_abs())
    }

    /// The tick in seconds, as the wire format writes it.
    #[must_use]
    pub fn seconds(self) -> f64 {
        Seconds(self.0).seconds()
    }
}

impl Serialize for Tick {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Seconds(self.0).serialize(serializer)
    }
}

/// Microseconds that are shown as seconds: a whole number where they are whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seconds(pub i64);

impl Seconds {
    /// The number that is shown.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53 in any window")]
    pub const fn seconds(self) -> f64 {
        self.0 as f64 / 1e6
    }
}

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0 % 1_000_000 == 0 {
            serializer.serialize_i64(self.0 / 1_000_000)
        } else {
            serializer.serialize_f64(self.seconds())
        }
    }
}

/// What a sender says of its plan for a window: the shares, 0 to 1, of slots that it will report
/// as errors and of slots that it will omit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct Rates {
    /// Share of slots reported as errors.
    #[schema(minimum = 0, maximum = 1)]
    pub error_status_generado: Option<f64>,
    /// Share of slots omitted on purpose.
    #[schema(minimum = 0, maximum = 1)]
    pub error_status_no_reportado: Option<f64>,
}

impl Rates {
    /// Checks that both are shares.
    ///
    /// # Errors
    /// A number outside 0 to 1, by name.
    pub fn new(generado: Option<f64>, no_reportado: Option<f64>) -> Result<Self, WireError> {
        for (name, rate) in
            [("error_status_generado", generado), ("error_status_no_reportado", no_reportado)]
        {
            if rate.is_some_and(|rate| !(0.0..=1.0).contains(&rate)) {
                return Err(WireError::invalid(format!("{name} must be a number from 0 to 1")));
            }
        }
        Ok(Self { error_status_generado: generado, error_status_no_reportado: no_reportado })
    }
}

/// Where a heartbeat belongs in its window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slot {
    /// One of the slots that the window promises, `0..n`.
    Scheduled(u32),
    /// Outside of them; counted apart and never as received.
    Unscheduled(i64),
}

/// A span `[from, to)` in which one service promises a heartbeat per tick.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    /// Identity; a window's first definition stands.
    pub uuid: Uuid,
    /// The service that promises.
    pub service: ServiceName,
    /// Shares that the sender planned, if it said.
    pub rates: Rates,
    from: Timestamp,
    to: Timestamp,
    tick: Tick,
    slots: NonZeroU32,
}

impl Window {
    /// A window over `[from, to)` with a slot each `tick`.
    ///
    /// # Errors
    /// `to` not after `from`, or more than [`MAX_SLOTS_PER_WINDOW`] slots.
    pub fn new(
        uuid: Uuid,
        service: ServiceName,
        (from, to): (Timestamp, Timestamp),
        tick: Tick,
        rates: Rates,
    ) -> Result<Self, WireError> {
        if to <= from {
            return Err(WireError::invalid("window_to must be later than window_from"));
        }
        let slots = slots_between(from, to, tick)
            .filter(|slots| slots.get() <= MAX_SLOTS_PER_WINDOW)
            .ok_or_else(|| {
                WireError::invalid(format!(
                    "a window may have at most {MAX_SLOTS_PER_WINDOW} slots: shorten it or \
                     lengthen tick_seconds"
                ))
            })?;
        Ok(Self { uuid, service, rates, from, to, tick, slots })
    }

    /// Start of the window, and due time of slot 0.
    #[must_use]
    pub const fn from(&self) -> Timestamp {
        self.from
    }

    /// End of the window, exclusive.
    #[must_use]
    pub const fn to(&self) -> Timestamp {
        self.to
    }

    /// Time between two slots.
    #[must_use]
    pub const fn tick(&self) -> Tick {
        self.tick
    }

    /// How many heartbeats the window promises: `max(1, ceil((to - from) / tick))`.
    #[must_use]
    pub const fn slots(&self) -> u32 {
        self.slots.get()
    }

    /// When the heartbeat of a slot is due.
    #[must_use]
    pub fn due(&self, slot: u32) -> Timestamp {
        self.from.plus_micros(self.tick.0 * i64::from(slot))
    }

    /// End of the last slot: nothing of this window is due after it. Not before [`Window::to`].
    #[must_use]
    pub fn ends_at(&self) -> Timestamp {
        self.due(self.slots.get())
    }

    /// The slot that an instant falls into: `floor((at - from + tick/10) / tick)`, so that a
    /// sender whose clock runs a little ahead is still counted where it meant to be.
    #[must_use]
    pub fn slot_at(&self, at: Timestamp) -> Slot {
        let since_start = at.micros() - self.from.micros();
        self.slot_numbered((since_start + self.tick.0 / 10).div_euclid(self.tick.0))
    }

    /// The slot of what names one, as a heartbeat or a row of an audit does. Older senders name none:
    /// the slot is then that which the timestamp falls into.
    #[must_use]
    pub fn slot_of(&self, number: Option<i64>, timestamp: Timestamp) -> Slot {
        number.map_or_else(|| self.slot_at(timestamp), |number| self.slot_numbered(number))
    }

    /// The slot with this number, which may lie outside of the window.
    #[must_use]
    pub fn slot_numbered(&self, number: i64) -> Slot {
        match u32::try_from(number) {
            Ok(slot) if slot < self.slots.get() => Slot::Scheduled(slot),
            _ => Slot::Unscheduled(number),
        }
    }
}

fn slots_between(from: Timestamp, to: Timestamp, tick: Tick) -> Option<NonZeroU32> {
    let span = to.micros() - from.micros();
    let slots = span / tick.0 + i64::from(span % tick.0 != 0);
    u32::try_from(slots.max(1)).ok().and_then(NonZeroU32::new)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn window(span_micros: i64, tick_micros: i64) -> Window {
        let from = Timestamp::parse("2026-11-21T10:00:00Z").unwrap();
        Window::new(
            Uuid::nil(),
            "payments-a".parse().unwrap(),
            (from, from.plus_micros(span_micros)),
            Tick::from_micros(tick_micros).unwrap(),
            Rates::default(),
        )
        .unwrap()
    }

    #[test]
    fn a_window_promises_one_heartbeat_per_started_tick() {
        let table = [
            // span, tick, slots
            (150_000_000, 10_000_000, 15),
            (155_000_000, 10_000_000, 16),
            (150_000_001, 10_000_000, 16),
            (149_999_999, 10_000_000, 15),
            (10_000_000, 10_000_000, 1),
            (1, 10_000_000, 1),
            (1_000_000, 50_000, 20),
            (1_000_000, 300_000, 4),
        ];
        for (span, tick, slots) in table {
            assert_eq!(window(span, tick).slots(), slots, "{span} us of {tick} us ticks");
        }
    }

    #[test]
    fn an_instant_belongs_to_the_slot_it_is_nearest_after() {
        let window = window(30_000_000, 10_000_000);
        let at = |seconds: f64| {
            #[expect(clippy::cast_possible_truncation, reason = "small constants of this test")]
            window.slot_at(window.from().plus_micros((seconds * 1e6) as i64))
        };
        let table = [
            (0.0, Slot::Scheduled(0)),
            (-1.0, Slot::Scheduled(0)),
            (-1.1, Slot::Unscheduled(-1)),
            (8.9, Slot::Scheduled(0)),
            (9.0, Slot::Scheduled(1)),
            (10.0, Slot::Scheduled(1)),
            (28.9, Slot::Scheduled(2)),
            (29.0, Slot::Unscheduled(3)),
            (30.0, Slot::Unscheduled(3)),
        ];
        for (seconds, slot) in table {
            assert_eq!(at(seconds), slot, "{seconds} s");
        }
    }

    #[test]
    fn a_slot_that_is_named_stands_and_else_the_timestamp_decides() {
        let window = window(30_000_000, 10_000_000);
        let table = [
            // number, timestamp of slot 2
            (Some(1), Slot::Scheduled(1)),
            (None, Slot::Scheduled(2)),
            (Some(3), Slot::Unscheduled(3)),
        ];
        for (number, slot) in table {
            assert_eq!(window.slot_of(number, window.due(2)), slot, "{number:?}");
        }
    }

    #[test]
    fn impossible_windows_are_refused() {
        let from = Timestamp::parse("2026-11-21T10:00:00Z").unwrap();
        let build = |to: Timestamp, tick: f64| {
            let service = "a".parse().unwrap();
            let tick = Tick::from_seconds(tick).unwrap();
            Window::new(Uuid::nil(), service, (from, to), tick, Rates::default())
        };
        assert!(build(from, 10.0).is_err());
        assert!(build(from.plus_micros(-1), 10.0).is_err());
        assert!(build(from.plus(Duration::from_secs(50_000)), 0.05).is_err());
        assert!(build(from.plus(Duration::from_secs(5_000)), 0.05).is_ok());
        for seconds in [0.0, -1.0, 0.04, 3600.1, f64::NAN, f64::INFINITY] {
            assert!(Tick::from_seconds(seconds).is_err(), "{seconds}");
        }
    }

    proptest! {
        #[test]
        fn the_slots_cover_the_window_exactly(
            span in 1_i64..5_000_000_000,
            tick in 50_000_i64..3_600_000_000,
        ) {
            let slots = slots_between(
                Timestamp::from_micros(0), Timestamp::from_micros(span), Tick(tick),
            ).unwrap().get();
            let slots = i64::from(slots);
            prop_assert!((slots - 1) * tick < span, "the last slot is due inside the window");
            prop_assert!(slots * tick >= span, "the slots reach its end");
        }

        #[test]
        fn a_heartbeat_sent_when_its_slot_is_due_belongs_to_it(
            span in 1_i64..5_000_000_000,
            tick in 50_000_i64..3_600_000_000,
            pick in 0_u32..100_000,
            jitter_percent in -10_i64..90,
        ) {
            prop_assume!(span / tick < 100_000);
            let window = window(span, tick);
            let slot = pick % window.slots();
            let sent_at = window.due(slot).plus_micros(tick / 100 * jitter_percent);
            prop_assert_eq!(window.slot_at(sent_at), Slot::Scheduled(slot));
        }
    }
}
