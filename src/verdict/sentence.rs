//! One sentence about a slot, for a person: what is known of it, and what follows.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::{Arrival, Audit, AuditRow, Delivery, Facts, Letter, Verdict, judge};
use crate::wire::{StreamId, Timestamp};

/// Why a slot is not what everyone hopes for. None where there is nothing to say: it arrived on
/// time, or its time is not over.
#[must_use]
pub fn sentence(facts: &Facts) -> Option<String> {
    let said = match (judge(facts), facts.arrival, facts.letter) {
        (Verdict::Phantom, Some(arrival), _) => phantom(facts, arrival),
        (Verdict::Late, Some(arrival), _) => late(facts, arrival),
        (Verdict::DeadLettered, _, Some(letter)) => dead_lettered(facts, letter),
        (Verdict::Unknown, ..) => unknown(facts.audit).to_owned(),
        (Verdict::NeverSent, ..) => "the service omitted it on purpose".to_owned(),
        (Verdict::SenderDown, ..) => {
            "the audit has no row for it: the service was down when it was due".to_owned()
        }
        (Verdict::Unconfirmed, ..) => unconfirmed(facts, row(facts)?),
        (Verdict::InTransit, ..) => in_transit(facts, row(facts)?),
        (Verdict::Lost, ..) => lost(facts, row(facts)?),
        _ => return None,
    };
    Some(said)
}

fn row<'a>(facts: &Facts<'a>) -> Option<&'a AuditRow> {
    match facts.audit {
        Audit::Known(row) => row,
        _ => None,
    }
}

fn phantom(facts: &Facts, arrival: Arrival) -> String {
    let audit = if row(facts).is_some() { "says that it was omitted" } else { "has no row for it" };
    format!("arrived {}, although the audit {audit}", time(facts, arrival.recorded_at))
}

fn late(facts: &Facts, arrival: Arrival) -> String {
    let sent = match arrival.stream_id {
        Some(entry) => format!("published {}", time(facts, entry.written_at())),
        None => format!("sent {}", time(facts, arrival.timestamp)),
    };
    format!(
        "{sent}, arrived {}, {} after it was due: late, not lost",
        time(facts, arrival.recorded_at),
        seconds(facts.due().until(arrival.recorded_at)),
    )
}

fn dead_lettered(facts: &Facts, letter: Letter) -> String {
    format!(
        "refused by the monitor at {}: {}; `heartbeat dead-letters list` shows it, unless it was \
         replayed or dropped",
        time(facts, letter.at),
        letter.reason,
    )
}

const fn unknown(audit: Audit) -> &'static str {
    match audit {
        Audit::Unasked => {
            "did not arrive; nobody can say why, because the monitor has no --audit-database-url"
        }
        Audit::Unreachable => {
            "did not arrive; nobody can say why now, because the audit cannot be read"
        }
        Audit::NotMigrated => {
            "did not arrive; nobody can say why yet, because the audit is not migrated: `heartbeat \
             migrate payments` does that"
        }
        Audit::UnknownWindow | Audit::Known(_) => {
            "did not arrive; nobody can say why, because no audit knows this window"
        }
    }
}

fn unconfirmed(facts: &Facts, row: &AuditRow) -> String {
    let at = time(facts, row.timestamp);
    if row.sent_to_queue {
        // Older senders say so before they send, and never as which entry.
        return format!(
            "the audit says sent at {at}, but not as which entry, so nobody can follow it"
        );
    }
    format!("the service was about to send it at {at}, and Redis has not confirmed it")
}

fn in_transit(facts: &Facts, row: &AuditRow) -> String {
    let why = match facts.delivery {
        Delivery::Until(watermark) => format!("the watermark is at {}", time(facts, watermark)),
        Delivery::Unreported => "no relay has reported a watermark".to_owned(),
        Delivery::BeingResent => {
            "its service is sending again what a lost Redis took along".to_owned()
        }
        Delivery::Suspect => {
            "a message of this window makes the monitor fail and is tried again".to_owned()
        }
    };
    format!("{}, still in the stream ({why})", sent(facts, row))
}

fn lost(facts: &Facts, row: &AuditRow) -> String {
    let entry = row.stream_id.map(|entry| entry.to_string()).unwrap_or_default();
    let watermark = match facts.delivery {
        Delivery::Until(watermark) => time(facts, watermark),
        _ => String::new(),
    };
    format!(
        "{} as entry {entry}; the watermark, {watermark}, is past that and the monitor has nothing: \
         lost",
        sent(facts, row),
    )
}

/// When it was sent, and if more than once, when first.
fn sent(facts: &Facts, row: &AuditRow) -> String {
    let at = |entry: Option<StreamId>| {
        entry.map_or_else(String::new, |entry| time(facts, entry.written_at()))
    };
    match row.first_stream_id.filter(|first| Some(*first) != row.stream_id) {
        Some(first) => format!("sent at {} and again at {}", at(Some(first)), at(row.stream_id)),
        None => format!("sent at {}", at(row.stream_id)),
    }
}

/// An instant to the millisecond: the time alone on the day that the slot is due, else with its
/// date.
fn time(facts: &Facts, at: Timestamp) -> String {
    let [due, at] = [facts.window.due(facts.slot), at].map(DateTime::<Utc>::from);
    let date = if due.date_naive() == at.date_naive() { "" } else { "%F " };
    let text = at.format(&format!("{date}%T%.3f")).to_string();
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A span in seconds: with a fraction only where that matters.
fn seconds(span: Duration) -> String {
    let seconds = span.as_secs_f64();
    if seconds < 10.0 { format!("{seconds:.1} s") } else { format!("{seconds:.0} s") }
}
