//! The table of the contract against the code, line by line and at random; and each sentence.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::wire::{Rates, Tick};

fn at(text: &str) -> Timestamp {
    Timestamp::parse(&format!("2026-11-21T{text}Z")).unwrap()
}

fn entry(time: &str) -> StreamId {
    StreamId { millis: at(time).micros().unsigned_abs() / 1_000, sequence: 3 }
}

/// Thirty slots of 10 s from 10:00.
fn window() -> Window {
    let span = (at("10:00:00"), at("10:05:00"));
    Window::new(Uuid::nil(), "payments-a".parse().unwrap(), span, Tick::DEFAULT, Rates::default())
        .unwrap()
}

/// The row of a slot: what was reported, and the entry of which it is known that it carried it.
fn row(status: &str, stream_id: Option<StreamId>) -> AuditRow {
    AuditRow {
        status: status.to_owned(),
        timestamp: at("10:02:20.0004"),
        sent_to_queue: stream_id.is_some(),
        stream_id,
        first_stream_id: stream_id,
    }
}

/// A slot of which nothing is known, due at 10:02:20, a day later.
fn nothing(window: &Window) -> Facts<'_> {
    Facts {
        window,
        slot: 14,
        clock_offset_us: 0,
        arrival: None,
        letter: None,
        audit: Audit::Unasked,
        delivery: Delivery::Unreported,
        now: at("10:02:30").plus(std::time::Duration::from_hours(24)),
    }
}

const LETTER: Letter = Letter { at: Timestamp::from_micros(1_795_255_341_500_000), reason: "why" };

fn arrival(is_late: bool) -> Arrival {
    let stream_id = Some(entry("10:02:20.114"));
    Arrival { timestamp: at("10:02:20.01"), stream_id, recorded_at: at("10:03:21.2"), is_late }
}

/// The table of the contract, line by line, in words of its own.
fn by_the_table(facts: &Facts) -> (usize, Verdict) {
    let due = facts.window.from().micros() + i64::from(facts.slot) * 10_000_000;
    let knows = matches!(facts.audit, Audit::Known(_));
    let row = if let Audit::Known(row) = facts.audit { row } else { None };
    let omitted = row.is_some_and(|row| row.status == "no_reported");
    let sent_as = row.and_then(|row| row.stream_id);
    let past = |entry: StreamId| match facts.delivery {
        Delivery::Until(watermark) => entry.millis < watermark.micros().unsigned_abs() / 1_000,
        _ => false,
    };
    let is_late = facts.arrival.is_some_and(|arrival| arrival.is_late);
    let lines = [
        (facts.arrival.is_some() && knows && (omitted || row.is_none()), Verdict::Phantom),
        (facts.arrival.is_some() && !is_late, Verdict::OnTime),
        (facts.arrival.is_some(), Verdict::Late),
        (facts.now.micros() <= due + 10_000_000, Verdict::Pending),
        (facts.letter.is_some(), Verdict::DeadLettered),
        (!knows, Verdict::Unknown),
        (omitted, Verdict::NeverSent),
        (row.is_none(), Verdict::SenderDown),
        (sent_as.is_none(), Verdict::Unconfirmed),
        (sent_as.is_some_and(|entry| !past(entry)), Verdict::InTransit),
        (true, Verdict::Lost),
    ];
    let first = lines.iter().position(|(holds, _)| *holds).unwrap();
    (first, lines[first].1)
}

