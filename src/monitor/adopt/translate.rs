//! What rows of the first system's ledger say, in our terms: windows by our own arithmetic, and the
//! slots of their heartbeats. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use uuid::Uuid;

use crate::monitor::ingest::{Arrival, MAX_CLOCK_AHEAD};
use crate::monitor::repository::{EventRow, FirstEvent, FirstWindow, PastEnd, PastWindow};
use crate::monitor::window::{Counts, WindowStatus};
use crate::wire::{
    Heartbeat, MAX_MESSAGE_CHARS, Rates, ServiceName, Slot, Status, Tick, Timestamp, Window,
};

/// What a row says of a window.
#[derive(Clone, Debug)]
pub(super) struct Told {
    /// The row.
    pub(super) row: i64,
    /// The window as we count it.
    pub(super) window: Window,
    /// Where it stands there.
    pub(super) status: WindowStatus,
    /// How many heartbeats it expects there; none if the row does not say.
    pub(super) expected: Option<u64>,
    /// How many heartbeats were counted for it there.
    pub(super) received: u64,
    created_at: Timestamp,
    updated_at: Timestamp,
    closed_at: Timestamp,
}

impl Told {
    /// Whether the tick does not fit what the window expects there: the first system may expect one
    /// heartbeat more.
    pub(super) fn has_another_tick(&self) -> bool {
        let slots = u64::from(self.window.slots());
        self.expected.is_some_and(|expected| expected != slots && expected != slots + 1)
    }

    /// Reads a row. A window's slots follow each other by `tick`, because the row does not say.
    ///
    /// # Errors
    /// Why the row is no window.
    pub(super) fn read(row: &FirstWindow, tick: Tick, now: Timestamp) -> Result<Self, String> {
        let uuid = required("window_uuid", row.window_uuid.as_deref())?;
        let service = required("service_name", row.service_name.as_deref())?;
        let status = required("status", row.status.as_deref())?;
        let window = Window::new(
            Uuid::try_parse(uuid).map_err(|_| unusable("window_uuid", uuid, &"is no UUID"))?,
            service
                .parse::<ServiceName>()
                .map_err(|error| unusable("service_name", service, &error))?,
            (
                instant("window_from", row.window_from.as_deref())?,
                instant("window_to", row.window_to.as_deref())?,
            ),
            tick,
            Rates {
                error_status_generado: share(row.error_status_generado),
                error_status_no_reportado: share(row.error_status_no_reportado),
            },
        )
        .map_err(|error| error.to_string())?;
        if window.from() > now.plus(MAX_CLOCK_AHEAD) {
            return Err(format!("window_from {} lies in the future", window.from()));
        }
        let status = status.parse().map_err(|error: String| unusable("status", status, &error))?;
        let perhaps = |text: &Option<String>| instant("", text.as_deref()).ok();
        let created_at = perhaps(&row.created_at).unwrap_or_else(|| window.from());
        let updated_at = perhaps(&row.updated_at);
        let closed_at = perhaps(&row.closed_at).or(updated_at).unwrap_or_else(|| window.ends_at());
        let changed_at = if status == WindowStatus::Open { created_at } else { closed_at };
        Ok(Self {
            row: row.id,
            status,
            expected: row.expected_reports.map(|expected| count(Some(expected))),
            received: count(row.received_reports),
            created_at,
            updated_at: updated_at.unwrap_or(changed_at),
            closed_at,
            window,
        })
    }

    /// The window as we keep it, if this is what arrived of it.
    pub(super) fn past(&self, placed: &Placed) -> PastWindow {
        let end = PastEnd { counts: placed.counts(&self.window), closed_at: self.closed_at };
        PastWindow {
            window: self.window.clone(),
            created_at: self.created_at,
            updated_at: self.updated_at,
            end: (self.status != WindowStatus::Open).then_some(end),
        }
    }
}

/// A count as the old ledger keeps it; what is none counts as nothing.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it saturates")]
fn count(number: Option<f64>) -> u64 {
    number.map_or(0, |number| number as u64)
}

/// What a row says of a heartbeat of a window; none for one that is missing.
///
/// # Errors
/// Why the row is no heartbeat.
pub(super) fn heartbeat(event: &FirstEvent, window: &Window) -> Result<Option<Arrival>, String> {
    let word = required("status", event.status.as_deref())?;
    let status = match word.to_ascii_uppercase().as_str() {
        "OK" => Status::Ok,
        "ERROR" => Status::Error(event.error_message.as_deref().and_then(message)),
        "MISSING" => return Ok(None),
        _ => return Err(unusable("status", word, &"is none of OK, ERROR and MISSING")),
    };
    let timestamp = instant("report_timestamp", event.report_timestamp.as_deref())?;
    let at = instant("created_at", event.created_at.as_deref()).unwrap_or(timestamp);
    let window = window.clone();
    let heartbeat = Heartbeat { window, status, timestamp, slot: None, stream_id: None };
    Ok(Some(Arrival { heartbeat: Arc::new(heartbeat), at }))
}

