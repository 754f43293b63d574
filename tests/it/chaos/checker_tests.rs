//! The checker on made-up ledgers: a clean one passes, and each kind of violation is caught.

use std::collections::BTreeMap;
use std::time::Duration;

use heartbeat::monitor::window::Counts;
use heartbeat::monitor::window::WindowStatus::{self, Alert, Closed, Open};
use heartbeat::wire::Timestamp;

use super::checker::{Expectation, Figure, check, sent_in_time};
use super::ledger::{Audited, Change, Event, EventStatus, Ledger, Planned, Record, Watched};

/// When the made-up window's last slot ends, in seconds; its grace is 2 s.
const ENDS_AT: i64 = 1_000;

fn second(seconds: i64) -> Timestamp {
    Timestamp::from_micros(seconds * 1_000_000)
}

fn audited(status: &str, sent_at: Option<i64>) -> Audited {
    Audited {
        status: status.to_owned(),
        is_sent: sent_at.is_some(),
        first_sent: sent_at.map(second),
    }
}

fn event(status: EventStatus) -> Event {
    Event { status, is_late: false, is_unobserved: false }
}

fn counts(received: u32, errors: u32, missing: u32) -> Counts {
    Counts { received, errors, missing, unobserved: 0 }
}

fn change(at: i64, status: WindowStatus, counts: Counts) -> Change {
    Change { at: second(at), status, cause: None, counts }
}

/// Four slots: a heartbeat, one with an error, one omitted, one while the sender was down.
fn record() -> Record {
    let counts = counts(2, 1, 2);
    Record {
        planned: Some(Planned { slots: 4, is_announced: true, is_finished: true }),
        audit: BTreeMap::from([
            (0, audited("ok", Some(997))),
            (1, audited("error:late", Some(998))),
            (2, audited("no_reported", None)),
        ]),
        watched: Some(Watched {
            status: Alert,
            expected: 4,
            counts,
            ends_at: second(ENDS_AT),
            clock_offset_micros: 0,
        }),
        events: BTreeMap::from([
            (0, event(EventStatus::Ok)),
            (1, event(EventStatus::Error)),
            (2, event(EventStatus::Missing)),
            (3, event(EventStatus::Missing)),
        ]),
        history: vec![change(1_003, Alert, counts)],
    }
}

fn expectation() -> Expectation {
    Expectation {
        grace: Duration::from_secs(2),
        max_hold: Duration::from_secs(14),
        poison: ["poison-1".to_owned()].into(),
        uncertain_poison: ["poison-2".to_owned()].into(),
        windows: 1,
        faults: BTreeMap::from([("kill", (5, 5))]),
        ..Expectation::default()
    }
}

fn ledger(record: Record) -> Ledger {
    Ledger {
        windows: BTreeMap::from([("w".to_owned(), record)]),
        dead_letters: vec!["poison-1".to_owned()],
    }
}

/// What the checker finds in the clean record after a change to it.
fn found(spoil: impl FnOnce(&mut Record)) -> Vec<Figure> {
    let mut record = record();
    spoil(&mut record);
    figures(&ledger(record), &expectation())
}

fn figures(ledger: &Ledger, expectation: &Expectation) -> Vec<Figure> {
    let report = check(ledger, expectation);
    Figure::ALL.into_iter().filter(|figure| report.count(*figure) > 0).collect()
}

fn watched(record: &mut Record) -> &mut Watched {
    record.watched.as_mut().unwrap()
}

/// Lets one more slot arrive late, as if it had been sent when it was due.
fn arrives_late(record: &mut Record) {
    record.audit.insert(3, audited("ok", Some(999)));
    record.events.insert(3, Event { is_late: true, ..event(EventStatus::Ok) });
    watched(record).counts = counts(3, 1, 1);
}

