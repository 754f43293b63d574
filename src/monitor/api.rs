//! The monitor's HTTP API: extract, call, answer.
//!
//! Heartbeats and announcements are answered only after their commit. A duplicate, a late and an
//! unscheduled heartbeat are successes: the sender has done its part.

mod daily;
mod events;
mod params;
mod pipeline;
mod services;
mod summary;
mod unheard;
mod views;

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use uuid::Uuid;

use self::views::{HeartbeatView, OutcomeView, SweptView, TakenView, WindowPage, WindowView};
use super::ingest::{self, Outcome};
use super::repository::{self, Filter};
use super::{Monitor, explain, lookups, sweep};
use crate::http::{ApiError, Body, Params, PathUuid};
use crate::wire::{Announcement, Heartbeat, Timestamp, WireError};
use crate::{clock, db, http};

/// Largest body of any request: a full batch.
pub const MAX_BODY_BYTES: usize = 4 * 1024 * 1024;
/// Most items of one batch.
pub const MAX_BATCH_ITEMS: usize = 1_000;
/// Rows of one page, unless asked otherwise, and at the most.
const PAGE: (u32, u32) = (50, 500);
/// How long `/ready` waits for the database.
const PING_TIMEOUT: Duration = Duration::from_secs(1);

/// Every route of the role.
pub fn router(monitor: Monitor) -> Router {
    let api = Router::new()
        .route("/heartbeats", post(post_heartbeat))
        .route("/heartbeats/batch", post(post_heartbeats))
        .route("/windows", post(post_window).get(get_windows))
        .route("/windows/batch", post(post_windows))
        .route("/windows/sweep", post(post_sweep))
        .route("/windows/{uuid}", get(get_window))
        .route("/unheard-windows", get(unheard::get_all))
        .route("/unheard-windows/{uuid}", get(unheard::get_one))
        .route("/events", get(events::get_events))
        .route("/summary", get(summary::get_summary))
        .route("/stats/daily", get(daily::get_daily))
        .route("/stats/rebuild", post(daily::post_rebuild))
        .route("/services", get(services::get_services))
        .route(
            "/pipeline",
            post(pipeline::post_report).get(pipeline::get_all).delete(pipeline::delete_group),
        );
    Router::new()
        .route("/health", get(async || Json(json!({"ok": true, "service": "monitor"}))))
        .route("/ready", get(ready))
        .route("/metrics", monitor.metrics.registry.route())
        .nest("/api/monitor", api)
        .with_state(monitor)
}

async fn ready(State(monitor): State<Monitor>) -> Response {
    let ping = tokio::time::timeout(PING_TIMEOUT, db::ping(&monitor.pool)).await;
    match ping {
        Ok(Ok(())) => monitor.readiness.works("database"),
        Ok(Err(error)) => monitor.readiness.trouble("database", error.class.advice()),
        Err(_) => monitor.readiness.trouble("database", "does not answer"),
    }
    monitor.readiness.answer()
}

async fn post_heartbeat(
    State(monitor): State<Monitor>,
    Body(body): Body,
) -> Result<Response, ApiError> {
    let now = clock::now();
    let heartbeat = Heartbeat::parse(&body, monitor.default_tick)
        .inspect_err(|_| monitor.metrics.refused(1))?;
    let uuid = heartbeat.window.uuid;
    let outcomes = ingest::ingest(&monitor, vec![heartbeat.clone()], now).await?;
    let outcome = unless_rejected(outcomes)?;
    let found = match outcome {
        Outcome::Recorded => lookups::find_open_window(&monitor, uuid, clock::now()).await?,
        _ => lookups::find_window(&monitor, uuid).await?,
    };
    let window = found.map(WindowView::from).ok_or_else(|| unknown_window(uuid))?;
    let heartbeat = HeartbeatView::new(&heartbeat, &window.stored.window, now);
    let answer = TakenView { heartbeat: Some(heartbeat), window, outcome: outcome.name() };
    Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
}

async fn post_heartbeats(
    State(monitor): State<Monitor>,
    Body(body): Body,
) -> Result<Json<Vec<OutcomeView>>, ApiError> {
    let parsed = parse_items(&body, |item| Heartbeat::parse(item, monitor.default_tick))?;
    monitor.metrics.refused(parsed.iter().filter(|item| item.is_err()).count());
    answer_items(parsed, async |heartbeats| {
        ingest::ingest(&monitor, heartbeats, clock::now()).await
    })
    .await
}

async fn post_window(
    State(monitor): State<Monitor>,
    Body(body): Body,
) -> Result<Response, ApiError> {
    let told = Announcement::parse(&body, monitor.default_tick)?;
    let uuid = told.window.uuid;
    let outcomes = ingest::announce(&monitor, vec![told], clock::now()).await?;
    let outcome = unless_rejected(outcomes)?;
    let window = stored_window(&monitor, uuid).await?;
    let answer = TakenView { heartbeat: None, window, outcome: outcome.name() };
    Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
}

