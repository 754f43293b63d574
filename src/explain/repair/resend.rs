//! Sends some slots of one window again, while their rows of the audit are held.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Context;
use tokio::sync::OnceCell;

use super::Outbox;
use crate::db;
use crate::explain::ask::Repairable;
use crate::explain::repository::{self, SentRow};
use crate::stream::{Producer, StreamError, identity_mark};
use crate::traces::Sampling;
use crate::wire::{Heartbeat, OMITTED, Slot, Status, StreamId, TraceParent, Window};

/// Slots that are sent again in one step.
pub const MOST_SLOTS: usize = 128;

/// What became of a slot that was lost or unconfirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its heartbeat was sent again as this entry.
    SentAs(StreamId),
    /// Somebody else had sent it again as this entry.
    SentMeanwhile(StreamId),
    /// The audit has no row of a heartbeat for it.
    NoRow,
    /// Its row is no heartbeat, for this reason.
    Unusable(String),
}

impl Outcome {
    /// What there is to say of it, and of the entry that was found lost, if there was one.
    #[must_use]
    pub fn sentence(&self, lost: Option<StreamId>) -> String {
        match (self, lost) {
            (Self::SentAs(entry), Some(lost)) => {
                format!("sent again as entry {entry}; entry {lost} was lost")
            }
            (Self::SentAs(entry), None) => {
                format!("sent again as entry {entry}; nobody knows whether it was sent before")
            }
            (Self::SentMeanwhile(entry), Some(lost)) => {
                format!("not sent again: the audit names entry {entry} by now, and not {lost}")
            }
            (Self::SentMeanwhile(entry), None) => {
                format!("not sent again: the audit names entry {entry} by now")
            }
            (Self::NoRow, lost) => {
                let entry = lost.map(|lost| format!(" with entry {lost}")).unwrap_or_default();
                format!(
                    "not sent again: this payments database has no row of it{entry}; is \
                     --payments-database-url that of its service?"
                )
            }
            (Self::Unusable(why), _) => {
                format!("not sent again: its row of the audit is unusable: {why}")
            }
        }
    }
}

/// What was written to the stream: rows and their entries, and the mark of the Redis that has them.
#[derive(Debug, Default)]
struct Sent {
    entries: HashMap<i64, StreamId>,
    redis_mark: u64,
}

/// Sends the heartbeats of slots again whose rows still name the entry that was found lost, or still
/// none, and notes it there. Answers what became of each, in their order.
///
/// # Errors
/// When the database or Redis does not do its part. What was sent and could not be noted is found
/// missing again.
pub(super) async fn send_again(
    outbox: &Outbox,
    window: &Window,
    slots: &[Repairable],
) -> anyhow::Result<Vec<Outcome>> {
    let (window, slots): (_, Arc<[_]>) = (window.clone(), slots.into());
    let (producer, sampling) = (outbox.producer.clone(), outbox.sampling);
    // A transaction that lost a deadlock is tried again, and must not send twice for that.
    let sent = Arc::new(OnceCell::<Sent>::new());
    db::transaction(&outbox.pool, "send again", move |connection| {
        let (window, slots, producer) = (window.clone(), Arc::clone(&slots), producer.clone());
        let sent = Arc::clone(&sent);
        Box::pin(async move {
            let rows = repository::hold_rows(connection, &window, &slots).await?;
            let found: Vec<Found> =
                slots.iter().map(|slot| Found::new(&window, *slot, &rows)).collect();
            let sent = match sent.get_or_try_init(|| publish(&producer, &found, sampling)).await {
                Ok(sent) => sent,
                Err(error) => return Ok(Err(error)),
            };
            let entries: Vec<_> = found.iter().filter_map(|found| found.entry(sent)).collect();
            repository::mark_sent_again(connection, &entries, sent.redis_mark).await?;
            Ok(Ok(found.into_iter().map(|found| found.outcome(sent)).collect()))
        })
    })
    .await
    .context("the payments database failed")?
    .context("writing to the stream")
}

async fn publish(
    producer: &Producer,
    found: &[Found],
    sampling: Sampling,
) -> Result<Sent, StreamError> {
    let missing = found.iter().filter_map(|found| match found {
        Found::Missing(row, slot, heartbeat) => {
            let trace = sampling.mark(TraceParent::of_slot(heartbeat.window.uuid, *slot));
            Some((*row, heartbeat.to_traced_json(&trace)))
        }
        Found::Otherwise(_) => None,
    });
    let (rows, payloads): (Vec<i64>, Vec<String>) = missing.unzip();
    if payloads.is_empty() {
        return Ok(Sent::default());
    }
    let written = producer.publish_heartbeats(&payloads).await?;
    let redis_mark = identity_mark(&written.identity);
    Ok(Sent { entries: rows.into_iter().zip(written.ids).collect(), redis_mark })
}

/// What the audit says of a slot that was found missing.
enum Found {
    /// The row that still says what was found, its slot, and the heartbeat that it holds.
    Missing(i64, u32, Box<Heartbeat>),
    Otherwise(Outcome),
}

impl Found {
    fn new(window: &Window, missing: Repairable, rows: &[SentRow]) -> Self {
        let row = match missing.lost {
            Some(entry) => still_lost(missing.slot, entry, rows),
            None => still_unconfirmed(window, missing.slot, rows),
        };
        let row = match row {
            Ok(row) => row,
            Err(outcome) => return Self::Otherwise(outcome),
        };
        let status: Status = match row.status.parse() {
            Ok(status) => status,
            Err(error) => return Self::Otherwise(Outcome::Unusable(format!("status {error}"))),
        };
        let heartbeat = Heartbeat {
            window: window.clone(),
            status,
            timestamp: row.timestamp,
            slot: Some(i64::from(missing.slot)),
            stream_id: None,
        };
        Self::Missing(row.id, missing.slot, Box::new(heartbeat))
    }