#[test]
fn every_combination_has_the_verdict_of_the_first_line_that_holds() {
    let window = window();
    let [omitted, unconfirmed] = [row("no_reported", None), row("ok", None)];
    let [sent, failing] = ["ok", "error:x"].map(|status| row(status, Some(entry("10:02:20.114"))));
    let mut hits = [0; 11];
    for arrival in [None, Some(arrival(false)), Some(arrival(true))] {
        for audit in [
            Audit::Unasked,
            Audit::Unreachable,
            Audit::NotMigrated,
            Audit::UnknownWindow,
            Audit::Known(None),
            Audit::Known(Some(&omitted)),
            Audit::Known(Some(&unconfirmed)),
            Audit::Known(Some(&sent)),
            Audit::Known(Some(&failing)),
        ] {
            for letter in [None, Some(LETTER)] {
                for now in ["10:00:00", "10:02:30", "10:02:30.000001", "23:00:00"].map(at) {
                    for delivery in [
                        Delivery::Unreported,
                        Delivery::BeingResent,
                        Delivery::Suspect,
                        Delivery::Until(at("10:02:20.113")),
                        Delivery::Until(at("10:02:20.114")),
                        Delivery::Until(at("10:02:20.115")),
                    ] {
                        let known = nothing(&window);
                        let facts = Facts { arrival, letter, audit, delivery, now, ..known };
                        let (line, expected) = by_the_table(&facts);
                        assert_eq!(judge(&facts), expected, "{facts:?}");
                        let is_usual = [Verdict::OnTime, Verdict::Pending].contains(&expected);
                        assert_eq!(sentence(&facts).is_none(), is_usual, "{facts:?}");
                        hits[line] += 1;
                    }
                }
            }
        }
    }
    assert_eq!(hits.iter().sum::<u32>(), 3 * 9 * 2 * 4 * 6);
    assert!(hits.iter().all(|count| *count > 0), "{hits:?}");
    // Lost takes all of it: not stored, not dead, sent, over, and delivery past its entry.
    assert_eq!(hits[10], 2 * 2);
}

#[test]
fn a_slot_is_due_by_the_clock_of_the_stream() {
    let window = window();
    let behind = Facts { clock_offset_us: 60_000_000, ..nothing(&window) };
    assert_eq!(judge(&Facts { now: at("10:03:30"), ..behind }), Verdict::Pending);
    assert_eq!(judge(&Facts { now: at("10:03:30.1"), ..behind }), Verdict::Unknown);
}

/// Checks the sentence of each case; an empty one stands for none.
fn says(table: &[(Facts, &str)]) {
    for (facts, expected) in table {
        assert_eq!(sentence(facts).unwrap_or_default(), *expected, "{facts:?}");
    }
}

#[test]
fn of_what_arrived_the_sentence_says_what_is_odd() {
    let window = window();
    let known = nothing(&window);
    let [omitted, sent] = [row("no_reported", None), row("ok", Some(entry("10:02:20.114")))];
    let [on_time, late] = [false, true].map(|late| Facts { arrival: Some(arrival(late)), ..known });
    let direct = Arrival { stream_id: None, ..arrival(true) };
    let next_day = Arrival { recorded_at: at("10:00:00").plus_micros(86_400_000_000), ..direct };
    says(&[
        (late, "published 10:02:20.114, arrived 10:03:21.2, 61 s after it was due: late, not lost"),
        (
            Facts { arrival: Some(direct), clock_offset_us: 60_000_000, ..known },
            "sent 10:02:20.01, arrived 10:03:21.2, 1.2 s after it was due: late, not lost",
        ),
        (
            Facts { arrival: Some(next_day), ..known },
            "sent 10:02:20.01, arrived 2026-11-22 10:00:00, 86260 s after it was due: late, not lost",
        ),
        (
            Facts { audit: Audit::Known(Some(&omitted)), ..on_time },
            "arrived 10:03:21.2, although the audit says that it was omitted",
        ),
        (
            Facts { audit: Audit::Known(None), ..late },
            "arrived 10:03:21.2, although the audit has no row for it",
        ),
        (Facts { audit: Audit::Known(Some(&sent)), ..on_time }, ""),
    ]);
}

