//! The API of windows that only an audit knows.

use std::fmt;
use std::str::FromStr;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::views::ExplainedView;
use super::{PAGE, params, unknown_window};
use crate::http::failures::{BadRequest, NotFound, OurFault};
use crate::http::{ApiError, Params, PathUuid};
use crate::monitor::audits::Found;
use crate::monitor::repository::{self, AuditPosition, Wanted};
use crate::monitor::{Monitor, explain, retention, unheard};
use crate::wire::schema::Instant;
use crate::wire::{Rates, ServiceName, Tick, Timestamp, Window, WireError};
use crate::{clock, http};

/// Longest text that an audit may have for a UUID, in characters.
const MAX_UUID_CHARS: usize = 36;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct UnheardQuery {
    /// Windows that start at this instant or later.
    #[param(value_type = Instant, inline)]
    from: String,
    /// Windows of this service only.
    #[param(value_type = ServiceName, inline, required = false)]
    service: Option<String>,
    /// Most windows to look at.
    #[param(schema_with = params::page)]
    limit: Option<u32>,
    /// The `next` of an earlier answer.
    #[param(pattern = "^[0-9]{1,19}-.{0,36}$")]
    cursor: Option<String>,
}

impl UnheardQuery {
    fn wanted(&self, default_tick: Tick) -> Result<Wanted, ApiError> {
        let named = |name: &'static str| {
            move |error: WireError| ApiError::bad_request(format!("{name} {error}"))
        };
        let after = self.cursor.as_deref().map(str::parse::<AuditPosition>).transpose();
        Ok(Wanted {
            service: self
                .service
                .as_deref()
                .map(str::parse)
                .transpose()
                .map_err(named("service"))?,
            from: Timestamp::parse(&self.from).map_err(named("from"))?,
            after: after.map_err(|error| ApiError::bad_request(format!("cursor {error}")))?,
            default_tick,
            limit: http::page_limit(self.limit, PAGE)?,
        })
    }
}

/// Lists windows that only an audit knows, the latest first.
#[utoipa::path(get, path = "/unheard-windows", tag = "windows", params(UnheardQuery), responses(
    (status = 200, description = "A page of windows, which may be empty although there is a next",
     body = UnheardPage,
     links(("first" = (operation_id = "get_unheard_window",
      parameters(("uuid" = "$response.body#/windows/0/window_uuid")))))),
    BadRequest, OurFault,
))]
pub(super) async fn get_unheard_windows(
    State(monitor): State<Monitor>,
    Params(query): Params<UnheardQuery>,
) -> Result<Json<UnheardPage>, ApiError> {
    let page = unheard::page(&monitor, &query.wanted(monitor.default_tick)?).await?;
    let audit = match (monitor.audits.is_empty(), page.is_whole) {
        (true, _) => "not_configured",
        (false, true) => "read",
        (false, false) => "unreachable",
    };
    let windows = page.windows.iter().map(UnheardView::from).collect();
    let next = page.next.map(|place| place.to_string());
    Ok(Json(UnheardPage { audit, windows, next }))
}

/// Shows a window that only an audit knows, with all its slots and their verdicts.
#[utoipa::path(get, path = "/unheard-windows/{uuid}", tag = "windows",
    params(("uuid" = Uuid, Path, description = "Identity of the window")),
    responses(
        (status = 200, description = "The window", body = UnheardDetailsView),
        BadRequest, NotFound, OurFault,
    ))]
pub(super) async fn get_unheard_window(
    State(monitor): State<Monitor>,
    PathUuid(uuid): PathUuid,
) -> Result<Json<UnheardDetailsView>, ApiError> {
    let window = match monitor.audits.define(uuid, monitor.default_tick).await {
        Found::Known(window) => window,
        Found::Unreachable => {
            let why = "an audit that may know this window cannot be read now; try again";
            return Err(ApiError::unavailable(why));
        }
        Found::NotMigrated => {
            let why = "an audit that may know this window is not migrated: run `heartbeat migrate \
                payments` with its address as --database-url";
            return Err(ApiError::unavailable(why));
        }
        Found::Unasked | Found::UnknownWindow => return Err(unknown_window(uuid)),
    };
    let explained = explain::explain_unheard(&monitor, &window, clock::now()).await?;
    let explained = explained.ok_or_else(|| {
        ApiError::not_found(format!("the monitor has heard of window {uuid}: ask /windows/{uuid}"))
    })?;
    if window.ends_at() <= repository::gone_until(&monitor.pool).await? {
        return Err(ApiError::not_found(retention::window_gone(&window)));
    }
    Ok(Json(UnheardDetailsView { window: UnheardView::from(&window), explained: explained.into() }))
}

/// One page of windows that only an audit knows.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = UnheardWindowPage)]
pub(super) struct UnheardPage {
    /// Whether all audits were read, some are unreachable, or none is configured.
    #[schema(pattern = "^(read|unreachable|not_configured)$")]
    audit: &'static str,
    windows: Vec<UnheardView>,
    /// Where the next page begins; none on the last.
    next: Option<String>,
}

/// A window of which nothing has arrived, as its sender defined it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = UnheardWindow)]
pub(super) struct UnheardView {
    window_uuid: Uuid,
    service: String,
    /// Always `unheard`, unlike that of any window that the monitor knows.
    status: &'static str,
    #[serde(flatten)]
    rates: Rates,
    tick_seconds: Tick,
    expected_reports: u32,
    received_reports: u32,
    window_from: Timestamp,
    window_to: Timestamp,
}

/// The same with all its slots.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = UnheardWindowDetails)]
pub(super) struct UnheardDetailsView {
    #[serde(flatten)]
    window: UnheardView,
    #[serde(flatten)]
    explained: ExplainedView,
}

impl From<&Window> for UnheardView {
    fn from(window: &Window) -> Self {
        Self {
            window_uuid: window.uuid,
            service: window.service.to_string(),
            status: "unheard",
            rates: window.rates,
            tick_seconds: window.tick(),
            expected_reports: window.slots(),
            received_reports: 0,
            window_from: window.from(),
            window_to: window.to(),
        }
    }
}

impl fmt::Display for AuditPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.from.micros(), self.uuid)
    }
}

impl FromStr for AuditPosition {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (from, uuid) = text.split_once('-').unwrap_or_default();
        match from.parse() {
            Ok(micros)
                if Timestamp::is_usable(micros) && uuid.chars().count() <= MAX_UUID_CHARS =>
            {
                Ok(Self { from: Timestamp::from_micros(micros), uuid: uuid.to_owned() })
            }
            _ => Err("must be the `next` of an earlier answer"),
        }
    }
}
