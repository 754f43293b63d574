//! The HTTP API of a payments service: opens windows, and shows them and their audit.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::Payments;
use super::emitter::{Emitter, MAX_OPEN_WINDOWS};
use super::plan::{Overrides, Plan};
use super::repository::{self, AuditRow, ListedWindow};
use crate::http::{ApiError, Body, Params, PathUuid};
use crate::wire::{Seconds, Tick, Timestamp};
use crate::{clock, db, http};

/// Largest body of any request.
pub const MAX_BODY_BYTES: usize = 16 * 1024;
/// Rows of one answer, unless asked otherwise, and at the most.
const PAGE: (u32, u32) = (100, 1_000);
/// How long `/ready` waits for a server.
const PING_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
struct Api {
    payments: Payments,
    emitter: Emitter,
}

/// Every route of the role.
pub fn router(payments: Payments, emitter: Emitter) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/metrics", payments.metrics.registry.route())
        .route("/report-windows", get(get_windows).post(post_window))
        .route("/report-windows/{uuid}/stats", get(get_stats))
        .route("/report-windows/{uuid}/audit", get(get_audit))
        .with_state(Api { payments, emitter })
}

async fn health(State(api): State<Api>) -> Json<Value> {
    Json(json!({"ok": true, "service": api.payments.service}))
}

async fn ready(State(api): State<Api>) -> Response {
    let Payments { pool, producer, readiness, .. } = &api.payments;
    let (database, stream) = tokio::join!(
        tokio::time::timeout(PING_TIMEOUT, db::ping(pool)),
        tokio::time::timeout(PING_TIMEOUT, producer.ping()),
    );
    match database {
        Ok(Ok(())) => readiness.works("payments database"),
        Ok(Err(error)) => readiness.trouble("payments database", error.class.advice()),
        Err(_) => readiness.trouble("payments database", "does not answer"),
    }
    match stream {
        Ok(Ok(())) => readiness.works("redis"),
        _ => readiness.trouble("redis", "does not answer"),
    }
    readiness.answer()
}

async fn post_window(State(api): State<Api>, body: Body) -> Result<Response, ApiError> {
    let overrides: Overrides = body.object_or_empty()?;
    let Payments { service, default_tick, .. } = &api.payments;
    let identity = (Uuid::new_v4(), service.clone());
    let plan = Plan::draw(&overrides, identity, clock::now(), *default_tick, rand::random())?;
    if api.emitter.open_windows().await? >= MAX_OPEN_WINDOWS {
        return Err(ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            format!("{MAX_OPEN_WINDOWS} windows are open here already: wait until some end"),
        ));
    }
    let answer = Opened::new(&plan);
    api.emitter.open(plan).await?;
    Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
}

/// What was opened.
#[derive(Serialize)]
struct Opened {
    ok: bool,
    window_uuid: Uuid,
    service: String,
    error_status_generado: Option<f64>,
    error_status_no_reportado: Option<f64>,
    duration_sec: Seconds,
    window_from: Timestamp,
    window_to: Timestamp,
    tick_seconds: Tick,
    expected_reports: u32,
    seed: u64,
}

impl Opened {
    fn new(plan: &Plan) -> Self {
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

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PageQuery {
    limit: Option<u32>,
    offset: Option<u32>,
}

async fn get_windows(
    State(api): State<Api>,
    Params(query): Params<PageQuery>,
) -> Result<Json<Value>, ApiError> {
    let Payments { pool, service, .. } = &api.payments;
    let windows =
        repository::list_windows(pool, service, http::page_limit(query.limit, PAGE)?).await?;
    let windows: Vec<Value> = windows.into_iter().map(ListedWindow::into_json).collect();
    Ok(Json(json!({"ok": true, "windows": windows})))
}

async fn get_stats(
    State(api): State<Api>,
    PathUuid(uuid): PathUuid,
) -> Result<Json<Value>, ApiError> {
    let found = repository::totals(&api.payments.pool, uuid).await?;
    let (service, totals) = found.ok_or_else(|| unknown_window(uuid))?;
    Ok(Json(json!({
        "ok": true,
        "window_uuid": uuid,
        "service": service,
        "audit_total": totals.audit_total,
        "sent_to_queue": totals.sent_to_queue,
        "no_reported": totals.no_reported,
        "ok_count": totals.ok_count,
        "error_count": totals.error_count,
    })))
}

async fn get_audit(
    State(api): State<Api>,
    PathUuid(uuid): PathUuid,
    Params(query): Params<PageQuery>,
) -> Result<Json<Value>, ApiError> {
    let pool = &api.payments.pool;
    let (service, _) = repository::totals(pool, uuid).await?.ok_or_else(|| unknown_window(uuid))?;
    let page = (http::page_limit(query.limit, PAGE)?, query.offset.unwrap_or(0));
    let rows = repository::audit(pool, uuid, page).await?;
    let rows: Vec<Value> = rows.into_iter().map(AuditRow::into_json).collect();
    Ok(Json(json!({"ok": true, "window_uuid": uuid, "service": service, "audit": rows})))
}

fn unknown_window(uuid: Uuid) -> ApiError {
    ApiError::not_found(format!("no window {uuid} is known"))
}

impl ListedWindow {
    fn into_json(self) -> Value {
        json!({
            "window_uuid": self.window_uuid,
            "service": self.service,
            "window_from": self.window_from,
            "window_to": self.window_to,
            "error_status_generado": self.rates.error_status_generado,
            "error_status_no_reportado": self.rates.error_status_no_reportado,
            "tick_seconds": self.tick_us.map(Seconds),
            "finished_at": self.finished_at,
        })
    }
}

impl AuditRow {
    fn into_json(self) -> Value {
        json!({
            "slot": self.slot,
            "status": self.status,
            "timestamp": self.timestamp,
            "sent_to_queue": self.sent_to_queue,
            "stream_id": self.stream_id,
        })
    }
}
