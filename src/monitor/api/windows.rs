//! The API of windows: lists them, shows one with its slots, closes those that are over.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::places::Place;
use super::views::{SweptView, WindowDetailsView, WindowPage};
use super::{PAGE, params, stored_window, unknown_window};
use crate::clock;
use crate::http::failures::{BadRequest, NotFound, OurFault, TooLarge};
use crate::http::{self, ApiError, Body, Params, PathUuid};
use crate::monitor::repository::{self, Filter};
use crate::monitor::window::WindowStatus;
use crate::monitor::{Monitor, explain, sweep};
use crate::wire::ServiceName;
use crate::wire::schema::Instant;

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct SweepRequest {
    /// The window to close; all whose time is over, where there is none.
    window_uuid: Option<Uuid>,
}

/// Closes windows now.
///
/// Those whose time is over. Windows that must wait, because something of them may be on its way, are
/// named with the reason.
#[utoipa::path(post, path = "/windows/sweep", tag = "windows",
    request_body(content = Option<SweepRequest>, example = json!({})),
    responses(
        (status = 200, description = "What was closed, and what must wait", body = SweptView),
        BadRequest, NotFound, TooLarge, OurFault,
    ))]
pub(super) async fn post_sweep(
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

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct WindowsQuery {
    /// Windows of this service only.
    #[param(value_type = ServiceName, inline, required = false)]
    service: Option<String>,
    /// Windows of this status only.
    #[param(value_type = WindowStatus, inline, required = false)]
    status: Option<String>,
    /// Windows that start at this instant or later.
    #[param(value_type = Instant, inline, required = false)]
    from: Option<String>,
    /// Windows that start before this instant.
    #[param(value_type = Instant, inline, required = false)]
    to: Option<String>,
    /// Most windows to answer with.
    #[param(schema_with = params::page)]
    limit: Option<u32>,
    /// The `next` of an earlier answer.
    #[param(pattern = "^[0-9]{1,19}-[0-9]{1,19}$")]
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

/// Lists windows, the latest first.
///
/// Slots of open windows are counted for each answer. Where these are very many, a page holds fewer
/// windows than asked for: there is more as long as it has a `next`.
#[utoipa::path(get, path = "/windows", tag = "windows", params(WindowsQuery), responses(
    (status = 200, description = "A page of windows", body = WindowPage),
    BadRequest, OurFault,
))]
pub(super) async fn get_windows(
    State(monitor): State<Monitor>,
    Params(query): Params<WindowsQuery>,
    _place: Place,
) -> Result<Json<WindowPage>, ApiError> {
    let limit = http::page_limit(query.limit, PAGE)?;
    let filter = query.filter()?;
    let mut connection = monitor.connection().await?;
    let (windows, are_more) = repository::list_windows(&mut connection, &filter, limit).await?;
    Ok(Json(WindowPage::new(windows, are_more)))
}

/// Shows one window with all its slots and their verdicts.
#[utoipa::path(get, path = "/windows/{uuid}", tag = "windows",
    params(("uuid" = Uuid, Path, description = "Identity of the window")),
    responses(
        (status = 200, description = "The window", body = WindowDetailsView),
        BadRequest, NotFound, OurFault,
    ))]
pub(super) async fn get_window(
    State(monitor): State<Monitor>,
    PathUuid(uuid): PathUuid,
) -> Result<Json<WindowDetailsView>, ApiError> {
    let window = stored_window(&monitor, uuid).await?;
    let id = window.stored.id;
    let history = repository::history(&mut *monitor.connection().await?, id).await?;
    let explained = explain::explain(&monitor, &window.stored, clock::now()).await?;
    Ok(Json(window.with_details(&history, explained)))
}