#[test]
fn a_clean_ledger_passes_and_every_slot_has_its_verdict() {
    let report = check(&ledger(record()), &expectation());
    assert!(report.violations.is_empty(), "{:?}", report.violations);
    let verdicts = [("never_sent", 1), ("on_time", 2), ("sender_down", 1)];
    assert_eq!(report.verdicts, BTreeMap::from(verdicts));
    assert_eq!(report.windows, 1);
}

#[test]
fn a_heartbeat_that_was_audited_and_did_not_arrive_is_lost() {
    assert_eq!(found(|it| drop(it.audit.insert(3, audited("ok", None)))), [Figure::Lost]);
    let sent_too_late = |it: &mut Record| drop(it.audit.insert(3, audited("ok", Some(1_002))));
    assert_eq!(found(sent_too_late), [Figure::Lost]);
    let sent = |it: &mut Record| drop(it.audit.insert(3, audited("ok", Some(999))));
    assert_eq!(found(sent), [Figure::Lost, Figure::FalseAlarm]);
}

#[test]
fn an_announced_window_that_the_monitor_does_not_know_is_lost() {
    let forget = |it: &mut Record| {
        *it = Record { planned: it.planned.clone(), ..Record::default() };
    };
    assert_eq!(found(forget), [Figure::Lost]);
}

#[test]
fn what_arrived_and_was_never_sent_is_a_phantom() {
    let arrives = |it: &mut Record, slot| {
        it.events.insert(slot, event(EventStatus::Ok));
        watched(it).counts = counts(3, 1, 1);
    };
    assert_eq!(found(|it| arrives(it, 2)), [Figure::Phantom]);
    assert_eq!(found(|it| arrives(it, 3)), [Figure::Phantom]);
    // Nor does such a window count among those that were planned.
    assert_eq!(found(|it| it.planned = None), [Figure::Phantom, Figure::TooLittle]);
}

#[test]
fn a_window_is_closed_once_and_then_only_changes() {
    let counts = counts(2, 1, 2);
    assert_eq!(found(|it| it.history.push(change(1_004, Alert, counts))), [Figure::ClosedTwice]);
    let unobserved = |it: &mut Record| {
        let first = Change { cause: Some("unobserved".to_owned()), ..change(1_020, Alert, counts) };
        it.history.insert(0, first);
    };
    assert_eq!(found(unobserved), []);
}

#[test]
fn counts_and_statuses_that_disagree_are_found() {
    let cases: [(&str, fn(&mut Record)); 8] = [
        ("received", |it| watched(it).counts = counts(3, 1, 1)),
        ("errors", |it| watched(it).counts.errors = 0),
        ("missing", |it| watched(it).counts.missing = 1),
        ("unobserved", |it| it.events.get_mut(&2).unwrap().is_unobserved = true),
        ("expected", |it| watched(it).expected = 5),
        ("a slot without a row", |it| it.events.retain(|slot, _| *slot != 3)),
        ("another status", |it| it.events.get_mut(&0).unwrap().status = EventStatus::Error),
        ("no history", |it| it.history.clear()),
    ];
    for (name, spoil) in cases {
        assert_eq!(found(spoil), [Figure::Disagreeing], "{name}");
    }
    let closed = |it: &mut Record| watched(it).status = Closed;
    assert_eq!(found(closed), [Figure::Disagreeing], "CLOSED with missing slots");
}

#[test]
fn what_is_not_settled_is_found() {
    assert_eq!(found(|it| watched(it).status = Open), [Figure::Unsettled]);
    assert_eq!(found(|it| it.planned.as_mut().unwrap().is_finished = false), [Figure::Unsettled]);
    let unobserved = |it: &mut Record| {
        it.events.get_mut(&2).unwrap().is_unobserved = true;
        watched(it).counts.unobserved = 1;
    };
    assert_eq!(found(unobserved), [Figure::Unsettled]);
}