/// Heartbeats of one window by their slots. The first of a slot counts, and how many came is counted.
#[derive(Clone, Debug, Default)]
pub(super) struct Placed {
    pub(super) scheduled: BTreeMap<u32, EventRow>,
    pub(super) unscheduled: BTreeMap<i64, EventRow>,
}

impl Placed {
    /// Finds the slots of heartbeats, which come in the order in which they arrived.
    pub(super) fn in_slots(window: &Window, arrivals: &[Arrival]) -> Self {
        let mut placed = Self::default();
        for arrival in arrivals {
            match arrival.heartbeat.slot_in(window) {
                Slot::Scheduled(slot) => EventRow::add(&mut placed.scheduled, slot, arrival),
                Slot::Unscheduled(slot) => EventRow::add(&mut placed.unscheduled, slot, arrival),
            };
        }
        placed
    }

    /// The slots of which something arrived.
    pub(super) fn slots(&self) -> BTreeSet<u32> {
        self.scheduled.keys().copied().collect()
    }

    /// The counts of the window if nothing more arrives.
    fn counts(&self, window: &Window) -> Counts {
        let number = |rows: usize| u32::try_from(rows).unwrap_or(u32::MAX);
        let received = number(self.scheduled.len());
        let errors = number(self.scheduled.values().filter(|row| row.is_error()).count());
        Counts { received, errors, missing: window.slots() - received, unobserved: 0 }
    }
}

fn required<'t>(name: &str, text: Option<&'t str>) -> Result<&'t str, String> {
    text.map(str::trim).ok_or_else(|| format!("{name} is null"))
}

fn instant(name: &str, text: Option<&str>) -> Result<Timestamp, String> {
    let text = required(name, text)?;
    Timestamp::parse(text).map_err(|error| unusable(name, text, &error))
}

fn unusable(name: &str, text: &str, why: &dyn fmt::Display) -> String {
    format!("{name} {text:?} {why}")
}

/// A rate, if it is one.
fn share(rate: Option<f64>) -> Option<f64> {
    rate.filter(|rate| (0.0..=1.0).contains(rate))
}

