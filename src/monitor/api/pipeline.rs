//! The API of the way from the senders: what relays report, and what comes of it.

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::clock;
use crate::http::failures::{BadRequest, NotAllowed, NotFound, OurFault, Refused, TooLarge};
use crate::http::{AdminToken, ApiError, Body, Done, Params};
use crate::monitor::pipeline::STALLED_AFTER;
use crate::monitor::repository::{self, Pipeline, RecordedCondition, Reported};
use crate::monitor::{Monitor, pipeline};
use crate::wire::{Breaker, PipelineReport, StreamState, Suspect, Timestamp};

/// Conditions that are shown.
const CONDITIONS: u32 = 50;

/// Takes a relay's report.
#[utoipa::path(post, path = "/pipeline", tag = "pipeline",
    request_body(content = PipelineReport, example = json!({
        "relay": "relay-1", "group": "monitor-queue-group", "stream": "reports",
        "redis_identity": "5f2c1a:9b1d", "redis_time": "2026-11-21T10:00:11Z",
        "watermark": "2026-11-21T10:00:10.5Z",
        "windows": {"lag": 0, "pending": 0, "oldest_pending_at": null},
        "heartbeats": {"lag": 0, "pending": 2, "oldest_pending_at": "2026-11-21T10:00:10.5Z"},
        "breaker": {"state": "closed"}, "dead_letters_total": 0,
    })),
    responses(
        (status = 202, description = "It is stored", body = Done),
        BadRequest, TooLarge, Refused, OurFault,
    ))]
pub(super) async fn post_report(
    State(monitor): State<Monitor>,
    body: Body,
) -> Result<Response, ApiError> {
    let report: PipelineReport = body.object()?;
    report.check()?;
    pipeline::accept(&monitor, report, clock::now()).await?;
    Ok((StatusCode::ACCEPTED, Json(Done::OK)).into_response())
}

/// Shows the watermark, what relays report, and what is or was wrong.
#[utoipa::path(get, path = "/pipeline", tag = "pipeline", responses(
    (status = 200, description = "The way from the senders", body = PipelinesView),
    OurFault,
))]
pub(super) async fn get_pipeline(
    State(monitor): State<Monitor>,
) -> Result<Json<PipelinesView>, ApiError> {
    let mut connection = monitor.connection().await?;
    let pipelines = repository::pipelines(&mut connection).await?;
    let reports = repository::reports(&mut connection).await?;
    let conditions = repository::conditions(&mut connection, CONDITIONS).await?;
    Ok(Json(PipelinesView {
        watermark: pipelines.iter().map(|pipeline| pipeline.progress.watermark).min(),
        pipelines: pipelines.into_iter().map(|known| PipelineView::new(known, &reports)).collect(),
        conditions: conditions.into_iter().map(ConditionView::from).collect(),
    }))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ForgetQuery {
    /// Key of the heartbeats' stream.
    #[param(min_length = 1, max_length = 200, example = "reports")]
    stream: String,
    /// The consumer group.
    #[param(min_length = 1, max_length = 200, example = "old-group")]
    group: String,
}

/// Forgets a consumer group, so that its watermark holds up nothing any more.
#[utoipa::path(delete, path = "/pipeline", tag = "pipeline", params(ForgetQuery),
    security(("admin_token" = [])),
    responses(
        (status = 200, description = "It is forgotten", body = Done),
        BadRequest, NotAllowed, NotFound, OurFault,
    ))]
pub(super) async fn delete_group(
    State(monitor): State<Monitor>,
    headers: HeaderMap,
    Params(query): Params<ForgetQuery>,
) -> Result<Json<Done>, ApiError> {
    AdminToken::check(monitor.admin_token.as_ref(), &headers)?;
    let ForgetQuery { stream, group } = query;
    let names = format!("group {group} of stream {stream}");
    if !repository::forget(&monitor.pool, stream, group, clock::now()).await? {
        return Err(ApiError::not_found(format!("no relay has reported from {names}")));
    }
    tracing::warn!("forgot the {names}: its watermark holds up nothing any more");
    monitor.wake_sweep.notify_one();
    Ok(Json(Done::OK))
}

/// Everything that is known of the way from the senders.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Pipelines)]
pub(super) struct PipelinesView {
    /// Windows close when it has passed their end; none if no relay has ever reported.
    watermark: Option<Timestamp>,
    pipelines: Vec<PipelineView>,
    conditions: Vec<ConditionView>,
}

/// One consumer group. What a relay tells of the streams is from the report that came last.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Pipeline)]
struct PipelineView {
    stream: String,
    group: String,
    redis_identity: String,
    redis_time: Timestamp,
    watermark: Timestamp,
    frozen_until: Option<Timestamp>,
    reported_at: Timestamp,
    stalled: bool,
    windows: Option<StreamState>,
    heartbeats: Option<StreamState>,
    suspects: Vec<Suspect>,
    /// Services that have not yet sent again what a lost Redis took along.
    resending: Vec<String>,
    dead_letters: u64,
    silent_groups: BTreeSet<String>,
    relays: Vec<RelayView>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Relay)]
struct RelayView {
    relay: String,
    reported_at: Timestamp,
    breaker: Breaker,
}

impl PipelineView {
    fn new(pipeline: Pipeline, reports: &[Reported]) -> Self {
        let Pipeline { stream, group, progress, reported_at, silent_for } = pipeline;
        let is_of = |told: &&Reported| told.report.stream == stream && told.report.group == group;
        let reports: Vec<&Reported> = reports.iter().filter(is_of).collect();
        let last = reports.iter().max_by_key(|told| told.at).map(|told| &told.report);
        let relays = reports.iter().map(|told| RelayView {
            relay: told.report.relay.clone(),
            reported_at: told.at,
            breaker: told.report.breaker.clone(),
        });
        Self {
            redis_identity: progress.identity,
            redis_time: progress.redis_time,
            watermark: progress.watermark,
            frozen_until: progress.frozen_until,
            reported_at,
            stalled: silent_for >= STALLED_AFTER,
            windows: last.map(|report| report.windows.clone()),
            heartbeats: last.map(|report| report.heartbeats.clone()),
            suspects: last.map(|report| report.suspects.clone()).unwrap_or_default(),
            resending: last.map(|report| report.resending.clone()).unwrap_or_default(),
            dead_letters: last.map_or(0, |report| report.dead_letters_total),
            silent_groups: reports
                .iter()
                .flat_map(|told| told.report.silent_groups.clone())
                .collect(),
            relays: relays.collect(),
            stream,
            group,
        }
    }
}

/// Something that is or was wrong with a group.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Condition)]
struct ConditionView {
    stream: String,
    group: String,
    kind: String,
    detail: String,
    began_at: Timestamp,
    /// None while it lasts.
    ended_at: Option<Timestamp>,
}

impl From<RecordedCondition> for ConditionView {
    fn from(condition: RecordedCondition) -> Self {
        let RecordedCondition { stream, group, kind, detail, began_at, ended_at } = condition;
        Self { stream, group, kind, detail, began_at, ended_at }
    }
}