#[test]
fn an_alert_for_what_was_sent_in_time_is_false_even_if_it_was_resolved() {
    let resolved = |it: &mut Record| {
        arrives_late(it);
        it.history =
            vec![change(1_003, Alert, counts(1, 1, 3)), change(1_005, Alert, counts(3, 1, 1))];
        it.history[1].cause = Some("unobserved".to_owned());
    };
    assert_eq!(found(resolved), [Figure::FalseAlarm]);
    // Two slots are excused: one omitted, and one that only its sender made late.
    let by_its_sender = |it: &mut Record| {
        arrives_late(it);
        it.audit.insert(3, audited("ok", Some(1_002)));
    };
    assert_eq!(found(by_its_sender), []);
    assert_eq!(found(arrives_late), [Figure::FalseAlarm]);
}

#[test]
fn an_unobserved_alert_is_false_before_the_longest_hold() {
    let raised_at = |at| {
        move |it: &mut Record| {
            arrives_late(it);
            let raised = Counts { unobserved: 1, ..counts(2, 1, 2) };
            let first =
                Change { cause: Some("unobserved".to_owned()), ..change(at, Alert, raised) };
            it.history = vec![first, change(1_030, Alert, counts(3, 1, 1))];
        }
    };
    assert_eq!(found(raised_at(1_015)), [Figure::FalseAlarm]);
    assert_eq!(found(raised_at(1_016)), []);
    let mut record = record();
    raised_at(1_004)(&mut record);
    let stalled =
        |from, to| Expectation { stalls: vec![(second(from), second(to))], ..expectation() };
    assert_eq!(figures(&ledger(record.clone()), &stalled(990, 1_009)), []);
    assert_eq!(figures(&ledger(record.clone()), &stalled(991, 1_009)), [Figure::FalseAlarm]);
    assert_eq!(figures(&ledger(record), &stalled(970, 998)), [Figure::FalseAlarm]);
}

#[test]
fn a_heartbeat_is_sent_in_time_if_redis_had_it_before_the_window_could_close() {
    let closes_at = second(1_002);
    let table = [
        (None, false),
        (Some(audited("no_reported", None)), false),
        (Some(audited("ok", None)), false),
        (Some(audited("ok", Some(1_001))), true),
        (Some(audited("error:x", Some(1_001))), true),
        (Some(audited("ok", Some(1_002))), false),
    ];
    for (audited, expected) in table {
        assert_eq!(sent_in_time(audited.as_ref(), closes_at), expected, "{audited:?}");
    }
}

#[test]
fn the_senders_clock_moves_the_close() {
    let shifted = |micros| {
        move |it: &mut Record| {
            arrives_late(it);
            it.audit.insert(3, audited("ok", Some(1_004)));
            watched(it).clock_offset_micros = micros;
        }
    };
    assert_eq!(found(shifted(0)), []);
    assert_eq!(found(shifted(3_000_000)), [Figure::FalseAlarm]);
}

#[test]
fn dead_letters_are_exactly_the_poison() {
    let with = |marks: &[&str]| {
        let mut ledger = ledger(record());
        ledger.dead_letters = marks.iter().map(|mark| (*mark).to_owned()).collect();
        figures(&ledger, &expectation())
    };
    assert_eq!(with(&["poison-1", "poison-2"]), []);
    assert_eq!(with(&[]), [Figure::DeadLetter], "one too few");
    assert_eq!(with(&["poison-1", "poison-1"]), [Figure::DeadLetter], "the same twice");
    assert_eq!(with(&["poison-1", "a heartbeat"]), [Figure::DeadLetter], "one too many");
}

#[test]
fn a_run_that_did_too_little_does_not_count() {
    let few_faults = Expectation { faults: BTreeMap::from([("kill", (4, 5))]), ..expectation() };
    assert_eq!(figures(&ledger(record()), &few_faults), [Figure::TooLittle]);
    let few_windows = Expectation { windows: 2, ..expectation() };
    assert_eq!(figures(&ledger(record()), &few_windows), [Figure::TooLittle]);
}
