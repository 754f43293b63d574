//! `GET /services`: each service that has windows, and how it is.

use std::collections::HashMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::openapi::Object;
use utoipa::{IntoParams, ToSchema};

use super::places::Place;
use super::summary::rate;
use super::{Monitor, params};
use crate::clock;
use crate::http::failures::{BadRequest, OurFault};
use crate::http::{self, ApiError, Params};
use crate::monitor::repository::{self, KnownService};
use crate::monitor::totals::Span;
use crate::wire::{ServiceName, StreamId, Timestamp};

/// Services of one page, unless asked otherwise, and at the most.
const SERVICES: (u32, u32) = (50, 50);
/// How far back the rate of success goes.
const SUCCESS_OVER: Duration = Duration::from_hours(24);

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ServicesQuery {
    /// Most services to answer with.
    #[param(schema_with = limit)]
    limit: Option<u32>,
    /// The `next` of an earlier answer.
    #[param(value_type = ServiceName, inline, required = false)]
    cursor: Option<String>,
}

fn limit() -> Object {
    http::limit_schema(SERVICES)
}

/// Lists each service that has windows, and how it is.
#[utoipa::path(get, path = "/services", tag = "totals", params(ServicesQuery), responses(
    (status = 200, description = "A page of services", body = ServicePage),
    BadRequest, OurFault,
))]
pub(super) async fn get_services(
    State(monitor): State<Monitor>,
    Params(query): Params<ServicesQuery>,
    _place: Place,
) -> Result<Json<ServicePage>, ApiError> {
    let limit = http::page_limit(query.limit, SERVICES)?;
    let after: Option<ServiceName> = params::optional("cursor", query.cursor.as_deref())?;
    let after = after.as_ref().map_or("", ServiceName::as_str);
    let now = clock::now();
    let mut connection = monitor.connection().await?;
    // One more than asked for shows whether a next page exists.
    let mut known = repository::services(&mut connection, after, now, limit + 1).await?;
    let is_last = known.len() <= limit as usize;
    known.truncate(limit as usize);
    let next = known.last().filter(|_| !is_last).map(|last| last.name.clone());
    let names: Vec<String> = known.iter().map(|service| service.name.clone()).collect();
    let since = Span::Hour.begin(now.minus(SUCCESS_OVER));
    let successes = repository::successes(&mut connection, &names, since).await?;
    let rebuilding = repository::is_recounting(&mut connection).await?;
    let services = known.into_iter().map(|service| ServiceView::new(service, &successes));
    Ok(Json(ServicePage { services: services.collect(), next, rebuilding }))
}

/// One page of services, and where the next begins.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ServicePage {
    services: Vec<ServiceView>,
    /// Where the next page begins; none on the last.
    next: Option<String>,
    /// Whether the totals are being counted anew, and too small until then.
    rebuilding: bool,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Service)]
struct ServiceView {
    service: String,
    last_heartbeat: Option<LastView>,
    /// The one that started last.
    open_window: Option<OpenView>,
    /// Over the last 24 hours, to the hour: of the slots of closed windows, how many arrived and
    /// reported no error; none if there were none.
    success_rate: Option<f64>,
    clock_skew: SkewView,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = LastHeartbeat)]
struct LastView {
    timestamp: Timestamp,
    recorded_at: Timestamp,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OpenWindow)]
struct OpenView {
    window_uuid: String,
    window_from: Timestamp,
    window_to: Timestamp,
    expected_reports: i32,
}

/// What the clocks differ by, with the time between two steps in it: the first bound comes from the
/// fastest message of the window that started last, the second from the last heartbeat.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ClockSkew)]
struct SkewView {
    /// How far the sender's clock is behind the stream's, at the most.
    sender_behind_stream_seconds: Option<f64>,
    /// How far the stream's clock is behind the monitor's, at the most.
    stream_behind_monitor_seconds: Option<f64>,
}

impl ServiceView {
    fn new(known: KnownService, successes: &HashMap<String, (i64, i64, i64)>) -> Self {
        let totals = successes.get(&known.name);
        let last = known.last.as_ref();
        let stream_behind_monitor_us = last.and_then(|last| {
            let written: StreamId = last.stream_id.as_ref()?.parse().ok()?;
            Some(last.recorded_at.micros() - written.written_at().micros())
        });
        Self {
            success_rate: totals
                .and_then(|(expected, received, errors)| rate(received - errors, *expected)),
            clock_skew: SkewView {
                sender_behind_stream_seconds: known.clock_offset_us.map(seconds),
                stream_behind_monitor_seconds: stream_behind_monitor_us.map(seconds),
            },
            last_heartbeat: last
                .map(|last| LastView { timestamp: last.timestamp, recorded_at: last.recorded_at }),
            open_window: known.open.map(|window| OpenView {
                window_uuid: window.uuid,
                window_from: window.from,
                window_to: window.to,
                expected_reports: window.expected,
            }),
            service: known.name,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "exact for fewer than 285 years")]
fn seconds(micros: i64) -> f64 {
    micros as f64 / 1e6
}