#[test]
fn of_what_did_not_arrive_the_sentence_says_why() {
    let window = window();
    let known = nothing(&window);
    let [omitted, unconfirmed] = [row("no_reported", None), row("ok", None)];
    let old = AuditRow { sent_to_queue: true, ..unconfirmed.clone() };
    let audit = |audit| Facts { audit, ..known };
    let reason = "timestamp is in the future";
    says(&[
        (
            Facts { letter: Some(Letter { reason, ..LETTER }), ..known },
            "refused by the monitor at 10:02:21.5: timestamp is in the future; `heartbeat \
             dead-letters list` shows it, unless it was replayed or dropped",
        ),
        (
            known,
            "did not arrive; nobody can say why, because the monitor has no --audit-database-url",
        ),
        (
            audit(Audit::Unreachable),
            "did not arrive; nobody can say why now, because the audit cannot be read",
        ),
        (
            audit(Audit::NotMigrated),
            "did not arrive; nobody can say why yet, because the audit is not migrated: `heartbeat \
             migrate payments` does that",
        ),
        (
            audit(Audit::UnknownWindow),
            "did not arrive; nobody can say why, because no audit knows this window",
        ),
        (audit(Audit::Known(Some(&omitted))), "the service omitted it on purpose"),
        (
            audit(Audit::Known(None)),
            "the audit has no row for it: the service was down when it was due",
        ),
        (
            audit(Audit::Known(Some(&unconfirmed))),
            "the service was about to send it at 10:02:20, and Redis has not confirmed it",
        ),
        (
            audit(Audit::Known(Some(&old))),
            "the audit says sent at 10:02:20, but not as which entry, so nobody can follow it",
        ),
        (Facts { now: at("10:02:30"), ..known }, ""),
    ]);
}

#[test]
fn of_what_was_sent_the_sentence_says_how_far_it_came() {
    let window = window();
    let sent = row("ok", Some(entry("10:02:20.114")));
    let first = AuditRow { first_stream_id: Some(entry("10:02:19")), ..sent.clone() };
    let known = Facts { audit: Audit::Known(Some(&sent)), ..nothing(&window) };
    let at = |delivery| Facts { delivery, ..known };
    says(&[
        (
            at(Delivery::Until(self::at("10:02:19"))),
            "sent at 10:02:20.114, still in the stream (the watermark is at 10:02:19)",
        ),
        (
            Facts { audit: Audit::Known(Some(&first)), ..known },
            "sent at 10:02:19 and again at 10:02:20.114, still in the stream (no relay has reported \
             a watermark)",
        ),
        (
            at(Delivery::BeingResent),
            "sent at 10:02:20.114, still in the stream (its service is sending again what a lost \
             Redis took along)",
        ),
        (
            at(Delivery::Suspect),
            "sent at 10:02:20.114, still in the stream (a message of this window makes the monitor \
             fail and is tried again)",
        ),
        (
            at(Delivery::Until(self::at("10:02:21"))),
            "sent at 10:02:20.114 as entry 1795255340114-3; the watermark, 10:02:21, is past that \
             and the monitor has nothing: lost",
        ),
    ]);
}

#[test]
fn verdicts_are_read_by_the_names_that_are_shown() {
    for verdict in Verdict::ALL {
        assert_eq!(verdict.name().parse(), Ok(verdict));
        assert_eq!(serde_json::to_value(verdict).unwrap(), verdict.name());
    }
    assert!("missing".parse::<Verdict>().unwrap_err().contains("never_sent"));
}

/// Facts about any slot of any window at any time, with a row that any sender may have written.
fn any_facts() -> impl Strategy<Value = (Window, u32, Option<AuditRow>, [i64; 4], [u8; 3])> {
    let near = || -400_000_i64..400_000;
    let row = proptest::option::of((0..3_u8, any::<bool>(), near(), any::<bool>()));
    let times = [near(), near(), near(), near()];
    (1..300_i64, 50_000..3_600_000_000_i64, 0..300_u32, row, times, [0..3_u8, 0..5, 0..4]).prop_map(
        |(ticks, tick, slot, row, times, choices)| {
            let from = at("10:00:00");
            let span = (from, from.plus_micros(ticks * tick));
            let name = "payments-a".parse().unwrap();
            let tick = Tick::from_micros(tick).unwrap();
            let window = Window::new(Uuid::nil(), name, span, tick, Rates::default()).unwrap();
            let row = row.map(|(status, is_sent, millis, has_entry)| {
                let millis = (from.micros() / 1_000 + millis).unsigned_abs();
                let stream_id = has_entry.then_some(StreamId { millis, sequence: 0 });
                let status = ["ok", "error:x", OMITTED][usize::from(status)].to_owned();
                let (sent_to_queue, timestamp) = (is_sent, from);
                AuditRow { status, timestamp, sent_to_queue, stream_id, first_stream_id: None }
            });
            let slot = slot % window.slots();
            (window, slot, row, times, choices)
        },
    )
}

