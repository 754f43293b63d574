//! The JSON that the API shows, apart from what is stored.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::Serialize;
use serde::ser::Serializer;
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};
use uuid::Uuid;

use super::params::BAD_CURSOR;
use crate::monitor::explain::{Explained, ExplainedSlot};
use crate::monitor::ingest::Outcome;
use crate::monitor::repository::{Position, SlotEvent, StatusChange};
use crate::monitor::sweep::Swept;
use crate::monitor::window::{StoredWindow, WindowStatus};
use crate::verdict::{AuditRow, Verdict};
use crate::wire::{Heartbeat, Slot, Tick, Timestamp, Window};

/// A window, with the columns' names and the status in lower case.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Window)]
pub(super) struct WindowView {
    #[serde(skip)]
    pub(super) stored: StoredWindow,
    window_uuid: Uuid,
    service: String,
    status: WindowStatus,
    error_status_no_reportado: Option<f64>,
    error_status_generado: Option<f64>,
    tick_seconds: Tick,
    expected_reports: u32,
    received_reports: u32,
    error_reports: u32,
    missing_reports: u32,
    unobserved_reports: u32,
    /// Why slots are missing, if for one reason only that is not the sender's.
    cause: Option<&'static str>,
    unscheduled_reports: u32,
    /// False when its events were deleted because they are old, so that nothing is said of its slots.
    events_kept: bool,
    window_from: Timestamp,
    window_to: Timestamp,
    created_at: Timestamp,
    updated_at: Timestamp,
    closed_at: Option<Timestamp>,
}

/// A window with its history and all its slots.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WindowDetails)]
pub(super) struct WindowDetailsView {
    #[serde(flatten)]
    window: WindowView,
    /// The changes of its status, the first one first.
    history: Vec<ChangeView>,
    #[serde(flatten)]
    explained: ExplainedView,
}

impl WindowView {
    pub(super) fn with_details(
        self,
        history: &[StatusChange],
        explained: Explained,
    ) -> WindowDetailsView {
        let history = history.iter().map(ChangeView::from).collect();
        let events_kept = explained.events_kept;
        let window = Self { events_kept, ..self };
        WindowDetailsView { window, history, explained: explained.into() }
    }
}

impl From<StoredWindow> for WindowView {
    fn from(stored: StoredWindow) -> Self {
        let window = &stored.window;
        Self {
            window_uuid: window.uuid,
            service: window.service.to_string(),
            status: stored.status,
            error_status_no_reportado: window.rates.error_status_no_reportado,
            error_status_generado: window.rates.error_status_generado,
            tick_seconds: window.tick(),
            expected_reports: window.slots(),
            received_reports: stored.counts.received,
            error_reports: stored.counts.errors,
            missing_reports: stored.counts.missing,
            unobserved_reports: stored.counts.unobserved,
            cause: stored.counts.cause(),
            unscheduled_reports: stored.unscheduled,
            events_kept: stored.events_kept,
            window_from: window.from(),
            window_to: window.to(),
            created_at: stored.created_at,
            updated_at: stored.updated_at,
            closed_at: stored.closed_at,
            stored,
        }
    }
}

/// A change of a window's status.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = StatusChange)]
struct ChangeView {
    changed_at: Timestamp,
    status: WindowStatus,
    received_reports: i32,
    missing_reports: i32,
    /// Why slots were missing, if for one reason only that is not the sender's.
    cause: Option<String>,
}

impl From<&StatusChange> for ChangeView {
    fn from(change: &StatusChange) -> Self {
        Self {
            changed_at: change.changed_at,
            status: change.status,
            received_reports: change.received,
            missing_reports: change.missing,
            cause: change.cause.clone(),
        }
    }
}

/// One page of windows, and where the next begins.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct WindowPage {
    windows: Vec<WindowView>,
    /// Where the next page begins; none on the last.
    #[schema(value_type = Option<String>)]
    next: Option<Position>,
}

impl WindowPage {
    /// A page of windows, behind which there may be more.
    pub(super) fn new(windows: Vec<StoredWindow>, are_more: bool) -> Self {
        let last = windows.last().filter(|_| are_more);
        let next = last.map(|last| Position { from: last.window.from(), id: last.id });
        Self { windows: windows.into_iter().map(WindowView::from).collect(), next }
    }
}

impl Serialize for Position {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}-{}", self.from.micros(), self.id))
    }
}

impl FromStr for Position {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (from, id) = text.split_once('-').unwrap_or_default();
        match (from.parse(), id.parse()) {
            (Ok(micros), Ok(id)) if Timestamp::is_usable(micros) => {
                Ok(Self { from: Timestamp::from_micros(micros), id })
            }
            _ => Err(BAD_CURSOR),
        }
    }
}

/// What both ledgers say of a window.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Explained)]
pub(super) struct ExplainedView {
    /// `known`, or why the audit had no say: `unknown_window`, `unreachable`, `not_migrated`,
    /// `not_configured`, or `not_asked` about a window without events.
    #[schema(
        pattern = "^(known|unknown_window|unreachable|not_migrated|not_configured|not_asked)$"
    )]
    audit: &'static str,
    /// How many slots have each verdict, where any has.
    verdicts: BTreeMap<Verdict, u32>,
    slots: Vec<SlotView>,
}

