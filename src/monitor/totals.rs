//! What slots and windows add to the totals, and how long the spans are that totals are kept for.
//!
//! Pure. A window adds to the totals when it closes, by all its slots at once, and not before:
//! until then nothing is decided about what has not arrived. When it changes afterwards, because a
//! heartbeat came late or the truth about what could not be observed is known, what it added is
//! taken away and what it says now is added.
//!
//! A slot counts in the five minutes in which it was due. A window of more than a week is measured in
//! days: a slot of it counts at the beginning of its day, so that no window changes very many totals.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::latency::Latencies;
use super::window::StoredWindow;
use crate::verdict::Verdict;
use crate::wire::Timestamp;

const MICROS_PER_MINUTE: i64 = 60_000_000;
/// Longest window of which slots count to five minutes, in microseconds.
const LONGEST_TO_THE_SLICE_US: i64 = 7 * Span::Day.micros();

/// How long a span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Span {
    /// Five minutes: the precision of every answer.
    Slice,
    /// An hour.
    Hour,
    /// A day of UTC.
    Day,
}

impl Span {
    /// Each of them, shortest first.
    pub const ALL: [Self; 3] = [Self::Slice, Self::Hour, Self::Day];

    /// The span as the database names it.
    #[must_use]
    pub const fn as_sql(self) -> &'static str {
        match self {
            Self::Slice => "slice",
            Self::Hour => "hour",
            Self::Day => "day",
        }
    }

    /// Its length in microseconds.
    #[must_use]
    pub const fn micros(self) -> i64 {
        match self {
            Self::Slice => 5 * MICROS_PER_MINUTE,
            Self::Hour => 60 * MICROS_PER_MINUTE,
            Self::Day => 24 * 60 * MICROS_PER_MINUTE,
        }
    }

    /// The beginning of the span that an instant is in.
    #[must_use]
    pub const fn begin(self, at: Timestamp) -> Timestamp {
        Timestamp::from_micros(at.micros() - at.micros().rem_euclid(self.micros()))
    }
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Slots.
    Expected,
    /// Slots that truly arrived.
    Received,
    /// Those of them that reported an error.
    Errors,
    /// Slots that did not arrive.
    Missing,
    /// Those of them that are missing only because they could not be observed.
    Unobserved,
    /// Slots that arrived after their window had closed.
    Late,
    /// Distinct heartbeats outside of their window's slots.
    Unscheduled,
    /// Windows whose every slot arrived.
    ClosedWindows,
    /// Windows that miss a slot.
    AlertWindows,
}

impl Count {
    /// Each of them, in the order in which they are stored.
    pub const ALL: [Self; 9] = [
        Self::Expected,
        Self::Received,
        Self::Errors,
        Self::Missing,
        Self::Unobserved,
        Self::Late,
        Self::Unscheduled,
        Self::ClosedWindows,
        Self::AlertWindows,
    ];

    /// The count as the database and the API name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Expected => "expected_reports",
            Self::Received => "received_reports",
            Self::Errors => "error_reports",
            Self::Missing => "missing_reports",
            Self::Unobserved => "unobserved_reports",
            Self::Late => "late_reports",
            Self::Unscheduled => "unscheduled_reports",
            Self::ClosedWindows => "closed_windows",
            Self::AlertWindows => "alert_windows",
        }
    }
}

/// Counts of some slots and windows, or the difference between two of them.
///
/// What is zero is not stored, so that counts may be added to these one day. A program that does not
/// know one refuses to read it: it would leave it behind when it takes away what was added.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Totals {
    /// In the order of [`Count::ALL`].
    #[serde(with = "by_name")]
    pub counts: [i64; Count::ALL.len()],
    /// Slots by what became of them.
    pub verdicts: BTreeMap<Verdict, i64>,
    /// Heartbeats by how long they took.
    pub latencies: Latencies,
}

impl Totals {
    /// One of the counts.
    #[must_use]
    pub const fn of(&self, count: Count) -> i64 {
        self.counts[count as usize]
    }

    /// Adds another, `sign` times.
    pub fn add(&mut self, other: &Self, sign: i64) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += sign * more;
        }
        for (verdict, slots) in &other.verdicts {
            *self.verdicts.entry(*verdict).or_default() += sign * slots;
        }
        self.verdicts.retain(|_, slots| *slots != 0);
        self.latencies.add(&other.latencies, sign);
    }

    const fn count(&mut self, count: Count, number: i64) {
        self.counts[count as usize] += number;
    }

    fn add_slot(&mut self, slot: &CountedSlot, verdict: Verdict) {
        self.count(Count::Expected, 1);
        *self.verdicts.entry(verdict).or_default() += 1;
        match slot.arrived {
            None => {
                self.count(Count::Missing, 1);
                self.count(Count::Unobserved, i64::from(slot.is_unobserved));
            }
            Some(ArrivedSlot { is_error, is_late, latency_us }) => {
                self.count(Count::Received, 1);
                self.count(Count::Errors, i64::from(is_error));
                self.count(Count::Late, i64::from(is_late));
                self.latencies.add_one(latency_us);
            }
        }
    }
}