fn facts(
    (window, slot, row, times, choices): &(Window, u32, Option<AuditRow>, [i64; 4], [u8; 3]),
) -> Facts<'_> {
    let [now, watermark, arrived, offset] =
        times.map(|millis| window.from().plus_micros(millis * 1_000));
    let [arrival, audit, delivery] = *choices;
    let is_late = arrival == 2;
    let stored = Arrival { timestamp: arrived, stream_id: None, recorded_at: arrived, is_late };
    Facts {
        window,
        slot: *slot,
        clock_offset_us: offset.micros() - window.from().micros(),
        arrival: (arrival > 0).then_some(stored),
        letter: (arrival == 0 && audit == 4).then_some(LETTER),
        audit: match audit {
            0 => Audit::Unasked,
            1 => Audit::Unreachable,
            2 => Audit::UnknownWindow,
            _ => Audit::Known(row.as_ref()),
        },
        delivery: match delivery {
            0 => Delivery::Unreported,
            1 => Delivery::Suspect,
            _ => Delivery::Until(watermark),
        },
        now,
    }
}

proptest! {
    #[test]
    fn what_is_stored_is_never_missing_and_what_is_not_never_arrived(drawn in any_facts()) {
        let facts = facts(&drawn);
        let arrived = [Verdict::Phantom, Verdict::OnTime, Verdict::Late].contains(&judge(&facts));
        prop_assert_eq!(arrived, facts.arrival.is_some());
    }

    #[test]
    fn without_the_audit_nothing_is_claimed_that_only_the_audit_knows(drawn in any_facts()) {
        for audit in
            [Audit::Unasked, Audit::Unreachable, Audit::NotMigrated, Audit::UnknownWindow]
        {
            let verdict = judge(&Facts { audit, ..facts(&drawn) });
            let seen_alone = [
                Verdict::OnTime,
                Verdict::Late,
                Verdict::Pending,
                Verdict::DeadLettered,
                Verdict::Unknown,
            ];
            prop_assert!(seen_alone.contains(&verdict), "{verdict}");
        }
    }

    #[test]
    fn delivery_decides_only_between_in_transit_and_lost(drawn in any_facts()) {
        let facts = facts(&drawn);
        let last = Delivery::Until(Timestamp::from_micros(i64::MAX));
        let at_last = judge(&Facts { delivery: last, ..facts });
        match judge(&facts) {
            Verdict::InTransit => prop_assert_eq!(at_last, Verdict::Lost),
            other => prop_assert_eq!(at_last, other),
        }
    }

    #[test]
    fn time_alone_only_ends_the_waiting(drawn in any_facts()) {
        let facts = facts(&drawn);
        let later = judge(&Facts { now: Timestamp::from_micros(i64::MAX), ..facts });
        prop_assert_ne!(later, Verdict::Pending);
        let now = judge(&facts);
        prop_assert!(now == Verdict::Pending || now == later, "{now}, then {later}");
    }

    #[test]
    fn a_heartbeat_that_arrives_after_all_is_never_called_lost_or_missing(drawn in any_facts()) {
        let arrival = Some(arrival(true));
        let verdict = judge(&Facts { arrival, ..facts(&drawn) });
        prop_assert!([Verdict::Late, Verdict::Phantom].contains(&verdict), "{verdict}");
    }
}
