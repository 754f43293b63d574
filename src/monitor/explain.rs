//! Explains a window: the verdict of each slot, from what the monitor has stored and what the audit
//! says. Also one that the monitor has never heard of, and only an audit knows.
//!
//! The order in which it asks keeps out what happens meanwhile. How far delivery has come is asked
//! before what is stored, so that whatever it is past has been stored or set aside by then. What
//! holds the watermark's word up is asked after the watermark, because a suspect lets it pass. The
//! audit comes last: its row is older than the heartbeat.

use std::collections::HashMap;

use super::Monitor;
use super::closing::Closing;
use super::repository::{self, DeadHeartbeat, SlotEvent};
use super::retention::may_be_pruned;
use super::window::StoredWindow;
use crate::db;
use crate::verdict::{self, Arrival, Audit, AuditRow, Delivery, Facts, Letter, Verdict};
use crate::wire::{StreamId, Timestamp, Window};

/// The slots of a window, with their verdicts; none if its events are no longer kept.
#[derive(Debug)]
pub(super) struct Explained {
    pub(super) slots: Vec<ExplainedSlot>,
    /// Whether the audit had a say.
    pub(super) audit: &'static str,
    /// Whether the events of the window are kept.
    pub(super) events_kept: bool,
}

/// One slot: what is stored, what the audit says, and what follows.
#[derive(Debug)]
pub(super) struct ExplainedSlot {
    pub(super) number: u32,
    pub(super) due: Timestamp,
    pub(super) event: Option<SlotEvent>,
    pub(super) audit: Option<AuditRow>,
    pub(super) verdict: Verdict,
    pub(super) explanation: Option<String>,
}

/// Explains a window.
///
/// # Errors
/// When the monitor's own database does not do its part. An audit that does not is a verdict.
pub(super) async fn explain(
    monitor: &Monitor,
    stored: &StoredWindow,
    now: Timestamp,
) -> Result<Explained, db::Error> {
    let mut connection = monitor.connection().await?;
    let delivery = delivery(&mut connection, &stored.window).await?;
    let events = repository::slot_events(&mut connection, stored.id).await?;
    // Asked after the events, so that none of them had been deleted when they were read.
    if may_be_pruned(stored.window.ends_at(), now)
        && !repository::are_events_kept(&mut connection, stored.id).await?
    {
        return Ok(Explained { slots: Vec::new(), audit: "not_asked", events_kept: false });
    }
    let uuid = stored.window.uuid;
    let letters = Letters::new(repository::dead_heartbeats(&mut connection, uuid).await?);
    // An audit may let us wait.
    drop(connection);
    let clock_offset_us = stored.clock_offset_us.unwrap_or(0);
    let ledger = Ledger { delivery, events, letters };
    Ok(compare(monitor, (&stored.window, clock_offset_us), ledger, now).await)
}

/// Explains a window that only an audit knows; none if the monitor has heard of it after all.
///
/// # Errors
/// As for [`explain`].
pub(super) async fn explain_unheard(
    monitor: &Monitor,
    window: &Window,
    now: Timestamp,
) -> Result<Option<Explained>, db::Error> {
    let mut connection = monitor.connection().await?;
    let delivery = delivery(&mut connection, window).await?;
    // Asked where others look for its events, and for the same reason after the watermark.
    let heard = repository::windows_by_uuid(&mut connection, &[window.uuid]).await?;
    if !heard.is_empty() {
        return Ok(None);
    }
    let letters = Letters::new(repository::dead_heartbeats(&mut connection, window.uuid).await?);
    // An audit may let us wait.
    drop(connection);
    let ledger = Ledger { delivery, events: HashMap::new(), letters };
    Ok(Some(compare(monitor, (window, 0), ledger, now).await))
}

/// What the monitor itself knows of a window.
struct Ledger {
    delivery: Delivery,
    events: HashMap<u32, SlotEvent>,
    letters: Letters,
}

async fn compare(
    monitor: &Monitor,
    (window, clock_offset_us): (&Window, i64),
    Ledger { delivery, mut events, letters }: Ledger,
    now: Timestamp,
) -> Explained {
    let audit = monitor.audits.look_up(window).await;
    let slots = (0..window.slots()).map(|number| {
        let event = events.remove(&number);
        let row = if let Audit::Known(row) = audit.slot(number) { row } else { None };
        let facts = Facts {
            window,
            slot: number,
            clock_offset_us,
            arrival: event.as_ref().and_then(SlotEvent::arrival),
            letter: letters.of(number, row),
            audit: audit.slot(number),
            delivery,
            now,
        };
        ExplainedSlot {
            number,
            due: window.due(number),
            verdict: verdict::judge(&facts),
            explanation: verdict::sentence(&facts),
            audit: row.cloned(),
            event,
        }
    });
    Explained { slots: slots.collect(), audit: audit.name(), events_kept: true }
}

async fn delivery(connection: &mut db::Connection, window: &Window) -> Result<Delivery, db::Error> {
    let (watermark, _) = repository::low_watermark(connection).await?;
    let obstacles = repository::obstacles(connection).await?;
    Ok(match obstacles.before(window) {
        Some(Closing::Suspect) => Delivery::Suspect,
        Some(_) => Delivery::BeingResent,
        None => watermark.map_or(Delivery::Unreported, Delivery::Until),
    })
}

impl SlotEvent {
    /// Whether the row says that nothing arrived.
    pub(super) fn is_missing(&self) -> bool {
        self.status == "MISSING"
    }

    /// The heartbeat; none if it is missing.
    fn arrival(&self) -> Option<Arrival> {
        (!self.is_missing()).then(|| Arrival {
            timestamp: self.report_timestamp,
            stream_id: self.stream_id.as_deref().and_then(|id| id.parse().ok()),
            recorded_at: self.recorded_at,
            is_late: self.late,
        })
    }
}

/// What was set aside of a window, by slot, or by entry where the message named no slot. The last
/// of several counts.
struct Letters {
    by_slot: HashMap<i64, DeadHeartbeat>,
    by_entry: HashMap<StreamId, DeadHeartbeat>,
}

impl Letters {
    fn new(letters: Vec<DeadHeartbeat>) -> Self {
        let (mut by_slot, mut by_entry) = (HashMap::new(), HashMap::new());
        for letter in letters {
            match letter.slot {
                Some(slot) => by_slot.insert(slot, letter),
                None => by_entry.insert(letter.stream_id, letter),
            };
        }
        Self { by_slot, by_entry }
    }

    fn of(&self, slot: u32, row: Option<&AuditRow>) -> Option<Letter<'_>> {
        let entries = row.into_iter().flat_map(|row| [row.stream_id, row.first_stream_id]);
        let by_entry = || entries.flatten().find_map(|entry| self.by_entry.get(&entry));
        let found = self.by_slot.get(&i64::from(slot)).or_else(by_entry)?;
        Some(Letter { at: found.at, reason: &found.reason })
    }
}