impl From<Explained> for ExplainedView {
    fn from(explained: Explained) -> Self {
        let mut verdicts = BTreeMap::new();
        for slot in &explained.slots {
            *verdicts.entry(slot.verdict).or_default() += 1;
        }
        let slots = explained.slots.into_iter().map(SlotView::from).collect();
        Self { audit: explained.audit, verdicts, slots }
    }
}

/// What is known of one slot.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Slot)]
struct SlotView {
    slot: u32,
    due: Timestamp,
    /// `ok`, `error`, `missing`, or `awaited` where nothing has come and nothing was decided.
    #[schema(pattern = "^(ok|error|missing|awaited)$")]
    status: String,
    #[serde(flatten)]
    #[schema(schema_with = EventView::where_stored)]
    event: Option<EventView>,
    verdict: Verdict,
    /// A sentence; none where nothing is unusual.
    explanation: Option<String>,
    /// The sender's row; none where it has none, or cannot be asked.
    audit: Option<AuditRow>,
}

impl From<ExplainedSlot> for SlotView {
    fn from(slot: ExplainedSlot) -> Self {
        let event = slot.event.as_ref();
        Self {
            slot: slot.number,
            due: slot.due,
            status: event.map_or("awaited".to_owned(), |event| event.status.to_ascii_lowercase()),
            event: event.map(EventView::from),
            verdict: slot.verdict,
            explanation: slot.explanation,
            audit: slot.audit,
        }
    }
}

/// What is stored of a slot.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = StoredEvent)]
pub(super) struct EventView {
    timestamp: Timestamp,
    error_message: Option<String>,
    cause: Option<String>,
    late: bool,
    stream_id: Option<String>,
    recorded_at: Timestamp,
    deliveries: i32,
    conflicts: i32,
}

impl EventView {
    /// The members of an event, all of which are absent where nothing is stored.
    fn where_stored() -> RefOr<Schema> {
        match Self::schema() {
            RefOr::T(Schema::Object(mut object)) => {
                object.required.clear();
                object.into()
            }
            other => other,
        }
    }
}

impl From<&SlotEvent> for EventView {
    fn from(event: &SlotEvent) -> Self {
        Self {
            timestamp: event.report_timestamp,
            error_message: event.error_message.clone(),
            cause: event.cause.clone(),
            late: event.late,
            stream_id: event.stream_id.clone(),
            recorded_at: event.recorded_at,
            deliveries: event.deliveries,
            conflicts: event.conflicts,
        }
    }
}

/// A heartbeat that was taken in. Its `id` is its identity: window and slot.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TakenHeartbeat)]
pub(super) struct HeartbeatView {
    id: String,
    service: String,
    #[schema(pattern = "^(ok|error)$")]
    status: &'static str,
    error_message: Option<String>,
    timestamp: Timestamp,
    window_uuid: Uuid,
    window_from: Timestamp,
    window_to: Timestamp,
    slot: i64,
    ingested_at: Timestamp,
}

impl HeartbeatView {
    pub(super) fn new(heartbeat: &Heartbeat, window: &Window, now: Timestamp) -> Self {
        let slot = match heartbeat.slot_in(window) {
            Slot::Scheduled(slot) => i64::from(slot),
            Slot::Unscheduled(number) => number,
        };
        Self {
            id: format!("{}:{slot}", window.uuid),
            service: window.service.to_string(),
            status: if heartbeat.status.is_error() { "error" } else { "ok" },
            error_message: heartbeat.status.message().map(str::to_owned),
            timestamp: heartbeat.timestamp,
            window_uuid: window.uuid,
            window_from: window.from(),
            window_to: window.to(),
            slot,
            ingested_at: now,
        }
    }
}

/// What became of a heartbeat, and its window as it is then.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = HeartbeatTaken)]
pub(super) struct HeartbeatTakenView {
    pub(super) heartbeat: HeartbeatView,
    pub(super) window: WindowView,
    #[schema(pattern = "^(recorded|duplicate|late|unscheduled)$")]
    pub(super) outcome: &'static str,
}

/// What became of an announcement, and its window as it is then.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WindowTaken)]
pub(super) struct WindowTakenView {
    pub(super) window: WindowView,
    #[schema(pattern = "^(recorded|duplicate)$")]
    pub(super) outcome: &'static str,
}

/// What became of one item of a batch.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Outcome)]
pub(super) struct OutcomeView {
    #[schema(pattern = "^(recorded|duplicate|late|unscheduled|rejected)$")]
    pub(super) outcome: &'static str,
    /// Why it is rejected.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl From<Outcome> for OutcomeView {
    fn from(outcome: Outcome) -> Self {
        let name = outcome.name();
        let reason = match outcome {
            Outcome::Rejected(reason) => Some(reason),
            _ => None,
        };
        Self { outcome: name, reason }
    }
}

/// What a manual sweep did.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Swept)]
pub(super) struct SweptView {
    closed_windows: Vec<WindowView>,
    held_windows: Vec<HeldView>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = HeldWindow)]
struct HeldView {
    window_uuid: Uuid,
    reason: String,
}

impl From<Swept> for SweptView {
    fn from(swept: Swept) -> Self {
        let held = swept.held.into_iter();
        Self {
            closed_windows: swept.closed.into_iter().map(WindowView::from).collect(),
            held_windows: held
                .map(|(window_uuid, reason)| HeldView { window_uuid, reason })
                .collect(),
        }
    }
}
