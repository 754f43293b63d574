//! The JSON that the API shows, apart from what is stored.

use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::payments::plan::Plan;
use crate::payments::repository::{AuditRow, AuditTotals, ListedWindow};
use crate::wire::{Rates, Seconds, Tick, Timestamp};

/// What was opened.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OpenedWindow)]
pub(super) struct OpenedView {
    ok: bool,
    window_uuid: Uuid,
    service: String,
    #[schema(minimum = 0, maximum = 1)]
    error_status_generado: Option<f64>,
    #[schema(minimum = 0, maximum = 1)]
    error_status_no_reportado: Option<f64>,
    duration_sec: Seconds,
    window_from: Timestamp,
    window_to: Timestamp,
    tick_seconds: Tick,
    expected_reports: u32,
    /// What the random choices were drawn from.
    seed: u64,
}

impl OpenedView {
    pub(super) fn new(plan: &Plan) -> Self {
        let window = &plan.window;
        Self {
            ok: true,
            window_uuid: window.uuid,
            service: window.service.to_string(),
            error_status_generado: window.rates.error_status_generado,
            error_status_no_reportado: window.rates.error_status_no_reportado,
            duration_sec: Seconds(window.to().micros() - window.from().micros()),
            window_from: window.from(),
            window_to: window.to(),
            tick_seconds: window.tick(),
            expected_reports: window.slots(),
            seed: plan.seed,
        }
    }
}

/// The latest windows of the service.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Windows)]
pub(super) struct WindowsView {
    ok: bool,
    windows: Vec<WindowView>,
}

impl From<Vec<ListedWindow>> for WindowsView {
    fn from(windows: Vec<ListedWindow>) -> Self {
        Self { ok: true, windows: windows.into_iter().map(WindowView::from).collect() }
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Window)]
struct WindowView {
    window_uuid: String,
    service: String,
    window_from: Timestamp,
    window_to: Timestamp,
    #[serde(flatten)]
    rates: Rates,
    /// None for windows of older senders.
    tick_seconds: Option<Seconds>,
    /// None while it is carried out.
    finished_at: Option<Timestamp>,
}

impl From<ListedWindow> for WindowView {
    fn from(window: ListedWindow) -> Self {
        Self {
            window_uuid: window.window_uuid,
            service: window.service,
            window_from: window.window_from,
            window_to: window.window_to,
            rates: window.rates,
            tick_seconds: window.tick_us.map(Seconds),
            finished_at: window.finished_at,
        }
    }
}

/// What the audit of a window adds up to.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Stats)]
pub(super) struct StatsView {
    ok: bool,
    window_uuid: Uuid,
    service: String,
    /// Slots in the audit.
    audit_total: i64,
    /// Slots known to be sent.
    sent_to_queue: i64,
    /// Slots omitted on purpose.
    no_reported: i64,
    /// Slots that reported `ok`.
    ok_count: i64,
    /// Slots that reported an error.
    error_count: i64,
}

impl StatsView {
    pub(super) fn new(window_uuid: Uuid, service: String, totals: &AuditTotals) -> Self {
        Self {
            ok: true,
            window_uuid,
            service,
            audit_total: totals.audit_total,
            sent_to_queue: totals.sent_to_queue,
            no_reported: totals.no_reported,
            ok_count: totals.ok_count,
            error_count: totals.error_count,
        }
    }
}

/// Rows of the audit of a window.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Audit)]
pub(super) struct AuditView {
    ok: bool,
    window_uuid: Uuid,
    service: String,
    audit: Vec<RowView>,
}

impl AuditView {
    pub(super) fn new(window_uuid: Uuid, service: String, rows: Vec<AuditRow>) -> Self {
        let audit = rows.into_iter().map(RowView::from).collect();
        Self { ok: true, window_uuid, service, audit }
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AuditRow)]
struct RowView {
    /// None in rows of older senders.
    slot: Option<i32>,
    /// `ok`, `error`, `error:` and a message, or `no_reported`.
    status: String,
    timestamp: Timestamp,
    sent_to_queue: bool,
    /// The entry of the stream that carried it; none until Redis has answered.
    stream_id: Option<String>,
}

impl From<AuditRow> for RowView {
    fn from(row: AuditRow) -> Self {
        Self {
            slot: row.slot,
            status: row.status,
            timestamp: row.timestamp,
            sent_to_queue: row.sent_to_queue,
            stream_id: row.stream_id,
        }
    }
}
