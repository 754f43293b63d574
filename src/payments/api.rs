//! The HTTP API of a payments service: opens windows, and shows them and their audit.

mod views;

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use serde::Deserialize;
use utoipa::openapi::Object;
use utoipa::{IntoParams, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use self::views::{AuditView, OpenedView, StatsView, WindowsView};

use super::Payments;
use super::emitter::{Emitter, MAX_OPEN_WINDOWS};
use super::plan::{Overrides, Plan};
use super::repository;
use crate::http::failures::{BadRequest, NotFound, OurFault, TooLarge, TooMany};
use crate::http::{ApiError, Body, Health, Params, PathUuid, Ready};
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
    let router = OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(post_window, get_windows))
        .routes(routes!(get_stats))
        .routes(routes!(get_audit))
        .routes(routes!(health))
        .routes(routes!(ready))
        .routes(routes!(metrics))
        .with_state(Api { payments, emitter });
    http::described(router)
}

/// What the document says besides its routes.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "heartbeat payments",
        description = "A service under watch: opens windows, sends a heartbeat per slot or omits it \
            as planned, and shows its audit. Times are ISO 8601, and in answers always UTC. A path \
            that takes no such method answers 405, and every error has the body of `Error`. Bodies \
            are read as JSON whatever their content type says."
    ),
    tags(
        (name = "windows", description = "Spans in which this service promises a heartbeat per tick"),
        (name = "health", description = "Whether the process is alive and can do its work"),
        (name = "description", description = "This document, and a page that shows it"),
    )
)]
struct Document;

/// Says that the process is alive.
#[utoipa::path(get, path = "/health", tag = "health", responses(
    (status = 200, description = "It is", body = Health),
))]
async fn health(State(api): State<Api>) -> Json<Health> {
    Health::of(api.payments.service.as_str())
}

/// What the service counts and measures, for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "health", responses(
    (status = 200, description = "Metrics", body = String, content_type = "text/plain"),
    OurFault,
))]
async fn metrics(State(api): State<Api>) -> Response {
    api.payments.metrics.registry.answer()
}

/// Says whether the service can do its work.
#[utoipa::path(get, path = "/ready", tag = "health", responses(
    (status = 200, description = "It can", body = Ready),
    OurFault,
))]
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

/// Opens a window.
///
/// What the body does not choose is random: 60 to 300 s long, up to 30 % of errors and 15 % of omissions,
/// with at least one slot omitted.
#[utoipa::path(post, path = "/report-windows", tag = "windows",
    request_body(content = Option<Overrides>, example = json!({"duration_sec": 60, "seed": 7})),
    responses(
        (status = 202, description = "It is open", body = OpenedView, links(
            ("stats" = (operation_id = "get_stats",
             parameters(("uuid" = "$response.body#/window_uuid")))),
            ("audit" = (operation_id = "get_audit",
             parameters(("uuid" = "$response.body#/window_uuid")))),
        )),
        BadRequest, TooLarge, TooMany, OurFault,
    ))]
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
    let answer = OpenedView::new(&plan);
    api.emitter.open(plan).await?;
    Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
}

fn page() -> Object {
    http::limit_schema(PAGE)
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct WindowsQuery {
    /// Most windows to answer with.
    #[param(schema_with = page)]
    limit: Option<u32>,
}

/// Lists the latest windows of this service.
#[utoipa::path(get, path = "/report-windows", tag = "windows", params(WindowsQuery), responses(
    (status = 200, description = "The windows, the latest first", body = WindowsView),
    BadRequest, OurFault,
))]
async fn get_windows(
    State(api): State<Api>,
    Params(query): Params<WindowsQuery>,
) -> Result<Json<WindowsView>, ApiError> {
    let Payments { pool, service, .. } = &api.payments;
    let windows =
        repository::list_windows(pool, service, http::page_limit(query.limit, PAGE)?).await?;
    Ok(Json(WindowsView::from(windows)))
}

/// Shows what the audit of a window adds up to.
#[utoipa::path(get, path = "/report-windows/{uuid}/stats", tag = "windows",
    params(("uuid" = Uuid, Path, description = "Identity of the window")),
    responses(
        (status = 200, description = "The totals", body = StatsView),
        BadRequest, NotFound, OurFault,
    ))]
async fn get_stats(
    State(api): State<Api>,
    PathUuid(uuid): PathUuid,
) -> Result<Json<StatsView>, ApiError> {
    let found = repository::totals(&api.payments.pool, uuid).await?;
    let (service, totals) = found.ok_or_else(|| unknown_window(uuid))?;
    Ok(Json(StatsView::new(uuid, service, &totals)))
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct AuditQuery {
    /// Most rows to answer with.
    #[param(schema_with = page)]
    limit: Option<u32>,
    /// Rows to leave out at the beginning.
    #[param(minimum = 0, maximum = 4_294_967_295_u32)]
    offset: Option<u32>,
}

/// Shows the audit of a window, slot by slot.
#[utoipa::path(get, path = "/report-windows/{uuid}/audit", tag = "windows",
    params(("uuid" = Uuid, Path, description = "Identity of the window"), AuditQuery),
    responses(
        (status = 200, description = "Rows of the audit", body = AuditView),
        BadRequest, NotFound, OurFault,
    ))]
async fn get_audit(
    State(api): State<Api>,
    PathUuid(uuid): PathUuid,
    Params(query): Params<AuditQuery>,
) -> Result<Json<AuditView>, ApiError> {
    let pool = &api.payments.pool;
    let (service, _) = repository::totals(pool, uuid).await?.ok_or_else(|| unknown_window(uuid))?;
    let page = (http::page_limit(query.limit, PAGE)?, query.offset.unwrap_or(0));
    let rows = repository::audit(pool, uuid, page).await?;
    Ok(Json(AuditView::new(uuid, service, rows)))
}

fn unknown_window(uuid: Uuid) -> ApiError {
    ApiError::not_found(format!("no window {uuid} is known"))
}
