//! Compares both ledgers of a run slot by slot and says what is wrong. Pure: it knows no database
//! and no clock, so that its own tests can make up a ledger for each kind of violation.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use heartbeat::monitor::window::{Counts, WindowStatus};
use heartbeat::wire::Timestamp;

use super::ledger::{Audited, Change, EventStatus, Ledger, Planned, Record, Watched};

/// What a run was to do, and what is known of it besides the ledgers.
#[derive(Clone, Debug, Default)]
pub struct Expectation {
    /// The monitors' `--grace`.
    pub grace: Duration,
    /// The monitors' `--max-hold`.
    pub max_hold: Duration,
    /// From when to when no relay worked.
    pub stalls: Vec<(Timestamp, Timestamp)>,
    /// Marks of the poison that must be among the dead letters.
    pub poison: BTreeSet<String>,
    /// Marks of poison that was destroyed with Redis' data, or is not known to have been written.
    pub uncertain_poison: BTreeSet<String>,
    /// Fewest windows for the run to count.
    pub windows: usize,
    /// Faults by kind: how many there were, and how many there must be for the run to count.
    pub faults: BTreeMap<&'static str, (usize, usize)>,
}

/// What is promised to be zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Figure {
    /// Slots whose heartbeat was audited and has not arrived; windows that are unknown.
    Lost,
    /// Slots that arrived although the audit denies them.
    Phantom,
    /// Windows that were closed again, or whose history repeats itself.
    ClosedTwice,
    /// Counts, statuses and histories that contradict the events.
    Disagreeing,
    /// Alerts that were raised although everything had been sent in time.
    FalseAlarm,
    /// Poison that is no dead letter, and dead letters that are no poison.
    DeadLetter,
    /// Windows that are not settled although all faults are over.
    Unsettled,
    /// What the run lacks in order to count.
    TooLittle,
}

impl Figure {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 8] = [
        Self::Lost,
        Self::Phantom,
        Self::ClosedTwice,
        Self::Disagreeing,
        Self::FalseAlarm,
        Self::DeadLetter,
        Self::Unsettled,
        Self::TooLittle,
    ];
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Lost => "lost",
            Self::Phantom => "phantom",
            Self::ClosedTwice => "closed twice",
            Self::Disagreeing => "counters that disagree",
            Self::FalseAlarm => "false alarms",
            Self::DeadLetter => "dead letters unlike the poison",
            Self::Unsettled => "unsettled windows",
            Self::TooLittle => "lacks for the run to count",
        })
    }
}

/// What the checker found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Windows that were planned.
    pub windows: usize,
    /// Slots by verdict.
    pub verdicts: BTreeMap<&'static str, usize>,
    /// Alerts that were raised while nobody could look, for longer than a window may be held.
    pub unobserved_alerts: usize,
    /// Every violation, as a sentence.
    pub violations: Vec<(Figure, String)>,
}

impl Report {
    /// How many violations of one kind there are.
    pub fn count(&self, figure: Figure) -> usize {
        self.texts(figure).count()
    }

    /// The violations of one kind.
    pub fn texts(&self, figure: Figure) -> impl Iterator<Item = &str> {
        let of_kind = self.violations.iter().filter(move |(of, _)| *of == figure);
        of_kind.map(|(_, text)| text.as_str())
    }

    fn add(&mut self, figure: Figure, text: impl Into<String>) {
        self.violations.push((figure, text.into()));
    }
}

/// Checks the ledgers of a run.
pub fn check(ledger: &Ledger, expectation: &Expectation) -> Report {
    let mut report = Report::default();
    for (uuid, record) in &ledger.windows {
        let mut found = Report::default();
        check_window(record, expectation, &mut found);
        report.windows += usize::from(record.planned.is_some());
        report.unobserved_alerts += found.unobserved_alerts;
        for (verdict, slots) in found.verdicts {
            *report.verdicts.entry(verdict).or_default() += slots;
        }
        let named = |(figure, text)| (figure, format!("window {uuid}: {text}"));
        report.violations.extend(found.violations.into_iter().map(named));
    }
    check_dead_letters(ledger, expectation, &mut report);
    check_size(expectation, &mut report);
    report
}

fn check_window(record: &Record, expectation: &Expectation, report: &mut Report) {
    let Some(planned) = &record.planned else {
        report.add(Figure::Phantom, "the monitor has it and no audit does");
        return;
    };
    if !planned.is_finished {
        report.add(Figure::Unsettled, "its sender has not finished it");
    }
    for slot in 0..planned.slots {
        check_slot(record, slot, report);
    }
    match &record.watched {
        None if planned.is_announced => {
            report.add(Figure::Lost, "it was announced, and the monitor does not know it");
        }
        None => (),
        Some(watched) if watched.status == WindowStatus::Open => {
            report.add(Figure::Unsettled, "it is still open");
        }
        Some(watched) => {
            check_counts(record, planned, watched, report);
            check_history(record, watched, report);
            check_alarms(record, watched, expectation, report);
        }
    }
}

fn check_slot(record: &Record, slot: u32, report: &mut Report) {
    let audited = record.audit.get(&slot);
    let event = record.events.get(&slot).filter(|event| event.status != EventStatus::Missing);
    let verdict = match (audited, event) {
        (Some(audited), Some(event)) if audited.reports() => {
            if event.status != audited.expected() {
                let text = format!("slot {slot} says {:?}, not {}", event.status, audited.status);
                report.add(Figure::Disagreeing, text);
            }
            if event.is_late { "late" } else { "on_time" }
        }
        (_, Some(_)) => {
            report.add(Figure::Phantom, format!("slot {slot} arrived, and was never sent"));
            "phantom"
        }
        (Some(audited), None) if audited.reports() => {
            let sent = if audited.is_sent { "was sent" } else { "was to be sent" };
            report.add(Figure::Lost, format!("slot {slot} {sent}, and has not arrived"));
            "lost"
        }
        (Some(_), None) => "never_sent",
        (None, None) => "sender_down",
    };
    *report.verdicts.entry(verdict).or_default() += 1;
}