/// Counts as they are stored: by their names.
mod by_name {
    use std::collections::BTreeMap;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    use super::Count;

    type Counts = [i64; Count::ALL.len()];

    pub(super) fn serialize<S: Serializer>(counts: &Counts, to: S) -> Result<S::Ok, S::Error> {
        let named = Count::ALL.iter().map(|count| (count.name(), counts[*count as usize]));
        to.collect_map(named.filter(|(_, number)| *number != 0))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Counts, D::Error> {
        let mut counts = Counts::default();
        for (name, number) in BTreeMap::<String, i64>::deserialize(from)? {
            let count = Count::ALL.into_iter().find(|count| count.name() == name);
            let count = count.ok_or_else(|| D::Error::custom(format!("{name} is not counted")))?;
            counts[count as usize] = number;
        }
        Ok(counts)
    }
}

/// A slot of a closed window, as far as it matters to totals.
#[derive(Clone, Copy, Debug)]
pub struct CountedSlot {
    /// Its number.
    pub slot: u32,
    /// The heartbeat; none if it is missing.
    pub arrived: Option<ArrivedSlot>,
    /// Whether it is missing only because it could not be observed.
    pub is_unobserved: bool,
}

/// A heartbeat, as far as it matters to totals.
#[derive(Clone, Copy, Debug)]
pub struct ArrivedSlot {
    /// Whether it reports an error.
    pub is_error: bool,
    /// Whether its window had closed without it.
    pub is_late: bool,
    /// From the sender's stamp to the monitor, in microseconds, by both clocks.
    pub latency_us: i64,
}

/// What one window adds to the totals, by slices, of which the key is the beginning in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Added(BTreeMap<i64, Totals>);

impl Added {
    /// Adds a slot. `judged` is what both ledgers said of one that is missing, if they were asked.
    pub fn add_slot(&mut self, window: &StoredWindow, slot: &CountedSlot, judged: Option<Verdict>) {
        let verdict = match slot.arrived {
            Some(arrived) if arrived.is_late => Verdict::Late,
            Some(_) => Verdict::OnTime,
            None => judged.unwrap_or(Verdict::Unknown),
        };
        self.slice(window, slot.slot).add_slot(slot, verdict);
    }

    /// Adds the window itself, after all its slots, and its unscheduled heartbeats.
    pub fn add_window(&mut self, window: &StoredWindow, unscheduled: i64) {
        let is_complete = self.missing() == 0;
        let totals = self.slice(window, window.window.slots().saturating_sub(1));
        totals.count(Count::Unscheduled, unscheduled);
        totals.count(if is_complete { Count::ClosedWindows } else { Count::AlertWindows }, 1);
    }

    /// How many slots are missing.
    #[must_use]
    pub fn missing(&self) -> i64 {
        self.0.values().map(|totals| totals.of(Count::Missing)).sum()
    }

    /// What is added to each slice.
    pub fn slices(&self) -> impl Iterator<Item = (Timestamp, &Totals)> {
        self.0.iter().map(|(begin, totals)| (Timestamp::from_micros(*begin), totals))
    }

    /// Where a slot counts.
    fn slice(&mut self, StoredWindow { window, .. }: &StoredWindow, slot: u32) -> &mut Totals {
        let length_us = window.ends_at().micros() - window.from().micros();
        let is_long = length_us > LONGEST_TO_THE_SLICE_US;
        let span = if is_long { Span::Day } else { Span::Slice };
        self.0.entry(span.begin(window.due(slot)).micros()).or_default()
    }
}

/// What the totals of some spans change by. An empty name stands for all services.
#[derive(Clone, Debug, Default)]
pub struct Changes(BTreeMap<(Span, String, Timestamp), Totals>);

impl Changes {
    /// Adds what a window of a service added, `sign` times.
    pub fn add(&mut self, service: &str, added: &Added, sign: i64) {
        for (begin, totals) in added.slices() {
            for span in Span::ALL {
                for name in [service, ""] {
                    let key = (span, name.to_owned(), span.begin(begin));
                    self.0.entry(key).or_default().add(totals, sign);
                }
            }
        }
    }

