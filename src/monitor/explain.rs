//! Explains a window: the verdict of each slot, from what the monitor has stored and what the audit
//! says.
//!
//! The order in which it asks keeps out what happens meanwhile. How far delivery has come is asked
//! before what is stored, so that whatever it is past has been stored or set aside by then. What
//! holds the watermark's word up is asked after the watermark, because a suspect lets it pass. The
//! audit comes last: its row is older than the heartbeat.

use std::collections::HashMap;

use super::Monitor;
use super::closing::Closing;
use super::repository::{self, DeadHeartbeat, SlotEvent};
use super::window::StoredWindow;
use crate::db;
use crate::verdict::{self, Arrival, Audit, AuditRow, Delivery, Facts, Letter, Verdict};
use crate::wire::{StreamId, Timestamp};

/// The slots of a window, with their verdicts.
#[derive(Debug)]
pub(super) struct Explained {
    pub(super) slots: Vec<ExplainedSlot>,
    /// Whether the audit had a say.
    pub(super) audit: &'static str,
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
    let (pool, window) = (&monitor.pool, &stored.window);
    let delivery = delivery(monitor, stored).await?;
    let mut events = repository::slot_events(pool, stored.id).await?;
    let letters = Letters::new(repository::dead_heartbeats(pool, window.uuid).await?);
    let audit = monitor.audits.look_up(window).await;
    let slots = (0..window.slots()).map(|number| {
        let event = events.remove(&number);
        let row = if let Audit::Known(row) = audit.slot(number) { row } else { None };
        let facts = Facts {
            window,
            slot: number,
            clock_offset_us: stored.clock_offset_us.unwrap_or(0),
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
    Ok(Explained { slots: slots.collect(), audit: audit.name() })
}

async fn delivery(monitor: &Monitor, stored: &StoredWindow) -> Result<Delivery, db::Error> {
    let (watermark, _) = repository::low_watermark(&monitor.pool).await?;
    let mut connection = monitor.pool.acquire().await?;
    let obstacles = repository::obstacles(&mut connection).await?;
    Ok(match obstacles.before(&stored.window) {
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