async fn post_windows(
    State(monitor): State<Monitor>,
    Body(body): Body,
) -> Result<Json<Vec<OutcomeView>>, ApiError> {
    let parsed = parse_items(&body, |item| Announcement::parse(item, monitor.default_tick))?;
    answer_items(parsed, async |told| ingest::announce(&monitor, told, clock::now()).await).await
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct SweepRequest {
    window_uuid: Option<Uuid>,
}

async fn post_sweep(
    State(monitor): State<Monitor>,
    body: Body,
) -> Result<Json<SweptView>, ApiError> {
    let request: SweepRequest = body.object_or_empty()?;
    let now = clock::now();
    let swept = match request.window_uuid {
        None => sweep::sweep_on_request(&monitor, now).await?,
        Some(uuid) => {
            sweep::sweep_window(&monitor, uuid, now).await?.ok_or_else(|| unknown_window(uuid))?
        }
    };
    Ok(Json(SweptView::from(swept)))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct WindowsQuery {
    service: Option<String>,
    status: Option<String>,
    from: Option<String>,
    to: Option<String>,
    limit: Option<u32>,
    cursor: Option<String>,
}

impl WindowsQuery {
    fn filter(&self) -> Result<Filter, ApiError> {
        Ok(Filter {
            service: params::optional("service", self.service.as_deref())?,
            status: params::optional("status", self.status.as_deref())?,
            from: params::time("from", self.from.as_deref())?,
            to: params::time("to", self.to.as_deref())?,
            after: params::optional("cursor", self.cursor.as_deref())?,
        })
    }
}

async fn get_windows(
    State(monitor): State<Monitor>,
    Params(query): Params<WindowsQuery>,
) -> Result<Json<WindowPage>, ApiError> {
    let limit = http::page_limit(query.limit, PAGE)?;
    // One more than asked for shows whether a next page exists.
    let windows = repository::list_windows(&monitor.pool, &query.filter()?, limit + 1).await?;
    Ok(Json(WindowPage::new(windows, limit)))
}

async fn get_window(
    State(monitor): State<Monitor>,
    PathUuid(uuid): PathUuid,
) -> Result<Response, ApiError> {
    let window = stored_window(&monitor, uuid).await?;
    let history = repository::history(&monitor.pool, window.stored.id).await?;
    let explained = explain::explain(&monitor, &window.stored, clock::now()).await?;
    Ok(Json(window.with_details(&history, explained)).into_response())
}

async fn stored_window(monitor: &Monitor, uuid: Uuid) -> Result<WindowView, ApiError> {
    let found = lookups::find_window(monitor, uuid).await?;
    if let Some(window) = found {
        return Ok(WindowView::from(window));
    }
    let gone_until = repository::gone_until(&monitor.pool).await?;
    if !Timestamp::is_usable(gone_until.micros()) {
        // None was ever deleted.
        return Err(unknown_window(uuid));
    }
    Err(ApiError::not_found(format!(
        "no window {uuid} is known; those that ended by {gone_until} are no longer kept"
    )))
}

fn unknown_window(uuid: Uuid) -> ApiError {
    ApiError::not_found(format!("no window {uuid} is known"))
}

/// The only outcome, unless it is a refusal.
fn unless_rejected(outcomes: Vec<Outcome>) -> Result<Outcome, ApiError> {
    match outcomes.into_iter().next() {
        Some(Outcome::Rejected(reason)) => {
            Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, reason))
        }
        Some(outcome) => Ok(outcome),
        None => Err(ApiError::internal("a heartbeat without an outcome")),
    }
}

/// Reads each item of an array on its own, so that one bad item does not fail its neighbours.
fn parse_items<T>(
    body: &[u8],
    parse: impl Fn(&[u8]) -> Result<T, WireError>,
) -> Result<Vec<Result<T, String>>, ApiError> {
    let items: Vec<&RawValue> = serde_json::from_slice(body).map_err(|error| {
        ApiError::bad_request(format!("the body must be a JSON array: {error}"))
    })?;
    if items.len() > MAX_BATCH_ITEMS {
        return Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("a batch may have at most {MAX_BATCH_ITEMS} items"),
        ));
    }
    let parse = |item: &RawValue| parse(item.get().as_bytes()).map_err(|error| error.to_string());
    Ok(items.into_iter().map(parse).collect())
}

/// Hands the good items on and puts the answers back in the order of the array.
async fn answer_items<T>(
    parsed: Vec<Result<T, String>>,
    take: impl AsyncFnOnce(Vec<T>) -> Result<Vec<Outcome>, db::Error>,
) -> Result<Json<Vec<OutcomeView>>, ApiError> {
    let mut reasons = Vec::with_capacity(parsed.len());
    let mut good = Vec::with_capacity(parsed.len());
    for item in parsed {
        match item {
            Ok(item) => {
                good.push(item);
                reasons.push(None);
            }
            Err(reason) => reasons.push(Some(reason)),
        }
    }
    let mut outcomes = take(good).await?.into_iter();
    let answers = reasons
        .into_iter()
        .filter_map(|reason| reason.map(Outcome::Rejected).or_else(|| outcomes.next()));
    Ok(Json(answers.map(OutcomeView::from).collect()))
}