fn check_counts(record: &Record, planned: &Planned, watched: &Watched, report: &mut Report) {
    let count = |wanted: fn(&super::ledger::Event) -> bool| {
        u32::try_from(record.events.values().filter(|event| wanted(event)).count()).unwrap()
    };
    let counted = Counts {
        received: count(|event| event.status != EventStatus::Missing),
        errors: count(|event| event.status == EventStatus::Error),
        missing: count(|event| event.status == EventStatus::Missing),
        unobserved: count(|event| event.is_unobserved),
    };
    let Counts { received, missing, unobserved, .. } = watched.counts;
    if watched.counts != counted {
        let text = format!("it stores {:?}, and its events are {counted:?}", watched.counts);
        report.add(Figure::Disagreeing, text);
    }
    if watched.expected != planned.slots || received + missing != planned.slots {
        let promised = planned.slots;
        let text = format!("{received} received and {missing} missing are not {promised}");
        report.add(Figure::Disagreeing, text);
    }
    if (watched.status == WindowStatus::Alert) != (missing > 0) {
        let text = format!("it is {} with {missing} missing", watched.status);
        report.add(Figure::Disagreeing, text);
    }
    if unobserved > 0 {
        report.add(Figure::Unsettled, format!("{unobserved} slots are still unobserved"));
    }
}

fn check_history(record: &Record, watched: &Watched, report: &mut Report) {
    for pair in record.history.windows(2) {
        if (pair[0].status, &pair[0].cause) == (pair[1].status, &pair[1].cause) {
            let text = format!("at {} it became {} again", pair[1].at, pair[1].status);
            report.add(Figure::ClosedTwice, text);
        }
    }
    match record.history.last() {
        None => report.add(Figure::Disagreeing, "it is closed, and its history does not say so"),
        Some(last) if last.status != watched.status => {
            let text =
                format!("it is {}, and its history ends with {}", watched.status, last.status);
            report.add(Figure::Disagreeing, text);
        }
        Some(_) => (),
    }
}

fn check_alarms(
    record: &Record,
    watched: &Watched,
    expectation: &Expectation,
    report: &mut Report,
) {
    let closes_at = closes_at(watched, expectation.grace);
    let slots = 0..watched.expected;
    let excused = slots.filter(|slot| !sent_in_time(record.audit.get(slot), closes_at)).count();
    for change in record.history.iter().filter(|change| change.status == WindowStatus::Alert) {
        let Counts { missing, unobserved, .. } = change.counts;
        if change.cause.is_some() {
            if held_too_long(change, closes_at, expectation) {
                report.unobserved_alerts += 1;
            } else {
                let text = format!("at {} unobserved, before the longest hold", change.at);
                report.add(Figure::FalseAlarm, text);
            }
        } else if missing.saturating_sub(unobserved) as usize > excused {
            let text = format!(
                "ALERT at {} for {missing} missing, of which {unobserved} unobserved; {excused} \
                 were not sent by {closes_at}",
                change.at
            );
            report.add(Figure::FalseAlarm, text);
        }
    }
}

/// When a window may close, by Redis' clock.
fn closes_at(watched: &Watched, grace: Duration) -> Timestamp {
    watched.ends_at.plus_micros(watched.clock_offset_micros).plus(grace)
}

/// Whether Redis had a slot's heartbeat before its window could close. What its sender could only
/// send later is the sender's own lateness, and a right alarm.
pub fn sent_in_time(audited: Option<&Audited>, closes_at: Timestamp) -> bool {
    audited
        .filter(|audited| audited.reports())
        .and_then(|audited| audited.first_sent)
        .is_some_and(|sent| sent < closes_at)
}

/// Whether an alert that nobody could look came after the longest time for which a window is held,
/// or for which no relay worked.
fn held_too_long(change: &Change, closes_at: Timestamp, expectation: &Expectation) -> bool {
    let max_hold = expectation.max_hold;
    // Monitors see the end of a stall a little later than it happens.
    let slack = Duration::from_secs(5);
    let stalled = |(from, to): &(Timestamp, Timestamp)| {
        from.plus(max_hold) <= change.at && change.at <= to.plus(slack)
    };
    closes_at.plus(max_hold) <= change.at || expectation.stalls.iter().any(stalled)
}

fn check_dead_letters(ledger: &Ledger, expectation: &Expectation, report: &mut Report) {
    let mut found = BTreeSet::new();
    for mark in &ledger.dead_letters {
        let is_known =
            expectation.poison.contains(mark) || expectation.uncertain_poison.contains(mark);
        if !is_known {
            report.add(Figure::DeadLetter, format!("a dead letter that is no poison: {mark}"));
        } else if !found.insert(mark) {
            report.add(Figure::DeadLetter, format!("{mark} is a dead letter twice"));
        }
    }
    for mark in expectation.poison.iter().filter(|mark| !found.contains(mark)) {
        report.add(Figure::DeadLetter, format!("{mark} is no dead letter"));
    }
}

fn check_size(expectation: &Expectation, report: &mut Report) {
    let (windows, least) = (report.windows, expectation.windows);
    if windows < least {
        report.add(Figure::TooLittle, format!("{windows} windows, not {least}"));
    }
    for (kind, (injected, required)) in &expectation.faults {
        if injected < required {
            report.add(Figure::TooLittle, format!("{injected} faults of {kind}, not {required}"));
        }
    }
}