    /// Those that are any, in the order of the key, without slices that are not kept because they
    /// begin before an instant.
    #[must_use]
    pub fn into_real(mut self, slices_from: Timestamp) -> Vec<((Span, String, Timestamp), Totals)> {
        let is_kept = |span, begin| span != Span::Slice || begin >= slices_from;
        self.0.retain(|(span, _, begin), totals| {
            is_kept(*span, *begin) && *totals != Totals::default()
        });
        self.0.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::monitor::window::{Counts, WindowStatus};
    use crate::wire::{Rates, Tick, Window};

    #[test]
    fn spans_begin_at_or_before_what_they_hold() {
        let at = Timestamp::parse("2026-11-21T10:59:59.999999Z").unwrap();
        let begins = Span::ALL.map(|span| span.begin(at).to_string());
        assert_eq!(
            begins,
            ["2026-11-21T10:55:00Z", "2026-11-21T10:00:00Z", "2026-11-21T00:00:00Z"]
        );
        let old = Timestamp::parse("1969-12-31T23:59:59Z").unwrap_or(Timestamp::from_micros(-1));
        assert!(Span::Day.begin(old) <= old);
    }

    #[test]
    fn what_is_added_and_taken_away_changes_nothing() {
        let mut totals = Totals::default();
        let arrived = ArrivedSlot { is_error: true, is_late: true, latency_us: 70 };
        let slot = CountedSlot { slot: 0, arrived: Some(arrived), is_unobserved: false };
        totals.add_slot(&slot, Verdict::Late);
        totals.add_slot(&CountedSlot { arrived: None, is_unobserved: true, ..slot }, Verdict::Lost);
        assert_eq!(totals.counts, [2, 1, 1, 1, 1, 1, 0, 0, 0]);
        let added = Added(BTreeMap::from([(0, totals)]));
        let mut changes = Changes::default();
        changes.add("a", &added, 1);
        let (at_it, after) = (Timestamp::from_micros(0), Timestamp::from_micros(1));
        let real = |from| changes.clone().into_real(from).len();
        assert_eq!(real(at_it), 6, "three spans, one service and all");
        assert_eq!(real(after), 4, "without slices that are not kept");
        changes.add("a", &added, -1);
        assert!(changes.into_real(at_it).is_empty());
    }

    #[test]
    fn what_was_added_is_stored_and_read_back() {
        let mut totals = Totals::default();
        totals.count(Count::Missing, 3);
        totals.verdicts.insert(Verdict::NeverSent, 3);
        let added = Added(BTreeMap::from([(-1, totals)]));
        let text = serde_json::to_string(&added).unwrap();
        let stored =
            r#"{"-1":{"counts":{"missing_reports":3},"verdicts":{"never_sent":3},"latencies":{}}}"#;
        assert_eq!(text, stored);
        assert_eq!(serde_json::from_str::<Added>(&text).unwrap(), added);
        let later = text.replace("missing_reports", "odd_reports");
        assert!(serde_json::from_str::<Added>(&later).is_err(), "of a later program");
        let none = serde_json::from_str::<Added>(r#"{"-1":{}}"#).unwrap();
        assert_eq!(none, Added(BTreeMap::from([(-1, Totals::default())])));
    }

    #[test]
    fn no_window_changes_very_many_totals() {
        let from = Timestamp::parse("2014-11-21T10:00:00Z").unwrap();
        let stored = |tick_us: i64, slots: u32| {
            let to = from.plus_micros(tick_us * i64::from(slots));
            let tick = Tick::from_micros(tick_us).unwrap();
            let (uuid, service) = (Uuid::nil(), "a".parse().unwrap());
            let window = Window::new(uuid, service, (from, to), tick, Rates::default()).unwrap();
            StoredWindow {
                id: 1,
                window,
                status: WindowStatus::Alert,
                counts: Counts::default(),
                unscheduled: 0,
                events_kept: true,
                via_stream: false,
                clock_offset_us: None,
                held_from_us: None,
                created_at: from,
                updated_at: from,
                closed_at: Some(to),
            }
        };
        let (hour, week) = (Span::Hour.micros(), 7 * 24);
        for (slots, most) in [(week, 700), (week + 1, 60), (100_000, 26_000)] {
            let window = stored(hour, slots);
            let mut added = Added::default();
            for slot in 0..slots {
                added.add_slot(
                    &window,
                    &CountedSlot { slot, arrived: None, is_unobserved: false },
                    None,
                );
            }
            added.add_window(&window, 0);
            assert_eq!(added.missing(), i64::from(slots));
            let mut changes = Changes::default();
            changes.add("a", &added, 1);
            let changes = changes.into_real(Timestamp::from_micros(0));
            assert!(changes.len() <= most, "{slots} slots change {} totals", changes.len());
        }
    }
}