/// A message, as long as we keep one.
fn message(text: &str) -> Option<String> {
    let text = text.trim();
    (!text.is_empty()).then(|| text.chars().take(MAX_MESSAGE_CHARS).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is wrong with a row.
    type Change = fn(&mut FirstWindow);

    const NOW: &str = "2026-11-21T12:00:00Z";

    fn at(text: &str) -> Timestamp {
        Timestamp::parse(text).unwrap()
    }

    #[expect(clippy::unnecessary_wraps, reason = "as a row has it")]
    fn text(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    /// A window of 30 s that was closed 5 s later.
    fn row() -> FirstWindow {
        FirstWindow {
            id: 7,
            window_uuid: text("6f1c1f0e-5f0c-4f43-9a55-0d2b1f2a7f10"),
            service_name: text("payments-a"),
            status: text("CLOSED"),
            window_from: text("2026-11-21 10:00:00"),
            window_to: text("2026-11-21 10:00:30"),
            expected_reports: Some(4.0),
            received_reports: Some(4.0),
            error_status_generado: Some(0.2623),
            error_status_no_reportado: None,
            created_at: text("2026-11-21 10:00:01"),
            updated_at: None,
            closed_at: text("2026-11-21 10:00:35"),
        }
    }

    fn event(id: i64, status: &str, second: u32) -> FirstEvent {
        FirstEvent {
            id,
            window_id: 7,
            status: text(status),
            report_timestamp: Some(format!("2026-11-21 10:00:{second:02}")),
            error_message: None,
            created_at: None,
        }
    }

    fn told(row: &FirstWindow) -> Told {
        Told::read(row, Tick::DEFAULT, at(NOW)).unwrap()
    }

    fn placed(events: &[FirstEvent]) -> Placed {
        let window = told(&row()).window;
        let arrivals: Vec<Arrival> =
            events.iter().filter_map(|event| heartbeat(event, &window).unwrap()).collect();
        Placed::in_slots(&window, &arrivals)
    }

    #[test]
    fn a_closed_window_is_closed_by_our_slots_at_its_time() {
        let there = told(&row());
        assert_eq!(there.window.slots(), 3);
        // One tick too many, and none in the slot before it.
        let (three, four) = ([0, 10, 30], [0, 10, 20, 30]);
        for (seconds, missing) in [(&three[..], 1), (&four[..], 0)] {
            let events: Vec<FirstEvent> =
                (1..).zip(seconds).map(|(id, second)| event(id, "OK", *second)).collect();
            let placed = placed(&events);
            assert_eq!(placed.unscheduled.keys().collect::<Vec<_>>(), [&3]);
            let past = there.past(&placed);
            let counts = Counts { received: 3 - missing, missing, ..Counts::default() };
            let closed_at = at("2026-11-21T10:00:35Z");
            assert_eq!(past.end, Some(PastEnd { counts, closed_at }));
            assert_eq!(past.created_at, at("2026-11-21T10:00:01Z"));
            assert_eq!(past.updated_at, closed_at);
        }
    }

    #[test]
    fn what_an_open_window_lacks_may_still_come() {
        let open = told(&FirstWindow { status: text("OPEN"), closed_at: None, ..row() });
        let past = open.past(&placed(&[event(1, "OK", 0)]));
        assert_eq!((past.end, past.updated_at), (None, at("2026-11-21T10:00:01Z")));
    }

    #[test]
    fn the_first_of_a_slot_counts_and_missing_ones_are_no_heartbeats() {
        let placed = placed(&[
            event(1, "MISSING", 0),
            event(2, "ERROR", 10),
            event(3, "OK", 10),
            event(4, "ok", 19),
        ]);
        assert_eq!(placed.slots(), BTreeSet::from([1, 2]), "a tenth of a tick early is not");
        let counts = placed.counts(&told(&row()).window);
        assert_eq!((counts.received, counts.errors, counts.missing), (2, 1, 1));
    }

    #[test]
    fn messages_are_as_long_as_ours() {
        let window = told(&row()).window;
        let said = |text: &str| {
            let error = FirstEvent { error_message: Some(text.to_owned()), ..event(1, "ERROR", 0) };
            let arrival = heartbeat(&error, &window).unwrap().unwrap();
            arrival.heartbeat.status.message().map(|message| message.chars().count())
        };
        assert_eq!(said(" "), None);
        assert_eq!(said("größer"), Some(6));
        assert_eq!(said(&"ß".repeat(5_000)), Some(MAX_MESSAGE_CHARS));
    }

    #[test]
    fn rows_that_are_no_window_say_why() {
        let bad = |change: Change| {
            let mut row = row();
            change(&mut row);
            Told::read(&row, Tick::DEFAULT, at(NOW)).unwrap_err()
        };
        let table: [(Change, &str); 9] = [
            (|row| row.window_uuid = None, "window_uuid is null"),
            (|row| row.window_uuid = text("7"), "window_uuid \"7\" is no UUID"),
            (|row| row.service_name = text("a b"), "service_name \"a b\" must be 1 to 100"),
            (|row| row.status = text("SHUT"), "status \"SHUT\" must be open, closed or alert"),
            (|row| row.window_from = text("0000-00-00 00:00:00"), "window_from \"0000"),
            (|row| row.window_to = text("2026-11-21 09:00:00"), "window_to must be later than"),
            (|row| row.window_to = text("2026-11-21 10:00:00"), "window_to must be later than"),
            (|row| row.window_to = text("2127-11-21 10:00:00"), "a window may have at most"),
            (
                |row| {
                    row.window_from = text("2027-11-21 10:00:00");
                    row.window_to = text("2027-11-21 10:01:00");
                },
                "window_from 2027-11-21T10:00:00Z lies in the future",
            ),
        ];
        for (change, why) in table {
            let said = bad(change);
            assert!(said.starts_with(why), "{said}");
        }
        let window = told(&row()).window;
        let why = |event: FirstEvent| heartbeat(&event, &window).map(drop).unwrap_err();
        assert!(why(event(1, "UP", 0)).starts_with("status \"UP\" is none of"));
        let timeless = FirstEvent { report_timestamp: None, ..event(1, "OK", 0) };
        assert_eq!(why(timeless), "report_timestamp is null");
    }

    #[test]
    fn what_is_wrong_beside_the_window_does_not_matter() {
        let odd = FirstWindow {
            error_status_generado: Some(26.23),
            created_at: None,
            closed_at: text("soon"),
            ..row()
        };
        let past = told(&odd).past(&Placed::default());
        assert_eq!(past.window.rates, Rates::default());
        assert_eq!(past.created_at, past.window.from());
        assert_eq!(past.end.map(|end| end.closed_at), Some(past.window.ends_at()));
    }
}