    /// Its row, and the entry as which it was sent again.
    fn entry(&self, sent: &Sent) -> Option<(i64, StreamId)> {
        match self {
            Self::Missing(row, ..) => sent.entries.get(row).map(|entry| (*row, *entry)),
            Self::Otherwise(_) => None,
        }
    }

    fn outcome(self, sent: &Sent) -> Outcome {
        match (self.entry(sent), self) {
            (Some((_, entry)), _) => Outcome::SentAs(entry),
            (None, Self::Otherwise(outcome)) => outcome,
            (None, Self::Missing(..)) => Outcome::NoRow,
        }
    }
}

/// The row of a slot that names an entry still.
fn still_lost(slot: u32, entry: StreamId, rows: &[SentRow]) -> Result<&SentRow, Outcome> {
    // A Redis that was emptied may have given an entry of another slot the same id.
    let of_slot = |row: &&SentRow| row.slot.is_none_or(|of| i64::from(of) == i64::from(slot));
    let mut of_entry = rows.iter().filter(|row| row.stream_id == Some(entry));
    of_entry.find(of_slot).ok_or_else(|| {
        let named = |row: &&SentRow| row.slot.is_some() && of_slot(row);
        let other = rows.iter().find(named).and_then(|row| row.stream_id);
        other.map_or(Outcome::NoRow, Outcome::SentMeanwhile)
    })
}

/// The row of a slot that names no entry still, nor does another row of it.
fn still_unconfirmed<'a>(
    window: &Window,
    slot: u32,
    rows: &'a [SentRow],
) -> Result<&'a SentRow, Outcome> {
    let of_slot = |row: &&SentRow| {
        let place = window.slot_of(row.slot.map(i64::from), row.timestamp);
        place == Slot::Scheduled(slot) && row.status != OMITTED
    };
    let of_slot = rows.iter().filter(of_slot);
    // One heartbeat is enough, whichever row it is of.
    match of_slot.clone().find_map(|row| row.stream_id) {
        Some(entry) => Err(Outcome::SentMeanwhile(entry)),
        None => of_slot.clone().next().ok_or(Outcome::NoRow),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Rates, Tick, Timestamp};

    fn row(id: i64, slot: Option<i32>, entry: &str) -> SentRow {
        let stream_id = entry.parse().ok();
        let timestamp = Timestamp::from_micros(1_795_255_200_000_000);
        SentRow { id, slot, status: "ok".to_owned(), timestamp, stream_id }
    }

    fn window() -> Window {
        let from = Timestamp::from_micros(1_795_255_200_000_000);
        let span = (from, from.plus_micros(50_000_000));
        let service = "payments-a".parse().unwrap();
        Window::new(uuid::Uuid::nil(), service, span, Tick::DEFAULT, Rates::default()).unwrap()
    }

    #[test]
    fn a_row_is_found_by_its_entry_and_its_slot() {
        let rows = [
            row(1, Some(0), "7-1"),
            row(2, Some(1), "7-1"),
            row(3, None, "8-1"),
            row(4, Some(3), "9-1"),
        ];
        let found = |slot, entry: &str| {
            let lost = Some(entry.parse().unwrap());
            Found::new(&window(), Repairable { slot, lost }, &rows)
        };
        for (slot, entry, expected) in [(0, "7-1", 1), (1, "7-1", 2), (2, "8-1", 3)] {
            let found = found(slot, entry);
            assert!(matches!(found, Found::Missing(row, ..) if row == expected), "slot {slot}");
        }
        let outcome = |slot, entry| found(slot, entry).outcome(&Sent::default());
        assert_eq!(outcome(3, "7-1"), Outcome::SentMeanwhile("9-1".parse().unwrap()));
        assert_eq!(outcome(4, "7-1"), Outcome::NoRow);
    }

    #[test]
    fn a_row_without_an_entry_is_found_by_its_slot_or_its_timestamp() {
        let window = window();
        let old = |id, slot, entry: &str, status: &str| SentRow {
            // A little early, as the clock of its sender may be.
            timestamp: window.due(slot).plus_micros(-900_000),
            status: status.to_owned(),
            ..row(id, None, entry)
        };
        let rows = [
            row(1, Some(0), ""),
            old(2, 1, "", OMITTED),
            old(3, 1, "", "error:x"),
            old(4, 1, "", "ok"),
            old(5, 2, "", "ok"),
            old(6, 2, "8-1", "ok"),
            old(7, 3, "", OMITTED),
            old(8, 4, "", "odd"),
        ];
        let found = |slot| Found::new(&window, Repairable { slot, lost: None }, &rows);
        let Found::Missing(1, 0, _) = found(0) else { panic!("slot 0") };
        let Found::Missing(3, 1, heartbeat) = found(1) else { panic!("slot 1") };
        assert_eq!((heartbeat.slot, heartbeat.timestamp), (Some(1), rows[2].timestamp));
        let outcome = |slot| found(slot).outcome(&Sent::default());
        assert_eq!(outcome(2), Outcome::SentMeanwhile("8-1".parse().unwrap()));
        assert_eq!(outcome(3), Outcome::NoRow, "what was omitted is never sent");
        assert!(matches!(outcome(4), Outcome::Unusable(why) if why.starts_with("status ")));
    }
}
