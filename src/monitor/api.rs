//! The monitor's HTTP API: extract, call, answer.
//!
//! Heartbeats and announcements are answered only after their commit. A duplicate, a late and an
//! unscheduled heartbeat are successes: the sender has done its part.

mod daily;
mod document;
mod events;
mod heartbeats;
mod params;
mod pipeline;
mod places;
mod services;
mod summary;
mod unheard;
mod views;
mod windows;

use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use axum::{Json, Router};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

pub use self::places::Places;
use self::views::WindowView;
use super::{Monitor, lookups, repository};
use crate::db;
use crate::http::failures::OurFault;
use crate::http::{self, ApiError, Health, Ready};
use crate::wire::Timestamp;

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
    let api = OpenApiRouter::new()
        .routes(routes!(heartbeats::post_heartbeat))
        .routes(routes!(heartbeats::post_heartbeats))
        .routes(routes!(heartbeats::post_window, windows::get_windows))
        .routes(routes!(heartbeats::post_windows))
        .routes(routes!(windows::post_sweep))
        .routes(routes!(windows::get_window))
        .routes(routes!(unheard::get_unheard_windows))
        .routes(routes!(unheard::get_unheard_window))
        .routes(routes!(events::get_events))
        .routes(routes!(summary::get_summary))
        .routes(routes!(daily::get_daily))
        .routes(routes!(daily::post_rebuild))
        .routes(routes!(services::get_services))
        .routes(routes!(pipeline::post_report, pipeline::get_pipeline, pipeline::delete_group));
    let router = OpenApiRouter::with_openapi(document::document())
        .nest("/api/monitor", api)
        .routes(routes!(health))
        .routes(routes!(ready))
        .routes(routes!(metrics))
        .with_state(monitor);
    http::described(router)
}

/// Says that the process is alive.
#[utoipa::path(get, path = "/health", tag = "health", responses(
    (status = 200, description = "It is", body = Health),
))]
async fn health() -> Json<Health> {
    Health::of("monitor")
}

/// Says whether the monitor can do its work.
#[utoipa::path(get, path = "/ready", tag = "health", responses(
    (status = 200, description = "It can", body = Ready),
    OurFault,
))]
async fn ready(State(monitor): State<Monitor>) -> Response {
    let ping = tokio::time::timeout(PING_TIMEOUT, db::ping(&monitor.pool)).await;
    match ping {
        Ok(Ok(())) => monitor.readiness.works("database"),
        Ok(Err(error)) => monitor.readiness.trouble("database", error.class.advice()),
        Err(_) => monitor.readiness.trouble("database", "does not answer"),
    }
    monitor.readiness.answer()
}

/// What the monitor counts and measures, for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "health", responses(
    (status = 200, description = "Metrics", body = String, content_type = "text/plain"),
    OurFault,
))]
async fn metrics(State(monitor): State<Monitor>) -> Response {
    monitor.metrics.registry.answer()
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
