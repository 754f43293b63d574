//! The API that takes heartbeats and announcements in, one or many at a time.

use std::borrow::Cow;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::value::RawValue;
use utoipa::openapi::schema::ArrayBuilder;
use utoipa::openapi::{Ref, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::views::{HeartbeatTakenView, HeartbeatView, OutcomeView, WindowTakenView, WindowView};
use super::{MAX_BATCH_ITEMS, stored_window, unknown_window};
use crate::http::failures::{BadRequest, OurFault, Refused, TooLarge};
use crate::http::{ApiError, Body};
use crate::monitor::ingest::{self, Outcome};
use crate::monitor::trace::{self, Ingests};
use crate::monitor::{Monitor, lookups};
use crate::wire::{Announcement, Heartbeat, WireError};
use crate::{clock, db};

/// Takes one heartbeat.
///
/// The answer comes after the heartbeat is stored. A duplicate, a late and an unscheduled heartbeat are
/// answered with 202 too: the sender has done its part.
#[utoipa::path(post, path = "/heartbeats", tag = "heartbeats",
    request_body(content = Heartbeat, example = json!({
        "service": "payments-a", "status": "ok",
        "window_uuid": "6f1c1f0e-5f0c-4f43-9a55-0d2b1f2a7f10",
        "window_from": "2026-11-21T10:00:00Z", "window_to": "2026-11-21T10:02:30Z",
        "timestamp": "2026-11-21T10:00:10Z",
    })),
    responses(
        (status = 202, description = "It is stored", body = HeartbeatTakenView),
        BadRequest, TooLarge, Refused, OurFault,
    ))]
pub(super) async fn post_heartbeat(
    State(monitor): State<Monitor>,
    Body(body): Body,
) -> Result<Response, ApiError> {
    let now = clock::now();
    let mut spans = Ingests::begin(&monitor, now);
    let parsed = Heartbeat::parse(&body, monitor.default_tick);
    spans.note(&body, &parsed);
    let heartbeat = match parsed {
        Ok(heartbeat) => heartbeat,
        Err(error) => {
            monitor.metrics.refused(1);
            spans.end(|_| Some(trace::REJECTED));
            return Err(error.into());
        }
    };
    let uuid = heartbeat.window.uuid;
    let outcomes = ingest::ingest(&monitor, vec![heartbeat.clone()], now).await;
    spans.end(|_| Some(outcomes.as_ref().ok()?.first()?.name()));
    let outcome = unless_rejected(outcomes?)?;
    let found = match outcome {
        Outcome::Recorded => lookups::find_open_window(&monitor, uuid, clock::now()).await?,
        _ => lookups::find_window(&monitor, uuid).await?,
    };
    let window = found.map(WindowView::from).ok_or_else(|| unknown_window(uuid))?;
    let heartbeat = HeartbeatView::new(&heartbeat, &window.stored.window, now);
    let answer = HeartbeatTakenView { heartbeat, window, outcome: outcome.name() };
    Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
}

/// Takes an array of heartbeats.
///
/// Answers one outcome each, in their order. One that cannot be used is `rejected`, with the reason,
/// and does not fail the others.
#[utoipa::path(post, path = "/heartbeats/batch", tag = "heartbeats",
    request_body(content = HeartbeatBatch),
    responses(
        (status = 200, description = "What became of each", body = Vec<OutcomeView>),
        BadRequest, TooLarge, Refused, OurFault,
    ))]
pub(super) async fn post_heartbeats(
    State(monitor): State<Monitor>,
    Body(body): Body,
) -> Result<Json<Vec<OutcomeView>>, ApiError> {
    let now = clock::now();
    let mut spans = Ingests::begin(&monitor, now);
    let parsed = parse_items(&body, |item| {
        let heartbeat = Heartbeat::parse(item, monitor.default_tick);
        spans.note(item, &heartbeat);
        heartbeat
    })?;
    monitor.metrics.refused(parsed.0.iter().filter(|item| item.is_err()).count());
    let take = async |heartbeats| ingest::ingest(&monitor, heartbeats, clock::now()).await;
    let answer = answer_items(parsed, take).await;
    spans.end(|place| Some(answer.as_ref().ok()?.get(place)?.outcome));
    answer
}

/// Announces one window.
///
/// So that a sender which dies before its first heartbeat is still missed.
#[utoipa::path(post, path = "/windows", tag = "windows",
    request_body(content = Announcement, example = json!({
        "service": "payments-a", "window_uuid": "6f1c1f0e-5f0c-4f43-9a55-0d2b1f2a7f10",
        "window_from": "2026-11-21T10:00:00Z", "window_to": "2026-11-21T10:02:30Z",
        "tick_seconds": 10,
    })),
    responses(
        (status = 202, description = "It is known", body = WindowTakenView),
        BadRequest, TooLarge, Refused, OurFault,
    ))]
pub(super) async fn post_window(
    State(monitor): State<Monitor>,
    Body(body): Body,
) -> Result<Response, ApiError> {
    let told = Announcement::parse(&body, monitor.default_tick)?;
    let uuid = told.window.uuid;
    let outcomes = ingest::announce(&monitor, vec![told], clock::now()).await?;
    let outcome = unless_rejected(outcomes)?;
    let window = stored_window(&monitor, uuid).await?;
    let answer = WindowTakenView { window, outcome: outcome.name() };
    Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
}

/// Announces an array of windows.
///
/// Answers one outcome each, as for heartbeats.
#[utoipa::path(post, path = "/windows/batch", tag = "windows",
    request_body(content = AnnouncementBatch),
    responses(
        (status = 200, description = "What became of each", body = Vec<OutcomeView>),
        BadRequest, TooLarge, Refused, OurFault,
    ))]
pub(super) async fn post_windows(
    State(monitor): State<Monitor>,
    Body(body): Body,
) -> Result<Json<Vec<OutcomeView>>, ApiError> {
    let parsed = parse_items(&body, |item| Announcement::parse(item, monitor.default_tick))?;
    answer_items(parsed, async |told| ingest::announce(&monitor, told, clock::now()).await).await
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

/// The items of an array, each as it was read, or why it cannot be used.
struct Batch<T>(Vec<Result<T, String>>);

// The document takes no parameter of a type that describes itself.
type HeartbeatBatch = Batch<Heartbeat>;
type AnnouncementBatch = Batch<Announcement>;

impl<T: ToSchema> PartialSchema for Batch<T> {
    fn schema() -> RefOr<Schema> {
        let item = Ref::from_schema_name(T::name());
        ArrayBuilder::new().items(item).max_items(Some(MAX_BATCH_ITEMS)).into()
    }
}

impl<T: ToSchema> ToSchema for Batch<T> {
    fn name() -> Cow<'static, str> {
        format!("{}Batch", T::name()).into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((T::name().into_owned(), T::schema()));
        T::schemas(schemas);
    }
}

/// Reads each item of an array on its own, so that one bad item does not fail its neighbours.
fn parse_items<T>(
    body: &[u8],
    mut parse: impl FnMut(&[u8]) -> Result<T, WireError>,
) -> Result<Batch<T>, ApiError> {
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
    Ok(Batch(items.into_iter().map(parse).collect()))
}

/// Hands the good items on and puts the answers back in the order of the array.
async fn answer_items<T>(
    Batch(parsed): Batch<T>,
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
